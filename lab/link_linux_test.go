package lab_test

import (
	"encoding/binary"
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/go-tcpls/tcpls/lab"
	"golang.org/x/sys/unix"
)

// datagrams returns UDP sockets at both ends of path0.
func datagrams(t *testing.T, n *lab.Network) (client, server *net.UDPConn) {
	t.Helper()
	at := &net.UDPAddr{IP: n.Link("path0").Addr("server", false).AsSlice(), Port: 7}
	err := errors.Join(
		n.Host("server").Do(func() (err error) { server, err = net.ListenUDP("udp", at); return err }),
		n.Host("client").Do(func() (err error) { client, err = net.DialUDP("udp", nil, at); return err }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// fates waits until the emulator has decided about so many packets of the client.
func fates(t *testing.T, n *lab.Network, packets uint64) lab.Counters {
	t.Helper()
	for end := time.Now().Add(patience); ; {
		c, err := n.Link("path0").Counters("client")
		if err != nil {
			t.Fatal(err)
		}
		if c.Lost+c.TooBig+c.Delivered+c.Overflown >= packets {
			return c
		}
		if time.Now().After(end) {
			t.Fatalf("of %d packets, only these have a fate: %+v", packets, c)
		}
	}
}

// TestLossAndJitter sends numbered packets over a link that loses some in bursts and
// delays the others: those that come are in order, and none is without a fate.
func TestLossAndJitter(t *testing.T) {
	n := lab.Start(t, lab.TwoHosts(lab.Shape{Loss: 0.2, LossBurst: 4, Delay: time.Millisecond, Jitter: 3 * time.Millisecond}))
	client, server := datagrams(t, n)
	const packets, queue = 3000, 500 // the kernel queues twice that before the emulator
	arrived := make(chan int)
	go func() {
		count := 0
		defer func() { arrived <- count }()
		b, next := make([]byte, 4), uint32(0)
		for {
			if _, err := server.Read(b); err != nil {
				return // closed
			}
			if got := binary.BigEndian.Uint32(b); got < next {
				t.Errorf("packet %d comes after %d", got, next-1)
			} else {
				next = got + 1
			}
			count++
		}
	}()
	for i := range uint32(packets) {
		if i%queue == 0 {
			fates(t, n, uint64(i))
		}
		if _, err := client.Write(binary.BigEndian.AppendUint32(nil, i)); err != nil {
			t.Fatal(err)
		}
	}
	c := fates(t, n, packets)
	server.Close()
	if got := float64(c.Lost) / packets; got < 0.1 || got > 0.3 {
		t.Errorf("%.0f%% were lost, not 20%%", 100*got)
	}
	got := <-arrived
	if c = fates(t, n, packets); got == 0 || uint64(got) > c.Delivered {
		t.Errorf("%d packets arrived, and %d were delivered", got, c.Delivered)
	}
}

// TestPacketSizes tells an interface's MTU, which its host knows, from a link that
// loses large packets without a word.
func TestPacketSizes(t *testing.T) {
	topology := lab.TwoHosts(lab.Shape{MaxPacket: 1000})
	topology.Links[0].MTU = 1300
	n := lab.Start(t, topology)
	tcp, _ := connect(t, n, "path0", false)
	if got := tcpInfo(t, tcp).Snd_mss; got > 1300-40 {
		t.Errorf("segments have up to %d bytes", got)
	}
	client, server := datagrams(t, n)
	err := control(client, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	})
	if err != nil {
		t.Fatal(err)
	}
	const headers = 28 // of IPv4 and UDP
	if _, err := client.Write(make([]byte, 1301-headers)); !errors.Is(err, syscall.EMSGSIZE) {
		t.Errorf("a packet larger than the MTU: %v", err)
	}
	before := fates(t, n, 0)
	for _, size := range []int{1300, 1001, 1000} {
		if _, err := client.Write(make([]byte, size-headers)); err != nil {
			t.Errorf("a packet of %d bytes: %v", size, err)
		}
	}
	if got, err := server.Read(make([]byte, 2000)); err != nil || got != 1000-headers {
		t.Errorf("a packet with %d bytes arrived, %v", got, err)
	}
	after := fates(t, n, 0)
	if tooBig := after.TooBig - before.TooBig; tooBig != 2 {
		t.Errorf("%d packets were too big for the link, want 2", tooBig)
	}
}

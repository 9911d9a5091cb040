//go:build linux

package lab_test

import (
	"context"
	"encoding/binary"
	"io"
	"math"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/go-tcpls/tcpls/lab"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// TestAccuracy measures two links at once, by the kernel's TCP and its answers
// to pings: full links for their rate, half-full ones for their delay.
func TestAccuracy(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 10 s")
	}
	const delay, rate = 20 * time.Millisecond, 100 * lab.Mbit
	// The senders' buffers are larger than what is under way, and smaller than
	// the queue: nothing is lost, so TCP keeps the links full even if this machine
	// stands still for a while.
	shape := lab.Shape{Rate: rate, Delay: delay, Queue: 4_000_000}
	n := lab.Start(t, lab.TwoHosts(shape, shape))
	links := []string{"path0", "path1"}

	t.Run("rate", func(t *testing.T) {
		for i, got := range measure(t, n, links, 0) {
			// 1448 of 1500 bytes are TCP's.
			want := float64(rate) / 8 * 1448 / 1500
			t.Logf("%s: %.2f Mbit/s of payload, %.2f in theory", links[i], got*8/1e6, want*8/1e6)
			if math.Abs(got/want-1) > 0.01 {
				t.Errorf("%s: the rate is off by %.2f%%", links[i], 100*(got/want-1))
			}
		}
	})
	t.Run("delay", func(t *testing.T) {
		var delays [2][]time.Duration
		stop := make(chan struct{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := 0; ; i = 1 - i {
				select {
				case <-stop:
					return
				default:
				}
				if rtt, err := ping(n.Host("client"), n.Link(links[i]).Addr("server", false).AsSlice()); err != nil {
					t.Error(err)
					return
				} else {
					delays[i] = append(delays[i], rtt/2)
				}
			}
		}()
		measure(t, n, links, int(rate/8/2))
		close(stop)
		<-done
		for i, d := range delays {
			slices.Sort(d)
			got := d[len(d)/2]
			t.Logf("%s: %v one way in the median of %d pings, %v to %v", links[i], got, len(d), d[0], d[len(d)-1])
			if off := got - delay; off.Abs() > 500*time.Microsecond {
				t.Errorf("%s: the delay is off by %v", links[i], off)
			}
		}
	})
	for _, link := range links {
		c, err := n.Link(link).Counters("client")
		t.Logf("%s: %+v, %v", link, c, err)
	}
}

// measure transfers over all links at once, and returns the median of the rates
// of payload, in bytes per second. pace bounds them, unless it is 0.
func measure(t *testing.T, n *lab.Network, links []string, pace int) []float64 {
	t.Helper()
	const warmup, window, windows = 1500 * time.Millisecond, 200 * time.Millisecond, 15
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	medians := make([]float64, len(links))
	received := make(chan struct{})
	for i, link := range links {
		client, server := connect(t, n, link, false)
		err := control(client, func(fd int) error {
			if pace > 0 {
				if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, pace); err != nil {
					return err
				}
			}
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 1_500_000); err != nil { // twice that
				return err
			}
			return unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno")
		})
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			b := make([]byte, 128<<10)
			for ctx.Err() == nil {
				if _, err := client.Write(b); err != nil {
					return
				}
			}
		}()
		go func() {
			defer func() { received <- struct{}{} }()
			var rates []float64
			b := make([]byte, 256<<10)
			began, total := time.Now(), 0
			for mark := began.Add(warmup); len(rates) < windows; {
				k, err := server.Read(b)
				if err != nil {
					if err != io.EOF {
						t.Error(err)
					}
					return
				}
				total += k
				if now := time.Now(); now.After(mark) {
					if mark != began.Add(warmup) {
						rates = append(rates, float64(total)/now.Sub(mark.Add(-window)).Seconds())
					}
					total, mark = 0, now.Add(window)
				}
			}
			slices.Sort(rates)
			medians[i] = rates[windows/2]
		}()
	}
	for range links {
		<-received
	}
	return medians
}

func control(conn net.Conn, f func(fd int) error) error {
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	if e := raw.Control(func(fd uintptr) { err = f(int(fd)) }); e != nil {
		return e
	}
	return err
}

// ping returns a round trip to an address, whose kernel answers. The time of arrival
// is the kernel's too, so that nothing but the network is measured.
func ping(from *lab.Host, to net.IP) (rtt time.Duration, err error) {
	err = from.Do(func() error {
		c, err := net.DialIP("ip4:icmp", nil, &net.IPAddr{IP: to})
		if err != nil {
			return err
		}
		defer c.Close()
		err = control(c, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1) })
		if err != nil {
			return err
		}
		echo := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: os.Getpid() & 0xffff}}
		b, err := echo.Marshal(nil)
		if err != nil {
			return err
		}
		if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return err
		}
		sent := time.Now()
		if _, err := c.Write(b); err != nil {
			return err
		}
		oob := make([]byte, 64)
		_, k, _, _, err := c.ReadMsgIP(make([]byte, 100), oob)
		if err != nil {
			return err
		}
		messages, err := unix.ParseSocketControlMessage(oob[:k])
		if err != nil {
			return err
		}
		stamp := messages[0].Data
		arrived := time.Unix(int64(binary.NativeEndian.Uint64(stamp)), int64(binary.NativeEndian.Uint64(stamp[8:])))
		rtt = arrived.Sub(sent.Round(0))
		return nil
	})
	return rtt, err
}

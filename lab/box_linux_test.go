package lab_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/go-tcpls/tcpls/lab"
	"golang.org/x/sys/unix"
)

// withBoxes makes a network whose one link has middleboxes.
func withBoxes(t *testing.T, shape lab.Shape, boxes ...lab.Middlebox) *lab.Network {
	topology := lab.TwoHosts(shape)
	topology.Links[0].Boxes = boxes
	return lab.Start(t, topology)
}

func tcpInfo(t *testing.T, c net.Conn) *unix.TCPInfo {
	t.Helper()
	var info *unix.TCPInfo
	err := control(c, func(fd int) (err error) {
		info, err = unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func TestStripOptions(t *testing.T) {
	n := withBoxes(t, lab.Shape{}, lab.StripOptions{Kinds: []byte{3, 4, 8}})
	for _, v6 := range []bool{false, true} {
		client, _ := connect(t, n, "path0", v6)
		if got := tcpInfo(t, client).Options; got != 0 {
			t.Errorf("the connection has the options %x", got)
		}
	}
	if err := n.Link("path0").SetBoxes(); err != nil {
		t.Fatal(err)
	}
	client, _ := connect(t, n, "path0", false)
	const timestamps, sack, wscale = 1, 2, 4
	if got := tcpInfo(t, client).Options; got&^(timestamps|sack|wscale) != 0 || got == 0 {
		t.Errorf("without the middlebox, the connection has the options %x", got)
	}
}

func TestClampMSS(t *testing.T) {
	n := withBoxes(t, lab.Shape{}, lab.ClampMSS{MSS: 900})
	client, server := connect(t, n, "path0", false)
	for _, c := range []net.Conn{client, server} {
		if got := tcpInfo(t, c).Snd_mss; got > 900 {
			t.Errorf("segments have up to %d bytes", got)
		}
	}
}

func TestCutAfter(t *testing.T) {
	// The NAT stands between the client and what cuts the connection.
	n := withBoxes(t, lab.Shape{}, lab.NAT{}, lab.CutAfter{Bytes: 5000})
	client, server := connect(t, n, "path0", false)
	go func() {
		for {
			if _, err := server.Write(make([]byte, 1000)); err != nil {
				return
			}
		}
	}()
	b, err := io.ReadAll(client)
	if !errors.Is(err, syscall.ECONNRESET) || len(b) > 5000 {
		t.Errorf("after %d bytes: %v", len(b), err)
	}
}

func TestNAT(t *testing.T) {
	n := withBoxes(t, lab.Shape{Delay: time.Millisecond}, lab.NAT{})
	client, server := connect(t, n, "path0", true)
	inside, outside := client.LocalAddr().String(), server.RemoteAddr().String()
	if inside == outside {
		t.Errorf("the server sees the client's own port, %s", inside)
	}
	echo(t, client, server)
	if err := n.Link("path0").SetBoxes(lab.NAT{}); err != nil { // rebinding
		t.Fatal(err)
	}
	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after a rebinding, the server's kernel says %v", err)
	}
}

func TestFirewall(t *testing.T) {
	n := withBoxes(t, lab.Shape{}, lab.Firewall{})
	client, server := connect(t, n, "path0", false)
	echo(t, client, server)
	ln, err := n.Host("client").Listen(t.Context(), "tcp", "10.0.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	d := &net.Dialer{Timeout: 100 * time.Millisecond}
	var timeout net.Error
	if _, err := n.Host("server").DialWith(t.Context(), d, "tcp", "10.0.0.1:80"); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("a connection from outside: %v", err)
	}
	if err := n.Link("path0").SetBoxes(lab.Firewall{}); err != nil { // which has forgotten all
		t.Fatal(err)
	}
	before := filtered(t, n)
	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	for filtered(t, n) == before {
	}
	if err := client.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("a connection that the firewall has forgotten: %v", err)
	}
}

func filtered(t *testing.T, n *lab.Network) uint64 {
	c, err := n.Link("path0").Counters("client")
	if err != nil {
		t.Fatal(err)
	}
	return c.Filtered
}

// TestRewriteSequence transfers over a link with losses, so that
// acknowledgements of all kinds must be right.
func TestRewriteSequence(t *testing.T) {
	for _, box := range []lab.RewriteSequence{{}, {KeepSACK: true}} {
		n := withBoxes(t, lab.Shape{Delay: time.Millisecond, Loss: 0.02}, box)
		client, server := connect(t, n, "path0", false)
		sent := make([]byte, 1<<20)
		rng := rand.NewChaCha8([32]byte{})
		_, _ = rng.Read(sent) // never fails
		go func() {
			_, _ = client.Write(sent) // else the reader notices
			client.Close()
		}()
		if got, err := io.ReadAll(server); err != nil || !bytes.Equal(got, sent) {
			t.Errorf("%+v: read %d bytes of %d, %v", box, len(got), len(sent), err)
		}
	}
}

func echo(t *testing.T, client, server net.Conn) {
	t.Helper()
	b := make([]byte, 4)
	for _, pair := range [][2]net.Conn{{client, server}, {server, client}} {
		if _, err := pair[0].Write([]byte("echo")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(pair[1], b); err != nil || string(b) != "echo" {
			t.Fatalf("read %q, %v", b, err)
		}
	}
}

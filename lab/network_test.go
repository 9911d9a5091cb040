package lab_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-tcpls/tcpls/lab"
)

// patience is how long a test waits for what must come.
const patience = 30 * time.Second

// connect returns a TCP connection over a link, both of its ends.
func connect(t *testing.T, n *lab.Network, link string, v6 bool) (client, server net.Conn) {
	t.Helper()
	address := net.JoinHostPort(n.Link(link).Addr("server", v6).String(), "0")
	ln, err := n.Host("server").Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err = n.Host("client").Dial(t.Context(), "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	server, err = ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	if err := errors.Join(client.SetDeadline(time.Now().Add(patience)), server.SetDeadline(time.Now().Add(patience))); err != nil {
		t.Fatal(err)
	}
	return client, server
}

func TestTwoHosts(t *testing.T) {
	n := lab.Start(t, lab.TwoHosts(lab.Shape{}, lab.Shape{Rate: 10 * lab.Mbit, Delay: time.Millisecond}))
	for _, link := range []string{"path0", "path1"} {
		for _, v6 := range []bool{false, true} {
			client, server := connect(t, n, link, v6)
			if _, err := io.WriteString(client, "over the link"); err != nil {
				t.Fatal(err)
			}
			client.Close()
			if b, err := io.ReadAll(server); err != nil || string(b) != "over the link" {
				t.Errorf("%s: read %q, %v", link, b, err)
			}
		}
		for _, from := range []string{"client", "server"} {
			if c, err := n.Link(link).Counters(from); err != nil || c.Delivered == 0 || c.Undelivered+c.Lost+c.Overflown > 0 {
				t.Errorf("%s from %s: %+v, %v", link, from, c, err)
			}
		}
	}
	if _, err := n.Host("client").Dial(t.Context(), "tcp", "server:80"); err == nil {
		t.Error("dialed a name")
	}
}

func TestHostsAreApart(t *testing.T) {
	n := lab.Start(t, lab.TwoHosts(lab.Shape{}))
	here, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	err = n.Host("client").Do(func() error {
		inside, err := net.Interfaces()
		if err != nil {
			return err
		}
		if len(inside) != 2 || inside[0].Name != "lo" || inside[1].Name != "path0" {
			t.Errorf("the client has the interfaces %v", inside)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	after, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(here) != fmt.Sprint(after) {
		t.Errorf("the machine's interfaces were %v, and are %v", here, after)
	}
}

func TestReset(t *testing.T) {
	n := lab.Start(t, lab.TwoHosts(lab.Shape{Delay: time.Millisecond}))
	for _, v6 := range []bool{false, true} {
		client, server := connect(t, n, "path0", v6)
		if err := n.Link("path0").Reset(); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Write(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		for _, c := range []net.Conn{client, server} {
			if _, err := c.Read(make([]byte, 10)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("read after a reset: %v", err)
			}
		}
		client, server = connect(t, n, "path0", v6)
		if _, err := client.Write(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(server, make([]byte, 1000)); err != nil {
			t.Errorf("a connection that began after the reset: %v", err)
		}
	}
}

func TestBlackhole(t *testing.T) {
	n := lab.Start(t, lab.TwoHosts(lab.Shape{}))
	client, server := connect(t, n, "path0", false)
	link := n.Link("path0")
	if err := link.SetBlackhole(true); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	for {
		c, err := link.Counters("client")
		if err != nil {
			t.Fatal(err)
		}
		if c.Blackholed > 0 {
			break
		}
	}
	if err := link.SetBlackhole(false); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(server, make([]byte, 1)); err != nil {
		t.Errorf("the kernel's retransmission didn't pass: %v", err)
	}
}

// TestRouter tells the paths of a client to one address of a server apart by
// the client's own address.
func TestRouter(t *testing.T) {
	prefix := netip.MustParsePrefix
	addr := netip.MustParseAddr
	end := func(host string, addrs ...string) lab.End {
		e := lab.End{Host: host}
		for _, a := range addrs {
			e.Addrs = append(e.Addrs, prefix(a))
		}
		return e
	}
	n := lab.Start(t, &lab.Topology{
		Hosts: []lab.HostSpec{
			{Name: "client", Routes: []lab.Route{
				{Via: addr("10.1.0.254")},
				{Via: addr("10.1.0.254"), From: prefix("10.1.0.1/32")},
				{Via: addr("10.2.0.254"), From: prefix("10.2.0.1/32")},
				{Via: addr("fd01::254")},
			}},
			{Name: "router", Forward: true},
			{Name: "server", Routes: []lab.Route{{Via: addr("10.9.0.254")}, {Via: addr("fd09::254")}}},
		},
		Links: []lab.LinkSpec{
			{Name: "wifi", A: end("client", "10.1.0.1/24", "fd01::1/64"), B: end("router", "10.1.0.254/24", "fd01::254/64")},
			{Name: "lte", A: end("client", "10.2.0.1/24"), B: end("router", "10.2.0.254/24")},
			{Name: "net", A: end("router", "10.9.0.254/24", "fd09::254/64"), B: end("server", "10.9.0.1/24", "fd09::1/64")},
		},
	})
	ln, err := n.Host("server").Listen(t.Context(), "tcp", "[::]:80")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for _, test := range []struct{ to, from, link string }{
		{"10.9.0.1:80", "10.1.0.1", "wifi"}, {"10.9.0.1:80", "10.2.0.1", "lte"}, {"[fd09::1]:80", "fd01::1", "wifi"},
	} {
		before, err := n.Link(test.link).Counters("router")
		if err != nil {
			t.Fatal(err)
		}
		d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(test.from)}}
		conn, err := n.Host("client").DialWith(t.Context(), d, "tcp", test.to)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		after, err := n.Link(test.link).Counters("router")
		if err != nil {
			t.Fatal(err)
		}
		if after.Packets == before.Packets {
			t.Errorf("the answers to %s didn't come over %s", test.from, test.link)
		}
	}
	// The routes over an interface come back with it.
	if err := errors.Join(n.Host("client").SetUp("wifi", false), n.Host("client").SetUp("wifi", true)); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"10.9.0.1:80", "[fd09::1]:80"} {
		conn, err := n.Host("client").Dial(t.Context(), "tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
}

func TestInterfaceChanges(t *testing.T) {
	n := lab.Start(t, lab.TwoHosts(lab.Shape{}))
	client, other := n.Host("client"), netip.MustParsePrefix("10.0.0.7/24")
	ln, err := n.Host("server").Listen(t.Context(), "tcp", "10.0.0.2:80")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dial := func() error {
		d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: other.Addr().AsSlice()}}
		conn, err := client.DialWith(t.Context(), d, "tcp", "10.0.0.2:80")
		if err == nil {
			conn.Close()
		}
		return err
	}
	if err := dial(); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Errorf("from an address that isn't there: %v", err)
	}
	if err := client.AddAddr("path0", other); err != nil {
		t.Fatal(err)
	}
	if err := dial(); err != nil {
		t.Error(err)
	}
	if err := client.RemoveAddr("path0", other); err != nil {
		t.Fatal(err)
	}
	if err := dial(); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Errorf("from an address that was removed: %v", err)
	}
	if err := n.Link("path0").SetUp(false); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Dial(t.Context(), "tcp", "10.0.0.2:80"); !errors.Is(err, syscall.ENETUNREACH) {
		t.Errorf("over a link that is down: %v", err)
	}
}

func TestCommand(t *testing.T) {
	n := lab.Start(t, lab.TwoHosts(lab.Shape{}))
	out, err := n.Host("client").Command(t.Context(), "cat", "/proc/net/dev").Output()
	if err != nil || !strings.Contains(string(out), "path0:") || strings.Count(string(out), ":") != 2 {
		t.Errorf("%v: the command sees the interfaces\n%s", err, out)
	}
	if err := n.Host("client").Command(t.Context(), "no-such-program").Run(); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("a program that isn't there: %v", err)
	}
}

// TestCloseEndsCommands starts a command that starts another one, and closes
// the network under it.
func TestCloseEndsCommands(t *testing.T) {
	if err := lab.Supported(); err != nil {
		lab.Start(t, lab.TwoHosts(lab.Shape{}))
	}
	n, err := lab.New(lab.TwoHosts(lab.Shape{}))
	if err != nil {
		t.Fatal(err)
	}
	cmd := n.Host("client").Command(context.Background(), "sh", "-c", "sleep 1000 & echo; wait")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil { // sleep has begun
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(out); err != nil { // sleep has its other end too
		t.Error(err)
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("the command ended by itself: %v", err)
	}
}

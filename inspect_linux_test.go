package tcpls_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-tcpls/tcpls"
	"github.com/go-tcpls/tcpls/lab"
)

// A boxedNetwork is a client and a server with a router between them, on which
// middleboxes run.
type boxedNetwork struct {
	*lab.Network
	server *tcpls.Listener
}

const (
	boxedClient = "10.1.0.1"
	boxedServer = "10.9.0.1:443"
	boxAddr     = "10.9.0.254" // of the router, as the server sees it
	proxyAddr   = "10.1.0.254:443"
)

func newBoxedNetwork(t *testing.T) *boxedNetwork {
	t.Helper()
	end := func(host string, addrs ...string) lab.End {
		e := lab.End{Host: host}
		for _, a := range addrs {
			e.Addrs = append(e.Addrs, netip.MustParsePrefix(a))
		}
		return e
	}
	via := func(addrs ...string) (routes []lab.Route) {
		for _, a := range addrs {
			routes = append(routes, lab.Route{Via: netip.MustParseAddr(a)})
		}
		return routes
	}
	n := &boxedNetwork{Network: lab.Start(t, &lab.Topology{
		Hosts: []lab.HostSpec{
			{Name: "client", Routes: via("10.1.0.254", "fd01::254")},
			{Name: "box", Forward: true},
			{Name: "server", Routes: via("10.9.0.254", "fd09::254")},
		},
		Links: []lab.LinkSpec{
			{Name: "near", A: end("client", boxedClient+"/24", "fd01::1/64"), B: end("box", "10.1.0.254/24", "fd01::254/64")},
			{Name: "far", A: end("box", boxAddr+"/24", "fd09::254/64"), B: end("server", "10.9.0.1/24", "fd09::1/64")},
		},
	})}
	return n
}

// serve listens on the server's host.
func (n *boxedNetwork) serve(t *testing.T, cfg *tcpls.Config) {
	t.Helper()
	inner, err := n.Host("server").Listen(t.Context(), "tcp", "[::]:443")
	if err != nil {
		t.Fatal(err)
	}
	if n.server, err = tcpls.NewListener(inner, cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.server.Close() })
}

// run runs a program on the box and waits for its end.
func (n *boxedNetwork) run(t *testing.T, input, name string, args ...string) {
	t.Helper()
	need(t, name)
	cmd := n.Host("box").Command(t.Context(), name, args...)
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// need skips the test where a program is missing, unless CI=true.
func need(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("the middlebox isn't installed: %v", err)
	}
}

// inspect makes a session to an address and inspects its path.
func (n *boxedNetwork) inspect(t *testing.T, address string, cfg *tcpls.Config) (*tcpls.Inspection, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	d := &tcpls.Dialer{Config: cfg, DialContext: n.Host("client").Dial}
	s, err := d.Dial(ctx, "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	peer, err := n.server.Accept(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	first, err := s.Paths()[0].Inspect(ctx)
	again, errAgain := s.Paths()[0].Inspect(ctx)
	if (err == nil) != (errAgain == nil) || err == nil && !slices.Equal(first.Findings, again.Findings) {
		t.Errorf("the first inspection says %+v, %v, the second %+v, %v", first, err, again, errAgain)
	}
	return first, err
}

func TestInspectMiddleboxes(t *testing.T) {
	client, server := exampleConfigs()
	client.TLS.ServerName = "localhost"
	nft := func(hook, rule string) func(t *testing.T, n *boxedNetwork) {
		return func(t *testing.T, n *boxedNetwork) {
			n.run(t, "table ip t {\n chain c {\n type "+hook+";\n "+rule+"\n }\n}\n", "nft", "-f", "-")
		}
	}
	strip := func(options string) func(t *testing.T, n *boxedNetwork) {
		return func(t *testing.T, n *boxedNetwork) {
			n.run(t, "", "iptables-legacy", "-t", "mangle", "-A", "FORWARD", "-p", "tcp", "-j", "TCPOPTSTRIP", "--strip-options", options)
		}
	}
	for _, test := range []struct {
		name    string
		box     func(t *testing.T, n *boxedNetwork)
		address string
		source  string // address; "": not the client's own
		hops    int
		want    []string // beginnings of the findings
	}{
		{"router", nil, boxedServer, boxedClient, 1, nil},
		{"router, IPv6", nil, "[fd09::1]:443", "fd01::1", 1, nil},
		{"NAT", nft("nat hook postrouting priority 100", "oifname far masquerade"), boxedServer, boxAddr, 1, []string{
			"a NAT rewrote the source address 10.1.0.1 to 10.9.0.254",
		}},
		{"NAT of ports", nft("nat hook postrouting priority 100", "oifname far ip protocol tcp masquerade to :2000-2001"),
			boxedServer, boxAddr, 1, []string{"a NAT rewrote the source address", "a NAT rewrote the source port"}},
		{"timestamps stripped", strip("timestamp"), boxedServer, boxedClient, 1, []string{"option timestamps was stripped"}},
		{"all stripped", strip("timestamp,sack-permitted,wscale"), boxedServer, boxedClient, 1, []string{
			"option SACK was stripped", "option timestamps was stripped", "option window scale was stripped",
		}},
		{"stripped from the answer", func(t *testing.T, n *boxedNetwork) {
			n.run(t, "", "iptables-legacy", "-t", "mangle", "-A", "FORWARD", "-i", "far", "-p", "tcp", "-j", "TCPOPTSTRIP", "--strip-options", "sack-permitted")
		}, boxedServer, boxedClient, 1, []string{"option SACK of the server's answer was stripped"}},
		{"MSS clamped", nft("filter hook forward priority 0", "tcp flags syn tcp option maxseg size set 900"), boxedServer, boxedClient, 1, []string{
			"option MSS was changed from 1460 to 900", "option MSS of the server's answer was changed from 1460 to 900",
		}},
		{"HAProxy", startHAProxy, proxyAddr, boxAddr, -1, []string{"a proxy ends the TCP connection"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newBoxedNetwork(t)
			n.serve(t, server)
			if test.box != nil {
				test.box(t, n)
			}
			r, err := n.inspect(t, test.address, client)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range r.Findings {
				got = append(got, f.String())
			}
			t.Logf("%d hops, from %v: %s", r.Hops, r.Source, strings.Join(got, "; "))
			if !slices.EqualFunc(got, test.want, strings.HasPrefix) {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if r.Hops != test.hops || r.Source.Addr().String() != test.source {
				t.Errorf("%d hops from %v, want %d from %s", r.Hops, r.Source, test.hops, test.source)
			}
		})
	}
}

// startHAProxy ends TCP connections on the box and goes on with others.
func startHAProxy(t *testing.T, n *boxedNetwork) {
	need(t, "haproxy")
	// It gets a socket that listens already, so that nobody has to wait for it.
	l, err := n.Host("box").Listen(t.Context(), "tcp", proxyAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	socket, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	file := filepath.Join(t.TempDir(), "haproxy.cfg")
	config := `defaults
	mode tcp
	timeout connect 5s
	timeout client 1m
	timeout server 1m
listen tcpls
	bind fd@3
	server s ` + boxedServer + "\n"
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := n.Host("box").Command(t.Context(), "haproxy", "-db", "-f", file)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	cmd.ExtraFiles = []*os.File{socket}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() }) // it is killed when the test's context ends
}

// Who doesn't tell, or can't, is told apart from a path without middleboxes.
func TestInspectUnsupported(t *testing.T) {
	client, server := exampleConfigs()
	client.TLS.ServerName = "localhost"
	server.NoSYNReports = true
	n := newBoxedNetwork(t)
	n.serve(t, server)
	if r, err := n.inspect(t, boxedServer, client); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a server that doesn't tell: got %+v, %v", r, err)
	}
}

package tcpls

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestLocalFor(t *testing.T) {
	for _, test := range []struct{ own, remote, want string }{
		{"192.0.2.1 2001:db8::1", "198.51.100.1", "192.0.2.1"},
		{"192.0.2.1 2001:db8::1", "2001:db8:1::1", "2001:db8::1"},
		{"192.0.2.1 2001:db8::1", "::ffff:198.51.100.1", "192.0.2.1"},
		{"fe80::1 fd00::1 2001:db8::1", "2001:db8:1::1", "2001:db8::1"},
		{"fe80::1 fd00::1 2001:db8::1", "fd01::1", "fd00::1"},
		{"fe80::1 fd00::1 2001:db8::1", "fe80::2", "fe80::1"},
		{"10.0.0.1", "198.51.100.1", "10.0.0.1"},
		{"169.254.0.1 10.0.0.1", "192.168.0.1", "10.0.0.1"},
		{"127.0.0.1", "127.0.0.2", "127.0.0.1"},
		{"fe80::1", "2001:db8:1::1", ""},
		{"2001:db8::1", "fe80::2", ""},
		{"2001:db8::1", "198.51.100.1", ""},
		{"", "198.51.100.1", ""},
	} {
		var own []netip.Addr
		for _, s := range strings.Fields(test.own) {
			own = append(own, netip.MustParseAddr(s))
		}
		got := ""
		if ip := localFor(own, netip.MustParseAddr(test.remote)); ip.IsValid() {
			got = ip.String()
		}
		if got != test.want {
			t.Errorf("from %s to %s: chose %q, want %q", test.own, test.remote, got, test.want)
		}
	}
}

func loopbackName(t *testing.T) string {
	t.Helper()
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range interfaces {
		if i.Flags&net.FlagLoopback != 0 {
			return i.Name
		}
	}
	t.Fatal("no loopback interface")
	return ""
}

// A path starts at the address of the interface that it is to use.
func TestPathInterface(t *testing.T) {
	name := loopbackName(t)
	client, _ := newTestConfigs()
	d := &Dialer{Config: client}
	cfg, err := d.config("tcp", "localhost:443")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	open := d.paths("tcp", l.Addr().String(), cfg)
	conn, err := open(t.Context(), PathSpec{Interface: name})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if ip := conn.LocalAddr().(*net.TCPAddr).IP; !ip.IsLoopback() {
		t.Errorf("the path starts at %v", ip)
	}
	for _, test := range []struct {
		spec PathSpec
		want string
	}{
		{PathSpec{Interface: "none such"}, `interface "none such": `},
		{PathSpec{Interface: name, Remote: netip.MustParseAddrPort("[fe80::1]:443")}, "no IPv6 address from which fe80::1 can be reached"},
		{PathSpec{Interface: name, Local: netip.MustParseAddrPort("127.0.0.1:0")}, "Local and Interface"},
	} {
		if _, err := open(t.Context(), test.spec); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: %v; want an error with %q", test.spec, err, test.want)
		}
	}
	d.DialContext = func(context.Context, string, string) (net.Conn, error) { panic("called") }
	if _, err := open(t.Context(), PathSpec{Interface: name}); err == nil || !strings.Contains(err.Error(), "DialContext") {
		t.Errorf("with DialContext: %v", err)
	}
}

// Every interface has its turn in what time there is, and as the dialer paces it.
func TestPathInterfacesInTurn(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, _ := newTestConfigs()
	cfg, err := client.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		delay   time.Duration
		silent  int32         // that many attempts get no answer
		takes   time.Duration // an attempt
		running int32         // at once, at most
	}{
		{0, 4, 0, 5},
		{-1, 0, 500 * time.Millisecond, 1},
	} {
		var begun, running, most atomic.Int32
		d := &Dialer{Config: client, Interfaces: slices.Repeat([]string{loopbackName(t)}, 5), FallbackDelay: test.delay,
			NetDialer: &net.Dialer{ControlContext: func(ctx context.Context, _, _ string, _ syscall.RawConn) error {
				most.Store(max(most.Load(), running.Add(1)))
				defer running.Add(-1)
				if begun.Add(1) <= test.silent {
					<-ctx.Done()
					return ctx.Err()
				}
				time.Sleep(test.takes)
				return nil
			}}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		conn, err := d.paths("tcp", l.Addr().String(), cfg)(ctx, PathSpec{})
		cancel()
		if err != nil {
			t.Errorf("FallbackDelay %v, %d attempts: %v", test.delay, begun.Load(), err)
			continue
		}
		conn.Close()
		if most.Load() > test.running {
			t.Errorf("FallbackDelay %v: %d attempts at once", test.delay, most.Load())
		}
	}
}

package tcpls

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
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

// A path starts at the address of the interface that it is to use.
func TestPathInterface(t *testing.T) {
	name := ""
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range interfaces {
		if i.Flags&net.FlagLoopback != 0 {
			name = i.Name
		}
	}
	if name == "" {
		t.Fatal("no loopback interface")
	}
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

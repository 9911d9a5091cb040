package tcpls

import (
	"net/netip"
	"testing"
)

func TestVanished(t *testing.T) {
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	up, down := place{"eth0", true}, place{"eth0", false}
	for _, test := range []struct {
		name          string
		before, after map[netip.Addr]place
		want          string
	}{
		{"nothing", map[netip.Addr]place{a: up}, map[netip.Addr]place{a: up, b: up}, ""},
		{"removed", map[netip.Addr]place{a: up, b: up}, map[netip.Addr]place{b: up}, "tcpls: local address is gone: 192.0.2.1 was removed from eth0"},
		{"link down", map[netip.Addr]place{a: up}, map[netip.Addr]place{a: down}, "tcpls: local address is gone: link eth0 of 192.0.2.1 is down"},
		{"moved", map[netip.Addr]place{a: up}, map[netip.Addr]place{a: {"wlan0", true}}, ""},
		{"was down before", map[netip.Addr]place{a: down}, nil, ""},
		{"not known", nil, map[netip.Addr]place{a: up}, ""},
	} {
		got := ""
		for _, err := range vanished(test.before, test.after) {
			got += err.Error()
		}
		if got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}

package tcpls

import (
	"maps"
	"net/netip"
	"testing"

	"github.com/go-tcpls/tcpls/internal/osnet"
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

// What came and went between two looks, or was usable only then, is gone by
// what the events say; the path from it would be kept else.
func TestWitness(t *testing.T) {
	a := netip.MustParseAddr("192.0.2.1")
	added := osnet.Event{Kind: osnet.AddrAdded, Link: "eth0", Addr: a}
	removed := osnet.Event{Kind: osnet.AddrRemoved, Link: "eth0", Addr: a}
	up, down := osnet.Event{Kind: osnet.LinkUp, Link: "eth0"}, osnet.Event{Kind: osnet.LinkDown, Link: "eth0"}
	off := map[netip.Addr]place{a: {"eth0", false}}
	for _, test := range []struct {
		name          string
		before, after map[netip.Addr]place
		events        []osnet.Event
		gone          bool
	}{
		{"came and went", nil, nil, []osnet.Event{added, removed}, true},
		{"came, and its link went down", nil, off, []osnet.Event{added, down}, true},
		{"its link came and went", off, off, []osnet.Event{up, down}, true},
		{"its link came, and it was removed", off, nil, []osnet.Event{up, removed}, true},
		{"its link is still down", off, off, []osnet.Event{{Kind: osnet.LinkDown, Link: "wlan0"}}, false},
		{"went and came", map[netip.Addr]place{a: {"eth0", true}}, map[netip.Addr]place{a: {"eth0", true}}, []osnet.Event{removed, added}, false},
	} {
		known := make(map[netip.Addr]place)
		maps.Copy(known, test.before)
		for _, e := range test.events {
			witness(known, e)
		}
		if gone := vanished(known, test.after)[a] != nil; gone != test.gone {
			t.Errorf("%s: gone is %v, want %v", test.name, gone, test.gone)
		}
	}
}

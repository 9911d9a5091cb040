package osnet

import (
	"context"
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// listed collects events as text, in a stable order.
func listed(events []Event) string {
	var lines []string
	for _, e := range events {
		line := e.Kind.String()
		if e.Link != "" {
			line += " " + e.Link
		}
		if e.Addr.IsValid() {
			line += " " + e.Addr.String()
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return strings.Join(lines, "; ")
}

func networkOf(links map[int]link, addrs ...address) *network {
	n := newNetwork()
	n.links = links
	for _, a := range addrs {
		n.addrs[a] = true
	}
	return n
}

var (
	testAddr  = address{1, netip.MustParseAddr("192.0.2.1")}
	otherAddr = address{2, netip.MustParseAddr("2001:db8::2")}
	localAddr = address{2, netip.MustParseAddr("fe80::2")}
)

func TestBecome(t *testing.T) {
	up, down := link{"eth0", true}, link{"eth0", false}
	wifi := link{"wlan0", true}
	for _, test := range []struct {
		name     string
		old, new *network
		want     string
	}{
		{"nothing", networkOf(map[int]link{1: up}, testAddr), networkOf(map[int]link{1: up}, testAddr), ""},
		{"up", networkOf(map[int]link{1: down}), networkOf(map[int]link{1: up}), "link up eth0"},
		{"down", networkOf(map[int]link{1: up}, testAddr), networkOf(map[int]link{1: down}, testAddr), "link down eth0"},
		{"new and off", networkOf(map[int]link{}), networkOf(map[int]link{1: down}), ""},
		{"new with addresses", networkOf(map[int]link{1: up}), networkOf(map[int]link{1: up, 2: wifi}, otherAddr, localAddr),
			"address added wlan0 2001:db8::2; address added wlan0 fe80::2%wlan0; link up wlan0"},
		{"gone", networkOf(map[int]link{1: up, 2: wifi}, testAddr, otherAddr), networkOf(map[int]link{1: up}, testAddr),
			"address removed wlan0 2001:db8::2; link down wlan0"},
		{"another address", networkOf(map[int]link{1: up, 2: wifi}, otherAddr), networkOf(map[int]link{1: up, 2: wifi}, testAddr),
			"address added eth0 192.0.2.1; address removed wlan0 2001:db8::2"},
	} {
		var got []Event
		tell := func(e Event) { got = append(got, e) }
		test.old.become(test.new, tell)
		if listed(got) != test.want {
			t.Errorf("%s: got %q, want %q", test.name, listed(got), test.want)
		}
		got = nil
		test.old.become(test.new, tell)
		if len(got) > 0 {
			t.Errorf("%s: told again: %q", test.name, listed(got))
		}
	}
}

func TestPolling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		looks := []struct {
			network *network
			err     error
		}{
			{network: networkOf(map[int]link{1: {"eth0", true}}, testAddr)},
			{network: networkOf(map[int]link{1: {"eth0", true}}, testAddr)},
			{err: errors.New("too many files open")},
			{network: networkOf(map[int]link{1: {"eth0", false}})},
		}
		next := 0
		watch := polling(func() (*network, error) {
			l := looks[min(next, len(looks)-1)]
			next++
			return l.network, l.err
		}, pollEvery)
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		var got []Event
		done := make(chan struct{})
		go func() {
			defer close(done)
			watch(ctx, func(e Event) {
				got = append(got, e)
				if took := time.Since(began); took != 3*pollEvery {
					t.Errorf("%v after %v, want %v", e, took, 3*pollEvery)
				}
			})
		}()
		time.Sleep(time.Minute)
		cancel()
		<-done
		if want := "address removed eth0 192.0.2.1; link down eth0"; listed(got) != want {
			t.Errorf("got %q, want %q", listed(got), want)
		}
	})
}

// What package net knows of this machine, whichever it is.
func TestInterfaces(t *testing.T) {
	n, err := interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for a := range n.addrs {
		if _, ok := n.links[a.index]; !ok || !a.addr.IsValid() || a.addr.Is4In6() {
			t.Errorf("address %v of an interface that isn't there", a)
		}
	}
}

func TestInterfaceList(t *testing.T) {
	n := networkOf(map[int]link{2: {"wlan0", true}, 1: {"eth0", false}}, otherAddr, localAddr, testAddr)
	got := n.list()
	want := []Interface{
		{1, "eth0", false, []netip.Addr{testAddr.addr}},
		{2, "wlan0", true, []netip.Addr{otherAddr.addr, localAddr.addr.WithZone("wlan0")}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	all, err := Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	loopback := netip.MustParseAddr("127.0.0.1")
	if !slices.ContainsFunc(all, func(i Interface) bool { return slices.Contains(i.Addrs, loopback) }) {
		t.Errorf("no interface has %v: %v", loopback, all)
	}
}

func TestWatchEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	events := Watch(ctx)
	cancel()
	for range events { // what happens to this machine meanwhile
	}
}

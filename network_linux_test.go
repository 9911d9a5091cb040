package tcpls

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-tcpls/tcpls/internal/netns"
)

var (
	serverAddr = netip.MustParseAddr("10.0.9.1")
	lanAddr    = netip.MustParseAddr("10.0.1.1")
	linkAddr   = netip.MustParseAddr("10.0.2.1")
)

// buildNetwork gives the namespace three addresses: the server's and lanAddr on
// the loopback interface, as aliases lo:9 and lo:1, and linkAddr on a link of its
// own, link0. All of them reach each other.
func buildNetwork(t *testing.T) {
	t.Helper()
	if out, err := exec.Command("ip", "link", "add", "link0", "type", "veth", "peer", "name", "link1").CombinedOutput(); err != nil {
		t.Fatalf("ip link add: %v: %s", err, out)
	}
	if err := errors.Join(
		netns.AddAddr("lo:9", serverAddr), netns.AddAddr("lo:1", lanAddr), netns.AddAddr("link0:1", linkAddr),
		netns.SetLink("link0", true), netns.SetLink("link1", true),
	); err != nil {
		t.Fatal(err)
	}
}

// networkPair opens a session from lanAddr, with configurations that change may
// alter. Silence alone wouldn't make its paths suspect within the test.
func networkPair(t *testing.T, change func(client, server *Config)) (client, server *Session) {
	t.Helper()
	return tcpPairAt(t, netip.AddrPortFrom(serverAddr, 0).String(), func(client, server *Config) {
		for _, c := range []*Config{client, server} {
			c.ReconnectFor, c.PathTimeout = time.Minute, time.Minute
		}
		if change != nil {
			change(client, server)
		}
	})
}

// addPathFrom opens a path whose client's end has an address, and makes it the
// main one.
func addPathFrom(t *testing.T, client *Session, local netip.Addr) *Path {
	t.Helper()
	p, err := client.AddPath(t.Context(), PathSpec{Local: netip.AddrPortFrom(local, 0)})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Use(); err != nil {
		t.Fatal(err)
	}
	awaitWatch(t)
	return p
}

// awaitWatch returns when what changes is noticed.
func awaitWatch(t *testing.T) {
	t.Helper()
	for range 10_000 {
		machine.mu.Lock()
		looked := machine.looked
		machine.mu.Unlock()
		if looked {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("nobody watches the network")
}

// awaitEvent returns the next event of a kind that o is told.
func awaitEvent(t *testing.T, s *Session, o *observer, kind EventKind) Event {
	t.Helper()
	for {
		for _, e := range s.watchers.take(o) {
			if e.Kind == kind {
				return e
			}
		}
		select {
		case <-o.signal:
		case <-s.Context().Done():
			t.Fatalf("the session ended before %v: %v", kind, context.Cause(s.Context()))
		case <-time.After(30 * time.Second):
			t.Fatalf("not told of %v", kind)
		}
	}
}

// A transfer over two paths, in either direction, goes on at once when the
// client's address of the one in use is removed, or its link is switched off.
func TestAddressGone(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		buildNetwork(t)
		for _, test := range []struct {
			name     string
			local    netip.Addr
			cut, fix func() error
		}{
			{"address removed", lanAddr, func() error { return netns.DelAddr("lo:1") }, func() error { return netns.AddAddr("lo:1", lanAddr) }},
			{"link down", linkAddr, func() error { return netns.SetLink("link0", false) }, func() error { return netns.SetLink("link0", true) }},
		} {
			for _, upload := range []bool{false, true} {
				name := test.name
				if upload {
					name += ", upload"
				}
				t.Run(name, func(t *testing.T) {
					testAddressGone(t, test.local, test.cut, upload)
				})
				if err := test.fix(); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

func testAddressGone(t *testing.T, local netip.Addr, cut func() error, upload bool) {
	client, server := networkPair(t, nil)
	p := addPathFrom(t, client, local)
	from, to := server, client
	if upload {
		from, to = client, server
	}
	o := client.watchers.add()
	defer client.watchers.remove(o)
	want := testBytes(1, 32<<20)
	_, peer, sent := startTransfer(t, from, to, want)
	wantRead(t, "before", peer, want[:8<<20])
	began := time.Now()
	if err := cut(); err != nil {
		t.Fatal(err)
	}
	wantRead(t, "after", peer, want[8<<20:])
	wantEOF(t, "after all", peer)
	if err := <-sent; err != nil {
		t.Error(err)
	}
	var pathErr *PathError
	e := awaitEvent(t, client, o, EventPathFailed)
	if !errors.As(e.Err, &pathErr) || pathErr.Path != p.ID() || !errors.Is(e.Err, ErrAddressGone) {
		t.Errorf("the path failed by %v, want a PathError of %v", e.Err, ErrAddressGone)
	}
	t.Logf("cut, heard of, and the other 24 MiB read within %v; by silence alone it would be a minute", time.Since(began))
}

// The server's end of a path fails too when its address goes; the client hears
// of it over the other path.
func TestServerAddressGone(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		buildNetwork(t)
		client, server := networkPair(t, nil)
		remote := netip.AddrPortFrom(linkAddr, client.RemoteAddr().(interface{ AddrPort() netip.AddrPort }).AddrPort().Port())
		l, err := Listen("tcp", remote.String(), server.cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		p, err := client.AddPath(t.Context(), PathSpec{Remote: remote})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Use(); err != nil {
			t.Fatal(err)
		}
		awaitWatch(t)
		opened, accepted := openStream(t, client, server)
		mustWrite(t, opened, []byte("over the path that is cut next"))
		wantRead(t, "before", accepted, []byte("over the path that is cut next"))
		if err := netns.SetLink("link0", false); err != nil {
			t.Fatal(err)
		}
		mustWrite(t, accepted, []byte("over the other"))
		wantRead(t, "after", opened, []byte("over the other"))
		mustWrite(t, opened, []byte("and back"))
		wantRead(t, "after", accepted, []byte("and back"))
	})
}

// The only path of a session that can't be joined again is left to TCP, which
// survives an address that comes back.
func TestAddressGoneLastPath(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		buildNetwork(t)
		client, server := networkPair(t, func(client, server *Config) { client.ReconnectFor, server.ReconnectFor = -1, -1 })
		p := addPathFrom(t, client, linkAddr)
		if err := client.Paths()[0].Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		opened, accepted := openStream(t, client, server)
		mustWrite(t, opened, []byte("before"))
		wantRead(t, "before", accepted, []byte("before"))
		o := client.watchers.add()
		defer client.watchers.remove(o)
		for _, up := range []bool{false, true} {
			if err := netns.SetLink("link0", up); err != nil {
				t.Fatal(err)
			}
			awaitEvent(t, client, o, EventNetwork)
		}
		mustWrite(t, opened, []byte("after"))
		wantRead(t, "after", accepted, []byte("after"))
		if s := p.State(); s != PathActive {
			t.Errorf("the path is %v", s)
		}
	})
}

// One watch serves all sessions, and ends with the last of them.
func TestNetworkWatchEnds(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		buildNetwork(t)
		watching := func() int {
			machine.mu.Lock()
			defer machine.mu.Unlock()
			if (machine.stop != nil) != (len(machine.sessions) > 0) {
				t.Errorf("%d sessions, watching %v", len(machine.sessions), machine.stop != nil)
			}
			return len(machine.sessions)
		}
		t.Run("sessions", func(t *testing.T) {
			for n := 1; n <= 3; n++ {
				client, _ := networkPair(t, nil)
				addPathFrom(t, client, linkAddr)
				if got := watching(); got != 2*n {
					t.Errorf("%d sessions hear of changes, want %d", got, 2*n)
				}
			}
		})
		if got := watching(); got != 0 {
			t.Errorf("%d sessions hear of changes after their end", got)
		}
	})
}

// A path runs from each interface, new ones included; those that vanish are
// dropped, and there again when they come back.
func TestInterfacePaths(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		buildNetwork(t)
		client, _ := networkPair(t, func(client, _ *Config) { client.PathManager = InterfacePaths() })
		o := client.watchers.add()
		defer client.watchers.remove(o)
		newAddr := netip.MustParseAddr("10.0.3.1")
		awaitWatch(t)
		for _, step := range []struct {
			name string
			do   func() error
			want []netip.Addr
		}{
			{"at first", func() error { return nil }, []netip.Addr{linkAddr, serverAddr}},
			{"new interface", func() error { return netns.AddAddr("link1:1", newAddr) }, []netip.Addr{linkAddr, newAddr, serverAddr}},
			{"link down", func() error { return netns.SetLink("link0", false) }, []netip.Addr{serverAddr}}, // both ends of it
			{"link up", func() error { return netns.SetLink("link0", true) }, []netip.Addr{linkAddr, newAddr, serverAddr}},
			{"address removed", func() error { return netns.DelAddr("link1:1") }, []netip.Addr{linkAddr, serverAddr}},
		} {
			began := time.Now()
			if err := step.do(); err != nil {
				t.Fatal(err)
			}
			for !slices.Equal(localAddrs(client), step.want) {
				select {
				case <-o.signal:
					client.watchers.take(o)
				case <-client.Context().Done():
					t.Fatalf("%s: the session ended: %v", step.name, context.Cause(client.Context()))
				case <-time.After(30 * time.Second):
					t.Fatalf("%s: paths from %v, want %v", step.name, localAddrs(client), step.want)
				}
			}
			t.Logf("%s: paths from %v after %v", step.name, step.want, time.Since(began))
		}
	})
}

func localAddrs(s *Session) (all []netip.Addr) {
	for _, p := range s.Paths() {
		if p.State() == PathActive {
			all = append(all, p.local())
		}
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return all
}

// The server is dialed from each interface in turn: one that leads nowhere
// costs FallbackDelay.
func TestDialInterfaces(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		buildNetwork(t)
		client, server := newTestConfigs()
		client.MaxPaths, server.MaxPaths = 2, 2
		l, err := Listen("tcp", netip.AddrPortFrom(serverAddr, 0).String(), server)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				if _, err := l.Accept(t.Context()); err != nil {
					return
				}
			}
		}()
		from := func(c interface{ LocalAddr() net.Addr }) netip.Addr {
			return c.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		}
		d := &Dialer{Config: client, Interfaces: []string{"none such", "link0", "lo"}}
		dial := func() (*Session, error) { return d.Dial(t.Context(), "tcp", l.Addr().String()) }
		first, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		defer first.Close()
		if got := from(first); got != linkAddr {
			t.Errorf("dialed from %v, want %v", got, linkAddr)
		}
		if _, err := first.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		p, err := first.AddPath(t.Context(), PathSpec{})
		if err != nil {
			t.Fatal(err)
		}
		if got := from(p); got != linkAddr {
			t.Errorf("another path starts at %v, want %v", got, linkAddr)
		}
		// What comes from the link's address goes out by the link now, at whose
		// other end nobody wants it.
		for _, args := range []string{"rule add pref 10 lookup local", "rule del pref 0 lookup local", "rule add pref 5 from 10.0.2.1 lookup 7", "route add 10.0.9.1 dev link0 table 7"} {
			if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
				t.Fatalf("ip %s: %v: %s", args, err, out)
			}
		}
		second, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		defer second.Close()
		if got := from(second); got == linkAddr {
			t.Errorf("dialed from %v, which leads nowhere", got)
		}
		d.Interfaces = d.Interfaces[:1]
		if _, err := dial(); err == nil || !strings.Contains(err.Error(), `interface "none such"`) {
			t.Errorf("from no interface: %v", err)
		}
	})
}

package tcpls

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/osnet"
)

// wantPaths checks how many paths of each sort the client has.
func (w *world) wantPaths(t *testing.T, why string, ordinary, backups int) {
	t.Helper()
	for _, p := range w.client.Paths() {
		switch {
		case p.State() != PathActive:
		case p.Backup():
			backups--
		default:
			ordinary--
		}
	}
	if ordinary != 0 || backups != 0 {
		t.Errorf("%s: %d ordinary paths and %d backups are missing", why, ordinary, backups)
	}
}

// Whatever path is lost, it is there again within a second, and used again if it
// is the ordinary one, while a transfer goes on.
func TestStandbyPaths(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, wideLink, func(client, _ *Config) { client.PathManager = StandbyPaths(2) })
		time.Sleep(time.Second)
		w.wantPaths(t, "at first", 1, 2)
		opened, accepted := openStream(t, w.client, w.server)
		want := testBytes(1, 30<<20)
		sent := begun(func() error {
			for chunk := range slices.Chunk(want, 64<<10) { // 64 KiB each 20 ms: ten seconds
				if _, err := opened.Write(chunk); err != nil {
					return err
				}
				time.Sleep(20 * time.Millisecond)
			}
			return opened.CloseWrite()
		})
		read := begun(func() error {
			wantRead(t, "over all of it", accepted, want)
			wantEOF(t, "over all of it", accepted)
			return nil
		})
		for _, lost := range []func() *Path{
			func() *Path { return w.client.path() },
			func() *Path { return w.client.Paths()[1] },
			func() *Path { return w.client.path() },
		} {
			p := lost()
			w.conn(int(p.ID())).Reset()
			time.Sleep(1500 * time.Millisecond)
			w.wantPaths(t, "after a loss", 1, 2)
			if w.client.path().Backup() || w.server.path().Backup() {
				t.Errorf("a backup is used still, a while after the loss of path %d", p.ID())
			}
		}
		for i := range w.dialed() { // all at once, by silence
			w.conn(i).Stall(true)
		}
		time.Sleep(2 * time.Second)
		w.wantPaths(t, "after the loss of all", 1, 2)
		if err := errors.Join(<-sent, <-read); err != nil {
			t.Error(err)
		}
	})
}

// Attempts are made at once, then after 50 ms, doubling to a second.
func TestKeeperBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, wideLink, func(client, _ *Config) { client.PathManager = StandbyPaths(1) })
		time.Sleep(2 * time.Second)
		w.wantPaths(t, "at first", 1, 1)
		w.setDown(true)
		began := time.Now()
		w.conn(1).Reset()
		time.Sleep(5 * time.Second)
		var got []time.Duration
		w.mu.Lock()
		for _, at := range w.refused {
			got = append(got, at.Sub(began).Round(10*time.Millisecond)-2*wideLink.Delay)
		}
		w.mu.Unlock()
		const ms = time.Millisecond
		if want := []time.Duration{0, 50 * ms, 150 * ms, 350 * ms, 750 * ms, 1550 * ms, 2550 * ms, 3550 * ms, 4550 * ms}; !slices.Equal(got, want) {
			t.Errorf("attempts after %v, want %v", got, want)
		}
		w.setDown(false)
		time.Sleep(time.Second + 4*wideLink.Delay)
		w.wantPaths(t, "a second after the server answers again", 1, 1)
	})
}

// A path that is lost as soon as it is there counts as a failure: no server makes
// its clients dial without a pause.
func TestKeeperShortLived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, wideLink, func(client, _ *Config) { client.PathManager = StandbyPaths(1) })
		killed := begun(func() error {
			for e := range w.server.Events(t.Context()) {
				if e.Kind == EventPathJoined {
					_ = w.conn(int(w.dialed() - 1)).Peer().Close()
				}
			}
			return nil
		})
		time.Sleep(10 * time.Second)
		if n := w.dialed(); n < 5 || n > 20 {
			t.Errorf("%d connections in 10 s to a server that ends them at once", n)
		}
		_ = w.client.CloseWithError(0, "")
		<-w.server.Context().Done()
		<-killed
	})
}

// An application's own manager needs the public methods only, and ends with the
// session.
func TestOwnPathManager(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan error, 1)
		w := newWorld(t, wideLink, func(client, _ *Config) {
			client.PathManager = PathManagerFunc(func(ctx context.Context, s *Session) error {
				for e := range s.Events(ctx) {
					if e.Kind == EventPathJoined && len(s.Paths()) == 2 {
						if err := e.Path.Use(); err != nil {
							ended <- err
						}
					}
				}
				ended <- ctx.Err()
				return nil
			})
		})
		synctest.Wait()
		p := w.addPath(t)
		time.Sleep(time.Second)
		w.wantMain(t, "as the manager wants", p.ID())
		if err := w.client.CloseWithError(0, ""); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err != context.Canceled {
			t.Errorf("the manager has ended by %v", err)
		}
	})
}

// The server's further addresses are used, but for those that only its own
// network could mean.
func TestInterfacePathsAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		further := []netip.AddrPort{
			netip.MustParseAddrPort("198.51.100.2:443"), netip.MustParseAddrPort("198.51.100.3:443"),
			netip.MustParseAddrPort("127.0.0.1:443"), netip.MustParseAddrPort("192.168.0.1:443"),
		}
		w := newWorld(t, wideLink, func(client, server *Config) {
			client.PathManager = InterfacePaths()
			server.Addresses = further[1:]
		})
		time.Sleep(time.Second)
		w.wantPaths(t, "with one more address", 2, 0)
		if err := w.server.Advertise(further[:1], nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		w.wantPaths(t, "with two more addresses", 3, 0)
		w.conn(1).Reset()
		w.conn(2).Stall(true)
		openStream(t, w.client, w.server)
		time.Sleep(2 * time.Second)
		w.wantPaths(t, "after two losses", 3, 0)
	})
}

func TestLeastUsed(t *testing.T) {
	route := func(local, remote string) PathSpec {
		return PathSpec{Local: netip.MustParseAddrPort(local), Remote: netip.MustParseAddrPort(remote)}
	}
	wifi, lte := "192.0.2.1:0", "198.51.100.1:0"
	one, two := "203.0.113.1:443", "203.0.113.2:443"
	all := []PathSpec{route(wifi, one), route(lte, one), route(wifi, two), route(lte, two)}
	for _, test := range []struct {
		used []PathSpec
		want PathSpec
	}{
		{nil, route(wifi, one)},
		{[]PathSpec{route(wifi, one)}, route(lte, two)},
		{[]PathSpec{route(lte, one)}, route(wifi, two)},
		{[]PathSpec{route(wifi, one), route(lte, two), route(wifi, two)}, route(lte, one)},
		{[]PathSpec{{}}, route(wifi, one)},
	} {
		if got := leastUsed(all, test.used); got != test.want {
			t.Errorf("beside %v: got %v, want %v", test.used, got, test.want)
		}
	}
}

func TestStartOf(t *testing.T) {
	addr := netip.MustParseAddr
	i := osnet.Interface{Name: "eth0", Up: true, Addrs: []netip.Addr{
		addr("127.0.0.1"), addr("192.0.2.1"), addr("192.0.2.2"), addr("2001:db8::1"), addr("fe80::1%eth0"),
	}}
	for _, test := range []struct{ own, remote, want string }{
		{"10.0.0.1", "203.0.113.1", "192.0.2.1"},
		{"192.0.2.2", "203.0.113.1", "192.0.2.2"},
		{"192.0.2.2", "2001:db8:1::1", "2001:db8::1"},
		{"192.0.2.2", "fe80::2", "fe80::1%eth0"},
	} {
		if got := startOf(i, addr(test.own), addr(test.remote)); got != addr(test.want) {
			t.Errorf("from %s to %s: got %v, want %s", test.own, test.remote, got, test.want)
		}
	}
	i.Up = false
	if got := startOf(i, addr("192.0.2.1"), addr("203.0.113.1")); got.IsValid() {
		t.Errorf("%v of an interface that is down", got)
	}
}

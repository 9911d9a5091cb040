package tcpls

import (
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
)

func TestSourceOf(t *testing.T) {
	for _, test := range []struct {
		addr net.Addr
		want string // "" if it isn't limited
	}{
		{&net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 1}, "192.0.2.7/32"},
		{&net.TCPAddr{IP: net.ParseIP("::ffff:192.0.2.7")}, "192.0.2.7/32"},
		{&net.TCPAddr{IP: net.ParseIP("2001:db8:1:2:3:4:5:6")}, "2001:db8:1:2::/64"},
		{&net.TCPAddr{IP: net.ParseIP("fe80::1"), Zone: "eth0"}, "fe80::/64"},
		{&net.TCPAddr{IP: net.IPv4(127, 0, 0, 3)}, ""},
		{&net.TCPAddr{IP: net.IPv6loopback}, ""},
		{&net.TCPAddr{}, ""},
		{&net.UnixAddr{Name: "socket", Net: "unix"}, ""},
		{nil, ""},
	} {
		got := sourceOf(test.addr)
		if got.IsValid() != (test.want != "") || got.IsValid() && got.String() != test.want {
			t.Errorf("the source of %v is %v, want %q", test.addr, got, test.want)
		}
	}
}

// One source can't take the places of another, and what it gives back is free.
func TestAdmission(t *testing.T) {
	a := &admission{most: 5, share: 2, pending: make(map[netip.Prefix]int)}
	one, other := netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("192.0.2.2/32")
	admit := func(why string, source netip.Prefix, want bool) {
		t.Helper()
		if err := a.admit(source); (err == nil) != want {
			t.Errorf("%s: admit = %v", why, err)
		}
	}
	admit("the first", one, true)
	admit("the second", one, true)
	admit("a third of this source", one, false)
	admit("one of another source", other, true)
	a.settle(one)
	admit("one after another has settled", one, true)
	admit("one without a source", netip.Prefix{}, true)
	admit("the sixth of all", other, false)
	a.leave()
	admit("one after another has left", other, true)
	a.settle(netip.Prefix{})
	for _, source := range []netip.Prefix{one, one, other, other} {
		a.settle(source)
	}
	if len(a.pending) != 0 {
		t.Errorf("%v is remembered of sources with nothing pending", a.pending)
	}
}

// dialTo connects to a listener in memory; the error is the handshake's.
func dialTo(t *testing.T, inner *memnet.Listener, cfg *Config) (*Session, error) {
	t.Helper()
	conn, err := inner.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return Client(t.Context(), conn, cfg)
}

func TestMaxSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := newTestConfigs()
		server.MaxSessions = 2
		inner := memnet.Listen(memnet.Link{})
		l, err := NewListener(inner, server)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		open := func() (c, s *Session) {
			t.Helper()
			c, err := dialTo(t, inner, client)
			if err != nil {
				t.Fatal(err)
			}
			if s, err = l.Accept(t.Context()); err != nil {
				t.Fatal(err)
			}
			return c, s
		}
		first, _ := open()
		second, served := open()
		began := time.Now()
		if _, err := dialTo(t, inner, client); err == nil {
			t.Fatal("a third session with a MaxSessions of 2")
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("a client too many was refused after %v, want at once", took)
		}
		_ = first.Close() // its end on the server frees the place
		synctest.Wait()
		third, _ := open()
		announce(t, mustOpen(t, second)) // the others don't notice
		if _, err := served.AcceptStream(t.Context()); err != nil {
			t.Errorf("a session beside one that was refused: %v", err)
		}
		_, _ = second.Close(), third.Close()
	})
}

func mustOpen(t *testing.T, s *Session) *Stream {
	t.Helper()
	st, err := s.OpenStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// Clients that stay silent take only their source's share of MaxPending.
func TestMaxPendingPerSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := newTestConfigs()
		server.MaxPending, server.MaxPendingPerSource, server.HandshakeTimeout = 10, 3, 10*time.Second
		inner := memnet.Listen(memnet.Link{})
		l, err := NewListener(inner, server)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		for range 3 {
			conn, err := inner.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
		}
		began := time.Now()
		if _, err := dialTo(t, inner, client); err == nil {
			t.Fatal("a fourth handshake of one source with a MaxPendingPerSource of 3")
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("it was refused after %v, want at once", took)
		}
		time.Sleep(11 * time.Second) // the silent ones have timed out
		c, err := dialTo(t, inner, client)
		if err != nil {
			t.Fatal(err)
		}
		s, err := l.Accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Close(), s.Close() // one of them only hears of it
	})
}

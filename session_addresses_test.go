package tcpls

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
	"github.com/go-tcpls/tcpls/internal/wire"
)

func addrPorts(list string) (ports []netip.AddrPort) {
	for _, s := range strings.Fields(list) {
		ports = append(ports, netip.MustParseAddrPort(s))
	}
	return ports
}

// A client isn't led into networks that its server hasn't been reached in.
func TestMayDial(t *testing.T) {
	for _, test := range []struct {
		advertised, server string // none: not known
		want               bool
	}{
		{"198.51.100.1", "", true},
		{"198.51.100.1", "10.0.0.1", true},
		{"2001:db8::1", "127.0.0.1", true},
		{"10.0.0.1", "", false},
		{"10.0.0.1", "198.51.100.1", false},
		{"192.168.0.1", "10.0.0.1", true},
		{"100.64.0.1", "198.51.100.1", false},
		{"fd00::1", "198.51.100.1", false},
		{"fd00::1", "172.16.0.1", true},
		{"127.0.0.1", "", false},
		{"127.0.0.1", "10.0.0.1", false},
		{"::1", "127.0.0.1", true},
		{"169.254.169.254", "10.0.0.1", false},
		{"fe80::1", "198.51.100.1", false},
	} {
		var server netip.Addr
		if test.server != "" {
			server = netip.MustParseAddr(test.server)
		}
		if got := mayDial(netip.MustParseAddr(test.advertised), server); got != test.want {
			t.Errorf("%s from a server at %q: %v", test.advertised, test.server, got)
		}
	}
}

// A client knows its server's addresses from the handshake on, and what changes.
func TestAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, memnet.Link{}, func(_, server *Config) {
			server.Addresses = addrPorts("198.51.100.2:443 [::ffff:198.51.100.3]:443 [2001:db8::1]:8443")
		})
		want := func(why, list string) {
			t.Helper()
			synctest.Wait()
			if got := w.client.PeerAddresses(); !slices.Equal(got, addrPorts(list)) {
				t.Errorf("%s: %v, want %s", why, got, list)
			}
		}
		if n := len(w.client.PeerAddresses()); n != 3 {
			t.Errorf("%d addresses with the handshake", n)
		}
		want("the handshake's", "198.51.100.2:443 198.51.100.3:443 [2001:db8::1]:8443")
		var events []string
		ctx, cancel := context.WithCancel(t.Context())
		told := begun(func() error {
			for e := range w.client.Events(ctx) {
				if e.Kind == EventAddressAdded || e.Kind == EventAddressRemoved {
					events = append(events, fmt.Sprint(e.Kind, " ", e.Address))
				}
			}
			return nil
		})
		synctest.Wait()
		for _, step := range []struct{ why, add, remove, want string }{
			{"one more, one less", "198.51.100.4:443", "198.51.100.2:443", "198.51.100.3:443 [2001:db8::1]:8443 198.51.100.4:443"},
			{"known and unknown ones", "198.51.100.3:443", "198.51.100.9:443", "198.51.100.3:443 [2001:db8::1]:8443 198.51.100.4:443"},
			{"back again", "198.51.100.2:443", "", "198.51.100.3:443 [2001:db8::1]:8443 198.51.100.4:443 198.51.100.2:443"},
		} {
			if err := w.server.Advertise(addrPorts(step.add), addrPorts(step.remove)); err != nil {
				t.Fatal(err)
			}
			want(step.why, step.want)
		}
		cancel()
		<-told
		if want := []string{"address removed 198.51.100.2:443", "address added 198.51.100.4:443", "address added 198.51.100.2:443"}; !slices.Equal(events, want) {
			t.Errorf("events %q, want %q", events, want)
		}
	})
}

// What can't be advertised changes nothing.
func TestAdvertiseErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, memnet.Link{}, func(_, server *Config) { server.Addresses = addrPorts("198.51.100.2:443") })
		var many []netip.AddrPort
		for port := range uint16(wire.MaxAddresses + 1) {
			many = append(many, netip.AddrPortFrom(netip.MustParseAddr("198.51.100.3"), port+1))
		}
		for _, test := range []struct {
			why  string
			add  []netip.AddrPort
			want string
		}{
			{"too many", many, "17 addresses are too many"},
			{"no port", addrPorts("198.51.100.4:443 198.51.100.4:0"), "198.51.100.4:0 can't be"},
			{"multicast", addrPorts("224.0.0.1:443"), "224.0.0.1:443 can't be"},
			{"unspecified", addrPorts("[::]:443"), "[::]:443 can't be"},
			{"a zone", addrPorts("[fe80::1%eth0]:443"), "[fe80::1%eth0]:443 can't be"},
			{"nothing", []netip.AddrPort{{}}, "can't be"},
		} {
			if err := w.server.Advertise(test.add, addrPorts("198.51.100.2:443")); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s: %v, want an error with %q", test.why, err, test.want)
			}
			cfg := Config{TLS: w.server.cfg.TLS, Addresses: append(test.add, netip.MustParseAddrPort("198.51.100.2:443"))}
			if _, err := cfg.withDefaults(); err == nil || !strings.Contains(err.Error(), "Config.Addresses") {
				t.Errorf("%s, in a Config: %v", test.why, err)
			}
		}
		synctest.Wait()
		if got := w.client.PeerAddresses(); !slices.Equal(got, addrPorts("198.51.100.2:443")) {
			t.Errorf("the client has %v", got)
		}
		if err := w.client.Advertise(nil, nil); err == nil {
			t.Error("a client advertises")
		}
		if err := w.server.Advertise(many[2:], nil); err != nil {
			t.Errorf("16 addresses: %v", err)
		}
		_ = w.server.CloseWithError(7, "done")
		wantErrorIs(t, "after the end", w.server.Advertise(nil, nil), &SessionError{Code: 7, Application: true})
	})
}

// Addresses that come and go while the client acknowledges nothing don't pile up.
func TestAdvertiseIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, memnet.Link{}, nil)
		synctest.Wait()
		w.conn(0).Stall(true)
		for n := range 10_000 {
			a := []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("198.51.100.3"), uint16(n+1))}
			if err := errors.Join(w.server.Advertise(a, nil), w.server.Advertise(nil, a)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.server.Advertise(addrPorts("198.51.100.4:443"), nil); err != nil {
			t.Fatal(err)
		}
		c := &w.server.control
		c.mu.Lock()
		if n := len(c.addresses); n > 2*wire.MaxAddresses {
			t.Errorf("%d words wait", n)
		}
		c.mu.Unlock()
		if n := c.keptBytes(); n > 2*maxControl {
			t.Errorf("%d bytes of control records are kept", n)
		}
		w.conn(0).Stall(false)
		time.Sleep(time.Second)
		if got := w.client.PeerAddresses(); !slices.Equal(got, addrPorts("198.51.100.4:443")) {
			t.Errorf("the client has %v", got)
		}
	})
}

// A client whose path is lost looks for its server at the advertised addresses
// too, but not in networks that are none of the server's business.
func TestRejoinElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := newTestConfigs()
		client.MaxPaths, server.MaxPaths, client.ReconnectFor, server.ReconnectFor = 0, 0, 0, 0
		server.Addresses = addrPorts("127.0.0.1:443 10.0.0.1:443 198.51.100.2:443")
		inner := memnet.Listen(wideLink)
		l, err := NewListener(inner, server)
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var dialed []string
		var first *memnet.Conn
		d := &Dialer{Config: client, DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			again := slices.Contains(dialed, address)
			dialed = append(dialed, address)
			if again { // the server has gone from there, without a word
				mu.Unlock()
				<-ctx.Done()
				mu.Lock()
				return nil, ctx.Err()
			}
			conn, err := inner.Dial(ctx)
			if first == nil {
				first = conn
			}
			return conn, err
		}}
		c, err := d.Dial(t.Context(), "tcp", "localhost:443")
		if err != nil {
			t.Fatal(err)
		}
		s, err := l.Accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		a, b := openStream(t, c, s)
		first.Reset()
		began := time.Now()
		mustWrite(t, a, []byte("on"))
		wantRead(t, "after the path was lost", b, []byte("on"))
		if gap := time.Since(began); gap > time.Second {
			t.Errorf("the session was lost for %v", gap)
		}
		mu.Lock()
		if want := []string{"localhost:443", "localhost:443", "198.51.100.2:443"}; !slices.Equal(dialed, want) {
			t.Errorf("dialed %v, want %v", dialed, want)
		}
		mu.Unlock()
		closeBoth(t, c, s)
		_ = l.Close() // nothing is left of it
	})
}

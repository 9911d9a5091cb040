package tcpls

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
)

func TestAlternate(t *testing.T) {
	for _, test := range []struct{ ips, local, want string }{
		{"192.0.2.1 192.0.2.2 2001:db8::1 2001:db8::2 2001:db8::3", "", "2001:db8::1 192.0.2.1 2001:db8::2 192.0.2.2 2001:db8::3"},
		{"192.0.2.1 192.0.2.2", "", "192.0.2.1 192.0.2.2"},
		{"::ffff:192.0.2.1 2001:db8::1", "", "2001:db8::1 192.0.2.1"},
		{"192.0.2.1 2001:db8::1", "192.0.2.9", "192.0.2.1"},
		{"192.0.2.1 2001:db8::1", "2001:db8::9", "2001:db8::1"},
		{"192.0.2.1 2001:db8::1", "::", "2001:db8::1 192.0.2.1"},
		{"192.0.2.1", "2001:db8::9", ""},
		{"", "", ""},
		{strings.Repeat("192.0.2.1 2001:db8::1 ", 20), "", strings.TrimSpace(strings.Repeat("2001:db8::1 192.0.2.1 ", 8))},
	} {
		var ips []netip.Addr
		for _, s := range strings.Fields(test.ips) {
			ips = append(ips, netip.MustParseAddr(s))
		}
		var local net.Addr
		if test.local != "" {
			local = &net.TCPAddr{IP: net.ParseIP(test.local)}
		}
		var got []string
		for _, ip := range alternate(ips, local) {
			got = append(got, ip.String())
		}
		if s := strings.Join(got, " "); s != test.want {
			t.Errorf("%s from %q: got %s, want %s", test.ips, test.local, s, test.want)
		}
	}
}

// An outcome is what becomes of a fake attempt, how long after its beginning.
type outcome struct {
	after time.Duration
	err   error // nil: a connection
}

// Attempts begin when RFC 8305 says, the first connection wins, and nothing is
// left of the others.
func TestRace(t *testing.T) {
	const ms = time.Millisecond
	refused, never := syscall.ECONNREFUSED, time.Hour
	for _, test := range []struct {
		name     string
		dialer   *Dialer
		outcomes map[string]outcome // by address: a, b, c
		begins   map[string]time.Duration
		winner   string
		end      time.Duration
	}{
		{"first at once", &Dialer{}, map[string]outcome{"a": {10 * ms, nil}, "b": {}},
			map[string]time.Duration{"a": 0}, "a", 10 * ms},
		{"first is slow", &Dialer{}, map[string]outcome{"a": {never, nil}, "b": {10 * ms, nil}},
			map[string]time.Duration{"a": 0, "b": 250 * ms}, "b", 260 * ms},
		{"first wins late", &Dialer{}, map[string]outcome{"a": {300 * ms, nil}, "b": {100 * ms, nil}},
			map[string]time.Duration{"a": 0, "b": 250 * ms}, "a", 300 * ms},
		{"first is refused", &Dialer{}, map[string]outcome{"a": {20 * ms, refused}, "b": {10 * ms, nil}},
			map[string]time.Duration{"a": 0, "b": 20 * ms}, "b", 30 * ms},
		{"second is refused", &Dialer{}, map[string]outcome{"a": {never, nil}, "b": {10 * ms, refused}, "c": {10 * ms, nil}},
			map[string]time.Duration{"a": 0, "b": 250 * ms, "c": 260 * ms}, "c", 270 * ms},
		{"shorter delay", &Dialer{FallbackDelay: 20 * ms}, map[string]outcome{"a": {never, nil}, "b": {never, nil}, "c": {5 * ms, nil}},
			map[string]time.Duration{"a": 0, "b": 20 * ms, "c": 40 * ms}, "c", 45 * ms},
		{"one after another", &Dialer{FallbackDelay: -1, AttemptTimeout: time.Second}, map[string]outcome{"a": {never, nil}, "b": {20 * ms, refused}, "c": {5 * ms, nil}},
			map[string]time.Duration{"a": 0, "b": time.Second, "c": time.Second + 20*ms}, "c", time.Second + 25*ms},
		{"nobody", &Dialer{}, map[string]outcome{"a": {never, nil}, "b": {never, nil}, "c": {0, refused}},
			map[string]time.Duration{"a": 0, "b": 250 * ms, "c": 500 * ms}, "", 5*time.Second + 250*ms},
		{"one address has all the time", &Dialer{}, map[string]outcome{"a": {time.Minute, nil}},
			map[string]time.Duration{"a": 0}, "a", time.Minute},
		{"but as it was told", &Dialer{AttemptTimeout: time.Second}, map[string]outcome{"a": {time.Minute, nil}},
			map[string]time.Duration{"a": 0}, "", time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				var mu sync.Mutex
				begins := make(map[string]time.Duration)
				addresses := slices.Sorted(maps.Keys(test.outcomes))
				r := test.dialer.newRace(t.Context(), test.dialer.ways(addresses...), func(ctx context.Context, c candidate) (net.Conn, error) {
					address := c.address
					mu.Lock()
					begins[address] = time.Since(began)
					mu.Unlock()
					o := test.outcomes[address]
					select {
					case <-ctx.Done():
						return nil, ctx.Err()
					case <-time.After(o.after):
						if o.err != nil {
							return nil, o.err
						}
						conn, _ := memnet.Pipe(memnet.Link{})
						return conn, nil
					}
				})
				a, ok := r.next()
				if ok != (test.winner != "") || a.address != test.winner {
					t.Errorf("%q has won", a.address)
				}
				if d := time.Since(began); d != test.end {
					t.Errorf("it took %v, not %v", d, test.end)
				}
				mu.Lock()
				if !maps.Equal(begins, test.begins) {
					t.Errorf("attempts began at %v, not %v", begins, test.begins)
				}
				mu.Unlock()
				if !ok {
					for _, address := range addresses {
						if err := r.err("name"); len(addresses) > 1 && !strings.Contains(err.Error(), address+": ") {
							t.Errorf("error %q doesn't name %s", err, address)
						}
					}
				}
				r.end() // the bubble waits for what is left
			})
		})
	}
}

// A raceWorld is a server that is reached by several addresses of one name.
type raceWorld struct {
	client *Config
	server *Config
	dialer Dialer
	inner  *memnet.Listener

	mu      sync.Mutex
	conns   map[string]*memnet.Conn
	delays  map[string]time.Duration // of connecting
	swallow []string                 // addresses on which nothing arrives behind the connect
	reset   []string                 // addresses on which the ClientHello is answered by RST
}

func newRaceWorld(t *testing.T, change func(w *raceWorld)) *raceWorld {
	t.Helper()
	client, server := newTestConfigs()
	w := &raceWorld{client: client, server: server, inner: memnet.Listen(wideLink), conns: make(map[string]*memnet.Conn)}
	server.MaxPaths = 0
	if change != nil {
		change(w)
	}
	l, err := NewListener(w.inner, server)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for {
			s, err := l.Accept(ctx)
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = s.Close() }) // the client may have gone without a word
		}
	}()
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
	})
	w.dialer.Config = client
	w.dialer.DialContext = w.dial
	return w
}

func (w *raceWorld) dial(ctx context.Context, _, address string) (net.Conn, error) {
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(w.delays[address]):
	}
	conn, err := w.inner.Dial(ctx)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conns[address] = conn
	conn.Stall(slices.Contains(w.swallow, address))
	if slices.Contains(w.reset, address) {
		time.AfterFunc(time.Millisecond, conn.Reset)
	}
	return conn, nil
}

// attempt dials all addresses as those of one name.
func (w *raceWorld) attempt(t *testing.T, addresses ...string) (*Session, error) {
	t.Helper()
	cfg, err := w.dialer.config("tcp", "localhost:443")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel() // what goes on behind Dial isn't bound by its context
	s, _, err := w.dialer.attempt(ctx, target{"tcp", "localhost:443", w.dialer.ways(addresses...)}, cfg, true)
	return s, err
}

// An address that takes connections and then swallows or resets TLS doesn't win
// for ever.
func TestRaceOfHandshakes(t *testing.T) {
	for _, test := range []struct {
		name           string
		swallow, reset []string
		delay, timeout time.Duration // of connecting, and as the Dialer says
		want           time.Duration
	}{
		{name: "first is silent", swallow: []string{"a"}, want: answerTimeout},
		{name: "first is reset", reset: []string{"a"}},
		{name: "only the last works", swallow: []string{"b"}, reset: []string{"a"}, want: answerTimeout},
		{name: "all are far away", swallow: []string{"a"}, delay: time.Second, want: (1 + answerTimes) * time.Second},
		{name: "as it was told", swallow: []string{"a"}, timeout: 10 * time.Second, want: 10 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newRaceWorld(t, func(w *raceWorld) {
					w.swallow, w.reset = test.swallow, test.reset
					w.client.HandshakeTimeout = time.Minute
					w.dialer.AttemptTimeout = test.timeout
					w.delays = map[string]time.Duration{"a": test.delay, "b": test.delay, "c": test.delay}
				})
				began := time.Now()
				s, err := w.attempt(t, "a", "b", "c")
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				if d := time.Since(began); d < test.want || d > test.want+500*time.Millisecond {
					t.Errorf("it took %v, not about %v", d, test.want)
				}
			})
		})
	}
}

// An error names every address, with what went wrong there, and a certificate
// that doesn't fit ends the race: another address wouldn't make it good.
func TestRaceErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newRaceWorld(t, func(w *raceWorld) { w.swallow, w.reset = []string{"a"}, []string{"b"} })
		_, err := w.attempt(t, "a", "b")
		if err == nil || !strings.Contains(err.Error(), "a: ") || !strings.Contains(err.Error(), "198.51.100.1:443: ") || !strings.Contains(err.Error(), "localhost:443") {
			t.Errorf("error %q doesn't name all addresses", err)
		}
		wantErrorIs(t, "the silent one", err, ErrHandshakeTimeout)
		wantErrorIs(t, "the reset one", err, syscall.ECONNRESET)

		w.client.TLS.ServerName = "example.com"
		_, err = w.attempt(t, "c", "d")
		if _, ok := errors.AsType[*tls.CertificateVerificationError](err); !ok || strings.Contains(err.Error(), "localhost:443") {
			t.Errorf("with the wrong name: %v", err)
		}
	})
}

// Connections that lose become standby paths where that is asked for, within
// the bounds of both ends, and are closed otherwise.
func TestKeepLosers(t *testing.T) {
	for _, test := range []struct {
		name           string
		keep           bool
		client, server int // MaxPaths; 0: the default
		silent         bool
		paths          int
	}{
		{name: "not asked for", paths: 1},
		{name: "kept", keep: true, paths: 3},
		{name: "client's bound", keep: true, client: 2, paths: 2},
		{name: "server's bound", keep: true, server: 2, paths: 2},
		{name: "a server without tokens", keep: true, server: 1, paths: 1},
		{name: "a silent one", keep: true, silent: true, paths: 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newRaceWorld(t, func(w *raceWorld) {
					w.dialer.KeepLosers = test.keep
					w.client.MaxPaths, w.server.MaxPaths = test.client, test.server
					w.delays = map[string]time.Duration{"a": 2 * time.Second, "b": time.Second}
					if test.silent {
						w.swallow = []string{"a"}
					}
				})
				s, err := w.attempt(t, "a", "b", "c")
				if err != nil {
					t.Fatal(err)
				}
				if n := len(s.Paths()); n != 1 {
					t.Errorf("%d paths at first", n)
				}
				time.Sleep(time.Minute)
				if n := len(s.Paths()); n != test.paths {
					t.Errorf("%d paths, want %d", n, test.paths)
				}
				kept := make(map[net.Conn]bool)
				for _, p := range s.Paths() {
					kept[p.conn] = true
				}
				w.mu.Lock()
				defer w.mu.Unlock()
				for address, conn := range w.conns {
					if _, err := conn.Write(nil); kept[conn] == errors.Is(err, net.ErrClosed) {
						t.Errorf("the connection to %s is kept: %v; Write: %v", address, kept[conn], err)
					}
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
	t.Run("the session ends first", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newRaceWorld(t, func(w *raceWorld) {
				w.dialer.KeepLosers, w.client.MaxPaths = true, 0
				w.delays = map[string]time.Duration{"a": time.Hour}
			})
			s, err := w.attempt(t, "a", "b")
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil { // the bubble waits for what is left
				t.Error(err)
			}
		})
	})
	t.Run("nobody", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newRaceWorld(t, func(w *raceWorld) {
				w.dialer.KeepLosers = true
				w.delays = map[string]time.Duration{"a": time.Hour, "b": time.Hour}
			})
			began := time.Now()
			_, err := w.attempt(t, "a", "b")
			wantErrorIs(t, "two addresses that are silent", err, context.DeadlineExceeded)
			if d := time.Since(began); d != attemptDelay+attemptTimeout {
				t.Errorf("it took %v", d)
			}
		})
	})
}

// answerNames is a name server that knows 127.0.0.1 and ::1 by any name, over
// one connection as of TCP (RFC 1035, sections 4.1 and 4.2.2).
func answerNames(conn net.Conn) {
	defer conn.Close()
	for {
		var size [2]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		query := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(conn, query); err != nil {
			return
		}
		end := 12 // of the question's name
		for query[end] != 0 {
			end += 1 + int(query[end])
		}
		question := query[12 : end+5]
		ip := []byte{127, 0, 0, 1}
		if question[len(question)-3] == 28 { // AAAA
			ip = net.IPv6loopback
		}
		answer := append([]byte{query[0], query[1], 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0}, question...)
		answer = append(answer, 0xc0, 12)                      // the question's name
		answer = append(answer, question[len(question)-4:]...) // type and class
		answer = append(answer, 0, 0, 0, 60, 0, byte(len(ip))) // time to live, length
		answer = append(answer, ip...)
		if _, err := conn.Write(append([]byte{0, byte(len(answer))}, answer...)); err != nil {
			return
		}
	}
}

// A name is looked up by the dialer's resolver, and both families are tried.
func TestDialName(t *testing.T) {
	d := &Dialer{NetDialer: &net.Dialer{Resolver: &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		go answerNames(server)
		return client, nil
	}}}}
	client, server := newTestConfigs()
	d.Config = client
	for _, listen := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := Listen("tcp", listen, server)
		if err != nil && listen[0] == '[' {
			t.Skip("no IPv6 on loopback:", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		_, port, err := net.SplitHostPort(l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		s, err := d.Dial(t.Context(), "tcp", "server.test.:"+port)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := s.RemoteAddr().String(), l.Addr().String(); got != want {
			t.Errorf("reached %s, want %s", got, want)
		}
		go func() {
			if s, err := l.Accept(t.Context()); err == nil {
				<-s.Context().Done()
			}
		}()
		if err := errors.Join(s.Close(), l.Close()); err != nil {
			t.Error(err)
		}
		_, err = d.Dial(t.Context(), "tcp", "server.test.:"+port)
		if err == nil || !strings.Contains(err.Error(), "127.0.0.1:"+port) || !strings.Contains(err.Error(), "[::1]:"+port) {
			t.Errorf("with nobody there: error %q doesn't name both addresses", err)
		}
		if _, err = d.Dial(t.Context(), "tcp4", "server.test.:"+port); err == nil || strings.Contains(err.Error(), "::1") {
			t.Errorf("tcp4: %v", err)
		}
	}
}

// A race that is over leaves nothing on its caller's context, which may outlive
// many.
func TestRaceLeavesContext(t *testing.T) {
	ctx := &watchedContext{Context: t.Context(), done: make(chan struct{})}
	d := &Dialer{KeepLosers: true}
	r := d.newRace(ctx, d.ways("a", "b"), func(context.Context, candidate) (net.Conn, error) {
		return nil, errors.New("refused")
	})
	if _, ok := r.next(); ok {
		t.Error("a connection that was refused has won")
	}
	r.end()
	if ctx.waiting != 0 {
		t.Errorf("%d wait for the end of the context", ctx.waiting)
	}
}

// A watchedContext counts who waits for its end.
type watchedContext struct {
	context.Context
	done    chan struct{}
	waiting int
}

func (c *watchedContext) Done() <-chan struct{} { return c.done }

func (c *watchedContext) AfterFunc(func()) (stop func() bool) {
	c.waiting++
	return func() bool {
		c.waiting--
		return true
	}
}

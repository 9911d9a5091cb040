package tcpls

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
)

// An earlyWorld is a server that takes early data, and a client's dialer with
// a cache for its tickets.
type earlyWorld struct {
	inner    *memnet.Listener
	listener *Listener
	dialer   *Dialer
	client   *Config
	server   *Config
}

func newEarlyWorld(t testing.TB, change func(client, server *Config)) *earlyWorld {
	t.Helper()
	w := &earlyWorld{inner: memnet.Listen(wideLink)}
	w.client, w.server = newEarlyConfigs()
	if change != nil {
		change(w.client, w.server)
	}
	var err error
	if w.listener, err = NewListener(w.inner, w.server); err != nil {
		t.Fatal(err)
	}
	w.dialer = &Dialer{Config: w.client, EarlyData: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return w.inner.Dial(ctx)
	}}
	t.Cleanup(func() { _ = w.listener.Close() })
	return w
}

// newEarlyConfigs returns configurations that allow early data.
func newEarlyConfigs() (client, server *Config) {
	client, server = newTestConfigs()
	client.TLS.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	server.TLS.SessionTicketsDisabled = false
	server.MaxEarlyData = 16 << 10
	for _, c := range []*Config{client, server} {
		c.ReconnectFor, c.MaxPaths = 0, 0
	}
	return client, server
}

func (w *earlyWorld) dial(t testing.TB) *Session {
	t.Helper()
	s, err := w.dialer.Dial(context.Background(), "tcp", "localhost:443")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (w *earlyWorld) accept(t testing.TB) *Session {
	t.Helper()
	s, err := w.listener.Accept(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// visit makes a session that leaves the client with tickets.
func (w *earlyWorld) visit(t testing.TB) {
	t.Helper()
	c := w.dial(t)
	s := w.accept(t)
	if c.EarlyData() != EarlyDataNone {
		t.Fatalf("early data without a ticket: %v", c.EarlyData())
	}
	if _, err := c.Ping(t.Context()); err != nil { // the tickets were sent before
		t.Fatal(err)
	}
	closeBoth(t, c, s)
}

func closeBoth(t testing.TB, c, s *Session) {
	t.Helper()
	var both sync.WaitGroup
	var ce, se error
	both.Go(func() { ce = c.Close() })
	both.Go(func() { se = s.Close() })
	both.Wait()
	for _, err := range []error{ce, se} {
		var closed *SessionError
		if err != nil && !errors.As(err, &closed) {
			t.Errorf("Close: %v", err)
		}
	}
}

// request sends a request of n bytes early and wants it back, and returns when
// that came, after the dialing of the connection.
func (w *earlyWorld) request(t *testing.T, n int, want EarlyData) time.Duration {
	t.Helper()
	began := time.Now()
	c := w.dial(t)
	if c.EarlyData() != EarlyDataPending {
		t.Fatalf("after Dial with a ticket: %v", c.EarlyData())
	}
	st, err := c.OpenStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	data := testBytes(7, n)
	mustWrite(t, st, data)
	if err := st.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	s := w.accept(t)
	served, err := s.AcceptStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantRead(t, "the request", served, data)
	wantEOF(t, "the request", served)
	if early := served.EarlyData(); early != (want == EarlyDataAccepted) {
		t.Errorf("the stream says %v of early data", early)
	}
	mustWrite(t, served, data)
	if err := served.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	wantRead(t, "the answer", st, data)
	took := time.Since(began)
	wantEOF(t, "the answer", st)
	if err := errors.Join(c.Handshake(t.Context()), s.Handshake(t.Context())); err != nil {
		t.Fatal(err)
	}
	if c.EarlyData() != want {
		t.Errorf("early data was %v, want %v", c.EarlyData(), want)
	}
	for _, end := range []*Session{c, s} {
		if state := end.ConnectionState(); !state.TLS.HandshakeComplete || !state.TCPLS {
			t.Errorf("state after the handshake: %+v", state)
		}
	}
	// The session goes on like any other.
	a, b := openStream(t, c, s)
	mustWrite(t, a, testBytes(8, 300_000))
	wantRead(t, "later, upwards", b, testBytes(8, 300_000))
	mustWrite(t, b, testBytes(9, 300_000))
	wantRead(t, "later, downwards", a, testBytes(9, 300_000))
	closeBoth(t, c, s)
	return took
}

// An accepted request is answered one round trip after the connection is
// there; a refused one is sent again, once, and costs one more.
func TestEarlyData(t *testing.T) {
	const roundTrip = 2 * 20 * time.Millisecond
	for _, n := range []int{1, 5000, 16 << 10} {
		synctest.Test(t, func(t *testing.T) {
			w := newEarlyWorld(t, nil)
			w.visit(t)
			took := w.request(t, n, EarlyDataAccepted) - roundTrip // of TCP
			if took > roundTrip*3/2 {
				t.Errorf("%d bytes there and back took %v with early data, a round trip is %v", n, took, roundTrip)
			}
			// The second ticket of the visit, and what the last session left.
			w.request(t, n, EarlyDataAccepted)
			w.request(t, n, EarlyDataAccepted)
		})
	}
}

func TestEarlyDataRefused(t *testing.T) {
	for name, change := range map[string]func(w *earlyWorld){
		"another configuration": func(w *earlyWorld) { w.listener.cfg.MaxStreams++ },
		"a replay store that knows everything": func(w *earlyWorld) {
			w.listener.cfg.ReplayStore = storeFunc(func() (bool, error) { return false, nil })
		},
		"a replay store that fails": func(w *earlyWorld) {
			w.listener.cfg.ReplayStore = storeFunc(func() (bool, error) { return true, errors.New("unreachable") })
		},
		"no early data any more": func(w *earlyWorld) { w.listener.cfg.MaxEarlyData = 0 },
		"other ticket keys": func(w *earlyWorld) {
			w.listener.cfg.TLS.SetSessionTicketKeys([][32]byte{{1}})
		},
		"a clock that is off by more than the window": func(w *earlyWorld) {
			w.listener.cfg.TLS.Time = func() time.Time { return time.Now().Add(earlyWindow + time.Second) }
		},
		"a ticket that UnwrapSession doesn't know": func(w *earlyWorld) {
			w.listener.cfg.TLS.UnwrapSession = func([]byte, tls.ConnectionState) (*tls.SessionState, error) { return nil, nil }
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newEarlyWorld(t, nil)
				w.visit(t)
				change(w)
				w.request(t, 10_000, EarlyDataRefused)
			})
		})
	}
}

type storeFunc func() (bool, error)

func (f storeFunc) Once(context.Context, [32]byte, time.Time) (bool, error) { return f() }

// What a ticket doesn't allow early waits for the handshake.
func TestEarlyDataIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newEarlyWorld(t, func(_, server *Config) { server.MaxEarlyData = 4 << 10 })
		w.visit(t)
		w.request(t, 100_000, EarlyDataAccepted)
	})
}

// Tickets are what crypto/tls's hooks make of them, and their keys change.
func TestTicketHooks(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, server *tls.Config) (later func()){
		"keys that rotate": func(t *testing.T, server *tls.Config) func() {
			server.SetSessionTicketKeys([][32]byte{{1}})
			return func() { server.SetSessionTicketKeys([][32]byte{{2}, {1}}) }
		},
		"a store of the application's": func(t *testing.T, server *tls.Config) func() {
			var mu sync.Mutex
			var kept [][]byte
			server.WrapSession = func(cs tls.ConnectionState, s *tls.SessionState) ([]byte, error) {
				mu.Lock()
				defer mu.Unlock()
				state, err := s.Bytes()
				kept = append(kept, state)
				return []byte{byte(len(kept) - 1)}, err
			}
			server.UnwrapSession = func(ticket []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
				mu.Lock()
				defer mu.Unlock()
				if len(ticket) != 1 || int(ticket[0]) >= len(kept) {
					t.Errorf("UnwrapSession got %x", ticket)
					return nil, nil
				}
				return tls.ParseSessionState(kept[ticket[0]])
			}
			return func() {}
		},
		"EncryptTicket and DecryptTicket": func(t *testing.T, server *tls.Config) func() {
			var keys tls.Config
			keys.SetSessionTicketKeys([][32]byte{{3}})
			server.WrapSession = func(cs tls.ConnectionState, s *tls.SessionState) ([]byte, error) { return keys.EncryptTicket(cs, s) }
			server.UnwrapSession = func(ticket []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
				return keys.DecryptTicket(ticket, cs)
			}
			return func() {}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var later func()
				w := newEarlyWorld(t, func(_, server *Config) { later = change(t, server.TLS) })
				w.visit(t)
				later()
				w.request(t, 1000, EarlyDataAccepted)
				w.request(t, 1000, EarlyDataAccepted)
			})
		})
	}
}

// Keying material can be exported while a handshake with early data goes on, by
// a server, and after it by both ends.
func TestExportBeforeHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newEarlyWorld(t, nil)
		w.visit(t)
		c := w.dial(t)
		if _, err := c.ExportKeyingMaterial("test", nil, 32); err == nil {
			t.Error("a client exports before it has heard the server")
		}
		st, err := c.OpenStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		mustWrite(t, st, []byte("early"))
		s := w.accept(t)
		early, err := s.ExportKeyingMaterial("test", nil, 32)
		if err != nil || s.EarlyData() != EarlyDataPending {
			t.Errorf("a server, early data %v: %v", s.EarlyData(), err)
		}
		for c.EarlyData() == EarlyDataPending || s.EarlyData() == EarlyDataPending { // for the race detector
			_, _ = c.ExportKeyingMaterial("test", nil, 32)
			_, _ = s.ExportKeyingMaterial("test", nil, 32)
			time.Sleep(time.Millisecond)
		}
		for _, end := range []*Session{c, s} {
			if late, err := end.ExportKeyingMaterial("test", nil, 32); err != nil || !bytes.Equal(late, early) {
				t.Errorf("the %s exports other bytes than the server did at first: %v", role(end), err)
			}
		}
		closeBoth(t, c, s)
	})
}

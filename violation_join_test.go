package tcpls

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/internal/tls13"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// A thief makes a TLS handshake with a session's server, with a PSK of the
// test's choice.
type thief struct {
	conn   net.Conn
	engine *tls13.Conn
	raw    []byte
}

func (w *world) thief(t *testing.T, identity, secret []byte, change func(*tls13.Config)) *thief {
	t.Helper()
	conn, err := w.client.dial(t.Context(), PathSpec{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	cfg := &tls13.Config{
		TLS: w.client.cfg.TLS, Extension: wire.ExtensionType, Offer: wire.AppendOffer(nil),
		PSK: &tls13.PSK{Identity: identity, Secret: secret, Suite: w.client.engine.Suite(), AgeAdd: 7},
	}
	if change != nil {
		change(cfg)
	}
	engine, err := tls13.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &thief{conn: conn, engine: engine}
}

// exchange sends what the engine has to say, and feeds it what comes.
func (f *thief) exchange() error {
	if _, err := f.conn.Write(f.engine.Output()); err != nil {
		return err
	}
	buf := make([]byte, 16<<10)
	n, err := f.conn.Read(buf)
	if n == 0 {
		return err
	}
	f.raw = append(f.raw, buf[:n]...)
	n, err = f.engine.Feed(f.raw)
	f.raw = f.raw[n:]
	return err
}

// handshake runs the handshake to its end.
func (f *thief) handshake() error {
	for !f.engine.HandshakeComplete() {
		if err := f.exchange(); err != nil {
			return err
		}
	}
	_, err := f.conn.Write(f.engine.Output())
	return err
}

// token takes one of the client's tokens.
func (w *world) token(t *testing.T) (identity, secret []byte) {
	t.Helper()
	got, err := w.client.takeToken(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.client.returnToken(got) })
	if secret, err = w.client.tokenSecret(got.bytes); err != nil {
		t.Fatal(err)
	}
	return got.bytes, secret
}

// wantUntouched checks that a session lives on with its one path, and that a
// token still joins it.
func (w *world) wantUntouched(t *testing.T) {
	t.Helper()
	synctest.Wait()
	for _, s := range []*Session{w.client, w.server} {
		if n := len(s.Paths()); n != 1 || context.Cause(s.Context()) != nil {
			t.Fatalf("the session has %d paths and the cause %v", n, context.Cause(s.Context()))
		}
	}
	st, err := w.client.OpenStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, st, []byte("alive"))
	peer, err := w.server.AcceptStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantRead(t, "the session that was attacked", peer, []byte("alive"))
}

// What a client may try with tokens, with the alert that it gets.
func TestJoinViolations(t *testing.T) {
	for _, test := range []struct {
		name string
		do   func(t *testing.T, w *world) *thief
		want tls13.Alert // close_notify: the handshake completes, and joins nothing
	}{
		{"a token that was changed", func(t *testing.T, w *world) *thief {
			token, secret := w.token(t)
			changed := bytes.Clone(token)
			changed[0] ^= 1
			return w.thief(t, changed, secret, nil)
		}, 0},
		{"a token cut short", func(t *testing.T, w *world) *thief {
			token, secret := w.token(t)
			return w.thief(t, token[:tokenLen-1], secret, nil)
		}, 0},
		{"no offer of TCPLS", func(t *testing.T, w *world) *thief {
			token, secret := w.token(t)
			return w.thief(t, token, secret, func(c *tls13.Config) { c.Offer = nil })
		}, 0},
		{"a malformed offer", func(t *testing.T, w *world) *thief {
			token, secret := w.token(t)
			return w.thief(t, token, secret, func(c *tls13.Config) { c.Offer = []byte{9} })
		}, tls13.AlertDecodeError},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, memnet.Link{}, nil)
				synctest.Wait() // the tokens have come
				f := test.do(t, w)
				err := f.handshake()
				var theirs *tls13.AlertError
				switch {
				case test.want == 0 && (err != nil || f.engine.PSKUsed() != nil):
					t.Errorf("the handshake has used the PSK %x and ended by %v, want one without", f.engine.PSKUsed(), err)
				case test.want != 0 && (!errors.As(err, &theirs) || theirs.Alert != test.want):
					t.Errorf("the handshake has ended by %v, want the alert %v", err, test.want)
				}
				_ = f.conn.Close()
				w.wantUntouched(t)
				w.addPath(t) // the tokens are as good as before
			})
		})
	}
}

// A token joins once: what an observer sees of a join is of no use, neither
// before it is complete nor behind it, nor behind the end of the session.
func TestSpentTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, memnet.Link{}, nil)
		synctest.Wait()
		token, secret := w.token(t)
		refused := func(what string, f *thief) {
			t.Helper()
			var theirs *tls13.AlertError
			if err := f.handshake(); !errors.As(err, &theirs) || theirs.Alert != tls13.AlertHandshakeFailure {
				t.Errorf("%s: %v, want the alert handshake_failure", what, err)
			}
			_ = f.conn.Close()
		}

		// Two handshakes with one token: the first that is complete has it.
		first, second := w.thief(t, token, secret, nil), w.thief(t, token, secret, nil)
		for _, f := range []*thief{first, second} {
			for !f.engine.HandshakeComplete() {
				if err := f.exchange(); err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, f := range []*thief{first, second} {
			if _, err := f.conn.Write(f.engine.Output()); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if n := len(w.server.Paths()); n != 2 {
			t.Errorf("%d paths after one token was used twice at once, want 2", n)
		}
		_ = second.conn.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := io.ReadAll(second.conn); err != nil {
			t.Errorf("the second connection isn't closed: %v", err)
		}
		refused("a third time", w.thief(t, token, secret, nil))
		refused("with another secret", w.thief(t, token, make([]byte, 32), nil))

		unused, _ := w.token(t)
		_ = w.client.CloseWithError(0, "done")
		<-w.server.Context().Done()
		synctest.Wait()
		refused("behind the session's end", w.thief(t, unused, make([]byte, 32), nil))
	})
}

// A wrong Finished, or none, spends no token.
func TestUnfinishedJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, memnet.Link{}, nil)
		synctest.Wait()
		token, secret := w.token(t)
		f := w.thief(t, token, secret, nil)
		for !f.engine.HandshakeComplete() {
			if err := f.exchange(); err != nil {
				t.Fatal(err)
			}
		}
		out := bytes.Clone(f.engine.Output())
		out[len(out)-1] ^= 1
		if _, err := f.conn.Write(out); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		_ = f.conn.Close()
		w.wantUntouched(t)
		again := w.thief(t, token, secret, nil)
		if err := again.handshake(); err != nil || again.engine.PSKUsed() == nil {
			t.Errorf("the token can't be used any more: %v", err)
		}
		synctest.Wait()
		if n := len(w.server.Paths()); n != 2 {
			t.Errorf("%d paths after the join, want 2", n)
		}
	})
}

// A path more than MaxPaths is refused while the client can be told.
func TestPathTooMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, memnet.Link{}, func(_, server *Config) { server.MaxPaths = 3 })
		synctest.Wait()
		w.addPath(t)
		w.addPath(t)
		synctest.Wait() // the server has them too
		token, secret := w.token(t)
		f := w.thief(t, token, secret, nil)
		var theirs *tls13.AlertError
		if err := f.handshake(); !errors.As(err, &theirs) || theirs.Alert != tls13.AlertHandshakeFailure {
			t.Errorf("one path more than MaxPaths: %v, want the alert handshake_failure", err)
		}
		synctest.Wait()
		if n := len(w.server.Paths()); n != 3 {
			t.Errorf("%d paths, want 3", n)
		}
	})
}

// Joins that come at once don't get past MaxPaths together, and their
// tokens are made up for.
func TestPathsTooManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, wideLink, func(_, server *Config) { server.MaxPaths = 3 })
		time.Sleep(time.Second)
		var all sync.WaitGroup
		for range 6 {
			all.Go(func() { _, _ = w.client.AddPath(t.Context(), PathSpec{}) }) // judged by what the server has
		}
		all.Wait()
		time.Sleep(time.Second)
		if n := len(w.server.Paths()); n != 3 {
			t.Errorf("%d paths, want 3", n)
		}
		w.server.mu.Lock()
		defer w.server.mu.Unlock()
		if n := len(w.server.tickets.unused); n != maxTokens {
			t.Errorf("%d tokens can be used, want %d", n, maxTokens)
		}
	})
}

// Whoever answers a join without the session's secret, or without TCPLS, is not
// the session's server, whatever certificate it has.
func TestJoinOfAnotherServer(t *testing.T) {
	for _, test := range []struct {
		name   string
		answer func([]byte) ([]byte, error)
	}{
		{"another server with TCPLS", func([]byte) ([]byte, error) { return wire.AppendAnswer(nil, generous), nil }},
		{"a server without TCPLS", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, memnet.Link{}, nil)
				synctest.Wait()
				near, far := memnet.Pipe(memnet.Link{})
				engine, err := tls13.NewServer(&tls13.Config{TLS: w.server.cfg.TLS, Extension: wire.ExtensionType, Answer: test.answer})
				if err != nil {
					t.Fatal(err)
				}
				joined := begun(func() error {
					_, err := w.client.JoinPath(t.Context(), near)
					return err
				})
				f := &thief{conn: far, engine: engine}
				for !engine.HandshakeComplete() {
					if err := f.exchange(); err != nil {
						t.Fatal(err)
					}
				}
				if err := <-joined; !errors.Is(err, ErrJoinRefused) {
					t.Errorf("JoinPath: %v, want ErrJoinRefused", err)
				}
				_ = far.SetReadDeadline(time.Now().Add(time.Minute))
				if _, err := io.ReadAll(far); err != nil {
					t.Errorf("the connection isn't closed: %v", err)
				}
				w.wantUntouched(t)
				w.addPath(t)
			})
		})
	}
}

// A server that selects the PSK without knowing it can't go on.
func TestJoinWithoutSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, memnet.Link{}, nil)
		synctest.Wait()
		near, far := memnet.Pipe(memnet.Link{})
		joined := begun(func() error {
			_, err := w.client.JoinPath(t.Context(), near)
			return err
		})
		// A server that believes any binder can't be had: it selects the PSK of
		// a handshake of its own, and sends that to the client.
		hello := make([]byte, 16<<10)
		n, err := far.Read(hello)
		if err != nil {
			t.Fatal(err)
		}
		engine, err := tls13.NewServer(&tls13.Config{TLS: w.server.cfg.TLS})
		if err != nil {
			t.Fatal(err)
		}
		plain := editHello(hello[:record.HeaderLen+record.ParseHeader(hello[:n]).Len], without(41))
		if _, err := engine.Feed(plain); err != nil {
			t.Fatal(err)
		}
		out := bytes.Clone(engine.Output())
		head := record.HeaderLen + record.ParseHeader(out).Len
		selected := editHello(out[:head], with(helloExtension{41, []byte{0, 0}}))
		if _, err := far.Write(append(selected, out[head:]...)); err != nil {
			t.Fatal(err)
		}
		var broken *tls13.Error
		if err := <-joined; !errors.As(err, &broken) || broken.Alert != tls13.AlertBadRecordMAC {
			t.Errorf("JoinPath: %v, want one of the alert bad_record_mac", err)
		}
		w.wantUntouched(t)
		w.addPath(t)
	})
}

// What breaks the rules of TLS on a further path ends that path, by the alert
// that is due, and harms nothing else.
func TestViolationsOnFurtherPath(t *testing.T) {
	for _, test := range []struct {
		name  string
		alert tls13.Alert
		do    func(f *thief, own *record.Context)
	}{
		{"a forged record", tls13.AlertBadRecordMAC, func(f *thief, own *record.Context) {
			rec := f.sealed(own, framed(nil), wire.TypeFrames)
			rec[len(rec)-1] ^= 1
			f.send(rec...)
		}},
		{"a record twice", tls13.AlertBadRecordMAC, func(f *thief, own *record.Context) {
			rec := f.sealed(own, framed(nil), wire.TypeFrames)
			f.send(append(rec, rec...)...)
		}},
		{"a record of path 0's context", tls13.AlertBadRecordMAC, func(f *thief, own *record.Context) {
			f.send(f.sealed(record.NewContext(own.Keys(), wire.FirstPath), framed(nil), wire.TypeFrames)...)
		}},
		{"a record of the control context, which isn't attached", tls13.AlertBadRecordMAC, func(f *thief, own *record.Context) {
			f.send(f.sealed(record.NewContext(own.Keys(), wire.Control), framed(nil), wire.TypeFrames)...)
		}},
		{"a record of the join's own keys", tls13.AlertBadRecordMAC, func(f *thief, _ *record.Context) {
			keys, _ := f.engine.TakeKeys()
			f.send(f.sealed(record.NewContext(keys, 0), framed(nil), wire.TypeFrames)...)
		}},
		{"a record longer than TLS allows", tls13.AlertRecordOverflow, func(f *thief, _ *record.Context) { f.send(23, 3, 3, 0x41, 1) }},
		{"a record in the clear", tls13.AlertUnexpectedMessage, func(f *thief, _ *record.Context) { f.send(22, 3, 3, 0, 1, 0) }},
		{"an alert in the clear", tls13.AlertUnexpectedMessage, func(f *thief, _ *record.Context) { f.send(21, 3, 3, 0, 2, 2, 40) }},
		{"ChangeCipherSpec", tls13.AlertUnexpectedMessage, func(f *thief, _ *record.Context) { f.send(20, 3, 3, 0, 1, 1) }},
		{"an alert of a bad level", tls13.AlertIllegalParameter, func(f *thief, own *record.Context) {
			f.send(f.sealed(own, []byte{3, 40}, record.Alert)...)
		}},
		{"an unknown inner type", tls13.AlertUnexpectedMessage, func(f *thief, own *record.Context) {
			f.send(f.sealed(own, []byte{1}, 99)...)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, memnet.Link{}, nil)
				synctest.Wait()
				token, secret := w.token(t)
				i, _ := joins.find(token)
				f := w.thief(t, token, secret, nil)
				if err := f.handshake(); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if n := len(w.server.Paths()); n != 2 {
					t.Fatalf("%d paths after the join, want 2", n)
				}
				test.do(f, record.NewContext(w.client.keys.send.Load(), wire.PathContext(i.path)))
				_ = f.conn.SetReadDeadline(time.Now().Add(time.Minute))
				rest, err := io.ReadAll(f.conn)
				if err != nil {
					t.Errorf("the path isn't closed: %v", err)
				}
				f.raw = append(f.raw, rest...)
				heard := record.NewContext(w.server.keys.send.Load(), wire.PathContext(i.path))
				var last []byte
				for len(f.raw) >= record.HeaderLen {
					rec := f.raw[:record.HeaderLen+record.ParseHeader(f.raw).Len]
					f.raw = f.raw[len(rec):]
					content, typ, err := heard.Open(make([]byte, len(rec)), rec)
					switch {
					case err != nil:
						t.Fatal(err)
					case last != nil:
						t.Error("a record behind the alert")
					case typ == record.Alert:
						last = content
					}
				}
				if !bytes.Equal(last, []byte{levelFatal, byte(test.alert)}) {
					t.Errorf("alert %v, want %v", last, test.alert)
				}
				w.wantUntouched(t)
			})
		})
	}
}

func (f *thief) send(b ...byte) { _, _ = f.conn.Write(b) } // a victim that is gone is judged by what it said

func (f *thief) sealed(ctx *record.Context, content []byte, t record.Type) []byte {
	b := make([]byte, record.HeaderLen, record.Overhead+len(content))
	rec, err := ctx.Seal(append(b, content...), t)
	if err != nil {
		panic(err)
	}
	return rec
}

package tcpls

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
	"github.com/go-tcpls/tcpls/internal/tls13"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// tryJoin makes the handshake of a join with any token and secret, and returns
// how it ended: nil if the server took it.
func (w *world) tryJoin(t *testing.T, identity, secret []byte) error {
	t.Helper()
	conn, err := w.client.dial(t.Context(), PathSpec{})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	engine, err := tls13.NewClient(&tls13.Config{
		TLS: w.client.cfg.TLS, Extension: wire.ExtensionType, Offer: wire.AppendOffer(nil),
		PSK: &tls13.PSK{Identity: identity, Secret: secret, Suite: w.client.engine.Suite()},
	})
	if err != nil {
		t.Fatal(err)
	}
	var have []byte
	buf := make([]byte, 16<<10)
	_ = conn.SetDeadline(time.Now().Add(time.Minute)) // Read tells if it fails
	for {
		if _, err := conn.Write(engine.Output()); err != nil {
			return err
		}
		if engine.HandshakeComplete() {
			if engine.PSKUsed() == nil {
				return errors.New("a full handshake")
			}
			_, err := conn.Read(buf) // the session's PING, or the end of it
			return err
		}
		n, err := conn.Read(buf)
		if err != nil {
			return err
		}
		have = append(have, buf[:n]...)
		n, err = engine.Feed(have)
		if err != nil {
			return err
		}
		have = have[n:]
	}
}

// Only who holds the session's secret can join it, and with each token once.
func TestHostileJoins(t *testing.T) {
	for _, test := range []struct {
		name string
		join func(t *testing.T, w *world) error
		want error
	}{
		{"a stolen token", func(t *testing.T, w *world) error {
			stolen := w.client.tickets.unused[0].bytes
			err := w.tryJoin(t, stolen, bytes.Repeat([]byte{1}, 32))
			if _, known := joins.find(stolen); !known {
				t.Error("who only saw the token has spent it")
			}
			return err
		}, &tls13.AlertError{Alert: tls13.AlertDecryptError}},
		{"a token with another's secret", func(t *testing.T, w *world) error {
			secret, err := w.client.tokenSecret(w.client.tickets.unused[1].bytes)
			if err != nil {
				t.Fatal(err)
			}
			return w.tryJoin(t, w.client.tickets.unused[0].bytes, secret)
		}, &tls13.AlertError{Alert: tls13.AlertDecryptError}},
		{"a token a second time", func(t *testing.T, w *world) error {
			spent := w.client.tickets.unused[0].bytes
			w.addPath(t)
			synctest.Wait() // until the server has taken the join
			secret, err := w.client.tokenSecret(spent)
			if err != nil {
				t.Fatal(err)
			}
			return w.tryJoin(t, spent, secret)
		}, &tls13.AlertError{Alert: tls13.AlertHandshakeFailure}},
		{"a token of a session that has ended", func(t *testing.T, w *world) error {
			old := w.client.tickets.unused[0].bytes
			secret, err := w.client.tokenSecret(old)
			if err != nil {
				t.Fatal(err)
			}
			_ = w.server.CloseWithError(0, "done")
			<-w.client.Context().Done()
			return w.tryJoin(t, old, secret)
		}, &tls13.AlertError{Alert: tls13.AlertHandshakeFailure}},
		{"a token nobody gave", func(t *testing.T, w *world) error {
			return w.tryJoin(t, bytes.Repeat([]byte{7}, tokenLen), bytes.Repeat([]byte{1}, 32))
		}, errors.New("a full handshake")}, // as with a ticket that isn't known: a new session, and not this one
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, memnet.Link{}, nil)
				c, s := openStream(t, w.client, w.server)
				synctest.Wait()
				paths := len(w.server.Paths())
				err := test.join(t, w)
				if err == nil || err.Error() != test.want.Error() {
					t.Errorf("the join ended by %v, want %v", err, test.want)
				}
				if w.server.Context().Err() != nil {
					return
				}
				if n := len(w.server.Paths()); n > paths+1 || n > len(w.client.Paths()) {
					t.Errorf("the session has %d paths", n)
				}
				if _, err := c.Write([]byte("on")); err != nil {
					t.Error("the session noticed:", err)
				}
				wantRead(t, "what goes on", s, []byte("on"))
			})
		})
	}
}

// A client has MaxPaths paths at most, however many tokens it has.
func TestMaxPaths(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, memnet.Link{}, func(_, server *Config) { server.MaxPaths = 3 })
		c, s := openStream(t, w.client, w.server)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		for range 10 {
			_, _ = w.client.AddPath(ctx, PathSpec{}) // some must fail, now or soon
			synctest.Wait()
			if n := len(w.server.Paths()); n > 3 {
				t.Fatalf("the server has %d paths, 3 are allowed", n)
			}
		}
		if n := len(w.server.Paths()); n != 3 {
			t.Errorf("the server has %d paths, which proves nothing", n)
		}
		if _, err := c.Write([]byte("on")); err != nil {
			t.Error("the session noticed:", err)
		}
		wantRead(t, "what goes on", s, []byte("on"))
	})
}

// A server that has the right certificate and doesn't know the session isn't
// joined.
func TestJoinElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, memnet.Link{}, nil)
		openStream(t, w.client, w.server)
		synctest.Wait() // for tokens
		_, server := newTestConfigs()
		elsewhere := memnet.Listen(memnet.Link{})
		l, err := NewListener(elsewhere, server)
		if err != nil {
			t.Fatal(err)
		}
		w.client.mu.Lock()
		for i := range w.client.tickets.unused {
			w.client.tickets.unused[i].bytes = bytes.Repeat([]byte{7}, tokenLen) // which this process hasn't made
		}
		w.client.mu.Unlock()
		conn, err := elsewhere.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.client.JoinPath(t.Context(), conn)
		wantErrorIs(t, "a server that can't know the session", err, ErrJoinRefused)
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if n := len(w.client.Paths()); n != 1 {
			t.Errorf("the client has %d paths", n)
		}
	})
}

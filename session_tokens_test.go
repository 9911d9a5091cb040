package tcpls

import (
	"bytes"
	"context"
	"net"
	"testing"
	"testing/synctest"

	"github.com/go-tcpls/tcpls/internal/memnet"
)

// A lateConn holds back everything behind the first flight, until it is told.
type lateConn struct {
	*memnet.Conn
	writes int
}

func (c *lateConn) Write(p []byte) (int, error) {
	if c.writes++; c.writes == 2 {
		c.StallSend(true)
	}
	return c.Conn.Write(p)
}

// lateWorld opens a client's session whose server hasn't got the Finished.
func lateWorld(t *testing.T) (w *world, late *lateConn) {
	t.Helper()
	client, server := newTestConfigs()
	client.MaxPaths, server.MaxPaths = 0, 0
	inner := memnet.Listen(memnet.Link{})
	w = &world{}
	var err error
	if w.listener, err = NewListener(inner, server); err != nil {
		t.Fatal(err)
	}
	d := &Dialer{Config: client, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, err := inner.Dial(ctx)
		if err != nil {
			return nil, err
		}
		if late == nil {
			late = &lateConn{Conn: conn}
			return late, nil
		}
		return conn, nil
	}}
	if w.client, err = d.Dial(t.Context(), "tcp", "localhost:443"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = w.client.Close() // the test has judged what it wanted to
		_ = w.listener.Close()
	})
	return w, late
}

func knownTokens() int {
	joins.mu.Lock()
	defer joins.mu.Unlock()
	return len(joins.tokens)
}

// A client can join as soon as its handshake is complete, even if its join
// overtakes its Finished.
func TestJoinAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, late := lateWorld(t)
		joined := begun(func() error {
			_, err := w.client.AddPath(t.Context(), PathSpec{})
			return err
		})
		synctest.Wait()
		wantBlocked(t, "a join of a session that the server doesn't have yet", joined)
		late.StallSend(false)
		if err := <-joined; err != nil {
			t.Fatal(err)
		}
		s, err := w.listener.Accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		synctest.Wait()
		if n := len(s.Paths()); n != 2 {
			t.Errorf("the server has %d paths", n)
		}
	})
}

// A handshake that fails leaves no token behind, and nobody waiting.
func TestTokensOfFailedHandshake(t *testing.T) {
	t.Run("lost", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			before := knownTokens()
			w, late := lateWorld(t)
			if n := knownTokens() - before; n != firstTokens {
				t.Fatalf("%d tokens are known, want %d", n, firstTokens)
			}
			joined := begun(func() error {
				_, err := w.client.AddPath(t.Context(), PathSpec{})
				return err
			})
			synctest.Wait()
			late.Reset()
			if err := <-joined; err == nil {
				t.Error("the join has succeeded")
			}
			if n := knownTokens(); n != before {
				t.Errorf("%d tokens are left", n-before)
			}
		})
	})
	t.Run("refused", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			before := knownTokens()
			client, server := newTestConfigs()
			client.TLS.ServerName, server.MaxPaths = "example.com", 0
			near, far := memnet.Pipe(memnet.Link{})
			served := begun(func() error {
				_, err := Server(t.Context(), far, server)
				return err
			})
			if _, err := Client(t.Context(), near, client); err == nil {
				t.Error("the wrong name is accepted")
			}
			if err := <-served; err == nil {
				t.Error("the server has a session")
			}
			if n := knownTokens(); n != before {
				t.Errorf("%d tokens are left", n-before)
			}
		})
	})
}

// A session that is resumed has tokens of its own: those that came with the
// remembered answer are another session's.
func TestTokensAreNotResumed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newEarlyWorld(t, func(client, server *Config) { client.MaxPaths, server.MaxPaths = 0, 0 })
		first := w.dial(t)
		old := bytes.Clone(first.tickets.unused[0].bytes)
		s := w.accept(t)
		if _, err := first.Ping(t.Context()); err != nil { // the tickets were sent before
			t.Fatal(err)
		}
		closeBoth(t, first, s)

		c := w.dial(t)
		if c.EarlyData() != EarlyDataPending || len(c.tickets.unused) != 0 {
			t.Fatalf("early data %v, with %d tokens", c.EarlyData(), len(c.tickets.unused))
		}
		st, err := c.OpenStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		mustWrite(t, st, []byte("early"))
		s = w.accept(t)
		if err := c.Handshake(t.Context()); err != nil {
			t.Fatal(err)
		}
		if c.EarlyData() != EarlyDataAccepted {
			t.Errorf("early data %v", c.EarlyData())
		}
		if _, err := c.AddPath(t.Context(), PathSpec{}); err != nil {
			t.Errorf("a path with the first token: %v", err)
		}
		c.mu.Lock()
		for _, u := range c.tickets.unused {
			if bytes.Equal(u.bytes, old) {
				t.Error("a token of the session before")
			}
		}
		c.mu.Unlock()
		closeBoth(t, c, s)
	})
}

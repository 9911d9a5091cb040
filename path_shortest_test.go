package tcpls

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
)

// shortBeside returns a session whose main path is long and whose other path is
// short. What may be on its way is little, so that the sender waits for credit.
func shortBeside(t *testing.T) *world {
	w := newWorld(t, mbit(100, 200*time.Millisecond), func(client, server *Config) {
		for _, c := range []*Config{client, server} {
			c.Mode = ModeAggregate
			c.StreamRecvWindow, c.StreamRecvMax = 256<<10, 256<<10
		}
	})
	w.inner.SetLink(mbit(100, 5*time.Millisecond))
	w.addPath(t)
	time.Sleep(time.Second)
	return w
}

// Credit comes on the shortest path, whichever was the first one.
func TestCreditOnTheShortestPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := shortBeside(t)
		want := testBytes(1, 8<<20)
		began := time.Now()
		st, peer, sent := startTransfer(t, w.server, w.client, want)
		wantRead(t, "the transfer", peer, want)
		took := time.Since(began)
		t.Logf("%d bytes, %d at a time, took %v", len(want), 256<<10, took)
		if took > 2*time.Second { // 64 times half of a window and 205 ms
			t.Errorf("the transfer took %v, as if credit came on the long path", took)
		}
		if err := errors.Join(<-sent, st.Flush(t.Context())); err != nil {
			t.Error(err)
		}
	})
}

// What was said on it is said again when it fails, or is silent.
func TestShortestIsCut(t *testing.T) {
	for name, cut := range breaks {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := shortBeside(t)
				want := testBytes(1, 8<<20)
				st, peer, sent := startTransfer(t, w.server, w.client, want)
				wantRead(t, "before the cut", peer, want[:2<<20])
				if v := w.client.path(); v.ID() != 1 {
					t.Errorf("words go on path %d, want the short one", v.ID())
				}
				cut(w.conn(1))
				began := time.Now()
				wantRead(t, "after the cut", peer, want[2<<20:3<<20])
				if took := time.Since(began); took > 6*time.Second { // 8 turns of credit on the long path, and the silence
					t.Errorf("the next MiB took %v", took)
				}
				wantRead(t, "after the cut", peer, want[3<<20:])
				if v := w.client.path(); v.ID() != 0 {
					t.Errorf("words go on path %d, want the long one", v.ID())
				}
				wantEOF(t, "after all", peer)
				if err := errors.Join(<-sent, st.Flush(t.Context())); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// So does credit that was said last, when the sender waits for nothing else.
func TestCreditIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := shortBeside(t)
		want := testBytes(1, 1<<20)
		_, peer, sent := startTransfer(t, w.server, w.client, want)
		time.Sleep(time.Second) // a window has arrived, and is acknowledged
		if n := w.server.gate.unacknowledged(); n > 0 {
			t.Errorf("%d bytes aren't acknowledged", n)
		}
		w.conn(1).StallSend(true)
		began := time.Now()
		wantRead(t, "after the cut", peer, want)
		if took := time.Since(began); took > suspectTime/2 {
			t.Errorf("the rest took %v", took)
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
	})
}

// Where one path is in use at a time, that is the application's choice.
func TestLongMainPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, mbit(100, 200*time.Millisecond), nil)
		w.inner.SetLink(memnet.Link{Delay: 5 * time.Millisecond})
		w.addPath(t)
		want := testBytes(1, 1<<20)
		_, peer, sent := startTransfer(t, w.server, w.client, want)
		wantRead(t, "the transfer", peer, want)
		if err := <-sent; err != nil {
			t.Error(err)
		}
		if v := w.client.path(); v.ID() != 0 {
			t.Errorf("words go on path %d, want the main one", v.ID())
		}
	})
}

// The peer follows the application's choice, whatever else has become the main
// path.
func TestUseOfThird(t *testing.T) {
	for _, mode := range []Mode{ModeFailover, ModeAggregate} {
		t.Run(mode.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, mbit(100, 200*time.Millisecond), func(client, server *Config) {
					client.Mode, server.Mode = mode, mode
				})
				w.inner.SetLink(mbit(100, 5*time.Millisecond))
				w.addPath(t)
				w.inner.SetLink(mbit(100, 195*time.Millisecond))
				third := w.addPath(t)
				for _, p := range []*Path{third, w.client.Paths()[0]} {
					time.Sleep(10 * time.Second)
					if err := p.Use(); err != nil {
						t.Fatal(err)
					}
					time.Sleep(10 * time.Second)
					if got := w.server.path().ID(); got != p.ID() {
						t.Errorf("the client uses path %d, its server %d", p.ID(), got)
					}
				}
			})
		})
	}
}

// A migration to a path that becomes the main one by itself leaves the old one too.
func TestMigrateToShortest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, mbit(100, 200*time.Millisecond), func(client, _ *Config) { client.Mode = ModeAggregate })
		w.inner.SetLink(mbit(100, 5*time.Millisecond))
		p, err := w.client.Migrate(t.Context(), PathSpec{})
		if err != nil {
			t.Fatal(err)
		}
		if paths := w.client.Paths(); len(paths) != 1 || paths[0] != p {
			t.Errorf("the session has %d paths, and uses %d", len(paths), w.client.path().ID())
		}
	})
}

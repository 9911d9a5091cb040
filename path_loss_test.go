package tcpls

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
	"github.com/go-tcpls/tcpls/internal/wire"
	"github.com/go-tcpls/tcpls/sched"
)

// wantAlive checks that bytes get through in both directions.
func (w *world) wantAlive(t *testing.T, why string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	c, err := w.client.OpenStream(ctx)
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", why, err, describe(w.client), describe(w.server))
	}
	deadline := time.Now().Add(5 * time.Minute)
	_ = c.SetDeadline(deadline) // of a stream that was just opened
	want := testBytes(7, 100<<10)
	sent := begun(func() error {
		_, err := c.Write(want)
		return errors.Join(err, c.CloseWrite())
	})
	s, err := w.server.AcceptStream(ctx)
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", why, err, describe(w.client), describe(w.server))
	}
	_ = s.SetDeadline(deadline)
	wantRead(t, why, s, want)
	if err := <-sent; err != nil {
		t.Fatalf("%s: %v", why, err)
	}
	mustWrite(t, s, want)
	_ = s.Close() // nothing is wrong with it
	wantRead(t, why, c, want)
	wantEOF(t, why, c)
	_ = c.Close() // likewise
}

// Twenty breaks in a row, each of the path in use, by each cause and without
// another path: the session finds a new one each time.
func TestRepeatedBreaks(t *testing.T) {
	for name, cut := range breaks {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, wideLink, func(client, server *Config) { server.MaxPaths = 3 })
				for i := range 20 {
					w.wantAlive(t, fmt.Sprintf("after %d breaks", i))
					for i := range w.dialed() {
						cut(w.conn(i))
					}
				}
				w.wantAlive(t, "after all")
			})
		})
	}
}

// Joins of which either end believes that they went well, and the other
// doesn't, don't leave the client without tokens.
func TestUnheardJoins(t *testing.T) {
	for _, test := range []struct {
		name  string
		times int
		cut   func(c *memnet.Conn)
	}{
		{"the client's last words are lost", 30, func(c *memnet.Conn) { c.StallSend(true) }},
		{"all is lost", 30, func(c *memnet.Conn) { c.Stall(true) }},
		{"RST", 30, func(c *memnet.Conn) { c.Reset() }},
		{"the server's first words are lost", 30, func(c *memnet.Conn) { c.Peer().StallSend(true) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, memnet.Link{Delay: 20 * time.Millisecond}, nil)
				w.wantAlive(t, "at first")
				time.Sleep(time.Second) // until the client has all tokens
				w.conn(0).Reset()
				for i := 1; i <= test.times; i++ {
					for w.dialed() == i {
						time.Sleep(time.Millisecond)
					}
					time.Sleep(45 * time.Millisecond) // when Finished is on its way
					test.cut(w.conn(i))
				}
				w.wantAlive(t, "after joins that came to nothing")
			})
		})
	}
}

// A session that loses its first path before it has more tokens than those of its
// handshake gets others with each join that the server takes.
func TestTokensOfJoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, memnet.Link{Delay: 20 * time.Millisecond}, func(client, server *Config) {
			client.PathTimeout, server.PathTimeout = 200*time.Millisecond, 200*time.Millisecond // four joins
		})
		w.conn(0).Peer().StallSend(true)
		for i := range 2 * maxTokens {
			conn, err := w.client.dial(t.Context(), PathSpec{})
			if err != nil {
				t.Fatal(err)
			}
			spent, err := w.client.takeToken(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			h, err := joinHandshake(t.Context(), conn, w.client, spent)
			if err != nil {
				t.Fatalf("join %d: %v", i, err)
			}
			w.client.keepNext(h.peer.Tokens)
			w.conn(w.dialed() - 1).Peer().StallSend(true)
			time.Sleep(50 * time.Millisecond)
			_ = conn.Close() // it has done its duty
		}
		time.Sleep(50 * time.Millisecond)
		w.server.mu.Lock()
		if n := len(w.server.control.tokens); n > maxTokens {
			t.Errorf("the server is about to give %d tokens, want %d at most", n, maxTokens)
		}
		w.server.mu.Unlock()
		w.conn(0).Reset()
		w.wantAlive(t, "after joins whose first words were lost")
		time.Sleep(time.Second)
		w.client.mu.Lock()
		defer w.client.mu.Unlock()
		if n := len(w.client.tickets.unused); n != maxTokens {
			t.Errorf("the client has %d tokens, want %d", n, maxTokens)
		}
	})
}

// Joins that are made at once, with all tokens that there are, and come to nothing,
// bring as many new ones.
func TestTokensOfJoinsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, memnet.Link{Delay: 20 * time.Millisecond}, func(_, server *Config) { server.MaxPaths = maxTokens + 2 })
		w.conn(0).Peer().StallSend(true)
		for range 4 {
			var all sync.WaitGroup
			for range firstTokens {
				conn, err := w.client.dial(t.Context(), PathSpec{})
				if err != nil {
					t.Fatal(err)
				}
				all.Go(func() {
					if spent, err := w.client.takeToken(t.Context()); err != nil {
						t.Error(err)
					} else if h, err := joinHandshake(t.Context(), conn, w.client, spent); err != nil {
						t.Error(err)
					} else {
						w.client.keepNext(h.peer.Tokens)
					}
					conn.(*memnet.Conn).Peer().StallSend(true)
					time.Sleep(50 * time.Millisecond)
					_ = conn.Close() // it has done its duty
				})
			}
			all.Wait()
		}
		w.conn(0).Reset()
		w.wantAlive(t, "after joins whose first words were lost")
	})
}

// However many tokens come with joins, some are kept, and those first that weren't
// tried.
func TestTokensLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, memnet.Link{}, nil)
		synctest.Wait()
		s := w.client
		for path := uint32(100); path < 1<<16; path += 13 {
			s.keepNext([]wire.PathToken{{Path: path, Token: make([]byte, tokenLen)}})
			s.keepNext([]wire.PathToken{{Path: path, Token: make([]byte, tokenLen)}}) // which it knows
			s.mu.Lock()
			s.tickets.unused[0].tried = path%2 == 0
			s.mu.Unlock()
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if k := &s.tickets; len(k.seen) > 1<<10 || len(k.unused) != mostTokens {
			t.Errorf("%d tokens are kept, want %d, and %d bytes of numbers", len(k.unused), mostTokens, 8*len(k.seen))
		}
	})
}

// A server keeps no more tokens for joins that never come to their end.
func TestTokensOfHandshakesLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, memnet.Link{}, nil)
		synctest.Wait()
		s := w.server
		path := uint16(1)
		for range 10 * mostTokens {
			next := s.nextToken(path)
			if again := s.nextToken(path); len(next) != len(again) || len(next) > 0 && next[0].Path != again[0].Path {
				t.Fatalf("the token of path %d goes with %v, and then with %v", path, next, again)
			}
			if len(next) == 0 {
				break
			}
			path = uint16(next[0].Path)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if n := len(s.tickets.unused); n != mostTokens {
			t.Errorf("%d tokens can be used, want %d", n, mostTokens)
		}
	})
}

// Records that are sent again may have later ones behind them that the same path
// has carried before. What is written then says where it belongs, and the path
// doesn't break.
func TestResendBeforeOthers(t *testing.T) {
	for _, mode := range []Mode{ModeFailover, ModeAggregate, ModeRedundant} {
		t.Run(mode.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, wideLink, func(client, server *Config) { client.Mode, server.Mode = mode, mode })
				next := w.addPath(t)
				st, peer := openStream(t, w.client, w.server)
				want := testBytes(1, 120<<10)
				w.conn(0).Stall(true)
				mustWrite(t, st, want[:40<<10])
				if err := next.Use(); err != nil {
					t.Fatal(err)
				}
				mustWrite(t, st, want[40<<10:80<<10])
				time.Sleep(segmentTime)
				w.conn(0).Reset()
				time.Sleep(time.Second)
				mustWrite(t, st, want[80<<10:])
				wantRead(t, "over both paths", peer, want)
				if state := next.State(); state != PathActive {
					t.Errorf("the path that took over is %v", state)
				}
			})
		})
	}
}

// A session that is closed in the moment in which its main path fails tells its
// peer on the other one, instead of leaving it to wait for another path.
func TestCloseWhilePathFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, memnet.Link{Delay: 20 * time.Millisecond}, nil)
		p := w.client.path()
		w.addPath(t)
		why := errors.New("cut")
		if !w.client.lose(p) {
			t.Fatal("the path had failed before")
		}
		p.abandon()
		synctest.Wait()
		closed := begun(func() error { return w.client.CloseWithError(7, "over") })
		synctest.Wait()
		w.client.goOn(p, why)
		began := time.Now()
		<-w.server.Context().Done()
		var e *SessionError
		if err := context.Cause(w.server.Context()); !errors.As(err, &e) || e.Code != 7 {
			t.Errorf("the server's session ended by %v, want code 7", err)
		}
		if took := time.Since(began); took > 20*time.Millisecond {
			t.Errorf("the server heard of it after %v, want the link's 20ms", took)
		}
		if err := <-closed; err != nil {
			t.Error(err)
		}
	})
}

// A path that is used again while it waits to be closed is left once more, and
// what is written doesn't wait for its end.
func TestUseWhileClosing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, wideLink, func(client, server *Config) { client.Mode = ModeAggregate })
		st, peer := openStream(t, w.client, w.server)
		first, next := w.client.path(), w.addPath(t)
		w.client.mu.Lock()
		next.confirmed = false
		w.client.mu.Unlock()
		closed := begun(func() error { return first.Close(t.Context()) })
		synctest.Wait()
		if err := first.Use(); err != nil {
			t.Fatal(err)
		}
		next.confirm()
		synctest.Wait()
		if w.client.path() == first {
			t.Error("a path that is being closed is in use")
		}
		want := testBytes(1, 1<<20)
		mustWrite(t, st, want)
		wantRead(t, "over the other path", peer, want)
		if err := <-closed; err != nil {
			t.Error(err)
		}
	})
}

// An end that gives up a path while the other closes it in peace says so, and
// gets what it hasn't read there on another one (protocol 9.8).
func TestCloseGivenUp(t *testing.T) {
	for _, room := range []int{1 << 20, 64 << 10} { // at the other end: it closes before it is told, or behind
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, wideLink, nil)
			w.addPath(t)
			server := w.conn(0).Peer()
			server.SetLink(memnet.Link{Delay: 20 * time.Millisecond, Queue: room})
			peer, st := openStream(t, w.client, w.server)
			server.StallSend(true)
			want := testBytes(1, 400<<10)
			mustWrite(t, st, want)
			ctx, cancel := context.WithTimeout(t.Context(), 70*time.Millisecond)
			defer cancel()
			wantErrorIs(t, "Close of a path", w.client.Paths()[0].Close(ctx), context.DeadlineExceeded)
			time.Sleep(70 * time.Millisecond)
			server.SetLink(memnet.Link{Queue: 1 << 20})
			_ = peer.SetReadDeadline(time.Now().Add(time.Minute)) // it is open
			wantRead(t, "what was on its way there", peer, want)
		})
	}
}

// An end that gives up a path while the other closes it in peace hears again of
// the streams that the other has forgotten by then.
func TestCloseGivenUpWithEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, wideLink, nil)
		p := w.addPath(t)
		peer, st := openStream(t, w.client, w.server)
		w.conn(0).Peer().StallSend(true)
		if err := peer.SetPath(p); err != nil {
			t.Fatal(err)
		}
		mustWrite(t, peer, []byte("all"))
		if err := errors.Join(peer.CloseWrite(), peer.CloseRead()); err != nil {
			t.Fatal(err)
		}
		wantRead(t, "over its own path", st, []byte("all"))
		wantEOF(t, "over its own path", st)
		ctx, cancel := context.WithTimeout(t.Context(), 70*time.Millisecond)
		defer cancel()
		wantErrorIs(t, "Close of a path", w.client.Paths()[0].Close(ctx), context.DeadlineExceeded)
		time.Sleep(time.Second)
		for _, s := range []*Session{w.client, w.server} {
			if n := s.gate.unacknowledged(); n != 0 {
				t.Errorf("%d bytes are still kept\n%s", n, describe(s))
			}
		}
	})
}

// A path that is closed while it sends records of another one again leaves the
// rest to the main path.
func TestCloseWhileSendingAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, wideLink, nil)
		p, next := w.addPath(t), w.addPath(t)
		other, _ := openStream(t, w.client, w.server)
		st, peer := openStream(t, w.client, w.server)
		want := testBytes(1, maxBatch+16<<10)
		w.conn(0).StallSend(true)
		mustWrite(t, st, want)
		w.conn(1).StallSend(true)
		for _, s := range []*Stream{other, st} {
			if err := s.SetPath(p); err != nil {
				t.Fatal(err)
			}
		}
		mustWrite(t, other, testBytes(2, maxUnsent-maxBatch/2))
		if err := next.Use(); err != nil {
			t.Fatal(err)
		}
		w.conn(0).Reset()
		synctest.Wait()
		if !p.replaying(st) {
			t.Fatal("the path has room for everything at once")
		}
		closed := begun(func() error { return p.Close(t.Context()) })
		synctest.Wait()
		w.conn(1).StallSend(false)
		if err := <-closed; err != nil {
			t.Fatal(err)
		}
		_ = peer.SetReadDeadline(time.Now().Add(time.Minute)) // it is open
		wantRead(t, "what three paths have had", peer, want)
	})
}

// A stream may come on a path that was joined before the client's PARAMETERS,
// which are slower. The server writes once it has them.
func TestStreamBeforeParameters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := memnet.Link{Rate: 4 << 10, Delay: 20 * time.Millisecond}
		w := newWorld(t, slow, func(client, server *Config) { client.Mode = ModeRedundant })
		w.conn(0).StallSend(true) // Finished has arrived, and what is behind it hasn't
		w.addPath(t)
		st, err := w.client.OpenStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		mustWrite(t, st, []byte("early"))
		peer, err := w.server.AcceptStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		wantRead(t, "on the path that was joined", peer, []byte("early"))
		wrote := begun(func() error { _, err := peer.Write([]byte("late")); return err })
		synctest.Wait()
		wantBlocked(t, "Write without the client's credit", wrote)
		w.conn(0).StallSend(false)
		wantRead(t, "once the PARAMETERS are there", st, []byte("late"))
		if err := <-wrote; err != nil {
			t.Error(err)
		}
	})
}

// The end of a stream is sent again though a replay of it is under way, which
// leaves out what its path has: whoever lost a path may have lost the
// acknowledgement of just that.
func TestEndsAgainDuringReplay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, wideLink, nil)
		w.addPath(t)
		peer, st := openStream(t, w.client, w.server)
		synctest.Wait()
		time.Sleep(100 * time.Millisecond) // the server knows the path too
		p := w.server.Paths()[1]
		w.conn(0).StallSend(true) // no acknowledgements
		if err := st.SetPath(p); err != nil {
			t.Fatal(err)
		}
		mustWrite(t, st, []byte("all"))
		if err := st.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		wantRead(t, "over its own path", peer, []byte("all"))
		wantEOF(t, "over its own path", peer)
		st.sendMu.Lock()
		st.replayOn = p
		st.sendMu.Unlock()
		p.replay(st)
		w.server.resendEnds()
		if n := p.resent.Load(); n != 2 {
			t.Errorf("%d records were sent again, not 2", n)
		}
		if err := st.Flush(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// A client follows a server that can't use the main path, also in the first
// second of a session, in which it has never changed paths itself.
func TestFollowInYoungSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, wideLink, nil)
		p := w.addPath(t)
		w.client.peerLeft(p, w.client.path().ID(), true)
		synctest.Wait()
		if main := w.client.path(); main != p {
			t.Errorf("the client sends on path %d, want %d", main.ID(), p.ID())
		}
	})
}

// A batch for a path that is given up between the choice of it and the sealing
// doesn't wait there until the path is closed.
func TestSuspectWhileSending(t *testing.T) {
	const batch = 64 << 10
	for name, send := range map[string]func(t *testing.T, w *world, second *Path, c *Stream){
		"while the scheduler thinks": func(t *testing.T, w *world, _ *Path, c *Stream) {
			w.client.SetScheduler(sched.Func(func(sched.Batch, []sched.Path) sched.Set {
				w.client.SetScheduler(onFirst)
				w.conn(1).Stall(true)
				time.Sleep(time.Second) // for the path to become suspect
				return sched.One(1)
			}))
			mustWrite(t, c, make([]byte, batch))
		},
		"before its records are sealed": func(t *testing.T, w *world, second *Path, c *Stream) {
			w.client.SetScheduler(sched.Func(func(sched.Batch, []sched.Path) sched.Set { return sched.One(1) }))
			w.conn(1).Stall(true)
			second.outMu.Lock()
			done := begun(func() error {
				_, err := c.Write(make([]byte, batch))
				return err
			})
			waitSealing(c)
			w.client.SetScheduler(onFirst)
			w.client.suspect(second)
			second.outMu.Unlock()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		},
		"before it takes what others have": func(t *testing.T, w *world, second *Path, c *Stream) {
			other, _ := openStream(t, w.client, w.server)
			if err := other.SetPath(second); err != nil {
				t.Fatal(err)
			}
			w.conn(1).Stall(true)
			mustWrite(t, other, make([]byte, maxUnsent-batch))
			mustWrite(t, c, make([]byte, batch))
			w.client.suspect(second)
			c.sendMu.Lock()
			defer c.sendMu.Unlock()
			c.repeatOver(second)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, wideLink, func(client, _ *Config) { client.Scheduler = onFirst })
				second := w.addPath(t)
				time.Sleep(time.Second)
				c, s := openStream(t, w.client, w.server)
				send(t, w, second, c)
				began := time.Now()
				mustWrite(t, c, make([]byte, batch))
				wantRead(t, "on the other path", s, make([]byte, 2*batch))
				if took := time.Since(began); took > 200*time.Millisecond {
					t.Errorf("two batches took %v on a path of 40 ms there and back", took)
				}
			})
		})
	}
}

// onFirst is the scheduler that knows only the first path.
var onFirst = sched.Func(func(sched.Batch, []sched.Path) sched.Set { return sched.One(0) })

// A stream whose records were to be sent again for the sake of speed alone goes
// on if that path fails, though none of them is missing any more.
func TestReplayIsStranded(t *testing.T) {
	for name, cut := range breaks {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, wideLink, nil)
				p := w.addPath(t)
				st, err := w.client.OpenStream(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				want := []byte("before, after")
				if _, err := st.Write(want[:7]); err != nil {
					t.Fatal(err)
				}
				peer, err := w.server.AcceptStream(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				wantRead(t, "before the cut", peer, want[:7])
				if err := st.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
				st.sendMu.Lock()
				st.replayOn = p // which has dropped what it was to send, as an end does
				st.sendMu.Unlock()
				st.SetDeadline(time.Now().Add(time.Minute))
				peer.SetDeadline(time.Now().Add(time.Minute))
				cut(w.conn(1))
				sent := begun(func() error { _, err := st.Write(want[7:]); return err })
				wantRead(t, "after the cut", peer, want[7:])
				if err := <-sent; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

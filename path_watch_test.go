package tcpls

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
)

// A path is given the time that its own round trip takes, and not that of the
// session's first path: a slow one that stands by isn't suspect for being slow,
// at no time, and neither is one that has become slower.
func TestPatienceIsThePaths(t *testing.T) { synctest.Test(t, testPatienceIsThePaths) }

func testPatienceIsThePaths(t *testing.T) {
	w := newWorld(t, memnet.Link{Delay: 2 * time.Millisecond}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	var observing sync.WaitGroup
	var told [2][]Event
	for i, s := range []*Session{w.client, w.server} {
		observing.Go(func() { told[i] = slices.Collect(s.Events(ctx)) })
	}
	w.inner.SetLink(memnet.Link{Delay: 200 * time.Millisecond})
	w.addPath(t)
	for range 4 {
		if _, err := w.client.OpenStream(ctx); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second) // of the bubble's
	}
	for _, slower := range []time.Duration{250 * time.Millisecond, 300 * time.Millisecond} {
		c := w.conn(1)
		c.SetLink(memnet.Link{Delay: slower})
		c.Peer().SetLink(memnet.Link{Delay: slower})
		time.Sleep(time.Minute) // some questions
	}
	cancel()
	observing.Wait()
	for _, events := range told {
		events = slices.DeleteFunc(events, func(e Event) bool { return e.Stream != nil })
		if len(events) != 1 || events[0].Kind != EventPathJoined {
			t.Errorf("one path has joined, and nothing else should have happened: %v", events)
		}
	}
}

// A timer that is late tells that this process didn't run: that time is no
// silence of the peer's.
func TestOwnAbsenceIsNoSilence(t *testing.T) {
	const second = time.Second
	for _, test := range []struct {
		name                   string
		asked, late            time.Duration
		wantHeard, wantedAsked time.Duration
	}{
		{"in time", 5 * second, 0, 4 * second, 5 * second},
		{"a little late", 5 * second, lateness - 1, 4 * second, 5 * second},
		{"early, since it was set anew", 5 * second, -second, 4 * second, 5 * second},
		{"away", 5 * second, 3 * second, 7 * second, 8 * second},
		{"away, nothing asked", 0, 3 * second, 7 * second, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := watch{asked: test.asked}
			var heard atomic.Int64
			heard.Store(int64(4 * second))
			w.excuse(&heard, test.late)
			if got := time.Duration(heard.Load()); got != test.wantHeard || w.asked != test.wantedAsked {
				t.Errorf("heard %v, asked %v; want %v and %v", got, w.asked, test.wantHeard, test.wantedAsked)
			}
		})
	}
}

// The round trip follows the answers, but one that was late, as after a cut,
// says little about it, and a peer can't make a path patient without end.
func TestPatienceLearns(t *testing.T) {
	const ms = time.Millisecond
	for _, test := range []struct {
		name              string
		before            time.Duration
		answers           []time.Duration
		patience, atLeast time.Duration
		atMost            time.Duration
	}{
		{"the first answer", 0, []time.Duration{40 * ms}, 200 * ms, 40 * ms, 40 * ms},
		{"one that is a bit slow", 40 * ms, []time.Duration{120 * ms}, 200 * ms, 41 * ms, 60 * ms},
		{"a path that is faster now", 160 * ms, slices.Repeat([]time.Duration{20 * ms}, 40), 420 * ms, 20 * ms, 30 * ms},
		{"a path that is slower now", 40 * ms, []time.Duration{400 * ms, 400 * ms}, 200 * ms, 160 * ms, 160 * ms},
		{"after a cut", 40 * ms, []time.Duration{time.Minute}, 200 * ms, 80 * ms, 80 * ms},
		{"a peer that answers too late each time", 40 * ms, slices.Repeat([]time.Duration{time.Hour}, 100), 200 * ms, maxRTT, maxRTT},
		{"an answer to nothing", 40 * ms, []time.Duration{-time.Hour, 0}, 200 * ms, 40 * ms, 40 * ms},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := watch{rtt: test.before}
			for _, took := range test.answers {
				w.learn(took, test.patience)
			}
			if w.rtt < test.atLeast || w.rtt > test.atMost {
				t.Errorf("the round trip is %v, want %v to %v", w.rtt, test.atLeast, test.atMost)
			}
		})
	}
}

// Close doesn't wait for a path that is silent, once the peer has confirmed the
// end on another one.
func TestCloseBesideASilentPath(t *testing.T) { synctest.Test(t, testCloseBesideASilentPath) }

func testCloseBesideASilentPath(t *testing.T) {
	w := newWorld(t, wideLink, nil)
	w.addPath(t)
	if _, err := w.client.OpenStream(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.conn(0).Stall(true)
	time.Sleep(10 * time.Second) // of the bubble's
	if main := w.client.path(); main.ID() != 1 {
		t.Fatalf("path %d is in use, path 0 is %v", main.ID(), w.client.Paths()[0].State())
	}
	for _, s := range []*Session{w.client, w.server} {
		began := time.Now()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("the end took %v, CloseTimeout is %v", took, s.cfg.CloseTimeout)
		}
	}
}

// Somebody on the path who lets nothing through but a byte now and then, of a
// record that never ends, doesn't keep a session from leaving it.
func TestTrickle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, wideLink, nil)
		w.addPath(t)
		_, peer, sent := startTransfer(t, w.client, w.server, testBytes(1, 8<<20))
		wantRead(t, "before", peer, testBytes(1, 1<<20))
		w.conn(0).Stall(true)
		// The bytes that the client hears are the attacker's.
		p := w.client.Paths()[0]
		stop := make(chan struct{})
		var attack sync.WaitGroup
		attack.Go(func() {
			p.in.partial = time.Now() // a header has come
			for {
				select {
				case <-stop:
					return
				case <-time.After(50 * time.Millisecond):
					p.noteArrival()
				}
			}
		})
		rest := begun(func() error {
			_, err := io.ReadFull(peer, make([]byte, 7<<20))
			return err
		})
		time.Sleep(maxPartial + 2*time.Second)
		close(stop)
		attack.Wait()
		if w.client.path() == p {
			t.Errorf("the client still uses the path %v after it broke", maxPartial+2*time.Second)
		}
		if err := errors.Join(<-rest, <-sent); err != nil {
			t.Error(err)
		}
	})
}

// On a session that does nothing, the paths are asked ever less often, and an
// answer that takes a round trip makes none of them suspect.
func TestIdleSessionIsQuiet(t *testing.T) {
	for _, delay := range []time.Duration{0, 5 * time.Millisecond, 40 * time.Millisecond, 200 * time.Millisecond} {
		t.Run(delay.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				suspect := &Hooks{PathSuspect: func(_ *Session, p *Path) { t.Errorf("path %d is suspect", p.ID()) }}
				w := newWorld(t, mbit(100, delay), func(client, server *Config) {
					client.Hooks, server.Hooks = suspect, suspect
				})
				w.addPath(t)
				time.Sleep(time.Minute)
				before := w.client.recordsSent() + w.server.recordsSent()
				const keepAlives = 20
				time.Sleep(keepAlives * w.client.cfg.KeepAlive)
				sent := w.client.recordsSent() + w.server.recordsSent() - before
				if most := uint64(2 * 2 * 3 * keepAlives); sent > most { // a question and an answer of each end on each path, and those of the session
					t.Errorf("%d records in %d times KeepAlive, want %d at most", sent, keepAlives, most)
				}
			})
		})
	}
}

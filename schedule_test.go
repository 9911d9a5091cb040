package tcpls

import (
	"errors"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
	"github.com/go-tcpls/tcpls/sched"
)

// A run of a scheduler: n bytes from the server to the client, over links with
// the weights given.
type scheduled struct {
	by      sched.Scheduler
	mode    Mode
	n       int
	links   []memnet.Link
	weights []int
}

// measure returns how long the bytes took in virtual time, and which share of the
// records' bytes each path carried.
func (x scheduled) measure(t *testing.T) (took time.Duration, shares []float64) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, x.links[0], func(client, server *Config) {
			for _, c := range []*Config{client, server} {
				c.Mode, c.Scheduler = x.mode, x.by
				c.StreamRecvWindow, c.SessionRecvWindow = 4<<20, 8<<20
			}
		})
		for _, link := range x.links[1:] {
			w.inner.SetLink(link)
			w.addPath(t)
		}
		for i, p := range w.client.Paths() {
			if i < len(x.weights) {
				if err := p.SetWeight(x.weights[i]); err != nil {
					t.Fatal(err)
				}
			}
		}
		time.Sleep(time.Second)
		want := testBytes(1, x.n)
		began := time.Now()
		st, peer, sent := startTransfer(t, w.server, w.client, want)
		wantRead(t, "the transfer", peer, want)
		took = time.Since(began)
		wantEOF(t, "the transfer", peer)
		if err := errors.Join(<-sent, st.Flush(t.Context())); err != nil {
			t.Error(err)
		}
		total := 0.0
		for _, p := range w.server.Paths() {
			shares = append(shares, float64(p.Stats().BytesSent))
			total += float64(p.Stats().BytesSent)
		}
		for i := range shares {
			shares[i] /= total
		}
	})
	return took, shares
}

// What each scheduler makes of two links, against the first one alone.
func TestSchedulers(t *testing.T) {
	if testing.Short() {
		t.Skip("moves hundreds of MiB")
	}
	const n = 20 << 20
	equal := []memnet.Link{mbit(50, 10*time.Millisecond), mbit(50, 10*time.Millisecond)}
	far := []memnet.Link{mbit(50, 10*time.Millisecond), mbit(50, 40*time.Millisecond)}
	unequal := []memnet.Link{mbit(60, 10*time.Millisecond), mbit(20, 10*time.Millisecond)}
	for _, test := range []struct {
		name     string
		run      scheduled
		from, to float64 // of the time on the first link alone
		low, up  float64 // the second link's share
	}{
		{"lowest RTT, equal", scheduled{by: sched.LowestRTT(), links: equal}, 0.5, 0.55, 0.45, 0.55},
		{"lowest RTT, unequal", scheduled{by: sched.LowestRTT(), links: unequal}, 0.75, 0.85, 0.2, 0.3},
		{"round robin, equal", scheduled{by: sched.RoundRobin(), links: equal}, 0.5, 0.55, 0.45, 0.55},
		{"round robin, other delays", scheduled{by: sched.RoundRobin(), links: far}, 0.5, 0.6, 0.4, 0.6},
		{"earliest, equal", scheduled{by: sched.Earliest(), links: equal}, 0.5, 0.53, 0.45, 0.55},
		{"earliest, unequal", scheduled{by: sched.Earliest(), links: unequal}, 0.75, 0.82, 0.2, 0.3},
		{"weighted 1:1, equal", scheduled{by: sched.Weighted(), links: equal}, 0.5, 0.55, 0.45, 0.55},
		{"weighted 3:1, equal", scheduled{by: sched.Weighted(), links: equal, weights: []int{3, 1}}, 0.73, 0.8, 0.22, 0.28},
		{"weighted 3:1, unequal", scheduled{by: sched.Weighted(), links: unequal, weights: []int{3, 1}}, 0.75, 0.8, 0.22, 0.28},
		{"aggregate, no weights", scheduled{mode: ModeAggregate, links: equal}, 0.5, 0.53, 0.45, 0.55},
		{"aggregate, weights 9:1", scheduled{mode: ModeAggregate, links: equal, weights: []int{9, 1}}, 0.88, 0.95, 0.08, 0.15},
		{"redundant, equal", scheduled{mode: ModeRedundant, links: equal}, 0.99, 1.05, 0.4, 0.6},
		{"redundant, unequal", scheduled{mode: ModeRedundant, links: unequal}, 0.99, 1.05, 0.2, 0.5},
	} {
		t.Run(test.name, func(t *testing.T) {
			alone, _ := scheduled{n: n, links: test.run.links[:1]}.measure(t)
			test.run.n = n
			took, shares := test.run.measure(t)
			ratio := took.Seconds() / alone.Seconds()
			t.Logf("%.3f of the time on one, the second path has %.3f", ratio, shares[1])
			if ratio < test.from || ratio > test.to {
				t.Errorf("%.3f of the time on one link, want %v to %v", ratio, test.from, test.to)
			}
			if shares[1] < test.low || shares[1] > test.up {
				t.Errorf("the second path has a share of %.3f, want %v to %v", shares[1], test.low, test.up)
			}
		})
	}
}

// A scheduler of the application's is asked without any lock, gets to see the
// paths, and may change them.
func TestOwnScheduler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, wideLink, nil)
		w.addPath(t)
		if _, err := w.client.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := w.client.Paths()[1].SetWeight(7); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		var asked atomic.Int32
		var stream atomic.Pointer[Stream]
		w.server.SetScheduler(sched.Func(func(b sched.Batch, paths []sched.Path) sched.Set {
			if st := stream.Load(); st == nil || b.Stream != st.ID() || b.Bytes <= 0 || b.Bytes > 64<<10 || b.Credit < uint64(b.Bytes) {
				t.Errorf("it was asked for %+v", b)
			} else if err := errors.Join(st.SetPath(nil), st.SetDeadline(time.Time{})); err != nil {
				t.Error(err)
			}
			if len(paths) != 2 || paths[0].ID != 0 || paths[1].ID != 1 || paths[1].Weight != 7 || paths[0].RTT <= 0 {
				t.Errorf("it sees %+v", paths)
			}
			w.server.Stats()
			for _, p := range w.server.Paths() {
				p.State()
			}
			asked.Add(1)
			return sched.One(1)
		}))
		want := testBytes(1, 4<<20)
		st, err := w.server.OpenStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		stream.Store(st)
		before := w.server.Paths()[0].Stats().BytesSent
		sent := begun(func() error {
			_, err := st.Write(want)
			return err
		})
		peer, err := w.client.AcceptStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		wantRead(t, "by path 1", peer, want)
		if err := <-sent; err != nil {
			t.Error(err)
		}
		if n := w.server.Paths()[0].Stats().BytesSent - before; n > 64<<10 || asked.Load() < 64 {
			t.Errorf("path 0 carried %d bytes, the scheduler was asked %d times", n, asked.Load())
		}
		w.server.SetScheduler(nil)
		asked.Store(0)
		mustWrite(t, st, want[:1<<20])
		wantRead(t, "by mode", peer, want[:1<<20])
		if asked.Load() != 0 {
			t.Error("a scheduler was asked after it was replaced")
		}
	})
}

// What a scheduler answers may be nonsense: all bytes arrive.
func TestBadSchedulers(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	var mu atomic.Uint64
	for name, pick := range map[string]sched.Func{
		"nothing":      func(sched.Batch, []sched.Path) sched.Set { return 0 },
		"unknown ones": func(sched.Batch, []sched.Path) sched.Set { return 1<<63 | 1<<17 },
		"everything":   func(sched.Batch, []sched.Path) sched.Set { return 1<<64 - 1 },
		"anything": func(sched.Batch, []sched.Path) sched.Set {
			return sched.Set(mu.Add(r.Uint64()|1) >> 7)
		},
		"writes": func(_ sched.Batch, paths []sched.Path) sched.Set {
			clear(paths)
			return sched.One(0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, wideLink, func(client, server *Config) { server.Scheduler = pick })
				w.addPath(t)
				w.addPath(t)
				want := testBytes(1, 8<<20)
				began := time.Now()
				st, peer, sent := startTransfer(t, w.server, w.client, want)
				wantRead(t, name, peer, want)
				wantEOF(t, name, peer)
				if err := errors.Join(<-sent, st.Flush(t.Context())); err != nil {
					t.Error(err)
				}
				t.Logf("8 MiB took %v", time.Since(began))
			})
		})
	}
}

// A panic of a scheduler is its caller's, and leaves the stream usable.
func TestPanickingScheduler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, wideLink, nil)
		w.addPath(t)
		st, peer := openStream(t, w.client, w.server)
		w.client.SetScheduler(sched.Func(func(sched.Batch, []sched.Path) sched.Set { panic("scheduler") }))
		func() {
			defer func() {
				if r := recover(); r != "scheduler" {
					t.Errorf("Write panicked with %v", r)
				}
			}()
			_, _ = st.Write([]byte("lost"))
			t.Error("Write returned")
		}()
		w.client.SetScheduler(nil)
		mustWrite(t, st, []byte("kept"))
		wantRead(t, "after the panic", peer, []byte("kept"))
		if err := st.Close(); err != nil {
			t.Error(err)
		}
		wantEOF(t, "after the panic", peer)
	})
}

// The end of a stream that is sealed while the scheduler thinks goes where the
// last batch has gone, not where the scheduler wants the next one.
func TestCloseWhileSchedulerThinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, wideLink, nil)
		w.addPath(t)
		w.addPath(t)
		time.Sleep(time.Second)
		c, s := openStream(t, w.client, w.server)
		w.client.SetScheduler(sched.Func(func(_ sched.Batch, paths []sched.Path) sched.Set { return sched.All(len(paths)) }))
		mustWrite(t, c, []byte("everywhere"))
		copied := slices.Clone(c.copied)
		if len(copied) != 2 {
			t.Fatalf("%d paths got copies, want 2", len(copied))
		}
		var closed <-chan error
		w.client.SetScheduler(sched.Func(func(_ sched.Batch, paths []sched.Path) (set sched.Set) {
			for i, p := range paths {
				if p.ID != copied[0].ID() {
					set |= sched.One(i)
				}
			}
			for _, p := range w.client.Paths() {
				p.outMu.Lock()
			}
			closed = begun(c.CloseWrite)
			waitSealing(c)
			return set
		}))
		_, err := c.Write([]byte("nowhere"))
		wantErrorIs(t, "Write after CloseWrite", err, ErrStreamClosed)
		if !slices.Equal(c.copied, copied) {
			t.Errorf("the end gets copies on %v, want %v", c.copied, copied)
		}
		for _, p := range w.client.Paths() {
			p.outMu.Unlock()
		}
		if err := <-closed; err != nil {
			t.Error(err)
		}
		wantRead(t, "before the end", s, []byte("everywhere"))
		wantEOF(t, "after CloseWrite", s)
	})
}

// waitSealing returns once somebody seals a record of the stream, who must be
// kept from being done.
func waitSealing(s *Stream) {
	for sealing := false; !sealing; runtime.Gosched() {
		s.sendMu.Lock()
		sealing = s.sealing
		s.sendMu.Unlock()
	}
}

// Copies count for ten seconds.
func TestCopied(t *testing.T) {
	var c copied
	for _, test := range []struct {
		at   time.Duration
		more uint64
		want uint64
	}{{0, 5, 5}, {copiedFor - 1, 5, 10}, {copiedFor, 0, 0}, {copiedFor + 1, 7, 7}, {2*copiedFor - 1, 0, 7}, {3 * copiedFor, 0, 0}} {
		c.of(test.at)
		c.n.Add(test.more)
		if got := c.of(test.at); got != test.want {
			t.Errorf("after %v: %d bytes, want %d", test.at, got, test.want)
		}
	}
}

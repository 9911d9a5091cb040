package tcpls

import (
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/sched"
)

// steadyLink is a path of 100 ms there and back, of which nothing is full.
var steadyLink = memnet.Link{Rate: 12_500_000, Delay: 50 * time.Millisecond, Queue: 1 << 20}

// As many small records as may be unacknowledged make Writes wait for an
// acknowledgement, which raises no credit.
func TestWritesPastMaxHeld(t *testing.T) {
	for name, change := range map[string]func(w *world, second *Path) error{
		"spread":         func(w *world, _ *Path) error { w.client.SetScheduler(sched.Earliest()); return nil },
		"after a change": func(_ *world, second *Path) error { return second.Use() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, steadyLink, nil)
				second := w.addPath(t)
				time.Sleep(time.Second)
				c, s := openStream(t, w.client, w.server)
				go func() { _, _ = io.Copy(io.Discard, s) }() // the session's end ends it
				if err := c.SetWriteDeadline(time.Now().Add(time.Minute)); err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				for i := range 3 * maxHeld {
					if i == 1000 {
						if err := change(w, second); err != nil {
							t.Fatal(err)
						}
					}
					if _, err := c.Write([]byte{1}); err != nil {
						t.Fatalf("record %d: %v; %d are unacknowledged", i, err, c.kept.len())
					}
				}
				if took := time.Since(began); took > time.Second {
					t.Errorf("%d records took %v, want a few round trips of 100 ms", 3*maxHeld, took)
				}
			})
		})
	}
}

// A Write that waits because its records go on several paths goes on when they
// don't any more, before anything is acknowledged.
func TestStuckWriteGoesOn(t *testing.T) {
	for name, change := range map[string]func(w *world){
		"another policy": func(w *world) { w.client.SetScheduler(nil) },
		"one path":       func(w *world) { w.conn(1).Reset() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, memnet.Link{Delay: time.Second}, func(client, _ *Config) {
					client.Scheduler = sched.Func(func(sched.Batch, []sched.Path) sched.Set { return sched.One(0) })
				})
				w.addPath(t)
				time.Sleep(10 * time.Second)
				c, _ := openStream(t, w.client, w.server)
				time.Sleep(10 * time.Second) // its first record is acknowledged
				var written atomic.Int64
				done := begun(func() error {
					for range 2 * maxHeld {
						if _, err := c.Write([]byte{1}); err != nil {
							return err
						}
						written.Add(1)
					}
					return nil
				})
				time.Sleep(100 * time.Millisecond)
				if n := written.Load(); n == 0 || n > maxAhead {
					t.Fatalf("%d records are unacknowledged, at most %d may be", n, maxAhead)
				}
				change(w)
				time.Sleep(100 * time.Millisecond)
				if n := written.Load(); n != 2*maxHeld {
					t.Errorf("%d records were written then, want all %d", n, 2*maxHeld)
				}
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A turn of many short records, a key update and the end of the stream come
// behind as many records as let it begin, and all wait for one on a slow path:
// that isn't more than the receiver holds.
func TestTurnStaysWithinMaxHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, memnet.Link{Delay: time.Second}, nil)
		w.inner.SetLink(steadyLink)
		fast := w.addPath(t)
		time.Sleep(10 * time.Second)
		c, s := openStream(t, w.client, w.server)
		time.Sleep(10 * time.Second) // its first record is acknowledged
		mustWrite(t, c, []byte("slow"))
		if err := fast.Use(); err != nil {
			t.Fatal(err)
		}
		n := len("slow")
		for ; c.kept.len() < maxAhead-1; n++ {
			mustWrite(t, c, []byte{1})
		}
		fast.outMu.Lock()
		fast.sizing.begin(48, 10*48)
		fast.sizing.last = time.Since(w.client.began)
		fast.outMu.Unlock()
		mustWrite(t, c, make([]byte, maxBatch))
		updated := begun(func() error { return w.client.UpdateKeys(t.Context()) })
		if err := errors.Join(c.CloseWrite(), <-updated); err != nil {
			t.Fatal(err)
		}
		if kept := c.kept.len(); kept < maxAhead+2 || kept > maxHeld {
			t.Errorf("%d records are unacknowledged, want more than %d and at most %d", kept, maxAhead+1, maxHeld)
		}
		if got, err := io.ReadAll(s); err != nil || len(got) != n+maxBatch {
			t.Errorf("%d of %d bytes arrived, or %v", len(got), n+maxBatch, err)
		}
	})
}

// A turn at the gate has no more records than maxAhead leaves room for, however
// short the segments are.
func TestShortestRecords(t *testing.T) {
	for segment := 1; segment < 1500; segment++ {
		z := sizing{maxContent: record.MaxPlaintext}
		z.begin(segment, 10*segment)
		for _, unsent := range []int{0, 1, segment / 2, segment - 1, 10*segment + 7} {
			if n := z.next(unsent); n < leastContent || n > leastContent+2*segment {
				t.Fatalf("segments of %d bytes, %d unsent: a record takes %d", segment, unsent, n)
			}
		}
	}
}

// A path that would hold up the fast one gets four windows of copies in ten
// seconds, though it is idle and the fast one has always enough to do.
func TestWarmingIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, mbit(10, 20*time.Millisecond), func(client, server *Config) { client.Mode, server.Mode = ModeAggregate, ModeAggregate })
		second := w.addPath(t).ID()
		time.Sleep(time.Second)
		const window = 128 << 10
		paths := w.server.Paths()
		paths[0].queued.Store(spreadBatch)
		paths[1].window.Store(window) // as the kernel would tell
		paths[1].roundTrip.Store(int64(20 * time.Second))
		before := paths[1].Stats().BytesSent
		want := testBytes(1, 30<<20)
		began := time.Now()
		_, peer, sent := startTransfer(t, w.server, w.client, want)
		wantRead(t, "the transfer", peer, want)
		spans := uint64(time.Since(began)/copiedFor) + 2
		copies := paths[1].Stats().BytesSent - before
		t.Logf("path %d got %d windows of copies in %v", second, copies/window, time.Since(began))
		if most := spans * (4*window + 2*spreadBatch); copies < 4*window || copies > most {
			t.Errorf("path %d got %d bytes of copies, want from %d to %d", second, copies, 4*window, most)
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
	})
}

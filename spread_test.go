package tcpls

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
	"github.com/go-tcpls/tcpls/sched"
)

// mbit returns a link of so many megabits a second, with a queue for a round
// trip of 100 ms.
func mbit(n int, delay time.Duration) memnet.Link {
	rate := int64(n) * 1e6 / 8
	return memnet.Link{Rate: rate, Delay: delay, Queue: int(max(rate/10, 32<<10))}
}

// transfer moves n bytes over a session with the links given, the first of
// which is the session's own, and returns how long it took.
func transfer(t *testing.T, mode Mode, n int, links ...memnet.Link) (took time.Duration) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, links[0], func(client, server *Config) {
			for _, c := range []*Config{client, server} {
				c.Mode = mode
				c.StreamRecvWindow, c.SessionRecvWindow = 4<<20, 8<<20
			}
		})
		for _, link := range links[1:] {
			w.inner.SetLink(link)
			w.addPath(t)
		}
		time.Sleep(time.Second)
		want := testBytes(1, n)
		began := time.Now()
		st, peer, sent := startTransfer(t, w.server, w.client, want)
		wantRead(t, "the transfer", peer, want)
		took = time.Since(began)
		wantEOF(t, "the transfer", peer)
		if err := errors.Join(<-sent, st.Flush(t.Context())); err != nil {
			t.Error(err)
		}
		for _, p := range w.server.Paths() {
			t.Logf("path %d: %d bytes, %d records sent again", p.ID(), p.Stats().BytesSent, p.Stats().RecordsResent)
		}
	})
	return took
}

// Two equal links carry nearly twice as much as one; unequal ones never less than the
// best alone.
func TestAggregate(t *testing.T) {
	if testing.Short() {
		t.Skip("moves hundreds of MiB")
	}
	const n = 40 << 20
	for _, test := range []struct {
		name   string
		links  []memnet.Link
		atMost float64 // of the time on the first link alone
	}{
		{"equal", []memnet.Link{mbit(100, 20*time.Millisecond), mbit(100, 20*time.Millisecond)}, 0.52},
		{"three", []memnet.Link{mbit(50, 20*time.Millisecond), mbit(50, 20*time.Millisecond), mbit(50, 20*time.Millisecond)}, 0.36},
		{"unequal", []memnet.Link{mbit(100, 5*time.Millisecond), mbit(10, 50*time.Millisecond)}, 0.95},
		{"one of them much slower", []memnet.Link{mbit(100, 5*time.Millisecond), mbit(1, 300*time.Millisecond)}, 1.01},
		{"other delays", []memnet.Link{mbit(50, 10*time.Millisecond), mbit(50, 40*time.Millisecond)}, 0.55},
	} {
		t.Run(test.name, func(t *testing.T) {
			alone := transfer(t, ModeFailover, n, test.links[0])
			both := transfer(t, ModeAggregate, n, test.links...)
			t.Logf("alone %v, together %v: %.3f", alone, both, both.Seconds()/alone.Seconds())
			if both.Seconds() > test.atMost*alone.Seconds() {
				t.Errorf("%v over all links, %v over the first alone", both, alone)
			}
		})
	}
}

// A path that goes silent while streams are spread loses nothing.
func TestSpreadFailover(t *testing.T) {
	for name, cut := range breaks {
		for _, mode := range []Mode{ModeAggregate, ModeRedundant} {
			t.Run(name+", "+mode.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, wideLink, func(client, server *Config) { client.Mode, server.Mode = mode, mode })
					w.addPath(t)
					want := testBytes(1, 20<<20)
					st, peer, sent := startTransfer(t, w.server, w.client, want)
					wantRead(t, "before the cut", peer, want[:5<<20])
					cut(w.conn(1)) // not the main path
					began := time.Now()
					wantRead(t, "after the cut", peer, want[5<<20:6<<20])
					t.Logf("the next MiB took %v", time.Since(began))
					wantRead(t, "after the cut", peer, want[6<<20:])
					wantEOF(t, "after all", peer)
					if err := errors.Join(<-sent, st.Flush(t.Context())); err != nil {
						t.Error(err)
					}
				})
			})
		}
	}
}

// A stream on a path of its own doesn't wait for what another path carries,
// and goes on elsewhere when its path is gone.
func TestSetPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, mbit(1, 20*time.Millisecond), nil)
		w.inner.SetLink(mbit(100, 20*time.Millisecond))
		fast := w.addPath(t)
		slow, peerSlow := openStream(t, w.client, w.server)
		own, peerOwn := openStream(t, w.client, w.server)
		if err := own.SetPath(fast); err != nil {
			t.Fatal(err)
		}
		const n = 4 << 20
		bulk := begun(func() error {
			_, err := slow.Write(testBytes(1, n))
			return err
		})
		time.Sleep(time.Second) // the main path's queue is full
		began := time.Now()
		done := begun(func() error {
			_, err := own.Write(testBytes(2, n))
			return err
		})
		wantRead(t, "on a path of its own", peerOwn, testBytes(2, n/2))
		if took := time.Since(began); took > time.Second {
			t.Errorf("2 MiB took %v on a path of 100 Mbit/s", took)
		}
		w.conn(1).Reset()
		if err := errors.Join(func() error {
			got := make([]byte, n/2)
			_, err := io.ReadFull(peerOwn, got)
			if err == nil && !bytes.Equal(got, testBytes(2, n)[n/2:]) {
				err = errors.New("other bytes were read than written")
			}
			return err
		}(), <-done); err != nil {
			t.Error(err)
		}
		wantRead(t, "on the main path", peerSlow, testBytes(1, n))
		if err := <-bulk; err != nil {
			t.Error(err)
		}
		var broken *PathError
		if err := own.SetPath(fast); !errors.As(err, &broken) {
			t.Errorf("SetPath to a path that has failed: %v", err)
		}
	})
}

// A server without a wish of its own does what its client asks for.
func TestModeIsTheClients(t *testing.T) {
	for _, test := range []struct{ client, server, want Mode }{
		{ModeAggregate, ModePeer, ModeAggregate},
		{ModePinned, ModePeer, ModePinned},
		{ModeRedundant, ModeAggregate, ModeAggregate},
		{ModeRedundant, ModeFailover, ModeFailover},
		{ModeFailover, ModePeer, ModeFailover},
		{ModePeer, ModePeer, ModeFailover},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, wideLink, func(client, server *Config) { client.Mode, server.Mode = test.client, test.server })
			if _, err := w.client.Ping(t.Context()); err != nil {
				t.Fatal(err)
			}
			if w.server.manner().mode != test.want {
				t.Errorf("the client wants %v, the server %v, and does not do %v", test.client, test.server, test.want)
			}
		})
	}
}

// Many small writes on all paths leave the slower one's budget as it is, and are
// announced once there, as on the faster one.
func TestRedundantSmallWrites(t *testing.T) {
	for name, scheduler := range map[string]sched.Scheduler{"by mode": nil, "by scheduler": sched.Redundant()} {
		for _, streams := range []int{1, 3} {
			t.Run(fmt.Sprint(name, ", streams: ", streams), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { testRedundantSmallWrites(t, scheduler, streams) })
			})
		}
	}
}

func testRedundantSmallWrites(t *testing.T, scheduler sched.Scheduler, streams int) {
	const n, gap = 3 * budgetMax, 50 * time.Microsecond
	w := newWorld(t, memnet.Link{Rate: 12_500_000, Delay: 5 * time.Millisecond, Queue: 1 << 20}, func(client, server *Config) {
		client.Mode, client.Scheduler = ModeRedundant, scheduler
	})
	w.inner.SetLink(memnet.Link{Rate: 12_500_000, Delay: 20 * time.Millisecond, Queue: 1 << 20})
	slow := w.addPath(t)
	time.Sleep(time.Second)
	var from, to []*Stream
	for range streams {
		c, s := openStream(t, w.client, w.server)
		from, to = append(from, c), append(to, s)
	}
	before := slow.Stats().RecordsSent
	want := testBytes(1, n)
	for i, b := range want {
		mustWrite(t, from[i%streams], []byte{b})
		time.Sleep(gap)
	}
	for i, st := range from {
		if err := st.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		var part []byte
		for j := i; j < n; j += streams {
			part = append(part, want[j])
		}
		wantRead(t, "the small writes", to[i], part)
		wantEOF(t, "the small writes", to[i])
	}
	time.Sleep(time.Second)
	if len(w.client.Paths()) != 2 || len(w.server.Paths()) != 2 {
		t.Errorf("%d and %d paths are left, want 2", len(w.client.Paths()), len(w.server.Paths()))
	}
	sent := slow.Stats().RecordsSent - before
	t.Logf("%d records for %d writes on the slow path", sent, n)
	if streams == 1 && sent > n+n/10 {
		t.Errorf("%d records for %d writes on the slow path", sent, n)
	}
}

// Copies that wait for slow paths leave memory for what the fast one carries.
func TestRedundantBesideSlowPaths(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, wideLink, func(client, server *Config) {
			client.Mode, client.SendBuffer = ModeRedundant, 64<<10
			client.MaxPaths, server.MaxPaths = 4, 4
		})
		w.inner.SetLink(memnet.Link{Rate: 1 << 10, Delay: 20 * time.Millisecond, Queue: 32 << 10})
		for range 3 {
			w.addPath(t)
		}
		time.Sleep(time.Second)
		want := testBytes(1, 8<<20)
		_, peer, sent := startTransfer(t, w.client, w.server, want)
		began := time.Now()
		wantRead(t, "beside slow paths", peer, want)
		if err := <-sent; err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("8 MiB took %v on a path that carries them in one", took)
		} else {
			t.Log(took)
		}
		for _, p := range w.client.Paths() {
			p.abandon() // what waits for them would take minutes
		}
	})
}

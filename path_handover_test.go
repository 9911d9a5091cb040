package tcpls

import (
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
	"github.com/go-tcpls/tcpls/internal/record"
)

// slowStart makes the next path begin as TCP does: ten segments a round trip in
// each direction, and from its join on twice as many in each further one.
func (w *world) slowStart(link memnet.Link) {
	full := link
	link.Queue = 10 * 1448
	w.inner.SetLink(link)
	number := w.dialed()
	go func() {
		for len(w.server.Paths()) == number {
			time.Sleep(time.Millisecond)
		}
		w.inner.SetLink(full)
		c := w.conn(number)
		for link.Queue < 1<<20 {
			time.Sleep(2 * link.Delay)
			link.Queue *= 2
			c.SetLink(link)
			c.Peer().SetLink(link)
		}
	}()
}

// A tally is how many bytes came in each 100 ms.
type tally struct {
	began   time.Time
	bins    []int
	last    time.Time
	longest time.Duration // in which nothing came
}

func (y *tally) add(n int) {
	bin := int(time.Since(y.began) / (100 * time.Millisecond))
	for len(y.bins) <= bin {
		y.bins = append(y.bins, 0)
	}
	y.bins[bin] += n
	y.longest = max(y.longest, time.Since(y.last))
	y.last = time.Now()
}

// read reads want to its end, and tallies what comes.
func (y *tally) read(t *testing.T, r io.Reader, want []byte) {
	y.began, y.last = time.Now(), time.Now()
	for len(want) > 0 {
		n := min(len(want), 16<<10)
		wantRead(t, "after the migration began", r, want[:n])
		want = want[n:]
		y.add(n)
	}
	wantEOF(t, "after all", r)
}

// While the window of the new path grows, the old one carries the rest: there is
// no dip in the goodput, in either direction, to a shorter path or to a longer
// one. The old path is closed in peace behind that, and nothing is sent twice.
func TestMigrateWithoutDip(t *testing.T) {
	near := memnet.Link{Rate: 4 << 20, Delay: 20 * time.Millisecond}
	far := memnet.Link{Rate: 4 << 20, Delay: 40 * time.Millisecond}
	for _, test := range []struct {
		name     string
		from, to memnet.Link
		upload   bool
	}{
		{"download to a longer path", near, far, false},
		{"download to a shorter path", far, near, false},
		{"upload to a longer path", near, far, true},
		{"upload to a shorter path", far, near, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, test.from, nil)
				from, to := w.server, w.client
				if test.upload {
					from, to = to, from
				}
				want := testBytes(1, 16<<20)
				_, peer, sent := startTransfer(t, from, to, want)
				wantRead(t, "before the migration", peer, want[:4<<20])
				w.slowStart(test.to)
				moved := begun(func() error {
					_, err := w.client.Migrate(t.Context(), PathSpec{})
					return err
				})
				var got tally
				got.read(t, peer, want[4<<20:])
				if err := errors.Join(<-sent, <-moved); err != nil {
					t.Error(err)
				}
				t.Logf("longest gap %v, KiB in each 100 ms: %v", got.longest, kibis(got.bins))
				if most := 2 * max(test.from.Delay, test.to.Delay); got.longest > most {
					t.Errorf("nothing came for %v, longer than a round trip of %v", got.longest, most)
				}
				usual := int(test.from.Rate / 10)
				for i, n := range got.bins[:len(got.bins)-1] {
					if n < usual*3/4 {
						t.Errorf("%d bytes came in the 100 ms from %d ms on, of %d", n, 100*i, usual)
					}
				}
				for _, s := range []*Session{w.client, w.server} {
					paths := s.Paths()
					if len(paths) != 1 || paths[0].ID() != 1 {
						t.Fatalf("paths after the migration: %v", paths)
					}
					if n := paths[0].Stats().RecordsResent; n != 0 {
						t.Errorf("%d records were sent twice", n)
					}
				}
			})
		})
	}
}

func kibis(bins []int) []int {
	kibis := make([]int, len(bins))
	for i, n := range bins {
		kibis[i] = n >> 10
	}
	return kibis
}

// Where a path fails while both are in use, the other one goes on, and nothing is
// lost.
func TestMigrationIsCut(t *testing.T) {
	for name, cut := range breaks {
		for number, which := range []string{"old", "new"} {
			t.Run(which+", "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { testMigrationIsCut(t, number, cut) })
			})
		}
	}
}

func testMigrationIsCut(t *testing.T, number int, cut func(*memnet.Conn)) {
	link := memnet.Link{Rate: 4 << 20, Delay: 40 * time.Millisecond}
	w := newWorld(t, link, nil)
	want := testBytes(1, 16<<20)
	_, peer, sent := startTransfer(t, w.server, w.client, want)
	wantRead(t, "before the migration", peer, want[:4<<20])
	w.slowStart(link)
	moved := begun(func() error {
		_, err := w.client.Migrate(t.Context(), PathSpec{})
		return err
	})
	cutting := begun(func() error {
		for w.server.handing.current.Load() == nil {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(4 * link.Delay)
		both := w.server.handing.current.Load() != nil
		cut(w.conn(number))
		if !both {
			return errors.New("the server uses one path only, before the other one is cut")
		}
		return nil
	})
	var got tally
	got.read(t, peer, want[4<<20:])
	if err := <-cutting; err != nil {
		t.Error(err)
	}
	err := <-moved
	if err := <-sent; err != nil {
		t.Error(err)
	}
	t.Logf("Migrate: %v; longest gap %v, KiB in each 100 ms: %v", err, got.longest, kibis(got.bins))
	if got.longest > time.Second {
		t.Errorf("nothing came for %v", got.longest)
	}
	if failed := (*PathError)(nil); number == 1 && !errors.As(err, &failed) {
		t.Errorf("Migrate to a path that fails: %v, want a *PathError", err)
	}
	if number == 0 && err != nil {
		t.Errorf("Migrate from a path that fails: %v", err)
	}
	for _, s := range []*Session{w.client, w.server} {
		if p := s.path(); p.ID() != uint32(1-number) || p.State() != PathActive {
			t.Errorf("path %d is in use, and %v", p.ID(), p.State())
		}
	}
}

// Where nothing is on its way, a migration waits for nothing.
func TestMigrateIdle(t *testing.T) {
	for _, mode := range []Mode{ModeFailover, ModeAggregate, ModePinned} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, wideLink, func(client, _ *Config) { client.Mode = mode })
			time.Sleep(time.Minute)
			began := time.Now()
			if _, err := w.client.Migrate(t.Context(), PathSpec{}); err != nil {
				t.Fatal(err)
			}
			// Three for the path, one for its end.
			if took, most := time.Since(began), 5*2*wideLink.Delay; took > most {
				t.Errorf("%v: it took %v, more than %v", mode, took, most)
			}
		})
	}
}

// What the new path gets fits into its window; the old one has the rest, unless it
// is the slower one by far.
func TestHandoverPick(t *testing.T) {
	w := newWorld(t, wideLink, nil)
	const ms = int64(time.Millisecond)
	for _, test := range []struct {
		name          string
		was           int64 // the old path's rate
		oldUnsent     int64
		window, onWay int64 // of the new path
		unsent        int64
		oldWindow     int64
		want          int // which path; -1: none yet
		bytes         int
		over          bool
	}{
		{name: "a new window", was: 1 << 20, oldWindow: 100 << 10, window: 14480, want: 1, bytes: handoverBatch},
		{name: "the rest of a window", was: 1 << 20, oldWindow: 100 << 10, window: 14480, onWay: 10000, want: 1, bytes: 4480 - record.Overhead},
		{name: "a used window", was: 1 << 20, oldWindow: 100 << 10, window: 14480, onWay: 14480, want: 0, bytes: handoverBatch},
		{name: "little of a window", was: 1 << 20, oldWindow: 100 << 10, window: 14480, onWay: 14400, want: 0, bytes: handoverBatch},
		{name: "a used window, and the old path is full", was: 1 << 20, oldWindow: 100 << 10, oldUnsent: spreadUnsent, window: 14480, onWay: 14480, want: -1},
		{name: "a used window, and the old path is slow", was: 1 << 20, oldWindow: 2 << 10, window: 14480, onWay: 14480, want: 1, bytes: handoverBatch},
		{name: "as fast as the old one", was: 1 << 20, oldWindow: 100 << 10, window: 105 << 10, over: true},
		{name: "an unknown rate of the old one", oldWindow: 100 << 10, window: 105 << 10, want: 1, bytes: handoverBatch},
		{name: "an unknown window", was: 1 << 20, oldWindow: 100 << 10, want: 1, bytes: handoverBatch},
		{name: "an unknown window and a full socket", was: 1 << 20, oldWindow: 100 << 10, unsent: 1, want: 0, bytes: handoverBatch},
	} {
		t.Run(test.name, func(t *testing.T) {
			paths := [2]*Path{{sess: w.client}, {sess: w.client}}
			for i, window := range []int64{test.oldWindow, test.window} {
				paths[i].roundTrip.Store(100 * ms)
				paths[i].shortest.Store(100 * ms)
				paths[i].window.Store(window)
			}
			paths[0].unsent.Store(test.oldUnsent)
			paths[1].unsent.Store(test.unsent)
			paths[1].onWay.Store(test.onWay)
			h := &handover{paths: paths, rate: test.was}
			via, n, ok := h.pick(handoverBatch)
			var want *Path
			if !test.over && test.want >= 0 {
				want = paths[test.want]
			}
			if via != want || n != test.bytes || ok == test.over {
				t.Errorf("it picks %d bytes for path %v of %v, %v", n, via, paths, ok)
			}
		})
	}
	gone := &Path{sess: w.client}
	gone.gone.Store(true)
	if _, _, ok := (&handover{paths: [2]*Path{gone, {sess: w.client}}}).pick(1); ok {
		t.Error("it goes on without the old path")
	}
}

// Where TCP ends at a proxy, its window says nothing of the path.
func TestNoHandoverOverProxy(t *testing.T) {
	s := newWorld(t, wideLink, nil).client
	for _, test := range []struct {
		kernels, path time.Duration
		want          bool
	}{
		{0, 80 * time.Millisecond, true}, // the system doesn't tell
		{80 * time.Millisecond, 90 * time.Millisecond, true},
		{50 * time.Microsecond, 5 * time.Millisecond, true},
		{50 * time.Microsecond, 80 * time.Millisecond, false},
	} {
		to := &Path{sess: s}
		to.shortest.Store(int64(test.kernels))
		to.watch.rtt = test.path
		s.switchMu.Lock()
		s.startHandover(s.path(), to, true)
		if got := s.handing.current.Load() != nil; got != test.want {
			t.Errorf("a round trip of %v, and by the kernel %v: handover %v", test.path, test.kernels, got)
		}
		s.startHandover(s.path(), to, false)
		s.switchMu.Unlock()
	}
}

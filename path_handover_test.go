package tcpls

import (
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
)

// slowStart makes the next path begin as TCP does: ten segments a round trip in
// each direction, and from its join on twice as many in each further one.
func (w *world) slowStart(link memnet.Link) {
	link.Queue = 10 * 1448
	w.inner.SetLink(link)
	number := w.dialed()
	go func() {
		for len(w.server.Paths()) == number {
			time.Sleep(time.Millisecond)
		}
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

package tcpls

import (
	"testing"
	"time"
)

func TestWindow(t *testing.T) {
	const rtt = 10 * time.Millisecond
	type step struct {
		receive, consume int
		after            time.Duration // since the step before
		refused, due     bool
		telling          bool
		limit, size      uint64
	}
	for _, test := range []struct {
		name  string
		steps []step
	}{
		{"nothing is due before half a window", []step{
			{receive: 499, consume: 499, limit: 1000, size: 1000},
			{receive: 1, consume: 1, due: true, limit: 1500, size: 1000},
		}},
		{"a quarter goes along with what is told anyway", []step{
			{receive: 249, consume: 249, telling: true, limit: 1000, size: 1000},
			{receive: 1, consume: 1, telling: true, due: true, limit: 1250, size: 1000},
		}},
		{"a quarter in one round trip is as fast as a half in two", []step{
			{receive: 250, consume: 250, telling: true, due: true, limit: 1250, size: 1000},
			{receive: 250, consume: 250, telling: true, after: rtt * 9 / 10, due: true, limit: 2500, size: 2000},
		}},
		{"a quarter in more than that isn't", []step{
			{receive: 250, consume: 250, telling: true, due: true, limit: 1250, size: 1000},
			{receive: 250, consume: 250, telling: true, after: rtt * 11 / 10, due: true, limit: 1500, size: 1000},
		}},
		{"unread bytes give no credit", []step{
			{receive: 1000, consume: 499, limit: 1000, size: 1000},
			{receive: 1, refused: true, limit: 1000, size: 1000},
		}},
		{"a fast reader gets a larger window", []step{
			{receive: 500, consume: 500, due: true, limit: 1500, size: 1000},
			{receive: 500, consume: 500, after: rtt, due: true, limit: 3000, size: 2000},
			{receive: 1000, consume: 1000, after: rtt, due: true, limit: 6000, size: 4000},
			{receive: 2000, consume: 2000, after: rtt, due: true, limit: 8000, size: 4000},
		}},
		{"where the sender is slow, the window stays", []step{
			{receive: 500, consume: 500, due: true, limit: 1500, size: 1000},
			{receive: 500, consume: 500, after: 3 * rtt, due: true, limit: 2000, size: 1000},
		}},
		{"where the reader is slow, the window stays", []step{
			{receive: 1000, consume: 500, due: true, limit: 1500, size: 1000},
			{receive: 500, consume: 500, after: rtt, due: true, limit: 2000, size: 1000},
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWindow(1000, 4000)
			now := time.Unix(1000, 0)
			for i, s := range test.steps {
				now = now.Add(s.after)
				if ok := w.receive(s.receive); ok == s.refused {
					t.Errorf("step %d: receive(%d) = %v", i, s.receive, ok)
				}
				due := false
				if s.consume > 0 {
					if due = w.consume(s.consume, s.telling); due {
						w.raise(rtt, now)
					}
				}
				if due != s.due || w.limit != s.limit || w.size != s.size {
					t.Errorf("step %d: due %v, limit %d, size %d; want %v, %d, %d", i, due, w.limit, w.size, s.due, s.limit, s.size)
				}
			}
		})
	}
}

// Windows grow by the slowest path, for which all bytes may have to wait; the kernel
// knows how slow it is.
func TestRoundTripOfWindows(t *testing.T) {
	const ms = time.Millisecond
	for _, test := range []struct {
		name  string
		paths []time.Duration
		want  time.Duration
	}{
		{"no path", nil, 5 * ms},
		{"the kernel doesn't tell", []time.Duration{0, 0}, 5 * ms},
		{"one path", []time.Duration{10 * ms}, 10 * ms},
		{"a slower one", []time.Duration{10 * ms, 70 * ms, 0}, 70 * ms},
	} {
		s := new(Session)
		s.roundTrip.Store(int64(5 * ms)) // of the handshake
		var live []*Path
		for _, rtt := range test.paths {
			p := new(Path)
			p.shortest.Store(int64(rtt))
			live = append(live, p)
		}
		s.live.Store(&live)
		if got := s.pathRTT(); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

func TestBudget(t *testing.T) {
	p := &Path{}
	p.in.now = time.Unix(1000, 0)
	b := &budget{}
	spendAll := func() (n int) {
		for b.spend(p) {
			n++
		}
		return n
	}
	if n := spendAll(); n != budgetMax {
		t.Errorf("a new peer may send %d empty records, want %d", n, budgetMax)
	}
	b.earn(0)
	if b.spend(p) {
		t.Error("an empty record earned another one")
	}
	b.earn(1)
	if n := spendAll(); n != 2 {
		t.Errorf("a record with bytes earned %d, want 2", n)
	}
	p.in.now = p.in.now.Add(time.Second)
	if n := spendAll(); n != budgetPerSecond {
		t.Errorf("a second gives %d empty records, want %d", n, budgetPerSecond)
	}
	p.sealed.Add(10)
	if n := spendAll(); n != 10 {
		t.Errorf("10 records of ours call for %d, want 10", n)
	}
	p.in.now = p.in.now.Add(time.Hour)
	p.sealed.Add(1 << 40)
	if n := spendAll(); n != budgetMax {
		t.Errorf("after an hour the peer may send %d empty records, want at most %d", n, budgetMax)
	}
	for range budgetMax {
		b.earn(1)
	}
	if n := spendAll(); n > budgetMax+1 {
		t.Errorf("%d empty records were saved up, want at most %d", n, budgetMax)
	}
}

package sched_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/go-tcpls/tcpls/sched"
)

const ms = time.Millisecond

func TestPick(t *testing.T) {
	const bulk = 4 << 20
	fast := sched.Path{ID: 0, Weight: 1, RTT: 10 * ms, Rate: 10 << 20}
	slow := sched.Path{ID: 1, Weight: 1, RTT: 100 * ms, Rate: 1 << 20}
	with := func(p sched.Path, change func(*sched.Path)) sched.Path {
		change(&p)
		return p
	}
	full := func(p sched.Path) sched.Path {
		return with(p, func(p *sched.Path) { p.Full, p.Queued = true, 64<<10 })
	}
	sent := func(p sched.Path, n uint64, weight int) sched.Path {
		return with(p, func(p *sched.Path) { p.Sent, p.Weight = n, weight })
	}
	unknown := func(p sched.Path) sched.Path { return with(p, func(p *sched.Path) { p.Rate = 0 }) }
	busy := func(p sched.Path) sched.Path { return with(p, func(p *sched.Path) { p.Queued = 64 << 10 }) }
	window := func(p sched.Path) sched.Path { return with(p, func(p *sched.Path) { p.Window = 100 << 10 }) }
	copied := func(p sched.Path, n uint64) sched.Path { return with(p, func(p *sched.Path) { p.Copied = n }) }
	starting := func(p sched.Path) sched.Path { return with(p, func(p *sched.Path) { p.SlowStart = true }) }
	for _, test := range []struct {
		name   string
		by     sched.Scheduler
		credit uint64
		paths  []sched.Path
		want   sched.Set
	}{
		{"lowest: the shortest", sched.LowestRTT(), bulk, []sched.Path{slow, fast}, sched.One(1)},
		{"lowest: the shortest is full", sched.LowestRTT(), bulk, []sched.Path{slow, full(fast)}, sched.One(0)},
		{"lowest: all are full", sched.LowestRTT(), bulk, []sched.Path{full(slow), full(fast)}, 0},

		{"turns: nobody had one", sched.RoundRobin(), bulk, []sched.Path{fast, slow}, sched.One(0)},
		{"turns: the second", sched.RoundRobin(), bulk, []sched.Path{sent(fast, 10, 1), slow}, sched.One(1)},
		{"turns: the second is full", sched.RoundRobin(), bulk, []sched.Path{sent(fast, 10, 1), full(slow)}, sched.One(0)},
		{"turns: all are full", sched.RoundRobin(), bulk, []sched.Path{full(fast), full(slow)}, 0},

		{"weights: the heavy one begins", sched.Weighted(), bulk, []sched.Path{sent(fast, 0, 1), sent(slow, 0, 3)}, sched.One(1)},
		{"weights: it is ahead", sched.Weighted(), bulk, []sched.Path{sent(fast, 10, 1), sent(slow, 31, 3)}, sched.One(0)},
		{"weights: it isn't yet", sched.Weighted(), bulk, []sched.Path{sent(fast, 10, 1), sent(slow, 29, 3)}, sched.One(1)},
		{"weights: its turn, and full", sched.Weighted(), bulk, []sched.Path{sent(fast, 10, 1), full(sent(slow, 0, 3))}, sched.One(1)},

		{"redundant: all", sched.Redundant(), bulk, []sched.Path{fast, slow}, sched.All(2)},
		{"redundant: one is full", sched.Redundant(), bulk, []sched.Path{full(fast), slow}, sched.All(2)},

		{"earliest: the fast one", sched.Earliest(), bulk, []sched.Path{slow, fast}, sched.One(1)},
		{"earliest: the fast one is full", sched.Earliest(), bulk, []sched.Path{full(fast), slow}, sched.One(1)},
		{"earliest: and would be held up", sched.Earliest(), 1 << 20, []sched.Path{full(fast), slow}, 0},
		{"earliest: nothing is known yet", sched.Earliest(), bulk, []sched.Path{full(unknown(fast)), unknown(slow)}, 0},
		{"earliest: alike, and nothing known", sched.Earliest(), bulk, []sched.Path{full(unknown(fast)), unknown(fast)}, sched.One(1)},
		{"earliest: a slow one is idle, and gets copies", sched.Earliest(), 1 << 20, []sched.Path{busy(fast), window(slow)}, sched.All(2)},
		{"earliest: it has had many copies", sched.Earliest(), 1 << 20, []sched.Path{busy(fast), copied(window(slow), 399<<10)}, sched.All(2)},
		{"earliest: it has had enough of them", sched.Earliest(), 1 << 20, []sched.Path{busy(fast), copied(window(slow), 400<<10)}, sched.One(0)},
		{"earliest: it has enough to do", sched.Earliest(), 1 << 20, []sched.Path{busy(fast), busy(window(slow))}, sched.One(0)},
		{"earliest: the fast one has little to do", sched.Earliest(), 1 << 20, []sched.Path{fast, window(slow)}, sched.One(0)},
		{"earliest: it is good enough without", sched.Earliest(), bulk, []sched.Path{busy(fast), window(slow)}, sched.One(0)},
		{"earliest: the fast one gets faster", sched.Earliest(), bulk, []sched.Path{full(starting(fast)), slow}, 0},
		{"earliest: all are full", sched.Earliest(), bulk, []sched.Path{full(fast), full(slow)}, 0},
	} {
		if got := test.by.Pick(sched.Batch{Bytes: 64 << 10, Credit: test.credit}, test.paths); got != test.want {
			t.Errorf("%s: picked %b, want %b", test.name, got, test.want)
		}
	}
}

// Over many batches the bytes of Weighted are in the proportion of the weights,
// whatever their sizes.
func TestWeightedShares(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	paths := []sched.Path{{Weight: 5}, {Weight: 1}, {Weight: 2}}
	var total, sum uint64
	for _, p := range paths {
		sum += uint64(p.Weight)
	}
	for range 10_000 {
		n := 1 + r.Uint64N(64<<10)
		set := sched.Weighted().Pick(sched.Batch{Bytes: int(n)}, paths)
		for i := range paths {
			if set.Has(i) {
				paths[i].Sent += n
				total += n
			}
		}
	}
	for i, p := range paths {
		want := total * uint64(p.Weight) / sum
		if p.Sent > want+128<<10 || p.Sent+128<<10 < want {
			t.Errorf("path %d of weight %d got %d bytes, want %d", i, p.Weight, p.Sent, want)
		}
	}
}

func TestSet(t *testing.T) {
	if s := sched.All(sched.MaxPaths); s.Len() != 64 || !s.Has(63) {
		t.Errorf("All(64) = %b", s)
	}
	if s := sched.One(-1) | sched.One(64); s != 0 {
		t.Errorf("the set of no path is %b", s)
	}
	if s := sched.One(3) | sched.One(0); s.Len() != 2 || !s.Has(0) || s.Has(1) || !s.Has(3) || s.Has(64) {
		t.Errorf("the set of 0 and 3 is %b", s)
	}
}

// A path that is given more comes later, and one of which nothing is known after
// one and a half round trips.
func TestArrival(t *testing.T) {
	p := sched.Path{RTT: 20 * ms, Rate: 1 << 20, Queued: 512 << 10}
	if got := p.Arrival(512 << 10); got != 1010*ms {
		t.Errorf("1 MiB at 1 MiB/s arrives after %v, want 1.01 s", got)
	}
	p.MinRTT = 10 * ms
	if got := p.Arrival(512 << 10); got != 1015*ms {
		t.Errorf("with 10 ms in a queue: %v, want 1.015 s", got)
	}
	p.OnWay = 256 << 10
	if got := p.Arrival(512 << 10); got != 1245*ms {
		t.Errorf("with 256 KiB on their way: %v, want 1.245 s", got)
	}
	p.Rate = 0
	if got := p.Arrival(512 << 10); got != 30*ms {
		t.Errorf("with an unknown rate: %v, want 30ms", got)
	}
}

func BenchmarkPick(b *testing.B) {
	paths := make([]sched.Path, 8)
	for i := range paths {
		paths[i] = sched.Path{ID: uint32(i), Weight: 1, RTT: time.Duration(i+1) * ms, Rate: 1 << 20}
	}
	for name, s := range map[string]sched.Scheduler{
		"LowestRTT": sched.LowestRTT(), "RoundRobin": sched.RoundRobin(), "Weighted": sched.Weighted(),
		"Redundant": sched.Redundant(), "Earliest": sched.Earliest(),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				s.Pick(sched.Batch{Bytes: 64 << 10, Credit: 1 << 20}, paths)
			}
		})
	}
}

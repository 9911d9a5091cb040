package lab

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/go-tcpls/tcpls"
)

var migrating = Experiment{
	Name:   "migration",
	Source: "paper §5.6, Figure 5",
	Claim:  "an application migrates a 60 MB download from an IPv4 to an IPv6 path of 30 Mbit/s and back without a gap in its goodput",
	Root:   true,
	Run:    runMigration,
}

// The paper's network: IPv4 is the shorter way.
const migrationRate = 30 * Mbit

var migrationPaths = []Shape{
	{Rate: migrationRate, Delay: 20 * time.Millisecond},
	{Rate: migrationRate, Delay: 40 * time.Millisecond},
}

// goodputShare is what TCP leaves of a link's rate for its bytes, with 1500
// byte packets and timestamps.
const goodputShare = 1448.0 / 1500

// dipWindow is how long a dip of the goodput must be to be called one: more
// than the longer path's round trip and its queue, 180 ms.
const dipWindow = 250 * time.Millisecond

func runMigration(ctx context.Context, o Options) (*Result, error) {
	size := pick(o, int64(60<<20), 9<<20)
	b, err := newNetBench(TwoHosts(migrationPaths...))
	if err != nil {
		return nil, err
	}
	defer b.Close()
	var steady, usual, lowest, gaps, calls, totals []float64
	runs := Table{
		Name: "runs", Title: "Downloads of " + mb(size) + "; Mbit/s, s and ms",
		Header: []string{"run", "IPv4", "IPv6", "IPv4 again", "lowest 250 ms before", "while migrating", "longest gap then ms", "Migrate took ms", "whole s"},
	}
	r := new(Result)
	for i := range o.reps(5, 1) {
		o.step("run %d: %s", i+1, mb(size))
		m, err := migrateTwice(ctx, b, size)
		if err != nil {
			return nil, err
		}
		took := m.took()
		first, second, third := m.rate(time.Second/2, m.moves[0].from), m.rate(m.moves[0].to, m.moves[1].from), m.rate(m.moves[1].to, took)
		before := m.lowest(span{time.Second / 2, m.moves[0].from})
		low, gap := m.migrating()
		runs.add(i+1, first, second, third, before, low, gap, fmt.Sprintf("%s, %s", round(ms(m.moves[0].to-m.moves[0].from)), round(ms(m.moves[1].to-m.moves[1].from))), took.Seconds())
		steady, usual, lowest, gaps = append(steady, first), append(usual, before), append(lowest, low), append(gaps, gap)
		totals = append(totals, took.Seconds())
		for _, move := range m.moves {
			calls = append(calls, ms(move.to-move.from))
		}
		if i == 0 {
			r.Plots = append(r.Plots, m.plot())
		}
	}
	r.Tables = []Table{runs}
	share := measure("lowest 250 ms while migrating, of what a path can carry", "",
		mapped(lowest, func(v float64) float64 { return v / carries(migrationPaths[0]) }))
	r.Measures = []Measure{
		measure("goodput before", "Mbit/s", steady), measure("lowest 250 ms before", "Mbit/s", usual), measure("lowest 250 ms while migrating", "Mbit/s", lowest),
		share, measure("longest gap while migrating", "ms", gaps), measure("a call of Migrate", "ms", calls), measure("whole download", "s", totals),
	}
	r.Verdict.Why = fmt.Sprintf("All bytes arrived once, by their SHA-256. In the 250 ms with the least goodput while it migrated it was %s of what one path carries; the longest gap then was %s ms. A migration is one call.",
		share, r.Measures[4])
	r.Verdict.Outcome = HoldsPartly
	if share.Median > 0.5 {
		r.Verdict.Outcome = Holds
	}
	return r, nil
}

// A migrated download, with the times of its two migrations.
type migrated struct {
	*arrivals
	moves []span
}

// migrateTwice goes to IPv6 after a third, and back after two thirds.
func migrateTwice(ctx context.Context, b *bench, size int64) (*migrated, error) {
	s, err := b.serve(ctx, overTCPLS, b.server())
	if err != nil {
		return nil, err
	}
	defer s.Close()
	sess, err := b.client().dialTCPLS(ctx, b.at(0, false).String())
	if err != nil {
		return nil, err
	}
	defer sess.Close()
	st, err := sess.OpenStream(ctx)
	if err != nil {
		return nil, err
	}
	m := &migrated{arrivals: newArrivals()}
	done := make(chan error, 1)
	go func() {
		defer m.end()
		done <- download(st, size, m.add)
	}()
	for i, v6 := range []bool{true, false} {
		if !m.wait(ctx, size*int64(i+1)/3) {
			return nil, fmt.Errorf("before migration %d: %w", i+1, <-done)
		}
		move := span{from: m.now()}
		path := 0
		if v6 {
			path = 1
		}
		if _, err := sess.Migrate(ctx, tcpls.PathSpec{Remote: b.at(path, v6)}); err != nil {
			return nil, err
		}
		move.to = m.now()
		m.moves = append(m.moves, move)
	}
	return m, <-done
}

// lowest is the least goodput of any window in a span, in Mbit/s.
func (m *migrated) lowest(in span) float64 {
	low := m.rate(in.from, in.from+dipWindow)
	for at := in.from; at+dipWindow < in.to; at += dipWindow / 5 {
		low = min(low, m.rate(at, at+dipWindow))
	}
	return low
}

// migrating is the same for both migrations, each with half a second after it, and
// the longest gap of them, in ms.
func (m *migrated) migrating() (low, gap float64) {
	low = math.Inf(1)
	for _, move := range m.moves {
		in := span{move.from, min(move.to+time.Second/2, m.took())}
		low, gap = min(low, m.lowest(in)), max(gap, ms(m.gapIn(in)))
	}
	return low, gap
}

func (m *migrated) plot() Plot {
	return Plot{
		Name: "goodput", Title: "A download that its application moves to IPv6 and back", X: "seconds", Y: "goodput, Mbit/s",
		Lines: []Line{m.goodput("TCPLS", dipWindow)},
		Marks: []Mark{{m.moves[0].from.Seconds(), "to IPv6"}, {m.moves[1].from.Seconds(), "to IPv4"}},
	}
}

// mb writes a size in MB.
func mb(n int64) string { return fmt.Sprintf("%.3g MB", float64(n)/1e6) }

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func mapped(values []float64, f func(float64) float64) []float64 {
	out := make([]float64, len(values))
	for i, v := range values {
		out[i] = f(v)
	}
	return out
}

package lab

import (
	"context"
	"fmt"
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
	var steady, lowest, gaps, calls, totals []float64
	runs := Table{
		Name: "runs", Title: "Downloads of " + mb(size) + "; Mbit/s, s and ms",
		Header: []string{"run", "IPv4", "IPv6", "IPv4 again", "lowest 250 ms", "longest gap ms", "Migrate took ms", "whole s"},
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
		low, gap := m.lowest(), ms(m.gap(time.Second/2))
		runs.add(i+1, first, second, third, low, gap, fmt.Sprintf("%s, %s", round(ms(m.moves[0].to-m.moves[0].from)), round(ms(m.moves[1].to-m.moves[1].from))), took.Seconds())
		steady, lowest, gaps = append(steady, first), append(lowest, low), append(gaps, gap)
		totals = append(totals, took.Seconds())
		for _, move := range m.moves {
			calls = append(calls, ms(move.to-move.from))
		}
		if i == 0 {
			r.Plots = append(r.Plots, m.plot())
		}
	}
	r.Tables = []Table{runs}
	share := mapped(lowest, func(v float64) float64 { return v / (goodputShare * float64(migrationRate/Mbit)) })
	r.Measures = []Measure{
		measure("goodput before", "Mbit/s", steady), measure("lowest 250 ms from the first migration on", "Mbit/s", lowest),
		measure("the same, of what a path can carry", "", share), measure("longest gap", "ms", gaps),
		measure("a call of Migrate", "ms", calls), measure("whole download", "s", totals),
	}
	dips := measure("", "", share)
	r.Verdict.Why = fmt.Sprintf("All bytes arrived once, by their SHA-256. In the 250 ms with the least goodput around the migrations it was %s of what one path carries; the longest gap was %s ms. A migration is one call.",
		dips, measure("", "", gaps))
	r.Verdict.Outcome = HoldsPartly
	if dips.Median > 0.5 {
		r.Verdict.Outcome = Holds
	}
	return r, nil
}

// A migrated download, with the times of its two migrations.
type migrated struct {
	*arrivals
	moves []span
}

type span struct{ from, to time.Duration }

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

// lowest is the least goodput of any window from the first migration to a
// second after the last one, in Mbit/s.
func (m *migrated) lowest() float64 {
	low := m.rate(m.moves[0].from, m.moves[0].from+dipWindow)
	until := min(m.moves[1].to+time.Second, m.took())
	for at := m.moves[0].from; at+dipWindow < until; at += dipWindow / 5 {
		low = min(low, m.rate(at, at+dipWindow))
	}
	return low
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

package lab

import (
	"context"
	"math"
	"sync"
	"time"
)

// arrivals tell when a transfer's bytes came.
type arrivals struct {
	mu     sync.Mutex
	moved  *sync.Cond
	began  time.Time
	points []arrival
	closed bool
}

// An arrival is the sum of the bytes that had come at a moment.
type arrival struct {
	At    time.Duration // from the beginning
	Total int64
}

// A span is the time between two moments.
type span struct{ from, to time.Duration }

func newArrivals() *arrivals {
	a := &arrivals{began: time.Now()}
	a.moved = sync.NewCond(&a.mu)
	return a
}

// add notes that n bytes have just come.
func (a *arrivals) add(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.points = append(a.points, arrival{time.Since(a.began), a.totalLocked() + int64(n)})
	a.moved.Broadcast()
}

// put notes what was counted elsewhere.
func (a *arrivals) put(at time.Time, total int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.points = append(a.points, arrival{at.Sub(a.began), total})
	a.moved.Broadcast()
}

func (a *arrivals) totalLocked() int64 {
	if len(a.points) == 0 {
		return 0
	}
	return a.points[len(a.points)-1].Total
}

// end says that nothing more comes.
func (a *arrivals) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	a.moved.Broadcast()
}

// wait waits until total bytes have come, and says whether they have.
func (a *arrivals) wait(ctx context.Context, total int64) bool {
	defer context.AfterFunc(ctx, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.moved.Broadcast()
	})()
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.totalLocked() < total && !a.closed && ctx.Err() == nil {
		a.moved.Wait()
	}
	return a.totalLocked() >= total
}

// now is the present moment in the terms of arrivals.
func (a *arrivals) now() time.Duration { return time.Since(a.began) }

// all returns a copy.
func (a *arrivals) all() []arrival {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]arrival(nil), a.points...)
}

// took is the time of the last arrival.
func (a *arrivals) took() time.Duration {
	if all := a.all(); len(all) > 0 {
		return all[len(all)-1].At
	}
	return 0
}

// gap is how long nothing came at a time, at most, of what ended after a
// moment.
func (a *arrivals) gap(from time.Duration) time.Duration {
	return a.gapIn(span{from, math.MaxInt64})
}

// gapIn is the same for what ended in a span.
func (a *arrivals) gapIn(in span) time.Duration {
	var longest, last time.Duration
	for _, p := range a.all() {
		if p.At > in.from && p.At <= in.to {
			longest = max(longest, p.At-last)
		}
		last = p.At
	}
	return longest
}

// rate is the goodput between two moments, in Mbit/s.
func (a *arrivals) rate(from, to time.Duration) float64 {
	var before, until int64
	for _, p := range a.all() {
		if p.At <= from {
			before = p.Total
		}
		if p.At <= to {
			until = p.Total
		}
	}
	return mbits(until-before, to-from)
}

func mbits(n int64, d time.Duration) float64 { return float64(n) * 8 / 1e6 / d.Seconds() }

// goodput is the curve of the rates, in Mbit/s over seconds; each of its
// points stands for a step.
func (a *arrivals) goodput(name string, step time.Duration) Line {
	l := Line{Name: name}
	all := a.all()
	if len(all) == 0 {
		return l
	}
	var before int64
	i := 0
	for at := step; at <= all[len(all)-1].At; at += step {
		total := before
		for i < len(all) && all[i].At <= at {
			total = all[i].Total
			i++
		}
		l.Points = append(l.Points, Point{(at - step/2).Seconds(), mbits(total-before, step)})
		before = total
	}
	return l
}

// rises is the end of the first 100 ms from a moment on that have a rate, in
// Mbit/s; the time of the last arrival if none have.
func (a *arrivals) rises(from time.Duration, rate float64) time.Duration {
	const window = 100 * time.Millisecond
	end := a.took()
	for at := from; at+window < end; at += window / 10 {
		if a.rate(at, at+window) >= rate {
			return at + window
		}
	}
	return end
}

// reached is when total bytes had come.
func (a *arrivals) reached(total int64) time.Duration {
	for _, p := range a.all() {
		if p.Total >= total {
			return p.At
		}
	}
	return 0
}

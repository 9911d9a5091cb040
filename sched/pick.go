package sched

import "math"

// LowestRTT picks the path with the shortest round trip of those that have
// room. It fills the shortest path and gives what that can't take to the next
// one, however late it arrives there.
func LowestRTT() Scheduler { return Func(lowestRTT) }

func lowestRTT(_ Batch, paths []Path) Set {
	best := -1
	for i := range paths {
		if !paths[i].Full && (best < 0 || paths[i].RTT < paths[best].RTT) {
			best = i
		}
	}
	return One(best)
}

// RoundRobin lets the paths take turns: of those that have room, it picks the
// one that was given the fewest bytes. Paths that take all they are given get
// equal shares, and one that can't take as much is passed over.
func RoundRobin() Scheduler { return Func(roundRobin) }

func roundRobin(_ Batch, paths []Path) Set {
	best := -1
	for i := range paths {
		if !paths[i].Full && (best < 0 || paths[i].Sent < paths[best].Sent) {
			best = i
		}
	}
	return One(best)
}

// Weighted gives each path a share of the bytes in proportion to its weight,
// and waits for the one whose turn it is: the path that is the slowest for its
// weight sets the pace of all. It is for paths that cost something; where speed
// is all that matters, Earliest is better.
func Weighted() Scheduler { return Func(weighted) }

func weighted(_ Batch, paths []Path) Set {
	best := 0
	for i := range paths {
		p, q := &paths[i], &paths[best]
		mine, other := p.Sent*uint64(q.Weight), q.Sent*uint64(p.Weight)
		if mine < other || mine == other && p.Weight > q.Weight {
			best = i
		}
	}
	return One(best)
}

// Redundant picks all paths: what arrives first counts. The fastest one sets the
// pace, and one that can't keep up misses some.
func Redundant() Scheduler {
	return Func(func(_ Batch, paths []Path) Set { return All(len(paths)) })
}

// Earliest picks the path on which the batch is likely to arrive first, of
// those that have room, and only if what arrives before it on the fastest path
// of all fits into half of the receiver's credit. So a slow path helps as far
// as it can, and never holds up a fast one. An idle path that would hold it up
// gets some copies in the meantime, up to four windows of TCP in ten seconds: TCP
// finds out only so what it can carry.
func Earliest() Scheduler { return Func(earliest) }

func earliest(b Batch, paths []Path) Set {
	fast, next := 0, -1
	for i := range paths {
		t := paths[i].Arrival(b.Bytes)
		if t < paths[fast].Arrival(b.Bytes) {
			fast = i
		}
		if !paths[i].Full && (next < 0 || t < paths[next].Arrival(b.Bytes)) {
			next = i
		}
	}
	switch {
	case next < 0:
		return 0
	case next == fast:
		return One(fast) | warming(b, paths, fast)
	case holdsUp(b, paths, fast, next):
		return 0
	}
	return One(next)
}

// holdsUp reports whether the fastest path would have to wait for what the
// next one carries.
func holdsUp(b Batch, paths []Path, fast, next int) bool {
	first, then := paths[fast].Arrival(b.Bytes), paths[next].Arrival(b.Bytes)
	if paths[fast].Rate == 0 {
		return then > 2*first // it is too early to tell
	}
	rate := float64(paths[fast].Rate)
	if p := &paths[fast]; p.SlowStart && p.RTT > 0 {
		rate *= math.Exp2(min(float64((then-first)/p.RTT), 30))
	}
	return rate*(then-first).Seconds() > float64(b.Credit)/2
}

// maxWarming is how many windows of copies make TCP find out what a path can
// carry: while the window grows as in slow start, all before make up one.
const maxWarming = 4

// warming is the paths that get copies: nothing else is on them, they haven't
// had enough, and the fastest one has enough to do.
func warming(b Batch, paths []Path, fast int) (set Set) {
	if paths[fast].Queued < b.Bytes {
		return 0
	}
	for i := range paths {
		p := &paths[i]
		if i != fast && p.Queued == 0 && p.Copied < maxWarming*uint64(p.Window) && holdsUp(b, paths, fast, i) {
			set |= One(i)
		}
	}
	return set
}

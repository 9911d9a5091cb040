package tcpls

import (
	"container/heap"
	"sync"
	"sync/atomic"

	"github.com/go-tcpls/tcpls/internal/record"
)

// A sendGate admits the Writes of a session's streams to its path, in the
// order of their priority, while three things allow it: the peer's credit for
// the session, the memory for what isn't acknowledged, and room in the path's
// output. Its lock is a leaf.
type sendGate struct {
	mu      sync.Mutex
	credit  uint64 // of the peer, for the session
	used    uint64
	limit   int          // Config.SendBuffer
	kept    int          // bytes of records that aren't acknowledged
	held    atomic.Int64 // bytes of the chunks that these, and the path's queue, lie in
	ticket  uint64
	waiting turns
	path    *Path         // the session's main one
	pins    atomic.Int32  // streams that have a path of their own
	changes atomic.Uint64 // counts what may have made room on a path
}

// A turn is a stream's place at the gate.
type turn struct {
	stream      *Stream
	index       int // in waiting, -1 if not there
	urgency     int8
	incremental bool
	ticket      uint64 // order among incremental turns
}

type turns []*turn

func (w turns) Len() int { return len(w) }

func (w turns) Less(i, j int) bool {
	a, b := w[i], w[j]
	switch {
	case a.urgency != b.urgency:
		return a.urgency < b.urgency
	case a.incremental != b.incremental:
		return !a.incremental
	case a.incremental:
		return a.ticket < b.ticket
	}
	return a.stream.id < b.stream.id
}

func (w turns) Swap(i, j int) {
	w[i], w[j] = w[j], w[i]
	w[i].index, w[j].index = i, j
}

func (w *turns) Push(x any) {
	t := x.(*turn)
	t.index = len(*w)
	*w = append(*w, t)
}

func (w *turns) Pop() any {
	old := *w
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*w = old[:len(old)-1]
	t.index = -1
	return t
}

// sealedSize is how many bytes the records of n stream bytes take.
func (g *sendGate) sealedSize(n int) int {
	most := g.path.sizing.maxContent
	return n + (n+most-1)/most*record.Overhead
}

// A record that isn't acknowledged holds the chunk that it lies in, and so
// sixteen times its own memory if a peer acknowledges all the others: it must
// not do that with more chunks than these. A peer that acknowledges what has
// arrived never comes near, since what one chunk holds arrives together.
func (g *sendGate) mostHeld() int64 { return 2*int64(g.limit) + 4*record.LargeChunk }

// crowded reports whether the chunks are too many for another one.
func (g *sendGate) crowded() bool { return g.held.Load() >= g.mostHeld() }

// halfCrowded reports whether they are too many for copies, which must leave room
// for what the fastest path carries.
func (g *sendGate) halfCrowded() bool { return g.held.Load() >= g.mostHeld()/2 }

// room is how many stream bytes of t's stream may be sealed now, of n wanted.
func (g *sendGate) room(t *turn, n int) int {
	s, pin := g.path.sess, t.stream.pinned()
	switch {
	case g.crowded():
		return 0
	case pin != nil:
		if n = pin.admit(n); n == 0 {
			return 0
		}
	case s.shares():
		if n = min(n, spreadBatch); !s.roomFor() {
			return 0
		}
	case g.path.gone.Load():
		return 0
	default:
		if n = g.path.admit(n); n == 0 {
			return 0
		}
	}
	n = int(min(uint64(n), g.credit-g.used))
	memory, most := g.limit-g.kept, g.path.sizing.maxContent
	if memory < g.sealedSize(min(n, most)) {
		return 0
	}
	if g.sealedSize(n) > memory {
		n = memory / (most + record.Overhead) * most
	}
	return n
}

// enter takes room for up to n bytes and returns how many, or 0 after which
// the stream waits: its condition is signalled when it may try again. It must
// leave when it gives up. The caller holds the stream's sendMu, and wakes next
// when it no longer does.
func (g *sendGate) enter(t *turn, n int) (got int, next *turn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if t.index < 0 && len(g.waiting) > 0 {
		g.push(t)
	}
	if g.mayEnter(t) {
		got = g.room(t, n)
	}
	if got == 0 {
		if t.index < 0 {
			g.push(t)
		}
		return 0, nil
	}
	if t.index >= 0 {
		heap.Remove(&g.waiting, t.index)
	}
	g.used += uint64(got)
	g.kept += g.sealedSize(got)
	return got, g.first()
}

// queue makes t wait for a path.
func (g *sendGate) queue(t *turn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if t.index < 0 {
		g.push(t)
	}
}

func (g *sendGate) push(t *turn) {
	g.ticket++
	t.ticket = g.ticket
	heap.Push(&g.waiting, t)
}

// mayEnter reports whether nobody waits for the same path who comes before t.
func (g *sendGate) mayEnter(t *turn) bool {
	if t.index <= 0 || g.pins.Load() == 0 {
		return t.index <= 0
	}
	mine := t.stream.pinned()
	for i, other := range g.waiting {
		if other != t && g.waiting.Less(i, t.index) && other.stream.pinned() == mine {
			return false
		}
	}
	return true
}

// first is who may go next, if there is room for it. Streams on a path of
// their own don't wait for others. The caller holds mu.
func (g *sendGate) first() *turn {
	switch {
	case len(g.waiting) == 0:
		return nil
	case g.room(g.waiting[0], 1) > 0:
		return g.waiting[0]
	case g.pins.Load() == 0:
		return nil
	}
	var first *turn
	for i, t := range g.waiting {
		if g.room(t, 1) > 0 && (first == nil || g.waiting.Less(i, first.index)) {
			first = t
		}
	}
	return first
}

// wake lets the stream try. The caller holds neither the gate's lock nor any
// stream's.
func (t *turn) wake() {
	if t == nil {
		return
	}
	t.stream.sendMu.Lock()
	defer t.stream.sendMu.Unlock()
	t.stream.sendCond.Broadcast()
}

// leave gives up a place in the queue. The caller wakes next when it holds no
// stream's lock.
func (g *sendGate) leave(t *turn) (next *turn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if t.index < 0 {
		return nil
	}
	heap.Remove(&g.waiting, t.index)
	return g.first()
}

// wake lets the first one try, if there may be room.
func (g *sendGate) wake() {
	g.changes.Add(1)
	g.mu.Lock()
	next := g.first()
	g.mu.Unlock()
	next.wake()
}

// allow raises the session's credit.
func (g *sendGate) allow(credit uint64) {
	g.mu.Lock()
	g.credit = max(g.credit, credit)
	next := g.first()
	g.mu.Unlock()
	next.wake()
}

// refund gives back what enter granted, when it couldn't be sealed.
func (g *sendGate) refund(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.used -= uint64(n)
	g.kept -= g.sealedSize(n)
}

// use makes p the path that the Writes go to.
func (g *sendGate) use(p *Path) {
	g.mu.Lock()
	g.path = p
	next := g.first()
	g.mu.Unlock()
	next.wake()
}

// keep counts a record that no turn has counted.
func (g *sendGate) keep(n int) {
	g.mu.Lock()
	g.kept += n
	g.mu.Unlock()
}

// release gives back the memory of acknowledged records.
func (g *sendGate) release(n int) {
	if n == 0 {
		return
	}
	g.mu.Lock()
	g.kept -= n
	next := g.first()
	g.mu.Unlock()
	next.wake()
}

// sent is how many stream bytes were admitted.
func (g *sendGate) sent() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.used
}

// memory is how many more bytes can be kept.
func (g *sendGate) memory() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return uint64(max(g.limit-g.kept, 0))
}

// unacknowledged is how many bytes are kept.
func (g *sendGate) unacknowledged() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.kept
}

func (g *sendGate) setPriority(t *turn, urgency int8, incremental bool) {
	g.mu.Lock()
	t.urgency, t.incremental = urgency, incremental
	if t.index >= 0 {
		heap.Fix(&g.waiting, t.index)
	}
	next := g.first()
	g.mu.Unlock()
	next.wake()
}

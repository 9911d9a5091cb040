package memnet

import (
	"bytes"
	"slices"
	"sync"
	"syscall"
	"time"
)

// A Link describes one direction of a connection. The zero value is an
// unlimited rate, no delay, and a queue of [DefaultQueue] bytes.
type Link struct {
	// Rate is in bytes per second; 0 means unlimited.
	Rate int64
	// Delay is the time from the end of a segment's sending to its arrival.
	Delay time.Duration
	// Queue is how many bytes may be on their way, from Write to Read, as
	// both socket buffers of TCP and the path between them hold. A Write
	// that finds it full blocks, so that no more than Queue bytes per Delay
	// get through.
	Queue int
}

// DefaultQueue is the queue of a Link that doesn't name one, in bytes.
const DefaultQueue = 256 << 10

// segmentLen is how many bytes arrive at once, as in TCP over Ethernet.
const segmentLen = 1448

// A half is one direction of a connection: what one end writes and the other
// reads. Bytes are on their way until their mark is due, and then arrived.
type half struct {
	mu       sync.Mutex
	link     Link
	data     bytes.Buffer // arrived bytes, then those on their way
	arrived  int          // bytes
	marks    []mark       // what is on its way, in order of arrival
	idleAt   time.Time    // when the link has sent all that it was given
	stalled  bool         // nothing arrives
	ended    bool         // FIN was written
	endSeen  bool         // FIN arrived
	deserted bool         // the reading end is closed
	closed   bool         // the writing end is closed
	err      error        // the connection was reset
	busy     bool         // a Write is running; others wait for it

	reader, writer waiter
}

// A mark is the arrival of some bytes, or of FIN.
type mark struct {
	at  time.Time
	n   int
	fin bool
}

// A waiter is where one side of a half waits, and until when.
type waiter struct {
	cond     sync.Cond
	timer    *time.Timer // broadcasts; made when first needed
	deadline time.Time
}

func newHalf(l Link) *half {
	h := &half{}
	h.reader.cond.L = &h.mu
	h.writer.cond.L = &h.mu
	h.setLink(l)
	return h
}

func (h *half) setLink(l Link) {
	if l.Queue <= 0 {
		l.Queue = DefaultQueue
	}
	h.link = l
}

// wait releases the half's lock until something changes, and at the latest at
// the deadline and at the time that is given, unless that is zero. The timer
// isn't stopped afterwards, since another call may wait for it.
func (w *waiter) wait(until time.Time) {
	if until.IsZero() || !w.deadline.IsZero() && w.deadline.Before(until) {
		until = w.deadline
	}
	if until.IsZero() {
		w.cond.Wait()
		return
	}
	d := time.Until(until)
	if w.timer == nil {
		w.timer = time.AfterFunc(d, func() {
			w.cond.L.Lock()
			defer w.cond.L.Unlock()
			w.cond.Broadcast()
		})
	} else {
		w.timer.Reset(d)
	}
	w.cond.Wait()
}

func (w *waiter) expired(now time.Time) bool {
	return !w.deadline.IsZero() && !now.Before(w.deadline)
}

// wake lets everybody who waits look again.
func (h *half) wake() {
	h.reader.cond.Broadcast()
	h.writer.cond.Broadcast()
}

// send puts n bytes that are already in data, or FIN, on their way.
func (h *half) send(now time.Time, n int, fin bool) {
	if h.idleAt.Before(now) {
		h.idleAt = now
	}
	for first := true; first || n > 0; first = false {
		m := mark{n: min(n, segmentLen)}
		if h.link.Rate <= 0 {
			m.n = n
		} else {
			h.idleAt = h.idleAt.Add(time.Duration(int64(m.n) * int64(time.Second) / h.link.Rate))
		}
		n -= m.n
		m.fin = fin && n == 0
		m.at = h.idleAt.Add(h.link.Delay)
		if last := len(h.marks) - 1; last >= 0 && m.at.Before(h.marks[last].at) {
			m.at = h.marks[last].at // a faster link doesn't overtake
		}
		h.marks = append(h.marks, m)
	}
}

// settle lets arrive what is due.
func (h *half) settle(now time.Time) {
	if h.stalled {
		return
	}
	i := 0
	for ; i < len(h.marks) && !h.marks[i].at.After(now); i++ {
		h.arrived += h.marks[i].n
		h.endSeen = h.endSeen || h.marks[i].fin
	}
	h.marks = slices.Delete(h.marks, 0, i)
}

// nextArrival is the time of the next change by itself; zero if there is none.
func (h *half) nextArrival() time.Time {
	if h.stalled || len(h.marks) == 0 {
		return time.Time{}
	}
	return h.marks[0].at
}

// stall holds what hasn't arrived, or sends it anew.
func (h *half) stall(on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	h.settle(now)
	if on == h.stalled {
		return
	}
	h.stalled = on
	if !on {
		held := h.marks
		h.marks, h.idleAt = nil, now
		for _, m := range held {
			h.send(now, m.n, m.fin)
		}
	}
	h.wake()
}

// finish writes FIN, once.
func (h *half) finish(now time.Time) {
	if !h.ended {
		h.ended = true
		h.send(now, 0, true)
	}
}

// reset loses what nobody has read and fails both ends.
func (h *half) reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.err = syscall.ECONNRESET
	h.drop()
	h.wake()
}

func (h *half) drop() {
	h.data = bytes.Buffer{}
	h.marks, h.arrived = nil, 0
}

package tcpls

import "time"

// A window is the receiving side of flow control, for a stream or for a
// session: pure arithmetic, guarded by its owner's lock.
type window struct {
	size, max uint64
	limit     uint64    // credit given: bytes that may arrive
	received  uint64    // bytes that arrived
	consumed  uint64    // bytes that the application took, or that were dropped
	since     time.Time // when limit was last raised
}

// minTunedRTT keeps windows small where the peer is near: bytes that wait in
// the caches are cheaper than bytes that wait in memory.
const minTunedRTT = 50 * time.Microsecond

func newWindow(size, max int) window {
	return window{size: uint64(size), max: uint64(max), limit: uint64(size)}
}

// receive counts n bytes that arrived and reports whether they were allowed.
func (w *window) receive(n int) bool {
	w.received += uint64(n)
	return w.received <= w.limit
}

// consume counts n bytes taken and reports whether new credit is due, which is
// once half a window can be given, or a quarter where the peer is being told
// something anyway; the owner calls raise then.
func (w *window) consume(n int, telling bool) (due bool) {
	w.consumed += uint64(n)
	least := w.size / 2
	if telling {
		least = w.size / 4
	}
	return w.owed() >= least
}

// owed is how much credit can be given.
func (w *window) owed() uint64 { return w.consumed + w.size - w.limit }

// raise gives new credit.
//
// The window doubles, up to max, where it and not the reader holds the sender
// back: when half of it would be used up in less than two round trips, at the
// rate since the last time, and the reader has kept up.
func (w *window) raise(rtt time.Duration, now time.Time) {
	keptUp := w.received-w.consumed <= w.size/4
	half := now.Sub(w.since).Seconds() * float64(w.size/2) / float64(w.owed())
	if keptUp && !w.since.IsZero() && half < 2*max(rtt, minTunedRTT).Seconds() {
		w.size = min(2*w.size, w.max)
	}
	w.limit = w.consumed + w.size
	w.since = now
}

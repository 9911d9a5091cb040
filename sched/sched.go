// Package sched decides which paths of a tcpls session carry what is written
// to its streams. A Scheduler gets a picture of the paths for each batch of
// bytes and picks one of them, or several. It is a pure decision: it changes
// nothing, holds nothing, and can be tested with a table.
//
// Whatever a scheduler picks, every byte arrives once and in order: it decides
// on when, not on whether.
package sched

import (
	"math/bits"
	"time"
)

// A Scheduler picks the paths of each batch. Its methods are called by many
// goroutines at once, those that write to streams, and hold up whoever calls
// Write. No lock of the session is held meanwhile, so they may call its methods,
// but not write to its streams.
type Scheduler interface {
	// Pick returns the paths for the batch b. Of several, the one that has room
	// and on which it is likely to arrive first gets it, and the others get
	// copies, unless 512 KiB wait for their sockets. It is called with two paths at least and MaxPaths at most,
	// which may be used for new bytes: those that are silent, about to be
	// closed, or backups beside better ones, aren't among them. The slice is
	// the caller's, and valid only during the call.
	//
	// A set in which every path is full, and the empty one, mean that the batch
	// waits until some path has room; then Pick is called again. Where nothing
	// waits for any path's socket, and so nothing would end the waiting, the
	// session chooses for itself.
	Pick(b Batch, paths []Path) Set
}

// Func is a function as a Scheduler.
type Func func(b Batch, paths []Path) Set

// Pick calls f.
func (f Func) Pick(b Batch, paths []Path) Set { return f(b, paths) }

// MaxPaths is how many paths a Scheduler gets to see; a session uses more only
// when these are gone.
const MaxPaths = 64

// A Batch is some bytes of a stream that are to be sent.
type Batch struct {
	// Stream is the number of the stream.
	Stream uint32
	// Bytes is how many they are, at most 64 KiB.
	Bytes int
	// Credit is how many more bytes of the stream the receiver takes and the
	// sender keeps now, these included. They hold all of them, if need be, while
	// one comes late.
	Credit uint64
}

// A Path is what is known of a path at the moment.
type Path struct {
	// ID is the number of the path, unique in the session.
	ID uint32
	// Weight is what the application gave it, from 1 to MaxWeight; 1 if nothing.
	Weight int
	// Full tells that enough waits for the socket: nothing is added while it
	// does.
	Full bool
	// Queued is how many bytes wait for the socket, or for TCP to send them where
	// the system tells.
	Queued int
	// Sent is how many bytes the path was given since the paths or their weights
	// last changed.
	Sent uint64
	// Copied is how many bytes of copies the path was given in the last ten seconds,
	// or less.
	Copied uint64
	// RTT is the smoothed round-trip time; 0 if it isn't known.
	RTT time.Duration
	// MinRTT is the shortest round trip, without what waits before the slowest link;
	// 0 where the system doesn't tell.
	MinRTT time.Duration
	// OnWay is how many bytes TCP has sent that aren't acknowledged; 0 where the
	// system doesn't tell.
	OnWay int
	// Rate is how many bytes per second the path carries: Window in each round
	// trip, or where that isn't known, what the path's full socket took; 0 while
	// it has not been full.
	Rate int64
	// Window is how many bytes TCP lets be on their way at once: the smaller one
	// of its congestion window and the peer's; 0 where the system doesn't tell.
	Window int64
	// SlowStart tells that TCP lets Window, and with it Rate, grow as in slow
	// start, by half or more in the last round trip.
	SlowStart bool
}

// MaxWeight is the largest weight of a path.
const MaxWeight = 1000

// Arrival estimates how long n more bytes take to the peer: half a round trip,
// and the time that they and what is queued before them need at the path's
// rate. A path whose rate isn't known counts as slow if it is long.
func (p *Path) Arrival(n int) time.Duration {
	if p.Rate <= 0 {
		return 3 * p.RTT / 2
	}
	way := p.RTT / 2
	if p.MinRTT > 0 {
		onWay := time.Duration(float64(p.OnWay) / float64(p.Rate) * float64(time.Second))
		way = max(p.RTT, onWay) - p.MinRTT/2
	}
	return way + time.Duration(float64(p.Queued+n)/float64(p.Rate)*float64(time.Second))
}

// A Set is a set of paths: bit i stands for the i-th of those that Pick was
// called with.
type Set uint64

// One is the set of the i-th path alone, and empty if i is negative.
func One(i int) Set {
	if i < 0 {
		return 0
	}
	return 1 << i
}

// All is the set of the first n paths.
func All(n int) Set { return 1<<n - 1 }

// Has reports whether the i-th path is in the set.
func (s Set) Has(i int) bool { return s>>i&1 == 1 }

// Len is how many paths are in the set.
func (s Set) Len() int { return bits.OnesCount64(uint64(s)) }

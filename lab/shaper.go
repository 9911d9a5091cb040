package lab

import (
	"math/rand/v2"
	"time"
)

// A shaper decides what becomes of the packets of one direction. It knows no
// clock and holds no packet: time is nanoseconds on any scale.
type shaper struct {
	shape Shape
	rng   *rand.Rand
	free  int64 // when the link will have sent all that it took
	last  int64 // when the last packet arrives: none overtakes it
	bad   bool  // in the state of the Gilbert–Elliott model that loses all
}

// A fate is what becomes of a packet.
type fate int

const (
	delivered fate = iota
	lost           // at random
	overflown      // no room in the queue
	swallowed      // by a black hole
	tooBig
)

// admit says what becomes of a packet that is there now, and when it arrives.
func (s *shaper) admit(now int64, size int) (at int64, f fate) {
	switch {
	case s.shape.Blackhole:
		return 0, swallowed
	case s.shape.MaxPacket > 0 && size > s.shape.MaxPacket:
		return 0, tooBig
	case s.lose():
		return 0, lost
	}
	at = now
	if s.shape.Rate > 0 {
		s.free = max(s.free, now)
		if s.backlog(now)+size > s.shape.queue() {
			return 0, overflown
		}
		s.free += int64(float64(size) * 8e9 / float64(s.shape.Rate))
		at = s.free
	}
	at += int64(s.shape.Delay)
	if s.shape.Jitter > 0 {
		at += s.rng.Int64N(int64(s.shape.Jitter) + 1)
	}
	at = max(at, s.last)
	s.last = at
	return at, delivered
}

// backlog returns how many bytes are waiting.
func (s *shaper) backlog(now int64) int {
	if s.shape.Rate == 0 || s.free <= now {
		return 0
	}
	return int(float64(s.free-now) * float64(s.shape.Rate) / 8e9)
}

// lose decides by chance. With bursts, the chances to enter and to leave the
// bad state are such that they have their mean length, and the fraction of
// packets lost is its own.
func (s *shaper) lose() bool {
	loss, burst := s.shape.Loss, s.shape.LossBurst
	switch {
	case loss <= 0:
		return false
	case loss >= 1:
		return true
	case burst <= 1:
		return s.rng.Float64() < loss
	}
	leave := 1 / burst
	if s.bad {
		s.bad = s.rng.Float64() >= leave
	} else {
		s.bad = s.rng.Float64() < leave*loss/(1-loss)
	}
	return s.bad
}

// set changes the shape. What is under way arrives as it would have, and what
// waits is taken to be sent at the old rate.
func (s *shaper) set(shape Shape) {
	if shape.Rate == 0 {
		s.free = 0
	}
	s.shape, s.bad = shape, false
}

// Counters say what became of the packets of one direction of a link since
// the network was made.
type Counters struct {
	Packets, Bytes uint64 // that the link was given
	Delivered      uint64 // packets
	Lost           uint64 // at random, by Shape.Loss
	Overflown      uint64 // no room in the queue
	Blackholed     uint64 // by Shape.Blackhole
	TooBig         uint64 // by Shape.MaxPacket
	Filtered       uint64 // by middleboxes
	Undelivered    uint64 // the interface at the other end was down
	MostQueued     int    // bytes that waited at a time
	// Late is by how much packets were late, in the mean, and LateMost at most:
	// what the emulator adds to Delay without being told.
	Late, LateMost time.Duration
}

func (c *Counters) count(f fate) {
	switch f {
	case lost:
		c.Lost++
	case overflown:
		c.Overflown++
	case swallowed:
		c.Blackholed++
	case tooBig:
		c.TooBig++
	}
}

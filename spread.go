package tcpls

import (
	"errors"
	"fmt"
	"time"

	"github.com/go-tcpls/tcpls/internal/osnet"
)

// Spreading. A stream's records are numbered, whatever path they come on, and
// the receiver holds what comes before its turn. So a stream needs nothing but a
// choice of path for each batch of records to use several at once: ATTACH says
// where its next ones are (protocol 9.10).

// A Mode says how a session uses its paths for what it sends.
type Mode int

const (
	// ModeFailover sends on one path, the main one; the others stand by.
	ModeFailover Mode = iota
	// ModeAggregate sends each batch of records on the path on which it is
	// likely to arrive first, and so uses all of them for what one can't carry
	// alone. A slow path is used only as far as what must wait for it fits into
	// the receiver's credit, so that it never holds up a fast one.
	ModeAggregate
	// ModeRedundant sends everything on every path: what arrives first counts.
	ModeRedundant
)

func (m Mode) String() string {
	switch m {
	case ModeFailover:
		return "failover"
	case ModeAggregate:
		return "aggregate"
	case ModeRedundant:
		return "redundant"
	}
	return fmt.Sprintf("mode %d", int(m))
}

const (
	// spreadBatch is how many stream bytes go on one path before the next
	// choice: few enough that a slow path has them soon.
	spreadBatch = 64 << 10
	// spreadUnsent is how much may wait for a path's socket before the path
	// counts as full.
	spreadUnsent = 32 << 10
	// spreadLowWater is how much the kernel may hold of a path that it hasn't
	// sent, for the same reason.
	spreadLowWater = 128 << 10
)

// spreads reports whether what this end sends goes on several paths at once.
func (s *Session) spreads() bool { return s.inMode(ModeAggregate) && len(s.livePaths()) > 1 }

func (s *Session) inMode(m Mode) bool { return Mode(s.mode.Load()) == m }

// takeMode follows the peer's wish where the application has none.
func (s *Session) takeMode(wish uint64) {
	if s.cfg.Mode != ModeFailover || wish == 0 || wish > uint64(ModeRedundant) {
		return
	}
	s.mode.Store(int32(wish))
	for _, p := range s.livePaths() {
		p.setLowWater()
	}
}

// setLowWater leaves the choice of a path to us for as long as can be.
func (p *Path) setLowWater() {
	if p.raw != nil && p.sess.inMode(ModeAggregate) {
		_ = osnet.SetNotSentLowWater(p.raw, spreadLowWater) // without it, slower paths get a little more than they should
	}
}

// pick returns the path for n more bytes, of which the peer's credit allows
// room; nil: they had better wait.
func (s *Session) pick(n int, room uint64) *Path {
	var fast, next *Path
	var soonest, nextBest time.Duration
	for _, p := range s.livePaths() {
		if !p.usable() {
			continue
		}
		t := p.arrival(n)
		if fast == nil || t < soonest {
			fast, soonest = p, t
		}
		if p.unsent.Load() < spreadUnsent && (next == nil || t < nextBest) {
			next, nextBest = p, t
		}
	}
	if next == nil || next == fast {
		return next
	}
	if fast.rate.Load() == 0 && nextBest > 2*soonest {
		return nil // it is too early to tell how much the slow one would hold up
	}
	// Until the bytes are there, those that the fast path brings wait for them.
	if waiting := float64(fast.rate.Load()) * nextBest.Seconds(); waiting > float64(room)/2 {
		return nil
	}
	return next
}

// arrival estimates how long n more bytes take to the peer.
func (p *Path) arrival(n int) time.Duration {
	t := time.Duration(p.roundTrip.Load()) / 2
	rate := p.rate.Load()
	if rate == 0 { // as yet; a long way is taken for a slow one
		return 3 * t
	}
	return t + time.Duration(float64(p.unsent.Load()+int64(n))/float64(rate)*float64(time.Second))
}

// hasten sends again, on the fastest path, what slower ones still have of a
// stream that has ended: nothing else is there to be sent, and the end would
// come no sooner than the slowest of them. The caller holds sendMu.
func (s *Stream) hasten() {
	if !s.sess.spreads() || s.reset || s.replayOn != nil {
		return
	}
	var fast *Path
	for _, p := range s.sess.livePaths() {
		if p.usable() && (fast == nil || p.arrival(spreadBatch) < fast.arrival(spreadBatch)) {
			fast = p
		}
	}
	if fast != nil && fast.unsent.Load() < maxUnsent && s.kept.doubt(fast) {
		s.replayOver(fast)
		go s.replayOn.carryOn()
	}
}

// usable reports whether something is to be sent on the path.
func (p *Path) usable() bool { return p.works() && (!p.rank.backup() || p.sess.onlyBackups()) }

// works reports whether something may be sent on the path.
func (p *Path) works() bool {
	return !p.gone.Load() && !p.suspected.Load() && !p.leaving.Load()
}

// took notes that a full socket took n bytes in d, from which the path's rate
// is known.
func (p *Path) took(n int, d time.Duration) {
	if d < time.Millisecond || n < spreadUnsent/2 {
		return // what fits into a buffer says nothing
	}
	rate := int64(float64(n) / d.Seconds())
	if old := p.rate.Load(); old > 0 {
		rate = (3*old + rate) / 4
	}
	p.rate.Store(rate)
}

// roomFor reports whether some path has room, for a stream that waits.
func (s *Session) roomFor() bool {
	for _, p := range s.livePaths() {
		if p.usable() && p.unsent.Load() < spreadUnsent {
			return true
		}
	}
	return false
}

// copyTo sends the records of s from number first on, which p has, on the other
// paths too, as far as they keep up. The caller has set sealing.
func (s *Stream) copyTo(p *Path, first uint64) error {
	for _, other := range s.sess.livePaths() {
		if other == p || !other.usable() {
			continue
		}
		if err := other.copies(s, first); err != nil {
			return err
		}
	}
	s.attached = p
	return nil
}

func (p *Path) copies(s *Stream, first uint64) error {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	if p.ended || p.endDue || p.held || p.unsent.Load() >= maxUnsent {
		return nil
	}
	records, at := s.kept.from(first, maxHeld)
	if len(records) == 0 {
		return nil
	}
	if err := p.announce(s.id, true, s.epochOf(at), at); err != nil {
		return err
	}
	p.resent.Add(uint64(len(records)))
	for _, rec := range records {
		p.repeat(rec)
	}
	p.flush()
	return nil
}

// SetPath sends what is written to the stream from now on over p and no other
// path, so that it doesn't wait for what others carry; nil leaves the choice to
// Config.Mode again. While p is silent, or a backup beside a better path, or after
// it has failed, the stream goes on as if it had no path of its own. The error is a *PathError if p isn't active or isn't a path
// of the stream's session, or ErrNotTCPLS. The peer's direction is the peer's
// business.
func (s *Stream) SetPath(p *Path) error {
	switch {
	case s.plain != nil:
		return ErrNotTCPLS
	case p != nil && p.sess != s.sess:
		return &PathError{Path: p.ID(), Op: "set", Err: errors.New("it is of another session")}
	case p != nil && p.State() != PathActive:
		return &PathError{Path: p.ID(), Op: "set", Err: fmt.Errorf("it is %v", p.State())}
	}
	s.sendMu.Lock()
	for s.sealing {
		s.sendCond.Wait()
	}
	if p != nil && s.pin.Load() == nil {
		s.sess.gate.pins.Add(1)
	}
	s.pin.Store(p)
	s.moved = s.sendCtx.Seq()
	s.sendMu.Unlock()
	s.sess.gate.wake()
	return nil
}

// pinned is the stream's own path, nil if it has none that can be used.
func (s *Stream) pinned() *Path {
	if p := s.pin.Load(); p != nil && p.usable() {
		return p
	}
	return nil
}

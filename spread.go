package tcpls

import (
	"fmt"
	"maps"
	"time"

	"github.com/go-tcpls/tcpls/sched"
)

// Spreading. A stream's records are numbered, whatever path they come on, and
// the receiver holds what comes before its turn. So a stream needs nothing but a
// choice of path for each batch of records to use several at once: ATTACH says
// where its next ones are (protocol 9.10).

// A Mode says how a session uses its paths for what it sends.
type Mode int

const (
	// ModePeer does what the peer asks for, or else as ModeFailover.
	ModePeer Mode = iota
	// ModeFailover sends on one path, the main one; the others stand by.
	ModeFailover
	// ModeAggregate sends each batch of records on the path on which it is
	// likely to arrive first, and so uses all of them for what one can't carry
	// alone. A slow path is used only as far as what must wait for it fits into
	// the receiver's credit, so that it never holds up a fast one. Where the
	// paths have different weights, it gives them shares in proportion instead.
	// Acknowledgements and credit go over the main path, which a joining one
	// becomes that is much shorter.
	ModeAggregate
	// ModeRedundant sends everything on every path: what arrives first counts.
	// The fastest one sets the pace; one that can't keep up misses some.
	ModeRedundant
	// ModePinned gives each stream a path of its own, the one with the fewest
	// streams for its weight, so that no stream waits for what another path
	// carries. A stream moves when its path is gone, or when another one has
	// fewer.
	ModePinned
)

func (m Mode) String() string {
	switch m {
	case ModePeer:
		return "peer"
	case ModeFailover:
		return "failover"
	case ModeAggregate:
		return "aggregate"
	case ModeRedundant:
		return "redundant"
	case ModePinned:
		return "pinned"
	}
	return fmt.Sprintf("mode %d", int(m))
}

// A policy is how a session uses its paths.
type policy struct {
	mode      Mode
	scheduler sched.Scheduler // nil: the main path carries all streams without one of their own
	own       bool            // the scheduler is the application's
}

// usePolicy goes over to a mode, or to the application's scheduler if it has
// one.
func (s *Session) usePolicy(mode Mode, own sched.Scheduler) {
	next := policy{max(mode, ModeFailover), own, own != nil}
	switch {
	case next.own:
	case mode == ModeAggregate:
		next.scheduler = sched.Func(aggregate)
	case mode == ModeRedundant:
		next.scheduler = sched.Redundant()
	}
	s.policy.Store(&next)
}

// wish is the parameter of the handshake that asks the peer for m.
func (m Mode) wish() uint64 { return uint64(max(m, ModeFailover) - ModeFailover) }

// SetScheduler makes x decide on what is written from now on, as
// Config.Scheduler does; nil leaves that to the session's Mode again. It
// concerns what this end sends.
func (s *Session) SetScheduler(x sched.Scheduler) {
	if s.plain != nil {
		return
	}
	s.usePolicy(s.manner().mode, x)
	s.pathsChanged()
}

// pathsChanged lets streams that wait for a path, or because there are several,
// look anew. The caller holds no lock.
func (s *Session) pathsChanged() {
	s.gate.wake()
	pinned := s.manner().mode == ModePinned
	for _, st := range s.openStreams() {
		st.sendMu.Lock()
		if pinned || st.stuck {
			st.sendCond.Broadcast()
		}
		st.sendMu.Unlock()
	}
}

// takeMode follows the peer's wish where the application has none.
func (s *Session) takeMode(wish uint64) {
	if s.cfg.Mode == ModePeer && s.cfg.Scheduler == nil && wish <= ModePinned.wish() {
		s.usePolicy(ModeFailover+Mode(wish), nil)
	}
}

// manner is the session's policy.
func (s *Session) manner() policy {
	if p := s.policy.Load(); p != nil {
		return *p
	}
	return policy{} // of a peer that doesn't speak TCPLS
}

// scheduler decides on the path of each batch, nil where there is nothing to
// decide.
func (s *Session) scheduler() sched.Scheduler { return s.manner().scheduler }

// spreads reports whether what this end sends goes on several paths at once.
func (s *Session) spreads() bool { return s.scheduler() != nil && len(s.livePaths()) > 1 }

// shares reports whether the next bytes of a stream may go on several paths, be it
// for the moment only.
func (s *Session) shares() bool {
	return (s.scheduler() != nil || s.handing.current.Load() != nil) && len(s.livePaths()) > 1
}

// carriers are the paths that what this end sends may be spread over.
func (s *Session) carriers() []*Path {
	if h := s.handing.current.Load(); h != nil && s.scheduler() == nil {
		return h.paths[:]
	}
	return s.livePaths()
}

// repeats reports whether everything goes on all paths.
func (s *Session) repeats() bool {
	p := s.manner()
	return p.mode == ModeRedundant && !p.own
}

// aggregate is the scheduler of ModeAggregate.
func aggregate(b sched.Batch, paths []sched.Path) sched.Set {
	for i := range paths {
		if paths[i].Weight != paths[0].Weight {
			return sched.Weighted().Pick(b, paths)
		}
	}
	return sched.Earliest().Pick(b, paths)
}

const (
	// spreadBatch is how many stream bytes go on one path before the next
	// choice: few enough that a slow path has them soon.
	spreadBatch = 64 << 10
	// spreadUnsent is how much may wait for a path's socket before the path
	// counts as full.
	spreadUnsent = 32 << 10
)

// hasten sends again, on the fastest path, what slower ones still have of a
// stream that has ended: nothing else is there to be sent, and the end would
// come no sooner than the slowest of them. Each record is hastened once. The caller
// holds sendMu, and nobody seals.
func (s *Stream) hasten() {
	if fast := s.fastest(); fast != nil {
		s.repeatOver(fast)
	}
}

// relieve does the same for a stream that goes on, where the receiver's credit
// or our memory is used up because a path needs much longer for the oldest
// record than the fastest one would. The caller holds sendMu, and nobody seals.
func (s *Stream) relieve() {
	at := s.kept.oldest()
	if at == nil || !at.works() {
		return
	}
	fast := s.fastest()
	if fast == nil || fast == at {
		return
	}
	late, again := at.view(), fast.view()
	if late.Arrival(0) > 2*again.Arrival(s.kept.elsewhere(fast, s.hastened)) {
		s.repeatOver(fast)
	}
}

// fastest is the path on which a batch of the stream would arrive first; nil if
// the stream doesn't go on several at once.
func (s *Stream) fastest() (fast *Path) {
	if !s.sess.shares() || s.sess.repeats() || s.reset || s.replayOn != nil || s.pinned() != nil || s.sess.holding.Load() {
		return nil
	}
	soonest := time.Duration(0)
	for _, p := range s.sess.carriers() {
		if !p.usable() {
			continue
		}
		view := p.view()
		if t := view.Arrival(spreadBatch); fast == nil || t < soonest {
			fast, soonest = p, t
		}
	}
	return fast
}

// repeatOver sends again on p what other paths have of the stream.
func (s *Stream) repeatOver(p *Path) {
	if p.unsent.Load() >= maxUnsent {
		return
	}
	from := s.hastened
	s.hastened = s.sendCtx.Seq()
	if s.kept.doubt(p, from) {
		s.replayOver(p)
		go s.replayOn.carryOn()
		s.check(p)
	}
}

// usable reports whether something is to be sent on the path.
func (p *Path) usable() bool { return p.works() && (!p.rank.backup() || p.sess.onlyBackups()) }

// works reports whether something may be sent on the path.
func (p *Path) works() bool {
	return !p.gone.Load() && !p.suspected.Load() && !p.leaving.Load()
}

// full reports whether enough waits for the path's socket.
func (p *Path) full() bool { return p.unsent.Load() >= spreadUnsent }

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
	for _, p := range s.carriers() {
		if p.usable() && !p.full() {
			return true
		}
	}
	return false
}

// copyFrom sends the records of s from number first on, which p has, on the
// other paths too that the scheduler has picked, as far as they keep up. What
// isn't a batch, as the end of a stream, goes where the last batch has gone. The
// caller has set sealing.
func (s *Stream) copyFrom(p *Path, first uint64, batch bool) error {
	others := s.copied
	switch {
	case s.pinned() != nil || s.sess.scheduler() == nil:
		return nil
	case !batch && s.sess.repeats():
		others = s.sess.livePaths()
	}
	for _, other := range others {
		if other == p || !other.usable() {
			continue
		}
		if err := other.copies(s, first); err != nil {
			return err
		}
	}
	s.attached = p
	s.place(p, s.sendCtx.Seq())
	return nil
}

// continues reports whether p has the stream's records up to number seq, so that
// the peer knows which one is next there (protocol 4.4). The caller has set sealing.
func (s *Stream) continues(p *Path, seq uint64) bool {
	if s.attached == nil { // records were sent again since
		clear(s.placed)
	}
	at, ok := s.placed[p]
	return ok && at == seq
}

// place notes that p has the stream's records up to number seq. The caller has
// set sealing.
func (s *Stream) place(p *Path, seq uint64) {
	if s.placed == nil {
		s.placed = make(map[*Path]uint64)
	}
	if _, ok := s.placed[p]; !ok {
		maps.DeleteFunc(s.placed, func(old *Path, _ uint64) bool { return old.gone.Load() })
	}
	s.placed[p] = seq
}

func (p *Path) copies(s *Stream, first uint64) error {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	if p.ended || p.endDue || p.held || p.unsent.Load() >= maxUnsent || p.sess.gate.halfCrowded() {
		return nil
	}
	records, at := s.kept.from(first, maxHeld)
	if len(records) == 0 {
		return nil
	}
	if err := p.announce(s.id, !s.continues(p, at), s.epochOf(at), at); err != nil {
		return err
	}
	s.place(p, at+uint64(len(records)))
	p.resent.Add(uint64(len(records)))
	for _, rec := range records {
		p.copied.n.Add(uint64(rec.length))
		p.repeat(rec)
	}
	p.flush()
	return nil
}

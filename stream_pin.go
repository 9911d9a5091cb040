package tcpls

import (
	"errors"
	"fmt"
)

// Paths of a stream's own: those that the application gave it by SetPath, and
// those that ModePinned allots.

// SetPath sends what is written to the stream from now on over p and no other
// path, so that it doesn't wait for what others carry; nil leaves the choice to
// Config.Mode and Config.Scheduler again. While p is silent, or a backup beside
// a better path, or after it has failed, the stream goes on as if it had no path
// of its own. The error is a *PathError if p isn't active or isn't a path
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
	changed := s.pin.Load() != p
	if changed {
		s.pinTo(p)
	}
	s.vacate()
	s.sendMu.Unlock()
	if changed {
		s.sess.gate.wake()
	}
	return nil
}

// Path returns the stream's own path, by SetPath or ModePinned; nil if it has
// none.
func (s *Stream) Path() *Path { return s.pin.Load() }

// pinTo makes p the stream's own path. The caller holds sendMu, and nobody
// seals.
func (s *Stream) pinTo(p *Path) {
	from := s.pin.Swap(p)
	s.countPin(p != nil)
	if from != p {
		s.sess.tellSoon(Event{Kind: EventStreamAttached, Stream: s, Path: p})
	}
	s.moved = s.sendCtx.Seq()
}

// countPin counts the stream among those with a path of their own, for which the
// gate does more, or no longer.
func (s *Stream) countPin(has bool) {
	if s.pinCounted.Swap(has) == has {
		return
	}
	if has {
		s.sess.gate.pins.Add(1)
	} else {
		s.sess.gate.pins.Add(-1)
	}
}

// pinned is the stream's own path, nil if it has none that can be used.
func (s *Stream) pinned() *Path {
	if p := s.pin.Load(); p != nil && p.usable() {
		return p
	}
	return nil
}

// allot gives the stream a path of its own in ModePinned, if it has none or a
// crowded one. The caller holds sendMu, and nobody seals.
func (s *Stream) allot() {
	if p := s.sess.manner(); p.mode != ModePinned || p.own {
		return
	}
	from := s.allotted.Load()
	if s.pin.Load() != from { // the application's choice
		return
	}
	if from != nil && !from.usable() {
		from = nil
	}
	var to *Path
	for _, p := range s.sess.livePaths() {
		if p.usable() && (to == nil || p.crowd(1) < to.crowd(1)) {
			to = p
		}
	}
	if to == nil || to == from || from != nil && from.crowd(0) <= to.crowd(1) {
		return
	}
	s.vacate()
	to.allotted.Add(1)
	s.allotted.Store(to)
	s.pinTo(to)
}

// crowd is how many streams have the path for their own, and n more, for its
// weight.
func (p *Path) crowd(n int32) float64 { return float64(p.allotted.Load()+n) / float64(p.Weight()) }

// vacate takes the stream off those that were allotted to its path.
func (s *Stream) vacate() {
	if p := s.allotted.Swap(nil); p != nil {
		p.allotted.Add(-1)
	}
}

package tcpls

import (
	"cmp"
	"time"
)

// voice is the path on which words are said: the main one or, where several are
// in use, one that is much shorter. The peer waits for credit, and keeps what
// isn't acknowledged.
func (s *Session) voice() *Path {
	if p := s.speaker.Load(); p != nil && p.usable() && s.spreads() && !s.over() {
		return p
	}
	return s.path()
}

// speak says what is due, on another path than before if one is shorter by a
// quarter. It is called after every change of the paths, since the voice may have
// had no room for what is due. The caller holds no lock.
func (s *Session) speak() {
	if s.spreads() {
		old := s.voice()
		best := old
		for _, p := range s.livePaths() {
			if rtt := p.shortestRTT(); p.usable() && rtt > 0 && 4*rtt < 3*best.shortestRTT() {
				best = p
			}
		}
		if best != old {
			s.speaker.Store(best)
		}
	}
	if s.words.due.Load() {
		s.voice().kick()
	}
}

// shortestRTT is the path's round trip without what waits on its way, as far as
// that is known.
func (p *Path) shortestRTT() time.Duration {
	return time.Duration(cmp.Or(p.shortest.Load(), p.roundTrip.Load()))
}

package lab

// A resetter resets the TCP connections that exist when it begins.
type resetter struct {
	spared map[flow]bool // connections that began later, by both directions
}

// mostSpared is when a resetter gives up: by then, whoever had something to say
// has said it.
const mostSpared = 1 << 16

func (r *resetter) pass(p passage) []byte {
	s, ok := parseTCP(p.ip)
	if !ok || s.is(flagRST) || len(r.spared) >= mostSpared {
		return p.ip
	}
	f := s.flow()
	if s.is(flagSYN) {
		if r.spared == nil {
			r.spared = make(map[flow]bool)
		}
		r.spared[f], r.spared[f.reverse()] = true, true
		return p.ip
	}
	if r.spared[f] || !s.is(flagACK) {
		return p.ip
	}
	forward, back := s.reset()
	p.send(p.to.other(), back)
	return forward
}

package lab

import (
	"encoding/gob"
	"math/rand/v2"
	"time"
)

// A Middlebox is something on a link that looks into packets and meddles with
// them. Those of this package are its values; they are descriptions, and the
// emulator does the work. Programs that are middleboxes run on a host between
// two links: see [HostSpec.Forward] and [Host.Command].
type Middlebox interface {
	// install returns the middlebox at work.
	install(*rand.Rand) box
}

func init() {
	for _, m := range []Middlebox{
		StripOptions{}, ClampMSS{}, CutAfter{}, HelloFilter{}, NAT{}, Firewall{}, RewriteSequence{},
	} {
		gob.Register(m)
	}
}

// A box is a middlebox at work. It belongs to the emulator's loop.
type box interface {
	// pass handles a packet. What it returns goes on; nil means that the
	// packet goes no further. The packet is the box's to change.
	pass(p passage) []byte
}

// A passage is a packet on its way through a box.
type passage struct {
	ip  []byte
	to  side // the end to which it goes
	now time.Duration
	// sends another packet straight to an end, but for the boxes in between
	send func(from int, to side, ip []byte, now time.Duration)
	at   int // where this box stands among the link's
}

// A side is an end of a link.
type side int

const (
	sideA side = iota
	sideB
)

func (s side) other() side { return 1 - s }

// A table is what a middlebox remembers, at most mostRemembered things: then it
// forgets some, as real ones do.
type table[K comparable, V any] map[K]V

const mostRemembered = 1 << 16

func (t table[K, V]) put(k K, v V) {
	if _, ok := t[k]; !ok && len(t) >= mostRemembered {
		for old := range t {
			delete(t, old)
			break
		}
	}
	t[k] = v
}

// reset ends a connection by RSTs to both ends, if the segment allows it.
func (p passage) reset(s segment) []byte {
	if !s.is(flagACK) || s.is(flagRST) {
		return nil
	}
	forward, back := s.reset()
	p.send(p.at, p.to.other(), back, p.now)
	return forward
}

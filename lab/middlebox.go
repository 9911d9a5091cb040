package lab

import "time"

// A Middlebox is something on a link that looks into packets and meddles with
// them. It is a description: the emulator does it.
type Middlebox interface {
	// install returns the middlebox at work.
	install() box
}

// A box is a middlebox at work. It belongs to the emulator's loop.
type box interface {
	// pass handles a packet. What it returns goes on; nil means that the
	// packet goes no further. The packet is the box's to change.
	pass(p passage) []byte
}

// A passage is a packet on its way through a box.
type passage struct {
	ip   []byte
	to   side // the end to which it goes
	now  time.Duration
	send func(to side, ip []byte) // sends another packet straight to an end
}

// A side is an end of a link.
type side int

const (
	sideA side = iota
	sideB
)

func (s side) other() side { return 1 - s }

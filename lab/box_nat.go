package lab

import (
	"encoding/binary"
	"math/rand/v2"
	"time"
)

// NAT gives the TCP connections that begin at the link's A other ports, as a
// router at home does (the address stays). Installed anew, it has forgotten them:
// the connections that go on do so from new ports, which their servers don't know. That
// is a rebinding.
type NAT struct {
	// Idle is after how long without a packet it forgets a connection. 0
	// means never.
	Idle time.Duration
}

type nat struct {
	idle time.Duration
	next uint16
	out  table[flow, *binding] // by the flow from A, before translation
	in   table[flow, *binding] // by the flow from B, before translation
}

type binding struct {
	inside, outside uint16 // ports
	used            time.Duration
}

// firstPort is the least port that NAT gives.
const firstPort = 10000

func (m NAT) install(rng *rand.Rand) box {
	return &nat{m.Idle, uint16(firstPort + rng.IntN(20000)), make(table[flow, *binding]), make(table[flow, *binding])}
}

func (b *nat) pass(p passage) []byte {
	s, ok := parseTCP(p.ip)
	if !ok {
		return p.ip
	}
	f := s.flow()
	if p.to == sideA {
		known := b.in[f]
		if known == nil || b.expired(known, p.now) {
			return nil
		}
		known.used = p.now
		binary.BigEndian.PutUint16(s.tcp[2:], known.inside)
	} else {
		known := b.out[f]
		if known == nil || b.expired(known, p.now) {
			known = b.bind(f)
		}
		known.used = p.now
		binary.BigEndian.PutUint16(s.tcp, known.outside)
	}
	s.fixChecksum()
	return p.ip
}

func (b *nat) expired(known *binding, now time.Duration) bool {
	return b.idle > 0 && now-known.used > b.idle
}

// bind gives a flow the next port. Its answers can't be confused with others
// before all ports were used.
func (b *nat) bind(f flow) *binding {
	b.next = max(b.next+1, firstPort)
	known := &binding{inside: f.fromPort, outside: b.next}
	b.out.put(f, known)
	f.fromPort = known.outside
	b.in.put(f.reverse(), known)
	return known
}

// Firewall lets TCP connections begin at the link's A only, and drops without a sign
// what belongs to none that it knows.
type Firewall struct {
	// Idle is after how long without a packet it forgets a connection. 0
	// means never.
	Idle time.Duration
}

type firewall struct {
	idle time.Duration
	used table[flow, time.Duration] // by the flow from A
}

func (m Firewall) install(*rand.Rand) box {
	return &firewall{m.Idle, make(table[flow, time.Duration])}
}

func (b *firewall) pass(p passage) []byte {
	s, ok := parseTCP(p.ip)
	if !ok {
		return p.ip
	}
	f := s.flow()
	if p.to == sideA {
		f = f.reverse()
	}
	used, known := b.used[f]
	begins := p.to == sideB && s.is(flagSYN)
	if !begins && (!known || b.idle > 0 && p.now-used > b.idle) {
		return nil
	}
	b.used.put(f, p.now)
	return p.ip
}

// RewriteSequence gives TCP connections other sequence numbers, as firewalls do
// that don't trust those of the hosts.
type RewriteSequence struct {
	// KeepSACK leaves selective acknowledgements as they are, so that they
	// mean nothing to who gets them: a mistake that such firewalls made.
	KeepSACK bool
}

type rewriter struct {
	keepSACK bool
	rng      *rand.Rand
	shift    table[flow, uint32] // what is added to a flow's sequence numbers
}

func (m RewriteSequence) install(rng *rand.Rand) box {
	return &rewriter{m.KeepSACK, rng, make(table[flow, uint32])}
}

func (b *rewriter) pass(p passage) []byte {
	s, ok := parseTCP(p.ip)
	if !ok {
		return p.ip
	}
	f := s.flow()
	if _, known := b.shift[f]; s.is(flagSYN) && !known {
		b.shift.put(f, b.rng.Uint32())
	}
	back := b.shift[f.reverse()]
	s.setSeq(s.seq() + b.shift[f])
	if s.is(flagACK) {
		s.setAck(s.ack() - back)
	}
	s.options(func(kind byte, option []byte) {
		const sack = 5
		if kind != sack || b.keepSACK {
			return
		}
		for edges := option[2:]; len(edges) >= 4; edges = edges[4:] {
			binary.BigEndian.PutUint32(edges, binary.BigEndian.Uint32(edges)-back)
		}
	})
	s.fixChecksum()
	return p.ip
}

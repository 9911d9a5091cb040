package lab

import (
	"math/rand/v2"

	"golang.org/x/crypto/cryptobyte"
)

// A resetter resets the TCP connections that exist when it begins.
type resetter struct {
	spared table[flow, bool] // connections that began later, by both directions
}

func (r *resetter) pass(p passage) []byte {
	s, ok := parseTCP(p.ip)
	if !ok || s.is(flagRST) {
		return p.ip
	}
	f := s.flow()
	if s.is(flagSYN) {
		r.spared.put(f, true)
		r.spared.put(f.reverse(), true)
	}
	if r.spared[f] || !s.is(flagACK) {
		return p.ip
	}
	return p.reset(s)
}

// CutAfter resets every TCP connection after it has carried this many bytes of
// payload in one direction, retransmissions included: 0 at its first byte.
type CutAfter struct{ Bytes int64 }

type cutter struct {
	after int64
	seen  table[flow, int64]
}

func (m CutAfter) install(*rand.Rand) box { return &cutter{m.Bytes, make(table[flow, int64])} }

func (b *cutter) pass(p passage) []byte {
	s, ok := parseTCP(p.ip)
	if !ok {
		return p.ip
	}
	f := s.flow()
	n := b.seen[f] + int64(len(s.payload()))
	switch {
	case s.is(flagSYN):
		b.seen.put(f, 0)
		return p.ip
	case n == 0 || n <= b.after:
		b.seen.put(f, n)
		return p.ip
	}
	return p.reset(s)
}

// HelloFilter stands for middleboxes that know too little of TLS: a ClientHello
// from the link's A with an extension of a private-use type (0xff00 and above,
// but not 0xff01, which RFC 5746 has made common) doesn't pass.
type HelloFilter struct {
	// Swallow drops such a ClientHello, and all that its client still says, without a
	// sign. Otherwise the connection is reset.
	Swallow bool
}

type helloFilter struct {
	swallow bool
	flows   table[flow, *helloState]
}

// A helloState is what the filter knows of a connection.
type helloState struct {
	next    uint32 // the sequence number that data goes on with
	data    []byte
	decided bool
	blocked bool
}

// mostHello is how much of a connection the filter looks at.
const mostHello = 16 << 10

func (m HelloFilter) install(*rand.Rand) box {
	return &helloFilter{m.Swallow, make(table[flow, *helloState])}
}

func (b *helloFilter) pass(p passage) []byte {
	s, ok := parseTCP(p.ip)
	if !ok || p.to == sideA {
		return p.ip
	}
	f := s.flow()
	if s.is(flagSYN) {
		b.flows.put(f, &helloState{next: s.seq() + 1})
	}
	state := b.flows[f]
	if state == nil || len(s.payload()) == 0 {
		return p.ip
	}
	if !state.decided && s.seq() == state.next {
		state.take(s.payload())
	}
	switch {
	case !state.blocked:
		return p.ip
	case b.swallow:
		return nil
	}
	return p.reset(s)
}

// take adds to what the client has said, until it is clear what to do.
func (h *helloState) take(payload []byte) {
	h.data = append(h.data, payload...)
	h.next += uint32(len(payload))
	private, complete := privateExtension(h.data)
	if complete || len(h.data) > mostHello {
		h.decided, h.blocked, h.data = true, private, nil
	}
}

// privateExtension reports whether the bytes begin with a ClientHello that has a private
// extension. complete means that further bytes can't change that.
func privateExtension(data []byte) (private, complete bool) {
	const handshake, clientHello = 22, 1
	input := cryptobyte.String(data)
	var contentType, messageType uint8
	var version uint16
	var record, message, session, suites, compression, extensions cryptobyte.String
	switch {
	case !input.ReadUint8(&contentType):
		return false, false
	case contentType != handshake:
		return false, true
	case !input.ReadUint16(&version) || !input.ReadUint16LengthPrefixed(&record):
		return false, false
	case !record.ReadUint8(&messageType) || messageType != clientHello || !record.ReadUint24LengthPrefixed(&message):
		return false, true
	}
	const random = 32
	if !message.ReadUint16(&version) || !message.Skip(random) || !message.ReadUint8LengthPrefixed(&session) ||
		!message.ReadUint16LengthPrefixed(&suites) || !message.ReadUint8LengthPrefixed(&compression) ||
		!message.ReadUint16LengthPrefixed(&extensions) {
		return false, true
	}
	for !extensions.Empty() {
		var kind uint16
		var body cryptobyte.String
		if !extensions.ReadUint16(&kind) || !extensions.ReadUint16LengthPrefixed(&body) {
			return private, true
		}
		const renegotiationInfo = 0xff01
		private = private || kind >= 0xff00 && kind != renegotiationInfo
	}
	return private, true
}

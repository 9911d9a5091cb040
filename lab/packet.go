package lab

import (
	"encoding/binary"
	"slices"
)

// Flags of a TCP segment (RFC 9293, section 3.1).
const (
	flagFIN = 1 << iota
	flagSYN
	flagRST
	flagPSH
	flagACK
)

const (
	protocolTCP = 6
	minTCP      = 20 // bytes of a TCP header without options
)

// A segment is a whole TCP segment in an IP packet. Its methods change the
// packet in place, but don't correct the checksum: fixChecksum does.
type segment struct {
	ip  []byte
	tcp []byte // from the TCP header on, part of ip
}

// parseTCP returns the TCP segment of a packet. ok is false for all else, also for
// fragments, IPv6 extension headers and what is cut short.
func parseTCP(ip []byte) (s segment, ok bool) {
	start, end := 0, 0
	switch {
	case len(ip) >= 20 && ip[0]>>4 == 4 && ip[9] == protocolTCP:
		const fragment = 0x3fff // more fragments, or not the first one
		if binary.BigEndian.Uint16(ip[6:])&fragment != 0 {
			return s, false
		}
		start, end = int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
	case len(ip) >= 40 && ip[0]>>4 == 6 && ip[6] == protocolTCP:
		start, end = 40, 40+int(binary.BigEndian.Uint16(ip[4:]))
	default:
		return s, false
	}
	if start < 20 || end > len(ip) || end-start < minTCP {
		return s, false
	}
	s = segment{ip: ip[:end], tcp: ip[start:end]}
	if n := s.headerLen(); n < minTCP || n > len(s.tcp) {
		return s, false
	}
	return s, true
}

func (s segment) headerLen() int  { return int(s.tcp[12]>>4) * 4 }
func (s segment) flags() byte     { return s.tcp[13] }
func (s segment) payload() []byte { return s.tcp[s.headerLen():] }
func (s segment) seq() uint32     { return binary.BigEndian.Uint32(s.tcp[4:]) }
func (s segment) ack() uint32     { return binary.BigEndian.Uint32(s.tcp[8:]) }
func (s segment) setSeq(n uint32) { binary.BigEndian.PutUint32(s.tcp[4:], n) }
func (s segment) setAck(n uint32) { binary.BigEndian.PutUint32(s.tcp[8:], n) }

// is reports whether all of the flags are set.
func (s segment) is(flags byte) bool { return s.flags()&flags == flags }

// A flow is one direction of a TCP connection, by addresses and ports.
type flow struct {
	from, to         [16]byte
	fromPort, toPort uint16
}

func (s segment) flow() (f flow) {
	from, to := s.addresses()
	copy(f.from[:], from)
	copy(f.to[:], to)
	f.fromPort, f.toPort = binary.BigEndian.Uint16(s.tcp), binary.BigEndian.Uint16(s.tcp[2:])
	return f
}

// reverse returns the other direction.
func (f flow) reverse() flow { return flow{f.to, f.from, f.toPort, f.fromPort} }

func (s segment) addresses() (from, to []byte) {
	if s.ip[0]>>4 == 4 {
		return s.ip[12:16], s.ip[16:20]
	}
	return s.ip[8:24], s.ip[24:40]
}

// options calls f for each option but padding. f may change the option, which begins
// with its kind and length.
func (s segment) options(f func(kind byte, option []byte)) {
	end := s.headerLen()
	for i := minTCP; i < end; {
		kind := s.tcp[i]
		if kind == 0 { // end of options
			return
		}
		if kind == 1 { // padding
			i++
			continue
		}
		if i+1 >= end || s.tcp[i+1] < 2 || i+int(s.tcp[i+1]) > end {
			return
		}
		n := int(s.tcp[i+1])
		f(kind, s.tcp[i:i+n])
		i += n
	}
}

// fixChecksum computes the checksums of TCP, and of IPv4, anew.
func (s segment) fixChecksum() {
	if s.ip[0]>>4 == 4 {
		header := s.ip[:int(s.ip[0]&15)*4]
		clear(header[10:12])
		binary.BigEndian.PutUint16(header[10:], fold(sum(header)))
	}
	clear(s.tcp[16:18])
	from, to := s.addresses()
	total := sum(from) + sum(to) + protocolTCP + uint64(len(s.tcp)) + sum(s.tcp)
	binary.BigEndian.PutUint16(s.tcp[16:], fold(total))
}

// sum adds up 16-bit words (RFC 1071).
func sum(b []byte) (n uint64) {
	for ; len(b) >= 8; b = b[8:] {
		w := binary.BigEndian.Uint64(b)
		n += w>>48 + w>>32&0xffff + w>>16&0xffff + w&0xffff
	}
	for ; len(b) >= 2; b = b[2:] {
		n += uint64(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		n += uint64(b[0]) << 8
	}
	return n
}

func fold(n uint64) uint16 {
	for n > 0xffff {
		n = n>>16 + n&0xffff
	}
	return ^uint16(n)
}

// truncate leaves the headers without options or payload.
func (s segment) truncate() segment {
	n := len(s.ip) - len(s.tcp) + minTCP
	s.ip, s.tcp = s.ip[:n], s.tcp[:minTCP]
	s.tcp[12] = minTCP / 4 << 4
	if s.ip[0]>>4 == 4 {
		binary.BigEndian.PutUint16(s.ip[2:], uint16(n))
	} else {
		binary.BigEndian.PutUint16(s.ip[4:], minTCP)
	}
	return s
}

// reset turns a segment into the RST that its receiver accepts, and returns the
// one that its sender accepts: RFC 5961, section 3.2 wants the very next
// sequence number. The segment must have the ACK flag.
func (s segment) reset() (forward, back []byte) {
	answer, _ := parseTCP(slices.Clone(s.ip))
	answer = answer.truncate()
	from, to := answer.addresses()
	for i := range from {
		from[i], to[i] = to[i], from[i]
	}
	answer.tcp[0], answer.tcp[1], answer.tcp[2], answer.tcp[3] = s.tcp[2], s.tcp[3], s.tcp[0], s.tcp[1]
	answer.setSeq(s.ack())
	answer.setAck(0)
	answer.tcp[13] = flagRST
	answer.fixChecksum()

	s = s.truncate()
	s.setAck(0)
	s.tcp[13] = flagRST
	s.fixChecksum()
	return s.ip, answer.ip
}

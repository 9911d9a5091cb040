package wire

import (
	"encoding/binary"
	"net/netip"
)

// A SYN is what a server's system has kept of the SYN that began a path, as it
// arrived, and what came of it (protocol 5.27).
type SYN struct {
	Source     netip.AddrPort // invalid: nothing was kept
	HopLimit   uint8          // of IPv6, or the TTL of IPv4
	Flags      uint8          // of TCP, CWR first
	MSS        uint16         // of option 2
	Scale      uint8          // of option 3
	Timestamp  uint32         // the sender's, of option 8
	Negotiated uint8          // bit set of Negotiated...
	AnswerMSS  uint16         // of option 2 of the answer
	Options    []byte         // kinds but 0 and 1 in their order; part of the parsed bytes
}

// What an end takes for negotiated, as the bits of Linux's tcpi_options.
const (
	NegotiatedTimestamps = 1 << iota
	NegotiatedSACK
	NegotiatedScale
	NegotiatedECN
)

// MaxSYNOptions is how many options a SYN can have: each is at least two bytes
// of the 40 that there are.
const MaxSYNOptions = 20

// MaxSYNReport is the size in bytes of the largest SYN_REPORT frame.
const MaxSYNReport = 2 + 4 + synFixed + 16 + MaxSYNOptions

const synFixed = 1 + 1 + 2 + 1 + 4 + 1 + 2 + 2 + 1

// AppendSYNRequest asks how the SYN of a path arrived (protocol 5.26).
func AppendSYNRequest(b []byte, path uint32) []byte {
	return appendFrame(b, SYNRequest, uint64(path))
}

// AppendSYNReport answers that (protocol 5.27).
func AppendSYNReport(b []byte, path uint32, s *SYN) []byte {
	start := len(b)
	b = AppendVarint(begin(b, SYNReport), uint64(path))
	if s.Source.IsValid() {
		ip := s.Source.Addr().AsSlice()
		b = append(b, s.HopLimit, s.Flags)
		b = binary.BigEndian.AppendUint16(b, s.MSS)
		b = append(b, s.Scale)
		b = binary.BigEndian.AppendUint32(b, s.Timestamp)
		b = append(b, s.Negotiated)
		b = binary.BigEndian.AppendUint16(b, s.AnswerMSS)
		b = binary.BigEndian.AppendUint16(b, s.Source.Port())
		b = append(append(b, byte(len(ip))), ip...)
		b = append(b, s.Options...)
	}
	return end(b, start)
}

func (f *Frame) parseSYN(r *reader) error {
	path := r.varint()
	f.Path = uint32(path)
	if path > maxPath {
		return f.malformed("of path %d", path)
	}
	if f.Kind == SYNRequest || len(r.b) == 0 {
		return nil
	}
	b := r.b
	r.b = nil
	if r.short = len(b) < synFixed; r.short {
		return nil
	}
	n := int(b[synFixed-1])
	if r.short = len(b) < synFixed+n; r.short {
		return nil
	}
	ip, ok := netip.AddrFromSlice(b[synFixed : synFixed+n])
	s := &f.SYN
	*s = SYN{
		HopLimit: b[0], Flags: b[1], MSS: binary.BigEndian.Uint16(b[2:]), Scale: b[4],
		Timestamp: binary.BigEndian.Uint32(b[5:]), Negotiated: b[9], AnswerMSS: binary.BigEndian.Uint16(b[10:]),
		Source: netip.AddrPortFrom(ip, binary.BigEndian.Uint16(b[12:])), Options: b[synFixed+n:],
	}
	switch {
	case !ok || ip.Is4In6():
		return f.malformed("with an address that can't be one")
	case len(s.Options) > MaxSYNOptions:
		return f.malformed("with %d options", len(s.Options))
	}
	return nil
}

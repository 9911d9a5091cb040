package wire

import "encoding/binary"

// MaxVarint is the largest value that a varint holds.
const MaxVarint = 1<<62 - 1

// AppendVarint appends v in the shortest form of RFC 9000, section 16. It
// panics if v is greater than [MaxVarint].
func AppendVarint(b []byte, v uint64) []byte {
	switch {
	case v < 1<<6:
		return append(b, byte(v))
	case v < 1<<14:
		return binary.BigEndian.AppendUint16(b, uint16(v)|1<<14)
	case v < 1<<30:
		return binary.BigEndian.AppendUint32(b, uint32(v)|2<<30)
	case v <= MaxVarint:
		return binary.BigEndian.AppendUint64(b, v|3<<62)
	}
	panic("wire: value too large for a varint")
}

// VarintLen returns how many bytes [AppendVarint] appends for v.
func VarintLen(v uint64) int {
	switch {
	case v < 1<<6:
		return 1
	case v < 1<<14:
		return 2
	case v < 1<<30:
		return 4
	case v <= MaxVarint:
		return 8
	}
	panic("wire: value too large for a varint")
}

// ConsumeVarint reads a varint from the front of b. It returns the value and
// how many bytes it took, which is 0 if b ends too early.
func ConsumeVarint(b []byte) (v uint64, n int) {
	if len(b) == 0 {
		return 0, 0
	}
	n = 1 << (b[0] >> 6)
	if len(b) < n {
		return 0, 0
	}
	v = uint64(b[0] & 0x3f)
	for _, c := range b[1:n] {
		v = v<<8 | uint64(c)
	}
	return v, n
}

// A reader takes varints from a body. A missing one yields 0 and is remembered.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) varint() uint64 {
	v, n := ConsumeVarint(r.b)
	if n == 0 {
		r.short = true
		r.b = nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

// prefixed takes as many bytes as the varint before them says.
func (r *reader) prefixed() []byte {
	n := r.varint()
	if n > uint64(len(r.b)) {
		r.short = true
		r.b = nil
		return nil
	}
	p := r.b[:n:n]
	r.b = r.b[n:]
	return p
}

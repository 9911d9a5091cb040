package record

import (
	"encoding/binary"
	"errors"
)

// Sizes in bytes (RFC 8446, sections 5.1 and 5.2).
const (
	HeaderLen     = 5
	TagLen        = 16
	MaxPlaintext  = 1 << 14            // content of one record
	MaxCiphertext = MaxPlaintext + 256 // body of a protected record
	// Overhead is what a record adds to its content: header, type and tag.
	Overhead = HeaderLen + 1 + TagLen
)

// A Type is the content type of a record, outer or inner.
type Type uint8

// The content types of TLS (RFC 8446, B.1).
const (
	ChangeCipherSpec Type = 20
	Alert            Type = 21
	Handshake        Type = 22
	ApplicationData  Type = 23
)

// The ways in which a record can break the rules, with the alert that is due.
var (
	ErrOverflow  = errors.New("record longer than TLS allows")               // record_overflow
	ErrAuth      = errors.New("record doesn't authenticate")                 // bad_record_mac
	ErrNoType    = errors.New("record has no content type, only padding")    // unexpected_message
	ErrKeyLimit  = errors.New("key has protected as many records as it may") // close, or update before
	ErrShort     = errors.New("protected record shorter than its tag")       // bad_record_mac
	ErrPlaintext = errors.New("more than 16384 bytes for one record")        // a caller's mistake
)

// A Header is the head of a record. The version says nothing and is ignored
// on reading (RFC 8446, section 5.1).
type Header struct {
	Type    Type
	Version uint16
	Len     int // bytes of the body
}

// ParseHeader reads the first HeaderLen bytes of b, which must be there.
func ParseHeader(b []byte) Header {
	_ = b[HeaderLen-1]
	return Header{
		Type:    Type(b[0]),
		Version: binary.BigEndian.Uint16(b[1:3]),
		Len:     int(binary.BigEndian.Uint16(b[3:5])),
	}
}

// putHeader writes the header of a protected record with a body of n bytes.
func putHeader(b []byte, n int) {
	_ = b[HeaderLen-1]
	b[0], b[1], b[2], b[3], b[4] = byte(ApplicationData), 3, 3, byte(n>>8), byte(n)
}

// AppendPlain appends an unprotected record. Its content has at most
// MaxPlaintext bytes.
func AppendPlain(dst []byte, t Type, version uint16, content []byte) []byte {
	if len(content) > MaxPlaintext {
		panic("record: plaintext too long")
	}
	dst = append(dst, byte(t), byte(version>>8), byte(version), byte(len(content)>>8), byte(len(content)))
	return append(dst, content...)
}

package wire

import (
	"encoding/binary"
	"fmt"
)

// A TCPOption is an option that one side asks its peer to set on its sockets
// (protocol 11). What the value means is not judged here.
type TCPOption struct {
	Kind  uint64
	Value []byte // at most [MaxOptionValue] bytes; of a parsed one, part of what was parsed
}

// An OptionRequest is the content of a record of type [TypeOption].
type OptionRequest struct {
	Number uint64 // of all requests in this direction, from 1
	Path   uint32 // the path's number, or [AllPaths]
	TCPOption
}

// An OptionStatus says in a TCP_OPTION_ANSWER frame what has become of a
// request (protocol 11.4).
type OptionStatus uint64

// The statuses.
const (
	OptionSet         OptionStatus = 0 // the answer holds the value that is in force
	OptionRefused     OptionStatus = 1 // the receiver's policy is against it
	OptionUnknown     OptionStatus = 2 // the receiver doesn't know the kind
	OptionRange       OptionStatus = 3 // not a value of this kind, or out of bounds
	OptionUnsupported OptionStatus = 4 // the receiver's system can't set it
	OptionNoPath      OptionStatus = 5 // the path doesn't exist, or no more
	OptionFailed      OptionStatus = 6 // the receiver's system has refused it
)

var optionStatuses = [...]string{
	OptionSet:         "SET",
	OptionRefused:     "REFUSED",
	OptionUnknown:     "UNKNOWN",
	OptionRange:       "RANGE",
	OptionUnsupported: "UNSUPPORTED",
	OptionNoPath:      "NO_PATH",
	OptionFailed:      "FAILED",
}

func (s OptionStatus) String() string {
	if s < OptionStatus(len(optionStatuses)) {
		return optionStatuses[s]
	}
	return fmt.Sprintf("status %d", uint64(s))
}

const (
	// AllPaths stands for all paths of the session, also those that join later.
	AllPaths uint32 = 0x1_0000
	// MaxOptions is how many requests of one direction may be unanswered.
	MaxOptions = 16
	// MaxOptionValue is the size in bytes of the longest value.
	MaxOptionValue = 32
)

// AppendOptionRequest appends the content of a record of type [TypeOption].
func AppendOptionRequest(b []byte, r *OptionRequest) []byte {
	b = AppendVarint(b, r.Number)
	b = AppendVarint(b, uint64(r.Path))
	b = AppendVarint(b, r.Kind)
	return append(b, r.Value...)
}

// ParseOptionRequest reads the content of a record of type [TypeOption].
func ParseOptionRequest(content []byte) (OptionRequest, error) {
	r := reader{b: content}
	number, path, kind := r.varint(), r.varint(), r.varint()
	switch {
	case r.short:
		return OptionRequest{}, &Error{"11.2", "a TCP option that is too short"}
	case path > uint64(AllPaths):
		return OptionRequest{}, &Error{"11.2", fmt.Sprintf("a TCP option for path %d", path)}
	case len(r.b) > MaxOptionValue:
		return OptionRequest{}, &Error{"11.2", fmt.Sprintf("a TCP option with a value of %d bytes", len(r.b))}
	}
	return OptionRequest{number, uint32(path), TCPOption{kind, r.b[:len(r.b):len(r.b)]}}, nil
}

// AppendOptionAnswer answers a request; a value goes with [OptionSet] only
// (protocol 5.21).
func AppendOptionAnswer(b []byte, number uint64, status OptionStatus, value []byte) []byte {
	start := len(b)
	b = AppendVarint(begin(b, OptionAnswer), number)
	b = AppendVarint(b, uint64(status))
	return end(append(b, value...), start)
}

func (f *Frame) parseOptionAnswer(r *reader) error {
	f.Number, f.Status = r.varint(), OptionStatus(r.varint())
	f.Value, r.b = r.b, nil
	switch {
	case len(f.Value) > MaxOptionValue:
		return f.malformed("with a value of %d bytes", len(f.Value))
	case len(f.Value) > 0 && f.Status != OptionSet:
		return f.malformed("of status %d with a value", f.Status)
	}
	return nil
}

// AppendTCPOptions appends options as [Parameters] holds them.
func AppendTCPOptions(b []byte, options ...TCPOption) []byte {
	for _, o := range options {
		b = AppendVarint(b, o.Kind)
		b = AppendVarint(b, uint64(len(o.Value)))
		b = append(b, o.Value...)
	}
	return b
}

// ParsedTCPOptions returns the options of p.TCPOptions.
func (p *Parameters) ParsedTCPOptions() (list []TCPOption) {
	for r := (reader{b: []byte(p.TCPOptions)}); len(r.b) > 0; {
		list = append(list, TCPOption{r.varint(), r.prefixed()})
	}
	return list
}

// ParsedTCPKinds returns the kinds of p.TCPKinds.
func (p *Parameters) ParsedTCPKinds() (list []uint64) {
	for r := (reader{b: []byte(p.TCPKinds)}); len(r.b) > 0; {
		list = append(list, r.varint())
	}
	return list
}

// parseTCPOptions checks the list of parameter 8 and keeps it.
func (p *Parameters) parseTCPOptions(r *reader) error {
	p.TCPOptions = string(r.b)
	for n := 0; len(r.b) > 0; n++ {
		_, value := r.varint(), r.prefixed()
		switch {
		case n == MaxOptions:
			return &Error{"2.3", fmt.Sprintf("more than %d TCP options", MaxOptions)}
		case len(value) > MaxOptionValue:
			return &Error{"2.3", fmt.Sprintf("a TCP option with a value of %d bytes", len(value))}
		}
	}
	return nil // the caller says what is short
}

// maxTCPKinds is how many kinds parameter 9 may hold.
const maxTCPKinds = 64

// parseTCPKinds does the same for parameter 9.
func (p *Parameters) parseTCPKinds(r *reader) error {
	p.TCPKinds = string(r.b)
	for n := 0; len(r.b) > 0; n++ {
		if r.varint(); n == maxTCPKinds {
			return &Error{"2.3", fmt.Sprintf("more than %d kinds of TCP options", maxTCPKinds)}
		}
	}
	return nil
}

// inMinutes is the granularity bit of RFC 5482, 3.
const inMinutes = 1 << 15

// MaxUserTimeout is the longest user timeout that can be written, in seconds.
const MaxUserTimeout = (inMinutes - 1) * 60

// AppendUserTimeout appends a user timeout of 1 to [MaxUserTimeout] seconds in
// the form of RFC 5482, 3. What seconds can't express is rounded up to minutes.
func AppendUserTimeout(b []byte, seconds uint64) []byte {
	if seconds < inMinutes {
		return binary.BigEndian.AppendUint16(b, uint16(seconds))
	}
	return binary.BigEndian.AppendUint16(b, inMinutes|uint16((seconds+59)/60))
}

// ParseUserTimeout returns a user timeout in seconds. The value 0 is reserved
// by RFC 5482, and not ok.
func ParseUserTimeout(value []byte) (seconds uint64, ok bool) {
	if len(value) != 2 {
		return 0, false
	}
	v := binary.BigEndian.Uint16(value)
	seconds = uint64(v &^ inMinutes)
	if v&inMinutes != 0 {
		seconds *= 60
	}
	return seconds, seconds > 0
}

// ParseOptionNumber reads a value that is one varint.
func ParseOptionNumber(value []byte) (v uint64, ok bool) {
	v, n := ConsumeVarint(value)
	return v, n > 0 && n == len(value)
}

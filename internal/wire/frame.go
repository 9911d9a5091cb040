package wire

import (
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf8"
)

// A Kind is the type of a frame (protocol 5).
type Kind uint64

// The kinds of frames.
const (
	Next          Kind = 0x01
	Attach        Kind = 0x02
	Ack           Kind = 0x03
	SessionCredit Kind = 0x04
	StreamLimit   Kind = 0x05
	Ping          Kind = 0x06
	Pong          Kind = 0x07
	PathLeft      Kind = 0x08
	PathStatus    Kind = 0x09
	Fin           Kind = 0x10
	KeyUpdate     Kind = 0x11
	Params        Kind = 0x20
	Reset         Kind = 0x21
	StopSending   Kind = 0x22
	KeyRequest    Kind = 0x23
	GoingAway     Kind = 0x24
	Close         Kind = 0x25
	Token         Kind = 0x26
	AddAddress    Kind = 0x27
	RemoveAddress Kind = 0x28
	OptionAnswer  Kind = 0x29
	OfferCC       Kind = 0x2a
	DataCC        Kind = 0x2b
	AnswerCC      Kind = 0x2c
	WithdrawCC    Kind = 0x2d
	SYNRequest    Kind = 0x2e
	SYNReport     Kind = 0x2f
)

// A Place is a sort of context, or a set of them.
type Place uint8

// The sorts of contexts that frames may stand in.
const (
	OnPath Place = 1 << iota
	OnControl
	OnStream
)

func (p Place) String() string {
	switch p {
	case OnPath:
		return "a path context"
	case OnControl:
		return "the control context"
	case OnStream:
		return "a stream context"
	}
	return fmt.Sprintf("places %#b", uint8(p))
}

// kinds is the table of protocol 5: name, paragraph, and where allowed.
var kinds = [...]struct {
	name, rule string
	places     Place
}{
	Next:          {"NEXT", "5.1", OnPath},
	Attach:        {"ATTACH", "5.2", OnPath},
	Ack:           {"ACK", "5.3", OnPath},
	SessionCredit: {"SESSION_CREDIT", "5.4", OnPath},
	StreamLimit:   {"STREAM_LIMIT", "5.5", OnPath},
	Ping:          {"PING", "5.6", OnPath},
	Pong:          {"PONG", "5.7", OnPath},
	PathLeft:      {"PATH_LEFT", "5.16", OnPath},
	PathStatus:    {"PATH_STATUS", "5.20", OnPath},
	Fin:           {"FIN", "5.8", OnStream},
	KeyUpdate:     {"KEY_UPDATE", "5.9", OnPath | OnControl | OnStream},
	Params:        {"PARAMETERS", "5.10", OnControl},
	Reset:         {"RESET", "5.11", OnControl},
	StopSending:   {"STOP_SENDING", "5.12", OnControl},
	KeyRequest:    {"KEY_REQUEST", "5.13", OnControl},
	GoingAway:     {"GOING_AWAY", "5.14", OnControl},
	Close:         {"CLOSE", "5.15", OnControl},
	Token:         {"TOKEN", "5.17", OnControl},
	AddAddress:    {"ADD_ADDRESS", "5.18", OnControl},
	RemoveAddress: {"REMOVE_ADDRESS", "5.19", OnControl},
	OptionAnswer:  {"TCP_OPTION_ANSWER", "5.21", OnControl},
	OfferCC:       {"CC_OFFER", "5.22", OnControl},
	DataCC:        {"CC_DATA", "5.23", OnControl},
	AnswerCC:      {"CC_ANSWER", "5.24", OnControl},
	WithdrawCC:    {"CC_WITHDRAW", "5.25", OnControl},
	SYNRequest:    {"SYN_REQUEST", "5.26", OnControl},
	SYNReport:     {"SYN_REPORT", "5.27", OnControl},
}

// Known tells whether this version of the protocol defines the kind.
func (k Kind) Known() bool { return k < Kind(len(kinds)) && kinds[k].name != "" }

func (k Kind) String() string {
	if k.Known() {
		return kinds[k].name
	}
	return fmt.Sprintf("frame %#x", uint64(k))
}

const (
	// MaxFrameLen is the size in bytes of the largest frame but CLOSE, TOKEN,
	// SYN_REPORT and those of a [Program], and PARAMETERS with TCP options.
	MaxFrameLen = 48
	// MaxReason is the size in bytes of the longest reason in a CLOSE frame.
	MaxReason = 1024
	// MaxToken is the size in bytes of the longest token.
	MaxToken = 1024
	// TrailerLen is the size in bytes of what [AppendTrailer] appends.
	TrailerLen = 2
)

// begin appends the head of a frame whose body is shorter than 64 bytes, so
// that its length is one byte, which end fills in.
func begin(b []byte, k Kind) []byte { return append(b, byte(k), 0) }

func end(b []byte, start int) []byte {
	b[start+1] = byte(len(b) - start - 2)
	return b
}

func appendFrame(b []byte, k Kind, fields ...uint64) []byte {
	start := len(b)
	b = begin(b, k)
	for _, v := range fields {
		b = AppendVarint(b, v)
	}
	return end(b, start)
}

// AppendNext announces that the next record belongs to context (protocol 5.1).
func AppendNext(b []byte, context uint32) []byte {
	return appendFrame(b, Next, uint64(context))
}

// AppendAttach says that the path carries records of context from number seq
// on, the first of them under the keys of epoch (protocol 5.2). The mode is 0.
func AppendAttach(b []byte, context uint32, seq, epoch uint64) []byte {
	return appendFrame(b, Attach, uint64(context), seq, epoch, 0)
}

// AppendAck acknowledges all records of context below seq, and gives a stream
// credit up to that offset (protocol 5.3).
func AppendAck(b []byte, context uint32, seq, credit uint64) []byte {
	return appendFrame(b, Ack, uint64(context), seq, credit)
}

// AppendSessionCredit gives credit for all streams together (protocol 5.4).
func AppendSessionCredit(b []byte, credit uint64) []byte {
	return appendFrame(b, SessionCredit, credit)
}

// AppendStreamLimit says how many streams the peer may open in the life of the
// session, at most [MaxStreams] (protocol 5.5).
func AppendStreamLimit(b []byte, streams uint64) []byte {
	return appendFrame(b, StreamLimit, streams)
}

// AppendPing asks for a PONG with the same bytes (protocol 5.6).
func AppendPing(b []byte, data [8]byte) []byte {
	return append(append(b, byte(Ping), 8), data[:]...)
}

// AppendPong answers a PING (protocol 5.7).
func AppendPong(b []byte, data [8]byte) []byte {
	return append(append(b, byte(Pong), 8), data[:]...)
}

// AppendPathLeft says that the sender has left a path, because it was lost if
// so (protocol 5.16).
func AppendPathLeft(b []byte, path uint32, lost bool) []byte {
	why := uint64(0)
	if lost {
		why = 1
	}
	return appendFrame(b, PathLeft, uint64(path), why)
}

// MaxWeight is the largest weight of a path.
const MaxWeight = 1000

// AppendPathStatus says of the path that it stands on whether it is a backup,
// and its weight, 0 for none (protocol 5.20).
func AppendPathStatus(b []byte, backup bool, weight uint64) []byte {
	status := uint64(0)
	if backup {
		status = 1
	}
	return appendFrame(b, PathStatus, status, weight)
}

// AppendToken gives a token for the path with that number (protocol 5.17).
func AppendToken(b []byte, path uint32, token []byte) []byte {
	b = append(b, byte(Token))
	b = AppendVarint(b, uint64(VarintLen(uint64(path))+len(token)))
	b = AppendVarint(b, uint64(path))
	return append(b, token...)
}

// AppendAddAddress tells of one more address of the server (protocol 5.18).
func AppendAddAddress(b []byte, a Address) []byte {
	start := len(b)
	b = AppendVarint(begin(b, AddAddress), a.ID)
	return end(appendAddrPort(b, a.AddrPort), start)
}

// AppendRemoveAddress withdraws the address with that id (protocol 5.19).
func AppendRemoveAddress(b []byte, id uint64) []byte {
	return appendFrame(b, RemoveAddress, id)
}

// AppendFin ends the stream in this direction (protocol 5.8).
func AppendFin(b []byte) []byte { return append(b, byte(Fin), 0) }

// AppendKeyUpdate moves the context to the keys of epoch after this record
// (protocol 5.9).
func AppendKeyUpdate(b []byte, epoch uint64) []byte {
	return appendFrame(b, KeyUpdate, epoch)
}

// AppendParameters gives the client's parameters (protocol 5.10).
func AppendParameters(b []byte, p *Parameters) []byte {
	start := len(b)
	b = appendParameters(begin(b, Params), p)
	n := uint64(len(b) - start - 2)
	if VarintLen(n) == 1 {
		return end(b, start)
	}
	b = append(b, 0) // the length takes two bytes
	copy(b[start+3:], b[start+2:])
	AppendVarint(b[:start+1], n)
	return b
}

// AppendReset ends the stream after size bytes without delivering the rest
// (protocol 5.11).
func AppendReset(b []byte, stream uint32, code, size uint64) []byte {
	return appendFrame(b, Reset, uint64(stream), code, size)
}

// AppendStopSending asks for a RESET of the stream (protocol 5.12).
func AppendStopSending(b []byte, stream uint32, code uint64) []byte {
	return appendFrame(b, StopSending, uint64(stream), code)
}

// AppendKeyRequest asks the peer to move its keys to epoch (protocol 5.13).
func AppendKeyRequest(b []byte, epoch uint64) []byte {
	return appendFrame(b, KeyRequest, epoch)
}

// AppendGoingAway refuses the peer's streams above this one; 0 refuses all
// (protocol 5.14).
func AppendGoingAway(b []byte, stream uint32) []byte {
	return appendFrame(b, GoingAway, uint64(stream))
}

// AppendClose ends the session (protocol 5.15). What isn't UTF-8 in the reason
// is replaced, and what exceeds [MaxReason] is cut off.
func AppendClose(b []byte, class Class, code uint64, reason string) []byte {
	reason = readable(reason)
	b = append(b, byte(Close))
	b = AppendVarint(b, uint64(1+VarintLen(code)+len(reason)))
	b = append(b, byte(class))
	b = AppendVarint(b, code)
	return append(b, reason...)
}

// readable makes a reason UTF-8, and cuts it between two characters.
func readable(reason string) string {
	reason = strings.ToValidUTF8(reason, "\uFFFD")
	if len(reason) <= MaxReason {
		return reason
	}
	n := MaxReason
	for !utf8.RuneStart(reason[n]) {
		n--
	}
	return reason[:n]
}

// AppendTrailer appends the length of the frames b[framesStart:], which ends
// the content of a record of type [TypeFrames] (protocol 4.1).
func AppendTrailer(b []byte, framesStart int) []byte {
	n := len(b) - framesStart
	if n > 0xffff {
		panic("wire: too many frames for one record")
	}
	return binary.BigEndian.AppendUint16(b, uint16(n))
}

// SplitTrailer divides the content of a record of type [TypeFrames] into its
// stream bytes and its frames.
func SplitTrailer(content []byte) (stream, frames []byte, err error) {
	end := len(content) - TrailerLen
	if end < 0 {
		return nil, nil, &Error{"4.1", "a record of frames without their length"}
	}
	n := int(binary.BigEndian.Uint16(content[end:]))
	if n > end {
		return nil, nil, &Error{"4.1", "a record of frames that is shorter than they are"}
	}
	return content[: end-n : end-n], content[end-n : end : end], nil
}

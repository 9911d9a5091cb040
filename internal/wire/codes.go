package wire

import "fmt"

// A SessionCode says in a CLOSE frame of class [Protocol] why a session ends
// (protocol 7).
type SessionCode uint64

// The session codes.
const (
	CodeNone        SessionCode = 0 // nothing went wrong
	CodeInternal    SessionCode = 1 // the sender failed by itself
	CodeProtocol    SessionCode = 2 // broken rule without a code of its own
	CodeFrame       SessionCode = 3 // malformed or misplaced frame
	CodeFlowControl SessionCode = 4 // more bytes than credit
	CodeStreamLimit SessionCode = 5 // more streams than allowed
	CodeStreamState SessionCode = 6 // record or frame that the stream can't have
	CodeAck         SessionCode = 7 // acknowledged what was never sent
	CodeLimit       SessionCode = 8 // too many frames, empty records or key updates
	CodeKeyUpdate   SessionCode = 9 // epoch out of order, or keys at their limit
)

var sessionCodes = [...]string{
	CodeNone:        "NO_ERROR",
	CodeInternal:    "INTERNAL",
	CodeProtocol:    "PROTOCOL",
	CodeFrame:       "FRAME",
	CodeFlowControl: "FLOW_CONTROL",
	CodeStreamLimit: "STREAM_LIMIT",
	CodeStreamState: "STREAM_STATE",
	CodeAck:         "ACK",
	CodeLimit:       "LIMIT",
	CodeKeyUpdate:   "KEY_UPDATE",
}

func (c SessionCode) String() string {
	if c < SessionCode(len(sessionCodes)) {
		return sessionCodes[c]
	}
	return fmt.Sprintf("session code %#x", uint64(c))
}

// A StreamCode says in a RESET or STOP_SENDING frame why a stream ends. All
// but the two below are the application's (protocol 7).
type StreamCode uint64

// The stream codes that are not the application's.
const (
	CodeClosed  StreamCode = 0x3fff_ffff_ffff_ff00 // closed before its end was read
	CodeRefused StreamCode = 0x3fff_ffff_ffff_ff01 // never served
)

func (c StreamCode) String() string {
	switch c {
	case CodeClosed:
		return "CLOSED"
	case CodeRefused:
		return "REFUSED"
	}
	return fmt.Sprintf("stream code %#x", uint64(c))
}

// A Class says whose codes a CLOSE frame uses (protocol 5.15).
type Class uint8

// The classes of codes.
const (
	Protocol    Class = 0
	Application Class = 1
)

func (c Class) String() string {
	switch c {
	case Protocol:
		return "protocol"
	case Application:
		return "application"
	}
	return fmt.Sprintf("class %d", uint8(c))
}

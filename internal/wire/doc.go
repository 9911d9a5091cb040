// Package wire encodes and decodes what TCPLS adds to TLS 1.3: the handshake
// extension, the frames inside records, and the numbers that both sides must
// agree on. docs/protocol.md is its specification; comments cite it as
// "protocol 5.2".
//
// The package holds no state and starts nothing. Appending and parsing don't
// allocate, except for the error of a parse that fails. Appending a value
// greater than [MaxVarint] panics. What a value means for a session is not
// judged here, only whether it can be a value at all.
package wire

const (
	// ExtensionType is the codepoint of the tcpls extension (protocol 2.1).
	ExtensionType uint16 = 0xff5c
	// Version is the version of the protocol that this package speaks.
	Version = 1
)

// Inner content types of records beside those of TLS (protocol 4.1).
const (
	TypeFrames = 60 // stream bytes, frames, and the frames' length
	TypeOption = 61 // one TCP option that the peer is asked to set
)

// An Error is a rule that the peer's bytes broke. In a record it closes the
// session with [CodeFrame]; in an Offer or an Answer it ends the handshake.
type Error struct {
	Rule    string // paragraph of docs/protocol.md, as "5.2"
	Problem string // what the peer sent
}

func (e *Error) Error() string {
	return "tcpls: peer sent " + e.Problem + " (protocol " + e.Rule + ")"
}

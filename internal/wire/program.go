package wire

import (
	"fmt"
	"unicode/utf8"
)

// A Program is what the frames of a congestion control for the peer say
// (protocol 12).
type Program struct {
	ID     uint64       // number of the offer, in all of them
	Size   uint64       // CC_OFFER, in bytes
	Kernel uint64       // CC_OFFER: the oldest Linux that will do, major<<8 | minor; 0: any
	Hash   []byte       // CC_OFFER: SHA-256 of the object; part of the parsed bytes
	Name   []byte       // CC_OFFER; likewise
	Offset uint64       // CC_DATA, in bytes
	Data   []byte       // CC_DATA; part of the parsed bytes
	State  ProgramState // CC_ANSWER
}

const (
	// MaxProgram is the size in bytes of the largest object that can be offered.
	MaxProgram = 64 << 10
	// MaxProgramData is how many bytes of it a CC_DATA frame holds at most.
	MaxProgramData = 2048
	// MaxProgramName is the size in bytes of the longest name of one.
	MaxProgramName = 15

	hashLen   = 32
	maxKernel = 0xffff
)

// A ProgramState says in a CC_ANSWER frame what became of an offer.
type ProgramState uint8

// The states of an offer. After refused or ended nothing more is said of it.
const (
	ProgramWanted  ProgramState = iota // the object may be sent
	ProgramLoaded                      // it controls the sender's sockets
	ProgramRefused                     // it was never in use
	ProgramEnded                       // it isn't in use any more
)

func (s ProgramState) String() string {
	switch s {
	case ProgramWanted:
		return "wanted"
	case ProgramLoaded:
		return "loaded"
	case ProgramRefused:
		return "refused"
	case ProgramEnded:
		return "ended"
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// A ProgramCode says in a CC_ANSWER frame why an offer was refused or has ended
// (protocol 12.6).
type ProgramCode uint64

// The program codes.
const (
	ProgramNone        ProgramCode = 0 // nothing went wrong
	ProgramNotAllowed  ProgramCode = 1 // the receiver doesn't take it from this peer
	ProgramUnsupported ProgramCode = 2 // the receiver's system can't
	ProgramTooLarge    ProgramCode = 3 // more bytes than the receiver takes
	ProgramTooMany     ProgramCode = 4 // the receiver holds, or was offered, enough of them
	ProgramHash        ProgramCode = 5 // the bytes aren't those that were offered
	ProgramForm        ProgramCode = 6 // no ELF object, or more than a congestion control
	ProgramVerifier    ProgramCode = 7 // the kernel refuses it
	ProgramStalled     ProgramCode = 8 // it hurt its connections, and was switched back
)

var programCodes = [...]string{
	ProgramNone: "NONE", ProgramNotAllowed: "NOT_ALLOWED", ProgramUnsupported: "UNSUPPORTED", ProgramTooLarge: "TOO_LARGE",
	ProgramTooMany: "TOO_MANY", ProgramHash: "HASH", ProgramForm: "FORM", ProgramVerifier: "VERIFIER", ProgramStalled: "STALLED",
}

func (c ProgramCode) String() string {
	if c < ProgramCode(len(programCodes)) {
		return programCodes[c]
	}
	return fmt.Sprintf("program code %#x", uint64(c))
}

// IsProgramName tells whether a program may have that name: 1 to
// [MaxProgramName] of a to z, 0 to 9, '_', '-' and '.'.
func IsProgramName(name string) bool {
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' && c != '-' && c != '.' {
			return false
		}
	}
	return name != "" && len(name) <= MaxProgramName
}

// AppendOfferCC offers a congestion control (protocol 5.22), of which it uses
// the ID, Size, Kernel, Hash and Name.
func AppendOfferCC(b []byte, p *Program) []byte {
	b = append(b, byte(OfferCC))
	b = AppendVarint(b, uint64(VarintLen(p.ID)+VarintLen(p.Size)+VarintLen(p.Kernel)+len(p.Hash)+len(p.Name)))
	b = AppendVarint(b, p.ID)
	b = AppendVarint(b, p.Size)
	b = AppendVarint(b, p.Kernel)
	b = append(b, p.Hash...)
	return append(b, p.Name...)
}

// AppendDataCC gives a piece of the object, of at most [MaxProgramData] bytes
// (protocol 5.23).
func AppendDataCC(b []byte, id, offset uint64, data []byte) []byte {
	b = append(b, byte(DataCC))
	b = AppendVarint(b, uint64(VarintLen(id)+VarintLen(offset)+len(data)))
	b = AppendVarint(b, id)
	b = AppendVarint(b, offset)
	return append(b, data...)
}

// AppendAnswerCC says what became of an offer (protocol 5.24). The reason is
// treated as that of [AppendClose].
func AppendAnswerCC(b []byte, id uint64, state ProgramState, code ProgramCode, reason string) []byte {
	reason = readable(reason)
	b = append(b, byte(AnswerCC))
	b = AppendVarint(b, uint64(VarintLen(id)+1+VarintLen(uint64(code))+len(reason)))
	b = AppendVarint(b, id)
	b = append(b, byte(state))
	b = AppendVarint(b, uint64(code))
	return append(b, reason...)
}

// AppendWithdrawCC takes an offer back (protocol 5.25).
func AppendWithdrawCC(b []byte, id uint64) []byte {
	return appendFrame(b, WithdrawCC, id)
}

// parseProgram reads the fields of the frames of a congestion control.
func (f *Frame) parseProgram(r *reader) error {
	p := &f.Program
	p.ID = r.varint()
	if p.ID == 0 && !r.short {
		return f.malformed("of number 0")
	}
	switch f.Kind {
	case OfferCC:
		return f.parseOffer(r)
	case DataCC:
		p.Offset = r.varint()
		p.Data, r.b = r.b, nil
		if len(p.Data) == 0 || len(p.Data) > MaxProgramData || p.Offset > MaxProgram {
			return f.malformed("of %d bytes at %d", len(p.Data), p.Offset)
		}
	case AnswerCC:
		state := r.varint()
		p.State, f.Code = ProgramState(state), r.varint()
		f.Reason, r.b = r.b, nil
		switch {
		case state > uint64(ProgramEnded):
			return f.malformed("of state %d", state)
		case len(f.Reason) > MaxReason:
			return f.malformed("with a reason of %d bytes", len(f.Reason))
		case !utf8.Valid(f.Reason):
			return f.malformed("with a reason that isn't UTF-8")
		}
	}
	return nil
}

func (f *Frame) parseOffer(r *reader) error {
	p := &f.Program
	p.Size, p.Kernel = r.varint(), r.varint()
	if len(r.b) < hashLen {
		r.short = true
		return nil
	}
	p.Hash, p.Name, r.b = r.b[:hashLen:hashLen], r.b[hashLen:], nil
	switch {
	case p.Size == 0:
		return f.malformed("of no bytes")
	case p.Kernel > maxKernel:
		return f.malformed("for kernel %#x", p.Kernel)
	case !IsProgramName(string(p.Name)):
		return f.malformed("with a name that can't be one")
	}
	return nil
}

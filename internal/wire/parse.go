package wire

import (
	"fmt"
	"math"
	"unicode/utf8"
)

// A Frame is a parsed frame of any kind. Each kind uses the fields that name
// it and leaves the others 0. A Frame is meant to be used again and again.
type Frame struct {
	Kind    Kind
	Context uint32     // NEXT, ATTACH, ACK; as a stream's id RESET, STOP_SENDING, GOING_AWAY
	Class   Class      // CLOSE
	Data    [8]byte    // PING, PONG
	Seq     uint64     // ATTACH, ACK
	Epoch   uint64     // ATTACH, KEY_UPDATE, KEY_REQUEST
	Credit  uint64     // ACK, SESSION_CREDIT, in bytes
	Streams uint64     // STREAM_LIMIT
	Code    uint64     // RESET, STOP_SENDING, CLOSE, CC_ANSWER
	Size    uint64     // RESET, in bytes
	Params  Parameters // PARAMETERS
	Path    uint32     // PATH_LEFT, TOKEN, SYN_REQUEST, SYN_REPORT
	Lost    bool       // PATH_LEFT
	Backup  bool       // PATH_STATUS
	Weight  uint64     // PATH_STATUS
	Reason  []byte     // CLOSE, CC_ANSWER; part of the parsed bytes
	Token   []byte     // TOKEN; part of the parsed bytes
	Address Address    // ADD_ADDRESS; the id alone REMOVE_ADDRESS

	Program Program // CC_OFFER, CC_DATA, CC_ANSWER, CC_WITHDRAW

	Number uint64       // TCP_OPTION_ANSWER
	Status OptionStatus // TCP_OPTION_ANSWER
	Value  []byte       // TCP_OPTION_ANSWER; part of the parsed bytes

	SYN SYN // SYN_REPORT
}

// Parse reads the frame at the front of b, which stands in a context of the
// sort place, and returns what follows it. Of a frame of unknown kind only the
// Kind is set, and the caller has nothing to do. The error is an [*Error]; f
// then has no meaning.
func (f *Frame) Parse(b []byte, place Place) (rest []byte, err error) {
	r := reader{b: b}
	*f = Frame{Kind: Kind(r.varint())}
	body := reader{b: r.prefixed()}
	if r.short {
		return nil, &Error{"5", "a frame that is longer than the frames of its record"}
	}
	if !f.Kind.Known() {
		return r.b, nil
	}
	if kinds[f.Kind].places&place == 0 {
		return nil, f.malformed("in %v", place)
	}
	problem := f.parseBody(&body)
	switch {
	case body.short:
		return nil, f.malformed("that is too short")
	case problem != nil:
		return nil, problem
	case len(body.b) > 0:
		return nil, f.malformed("with bytes left over")
	}
	return r.b, nil
}

// parseBody reads the fields of a known kind. Where the body is too short, it
// doesn't matter what it returns.
func (f *Frame) parseBody(r *reader) error {
	switch f.Kind {
	case Next:
		return f.context(r)
	case Attach:
		err := f.context(r)
		f.Seq, f.Epoch = r.varint(), r.varint()
		if mode := r.varint(); mode != 0 {
			return f.malformed("with reserved mode %d", mode)
		}
		return err
	case Ack:
		err := f.context(r)
		f.Seq, f.Credit = r.varint(), r.varint()
		if f.Context == Control && f.Credit != 0 {
			return f.malformed("with credit for the control context")
		}
		return err
	case SessionCredit:
		f.Credit = r.varint()
	case StreamLimit:
		f.Streams = r.varint()
		if f.Streams > MaxStreams {
			return f.malformed("with limit %d", f.Streams)
		}
	case Ping, Pong:
		r.short = len(r.b) < len(f.Data)
		r.b = r.b[copy(f.Data[:], r.b):]
	case KeyUpdate, KeyRequest:
		f.Epoch = r.varint()
		if f.Epoch == 0 && f.Kind == KeyUpdate {
			return f.malformed("to epoch 0")
		}
	case Params:
		err := f.Params.parse(r.b, nil)
		r.b = nil
		return err
	case Reset:
		err := f.stream(r)
		f.Code, f.Size = r.varint(), r.varint()
		return err
	case StopSending:
		err := f.stream(r)
		f.Code = r.varint()
		return err
	case GoingAway:
		id := r.varint()
		f.Context = uint32(id)
		if id > uint64(MaxStreamID) {
			return f.malformed("for stream %#x", id)
		}
	case PathLeft:
		return f.parsePathLeft(r)
	case PathStatus:
		status := r.varint()
		f.Backup, f.Weight = status == 1, r.varint()
		if status > 1 || f.Weight > MaxWeight {
			return f.malformed("%d with weight %d", status, f.Weight)
		}
	case Token:
		return f.parseToken(r)
	case AddAddress:
		return f.parseAddress(r)
	case RemoveAddress:
		f.Address.ID = r.varint()
		if f.Address.ID == 0 {
			return f.malformed("0")
		}
	case OptionAnswer:
		return f.parseOptionAnswer(r)
	case OfferCC, DataCC, AnswerCC, WithdrawCC:
		return f.parseProgram(r)
	case SYNRequest, SYNReport:
		return f.parseSYN(r)
	case Close:
		return f.parseClose(r)
	}
	return nil
}

const (
	maxPath  = 0xffff
	minToken = 16
)

// context reads the id of a context that can be attached to a path.
func (f *Frame) context(r *reader) error {
	id := r.varint()
	f.Context = uint32(id)
	if id > math.MaxUint32 || !IsStream(f.Context) && f.Context != Control {
		return f.malformed("for context %#x", id)
	}
	return nil
}

// stream reads the id of a stream.
func (f *Frame) stream(r *reader) error {
	id := r.varint()
	f.Context = uint32(id)
	if id > math.MaxUint32 || !IsStream(f.Context) {
		return f.malformed("for stream %#x", id)
	}
	return nil
}

func (f *Frame) parsePathLeft(r *reader) error {
	path, why := r.varint(), r.varint()
	f.Path, f.Lost = uint32(path), why == 1
	if path > maxPath || why > 1 {
		return f.malformed("of path %d for reason %d", path, why)
	}
	return nil
}

func (f *Frame) parseToken(r *reader) error {
	path := r.varint()
	f.Path, f.Token, r.b = uint32(path), r.b, nil
	if path == 0 || path > maxPath || len(f.Token) < minToken || len(f.Token) > MaxToken {
		return f.malformed("of %d bytes for path %d", len(f.Token), path)
	}
	return nil
}

func (f *Frame) parseAddress(r *reader) (err error) {
	var ok bool
	f.Address.ID = r.varint()
	f.Address.AddrPort, ok = parseAddrPort(r.b)
	r.b = nil
	if !ok || f.Address.ID == 0 {
		err = f.malformed("that can't be one")
	}
	return err
}

func (f *Frame) parseClose(r *reader) error {
	class := r.varint()
	f.Class, f.Code = Class(class), r.varint()
	f.Reason, r.b = r.b, nil
	switch {
	case class > uint64(Application):
		return f.malformed("of class %d", class)
	case len(f.Reason) > MaxReason:
		return f.malformed("with a reason of %d bytes", len(f.Reason))
	case !utf8.Valid(f.Reason):
		return f.malformed("with a reason that isn't UTF-8")
	}
	return nil
}

func (f *Frame) malformed(format string, args ...any) error {
	k := kinds[f.Kind]
	return &Error{k.rule, k.name + " " + fmt.Sprintf(format, args...)}
}

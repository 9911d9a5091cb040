package wire

import (
	"bytes"
	"fmt"
	"math"
	"time"
)

// Parameters are what a side grants its peer from the start (protocol 2.3).
// The zero value grants nothing, and is what holds before they are known.
type Parameters struct {
	StreamCredit  uint64        // bytes on each new stream
	SessionCredit uint64        // bytes on all streams together
	StreamLimit   uint64        // streams that the peer may open
	IdleTimeout   time.Duration // silence after which the session is forgotten; 0: never
	Mode          uint64        // how the peer had best use several paths, see protocol 9.10
	TCPOptions    string        // asked for at once, by [AppendTCPOptions], at most [MaxOptions]
	TCPKinds      string        // of TCP options that may be asked for, as varints, at most 64
	SYNReports    bool          // a server's: it answers SYN_REQUEST
	ProgramSize   uint64        // bytes of the largest congestion control that it takes, at most MaxProgram; 0: none
}

const (
	idStreamCredit  = 1
	idSessionCredit = 2
	idStreamLimit   = 3
	idIdleTimeout   = 4
	idTokens        = 5 // in an Answer only
	idAddresses     = 6 // likewise
	idMode          = 7
	idTCPOptions    = 8
	idTCPKinds      = 9
	idProgramSize   = 10
	idSYNReports    = 11
)

// AppendOffer appends the extension's body in a ClientHello.
func AppendOffer(b []byte) []byte { return append(b, 1, Version) }

// ParseOffer reads the extension's body in a ClientHello, and tells whether
// the client speaks this version.
func ParseOffer(b []byte) (ours bool, err error) {
	if len(b) < 2 || int(b[0]) != len(b)-1 {
		return false, &Error{"2.1", "an Offer whose list of versions is empty or has another length"}
	}
	return bytes.IndexByte(b[1:], Version) >= 0, nil
}

// appendParameters appends the parameters that are not 0.
func appendParameters(b []byte, p *Parameters) []byte {
	b = appendParameter(b, idStreamCredit, p.StreamCredit)
	b = appendParameter(b, idSessionCredit, p.SessionCredit)
	b = appendParameter(b, idStreamLimit, p.StreamLimit)
	b = appendParameter(b, idIdleTimeout, milliseconds(p.IdleTimeout))
	b = appendParameter(b, idMode, p.Mode)
	b = appendText(b, idTCPOptions, p.TCPOptions)
	b = appendText(b, idTCPKinds, p.TCPKinds)
	b = appendParameter(b, idProgramSize, min(p.ProgramSize, MaxProgram))
	if p.SYNReports {
		b = appendParameter(b, idSYNReports, 1)
	}
	return b
}

func appendParameter(b []byte, id, v uint64) []byte {
	if v == 0 {
		return b
	}
	b = append(b, byte(id), byte(VarintLen(v)))
	return AppendVarint(b, v)
}

func appendText(b []byte, id byte, text string) []byte {
	if text == "" {
		return b
	}
	return append(AppendVarint(append(b, id), uint64(len(text))), text...)
}

// parse reads parameters, and those of an Answer into more if it isn't nil.
func (p *Parameters) parse(b []byte, more *Answer) error {
	*p = Parameters{}
	var seen uint16 // bit set of ids
	r := reader{b: b}
	for len(r.b) > 0 {
		id, value := r.varint(), reader{b: r.prefixed()}
		if r.short {
			return &Error{"2.3", "parameters that end too early"}
		}
		if !knownParameter(id) || more == nil && (id == idTokens || id == idAddresses) {
			continue
		}
		if seen&(1<<id) != 0 {
			return &Error{"2.3", fmt.Sprintf("parameter %d twice", id)}
		}
		seen |= 1 << id
		var err error
		switch id {
		case idStreamCredit:
			p.StreamCredit = value.varint()
		case idSessionCredit:
			p.SessionCredit = value.varint()
		case idStreamLimit:
			p.StreamLimit = value.varint()
		case idMode:
			p.Mode = value.varint()
		case idProgramSize:
			p.ProgramSize = min(value.varint(), MaxProgram)
		case idSYNReports:
			p.SYNReports = value.varint() != 0
		case idIdleTimeout:
			p.IdleTimeout = duration(value.varint())
		case idTokens:
			err = more.parseTokens(&value)
		case idTCPOptions:
			err = p.parseTCPOptions(&value)
		case idTCPKinds:
			err = p.parseTCPKinds(&value)
		case idAddresses:
			err = more.parseAddresses(&value)
		}
		if err != nil {
			return err
		}
		if value.short || len(value.b) > 0 {
			return &Error{"2.3", fmt.Sprintf("parameter %d that is too short or too long", id)}
		}
		if p.StreamLimit > MaxStreams {
			return &Error{"2.3", fmt.Sprintf("stream_limit %d", p.StreamLimit)}
		}
	}
	return nil
}

func knownParameter(id uint64) bool {
	return id >= idStreamCredit && id <= idSYNReports
}

const maxMilliseconds = math.MaxInt64 / uint64(time.Millisecond)

// milliseconds rounds up, since 0 means never.
func milliseconds(d time.Duration) uint64 {
	if d <= 0 {
		return 0
	}
	return min((uint64(d)+uint64(time.Millisecond)-1)/uint64(time.Millisecond), maxMilliseconds)
}

// duration is exact up to the 292 years that a time.Duration holds.
func duration(ms uint64) time.Duration {
	return time.Duration(min(ms, maxMilliseconds)) * time.Millisecond
}

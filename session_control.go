package tcpls

import (
	"sync"
	"sync/atomic"

	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// control is the sending side of the control context: what must reach the
// peer once. Each thing to be said is a word of its stream or of the session,
// and its record is kept until it is acknowledged, so that neither the words
// nor the records can pile up.
type control struct {
	due atomic.Bool

	mu        sync.Mutex
	streams   []*Stream // with a RESET or STOP_SENDING to be said, each once
	params    *wire.Parameters
	request   uint64         // epoch of a KEY_REQUEST, 0: none
	tokens    []token        // for the client
	addresses []wire.Address // likewise; those to be withdrawn are invalid
	requests  [][]byte       // TCP options to be asked for, each a record
	answers   []optionAnswer // to those that the peer has asked for
	away      uint32         // last stream that we serve
	awayDue   bool
	close     *SessionError
	closeDue  bool
	epochDue  bool
	cc        ccWords
	syns      []synWord

	answered atomic.Uint64 // requests of the peer's whose answer was said

	owner atomic.Pointer[Path] // the one path that carries the context
	moved atomic.Bool          // it is to be attached there, and its records sent again

	sealMu   sync.Mutex // guards what follows
	ctx      record.Context
	epoch    uint64
	epochSeq uint64 // first record of epoch
	kept     kept
}

// A controlWord is what the control context must say of a stream; guarded by
// control.mu.
type controlWord struct {
	queued          bool
	resetDue        bool
	stopDue         bool
	resetCode, size uint64
	stopCode        uint64
}

// maxControl bounds the records of the control context that aren't
// acknowledged, in bytes; further words wait.
const maxControl = 64 << 10

// maxControlRecord is how many bytes of frames one such record takes.
const maxControlRecord = 3 << 10

func (c *control) reset(s *Stream, code, size uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.control.resetDue, s.control.resetCode, s.control.size = true, code, size
	c.enqueue(s)
}

func (c *control) stop(s *Stream, code uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.control.stopDue, s.control.stopCode = true, code
	c.enqueue(s)
}

func (c *control) enqueue(s *Stream) {
	if !s.control.queued {
		s.control.queued = true
		c.streams = append(c.streams, s)
	}
	c.due.Store(true)
}

// say sets words of the session.
func (c *control) say(set func(c *control)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	set(c)
	c.due.Store(true)
}

// seal seals what is due as one record on p, whose outMu the caller holds. It
// reports false where that must wait for acknowledgements.
func (c *control) seal(p *Path) (sealed bool, err error) {
	c.sealMu.Lock()
	defer c.sealMu.Unlock()
	kept := c.keptBytes()
	if kept > maxControl || c.owner.Load() != p {
		return false, nil
	}
	chunk := p.reserveApart(maxControlRecord)
	b := c.append(chunk.Next(maxControlRecord)[:record.HeaderLen], maxControlRecord-wire.TrailerLen, kept)
	update := false
	c.mu.Lock()
	if c.epochDue {
		c.epochDue, update = false, true
		b = wire.AppendKeyUpdate(b, c.epoch+1)
	}
	c.mu.Unlock()
	kind := record.Type(wire.TypeFrames)
	if len(b) > record.HeaderLen {
		b = wire.AppendTrailer(b, record.HeaderLen)
	} else if b, kind = c.appendRequest(b), wire.TypeOption; len(b) == record.HeaderLen {
		return false, nil
	}
	rec, err := p.seal(chunk, &c.ctx, b, kind)
	if err != nil {
		return false, err
	}
	p.sess.gate.keep(int(rec.length)) // first, so that Session.unacknowledged never says too little
	c.kept.push(rec)
	if update {
		c.epoch++
		c.epochSeq = c.ctx.Seq()
		c.ctx.SetKeys(p.sess.keys.send.Load())
	}
	return true, nil
}

func (c *control) keptBytes() int {
	c.kept.mu.Lock()
	defer c.kept.mu.Unlock()
	return c.kept.bytes
}

// append appends the frames that are due, up to the length limit; kept is how
// many bytes of the context aren't acknowledged.
func (c *control) append(b []byte, limit, kept int) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.params != nil {
		b = wire.AppendParameters(b, c.params)
		c.params = nil
	}
	if c.request != 0 {
		b = wire.AppendKeyRequest(b, c.request)
		c.request = 0
	}
	if c.awayDue {
		b = wire.AppendGoingAway(b, c.away)
		c.awayDue = false
	}
	for len(c.tokens) > 0 && len(b) <= limit-4*wire.MaxFrameLen-wire.MaxReason-wire.MaxToken {
		b = wire.AppendToken(b, uint32(c.tokens[0].path), c.tokens[0].bytes)
		c.tokens = c.tokens[1:]
	}
	b = c.appendCC(b, limit-4*wire.MaxFrameLen-wire.MaxReason, kept)
	b = c.appendAddresses(b, limit-4*wire.MaxFrameLen-wire.MaxReason)
	b = c.appendAnswers(b, limit-4*wire.MaxFrameLen-wire.MaxReason)
	b = c.appendSYNs(b, limit-4*wire.MaxFrameLen-wire.MaxReason)
	said := 0
	for _, s := range c.streams {
		if len(b) > limit-4*wire.MaxFrameLen-wire.MaxReason {
			break
		}
		if s.control.resetDue {
			b = wire.AppendReset(b, s.id, s.control.resetCode, s.control.size)
		}
		if s.control.stopDue {
			b = wire.AppendStopSending(b, s.id, s.control.stopCode)
		}
		s.control.queued, s.control.resetDue, s.control.stopDue = false, false, false
		said++
	}
	c.streams = append(c.streams[:0], c.streams[said:]...)
	clear(c.streams[len(c.streams):cap(c.streams)])
	if c.closeDue && len(c.streams) == 0 {
		class := wire.Protocol
		if c.close.Application {
			class = wire.Application
		}
		b = wire.AppendClose(b, class, c.close.Code, c.close.Reason)
		c.closeDue = false
		c.requests, c.answers, c.syns = nil, nil, nil // nothing comes behind CLOSE
	}
	c.due.Store(len(c.streams) > 0 || len(c.tokens) > 0 || len(c.addresses) > 0 || len(c.requests) > 0 || len(c.answers) > 0 ||
		len(c.syns) > 0 || c.cc.program.sends() && kept+len(b) < ccWindow)
	return b
}

// controlRecord acts on record seq of the control context: frames, or a TCP
// option.
func (s *Session) controlRecord(p *Path, t record.Type, content []byte, seq uint64) error {
	if seq < s.controlNext { // sent again; our acknowledgement may be lost
		s.words.acknowledgeControl(s.controlNext)
		if t == wire.TypeOption {
			return nil
		}
		return p.eachFrame(content, wire.OnControl, func(f *wire.Frame) error {
			if f.Kind == wire.KeyUpdate {
				return s.receiveEpoch(p, &p.in.control, &p.in.ctlEpoch, f.Epoch)
			}
			return nil
		})
	}
	s.controlNext = seq + 1
	first := !s.keyed
	var err error
	if t != wire.TypeOption {
		err = p.eachFrame(content, wire.OnControl, func(f *wire.Frame) error {
			err := s.controlFrame(p, f, first)
			first = false
			return err
		})
	} else if s.keyed {
		err = s.optionRecord(content)
	}
	if err != nil {
		return err
	}
	if !s.keyed {
		return violation(wire.CodeProtocol, "the first control record is without PARAMETERS (protocol 2.4)")
	}
	s.words.acknowledgeControl(s.controlNext)
	return nil
}

func (s *Session) controlFrame(p *Path, f *wire.Frame, first bool) error {
	if f.Kind == wire.Params {
		if s.client || !first {
			return violation(wire.CodeProtocol, "PARAMETERS out of place (protocol 5.10)")
		}
		s.keyed = true
		return s.setPeerParameters(&f.Params)
	}
	if !s.keyed {
		return violation(wire.CodeProtocol, "%v before PARAMETERS (protocol 2.4)", f.Kind)
	}
	switch f.Kind {
	case wire.Reset:
		st, err := s.ending(f.Context)
		if err != nil || st == nil {
			return err
		}
		if err := st.arrivedReset(f.Code, f.Size); err != nil {
			return err
		}
		st.retire(p)
		return nil
	case wire.StopSending:
		st, err := s.ending(f.Context)
		if err != nil || st == nil {
			return err
		}
		// The peer waits for our RESET even if everything was sent.
		st.abort(&StreamError{StreamID: st.id, Code: f.Code, Remote: true}, f.Code)
	case wire.KeyRequest:
		return s.keyRequested(f.Epoch)
	case wire.GoingAway:
		s.peerGoingAway(f.Context)
	case wire.Token:
		return s.receiveToken(f)
	case wire.AddAddress, wire.RemoveAddress:
		return s.receiveAddress(f)
	case wire.SYNRequest, wire.SYNReport:
		return s.receiveSYN(f)
	case wire.OfferCC:
		return s.receiveOfferCC(f)
	case wire.DataCC:
		return s.receiveDataCC(f)
	case wire.AnswerCC:
		return s.receiveAnswerCC(f)
	case wire.WithdrawCC:
		return s.receiveWithdrawCC(f)
	case wire.OptionAnswer:
		return s.optionAnswered(f)
	case wire.Close:
		p.settleStream() // acknowledged with CLOSE, before our close_notify
		s.words.acknowledgeControl(s.controlNext)
		s.peerClosed(&SessionError{
			Code: f.Code, Application: f.Class == wire.Application, Remote: true, Reason: string(f.Reason),
		})
	case wire.KeyUpdate:
		s.controlEpoch = f.Epoch
		return s.receiveEpoch(p, &p.in.control, &p.in.ctlEpoch, f.Epoch)
	}
	return nil
}

package tcpls

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/internal/tls13"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// Early data (RFC 8446, section 2.3; protocol 10). The session begins before
// its handshake is complete: a client that has a ticket sends records of its
// streams under the early keys, behind the ClientHello, and the server opens
// them, and answers under its application keys, before it has heard the
// client's Finished.
//
//	greeting ── the server's Finished, or the client's ──► session like any other
//
// When the greeting is over, everything that the client sent and the server
// hasn't acknowledged is sealed anew under the application keys, with the same
// numbers. If the server refused early data, that is sent once more; else it is
// kept, as records always are.

// A greeting is the handshake of a session that has begun.
type greeting struct {
	keys  *record.Keys // the early ones
	left  int          // server: bytes of streams that may still come early
	until time.Time    // when the handshake must be complete
	timer *time.Timer  // ends the session then

	assumed wire.Parameters // client: those of the ticket's session
}

// opening is what a session keeps of its greeting.
type opening struct {
	greeting *greeting    // nil: the handshake is complete; guarded by inMu, or the path's goroutine's own
	greeted  *wire.Answer // what the server answers
	holding  atomic.Bool  // nothing may be sealed, between early data and what follows it
	early    EarlyData    // guarded by mu
}

// EarlyData tells what became of early data.
type EarlyData int

const (
	// EarlyDataNone: there was none.
	EarlyDataNone EarlyData = iota
	// EarlyDataPending: the handshake isn't complete. What is sent may be
	// refused, and then is sent again; what is received may be a replay.
	EarlyDataPending
	// EarlyDataAccepted: the server took the early data.
	EarlyDataAccepted
	// EarlyDataRefused: the server didn't, and the client has sent it again
	// after the handshake, once.
	EarlyDataRefused
)

func (e EarlyData) String() string {
	switch e {
	case EarlyDataNone:
		return "none"
	case EarlyDataPending:
		return "pending"
	case EarlyDataAccepted:
		return "accepted"
	case EarlyDataRefused:
		return "refused"
	}
	return fmt.Sprintf("early data state %d", int(e))
}

// EarlyData tells what became of the session's early data.
func (s *Session) EarlyData() EarlyData {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.early
}

// greets reports whether the session has begun before its handshake is complete.
func (s *Session) greets() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.greeting != nil && s.early == EarlyDataPending
}

// EarlyData reports whether bytes of the stream came as early data, which
// somebody on the path may have recorded and sent again: requests that change
// something should wait for Session.Handshake before they are carried out.
func (s *Stream) EarlyData() bool {
	s.recvMu.Lock()
	defer s.recvMu.Unlock()
	return s.cameEarly
}

// Handshake waits until the handshake of a session with early data is complete,
// so that the peer is authenticated and nothing that follows can be a replay.
// Without early data it returns at once. The error is the context's, or the
// reason why the session ended.
func (s *Session) Handshake(ctx context.Context) error {
	stop := context.AfterFunc(ctx, s.broadcast)
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.early != EarlyDataPending {
		return nil
	}
	return s.await(ctx, func() bool { return s.early != EarlyDataPending })
}

// beginEarly makes a client's handshake one whose session begins at once, if
// its ticket allows that.
func (h *handshake) beginEarly(until time.Time) bool {
	ctx := h.engine.EarlyContextSend()
	if ctx == nil {
		return false
	}
	peer, err := wire.ParseAnswer(h.engine.RememberedAnswer())
	if err != nil || peer.StreamLimit == 0 {
		return false
	}
	h.peer = wire.Answer{Parameters: peer.Parameters} // its tokens were that session's
	h.peer.SessionCredit = min(peer.SessionCredit, uint64(h.engine.EarlyLimit()))
	h.send, h.receive = ctx.Keys(), ctx.Keys() // nothing can be received yet
	h.tcpls = true
	h.greeting = &greeting{keys: ctx.Keys(), until: until, assumed: peer.Parameters}
	return true
}

// acceptEarly does the same for a server that has accepted early data.
func (h *handshake) acceptEarly(until time.Time) {
	early := h.engine.TakeEarlyKeys()
	h.greeting = &greeting{keys: early.Keys(), left: int(h.engine.EarlyLimit()), until: until}
	h.send, h.receive = h.engine.TakeWriteKeys(), early.Keys()
}

// startGreeting bounds the handshake that goes on.
func (s *Session) startGreeting(g *greeting, p *Path) {
	s.early, s.greeting = EarlyDataPending, g
	g.timer = time.AfterFunc(g.until.Sub(now()), func() { s.end(ErrHandshakeTimeout) })
	if !s.client {
		return
	}
	p.outMu.Lock()
	defer p.outMu.Unlock()
	p.enqueueRaw(s.engine.Output())
}

// earlyPatience is how long a ClientHello waits for early data to go with it.
const earlyPatience = 5 * time.Millisecond

// enqueueRaw queues bytes that are no records of ours. The caller holds outMu.
func (p *Path) enqueueRaw(b []byte) {
	for piece := range slices.Chunk(b, record.MaxPlaintext) {
		c := p.reserve(len(piece), false)
		room := c.Next(len(piece))[:len(piece)]
		copy(room, piece)
		c.Commit(room)
		p.unsent.Add(int64(len(piece)))
	}
}

// hold keeps everything from being sealed until release, and returns the
// streams. The caller holds no lock.
func (s *Session) hold(p *Path) []*Stream {
	s.holding.Store(true)
	p.outMu.Lock()
	p.held = true
	p.outMu.Unlock()
	streams := s.openStreams()
	for _, st := range streams {
		st.sendMu.Lock()
		for st.sealing {
			st.sendCond.Wait()
		}
		st.sendMu.Unlock()
	}
	return streams
}

// fellThrough ends a session whose handshake has failed; the alert, if one is
// due, is in the queue.
func (p *Path) fellThrough(err error) {
	s := p.sess
	if !s.setCause(err) {
		return
	}
	s.log.Warn("session ended", "error", err)
	p.outMu.Lock()
	p.endDue = true
	p.flush()
	p.outMu.Unlock()
	s.startLinger()
	p.drainInput()
}

// greet finishes a client's handshake, before anything else is read.
func (p *Path) greet() error {
	s, r := p.sess, &p.in
	for first := true; ; first = false {
		if err := p.fill(); err == io.EOF {
			return fmt.Errorf("%w: %w", ErrTruncated, s.engine.End())
		} else if err != nil {
			return err
		}
		p.noteArrival()
		if first {
			s.hold(p)
			p.outMu.Lock()
			if early := s.engine.EarlyContextSend(); early != nil {
				*early = p.out // EndOfEarlyData is numbered behind what we sealed
			}
			p.outMu.Unlock()
		}
		n, err := s.engine.Feed((*r.buf)[r.start:r.have])
		r.start += n
		if err == nil && s.engine.HandshakeComplete() {
			err = s.checkGreeting()
		}
		if err == nil && s.engine.HandshakeComplete() {
			return s.clientGreeted(p)
		}
		p.outMu.Lock()
		p.enqueueRaw(s.engine.Output())
		p.flush()
		p.outMu.Unlock()
		if err != nil {
			return err
		}
	}
}

// checkGreeting holds the handshake against what was assumed when the session
// began.
func (s *Session) checkGreeting() error {
	err := error(nil)
	switch {
	case !s.engine.ExtensionAnswered():
		err = fmt.Errorf("%w: server has forgotten that it does; dial again", ErrNotTCPLS)
	case s.engine.SendLimit() < minSendLimit:
		err = fmt.Errorf("tcpls: peer takes records of %d bytes only, TCPLS needs %d (protocol 4.5)", s.engine.SendLimit(), minSendLimit)
	case s.engine.EarlyDataAccepted() && s.greeted.Parameters != s.greeting.assumed:
		err = tls13.AlertIllegalParameter.Because(errors.New("tcpls: server accepts early data with other parameters than it gave before (protocol 10.4)"))
	case !s.engine.EarlyDataAccepted() && !s.fits(&s.greeted.Parameters):
		err = errShrunk
	default:
		return nil
	}
	s.engine.Fail(err)
	return err
}

var errShrunk = errors.New("tcpls: server takes less now than was sent as early data, which it has refused; dial again")

// fits reports whether what was sent early keeps to what a server that has
// refused it allows now.
func (s *Session) fits(now *wire.Parameters) bool {
	s.mu.Lock()
	streams, opened := s.streams(), uint64(s.table.opened)
	s.mu.Unlock()
	if s.gate.sent() > now.SessionCredit || opened > now.StreamLimit {
		return false
	}
	for _, st := range streams {
		st.sendMu.Lock()
		sent := st.sent
		st.sendMu.Unlock()
		if sent > now.StreamCredit {
			return false
		}
	}
	return true
}

// clientGreeted moves a client to the application keys.
func (s *Session) clientGreeted(p *Path) error {
	accepted := s.engine.EarlyDataAccepted()
	last := s.engine.Output()
	send, receive := s.engine.TakeKeys()
	p.in.own.Init(receive, wire.FirstPath)
	p.in.control.Init(receive, wire.Control)
	s.inMu.Lock()
	s.keys.receive = receive
	early := s.greeting.keys
	s.inMu.Unlock()

	s.mu.Lock()
	s.keys.send.Store(send)
	s.state.TLS = s.engine.ConnectionState()
	peer := *s.greeted
	s.peer = peer.Parameters
	s.table.allowed = max(s.table.allowed, peer.StreamLimit)
	streams := s.streams()
	s.mu.Unlock()
	var again *Path
	if !accepted {
		again = p
	}
	for _, st := range streams {
		if err := st.greeted(early, send, again); err != nil {
			return err
		}
	}
	p.outMu.Lock()
	p.enqueueRaw(last)
	p.out.Init(send, wire.FirstPath)
	p.current, p.held = wire.Control, false
	err := s.control.greeted(p, early, send, accepted)
	p.useIO()
	p.outMu.Unlock()
	if err != nil {
		return err
	}
	s.gate.allow(peer.SessionCredit)
	s.endGreeting(accepted)
	s.takeAnswer(&peer)
	for _, st := range streams {
		st.release(peer.StreamCredit)
	}
	p.kick()
	return nil
}

// endGreeting makes the session one like any other.
func (s *Session) endGreeting(accepted bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.greeting.timer.Stop()
	s.greeting = nil
	s.early = EarlyDataRefused
	if accepted {
		s.early = EarlyDataAccepted
	}
	s.holding.Store(false)
	for _, p := range s.livePaths() {
		s.startWatch(p)
	}
	s.cond.Broadcast()
	s.log.Debug("handshake complete", "early data", s.early)
}

// greeted seals the stream's records anew, to be sent once more if again isn't
// nil.
func (s *Stream) greeted(early, keys *record.Keys, again *Path) error {
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	s.sendCtx.SetKeys(keys)
	s.attached = nil
	if again != nil && s.kept.len() > 0 && !s.reset {
		s.kept.doubt(nil, 0)
		s.replayOver(again)
	}
	return s.kept.reseal(s.id, early, keys)
}

// release lets the stream seal again, once its records are sent again if they
// have to be.
func (s *Stream) release(credit uint64) {
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	s.credit = max(s.credit, credit)
	s.settleSending()
	s.sendCond.Broadcast()
}

// greeted is the same for the control context, which goes first when early data
// was refused: it begins with PARAMETERS. The caller holds p.outMu.
func (c *control) greeted(p *Path, early, keys *record.Keys, accepted bool) error {
	c.sealMu.Lock()
	defer c.sealMu.Unlock()
	c.ctx.SetKeys(keys)
	if err := c.kept.reseal(wire.Control, early, keys); err != nil || accepted {
		return err
	}
	records, _ := c.kept.from(0, maxHeld)
	for _, rec := range records {
		p.repeat(rec)
	}
	return nil
}

// reseal replaces the kept records by the same plaintext under other keys.
func (k *kept) reseal(context uint32, from, to *record.Keys) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	var open, seal record.Context
	for i := range k.n {
		r := k.at(i)
		seq := k.acked + uint64(i)
		open.InitAt(from, context, seq)
		seal.InitAt(to, context, seq)
		content, t, err := open.Open(nil, r.chunk.Record(int(r.offset), int(r.length)))
		if err != nil {
			return err
		}
		chunk := record.NewChunk(len(content)+record.Overhead, false)
		rec, err := seal.SealTo(chunk.Next(len(content)), content, t)
		if err != nil {
			return err
		}
		r.chunk.Release()
		*r = sentRecord{chunk: chunk, path: r.path, offset: int32(chunk.Commit(rec)), length: int32(len(rec))}
	}
	return nil
}

// greetClient takes what belongs to the handshake out of a server's input. The
// caller holds inMu.
func (p *Path) greetClient() error {
	s, r := p.sess, &p.in
	for s.greeting != nil {
		b := (*r.buf)[r.start:r.have]
		if len(b) < record.HeaderLen {
			return nil
		}
		if s.engine.EarlyData() && record.ParseHeader(b).Type == record.ApplicationData {
			return nil // a record of the session
		}
		n, err := s.engine.Feed(b)
		r.start += n
		if err != nil {
			return engineError(err)
		}
		if s.engine.HandshakeComplete() {
			s.serverGreeted(p)
		} else if n == 0 {
			return nil
		}
	}
	return nil
}

// serverGreeted moves a server's receiving to the application keys.
func (s *Session) serverGreeted(p *Path) {
	_, receive := s.engine.TakeKeys()
	s.keys.receive = receive
	p.in.own.Init(receive, wire.FirstPath)
	p.in.control.SetKeys(receive)
	for _, a := range p.in.attached {
		a.ctx.SetKeys(receive)
	}
	s.mu.Lock()
	s.state.TLS = s.engine.ConnectionState()
	s.mu.Unlock()
	s.endGreeting(true)
	s.tickets.invitation.settle(s)
	go s.giveTickets(p) // not under inMu
}

// arrivedEarly holds stream bytes against what the server takes early.
func (g *greeting) arrivedEarly(n int) error {
	if g.left -= n; g.left < 0 {
		return &protocolError{alert: alertUnexpectedMessage, err: errors.New("more early data than was allowed")}
	}
	return nil
}

// ticketsAtOnce is how many tickets a server gives a client for its next
// sessions, each of which takes one.
const ticketsAtOnce = 2

// giveTickets sends session tickets on p, the path of the handshake.
func (s *Session) giveTickets(p *Path) {
	for range ticketsAtOnce {
		ticket, err := s.engine.NewTicket()
		if err != nil {
			s.log.Warn("no session ticket", "error", err)
		}
		if err != nil || ticket == nil {
			return
		}
		p.sealHandshake(ticket)
	}
}

// sealHandshake seals a TLS message in the path's own context.
func (p *Path) sealHandshake(message []byte) {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	for piece := range slices.Chunk(message, p.sizing.maxContent) {
		if p.ended || p.endDue {
			return
		}
		c := p.reserve(len(piece), false)
		if _, err := p.seal(c, &p.out, append(c.Next(len(piece))[:record.HeaderLen], piece...), record.Handshake); err != nil {
			go p.sess.end(err)
			return
		}
	}
	p.flush()
}

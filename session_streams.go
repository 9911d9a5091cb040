package tcpls

import (
	"context"
	"net"

	"github.com/go-tcpls/tcpls/internal/wire"
)

// The table of streams: who may open how many, who waits to accept, and when
// one has ended. All of it is guarded by the session's mu.

// table counts the streams of both parities.
type table struct {
	streams map[uint32]*Stream // not yet ended in both directions
	pending []*Stream          // opened by the peer, not yet accepted
	opened  uint32             // how many we opened
	allowed uint64             // how many we may open
	peers   uint32             // how many the peer opened
	limit   uint64             // how many the peer may open, as it was told
	ended   uint64             // of the peer's
	away    bool               // the peer takes no new ones
	leaving bool               // we sent GOING_AWAY: new ones are refused
}

// nth returns the id of the n-th stream, from 0, that a side opens.
func nth(n uint32, client bool) uint32 {
	if client {
		return 2*n + 1
	}
	return 2*n + 2
}

// OpenStream opens a stream. It waits while the peer's limit is reached. The
// peer learns of the stream with the first byte that is written, or when the
// first Read begins. The error is ErrGoingAway, ErrNotTCPLS for a second
// stream to a peer that doesn't speak TCPLS, the context's, or the reason why
// the session ended (docs/protocol.md, 3.4 and 5.2).
func (s *Session) OpenStream(ctx context.Context) (*Stream, error) {
	if s.plain != nil {
		return s.takePlain(true)
	}
	stop := context.AfterFunc(ctx, s.broadcast)
	defer stop()
	st, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	return s.handOut(st), nil
}

// open makes a stream of this end, once the peer allows another one.
func (s *Session) open(ctx context.Context) (*Stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.over():
			return nil, s.cause()
		case s.table.away:
			return nil, ErrGoingAway
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case uint64(s.table.opened) < s.table.allowed:
			id := nth(s.table.opened, s.client)
			s.table.opened++
			return s.addStream(id), nil
		}
		s.wait(&s.cond)
	}
}

// addStream makes the state of a stream. The caller holds mu.
func (s *Session) addStream(id uint32) *Stream {
	st := newStream(s, id, s.peer.StreamCredit)
	st.sendCtx.Init(s.keys.send.Load(), id)
	st.epoch = s.keys.sendEpoch
	s.table.streams[id] = st
	return st
}

// AcceptStream waits for a stream that the peer opened (docs/protocol.md, 5.2).
// The error is the context's, or the reason why the session ended.
func (s *Session) AcceptStream(ctx context.Context) (*Stream, error) {
	if s.plain != nil {
		return s.acceptPlain(ctx)
	}
	stop := context.AfterFunc(ctx, s.broadcast)
	defer stop()
	st, err := s.nextPending(ctx)
	if err != nil {
		return nil, err
	}
	return s.handOut(st), nil
}

// nextPending waits for a stream that nobody has accepted yet.
func (s *Session) nextPending(ctx context.Context) (*Stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case len(s.table.pending) > 0:
			st := s.table.pending[0]
			s.table.pending[0] = nil
			s.table.pending = s.table.pending[1:]
			if len(s.table.pending) == 0 {
				s.table.pending = nil
			}
			return st, nil
		case s.over():
			return nil, s.cause()
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		}
		s.cond.Wait()
	}
}

// peerStream returns the stream that ATTACH names, opening it and those below
// if it is new; nil for one that has ended (protocol 5.2).
func (s *Session) peerStream(id uint32) (*Stream, error) {
	if !wire.IsStream(id) {
		return nil, violation(wire.CodeProtocol, "ATTACH of context %#x", id)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if wire.ClientOpened(id) != s.client {
		if err := s.openThrough(id); err != nil {
			return nil, err
		}
	} else if id >= nth(s.table.opened, s.client) {
		return nil, violation(wire.CodeStreamState, "ATTACH of stream %d, which isn't open", id)
	}
	st := s.table.streams[id]
	if st == nil {
		return nil, nil
	}
	return st, nil
}

// openThrough opens the peer's streams that aren't yet open, up to id. The
// caller holds mu.
func (s *Session) openThrough(id uint32) error {
	if n := uint64(id-1)/2 + 1; n > s.table.limit {
		return violation(wire.CodeStreamLimit, "stream %d beyond the limit of %d", id, s.table.limit)
	}
	for nth(s.table.peers, !s.client) <= id {
		st := s.addStream(nth(s.table.peers, !s.client))
		s.table.peers++
		if s.table.leaving || s.life.closing.Load() {
			go st.refuse()
			continue
		}
		s.table.pending = append(s.table.pending, st)
	}
	s.raiseLimit() // by what ended before; the reader sees to it that it is said
	s.cond.Broadcast()
	return nil
}

// ending returns the stream that a RESET or STOP_SENDING names, nil for one that
// has ended. It may overtake the ATTACH that opens the stream, or replace it,
// where that was sent on another path.
func (s *Session) ending(id uint32) (*Stream, error) {
	if s.spread.Load() && wire.IsStream(id) && wire.ClientOpened(id) != s.client {
		s.mu.Lock()
		err := s.openThrough(id)
		s.mu.Unlock()
		if err != nil {
			return nil, err
		}
	}
	return s.existing(id)
}

// existing returns the stream that a frame names, nil for one that has ended.
func (s *Session) existing(id uint32) (*Stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.table.streams[id]; st != nil {
		return st, nil
	}
	known := s.table.opened
	if wire.ClientOpened(id) != s.client {
		known = s.table.peers
	}
	if id >= nth(known, wire.ClientOpened(id)) {
		return nil, violation(wire.CodeStreamState, "frame for stream %d, which isn't open", id)
	}
	return nil, nil
}

// ackFrame acts on ACK (protocol 5.3).
func (s *Session) ackFrame(f *wire.Frame) error {
	if f.Context == wire.Control {
		freed, empty, ok := s.control.kept.ack(f.Seq)
		if !ok {
			return violation(wire.CodeAck, "ACK of control record %d, which wasn't sent", f.Seq)
		}
		s.gate.release(freed)
		s.control.resumeCC()
		if empty {
			s.broadcast()
		}
	} else {
		if !wire.IsStream(f.Context) {
			return violation(wire.CodeAck, "ACK of context %#x", f.Context)
		}
		st, err := s.existing(f.Context)
		if err != nil || st == nil {
			return err
		}
		if err := st.acknowledged(f.Seq, f.Credit); err != nil {
			return err
		}
	}
	if s.gate.unacknowledged() == 0 {
		s.path().trim()
	}
	if s.draining.Load() && s.unacknowledged() == 0 {
		s.broadcast()
	}
	return nil
}

// allowStreams raises how many streams we may open.
func (s *Session) allowStreams(limit uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if limit > s.table.allowed {
		s.table.allowed = limit
		s.cond.Broadcast()
	}
}

// finished notes that a direction of a stream has ended for good, and forgets
// the stream after the second. The caller holds no lock.
func (s *Session) finished(st *Stream, sending, receiving bool) {
	if sending {
		st.vacate()
		st.countPin(false)
	}
	s.mu.Lock()
	st.sendDone = st.sendDone || sending
	st.recvDone = st.recvDone || receiving
	if !st.sendDone || !st.recvDone || s.table.streams[st.id] != st {
		s.mu.Unlock()
		return
	}
	delete(s.table.streams, st.id)
	if st.handedOut {
		s.watchers.tell(Event{Kind: EventStreamClosed, Stream: st})
	}
	if st.cancel != nil {
		st.cancel(ErrStreamClosed)
	}
	told := false
	if wire.ClientOpened(st.id) != s.client {
		s.table.ended++
		told = s.raiseLimit()
	}
	if len(s.table.streams) == 0 {
		s.cond.Broadcast()
	}
	s.mu.Unlock()
	if told {
		s.kick()
	}
}

// raiseLimit lets the peer open as many streams as have ended, once it may
// open only half of Config.MaxStreams more. The caller holds mu.
func (s *Session) raiseLimit() (told bool) {
	most := uint64(s.cfg.MaxStreams)
	left := s.table.limit - uint64(s.table.peers)
	limit := min(s.table.ended+most, wire.MaxStreams)
	if left > most/2 || limit == s.table.limit || s.table.leaving {
		return false
	}
	s.table.limit = limit
	s.words.giveStreams(limit)
	return true
}

// refuse ends a stream that nobody will serve.
func (st *Stream) refuse() {
	_ = st.closeRead(StreamCodeRefused)
	st.abort(&StreamError{StreamID: st.id, Code: StreamCodeRefused}, StreamCodeRefused)
}

// streamContext returns the context of a stream's life.
func (s *Session) streamContext(st *Stream) context.Context {
	if st.plain != nil {
		return s.Context()
	}
	parent := s.Context()
	s.mu.Lock()
	defer s.mu.Unlock()
	if st.ctx == nil {
		st.ctx, st.cancel = context.WithCancelCause(parent)
		if s.table.streams[st.id] != st {
			st.cancel(ErrStreamClosed)
		}
	}
	return st.ctx
}

// streamListener is a net.Listener over the streams of a session.
type streamListener struct {
	s      *Session
	ctx    context.Context
	cancel context.CancelFunc
}

// Streams returns a net.Listener whose connections are the streams that the
// peer opens. Closing it ends Accept, by ErrListenerClosed, not the session.
func (s *Session) Streams() net.Listener {
	ctx, cancel := context.WithCancel(context.Background())
	return &streamListener{s, ctx, cancel}
}

func (l *streamListener) Accept() (net.Conn, error) {
	st, err := l.s.AcceptStream(l.ctx)
	if l.ctx.Err() != nil && err != nil {
		return nil, ErrListenerClosed
	}
	if err != nil {
		return nil, err
	}
	return st, nil
}

func (l *streamListener) Close() error {
	l.cancel()
	return nil
}

func (l *streamListener) Addr() net.Addr { return l.s.LocalAddr() }

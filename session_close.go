package tcpls

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/internal/tls13"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// The life of a session (protocol 8):
//
//	open ──Close──► closing ── all acknowledged ──► ended ──► done
//	  │                                               ▲
//	  ├── CLOSE from the peer ────────────────────────┤  answered by close_notify
//	  ├── a rule broken by the peer ──────────────────┤  CLOSE with its code, or an alert
//	  └── the path fails, CloseWithError ─────────────┘
//
// Ended: the cause is set, and every call returns it. Done: the path's
// goroutine has ended and its socket is closed. Between the two, our last
// words are written and the peer's are awaited, for CloseTimeout at most.
type life struct {
	ctx    context.Context // made when first asked for
	cancel context.CancelCauseFunc
	done   chan struct{}
	linger *time.Timer

	cause   atomic.Pointer[error]
	closing atomic.Bool
}

// A protocolError is a broken rule of TLS, answered by an alert.
type protocolError struct {
	alert byte
	err   error
}

func (e *protocolError) Error() string { return "peer broke the rules of TLS: " + e.err.Error() }
func (e *protocolError) Unwrap() error { return e.err }

// Alerts that the session itself sends or understands (RFC 8446, section 6).
const (
	alertCloseNotify       = 0
	alertUnexpectedMessage = 10
	alertBadRecordMAC      = 20
	alertRecordOverflow    = 22

	levelWarning, levelFatal = 1, 2
)

// violation is a broken rule of TCPLS, answered by CLOSE.
func violation(code wire.SessionCode, format string, args ...any) error {
	return &SessionError{Code: uint64(code), Reason: fmt.Sprintf(format, args...)}
}

// openError is what a record that authenticates can still have wrong.
func openError(err error) error {
	alert := byte(alertBadRecordMAC)
	switch err {
	case record.ErrOverflow:
		alert = alertRecordOverflow
	case record.ErrNoType:
		alert = alertUnexpectedMessage
	}
	return &protocolError{alert, err}
}

// engineError is what a TLS message after the handshake can have wrong.
func engineError(err error) error {
	alert := byte(alertUnexpectedMessage)
	var e *tls13.Error
	if errors.As(err, &e) {
		alert = byte(e.Alert)
	}
	return &protocolError{alert, err}
}

// ended reports whether the session has ended.
func (s *Session) ended() bool { return s.life.cause.Load() != nil }

// over reports whether the session takes no new streams: it has ended or is
// about to.
func (s *Session) over() bool { return s.ended() || s.life.closing.Load() }

// cause tells why the session is over.
func (s *Session) cause() error {
	if e := s.life.cause.Load(); e != nil {
		return *e
	}
	return ErrSessionClosed
}

// setCause ends the session, once, and wakes everybody who waits for it. The
// caller holds no lock.
func (s *Session) setCause(err error) bool {
	if s.client && err != ErrSessionClosed && s.greets() {
		// Who hears of the end may dial again: with an ordinary handshake, and all
		// that Dial can do.
		s.engine.ForgetTickets()
	}
	s.mu.Lock()
	if s.ended() {
		s.mu.Unlock()
		return false
	}
	s.life.cause.Store(&err)
	if s.life.cancel != nil {
		s.life.cancel(err)
	}
	streams := s.streams()
	s.recovered()
	s.forgetTokens()
	machine.leave(s)
	if s.greeting != nil && s.early == EarlyDataPending {
		s.greeting.timer.Stop()
	}
	for _, p := range s.livePaths() {
		if p.watch.timer != nil {
			p.watch.timer.Stop()
		}
	}
	if s.running == 0 {
		s.finish()
	}
	s.cond.Broadcast()
	s.mu.Unlock()
	s.expect() // for good: the peer's last words are awaited
	for _, st := range streams {
		st.sendMu.Lock()
		st.writeDeadline.stop()
		st.sendCond.Broadcast()
		st.sendMu.Unlock()
		st.recvMu.Lock()
		st.wakeReaders()
		st.recvMu.Unlock()
	}
	s.stopTimer()
	s.handing.stop()
	return true
}

// end ends the session for a reason that was found here, and tells the peer
// where the path can still carry it. The caller holds no lock.
func (s *Session) end(err error) {
	var malformed *wire.Error
	if errors.As(err, &malformed) {
		err = &SessionError{Code: uint64(wire.CodeFrame), Reason: malformed.Error()}
	}
	if err == record.ErrKeyLimit {
		err = violation(wire.CodeKeyUpdate, "%v", err)
	}
	if !s.setCause(err) {
		return
	}
	s.log.Warn("session ended", "error", err)
	var broken *protocolError
	var coded *SessionError
	switch {
	case errors.As(err, &broken):
		s.path().sealAlert(levelFatal, broken.alert)
	case errors.As(err, &coded):
		s.sayClose(coded)
	default:
		s.abandon()
		return
	}
	s.startLinger()
}

// abandon closes all paths, whatever was still to be said.
func (s *Session) abandon() {
	for _, p := range s.livePaths() {
		p.abandon()
	}
}

// sayClose sends CLOSE and, since nothing may follow it on this path,
// close_notify. The other paths wait for what becomes of it.
func (s *Session) sayClose(e *SessionError) {
	s.control.say(func(c *control) { c.close, c.closeDue = e, true })
	s.path().sealAlert(levelWarning, alertCloseNotify)
}

// farewell ends the other paths of a session that has ended: p has carried its
// CLOSE, and the peer has confirmed it there or may not have heard of it. Then
// CLOSE is sent again.
func (s *Session) farewell(p *Path, confirmed bool) {
	for _, other := range s.livePaths() {
		if other == p {
			continue
		}
		switch {
		case !confirmed:
			_ = s.control.take(other) // what can't be sealed any more can't be said
		case other.State() == PathSuspect:
			other.abandon() // the peer has confirmed the end, and doesn't answer here
			continue
		}
		other.sealAlert(levelWarning, alertCloseNotify)
	}
}

// startLinger bounds how long the peer is waited for.
func (s *Session) startLinger() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.life.done:
	default:
		if s.life.linger == nil {
			s.life.linger = time.AfterFunc(s.cfg.CloseTimeout, s.abandon)
		}
	}
}

// peerClosed acts on CLOSE.
func (s *Session) peerClosed(e *SessionError) {
	if s.setCause(e) {
		s.log.Debug("peer closed the session", "code", e.Code, "reason", e.Reason)
	}
	for _, p := range s.livePaths() {
		p.sealAlert(levelWarning, alertCloseNotify)
	}
	s.startLinger()
}

// readFailed ends the reading side: err is why.
func (p *Path) readFailed(err error) {
	s := p.sess
	var broken *protocolError
	var coded *SessionError
	var malformed *wire.Error
	switch {
	case errors.As(err, &broken) && !s.ended() && s.survives(p):
		s.pathBroken(p, broken.alert, &PathError{Path: p.ID(), Op: "read", Err: err})
	case errors.As(err, &coded), errors.As(err, &malformed), errors.As(err, &broken):
		s.end(err)
		p.drainInput()
	case s.ended():
		s.farewell(p, p.in.closed) // nothing more was expected here
	case err == io.EOF && p.in.closed:
		s.peerClosedPath(p)
	case err == io.EOF:
		p.fail(ErrTruncated)
	default:
		p.fail(err)
	}
}

// survives reports whether the session can go on without p.
func (s *Session) survives(p *Path) bool {
	return s.best(p) != nil || s.canReconnect()
}

// fail ends the path because of what was read, or wasn't.
func (p *Path) fail(err error) {
	p.sess.pathFailed(p, &PathError{Path: p.ID(), Op: "read", Err: err})
}

// drainInput reads until the peer has closed its side too, since closing a
// socket with unread bytes would reset the connection and could take our last
// words with it.
func (p *Path) drainInput() {
	buf := smallReads.get()
	defer smallReads.put(buf)
	for {
		_, err := p.conn.Read(*buf)
		if errors.Is(err, os.ErrDeadlineExceeded) { // of a late interruption
			err = p.conn.SetReadDeadline(time.Time{})
		}
		if err != nil {
			return
		}
	}
}

// abandon closes the path's socket, whatever was still to be said.
func (p *Path) abandon() {
	p.outMu.Lock()
	p.discard()
	p.outMu.Unlock()
	p.endCC()
	_ = p.conn.Close() // nothing is lost by an error: the path is given up
}

// done runs at the end of the path's read goroutine.
func (p *Path) done() {
	<-p.outDone
	p.abandon() // both directions have ended
	s := p.sess
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counters.recordsSent.Add(p.sealed.Load())
	if s.running--; s.running == 0 && s.ended() {
		s.finish()
	}
}

// finish is the end of a session whose paths have all ended. The caller holds
// mu.
func (s *Session) finish() {
	if s.life.linger != nil {
		s.life.linger.Stop()
	}
	close(s.life.done)
	s.cond.Broadcast()
}

// Close ends the session gracefully: it waits until the peer has acknowledged
// everything that was written, at most Config.CloseTimeout, and tells it that
// the session is over. Streams that weren't closed end with an error on the
// peer's side, never with io.EOF (docs/protocol.md, 8.2). The error tells that
// the peer may miss something: os.ErrDeadlineExceeded, or the reason why the
// session ended meanwhile. Further calls wait for the end and return nil.
func (s *Session) Close() error {
	if s.plain != nil {
		return s.closePlain()
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.CloseTimeout)
	defer cancel()
	if !s.startClosing() {
		<-s.life.done
		return nil
	}
	_ = s.Handshake(ctx) // without it nothing is acknowledged
	flushed := s.awaitAcknowledged(ctx)
	wasOpen := s.setCause(ErrSessionClosed)
	if wasOpen {
		s.sayClose(&SessionError{})
		stop := context.AfterFunc(ctx, s.abandon)
		defer stop()
	}
	<-s.life.done
	switch {
	case !wasOpen && !flushed:
		return s.cause()
	case !flushed:
		return fmt.Errorf("tcpls: session closed before the peer took everything: %w", os.ErrDeadlineExceeded)
	}
	return nil
}

// startClosing refuses new streams and writes; it reports false if that was
// done before.
func (s *Session) startClosing() bool {
	if s.life.closing.Swap(true) {
		return false
	}
	s.mu.Lock()
	pending := s.table.pending
	s.table.pending = nil
	streams := s.streams()
	s.cond.Broadcast()
	s.mu.Unlock()
	for _, st := range pending {
		st.refuse()
	}
	for _, st := range streams {
		st.sendMu.Lock()
		st.sendCond.Broadcast() // writers give up
		st.sendMu.Unlock()
	}
	return true
}

// unacknowledged is how many bytes of the streams' records the peer hasn't
// acknowledged. What the control context still says goes before CLOSE anyway.
func (s *Session) unacknowledged() int { return s.gate.unacknowledged() - s.control.keptBytes() }

// awaitAcknowledged waits until the peer has everything.
func (s *Session) awaitAcknowledged(ctx context.Context) bool {
	s.draining.Store(true)
	stop := context.AfterFunc(ctx, s.broadcast)
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.unacknowledged() > 0 {
		if s.ended() || ctx.Err() != nil {
			return false
		}
		s.wait(&s.cond)
	}
	return true
}

// CloseWithError ends the session at once: what the peer hasn't acknowledged
// may be lost, and its calls return *SessionError with the code, which is the
// application's and at most 2^62-1, and the reason, of which 1024 bytes are
// sent. It waits for the peer to confirm, at most Config.CloseTimeout. A peer
// that doesn't speak TCPLS sees its connection end without close_notify.
func (s *Session) CloseWithError(code uint64, reason string) error {
	if code > wire.MaxVarint {
		return errCode
	}
	e := &SessionError{Code: code, Application: true, Reason: reason}
	if s.plain != nil {
		return s.abortPlain(e)
	}
	s.life.closing.Store(true)
	if s.setCause(e) {
		s.sayClose(e)
		s.startLinger()
	}
	<-s.life.done
	return nil
}

// Shutdown tells the peer that no new streams are taken (docs/protocol.md,
// 5.14), waits until the open ones have ended, and closes the session. If the
// context ends first, it closes the session at once and returns the context's
// error; otherwise errors are those of Close.
func (s *Session) Shutdown(ctx context.Context) error {
	if s.plain != nil {
		return s.shutdownPlain(ctx)
	}
	stop := context.AfterFunc(ctx, s.broadcast)
	defer stop()
	s.goAway()
	s.mu.Lock()
	for len(s.table.streams) > 0 && !s.ended() && ctx.Err() == nil {
		s.wait(&s.cond)
	}
	s.mu.Unlock()
	if err := ctx.Err(); err != nil {
		_ = s.CloseWithError(0, "shut down") // the context's error matters more
		return context.Cause(ctx)
	}
	return s.Close()
}

// goAway tells the peer that no new streams are taken, once.
func (s *Session) goAway() {
	s.mu.Lock()
	if !s.table.leaving {
		s.table.leaving = true
		last := uint32(0)
		if s.table.peers > 0 {
			last = nth(s.table.peers-1, !s.client)
		}
		s.control.say(func(c *control) { c.away, c.awayDue = last, true })
	}
	s.mu.Unlock()
	s.kick()
}

// peerGoingAway acts on GOING_AWAY.
func (s *Session) peerGoingAway(uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.table.away = true
	s.cond.Broadcast()
}

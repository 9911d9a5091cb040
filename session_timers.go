package tcpls

import (
	"context"
	"time"
)

// A pinger measures the round trip and keeps the path alive. It is guarded by
// the session's mu, as is its timer, the only one of an idle session.
type pinger struct {
	timer *time.Timer
	due   time.Time // when the timer is to fire
	seq   uint64    // of the last ping
	sent  time.Time
	asked time.Time // when the first one was sent that is unanswered
	await bool      // the last ping is unanswered
	held  bool      // a Ping call waits for it
}

// now is the time for what is told it.
func now() time.Time { return time.Now() }

// idleTimeout is the shorter one of both ends, 0 for none. The caller holds mu.
func (s *Session) idleTimeout() time.Duration {
	own, peer := s.cfg.IdleTimeout, s.peer.IdleTimeout
	if own == 0 || peer != 0 && peer < own {
		return peer
	}
	return own
}

// startTimer starts the timer for idleness and keepalive, or sets it anew.
func (s *Session) startTimer() {
	s.lastReceived.Store(int64(time.Since(s.began)))
	s.mu.Lock()
	defer s.mu.Unlock()
	at := now()
	wait := s.nextTick(0, at)
	if s.ended() || wait == 0 {
		return
	}
	s.ping.due = at.Add(wait)
	if s.ping.timer == nil {
		s.ping.timer = time.AfterFunc(wait, s.tick)
	} else {
		s.ping.timer.Reset(wait)
	}
}

func (s *Session) stopTimer() {
	s.mu.Lock()
	if s.ping.timer != nil {
		s.ping.timer.Stop()
	}
	s.mu.Unlock()
	s.words.stop()
}

// nextTick is how long the timer has to wait when nothing was received for the
// time given; 0 for ever. The caller holds mu.
func (s *Session) nextTick(silent time.Duration, now time.Time) time.Duration {
	wait := time.Duration(0)
	if idle := s.idleTimeout(); idle > 0 {
		wait = max(idle-silent, time.Millisecond)
	}
	if alive := s.cfg.KeepAlive; alive > 0 {
		next := alive - silent // then a ping is due
		if next <= 0 {         // or the verdict on it
			patience := s.cfg.pingTimeout()
			next = max(alive+patience-silent, patience-now.Sub(s.ping.asked))
		}
		if next = max(next, time.Millisecond); wait == 0 || next < wait {
			wait = next
		}
	}
	return wait
}

func (s *Session) tick() {
	now := time.Now()
	silent := now.Sub(s.began) - time.Duration(s.lastReceived.Load())
	s.mu.Lock()
	if s.ended() {
		s.mu.Unlock()
		return
	}
	if idle := s.idleTimeout(); idle > 0 && silent >= idle {
		s.mu.Unlock()
		s.end(ErrIdleTimeout)
		return
	}
	vanished := s.silentFor(silent, now)
	if vanished {
		s.ping.asked = now // another path, if there is one, has as long
	}
	ping := s.cfg.KeepAlive > 0 && silent >= s.cfg.KeepAlive && !s.ping.await
	if ping {
		s.sendPing(now)
	}
	wait := s.nextTick(silent, now)
	s.ping.timer.Reset(wait)
	s.ping.due = now.Add(wait)
	s.mu.Unlock()
	switch {
	case vanished:
		p := s.path()
		s.pathFailed(p, &PathError{Path: p.ID(), Op: "keepalive", Err: ErrKeepAliveTimeout})
	case ping:
		s.kick()
	}
}

// silentFor reports whether the peer has had its chance to answer a ping. A
// timer that is late tells of a process that was stopped or a machine that
// slept: the answer may lie in the socket, and gets more time. The caller
// holds mu.
func (s *Session) silentFor(silent time.Duration, now time.Time) bool {
	patience := s.cfg.pingTimeout()
	if s.cfg.KeepAlive <= 0 || !s.ping.await || silent < s.cfg.KeepAlive+patience {
		return false
	}
	if now.Sub(s.ping.due) > patience/2 {
		s.ping.asked = now
	}
	return now.Sub(s.ping.asked) >= patience
}

// sendPing makes a ping due. The caller holds mu and kicks the path then.
func (s *Session) sendPing(now time.Time) {
	s.ping.seq++
	if !s.ping.await {
		s.ping.asked = now
	}
	s.ping.sent, s.ping.await = now, true
	s.path().sendPing(s.ping.seq)
}

// pingAgain asks on the path that took over what the last one left unanswered.
func (s *Session) pingAgain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ping.await {
		s.ping.await = false
		s.sendPing(now())
	}
}

// pong acts on PONG. An answer to an older ping says nothing new.
func (s *Session) pong(seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ping.await && seq == s.ping.seq {
		s.ping.await = false
		s.roundTrip.Store(int64(max(time.Since(s.ping.sent), time.Nanosecond)))
		s.cond.Broadcast()
	}
}

// Ping asks the peer for a sign of life and returns how long it took. Concurrent
// calls take turns. The error is ErrNotTCPLS, the context's, or the reason why
// the session ended (docs/protocol.md, 5.6).
func (s *Session) Ping(ctx context.Context) (time.Duration, error) {
	if s.plain != nil {
		return 0, ErrNotTCPLS
	}
	stop := context.AfterFunc(ctx, s.broadcast)
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.await(ctx, func() bool { return !s.ping.held })
	if err != nil {
		return 0, err
	}
	s.ping.held = true
	defer func() {
		s.ping.held = false
		s.cond.Broadcast()
	}()
	s.sendPing(time.Now())
	s.mu.Unlock()
	s.kick()
	s.mu.Lock()
	if err := s.await(ctx, func() bool { return !s.ping.await }); err != nil {
		return 0, err
	}
	return s.rtt(), nil
}

// await waits for a condition, the context or the end of the session. The
// caller holds mu.
func (s *Session) await(ctx context.Context, ok func() bool) error {
	for {
		switch {
		case s.ended():
			return s.cause()
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case ok():
			return nil
		}
		if s.plain != nil {
			s.cond.Wait()
		} else {
			s.wait(&s.cond)
		}
	}
}

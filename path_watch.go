package tcpls

import (
	"encoding/binary"
	"time"

	"github.com/go-tcpls/tcpls/internal/wire"
)

// Silence. TCP tells only its sender, and only after long, that nothing gets
// through any more. Both ends watch a path of which they expect something: an
// end that waits asks by PING, and suspects a path that stays silent.
//
//	busy: records are unacknowledged     ask after silentAsk
//	streams are open, nothing happens    ask ever less often, up to KeepAlive
//	asked, and no byte since             suspect after patience

// watch is what a path knows of its silence; guarded by the session's mu.
type watch struct {
	timer    *time.Timer
	interval time.Duration // between questions while nothing happens
	asked    time.Duration // when, since the session began; 0: not since the last answer
}

const (
	silentAsk = 100 * time.Millisecond
	// minPatience is the shortest silence that makes a path suspect.
	minPatience = 200 * time.Millisecond
)

// watchPing is what the watch's PINGs say: whatever arrives answers them. Those
// that measure count from 1.
const watchPing = 0

// pongs are the path's own PING and PONG; guarded by its outMu.
type pongs struct {
	ping, pong         [8]byte
	pingDue, answerDue bool
}

func (p *Path) sendPing(seq uint64) {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	if p.pongs.pingDue && seq == watchPing {
		return // the one that waits will do
	}
	binary.BigEndian.PutUint64(p.pongs.ping[:], seq)
	p.pongs.pingDue = true
	p.pongDue.Store(true)
}

func (p *Path) answerPing(data [8]byte) {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	p.pongs.pong, p.pongs.answerDue = data, true
	p.pongDue.Store(true)
}

// appendPings appends what is due of PING and PONG. The caller holds outMu.
func (p *Path) appendPings(b []byte) []byte {
	if !p.pongDue.Load() {
		return b
	}
	if p.pongs.pingDue {
		b = wire.AppendPing(b, p.pongs.ping)
	}
	if p.pongs.answerDue {
		b = wire.AppendPong(b, p.pongs.pong)
	}
	p.pongs.pingDue, p.pongs.answerDue = false, false
	p.pongDue.Store(false)
	return b
}

// patience is how long a path may be silent after a question.
func (s *Session) patience() time.Duration {
	if s.cfg.PathTimeout > 0 {
		return s.cfg.PathTimeout
	}
	return max(minPatience, 2*s.pathRTT()+silentAsk)
}

// watched reports whether silence on the session's paths has consequences: if
// nothing else could carry the session, TCP itself is the best judge.
func (s *Session) watched() bool { // with mu
	return len(s.livePaths()) > 1 || s.cfg.ReconnectFor > 0 && (s.canJoin() || s.joinable())
}

// startWatch begins or hastens the watch over p. The caller holds mu.
func (s *Session) startWatch(p *Path) {
	if s.ended() || p.state == PathClosed || !s.watched() {
		return
	}
	p.watch.interval = silentAsk
	if p.watch.timer == nil {
		p.watch.timer = time.AfterFunc(silentAsk, func() { s.look(p) })
	} else {
		p.watch.timer.Reset(silentAsk)
	}
	p.lazy.Store(false)
}

// look is what the watch does when its time has come.
func (s *Session) look(p *Path) {
	now := time.Since(s.began)
	busy := s.gate.unacknowledged() > 0
	s.mu.Lock()
	if s.ended() || p.state == PathClosed || !s.watched() {
		s.mu.Unlock()
		return
	}
	w := &p.watch
	heard := time.Duration(p.heard.Load())
	silent := now - heard
	if w.asked > 0 && heard >= w.asked {
		w.asked = 0
	}
	ask := w.asked == 0 && silent >= w.interval
	suspect := p.state == PathActive && w.asked > 0 && silent >= s.patience()
	switch {
	case suspect || p.state == PathSuspect:
		w.interval = silentAsk
	case busy || silent < silentAsk:
		w.interval = silentAsk
	case ask:
		w.interval = min(2*w.interval, s.quiet())
	}
	if ask {
		w.asked = now
	}
	wait := w.interval - silent%w.interval
	if w.asked > 0 {
		wait = max(min(w.interval, s.patience()-silent), 10*time.Millisecond)
	}
	w.timer.Reset(wait)
	p.lazy.Store(wait > silentAsk)
	s.mu.Unlock()
	if ask {
		p.sendPing(watchPing)
		p.kick()
	}
	if suspect {
		s.suspect(p)
	}
}

// quiet is the longest time between two questions on a path on which nothing
// happens.
func (s *Session) quiet() time.Duration {
	if s.cfg.KeepAlive > 0 {
		return s.cfg.KeepAlive
	}
	return time.Hour
}

// noteStart makes the path's silence begin.
func (p *Path) noteStart() { p.heard.Store(int64(time.Since(p.sess.began))) }

// noteHeard is called for every piece that was read.
func (p *Path) noteHeard() {
	p.heard.Store(p.sess.lastReceived.Load())
	if p.suspected.Load() {
		p.suspected.Store(false)
		p.sess.revive(p)
	}
	p.stir()
}

// stir hastens the watch of a path on which something happens again.
func (p *Path) stir() {
	if p.lazy.Load() {
		p.sess.mu.Lock()
		p.sess.startWatch(p)
		p.sess.mu.Unlock()
	}
}

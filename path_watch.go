package tcpls

import (
	"encoding/binary"
	"sync/atomic"
	"time"

	"github.com/go-tcpls/tcpls/internal/osnet"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// Silence. TCP tells only its sender, and only after long, that nothing gets
// through any more. Both ends watch a path of which they expect something: an
// end that waits asks by PING, and suspects a path that stays silent.
//
//	busy: records are unacknowledged     ask after silentAsk
//	streams are open, nothing happens    ask ever less often, up to KeepAlive
//	asked, and no byte since             suspect after patience
//	suspect, and no byte since           given up after suspectTime

// watch is what a path knows of its silence; guarded by the session's mu.
type watch struct {
	timer    *time.Timer
	interval time.Duration // between questions while nothing happens
	asked    time.Duration // when, since the session began; 0: not since the last answer
	due      time.Duration // when the timer fires, likewise
	rtt      time.Duration // of the handshake and of the questions, smoothed
}

// hearing is when something came on a path last, since the session began.
type hearing struct {
	heard atomic.Int64
	busy  atomic.Int64 // something else than PING and PONG
}

const (
	silentAsk = 50 * time.Millisecond
	// minPatience is the shortest silence that makes a path suspect.
	minPatience = 150 * time.Millisecond
	// suspectTime is how long a silent path is kept that may answer again. It
	// takes what a join could have, and the kernel's memory.
	suspectTime = 10 * time.Second
)

// watchPing marks the watch's PINGs, whose other bits are the time since the
// session began: whatever arrives answers them, but the PONG tells the path's
// round trip. Those of Session.Ping count from 1.
const watchPing = 1 << 63

// maxRTT bounds what PONGs can make of the path's patience.
const maxRTT = 10 * time.Second

// lateness is how late the watch's timer may be. If it is later, this process
// didn't run, and its absence is nobody's silence.
const lateness = 20 * time.Millisecond

// pongs are the path's own PING, PONG and PATH_STATUS; guarded by its outMu.
type pongs struct {
	ping, pong         [8]byte
	pingDue, answerDue bool
	statusDue          bool // PATH_STATUS
}

func (p *Path) sendPing(seq uint64) {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	if p.pongs.pingDue && seq&watchPing != 0 {
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

// appendPings appends what is due of PING, PONG and PATH_STATUS. The caller holds outMu.
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
	if p.pongs.statusDue {
		b = wire.AppendPathStatus(b, p.rank.own.Load(), uint64(p.rank.weight.Load()))
	}
	p.pongs.pingDue, p.pongs.answerDue, p.pongs.statusDue = false, false, false
	p.pongDue.Store(false)
	return b
}

// question sends a PING of the watch.
func (p *Path) question() { p.sendPing(watchPing | uint64(time.Since(p.sess.began))) }

// pong acts on PONG.
func (p *Path) pong(data [8]byte) {
	seq := binary.BigEndian.Uint64(data[:])
	if seq&watchPing == 0 {
		p.sess.pong(seq)
		return
	}
	p.sess.mu.Lock()
	defer p.sess.mu.Unlock()
	took := time.Duration(p.sess.lastReceived.Load()) - time.Duration(seq&^watchPing)
	p.watch.learn(took, p.patience())
	if p.window.Load() == 0 && took > 0 { // else the kernel knows better
		old := time.Duration(p.roundTrip.Load()) // falls at once: what waits here is no part of it
		p.roundTrip.Store(int64(min(took, old+(took-old)/8)))
	}
}

// learn takes in how long an answer took. One that came after the path had
// become suspect tells of a slower path, or of one that was dead for a while.
func (w *watch) learn(took, patience time.Duration) {
	switch {
	case took <= 0: // not what was asked
	case w.rtt == 0:
		w.rtt = min(took, patience)
	case took > patience:
		w.rtt = min(took, 2*w.rtt)
	default:
		w.rtt = (7*w.rtt + took) / 8
	}
	w.rtt = min(w.rtt, maxRTT)
}

// patience is how long the path may be silent after a question. The kernel's
// round trip may be that to a proxy. The caller holds the session's mu.
func (p *Path) patience() time.Duration {
	if p.sess.cfg.PathTimeout > 0 {
		return p.sess.cfg.PathTimeout
	}
	return max(minPatience, 3*p.watch.rtt/2+silentAsk)
}

// watched reports whether silence on the session's paths has consequences: if
// nothing else could carry the session, TCP itself is the best judge.
func (s *Session) watched() bool { // with mu
	return len(s.livePaths()) > 1 || s.outlives()
}

// startWatch begins or hastens the watch over p. The caller holds mu.
func (s *Session) startWatch(p *Path) {
	if s.ended() || p.state >= PathDraining || !s.watched() { // who drains has another timer
		return
	}
	p.watch.interval = silentAsk
	p.watch.due = time.Since(s.began) + silentAsk
	if p.watch.timer == nil {
		p.watch.timer = time.AfterFunc(silentAsk, func() { s.look(p) })
		if p.local().IsValid() {
			machine.join(s)
		}
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
	if s.ended() || p.state >= PathDraining || !s.watched() {
		s.mu.Unlock()
		return
	}
	w := &p.watch
	w.excuse(&p.heard, now-w.due)
	heard := time.Duration(p.heard.Load())
	silent := now - heard
	if w.asked > 0 && heard >= w.asked {
		if heard-w.asked > max(minPatience, 3*time.Duration(p.roundTrip.Load())) {
			p.noteActive() // it was away, whether that made it suspect or not
		}
		w.asked = 0
	}
	waits := w.waits(heard, now)
	suspect := p.state == PathActive && w.asked > 0 && waits >= p.patience()
	given := p.state == PathSuspect && waits >= max(suspectTime, 2*p.patience())
	ask := w.asked == 0 && silent >= w.interval
	if ask {
		w.asked = now
		waits = w.waits(heard, now)
	}
	settle, back := s.comesBack(p, now)
	switch {
	case suspect || p.state == PathSuspect || back:
		w.interval = silentAsk
	case busy || now-time.Duration(p.busy.Load()) < silentAsk:
		w.interval = silentAsk
	case ask:
		w.interval = min(2*w.interval, s.quiet())
	}
	wait := w.interval - silent%w.interval
	if w.asked > 0 {
		wait = max(min(w.interval, p.patience()-waits), 10*time.Millisecond)
	}
	if back && settle > 0 {
		wait = min(wait, settle)
	}
	w.due = now + wait
	w.timer.Reset(wait)
	p.lazy.Store(wait > silentAsk)
	await, seq := s.ping.await && p == s.path(), s.ping.seq
	s.mu.Unlock()
	if ask && await {
		p.sendPing(seq) // another one would take its answer (protocol 5.6)
	} else if ask {
		p.question()
	}
	if ask {
		p.kick()
	}
	switch {
	case suspect:
		s.suspect(p)
	case given:
		s.giveUp(p, &PathError{Path: p.ID(), Op: "read", Err: ErrPathSilent})
	case back && settle == 0:
		s.comeBack(p)
	}
}

// waits is how long the path has been silent, of which no more counts before the
// question than on a busy one: an idle path may say nothing.
func (w *watch) waits(heard, now time.Duration) time.Duration {
	if w.asked > 0 {
		heard = max(heard, w.asked-silentAsk)
	}
	return now - heard
}

// excuse takes the time that this process was away out of a path's silence.
func (w *watch) excuse(heard *atomic.Int64, late time.Duration) {
	if late < lateness {
		return
	}
	before := heard.Load()
	heard.CompareAndSwap(before, before+int64(late)) // or something has just arrived
	if w.asked > 0 {
		w.asked += late
	}
}

// retryOften makes the kernel try a silent path every second, however long it was
// silent, so that we hear soon that it works again; or ends that. Where the
// kernel can't, it takes longer.
func (p *Path) retryOften(on bool) {
	most := time.Duration(0)
	if on {
		most = time.Second
	}
	if p.raw != nil {
		_ = osnet.SetMaxRTO(p.raw, most)
	}
}

// giveUp ends a path on which nobody hears us. The kernel would try for minutes
// to deliver what it still holds, which is sent elsewhere.
func (s *Session) giveUp(p *Path, err error) {
	p.resetOnClose()
	s.pathFailed(p, err)
}

// resetOnClose makes the kernel forget what it holds when the path is closed.
func (p *Path) resetOnClose() {
	if c, ok := p.conn.(interface{ SetLinger(seconds int) error }); ok {
		_ = c.SetLinger(0)
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

// beatEvery is how often an end says something on a path that brings it stream
// bytes while its acknowledgements go elsewhere.
const beatEvery = silentAsk / 2

// beat shows the peer that what it sends on the path arrives.
func (p *Path) beat() {
	r := &p.in
	if r.brought && r.now.Sub(r.beaten) >= beatEvery {
		r.beaten = r.now
		p.answerPing([8]byte{})
	}
	r.brought = false
}

// noteActive makes the path's proof begin. The caller holds mu.
func (p *Path) noteActive() { p.rank.since = time.Since(p.sess.began) }

// noteHeard is called for every piece that was read.
func (p *Path) noteHeard() {
	p.heard.Store(p.sess.lastReceived.Load())
	if p.suspected.Load() {
		p.suspected.Store(false)
		p.sess.revive(p)
	}
}

// noteBusy is called for every piece with more than PINGs and PONGs in it: those
// of both ends would keep each other's watch awake.
func (p *Path) noteBusy() {
	p.in.busy = false
	p.busy.Store(p.heard.Load())
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

package tcpls

import (
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"github.com/go-tcpls/tcpls/internal/wire"
)

// The paths of a session. One of them, the main one, carries what this end
// sends; the others are ready to take over. Each end chooses its own main path.
//
//	a path fails         its records go out again on the next best one
//	a path is suspect    the same, but it stays open, and is used again once
//	                     something arrives on it
//	no path is left      the client joins again; both ends wait Config.ReconnectFor
//
// The table is guarded by the session's mu, and every change of the main path
// by switchMu, which is taken before any other lock.

// path is the main path; it may have failed, if there is no other.
func (s *Session) path() *Path { return s.main.Load() }

// livePaths are the paths that weren't closed.
func (s *Session) livePaths() []*Path {
	if l := s.live.Load(); l != nil {
		return *l
	}
	return nil
}

// kick says what is due on the main path.
func (s *Session) kick() { s.path().kick() }

// Paths returns the session's paths, in the order of their numbers. A peer that
// doesn't speak TCPLS has none.
func (s *Session) Paths() []*Path { return slices.Clone(s.livePaths()) }

// setLive publishes the table. The caller holds mu.
func (s *Session) setLive(paths []*Path) { s.live.Store(&paths) }

// addPath takes a new path into the session and starts it; read holds the bytes
// that came behind the handshake. The error is that the session has ended, or has
// as many paths as its client may open.
func (s *Session) addPath(p *Path, read []byte) error {
	s.mu.Lock()
	switch {
	case s.ended():
		s.mu.Unlock()
		return s.cause()
	case !s.client && s.full():
		s.mu.Unlock()
		return s.errFull()
	}
	p.out.Init(s.keys.send.Load(), wire.PathContext(p.id)) // every later epoch is said on the path
	s.setLive(append(slices.Clone(s.livePaths()), p))
	s.running++
	s.inherit(p)
	p.noteActive()
	for _, other := range s.livePaths() {
		other.pump.rouse() // Reads leave the sockets to the paths' goroutines
		s.startWatch(other)
	}
	surplus := s.surplus()
	if !s.client || p.joining.Load() == nil {
		s.recovered()
	}
	s.cond.Broadcast()
	s.mu.Unlock()
	if surplus != nil {
		s.pathFailed(surplus, &PathError{Path: surplus.ID(), Op: "read", Err: ErrPathSilent})
	}
	s.log.Info("path joined", "path", p.id, "local", p.LocalAddr(), "remote", p.RemoteAddr())
	s.tell(Event{Kind: EventPathJoined, Path: p})
	s.signalCC()
	go p.readLoop(read)
	if !s.client { // confirms the path to the client
		p.question()
		p.kick()
	}
	s.reroute(nil)
	s.pathsChanged()
	return nil
}

// surplus is the suspect path that has to go where there are more than MaxPaths,
// the one that has been silent for the longest; nil if none has. The caller
// holds mu.
func (s *Session) surplus() (oldest *Path) {
	if len(s.livePaths()) <= s.cfg.MaxPaths {
		return nil
	}
	for _, p := range s.livePaths() {
		if p.state == PathSuspect && (oldest == nil || p.heard.Load() < oldest.heard.Load()) {
			oldest = p
		}
	}
	return oldest
}

// switchTo makes to the main path. lost tells that what the old one was given
// may not arrive.
func (s *Session) switchTo(to *Path, lost bool) {
	if s.change(to, lost, false) {
		s.hook(Event{Kind: EventMainPath, Path: to})
	}
}

// change is switchTo but for the hooks, and handOver where help is set. It
// reports whether to is the main path now and wasn't before.
func (s *Session) change(to *Path, lost, help bool) bool {
	s.switchMu.Lock()
	defer s.switchMu.Unlock()
	from := s.path()
	if from == to || s.ended() {
		return false
	}
	if lost {
		from.lost.Store(true)
	}
	s.main.Store(to)
	s.startHandover(from, to, help && !lost)
	s.switched.Store(s.lastReceived.Load())
	s.gate.use(to)
	if err := s.control.take(to); err != nil {
		s.end(err)
		return false
	}
	streams := s.openStreams()
	s.words.restate(streams)
	s.words.leave(from.ID(), lost)
	s.log.Info("path takes over", "path", to.id, "from", from.id, "lost", lost)
	s.watchers.tell(Event{Kind: EventMainPath, Path: to})
	for _, st := range streams {
		st.moveOff(to)
	}
	s.pingAgain()
	to.kick()
	s.gate.wake()
	if to.State() != PathActive { // it failed before it was the main path
		go s.reroute(&PathError{Path: to.ID(), Op: "use", Err: ErrPathSilent})
	}
	return true
}

// streams lists the streams that haven't ended. The caller holds mu.
func (s *Session) streams() []*Stream {
	streams := make([]*Stream, 0, len(s.table.streams))
	for _, st := range s.table.streams {
		streams = append(streams, st)
	}
	return streams
}

// openStreams is streams for who doesn't hold mu.
func (s *Session) openStreams() []*Stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.streams()
}

// lives reports whether the path with that number is open.
func (s *Session) lives(id uint32) bool {
	return slices.ContainsFunc(s.livePaths(), func(p *Path) bool { return p.ID() == id })
}

// anyActive reports whether some path is good. The caller holds mu.
func (s *Session) anyActive() bool {
	return slices.ContainsFunc(s.livePaths(), func(p *Path) bool { return p.state == PathActive })
}

// suspect acts on the silence of p.
func (s *Session) suspect(p *Path) {
	s.mu.Lock()
	if s.ended() || p.state != PathActive {
		s.mu.Unlock()
		return
	}
	p.state = PathSuspect
	s.mu.Unlock()
	p.suspected.Store(true)
	p.lost.Store(true)
	p.retryOften(true)
	s.pathsChanged() // who waits for it had better go elsewhere
	s.log.Warn("path is silent", "path", p.id, "unacknowledged", s.gate.unacknowledged())
	s.tell(Event{Kind: EventPathSuspect, Path: p, Err: ErrPathSilent})
	s.reroute(&PathError{Path: p.ID(), Op: "read", Err: ErrPathSilent})
	s.resendLost() // what a change that was under way has passed by
}

// reroute makes a good path the main one if that one isn't good any more, or
// begins to look for one; err is why. It is called after every change of a
// path's state, since the path that takes over may fail in that moment.
func (s *Session) reroute(err error) {
	main := s.path()
	if main.State() == PathActive {
		return
	}
	if next := s.best(main); next != nil {
		s.switchTo(next, true)
	} else if !s.ended() {
		s.stranded(err)
	}
	if s.ended() { // CLOSE may have been said on main only
		s.farewell(main, false)
	}
}

// revive takes back a path that was silent, since something has arrived on it.
func (s *Session) revive(p *Path) {
	s.mu.Lock()
	if p.state != PathSuspect {
		s.mu.Unlock()
		return
	}
	p.state = PathActive
	p.lost.Store(false) // TCP delivers what it was given
	p.noteActive()
	p.watch.asked = 0
	s.recovered()
	s.mu.Unlock()
	p.retryOften(false)
	s.pathsChanged()
	s.log.Info("path answers again", "path", p.id)
	s.tell(Event{Kind: EventPathRecovered, Path: p})
	s.reroute(nil)
}

// recovered ends the search for a path. The caller holds mu.
func (s *Session) recovered() {
	if s.rescue.cancel != nil {
		s.rescue.cancel()
		s.rescue = rescue{}
	}
}

// pathFailed ends p for good, and the session with it if nothing else can
// carry it. The caller holds no lock.
func (s *Session) pathFailed(p *Path, err error) {
	if s.lose(p) {
		p.leaveCC()
		p.abandon()
		s.goOn(p, err)
	}
}

// pathBroken is pathFailed for a peer that is told the reason by an alert, the
// path's last record. The session goes on at once; the alert has lingerTime to
// be written and read. It runs at the end of the path's reader.
func (s *Session) pathBroken(p *Path, alert byte, err error) {
	p.sealAlert(levelFatal, alert)
	p.gone.Store(true)
	if !s.lose(p) {
		return
	}
	s.goOn(p, err)
	limitEnd(p.conn)
	<-p.outDone
	_, _ = io.CopyN(io.Discard, p.conn, 256<<10) // as linger does, which has the reason
	p.leaveCC()
	p.abandon()
}

// lose takes p out of the session, and reports whether it was in it.
func (s *Session) lose(p *Path) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.state == PathClosed {
		return false
	}
	s.dropPath(p)
	return true
}

// goOn goes on without p, which was lost because of err.
func (s *Session) goOn(p *Path, err error) {
	if s.ended() {
		s.reroute(err)
		return
	}
	s.log.Warn("path failed", "path", p.id, "error", err)
	s.pathsChanged()
	s.tell(Event{Kind: EventPathFailed, Path: p, Err: err})
	s.reroute(err)
	// A change of the main path that was under way may have passed some of them
	// by, before it was known that p is lost.
	s.resendLost()
	if p.leaving.Load() { // the other end may have closed it in peace, and doesn't know
		s.resendEnds()
	}
	s.restate(p)
}

// dropPath takes p out of the table. The caller holds mu.
func (s *Session) dropPath(p *Path) {
	p.state = PathClosed
	p.lost.Store(true)
	if p.watch.timer != nil {
		p.watch.timer.Stop()
	}
	s.setLive(slices.DeleteFunc(slices.Clone(s.livePaths()), func(o *Path) bool { return o == p }))
	s.cond.Broadcast()
}

// resendLost sends again, on the main path, what was on its way on another one
// that is lost.
func (s *Session) resendLost() {
	s.switchMu.Lock()
	defer s.switchMu.Unlock()
	streams := s.openStreams()
	to := s.path()
	for _, st := range streams {
		if st.kept.misses() || st.stranded() {
			st.moveOff(to)
		}
	}
}

// restate says everything once more that the peer must know, since it may have
// been said on p, which has failed.
func (s *Session) restate(p *Path) {
	streams := s.openStreams()
	s.words.restate(streams)
	s.words.leave(p.ID(), true)
	s.kick()
}

// resendEnds sends again the ends of streams that aren't acknowledged: the peer
// has lost a path, and with it perhaps the last acknowledgement of a stream that
// it has forgotten since.
func (s *Session) resendEnds() {
	s.switchMu.Lock()
	defer s.switchMu.Unlock()
	streams := s.openStreams()
	for _, st := range streams {
		st.sendMu.Lock()
		// A replay under way isn't enough: it leaves out what a path has that was
		// silent and has come back.
		again := st.finSent && !st.kept.empty()
		st.sendMu.Unlock()
		if again {
			st.kept.doubt(nil, 0)
			st.moveOff(s.path())
		}
	}
}

// A rescue is the search for a path while there is none.
type rescue struct {
	cancel context.CancelFunc
}

// stranded acts on the loss of the last good path.
func (s *Session) stranded(err error) {
	if !s.canReconnect() {
		s.end(err)
		return
	}
	s.mu.Lock()
	if s.ended() || s.rescue.cancel != nil || s.anyActive() {
		s.mu.Unlock()
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.ReconnectFor)
	s.rescue.cancel = cancel
	s.log.Warn("no path is left", "error", err, "for", s.cfg.ReconnectFor)
	s.watchers.tell(Event{Kind: EventNoPath, Err: err})
	s.mu.Unlock()
	s.hook(Event{Kind: EventNoPath, Err: err})
	context.AfterFunc(ctx, func() {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			s.end(err)
		}
	})
	if s.client {
		go s.rejoin(ctx)
	}
}

// canReconnect reports whether the session outlives its last path.
func (s *Session) canReconnect() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.outlives()
}

// outlives is canReconnect with mu held. Before the handshake is complete a
// session ends with its path: its ends haven't the same keys yet.
func (s *Session) outlives() bool {
	return s.early != EarlyDataPending && s.cfg.ReconnectFor > 0 && (s.canJoin() || s.joinable())
}

// A departure is what the peer has said by PATH_LEFT and nobody has acted on;
// guarded by the session's mu.
type departure struct {
	from, to *Path // our main path, which the peer has left, and where it went
	lost     bool  // it can't use from
	ends     bool  // it has lost some path
	running  bool  // somebody acts on it

	endsFrom time.Duration // when ends may be set again, since the session began
	endsDue  bool          // a timer does that
}

// endsPause is how often the peer's word of lost paths makes us send again what
// isn't acknowledged of streams that have ended.
const endsPause = time.Second

// crossingTime is longer than what the peer said of a path can be on its way.
const crossingTime = time.Second

// peerLeft acts on PATH_LEFT, which came on path on: if the peer can't use a
// path any more, neither can we.
func (s *Session) peerLeft(on *Path, id uint32, lost bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := &s.departure
	if lost && s.mayExist(id) {
		s.endsLost(time.Duration(s.lastReceived.Load()))
	}
	for _, p := range s.livePaths() {
		if lost && p.ID() == id && p.state == PathDraining {
			p.lost.Store(true) // what it still carried may not have arrived
		}
	}
	// A server goes where its client wants to be. Where both have changed at
	// once, each to what the other has left, the client stays.
	switched := s.switched.Load() // 0: never
	crossing := s.client && switched > 0 && time.Duration(s.lastReceived.Load()-switched) < crossingTime
	if main := s.path(); main != on && !crossing && (main.ID() == id || !lost && !s.client && s.lives(id)) {
		d.from, d.to, d.lost = main, on, lost
	}
	s.act()
}

// act sees to it that somebody acts on a departure. The caller holds mu.
func (s *Session) act() {
	if d := &s.departure; (d.ends || d.to != nil) && !d.running {
		d.running = true
		go s.follow() // not under inMu
	}
}

// mayExist reports whether there may be, or have been, a path of that number, at
// the peer at least. The caller holds mu.
func (s *Session) mayExist(id uint32) bool {
	if s.client {
		return id == 0 || s.tickets.seen.has(id)
	}
	return id <= s.tickets.given
}

// endsLost notes that words of the peer's may have gone with a path. What follows
// from that may be much, and one path may be lost and found many times: it is put
// off where it happened not long ago. The caller holds mu.
func (s *Session) endsLost(now time.Duration) {
	d := &s.departure
	switch {
	case d.endsDue:
	case now >= d.endsFrom:
		d.ends, d.endsFrom = true, now+endsPause
	default:
		d.endsDue = true
		time.AfterFunc(d.endsFrom-now, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			d.endsDue = false
			if !s.ended() {
				s.endsLost(d.endsFrom)
				s.act()
			}
		})
	}
}

// follow does as the peer has done.
func (s *Session) follow() {
	for {
		s.mu.Lock()
		d := s.departure
		s.departure = departure{running: d.ends || d.to != nil, endsFrom: d.endsFrom, endsDue: d.endsDue}
		if !s.departure.running {
			s.mu.Unlock()
			return
		}
		if d.to != nil && d.lost && d.from.state == PathActive {
			d.from.state = PathSuspect
			d.from.suspected.Store(true)
		}
		s.mu.Unlock()
		if d.to != nil && d.lost {
			d.from.retryOften(true)
		}
		if d.to != nil && d.to.State() == PathActive && d.from == s.path() {
			if d.from.State() == PathActive {
				s.handOver(d.to)
			} else {
				s.switchTo(d.to, true)
			}
		}
		s.reroute(&PathError{Path: s.path().ID(), Op: "read", Err: ErrPathSilent})
		if d.ends {
			s.resendLost() // a path that was closed in peace here may not have been at the other end
			s.resendEnds()
		}
	}
}

// rejoin opens a path anew until there is one or ctx ends.
func (s *Session) rejoin(ctx context.Context) {
	pause, early := 50*time.Millisecond, true
	for turn := 0; ctx.Err() == nil; turn++ {
		attempt, cancel := context.WithTimeout(ctx, max(time.Second, 6*s.pathRTT()))
		err := s.rejoinOnce(attempt, turn, early)
		cancel()
		early = !errors.Is(err, errEarlyJoin)
		if err == nil {
			return
		}
		s.log.Debug("joining failed", "error", err, "retry", pause)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, time.Second)
	}
}

// rejoinOnce tries to open a path, and sends on it at once if early is set.
func (s *Session) rejoinOnce(ctx context.Context, turn int, early bool) error {
	conn, err := s.redial(ctx, turn)
	if err != nil {
		return err
	}
	if early && !s.fewTokens() {
		return s.joinEarly(ctx, conn)
	}
	_, err = s.JoinPath(ctx, conn)
	return err
}

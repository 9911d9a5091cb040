package tcpls

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Leaving a path in peace. What it still carries is delivered, the other end
// does the same, and both say close_notify on it; the session goes on over
// another one (protocol 9.8).

// ErrLastPath: the only working path of a session isn't closed alone; close the
// session, or add a path before.
var ErrLastPath = errors.New("tcpls: the session has no other path")

// Use makes p the path on which this end sends from now on. Nothing is sent
// twice, and nothing waits. The peer does the same with what it sends, and lets
// its old path help as in Migrate. The error is a *PathError if p isn't active, or the reason why the session
// ended.
func (p *Path) Use() error { return p.use(false) }

// use is Use, with the help of the path in use until now if help is set.
func (p *Path) use(help bool) error {
	s := p.sess
	switch state := p.State(); {
	case s.ended():
		return s.cause()
	case state != PathActive:
		return &PathError{Path: p.ID(), Op: "use", Err: fmt.Errorf("it is %v", state)}
	}
	if lost := s.path().State() != PathActive; help && !lost {
		s.handOver(p)
	} else {
		s.switchTo(p, lost)
	}
	return nil
}

// Close leaves the path: another one takes over if p was in use, what is on
// its way on p is delivered, and the peer confirms. It waits for that until ctx
// ends, or for Config.CloseTimeout, and then gives the connection up; what the
// peer hasn't acknowledged is sent again elsewhere. A path that has failed or was
// closed is left alone. The error is ErrLastPath, the context's, or the reason
// why the session ended.
func (p *Path) Close(ctx context.Context) error {
	s := p.sess
	next := s.best(p)
	switch {
	case s.ended():
		return s.cause()
	case p.State() == PathClosed:
		return nil
	case next == nil:
		return ErrLastPath
	}
	if p == s.path() {
		s.switchTo(next, p.State() != PathActive)
	}
	stop := context.AfterFunc(ctx, s.broadcast)
	defer stop()
	s.mu.Lock()
	// Else the peer would be left without a path for a while.
	err := s.await(ctx, func() bool { return next.confirmed || next.state == PathClosed })
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if !s.drain(p) {
		return nil // it is over already
	}
	s.vacate(p)
	p.sealAlert(levelWarning, alertCloseNotify)
	s.resendLost() // what p was about to send again
	s.mu.Lock()
	err = s.await(ctx, func() bool { return p.state == PathClosed })
	s.mu.Unlock()
	if err != nil && !s.ended() {
		s.pathFailed(p, &PathError{Path: p.ID(), Op: "close", Err: err})
	}
	return err
}

// Migrate opens a path as AddPath does, goes on over it, and closes the one in
// use until then (paper, section 4.3). The sender never pauses: while the new
// path's congestion window grows, for 10 of its round trips and 3 s at most, the old
// one carries what the new one doesn't yet, in both directions, and is closed
// behind that as by Path.Close, which Migrate waits for, half as long again at most before it closes. If one of them fails meanwhile, the other goes on.
// The path is usable even where the error is that of closing the old one; it is a
// *PathError if the old one is in use again, since the new one has failed.
func (s *Session) Migrate(ctx context.Context, spec PathSpec) (*Path, error) {
	before := s.path()
	p, err := s.AddPath(ctx, spec)
	if err != nil {
		return nil, err
	}
	old := s.path()
	if old == p { // since it is much shorter
		old = before
	}
	if err := p.use(true); err != nil {
		return p, err
	}
	if old == p || old.State() == PathClosed {
		return p, nil
	}
	s.awaitHandover(ctx, old, p)
	if s.path() == old {
		return p, &PathError{Path: p.ID(), Op: "use", Err: fmt.Errorf("path %d is in use again", old.ID())}
	}
	return p, old.Close(ctx)
}

// vacate leaves p, which drains, where it has become the main path in the moment
// in which it was closed.
func (s *Session) vacate(p *Path) {
	if next := s.best(p); next != nil && p == s.path() {
		s.switchTo(next, false)
	}
}

// drain makes p a path on which only the end is still to come, and bounds how
// long that takes. It reports false if it was one before.
func (s *Session) drain(p *Path) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.state == PathClosed || p.state == PathDraining {
		return false
	}
	p.state = PathDraining
	p.leaving.Store(true)
	go s.pathsChanged() // who waits for it had better go elsewhere
	if p.watch.timer != nil {
		p.watch.timer.Stop()
	}
	p.watch.timer = time.AfterFunc(s.cfg.CloseTimeout, func() {
		s.pathFailed(p, &PathError{Path: p.ID(), Op: "close", Err: ErrPathSilent})
	})
	return true
}

// peerClosedPath acts on close_notify, behind which nothing more comes on p. It
// runs at the end of the path's reader.
func (s *Session) peerClosedPath(p *Path) {
	next := s.best(p)
	if next == nil && p == s.path() {
		p.fail(errLastClosed)
		return
	}
	if p == s.path() {
		s.switchTo(next, false)
	}
	s.drain(p)
	s.vacate(p)
	p.sealAlert(levelWarning, alertCloseNotify)
	s.resendLost() // what p was about to send again
	<-p.outDone    // all of it is written, or it has failed meanwhile
	if p.heldByCC() {
		s.giveUp(p, &PathError{Path: p.ID(), Op: "close", Err: errCCStuck})
		return
	}
	s.mu.Lock()
	closed := p.state != PathClosed
	if closed {
		s.dropPath(p)
	}
	s.mu.Unlock()
	if closed {
		s.log.Info("path closed", "path", p.id)
		s.tell(Event{Kind: EventPathClosed, Path: p})
		s.reroute(&PathError{Path: p.ID(), Op: "read", Err: errLastClosed}) // the others may have failed meanwhile
	}
}

var errLastClosed = errors.New("peer closed its last path but not the session")

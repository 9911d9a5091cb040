package tcpls

import (
	"context"
	"sync"
)

// Hooks are functions that a session calls when something happens to it. Any of
// them may be nil. Unlike Session.Events, which tells what has happened, a hook
// is called at once by the goroutine that met the event, and that goroutine goes
// on when it returns. So it should be quick, and must not wait for the session:
// Session.Close, Path.Close, Migrate and the like, and Reads and Writes, belong
// on goroutines of their own. No lock of the session is held meanwhile: all that
// doesn't wait may be called. Hooks of one session may be called at the same
// time. A peer that doesn't speak TCPLS causes no calls.
type Hooks struct {
	// PathJoined is called before anything is received on a further path.
	PathJoined func(s *Session, p *Path)
	// PathSuspect is called when the peer is silent on a path, before another
	// one takes over.
	PathSuspect func(s *Session, p *Path)
	// PathRecovered is called when something has arrived on a suspect path.
	PathRecovered func(s *Session, p *Path)
	// PathFailed is called when a path has broken, before what it carried is sent
	// again elsewhere.
	PathFailed func(s *Session, p *Path, err error)
	// PathClosed is called when a path was closed by either end.
	PathClosed func(s *Session, p *Path)
	// MainPath is called when another path has taken over.
	MainPath func(s *Session, p *Path)
	// NoPath is called when no path is left, before the session looks for one;
	// err tells why the last one is gone.
	NoPath func(s *Session, err error)
	// StreamOpened is called before OpenStream or AcceptStream returns the
	// stream.
	StreamOpened func(st *Stream)
	// StreamAttached is called when what this end sends on the stream goes over a
	// path of its own from now on, or if p is nil no longer, as Event is.
	StreamAttached func(st *Stream, p *Path)
	// StreamClosed is called when both directions of the stream have ended, or
	// the session has, on a goroutine of its own.
	StreamClosed func(st *Stream)
	// Event is called for every event, after the function above for its kind.
	// Events of the network, of streams' own paths and of what the peer says or
	// asks for come in order on one goroutine of the session's; if more than 1024
	// wait for it, some are lost, of which EventMissed tells.
	Event func(s *Session, e Event)
}

// tell lets everybody know of an event. The caller holds no lock.
func (s *Session) tell(e Event) {
	s.watchers.tell(e)
	s.hook(e)
}

// tellSoon is tell for who may hold locks: a goroutine that lives while there is
// something to tell calls the hooks.
func (s *Session) tellSoon(e Event) {
	s.watchers.tell(e)
	if s.cfg.Hooks != nil && s.later.add(e) {
		go s.callHooks()
	}
}

// maxLater is how many events wait for hooks that are slow: those of streams are
// this end's own doing, and all may come at once.
const maxLater = 1 << 10

// later are the events whose hooks are to be called. Its lock is a leaf.
type later struct {
	mu      sync.Mutex
	waiting observer
	running bool // somebody calls them
}

// add reports whether nobody calls the hooks yet.
func (l *later) add(e Event) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting.add(e, maxLater)
	was := l.running
	l.running = true
	return !was
}

func (l *later) take() []Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	events := l.waiting.take()
	l.running = len(events) > 0
	return events
}

func (s *Session) callHooks() {
	for events := s.later.take(); len(events) > 0; events = s.later.take() {
		for _, e := range events {
			s.hook(e)
		}
	}
}

// hook calls the functions for an event. The caller holds no lock.
func (s *Session) hook(e Event) {
	h := s.cfg.Hooks
	if h == nil {
		return
	}
	path := func(f func(*Session, *Path)) {
		if f != nil {
			f(s, e.Path)
		}
	}
	switch e.Kind {
	case EventPathJoined:
		path(h.PathJoined)
	case EventPathSuspect:
		path(h.PathSuspect)
	case EventPathRecovered:
		path(h.PathRecovered)
	case EventPathClosed:
		path(h.PathClosed)
	case EventMainPath:
		path(h.MainPath)
	case EventPathFailed:
		if h.PathFailed != nil {
			h.PathFailed(s, e.Path, e.Err)
		}
	case EventStreamOpened:
		if h.StreamOpened != nil {
			h.StreamOpened(e.Stream)
		}
	case EventStreamAttached:
		if h.StreamAttached != nil {
			h.StreamAttached(e.Stream, e.Path)
		}
	case EventStreamClosed:
		if h.StreamClosed != nil {
			h.StreamClosed(e.Stream)
		}
	case EventNoPath:
		if h.NoPath != nil {
			h.NoPath(s, e.Err)
		}
	}
	if h.Event != nil {
		h.Event(s, e)
	}
}

// handOut tells of a stream that the application gets. The caller holds no
// lock.
func (s *Session) handOut(st *Stream) *Stream {
	closed := Event{Kind: EventStreamClosed, Stream: st}
	if h := s.cfg.Hooks; h != nil && (h.StreamClosed != nil || h.Event != nil) {
		context.AfterFunc(st.Context(), func() { s.hook(closed) })
	}
	s.tell(Event{Kind: EventStreamOpened, Stream: st})
	s.mu.Lock()
	defer s.mu.Unlock()
	if st.handedOut = true; s.table.streams[st.id] != st { // it has ended already
		s.watchers.tell(closed)
	}
	return st
}

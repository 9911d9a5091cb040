package tcpls

import (
	"context"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"sync"
)

// An EventKind says what happened to a session.
type EventKind int

const (
	// EventPathJoined: a further path is up.
	EventPathJoined EventKind = iota + 1
	// EventPathSuspect: the peer is silent on a path though it should answer.
	EventPathSuspect
	// EventPathRecovered: something has arrived on a suspect path.
	EventPathRecovered
	// EventPathFailed: a path has broken; Err tells why.
	EventPathFailed
	// EventPathClosed: a path was closed by either end, and lost nothing.
	EventPathClosed
	// EventMainPath: what this end sends goes over this path from now on.
	EventMainPath
	// EventNoPath: no path is left; the session waits for one, for
	// Config.ReconnectFor. Err tells why the last one is gone.
	EventNoPath
	// EventNetwork: addresses or links of this machine have changed, or the watch
	// over them has just begun. Only sessions with a path that isn't on loopback are told: on Linux at once,
	// elsewhere within two seconds.
	EventNetwork
	// EventAddressAdded: the server has told of Address; see
	// Session.PeerAddresses.
	EventAddressAdded
	// EventAddressRemoved: the server has withdrawn Address.
	EventAddressRemoved
	// EventStreamOpened: OpenStream or AcceptStream is about to return a stream.
	EventStreamOpened
	// EventStreamAttached: what this end sends on a stream goes over a path of
	// its own from now on, by Stream.SetPath or ModePinned, or if Path is nil no longer.
	EventStreamAttached
	// EventStreamClosed: both directions of a stream have ended.
	EventStreamClosed
	// EventCCOffered: the peer offers a congestion control, and Config.AcceptCC
	// is asked about it.
	EventCCOffered
	// EventCCLoaded: this end's paths use a congestion control of the peer from
	// now on.
	EventCCLoaded
	// EventCCEnded: a congestion control isn't in use any more that was offered
	// by either end. Err is a *CCError that tells why, or nil if the peer took it
	// back.
	EventCCEnded
	// EventTCPOption: the peer has asked for a TCP option of this end's sockets; Option
	// is what was set, Err why it wasn't, and a nil Path stands for all paths.
	EventTCPOption
	// EventPeerTCPOption: the peer has answered one of Config.PeerTCPOptions; Option is
	// what it has set, Err why it hasn't.
	EventPeerTCPOption
	// EventMissed: the events before were too many for who ranges over them;
	// some are lost.
	EventMissed
)

var eventNames = [...]string{
	EventPathJoined: "path joined", EventPathSuspect: "path suspect", EventPathRecovered: "path recovered",
	EventPathFailed: "path failed", EventPathClosed: "path closed", EventMainPath: "main path",
	EventNoPath: "no path", EventNetwork: "network",
	EventAddressAdded: "address added", EventAddressRemoved: "address removed",
	EventStreamOpened: "stream opened", EventStreamAttached: "stream attached", EventStreamClosed: "stream closed",
	EventCCOffered: "congestion control offered",
	EventCCLoaded:  "congestion control loaded", EventCCEnded: "congestion control ended",
	EventTCPOption: "TCP option", EventPeerTCPOption: "peer's TCP option", EventMissed: "events missed",
}

func (k EventKind) String() string {
	if k > 0 && int(k) < len(eventNames) {
		return eventNames[k]
	}
	return fmt.Sprintf("event %d", int(k))
}

// An Event is something that happened to a session, its paths or its streams.
type Event struct {
	Kind EventKind
	// Path is the path in question; nil where it is about none, or about all.
	Path *Path
	// Stream is that of EventStreamOpened, EventStreamAttached and
	// EventStreamClosed.
	Stream *Stream
	// Address is that of EventAddressAdded and EventAddressRemoved.
	Address netip.AddrPort
	// Option is that of EventTCPOption and EventPeerTCPOption.
	Option TCPOption
	// Err tells why, where something failed.
	Err error
}

// maxEvents is how many events wait for who ranges over them.
const maxEvents = 64

// observers are those who range over a session's events. Its lock is a leaf.
type observers struct {
	mu   sync.Mutex
	list map[*observer]struct{}
}

type observer struct {
	waiting []Event // guarded, as missed is, by the mu of who has it
	missed  bool
	signal  chan struct{} // of one: something waits
}

// Events returns what happens to the session from the first iteration on, in
// order, until ctx ends or the session does. Whoever is slower than events come
// misses some, first of all those of streams, and is told so by EventMissed. A peer that doesn't speak TCPLS has
// none.
func (s *Session) Events(ctx context.Context) iter.Seq[Event] {
	return func(yield func(Event) bool) {
		o := s.watchers.add()
		defer s.watchers.remove(o)
		for over := false; ; {
			for _, e := range s.watchers.take(o) {
				if !yield(e) {
					return
				}
			}
			if over {
				return
			}
			select {
			case <-o.signal:
			case <-ctx.Done():
				return
			case <-s.Context().Done():
				over = true // once more, for what was told before
			}
		}
	}
}

func (w *observers) add() *observer {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.list == nil {
		w.list = make(map[*observer]struct{})
	}
	o := &observer{signal: make(chan struct{}, 1)}
	w.list[o] = struct{}{}
	return o
}

func (w *observers) remove(o *observer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.list, o)
}

func (w *observers) take(o *observer) []Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	return o.take()
}

// take returns what waits. The caller holds the lock that guards o.
func (o *observer) take() []Event {
	events := o.waiting
	o.waiting = nil
	if o.missed {
		o.missed = false
		events = append([]Event{{Kind: EventMissed}}, events...)
	}
	return events
}

// add makes e wait with at most that many others. The caller holds the lock
// that guards o.
func (o *observer) add(e Event, most int) {
	if len(o.waiting) == most { // there may be many more streams than paths
		least := max(slices.IndexFunc(o.waiting, func(e Event) bool { return e.Stream != nil }), 0)
		o.waiting, o.missed = slices.Delete(o.waiting, least, least+1), true
	}
	o.waiting = append(o.waiting, e)
}

// tell passes an event on; it never waits.
func (w *observers) tell(e Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for o := range w.list {
		o.add(e, maxEvents)
		select {
		case o.signal <- struct{}{}:
		default:
		}
	}
}

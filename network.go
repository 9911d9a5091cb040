package tcpls

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/go-tcpls/tcpls/internal/osnet"
)

// The machine's network. The system knows at once that an address is gone or a
// link is down; TCP would find out by silence, and only where it sends. One
// watch serves all sessions of the process. It runs while one of them has a path
// that can profit: a socket that isn't on loopback, and something to go on with.

var machine network

// A network tells sessions of changes. Its lock is a leaf.
type network struct {
	mu       sync.Mutex
	sessions map[*Session]struct{}
	stop     context.CancelFunc
	looked   bool // the watch has begun
}

// join makes s hear of changes until it leaves. The caller holds its mu.
func (n *network) join(s *Session) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.sessions == nil {
		n.sessions = make(map[*Session]struct{})
	}
	n.sessions[s] = struct{}{}
	if n.stop == nil {
		ctx, cancel := context.WithCancel(context.Background())
		n.stop = cancel
		go n.watch(ctx)
	}
}

// leave is the end of join, if there was one. The caller holds the session's mu.
func (n *network) leave(s *Session) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.sessions, s)
	if len(n.sessions) == 0 && n.stop != nil {
		n.stop()
		n.stop, n.looked = nil, false
	}
}

// watch compares what there is after each change with what there was: what a
// single message means, as of one of two equal addresses, needn't be known. Its
// beginning counts as a change too, since nobody watched before.
func (n *network) watch(ctx context.Context) {
	changes := osnet.Watch(ctx)
	known := make(map[netip.Addr]place)
	for {
		if now := places(); now != nil {
			gone := vanished(known, now)
			known = now
			for _, s := range n.audience(ctx) {
				s.networkChanged(gone)
			}
		}
		e, open := <-changes
		if !open {
			return
		}
		witness(known, e)
		for len(changes) > 0 { // one look does for all
			witness(known, <-changes)
		}
	}
}

// audience is who is to hear of what a look has found.
func (n *network) audience(ctx context.Context) []*Session {
	n.mu.Lock()
	defer n.mu.Unlock()
	if ctx.Err() != nil { // another watch may have begun
		return nil
	}
	n.looked = true
	return slices.Collect(maps.Keys(n.sessions))
}

// A place is where a local address is.
type place struct {
	link string
	up   bool
}

// places is where the machine's addresses are, nil where it doesn't tell.
func places() map[netip.Addr]place {
	all, err := osnet.Interfaces()
	if err != nil {
		return nil
	}
	found := make(map[netip.Addr]place)
	for _, i := range all {
		for _, a := range i.Addrs {
			if !found[a].up {
				found[a] = place{i.Name, i.Up}
			}
		}
	}
	return found
}

// witness adds to what was known what an event tells of the time since: an
// address that came and went between two looks, or was on a link that was up for
// a while, may have got a path.
func witness(known map[netip.Addr]place, e osnet.Event) {
	switch e.Kind {
	case osnet.AddrAdded:
		known[e.Addr] = place{e.Link, known[e.Addr].up}
	case osnet.AddrRemoved:
		known[e.Addr] = place{e.Link, true}
	case osnet.LinkDown:
		for a, is := range known {
			if is.link == e.Link {
				known[a] = place{e.Link, true}
			}
		}
	}
}

// vanished tells which addresses could be used before and can't any more, and
// why. Addresses that were never on a link, as those of transparent proxies, are
// nobody's business.
func vanished(before, after map[netip.Addr]place) map[netip.Addr]error {
	gone := make(map[netip.Addr]error)
	for a, was := range before {
		is, there := after[a]
		switch {
		case !was.up || is.up:
		case there:
			gone[a] = fmt.Errorf("%w: link %s of %v is down", ErrAddressGone, is.link, a)
		default:
			gone[a] = fmt.Errorf("%w: %v was removed from %s", ErrAddressGone, a, was.link)
		}
	}
	return gone
}

// networkChanged gives up the paths whose addresses are gone, unless the session
// would end with them: TCP itself may then outlast it.
func (s *Session) networkChanged(gone map[netip.Addr]error) {
	for _, p := range s.livePaths() {
		if err := gone[p.local()]; err != nil && s.survives(p) {
			s.giveUp(p, &PathError{Path: p.ID(), Op: "network", Err: err})
		}
	}
	s.tellSoon(Event{Kind: EventNetwork})
}

// local is the address of our end where it is one of the machine's network, else
// the zero Addr.
func (p *Path) local() netip.Addr {
	tcp, ok := p.conn.LocalAddr().(*net.TCPAddr)
	if !ok || p.raw == nil {
		return netip.Addr{}
	}
	if a := tcp.AddrPort().Addr().Unmap(); !a.IsLoopback() {
		return a
	}
	return netip.Addr{}
}

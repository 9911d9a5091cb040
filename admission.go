package tcpls

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
)

// An admission bounds what the clients of a Listener hold together, and each
// source of theirs by itself, before a byte of theirs is read. Its lock is a
// leaf.
type admission struct {
	mu      sync.Mutex
	places  int // handshakes and sessions
	pending map[netip.Prefix]int
	most    int // Config.MaxSessions
	share   int // Config.MaxPendingPerSource
}

// sourceOf is what counts as one client: an IPv4 address, or an IPv6 network
// of 64 bits, within which a host chooses its address freely. The zero Prefix
// isn't limited: this machine, and connections without IP addresses.
func sourceOf(a net.Addr) netip.Prefix {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	if !ip.IsValid() || ip.IsLoopback() {
		return netip.Prefix{}
	}
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	source, _ := ip.Prefix(bits) // neither length is refused
	return source
}

// admit takes a place for a new connection, or says why there is none.
func (a *admission) admit(source netip.Prefix) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.places >= a.most {
		return fmt.Errorf("tcpls: Config.MaxSessions: %d are open", a.places)
	}
	if source.IsValid() {
		if n := a.pending[source]; n >= a.share {
			return fmt.Errorf("tcpls: Config.MaxPendingPerSource: %v has %d", source, n)
		}
		a.pending[source]++
	}
	a.places++
	return nil
}

// settle says that a connection's handshake is over, or its session accepted.
func (a *admission) settle(source netip.Prefix) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.pending[source]--; a.pending[source] <= 0 {
		delete(a.pending, source)
	}
}

// leave gives back the place of a session, or of a handshake that failed.
func (a *admission) leave() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.places--
}

package tcpls

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/go-tcpls/tcpls/internal/wire"
)

// The server's further addresses. It tells them in its handshake and later, by
// ids that are never used again (protocol 9.11). A server mustn't make its
// clients scan their own networks, so a client by itself goes to those only
// that reach no deeper than the address that it was given first.

// addresses are those that a server has, as far as its client is told; guarded
// by the session's mu.
type addresses struct {
	known []wire.Address // at most wire.MaxAddresses, by their ids
	last  uint64         // the highest id so far
}

// PeerAddresses returns the server's further addresses, as it has told a client:
// at most 16, the oldest first. EventAddressAdded and EventAddressRemoved tell of changes. The session goes to
// loopback, link-local and private ones by itself only if the server was reached by
// an address of the same sort; who passes one to AddPath should take the same care.
func (s *Session) PeerAddresses() []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.client {
		return nil
	}
	return s.addresses.list()
}

func (a *addresses) list() (list []netip.AddrPort) {
	for _, k := range a.known {
		list = append(list, k.AddrPort)
	}
	return list
}

// Advertise tells the client of further addresses of the server, and which of
// those that it was told don't lead there any more; Config.Addresses are the
// first. Those that are known already, or aren't known, are passed over. The
// client holds at most 16 of them. Errors: ErrNotTCPLS, why the session ended, and
// what is wrong with the addresses; then nothing was changed.
func (s *Session) Advertise(add, remove []netip.AddrPort) error {
	switch {
	case s.plain != nil:
		return ErrNotTCPLS
	case s.client:
		return errors.New("tcpls: only a server advertises addresses")
	}
	add, err := serverAddresses(add)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.kick() // behind Unlock
	defer s.mu.Unlock()
	if s.ended() {
		return s.cause()
	}
	a := &s.addresses
	keep := func(k wire.Address) bool {
		return !slices.ContainsFunc(remove, func(r netip.AddrPort) bool { return unmapped(r) == k.AddrPort })
	}
	next := addresses{last: a.last}
	var withdrawn []uint64
	for _, k := range a.known {
		if keep(k) {
			next.known = append(next.known, k)
		} else {
			withdrawn = append(withdrawn, k.ID)
		}
	}
	kept := len(next.known)
	next.add(add)
	if len(next.known) > wire.MaxAddresses {
		return fmt.Errorf("tcpls: %d addresses are too many; a client holds %d", len(next.known), wire.MaxAddresses)
	}
	*a = next
	s.control.say(func(c *control) { c.advertise(next.known[kept:], withdrawn) })
	return nil
}

// add gives ids to those addresses that aren't there.
func (a *addresses) add(list []netip.AddrPort) {
	for _, to := range list {
		if !slices.ContainsFunc(a.known, func(k wire.Address) bool { return k.AddrPort == to }) {
			a.last++
			a.known = append(a.known, wire.Address{ID: a.last, AddrPort: to})
		}
	}
}

// advertised are the addresses of a server at the begin of its sessions.
func (c *Config) advertised() (a addresses) {
	if c.MaxPaths > 1 {
		a.add(c.Addresses)
	}
	return a
}

// serverAddresses checks addresses and returns them in the form in which they
// are sent.
func serverAddresses(list []netip.AddrPort) ([]netip.AddrPort, error) {
	var checked []netip.AddrPort
	for _, a := range list {
		u := unmapped(a)
		if !wire.IsServerAddress(u) {
			return nil, fmt.Errorf("tcpls: %v can't be the address of a server: it needs a port, and an IP address of one host without a zone", a)
		}
		checked = append(checked, u)
	}
	return checked, nil
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// advertise queues what the client must know: what it was never told needn't
// be withdrawn, so that the words can't pile up.
func (c *control) advertise(add []wire.Address, withdrawn []uint64) {
	for _, id := range withdrawn {
		queued := len(c.addresses)
		c.addresses = slices.DeleteFunc(c.addresses, func(a wire.Address) bool { return a.ID == id })
		if len(c.addresses) == queued {
			c.addresses = append(c.addresses, wire.Address{ID: id})
		}
	}
	c.addresses = append(c.addresses, add...)
}

// appendAddresses appends frames up to the length limit. The caller holds mu.
func (c *control) appendAddresses(b []byte, limit int) []byte {
	for len(c.addresses) > 0 && len(b)+wire.MaxFrameLen <= limit {
		if a := c.addresses[0]; a.IsValid() {
			b = wire.AppendAddAddress(b, a)
		} else {
			b = wire.AppendRemoveAddress(b, a.ID)
		}
		c.addresses = c.addresses[1:]
	}
	return b
}

// receiveAddress acts on ADD_ADDRESS and REMOVE_ADDRESS.
func (s *Session) receiveAddress(f *wire.Frame) error {
	if !s.client {
		return violation(wire.CodeProtocol, "%v from a client", f.Kind)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a, id := &s.addresses, f.Address.ID
	switch {
	case f.Kind == wire.RemoveAddress && id > a.last:
		return violation(wire.CodeProtocol, "REMOVE_ADDRESS %d, which was never given", id)
	case f.Kind == wire.RemoveAddress:
		i := slices.IndexFunc(a.known, func(k wire.Address) bool { return k.ID == id })
		if i < 0 { // it was withdrawn before
			return nil
		}
		s.tellSoon(Event{Kind: EventAddressRemoved, Address: a.known[i].AddrPort})
		a.known = slices.Delete(a.known, i, i+1)
	case id <= a.last:
		return violation(wire.CodeProtocol, "ADD_ADDRESS %d after %d", id, a.last)
	case len(a.known) == wire.MaxAddresses:
		return violation(wire.CodeLimit, "more than %d addresses", wire.MaxAddresses)
	default:
		a.known, a.last = append(a.known, f.Address), id
		s.tellSoon(Event{Kind: EventAddressAdded, Address: f.Address.AddrPort})
	}
	return nil
}

// mayDial reports whether a client goes to an advertised address by itself, if
// it has reached its server at another one; that may be unknown.
func mayDial(advertised, server netip.Addr) bool {
	reach := scopeOf(advertised)
	return reach == global || server.IsValid() && reach == scopeOf(server)
}

// ways lists where a client looks for its server: where it is in use, where it was
// first, which is "", and where it says that it is.
func (s *Session) ways() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	ways := []string{""}
	if used, ok := s.path().conn.RemoteAddr().(*net.TCPAddr); ok && s.server.IsValid() {
		if to := unmapped(used.AddrPort()); to != s.server {
			ways = []string{to.String(), ""}
		}
	}
	for _, a := range s.addresses.known {
		if to := a.String(); mayDial(a.Addr(), s.server.Addr()) && a.AddrPort != s.server && !slices.Contains(ways, to) {
			ways = append(ways, to)
		}
	}
	return ways
}

// redial opens a connection by one of the session's ways, each time beginning
// with another one, since one may lead to nobody who answers.
func (s *Session) redial(ctx context.Context, turn int) (net.Conn, error) {
	ways := s.ways()
	turn %= len(ways)
	var list []candidate
	for _, way := range append(ways[turn:], ways[:turn]...) {
		list = append(list, candidate{address: way})
	}
	r := newRace(ctx, list, func(ctx context.Context, c candidate) (net.Conn, error) {
		to, _ := netip.ParseAddrPort(c.address) // none: as the session was dialed
		return s.dial(ctx, PathSpec{Remote: to})
	})
	defer r.end()
	if a, ok := r.next(); ok {
		return a.conn, nil
	}
	return nil, r.err("the server")
}

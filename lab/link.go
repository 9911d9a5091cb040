package lab

import (
	"fmt"
	"net/netip"
	"sync"
)

// A Link joins two hosts.
type Link struct {
	net   *Network
	index int
	spec  LinkSpec
	ends  [2]*Host

	mu     sync.Mutex // held while the emulator is told
	shapes [2]Shape   // from A to B, from B to A
}

// Name returns the link's name, which is that of its interfaces too.
func (l *Link) Name() string { return l.spec.Name }

// Hosts returns those at its ends, A first.
func (l *Link) Hosts() [2]*Host { return l.ends }

// Addr returns the first address of a host on the link: an IPv4 address
// if v6 is false. It panics if there is none.
func (l *Link) Addr(host string, v6 bool) netip.Addr {
	for _, end := range []End{l.spec.A, l.spec.B} {
		for _, a := range end.Addrs {
			if end.Host == host && a.Addr().Is6() == v6 {
				return a.Addr()
			}
		}
	}
	panic(fmt.Sprintf("lab: host %q has no such address on link %s", host, l.spec.Name))
}

// Shape returns what the link does to packets from a host to the other one. It
// panics if the host isn't an end of the link.
func (l *Link) Shape(from string) Shape {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.shapes[l.side(from)]
}

// Set changes what the link does, in both directions.
func (l *Link) Set(s Shape) error {
	return l.Change(func(shape *Shape) { *shape = s })
}

// Change lets f change what the link does, once for each direction.
func (l *Link) Change(f func(*Shape)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.change(func(shapes *[2]Shape) { f(&shapes[0]); f(&shapes[1]) })
}

// ChangeFrom lets f change what the link does to packets from a host. It panics if
// the host isn't an end of the link.
func (l *Link) ChangeFrom(host string, f func(*Shape)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.change(func(shapes *[2]Shape) { f(&shapes[l.side(host)]) })
}

func (l *Link) change(f func(*[2]Shape)) error {
	shapes := l.shapes
	f(&shapes)
	for i := range shapes {
		if err := shapes[i].check(); err != nil {
			return fmt.Errorf("lab: link %s: %w", l.spec.Name, err)
		}
	}
	_, err := l.net.emulator.call(order{Kind: orderShape, Link: l.index, Shapes: shapes})
	if err == nil {
		l.shapes = shapes
	}
	return err
}

// SetBlackhole makes the link lose everything in both directions without a sign, or
// ends that.
func (l *Link) SetBlackhole(on bool) error {
	return l.Change(func(s *Shape) { s.Blackhole = on })
}

// SetUp switches the interfaces at both ends on or off.
func (l *Link) SetUp(up bool) error {
	for _, h := range l.ends {
		if err := h.SetUp(l.spec.Name, up); err != nil {
			return err
		}
	}
	return nil
}

// Reset resets the TCP connections that cross the link now. As soon as one
// sends a segment, both of its ends get an RST that they must accept.
// Connections that begin later are left alone.
func (l *Link) Reset() error {
	_, err := l.net.emulator.call(order{Kind: orderReset, Link: l.index})
	return err
}

// SetBoxes replaces the link's middleboxes, which forget all that they know.
func (l *Link) SetBoxes(boxes ...Middlebox) error {
	_, err := l.net.emulator.call(order{Kind: orderBoxes, Link: l.index, Boxes: boxes})
	return err
}

// Counters return what became of the packets from a host to the other one. It
// panics if the host isn't an end of the link.
func (l *Link) Counters(from string) (Counters, error) {
	r, err := l.net.emulator.call(order{Kind: orderCounters, Link: l.index})
	return r.Counters[l.side(from)], err
}

// side returns the end of the link at which a host is.
func (l *Link) side(host string) side {
	switch host {
	case l.spec.A.Host:
		return sideA
	case l.spec.B.Host:
		return sideB
	}
	panic(fmt.Sprintf("lab: link %s doesn't end at host %q", l.spec.Name, host))
}

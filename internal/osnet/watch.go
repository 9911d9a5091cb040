package osnet

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"time"
)

// An EventKind says what has changed.
type EventKind int

// The changes that Watch reports.
const (
	AddrAdded   EventKind = iota + 1 // an address can be used from now on
	AddrRemoved                      // an address is gone, and its connections with it
	LinkUp                           // an interface is on and has a carrier
	LinkDown                         // it hasn't, or is gone
	Resync                           // changes were missed: look at everything again
)

func (k EventKind) String() string {
	switch k {
	case AddrAdded:
		return "address added"
	case AddrRemoved:
		return "address removed"
	case LinkUp:
		return "link up"
	case LinkDown:
		return "link down"
	case Resync:
		return "resync"
	}
	return "unknown event"
}

// An Event is a change of this machine's interfaces or addresses. A Resync has
// the kind only.
type Event struct {
	Kind  EventKind
	Index int        // of the interface
	Link  string     // its name
	Addr  netip.Addr // of AddrAdded and AddrRemoved; with a zone if it is link-local
}

const (
	maxEvents = 64              // that wait to be received
	pollEvery = 2 * time.Second // where the system doesn't tell
)

// Watch reports changes from now on, until ctx ends; then the channel is closed.
// On Linux the kernel tells of them at once, elsewhere Watch looks every two
// seconds, and what came and went in between isn't seen. A receiver that is so
// slow that changes are lost is told by Resync.
func Watch(ctx context.Context) <-chan Event {
	events := make(chan Event, maxEvents)
	watch := newWatch() // what changes after this call is seen
	go func() {
		defer close(events)
		watch(ctx, func(e Event) {
			select {
			case events <- e:
			case <-ctx.Done():
			}
		})
	}()
	return events
}

// An Interface is one of this machine's links with its addresses.
type Interface struct {
	Index int
	Name  string
	Up    bool         // it is on and has a carrier
	Addrs []netip.Addr // that can be used; with a zone if they are link-local
}

// Interfaces returns this machine's interfaces, in the order of their indices.
func Interfaces() ([]Interface, error) {
	n, err := snapshot()
	if err != nil {
		return nil, err
	}
	return n.list(), nil
}

func (n *network) list() []Interface {
	all := make([]Interface, 0, len(n.links))
	for index, l := range n.links {
		i := Interface{Index: index, Name: l.name, Up: l.up}
		for a := range n.addrs {
			if a.index == index {
				i.Addrs = append(i.Addrs, a.zoned(l.name))
			}
		}
		slices.SortFunc(i.Addrs, netip.Addr.Compare)
		all = append(all, i)
	}
	slices.SortFunc(all, func(a, b Interface) int { return a.Index - b.Index })
	return all
}

// A network is what is known of the interfaces and addresses of this machine.
type network struct {
	links map[int]link
	addrs map[address]bool
}

type link struct {
	name string
	up   bool
}

type address struct {
	index int
	addr  netip.Addr
}

func newNetwork() *network {
	return &network{make(map[int]link), make(map[address]bool)}
}

// setLink notes the state of an interface.
func (n *network) setLink(index int, l link, tell func(Event)) {
	old := n.links[index]
	n.links[index] = l
	switch {
	case l.up && !old.up:
		tell(Event{Kind: LinkUp, Index: index, Link: l.name})
	case !l.up && old.up:
		tell(Event{Kind: LinkDown, Index: index, Link: l.name})
	}
}

// dropLink notes that an interface is gone, with all that it had.
func (n *network) dropLink(index int, tell func(Event)) {
	for a := range n.addrs {
		if a.index == index {
			n.dropAddr(a, tell)
		}
	}
	n.setLink(index, link{name: n.links[index].name}, tell)
	delete(n.links, index)
}

func (n *network) addAddr(a address, tell func(Event)) {
	if !n.addrs[a] {
		n.addrs[a] = true
		tell(n.addrEvent(AddrAdded, a))
	}
}

func (n *network) dropAddr(a address, tell func(Event)) {
	if n.addrs[a] {
		delete(n.addrs, a)
		tell(n.addrEvent(AddrRemoved, a))
	}
}

func (n *network) addrEvent(kind EventKind, a address) Event {
	link := n.links[a.index].name
	return Event{Kind: kind, Index: a.index, Link: link, Addr: a.zoned(link)}
}

// zoned is the address as package net writes it.
func (a address) zoned(link string) netip.Addr {
	if a.addr.IsLinkLocalUnicast() && a.addr.Is6() {
		return a.addr.WithZone(link)
	}
	return a.addr
}

// become tells what differs in next, and takes it over. What is gone is told
// first.
func (n *network) become(next *network, tell func(Event)) {
	for a := range n.addrs {
		if !next.addrs[a] {
			n.dropAddr(a, tell)
		}
	}
	for index := range n.links {
		if _, there := next.links[index]; !there {
			n.dropLink(index, tell)
		}
	}
	for index, l := range next.links {
		n.setLink(index, l, tell)
	}
	for a := range next.addrs {
		n.addAddr(a, tell)
	}
}

// polling watches by looking again and again. A look that fails is left out.
func polling(look func() (*network, error), every time.Duration) func(context.Context, func(Event)) {
	n, err := look()
	if err != nil {
		n = newNetwork()
	}
	return func(ctx context.Context, tell func(Event)) {
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				if next, err := look(); err == nil {
					n.become(next, tell)
				}
			case <-ctx.Done():
				return
			}
		}
	}
}

// interfaces is what package net knows.
func interfaces() (*network, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	n := newNetwork()
	for _, i := range all {
		const up = net.FlagUp | net.FlagRunning
		n.links[i.Index] = link{i.Name, i.Flags&up == up}
		addrs, err := i.Addrs()
		if err != nil {
			continue // it has gone meanwhile
		}
		for _, a := range addrs {
			if ip, ok := a.(*net.IPNet); ok {
				if addr, ok := netip.AddrFromSlice(ip.IP); ok {
					n.addrs[address{i.Index, addr.Unmap()}] = true
				}
			}
		}
	}
	return n, nil
}

package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// A Topology describes a network: its hosts and the links between them. It may
// also be read from a file, see [LoadTopology].
type Topology struct {
	// Hosts holds what there is to say about hosts. One that is only the end
	// of links need not be in it; but see [ReadTopology] for files.
	Hosts []HostSpec
	// Links join two hosts each.
	Links []LinkSpec
	// Seed makes the random decisions of the links, which packets to lose and
	// how long to delay them, the same each time for the same packets. 0 is as good as any.
	Seed uint64
}

// A HostSpec describes a host.
type HostSpec struct {
	Name string `json:"name"`
	// Forward makes a router of the host.
	Forward bool `json:"forward"`
	// Routes are added to those of the host's own links.
	Routes []Route `json:"routes"`
	// Sysctls are kernel parameters of the host, as "net.ipv4.tcp_fastopen"
	// and "3".
	Sysctls map[string]string `json:"sysctls"`
}

// A Route leads to further networks.
type Route struct {
	// To is the destination. The zero Prefix means all of Via's family.
	To netip.Prefix `json:"to"`
	// Via is the next host's address on a common link.
	Via netip.Addr `json:"via"`
	// From restricts the route to packets from these addresses, unless it is
	// the zero Prefix. So a host with two links can use both to one address.
	From netip.Prefix `json:"from"`
}

// A LinkSpec describes a link between two hosts. On both, the interface has
// the link's name.
type LinkSpec struct {
	Name string // at most 15 bytes
	A, B End
	// Shape is what the link does to packets in both directions, unless Back
	// is set: then it is for those from A to B, and Back for those from B to A.
	Shape Shape
	Back  *Shape
	// MTU is the interfaces', in bytes. 0 means 1500.
	MTU int
	// Boxes are middleboxes on the link. Packets from A pass them in this
	// order, packets from B in the opposite one, before they queue.
	Boxes []Middlebox
}

// An End is one end of a link.
type End struct {
	Host string `json:"host"`
	// Addrs are the addresses of the interface with the length of their
	// network, as 10.0.0.1/24.
	Addrs []netip.Prefix `json:"addrs"`
}

// A Shape is what a link does to the packets in one direction. The zero Shape
// does nothing: it passes them on at once.
type Shape struct {
	// Rate is how fast the link carries bits of IP packets. 0 means no limit.
	Rate Rate
	// Queue is how many bytes may wait for their turn. A packet that finds
	// no room is lost. 0 means the larger of 100 ms at Rate and 64 KiB.
	Queue int
	// Delay is the time from one end to the other, beside that in the queue.
	Delay time.Duration
	// Jitter is the most that is added to Delay, evenly distributed. Packets
	// never overtake each other.
	Jitter time.Duration
	// Loss is the fraction of packets lost on the way, from 0 to 1.
	Loss float64
	// LossBurst is how many packets in a row are lost at a time, in the mean
	// (the Gilbert–Elliott model with a state that loses all and one that loses
	// none). 0 and 1 mean that every packet has the same chance.
	LossBurst float64
	// MaxPacket is the size of the largest IP packet, in bytes, that passes. Larger
	// ones are lost without an ICMP message: a black hole of path MTU
	// discovery. 0 means no limit but the interfaces' MTU.
	MaxPacket int
	// Blackhole loses everything, without a sign.
	Blackhole bool
}

// A Rate is a number of bits per second.
type Rate float64

// Units of Rate.
const (
	Kbit Rate = 1e3
	Mbit Rate = 1e6
	Gbit Rate = 1e9
)

// String returns the rate as "100Mbit/s".
func (r Rate) String() string {
	switch {
	case r >= Gbit:
		return fmt.Sprintf("%gGbit/s", float64(r/Gbit))
	case r >= Mbit:
		return fmt.Sprintf("%gMbit/s", float64(r/Mbit))
	case r >= Kbit:
		return fmt.Sprintf("%gKbit/s", float64(r/Kbit))
	}
	return fmt.Sprintf("%gbit/s", float64(r))
}

const (
	defaultMTU = 1500
	minMTU     = 68 // RFC 791, section 3.2
	maxMTU     = 65535
	minRate    = Rate(100)
	maxRate    = 1000 * Gbit
	minQueue   = 64 << 10
	maxQueue   = 256 << 20
	maxDelay   = time.Minute
	maxHosts   = 64
	maxLinks   = 64
)

// TwoHosts returns a topology of the hosts "client" and "server" and a link
// of each shape between them. They are named path0, path1 and so on. On path
// i, the client is 10.0.i.1 and fd00:i::1, the server 10.0.i.2 and fd00:i::2.
func TwoHosts(shapes ...Shape) *Topology {
	t := new(Topology)
	for i, shape := range shapes {
		end := func(host string, n byte) End {
			v6 := [16]byte{0: 0xfd, 3: byte(i), 15: n}
			return End{Host: host, Addrs: []netip.Prefix{
				netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i), n}), 24),
				netip.PrefixFrom(netip.AddrFrom16(v6), 64),
			}}
		}
		t.Links = append(t.Links, LinkSpec{
			Name: fmt.Sprintf("path%d", i), A: end("client", 1), B: end("server", 2), Shape: shape,
		})
	}
	return t
}

// Check returns an error that says what is wrong with the topology, or nil.
func (t *Topology) Check() error {
	var errs []error
	if len(t.Links) > maxLinks {
		errs = append(errs, fmt.Errorf("%d links, at most %d are possible", len(t.Links), maxLinks))
	}
	names := make(map[string]bool)
	for _, h := range t.Hosts {
		if h.Name == "" || names[h.Name] {
			errs = append(errs, fmt.Errorf("two hosts have the name %q, or one has none", h.Name))
		}
		names[h.Name] = true
		for _, r := range h.Routes {
			if err := r.check(); err != nil {
				errs = append(errs, fmt.Errorf("host %s: %w", h.Name, err))
			}
		}
	}
	links := make(map[string]bool)
	for i := range t.Links {
		l := &t.Links[i]
		if links[l.Name] {
			errs = append(errs, fmt.Errorf("two links have the name %q", l.Name))
		}
		links[l.Name] = true
		names[l.A.Host], names[l.B.Host] = true, true
		if err := l.check(); err != nil {
			errs = append(errs, fmt.Errorf("link %q: %w", l.Name, err))
		}
	}
	if len(names) > maxHosts {
		errs = append(errs, fmt.Errorf("%d hosts, at most %d are possible", len(names), maxHosts))
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("lab: topology: %w", errors.Join(errs...))
}

func (r *Route) check() error {
	switch {
	case !r.Via.IsValid():
		return errors.New("a route has no Via")
	case r.To.IsValid() && r.To.Addr().Is4() != r.Via.Is4(), r.From.IsValid() && r.From.Addr().Is4() != r.Via.Is4():
		return fmt.Errorf("the route via %v mixes IPv4 and IPv6", r.Via)
	}
	return nil
}

func (l *LinkSpec) check() error {
	switch {
	case l.Name == "" || len(l.Name) > 15 || l.Name == "lo" || strings.ContainsAny(l.Name, "/: \t\n"):
		return errors.New("the name of an interface has 1 to 15 bytes, no slash, colon or space, and isn't lo")
	case l.A.Host == "" || l.B.Host == "" || l.A.Host == l.B.Host:
		return errors.New("a link joins two hosts")
	case l.MTU != 0 && (l.MTU < minMTU || l.MTU > maxMTU):
		return fmt.Errorf("MTU %d is not in %d to %d", l.MTU, minMTU, maxMTU)
	}
	for _, a := range slices.Concat(l.A.Addrs, l.B.Addrs) {
		if !a.IsValid() {
			return errors.New("an address isn't valid")
		}
	}
	for _, box := range l.Boxes {
		if box == nil {
			return errors.New("a middlebox is nil")
		}
	}
	if l.Back != nil {
		if err := l.Back.check(); err != nil {
			return err
		}
	}
	return l.Shape.check()
}

func (l *LinkSpec) mtu() int {
	if l.MTU == 0 {
		return defaultMTU
	}
	return l.MTU
}

// shapes returns those from A to B and from B to A.
func (l *LinkSpec) shapes() [2]Shape {
	if l.Back == nil {
		return [2]Shape{l.Shape, l.Shape}
	}
	return [2]Shape{l.Shape, *l.Back}
}

func (s *Shape) check() error {
	switch {
	case s.Rate != 0 && !(s.Rate >= minRate && s.Rate <= maxRate):
		return fmt.Errorf("the rate %v is not in %v to %v", s.Rate, minRate, maxRate)
	case s.Queue < 0 || s.Queue > maxQueue:
		return fmt.Errorf("a queue of %d bytes is not in 0 to %d", s.Queue, maxQueue)
	case s.Delay < 0 || s.Jitter < 0 || s.Delay+s.Jitter > maxDelay:
		return fmt.Errorf("the delay %v and jitter %v are not in 0 to %v", s.Delay, s.Jitter, maxDelay)
	case !(s.Loss >= 0 && s.Loss <= 1):
		return fmt.Errorf("the loss %g is not in 0 to 1", s.Loss)
	case s.LossBurst != 0 && !(s.LossBurst >= 1):
		return fmt.Errorf("a burst of %g lost packets is less than one packet", s.LossBurst)
	case s.LossBurst > 1 && s.Loss < 1 && s.LossBurst < s.Loss/(1-s.Loss):
		return fmt.Errorf("a loss of %g needs bursts of %.3g packets or more", s.Loss, s.Loss/(1-s.Loss))
	case s.MaxPacket < 0:
		return fmt.Errorf("the largest packet has %d bytes", s.MaxPacket)
	}
	return nil
}

// queue returns how many bytes may wait.
func (s *Shape) queue() int {
	if s.Queue != 0 {
		return s.Queue
	}
	return min(max(minQueue, int(s.Rate/8/10)), maxQueue)
}

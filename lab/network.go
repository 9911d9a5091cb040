package lab

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
)

// ErrUnsupported is the reason why there can be no network here: the system isn't
// Linux, or the process isn't allowed to make one. What wraps it says which.
var ErrUnsupported = errors.New("lab: an emulated network can't be made here")

// A Network is an emulated network at work. Its methods, and those of its hosts
// and links, may be called by many goroutines at once.
type Network struct {
	topology *Topology
	hosts    map[string]*Host
	links    map[string]*Link
	emulator *emulatorProcess
	close    func() error // once
}

// Dir is a folder for files of programs on the hosts, which anybody may read. It goes
// with the network, however this process ends.
func (n *Network) Dir() string { return n.emulator.dir }

// New makes a network. It must be closed. The error wraps ErrUnsupported where
// there can be none.
func New(t *Topology) (*Network, error) {
	if err := t.Check(); err != nil {
		return nil, err
	}
	if err := Supported(); err != nil {
		return nil, err
	}
	n := &Network{topology: t, hosts: make(map[string]*Host), links: make(map[string]*Link)}
	n.close = sync.OnceValue(n.takeDown)
	if err := n.build(); err != nil {
		return nil, errors.Join(fmt.Errorf("lab: %w", err), n.Close())
	}
	return n, nil
}

func (n *Network) build() error {
	t := n.topology
	for _, h := range t.Hosts {
		if err := n.addHost(h); err != nil {
			return err
		}
	}
	for i := range t.Links {
		for _, name := range []string{t.Links[i].A.Host, t.Links[i].B.Host} {
			if n.hosts[name] != nil {
				continue
			}
			if err := n.addHost(HostSpec{Name: name}); err != nil {
				return err
			}
		}
	}
	var tuns []*os.File
	defer func() {
		for _, f := range tuns {
			_ = f.Close() // the emulator has its own
		}
	}()
	for i := range t.Links {
		spec := &t.Links[i]
		l := &Link{net: n, index: i, spec: *spec, shapes: spec.shapes(), ends: [2]*Host{n.hosts[spec.A.Host], n.hosts[spec.B.Host]}}
		for side, end := range []End{spec.A, spec.B} {
			f, err := l.ends[side].ns.newTUN(spec.Name, spec.mtu(), end.Addrs)
			if err != nil {
				return fmt.Errorf("link %s on %s: %w", spec.Name, end.Host, err)
			}
			tuns = append(tuns, f)
		}
		n.links[spec.Name] = l
	}
	for _, h := range n.hosts {
		if err := h.addRoutes(); err != nil {
			return err
		}
	}
	var err error
	n.emulator, err = startEmulator(n, tuns)
	return err
}

func (n *Network) addHost(spec HostSpec) error {
	ns, err := newNamespace()
	if err != nil {
		return fmt.Errorf("host %s: %w", spec.Name, err)
	}
	n.hosts[spec.Name] = &Host{net: n, spec: spec, ns: ns}
	if err := ns.configure(&spec); err != nil {
		return fmt.Errorf("host %s: %w", spec.Name, err)
	}
	return nil
}

// Host returns the host with a name. It panics if the topology has none.
func (n *Network) Host(name string) *Host {
	h := n.hosts[name]
	if h == nil {
		panic(fmt.Sprintf("lab: the topology has no host %q", name))
	}
	return h
}

// Link returns the link with a name. It panics if the topology has none.
func (n *Network) Link(name string) *Link {
	l := n.links[name]
	if l == nil {
		panic(fmt.Sprintf("lab: the topology has no link %q", name))
	}
	return l
}

// Hosts returns the hosts by name, in alphabetical order.
func (n *Network) Hosts() []*Host {
	hosts := make([]*Host, 0, len(n.hosts))
	for _, h := range n.hosts {
		hosts = append(hosts, h)
	}
	slices.SortFunc(hosts, func(a, b *Host) int { return strings.Compare(a.spec.Name, b.spec.Name) })
	return hosts
}

// Links returns the links in the topology's order.
func (n *Network) Links() []*Link {
	links := make([]*Link, len(n.links))
	for _, l := range n.links {
		links[l.index] = l
	}
	return links
}

// Close ends the processes that still run on the hosts, and takes the network
// down. Sockets that were opened on a host keep its namespace, without links, until they
// are closed. Further calls return what the first one did.
func (n *Network) Close() error { return n.close() }

func (n *Network) takeDown() error {
	var errs []error
	for _, h := range n.hosts {
		errs = append(errs, h.ns.shut())
	}
	if n.emulator != nil {
		errs = append(errs, n.emulator.close())
	}
	for _, h := range n.hosts {
		errs = append(errs, h.ns.close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("lab: closing the network: %w", err)
	}
	return nil
}

// TB is the part of testing.TB that Start needs.
type TB interface {
	Helper()
	Cleanup(func())
	Skipf(format string, args ...any)
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

// Start makes a network for a test, which closes it at its end. Where there can be
// none, it skips the test with the reason; with CI=true in the environment, that fails
// the test instead, so that nobody takes a skipped test for a passed one.
func Start(tb TB, t *Topology) *Network {
	tb.Helper()
	n, err := New(t)
	switch {
	case errors.Is(err, ErrUnsupported) && (os.Getenv("CI") != "true" || !onLinux):
		tb.Skipf("%v", err)
	case err != nil:
		tb.Fatalf("%v", err)
	default:
		tb.Cleanup(func() {
			if err := n.Close(); err != nil {
				tb.Errorf("%v", err)
			}
		})
	}
	return n
}

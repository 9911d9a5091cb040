package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"sync"
)

// A Host is a machine of the network: a network namespace.
type Host struct {
	net  *Network
	spec HostSpec
	ns   *namespace
}

// Name returns the host's name.
func (h *Host) Name() string { return h.spec.Name }

// Namespace returns the file of the host's network namespace, for programs such
// as nsenter. It is there until the network is closed or this process ends.
func (h *Host) Namespace() string { return h.ns.path() }

// Do calls f on the host: sockets that f opens belong to the host's network, for
// ever and whoever uses them. That is so for f's own goroutine alone, which keeps its
// thread meanwhile; the goroutines that f starts are elsewhere. So f should
// dial and listen with literal addresses only: the look-up of a name happens
// in other goroutines. It returns f's error, or why f wasn't called.
func (h *Host) Do(f func() error) error {
	if err := h.ns.do(f); err != nil {
		return fmt.Errorf("on %s: %w", h.spec.Name, err)
	}
	return nil
}

// Listen listens on the host, at a literal address, without Multipath TCP.
func (h *Host) Listen(ctx context.Context, network, address string) (ln net.Listener, err error) {
	if err := literal(address); err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	err = h.Do(func() error {
		ln, err = lc.Listen(ctx, network, address)
		return err
	})
	return ln, err
}

// Dial connects from the host to a literal address. It has the form of
// tcpls.Dialer.DialContext.
func (h *Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return h.DialWith(ctx, new(net.Dialer), network, address)
}

// DialWith connects from the host by a dialer, whose LocalAddr and Control
// serve as always, to a literal address.
func (h *Host) DialWith(ctx context.Context, d *net.Dialer, network, address string) (conn net.Conn, err error) {
	if err := literal(address); err != nil {
		return nil, err
	}
	err = h.Do(func() error {
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

func literal(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if host == "" {
		return nil
	}
	if _, err := netip.ParseAddr(host); err != nil {
		return fmt.Errorf("lab: %q has a name in it; hosts know only literal addresses", address)
	}
	return nil
}

// Command returns a command that runs on the host. It is as exec.CommandContext's,
// with two differences: Path and Args are not those of the program, which is
// only found after this program was started in its place, and a command that
// still runs when the network is closed, or when this process ends, is killed
// with all that it has started.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return h.ns.command(ctx, name, args...)
}

// Program returns a command that runs a registered function on the host, in a
// process of its own. All that Command says is true of it. It panics if no function
// has the name.
func (h *Host) Program(ctx context.Context, name string, args ...string) *exec.Cmd {
	programsMu.Lock()
	defer programsMu.Unlock()
	if programs[name] == nil {
		panic(fmt.Sprintf("lab: no function is registered as %q", name))
	}
	return h.ns.program(ctx, name, args...)
}

var (
	programsMu sync.Mutex
	programs   = make(map[string]func(args []string) error)
)

// Register makes a function something that Host.Program can run. It must be
// called during the initialisation of a package, since in the process that is
// to run the function, it does so, and then ends the process: with an error,
// by a line on standard error and the exit code 1.
//
// Code that looks at the machine's network, as TCPLS does to notice addresses
// that come and go, needs a process on the host; for what only dials and
// listens, Host.Do is enough.
func Register(name string, f func(args []string) error) {
	programsMu.Lock()
	if programs[name] != nil {
		panic(fmt.Sprintf("lab: two functions are registered as %q", name))
	}
	programs[name] = f
	programsMu.Unlock()
	becomeProgram(name, f)
}

// AddAddr gives the host another address on a link.
func (h *Host) AddAddr(link string, addr netip.Prefix) error {
	return h.on(link, h.ns.addAddr(link, addr))
}

// RemoveAddr takes an address on a link from the host.
func (h *Host) RemoveAddr(link string, addr netip.Prefix) error {
	return h.on(link, h.ns.removeAddr(link, addr))
}

// SetUp switches the host's interface of a link on or off, as when a cable is
// pulled or a phone leaves its Wi-Fi. The other end's interface stays up.
func (h *Host) SetUp(link string, up bool) error {
	if err := h.on(link, h.ns.setUp(link, up)); err != nil || !up {
		return err
	}
	return h.addRoutes() // the kernel has forgotten those over the interface
}

func (h *Host) on(link string, err error) error {
	if err != nil {
		return fmt.Errorf("lab: interface %s of host %s: %w", link, h.spec.Name, err)
	}
	return nil
}

func (h *Host) addRoutes() error {
	for i, r := range h.spec.Routes {
		if err := h.ns.addRoute(r, firstTable+i); err != nil {
			return fmt.Errorf("host %s: route %v via %v: %w", h.spec.Name, r.To, r.Via, err)
		}
	}
	return nil
}

// firstTable is the routing table of a host's first route with a From; each
// has its own.
const firstTable = 1000

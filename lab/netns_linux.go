package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const onLinux = true

// Supported returns nil if networks can be made here, and otherwise an error
// that wraps ErrUnsupported and says what is missing.
func Supported() error { return supported() }

var supported = sync.OnceValue(func() error {
	ns, err := newNamespace()
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %w: run it as root", ErrUnsupported, err)
	case err != nil:
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	defer ns.close()
	f, err := ns.newTUN("probe", defaultMTU, nil)
	if err != nil {
		return fmt.Errorf("%w: %w: it needs root and the kernel's TUN driver", ErrUnsupported, err)
	}
	return f.Close()
})

// A namespace is a network namespace without a name. It lasts as long as it is
// open here, and sockets or processes in it.
type namespace struct {
	file *os.File // by which it is entered
	id   string   // as in /proc/PID/ns/net
	nl   *netlink.Handle
	held int // another descriptor of it, once it is shut; else -1
}

const threadNetns = "/proc/thread-self/ns/net"

// newNamespace makes a namespace on this thread, and returns to the former.
func newNamespace() (*namespace, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	here, err := os.Open(threadNetns)
	if err != nil {
		return nil, err
	}
	defer here.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("making a network namespace: %w", err)
	}
	defer leave(here)
	f, err := os.Open(threadNetns)
	if err != nil {
		return nil, err
	}
	id, err := os.Readlink(threadNetns)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &namespace{f, id, nl, -1}, nil
}

// leave returns the thread to the namespace it had. If that failed, the
// thread would go on to run anybody's goroutines in the wrong network.
func leave(to *os.File) {
	if err := unix.Setns(int(to.Fd()), unix.CLONE_NEWNET); err != nil {
		panic(fmt.Sprintf("lab: a thread can't leave a network namespace: %v", err))
	}
}

func (ns *namespace) do(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	here, err := os.Open(threadNetns)
	if err != nil {
		return err
	}
	defer here.Close()
	if err := unix.Setns(int(ns.file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering the network namespace: %w", err)
	}
	defer leave(here)
	return f()
}

// path names the namespace to other processes.
func (ns *namespace) path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.file.Fd())
}

// shut lets nobody in any more, but keeps the namespace.
func (ns *namespace) shut() error {
	held, err := unix.FcntlInt(ns.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	ns.held = held
	return ns.file.Close()
}

func (ns *namespace) close() error {
	ns.nl.Close()
	if ns.held >= 0 {
		return unix.Close(ns.held)
	}
	return ns.file.Close()
}

// configure makes a host of a new namespace.
func (ns *namespace) configure(spec *HostSpec) error {
	if err := ns.setUp("lo", true); err != nil {
		return err
	}
	sysctls := map[string]string{
		"net.ipv4.conf.all.rp_filter":                       "0",
		"net.ipv4.conf.default.rp_filter":                   "0",
		"net.ipv4.tcp_no_metrics_save":                      "1", // no connection knows more than the one before
		"net.ipv6.conf.default.router_solicitations":        "0",
		"net.ipv6.conf.all.keep_addr_on_down":               "1",
		"net.ipv6.conf.default.addr_gen_mode":               "1", // nothing but what the topology says
		"net.ipv4.conf.default.ignore_routes_with_linkdown": "1",
	}
	if spec.Forward {
		sysctls["net.ipv4.ip_forward"] = "1"
		sysctls["net.ipv6.conf.all.forwarding"] = "1"
	}
	for name, value := range spec.Sysctls {
		sysctls[name] = value
	}
	return ns.do(func() error {
		for name, value := range sysctls {
			file := "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
			if err := os.WriteFile(file, []byte(value), 0); err != nil {
				return fmt.Errorf("kernel parameter %s = %s: %w", name, value, err)
			}
		}
		return nil
	})
}

// newTUN makes the interface of a link, whose packets are what the file reads
// and writes.
func (ns *namespace) newTUN(name string, mtu int, addrs []netip.Prefix) (f *os.File, err error) {
	err = ns.do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("/dev/net/tun: %w", err)
		}
		req, err := unix.NewIfreq(name)
		if err == nil {
			req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("making a TUN device: %w", err), unix.Close(fd))
		}
		f = os.NewFile(uintptr(fd), name)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := ns.setLink(name, mtu, addrs); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// queueLen is how many packets the kernel queues before the emulator. It
// reads them at once, so this matters only while it is kept from the processor.
const queueLen = 1000

func (ns *namespace) setLink(name string, mtu int, addrs []netip.Prefix) error {
	l, err := ns.nl.LinkByName(name)
	if err != nil {
		return err
	}
	if err := ns.nl.LinkSetMTU(l, mtu); err != nil {
		return fmt.Errorf("MTU %d: %w", mtu, err)
	}
	if err := ns.nl.LinkSetTxQLen(l, queueLen); err != nil {
		return err
	}
	for _, a := range addrs {
		if err := ns.addAddr(name, a); err != nil {
			return err
		}
	}
	return ns.nl.LinkSetUp(l)
}

func (ns *namespace) setUp(name string, up bool) error {
	l, err := ns.nl.LinkByName(name)
	if err != nil {
		return err
	}
	if up {
		return ns.nl.LinkSetUp(l)
	}
	return ns.nl.LinkSetDown(l)
}

func (ns *namespace) addAddr(name string, p netip.Prefix) error {
	l, err := ns.nl.LinkByName(name)
	if err != nil {
		return err
	}
	if err := ns.nl.AddrAdd(l, address(p)); err != nil {
		return fmt.Errorf("address %v: %w", p, err)
	}
	return nil
}

func (ns *namespace) removeAddr(name string, p netip.Prefix) error {
	l, err := ns.nl.LinkByName(name)
	if err != nil {
		return err
	}
	if err := ns.nl.AddrDel(l, address(p)); err != nil {
		return fmt.Errorf("address %v: %w", p, err)
	}
	return nil
}

// address avoids duplicate address detection, during which an IPv6 address
// can't be used.
func address(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: ipNet(p.Addr(), p.Bits())}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

func ipNet(a netip.Addr, bits int) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}
}

// addRoute adds a route, to a table of its own if it is for some senders only.
// It does nothing if the interface is down.
func (ns *namespace) addRoute(r Route, table int) error {
	to := r.To
	if !to.IsValid() {
		any := netip.IPv4Unspecified()
		if r.Via.Is6() {
			any = netip.IPv6Unspecified()
		}
		to = netip.PrefixFrom(any, 0)
	}
	route := &netlink.Route{Dst: ipNet(to.Masked().Addr(), to.Bits()), Gw: r.Via.AsSlice()}
	if r.From.IsValid() {
		route.Table = table
		rule := netlink.NewRule()
		rule.Src, rule.Table, rule.Priority = ipNet(r.From.Masked().Addr(), r.From.Bits()), table, table
		if r.Via.Is6() {
			rule.Family = unix.AF_INET6
		}
		if err := ns.nl.RuleAdd(rule); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	err := ns.nl.RouteReplace(route)
	if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.EHOSTUNREACH) {
		if down, downErr := ns.anyDown(); downErr == nil && down {
			return nil
		}
	}
	return err
}

// anyDown reports whether an interface is down, and its routes may be too.
func (ns *namespace) anyDown() (bool, error) {
	links, err := ns.nl.LinkList()
	for _, l := range links {
		if l.Attrs().Flags&net.FlagUp == 0 {
			return true, nil
		}
	}
	return false, err
}

// command starts this program as enterName, which goes on as the command.
func (ns *namespace) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	path, err := exec.LookPath(name)
	cmd := ns.enter(ctx, path, append([]string{name}, args...))
	if err != nil {
		cmd.Err = err
	}
	return cmd
}

// program does the same, and goes on as this program under another name.
func (ns *namespace) program(ctx context.Context, name string, args ...string) *exec.Cmd {
	return ns.enter(ctx, thisProgram, append([]string{programName, name}, args...))
}

func (ns *namespace) enter(ctx context.Context, path string, args []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, thisProgram)
	cmd.Args = append([]string{enterName, ns.path(), ns.id, path}, args...)
	return cmd
}

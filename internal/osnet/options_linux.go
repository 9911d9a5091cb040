package osnet

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// HasOptions tells that the options of a socket can be set on this system.
const HasOptions = true

// UserTimeout returns what SetUserTimeout has set, 0 for the system's own.
func UserTimeout(rc syscall.RawConn) (time.Duration, error) {
	ms, err := number(rc, "TCP_USER_TIMEOUT", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
	return time.Duration(ms) * time.Millisecond, err
}

// keepAliveProbes is how many probes may stay unanswered.
const keepAliveProbes = 3

// SetKeepAlive makes the kernel probe the peer after so much silence, in whole
// seconds up to 32,767, and fail the connection after about as long again
// without an answer. 0 turns it off.
func SetKeepAlive(rc syscall.RawConn, idle time.Duration) error {
	s := int((idle + time.Second - 1) / time.Second)
	return control(rc, "SO_KEEPALIVE", func(fd int) error {
		if s <= 0 {
			return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 0)
		}
		for _, o := range [...]struct{ option, value int }{
			{unix.TCP_KEEPIDLE, s},
			{unix.TCP_KEEPINTVL, max(1, s/keepAliveProbes)},
			{unix.TCP_KEEPCNT, keepAliveProbes},
		} {
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, o.option, o.value); err != nil {
				return err
			}
		}
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	})
}

// KeepAlive returns after how much silence the kernel probes the peer, 0 for
// never.
func KeepAlive(rc syscall.RawConn) (idle time.Duration, err error) {
	on, err := number(rc, "SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE)
	if on == 0 || err != nil {
		return 0, err
	}
	s, err := number(rc, "TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE)
	return time.Duration(s) * time.Second, err
}

// NotSentLowWater returns what SetNotSentLowWater has set, 0 for the system's
// own.
func NotSentLowWater(rc syscall.RawConn) (int, error) {
	return number(rc, "TCP_NOTSENT_LOWAT", unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT)
}

// noLimit is the kernel's word for no pacing rate.
const noLimit = ^uint64(0)

// SetMaxPacingRate makes a socket send no faster, in bytes per second. 0 takes
// the limit away.
func SetMaxPacingRate(rc syscall.RawConn, rate uint64) error {
	if rate == 0 {
		rate = noLimit
	}
	return control(rc, "SO_MAX_PACING_RATE", func(fd int) error {
		return unix.SetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, rate)
	})
}

// MaxPacingRate returns it in bytes per second, 0 for no limit.
func MaxPacingRate(rc syscall.RawConn) (rate uint64, err error) {
	err = control(rc, "SO_MAX_PACING_RATE", func(fd int) (err error) {
		rate, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE)
		return err
	})
	if rate == noLimit {
		rate = 0
	}
	return rate, err
}

// SetWindowClamp bounds the receive window that a socket offers, in bytes. The
// kernel raises what is less than half of its smallest buffer. Beyond
// net.core.rmem_max it holds only until the kernel next enlarges the socket's
// buffer, unless this process has CAP_NET_ADMIN. Whatever n is, the buffer
// gets no larger than net.ipv4.tcp_rmem allows.
func SetWindowClamp(rc syscall.RawConn, n int) error {
	return control(rc, "TCP_WINDOW_CLAMP", func(fd int) error {
		// A buffer that grows by itself takes the clamp with it. One that was set
		// doesn't grow; the kernel makes it twice n, of which a window takes half. A
		// clamp that it couldn't outgrow needs none set: SO_RCVBUFFORCE knows no
		// limits, and who asks for a window isn't to get memory by it.
		if n <= largestTCPBuffer() && unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, n) != nil && n <= maxReceiveBuffer() {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, n); err != nil {
				return err
			}
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP, n)
	})
}

// largestTCPBuffer is what the receive buffer of a TCP socket may grow to by
// itself, also over IPv6, 0 if that isn't known.
func largestTCPBuffer() int { return lastNumber("/proc/sys/net/ipv4/tcp_rmem") }

// maxReceiveBuffer is what a process may give a socket, 0 if that isn't known.
func maxReceiveBuffer() int { return lastNumber("/proc/sys/net/core/rmem_max") }

// lastNumber reads a kernel parameter, of several numbers the last.
func lastNumber(file string) int {
	text, err := os.ReadFile(file)
	fields := strings.Fields(string(text))
	if err != nil || len(fields) == 0 {
		return 0
	}
	n, _ := strconv.Atoi(fields[len(fields)-1])
	return n
}

// WindowClamp returns the largest receive window that a socket offers, in bytes.
func WindowClamp(rc syscall.RawConn) (int, error) {
	return number(rc, "TCP_WINDOW_CLAMP", unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP)
}

// ecnBits are those of the traffic class that aren't DSCP.
const ecnBits = 2

// SetDSCP sets the DiffServ code point of a socket's packets, 0 to 63.
func SetDSCP(rc syscall.RawConn, codePoint int) error {
	return control(rc, "IP_TOS", func(fd int) error {
		err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TOS, codePoint<<ecnBits)
		if v6, _ := isIPv6(fd); v6 { // which may carry IPv4 all the same
			err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, codePoint<<ecnBits)
		}
		return err
	})
}

// DSCP returns the DiffServ code point of a socket's packets.
func DSCP(rc syscall.RawConn) (codePoint int, err error) {
	err = control(rc, "IP_TOS", func(fd int) (err error) {
		if v6, _ := isIPv6(fd); v6 {
			codePoint, err = unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_TCLASS)
		} else {
			codePoint, err = unix.GetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TOS)
		}
		return err
	})
	return codePoint >> ecnBits, err
}

func isIPv6(fd int) (bool, error) {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	return domain == unix.AF_INET6, err
}

// MayChooseCongestion tells whether every process of this system may choose the
// congestion control with that name, by net.ipv4.tcp_allowed_congestion_control,
// or has it by default.
func MayChooseCongestion(name string) bool {
	var names []string
	for _, file := range [...]string{"tcp_allowed_congestion_control", "tcp_congestion_control"} {
		list, err := os.ReadFile("/proc/sys/net/ipv4/" + file)
		if err == nil { // some namespaces don't have the first
			names = append(names, strings.Fields(string(list))...)
		}
	}
	return slices.Contains(names, name)
}

func number(rc syscall.RawConn, option string, level, opt int) (v int, err error) {
	err = control(rc, option, func(fd int) (err error) {
		v, err = unix.GetsockoptInt(fd, level, opt)
		return err
	})
	return v, err
}

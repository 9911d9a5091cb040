package osnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// SetCongestion chooses the congestion control algorithm by its kernel name,
// as "reno". The error matches [syscall.ENOENT] if the kernel doesn't have it,
// and [syscall.EPERM] if this process may not choose it.
func SetCongestion(rc syscall.RawConn, name string) error {
	err := control(rc, "TCP_CONGESTION", func(fd int) error {
		return unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, name)
	})
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("congestion control %q is not in this kernel: %w", name, err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("congestion control %q needs CAP_NET_ADMIN or a place in "+
			"net.ipv4.tcp_allowed_congestion_control: %w", name, err)
	}
	return err
}

// Congestion returns the kernel name of the congestion control algorithm.
func Congestion(rc syscall.RawConn) (name string, err error) {
	err = control(rc, "TCP_CONGESTION", func(fd int) (err error) {
		name, err = unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		return err
	})
	return name, err
}

// SetUserTimeout bounds how long sent data may stay unacknowledged before the
// kernel fails the connection with ETIMEDOUT (RFC 5482), to the millisecond,
// rounded up, and at most 24 days. 0 leaves it to the system.
func SetUserTimeout(rc syscall.RawConn, d time.Duration) error {
	if d < 0 {
		return fmt.Errorf("negative user timeout %v", d)
	}
	d = min(d, math.MaxInt32*time.Millisecond)
	ms := int((d + time.Millisecond - 1) / time.Millisecond)
	return control(rc, "TCP_USER_TIMEOUT", func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, ms)
	})
}

// SetNotSentLowWater makes a socket take no more while n bytes of it aren't sent
// yet: what waits then waits with the writer, who can still choose another way.
func SetNotSentLowWater(rc syscall.RawConn, n int) error {
	return control(rc, "TCP_NOTSENT_LOWAT", func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, n)
	})
}

// SetMaxRTO bounds how long the kernel waits before it sends again what isn't
// acknowledged, which doubles each time, to the millisecond and at least a
// second. 0 stands for the 120 seconds that are the default. Linux 6.15 has it.
func SetMaxRTO(rc syscall.RawConn, d time.Duration) error {
	const most = 120 * time.Second
	if d == 0 || d > most {
		d = most
	}
	d = max(d, time.Second)
	return control(rc, "TCP_RTO_MAX_MS", func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_RTO_MAX_MS, int(d/time.Millisecond))
	})
}

// SetFastOpenConnect makes connecting with a socket that isn't connected use
// TCP Fast Open (RFC 7413): it succeeds at once where a cookie of the peer's
// address is known, and the first write travels in the SYN, as far as one
// segment holds it. What is wrong with the peer then shows at the first write
// or read. Without a cookie the connection is an ordinary one that asks for it.
// The error is an [*UnsupportedError] where net.ipv4.tcp_fastopen lacks the
// bit 1; the socket can be used all the same.
func SetFastOpenConnect(rc syscall.RawConn) error {
	err := control(rc, "TCP_FASTOPEN_CONNECT", func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1)
	})
	var unsupported *UnsupportedError
	if errors.As(err, &unsupported) {
		unsupported.Needs += " and the bit 1 of net.ipv4.tcp_fastopen"
	}
	return err
}

// SetFastOpenQueue makes a listener take data in the SYN, of at most n
// connections that aren't complete at once; others are ordinary ones, as all
// are where net.ipv4.tcp_fastopen lacks the bit 2. The network may deliver a
// SYN twice, and so what is in it.
func SetFastOpenQueue(rc syscall.RawConn, n int) error {
	return control(rc, "TCP_FASTOPEN", func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN, n)
	})
}

// IsMPTCP tells whether the connection is Multipath TCP, on which most TCP
// options fail. Listeners of package net accept it unless told not to.
func IsMPTCP(rc syscall.RawConn) (bool, error) {
	var protocol int
	err := control(rc, "SO_PROTOCOL", func(fd int) (err error) {
		protocol, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
		return err
	})
	return protocol == unix.IPPROTO_MPTCP, err
}

// TCPInfo asks the kernel for its measurements (TCP_INFO).
func TCPInfo(rc syscall.RawConn) (Info, error) {
	var t *unix.TCPInfo
	err := control(rc, "TCP_INFO", func(fd int) (err error) {
		t, err = unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		return err
	})
	if err != nil {
		return Info{}, err
	}
	const us, ms = time.Microsecond, time.Millisecond
	info := Info{
		RTT:           time.Duration(t.Rtt) * us,
		RTTVar:        time.Duration(t.Rttvar) * us,
		MinRTT:        time.Duration(t.Min_rtt) * us,
		RTO:           time.Duration(t.Rto) * us,
		SendMSS:       int(t.Snd_mss),
		CWnd:          int(t.Snd_cwnd),
		SendWindow:    int(t.Snd_wnd),
		Unacked:       int(t.Unacked),
		Lost:          int(t.Lost),
		NotSent:       int(t.Notsent_bytes),
		DeliveryRate:  int64(t.Delivery_rate),
		AppLimited:    appLimited(t),
		BytesAcked:    int64(t.Bytes_acked),
		Sent:          int(t.Data_segs_out),
		Retrans:       int(t.Total_retrans),
		Timeouts:      int(t.Retransmits),
		SinceSent:     time.Duration(t.Last_data_sent) * ms,
		SinceReceived: time.Duration(t.Last_data_recv) * ms,
		SinceAck:      time.Duration(t.Last_ack_recv) * ms,
		SYNData:       t.Options&optSYNData != 0,
	}
	if t.Min_rtt == math.MaxUint32 { // not measured yet
		info.MinRTT = 0
	}
	return info, nil
}

// optSYNData is TCPI_OPT_SYN_DATA of linux/tcp.h.
const optSYNData = 32

// appLimited is tcpi_delivery_rate_app_limited, the first bit field of the byte
// before tcpi_rto, which package unix leaves out.
func appLimited(t *unix.TCPInfo) bool {
	flags := (*[8]byte)(unsafe.Pointer(t))[7]
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 { // bit fields begin with the lowest bit
		return flags&1 != 0
	}
	return flags&0x80 != 0
}

// control runs a socket option's system call.
func control(rc syscall.RawConn, option string, f func(fd int) error) error {
	var err error
	if cerr := rc.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return cerr
	}
	switch err {
	case nil:
		return nil
	case unix.ENOPROTOOPT, unix.EOPNOTSUPP:
		return &UnsupportedError{option, "a plain TCP socket", err}
	}
	return os.NewSyscallError("socket option "+option, err)
}

package osnet

import (
	"bytes"
	"encoding/binary"
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// SaveSYN makes a listener keep the headers of each connection's SYN, for
// [SavedSYN]: some 100 bytes of the kernel's memory a connection.
func SaveSYN(rc syscall.RawConn) error {
	return control(rc, "TCP_SAVE_SYN", func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_SAVE_SYN, 1)
	})
}

// maxHeaders is what the headers of a SYN take: IPv6 with some extensions, and
// TCP with all options.
const maxHeaders = 256

// SavedSYN returns the headers of IP and TCP of the SYN that opened an accepted
// connection. It returns nothing if the listener didn't keep it, and the second time.
func SavedSYN(rc syscall.RawConn) (headers []byte, err error) {
	err = control(rc, "TCP_SAVED_SYN", func(fd int) (err error) {
		headers, err = getsockopt(fd, unix.IPPROTO_TCP, unix.TCP_SAVED_SYN, maxHeaders)
		return err
	})
	return headers, err
}

// getsockopt reads an option of at most n bytes, which package unix has no type
// for.
func getsockopt(fd, level, option, n int) ([]byte, error) {
	b := make([]byte, n)
	size := uint32(n)
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return nil, errno
	}
	return b[:size], nil
}

// SYNOf tells of the SYN by which a connection was opened, or answered if this
// end accepted it.
func SYNOf(rc syscall.RawConn, local net.Addr) (s SentSYN, err error) {
	v6 := false
	if tcp, ok := local.(*net.TCPAddr); ok {
		v6 = tcp.IP.To4() == nil
	}
	err = control(rc, "TCP_INFO", func(fd int) error {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return err
		}
		s.read(info, v6)
		if clock, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_TIMESTAMP); err == nil {
			s.Timestamp, s.HasClock = uint32(clock), true
		}
		level, option := unix.IPPROTO_IP, unix.IP_TTL
		if v6 {
			level, option = unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS
		}
		if hops, err := unix.GetsockoptInt(fd, level, option); err == nil {
			s.HopLimit = max(hops, 0)
		}
		return nil
	})
	for name, bit := range map[string]uint8{
		"tcp_timestamps": NegotiatedTimestamps, "tcp_sack": NegotiatedSACK,
		"tcp_window_scaling": NegotiatedScale, "tcp_ecn": NegotiatedECN,
	} {
		s.ask(name, bit)
	}
	return s, err
}

// read takes in struct tcp_info.
func (s *SentSYN) read(info *unix.TCPInfo, v6 bool) {
	s.Negotiated = info.Options & (NegotiatedTimestamps | NegotiatedSACK | NegotiatedScale | NegotiatedECN)
	s.Scale = receiveScale(info)
	options, headers := 0, 40
	if s.Negotiated&NegotiatedTimestamps != 0 {
		options = 12
	}
	if v6 {
		headers = 60
	}
	s.MSS = int(info.Advmss) + options // both leave out what each segment has
	// Half the peer's window bounds segments too; it is larger than those of all
	// networks but loopback.
	mss := int(info.Snd_mss) + options
	if s.MSS < 1<<14 && mss < min(s.MSS, int(info.Pmtu)-headers, int(info.Snd_wnd)/4) {
		s.PeerMSS = mss
	}
}

// receiveScale is the upper half of the byte behind Options, for which package
// unix has no name: two bit fields, in the order of the machine.
func receiveScale(info *unix.TCPInfo) int {
	scales := (*[8]byte)(unsafe.Pointer(info))[6]
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		return int(scales >> 4)
	}
	return int(scales & 15)
}

// ask notes whether the system asks for what a bit stands for.
func (s *SentSYN) ask(sysctl string, bit uint8) {
	value, err := os.ReadFile("/proc/sys/net/ipv4/" + sysctl)
	if err != nil {
		return
	}
	on := !bytes.Equal(bytes.TrimSpace(value), []byte("0"))
	if bit == NegotiatedECN { // other values answer only, or ask where the route says so
		on = bytes.Equal(bytes.TrimSpace(value), []byte("1"))
	}
	s.Known |= bit
	if on {
		s.Asked |= bit
	}
}

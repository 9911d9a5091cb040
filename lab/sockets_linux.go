package lab

import (
	"fmt"
	"net"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// withSocket calls f with the socket of a connection.
func withSocket(conn net.Conn, f func(fd int) error) error {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return fmt.Errorf("a %T has no socket", conn)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	if e := raw.Control(func(fd uintptr) { err = f(int(fd)) }); e != nil {
		return e
	}
	return err
}

// agreedOptions names the TCP options that both ends of a connection use, and
// the largest segment that is sent.
func agreedOptions(conn net.Conn) (text string, err error) {
	err = withSocket(conn, func(fd int) error {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return err
		}
		var names []string
		for _, o := range []struct { // TCPI_OPT_* of linux/tcp.h
			flag uint8
			name string
		}{{1, "TS"}, {2, "SACK"}, {4, "WS"}} {
			if info.Options&o.flag != 0 {
				names = append(names, o.name)
			}
		}
		text = strings.Join(append(names, fmt.Sprintf("MSS %d", info.Snd_mss)), " ")
		return nil
	})
	return text, err
}

// furtherSubflows returns how many subflows a Multipath TCP connection has
// beside its first one: the first byte of struct mptcp_info of linux/mptcp.h.
func furtherSubflows(conn net.Conn) (n int, err error) {
	err = withSocket(conn, func(fd int) error {
		const solMPTCP, mptcpInfo = 284, 1
		s, err := unix.GetsockoptString(fd, solMPTCP, mptcpInfo)
		if err == nil && len(s) > 0 {
			n = int(s[0])
		}
		return err
	})
	return n, err
}

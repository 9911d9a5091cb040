package lab

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// fastOpenQueue is how many connections a server lets begin with data at once.
const fastOpenQueue = 16

// controlCongestion gives a socket a congestion control by its name.
func controlCongestion(c syscall.RawConn, name string) error {
	err := control(c, func(fd int) error {
		return unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, name)
	})
	if err != nil {
		return fmt.Errorf("congestion control %q: %w", name, err)
	}
	return nil
}

// controlFastOpen lets a connecting socket use TCP Fast Open.
func controlFastOpen(c syscall.RawConn) error {
	return control(c, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1)
	})
}

// controlFastOpenListener lets a listening socket take data with a SYN.
func controlFastOpenListener(c syscall.RawConn) error {
	return control(c, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN, fastOpenQueue)
	})
}

func control(c syscall.RawConn, f func(fd int) error) (err error) {
	if e := c.Control(func(fd uintptr) { err = f(int(fd)) }); e != nil {
		return e
	}
	return err
}

package lab

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// controlCongestion gives a socket a congestion control by its name.
func controlCongestion(c syscall.RawConn, name string) error {
	var err error
	if e := c.Control(func(fd uintptr) {
		err = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, name)
	}); e != nil {
		return e
	}
	if err != nil {
		return fmt.Errorf("congestion control %q: %w", name, err)
	}
	return nil
}

// controlFastOpen lets a connecting socket use TCP Fast Open.
func controlFastOpen(c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1)
	}); e != nil {
		return e
	}
	return err
}

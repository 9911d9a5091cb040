package lab

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// controlCongestion gives sockets a congestion control by its name.
func controlCongestion(name string) func(network, address string, c syscall.RawConn) error {
	if name == "" {
		return nil
	}
	return func(_, _ string, c syscall.RawConn) error {
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
}

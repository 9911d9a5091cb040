package main

import (
	"os"
	"syscall"
)

// demoCongestion returns the congestion control that the demo asks for, or ""
// if this process may not choose it, which only trying tells.
func demoCongestion() string {
	const name = "cubic"
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer syscall.Close(fd)
	if setCongestion(fd, name) != nil {
		return ""
	}
	return name
}

func setCongestion(fd int, name string) error {
	err := syscall.SetsockoptString(fd, syscall.IPPROTO_TCP, syscall.TCP_CONGESTION, name)
	return os.NewSyscallError("setsockopt", err)
}

// congestionControl returns a net.Dialer's or net.ListenConfig's Control that
// sets it on each socket.
func congestionControl(name string) func(network, address string, c syscall.RawConn) error {
	if name == "" {
		return nil
	}
	return func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			failed = setCongestion(int(fd), name)
		})
		if err != nil {
			return err
		}
		return failed
	}
}

//go:build !linux

package lab

import (
	"errors"
	"syscall"
)

func controlCongestion(syscall.RawConn, string) error {
	return errors.New("a congestion control can be chosen on Linux only")
}

func controlFastOpen(syscall.RawConn) error {
	return errors.New("TCP Fast Open is used on Linux only")
}

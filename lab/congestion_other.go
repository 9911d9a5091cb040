//go:build !linux

package lab

import (
	"errors"
	"syscall"
)

// controlCongestion gives sockets a congestion control by its name.
func controlCongestion(name string) func(network, address string, c syscall.RawConn) error {
	if name == "" {
		return nil
	}
	return func(string, string, syscall.RawConn) error {
		return errors.New("a congestion control can be chosen on Linux only")
	}
}

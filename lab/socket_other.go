//go:build !linux

package lab

import (
	"errors"
	"syscall"
)

var errSockets = errors.New("sockets are given a congestion control and TCP Fast Open on Linux only")

func controlCongestion(syscall.RawConn, string) error { return errSockets }
func controlFastOpen(syscall.RawConn) error           { return errSockets }
func controlFastOpenListener(syscall.RawConn) error   { return errSockets }

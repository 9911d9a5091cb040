//go:build !linux

package main

import "syscall"

// Only Linux lets a process choose the congestion control of a socket by name.

func demoCongestion() string { return "" }

func congestionControl(string) func(network, address string, c syscall.RawConn) error { return nil }

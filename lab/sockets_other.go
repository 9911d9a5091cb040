//go:build !linux

package lab

import "net"

func agreedOptions(net.Conn) (string, error) { return "", Supported() }

func furtherSubflows(net.Conn) (int, error) { return 0, Supported() }

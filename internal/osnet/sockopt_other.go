//go:build !linux

package osnet

import (
	"net"
	"syscall"
	"time"
)

const needsLinux = "Linux"

// SetCongestion chooses the congestion control algorithm by name.
func SetCongestion(syscall.RawConn, string) error {
	return &UnsupportedError{Feature: "TCP_CONGESTION", Needs: needsLinux}
}

// Congestion returns the name of the congestion control algorithm.
func Congestion(syscall.RawConn) (string, error) {
	return "", &UnsupportedError{Feature: "TCP_CONGESTION", Needs: needsLinux}
}

// SetUserTimeout bounds how long sent data may stay unacknowledged.
func SetUserTimeout(syscall.RawConn, time.Duration) error {
	return &UnsupportedError{Feature: "TCP_USER_TIMEOUT", Needs: needsLinux}
}

// SetNotSentLowWater makes a socket take no more while n bytes aren't sent yet.
func SetNotSentLowWater(syscall.RawConn, int) error {
	return &UnsupportedError{Feature: "TCP_NOTSENT_LOWAT", Needs: needsLinux}
}

// SetMaxRTO bounds how long the kernel waits before it sends again.
func SetMaxRTO(syscall.RawConn, time.Duration) error {
	return &UnsupportedError{Feature: "TCP_RTO_MAX_MS", Needs: needsLinux}
}

// SetFastOpenConnect makes connecting use TCP Fast Open.
func SetFastOpenConnect(syscall.RawConn) error {
	return &UnsupportedError{Feature: "TCP_FASTOPEN_CONNECT", Needs: needsLinux}
}

// SetFastOpenQueue makes a listener take data in the SYN.
func SetFastOpenQueue(syscall.RawConn, int) error {
	return &UnsupportedError{Feature: "TCP_FASTOPEN", Needs: needsLinux}
}

// IsMPTCP tells whether the connection is Multipath TCP. Package net makes
// such connections on Linux only.
func IsMPTCP(syscall.RawConn) (bool, error) { return false, nil }

// TCPInfo asks the kernel for its measurements.
func TCPInfo(syscall.RawConn) (Info, error) {
	return Info{}, &UnsupportedError{Feature: "TCP_INFO", Needs: needsLinux}
}

// SaveSYN makes a listener keep the headers of each connection's SYN.
func SaveSYN(syscall.RawConn) error {
	return &UnsupportedError{Feature: "TCP_SAVE_SYN", Needs: needsLinux}
}

// SavedSYN returns the headers of the SYN that opened an accepted connection.
func SavedSYN(syscall.RawConn) ([]byte, error) {
	return nil, &UnsupportedError{Feature: "TCP_SAVED_SYN", Needs: needsLinux}
}

// SYNOf tells of the SYN by which a connection was opened.
func SYNOf(syscall.RawConn, net.Addr) (SentSYN, error) {
	return SentSYN{}, &UnsupportedError{Feature: "TCP_INFO", Needs: needsLinux}
}

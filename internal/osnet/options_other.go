//go:build !linux

package osnet

import (
	"syscall"
	"time"
)

// HasOptions tells that the options of a socket can be set on this system.
const HasOptions = false

// UserTimeout returns what SetUserTimeout has set.
func UserTimeout(syscall.RawConn) (time.Duration, error) {
	return 0, &UnsupportedError{Feature: "TCP_USER_TIMEOUT", Needs: needsLinux}
}

// SetKeepAlive makes the kernel probe the peer after so much silence.
func SetKeepAlive(syscall.RawConn, time.Duration) error {
	return &UnsupportedError{Feature: "SO_KEEPALIVE", Needs: needsLinux}
}

// KeepAlive returns after how much silence the kernel probes the peer.
func KeepAlive(syscall.RawConn) (time.Duration, error) {
	return 0, &UnsupportedError{Feature: "SO_KEEPALIVE", Needs: needsLinux}
}

// NotSentLowWater returns what SetNotSentLowWater has set.
func NotSentLowWater(syscall.RawConn) (int, error) {
	return 0, &UnsupportedError{Feature: "TCP_NOTSENT_LOWAT", Needs: needsLinux}
}

// SetMaxPacingRate makes a socket send no faster.
func SetMaxPacingRate(syscall.RawConn, uint64) error {
	return &UnsupportedError{Feature: "SO_MAX_PACING_RATE", Needs: needsLinux}
}

// MaxPacingRate returns it in bytes per second.
func MaxPacingRate(syscall.RawConn) (uint64, error) {
	return 0, &UnsupportedError{Feature: "SO_MAX_PACING_RATE", Needs: needsLinux}
}

// SetWindowClamp bounds the receive window that a socket offers.
func SetWindowClamp(syscall.RawConn, int) error {
	return &UnsupportedError{Feature: "TCP_WINDOW_CLAMP", Needs: needsLinux}
}

// WindowClamp returns the largest receive window that a socket offers.
func WindowClamp(syscall.RawConn) (int, error) {
	return 0, &UnsupportedError{Feature: "TCP_WINDOW_CLAMP", Needs: needsLinux}
}

// SetDSCP sets the DiffServ code point of a socket's packets.
func SetDSCP(syscall.RawConn, int) error {
	return &UnsupportedError{Feature: "IP_TOS", Needs: needsLinux}
}

// DSCP returns the DiffServ code point of a socket's packets.
func DSCP(syscall.RawConn) (int, error) {
	return 0, &UnsupportedError{Feature: "IP_TOS", Needs: needsLinux}
}

// MayChooseCongestion tells whether every process of this system may choose the
// congestion control with that name.
func MayChooseCongestion(string) bool { return false }

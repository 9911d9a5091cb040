// Package osnet is what the kernel knows and does for one TCP connection:
// socket options, TCP_INFO, and reads and writes that never wait; and what it
// tells of the machine's links and addresses.
//
// Socket options take a [syscall.RawConn], which is safe for concurrent use.
// They work on Linux; elsewhere they return an [*UnsupportedError].
package osnet

import (
	"errors"
	"time"
)

// An UnsupportedError says that the system or the socket lacks a feature. It
// matches [errors.ErrUnsupported].
type UnsupportedError struct {
	Feature string // as "TCP_USER_TIMEOUT"
	Needs   string // what has it, as "a plain TCP socket"
	Err     error  // the kernel's answer; nil if it wasn't asked
}

func (e *UnsupportedError) Error() string {
	s := e.Feature + " is not supported here: needs " + e.Needs
	if e.Err != nil {
		s += " (" + e.Err.Error() + ")"
	}
	return s
}

// Unwrap returns [errors.ErrUnsupported] and the kernel's answer.
func (e *UnsupportedError) Unwrap() []error {
	if e.Err == nil {
		return []error{errors.ErrUnsupported}
	}
	return []error{errors.ErrUnsupported, e.Err}
}

// Info is a snapshot of what the kernel measures on a connection. What it
// doesn't know, or not yet, is 0.
type Info struct {
	RTT    time.Duration // smoothed round-trip time
	RTTVar time.Duration // its mean deviation
	MinRTT time.Duration // smallest of the last minutes
	RTO    time.Duration // retransmission timeout

	SendMSS      int   // bytes in a full segment
	CWnd         int   // congestion window in segments
	SendWindow   int   // bytes that the peer takes
	Unacked      int   // segments sent and not acknowledged
	Lost         int   // of these, those thought to be lost
	NotSent      int   // bytes written and not yet sent
	DeliveryRate int64 // bytes per second that reached the peer lately
	AppLimited   bool  // DeliveryRate would be higher if more had been written
	BytesAcked   int64 // bytes acknowledged in all; may count the SYN as one
	Sent         int   // segments with data sent in all
	Retrans      int   // of these, those sent again
	Timeouts     int   // retransmission timeouts in a row, without an answer

	SinceSent     time.Duration // since data was sent
	SinceReceived time.Duration // since data was received
	SinceAck      time.Duration // since an acknowledgement was received

	SYNData bool // data in the SYN was acknowledged, or came in it
}

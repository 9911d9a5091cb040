package tcpls

import (
	"errors"
	"fmt"
	"net"

	"github.com/go-tcpls/tcpls/internal/tls13"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// Conditions, for errors.Is. Operations wrap them in what they know about it.
var (
	// ErrNotTCPLS: the peer speaks TLS but not TCPLS, and the call needs it,
	// or Config.Fallback refuses such peers.
	ErrNotTCPLS = errors.New("tcpls: peer doesn't speak TCPLS")
	// ErrNotTLS: what answers there isn't TLS at all. Errors that match it say
	// what it looks like, as plain HTTP.
	ErrNotTLS = tls13.ErrNotTLS
	// ErrSessionClosed: this end has closed the session. It is net.ErrClosed too.
	ErrSessionClosed error = &closedError{"tcpls: session closed"}
	// ErrStreamClosed: this end has closed the stream, or the half of it that
	// the call needs. It is net.ErrClosed too.
	ErrStreamClosed error = &closedError{"tcpls: stream closed"}
	// ErrListenerClosed: the listener was closed. It is net.ErrClosed too.
	ErrListenerClosed error = &closedError{"tcpls: listener closed"}
	// ErrGoingAway: the peer takes no new streams; open another session.
	ErrGoingAway = errors.New("tcpls: peer is going away and takes no new streams")
	// ErrTruncated: the connection ended without an authenticated close, so
	// that something may be missing (RFC 8446, section 6.1).
	ErrTruncated = errors.New("tcpls: connection ended without a secure close")
	// ErrPathSilent: the peer didn't answer on a path in time.
	ErrPathSilent error = &timeoutError{"tcpls: path is silent"}
	// ErrAddressGone: the local address of a path was removed from this machine,
	// or its link is down.
	ErrAddressGone = errors.New("tcpls: local address is gone")
	// ErrNoToken: the server allows no further path for now.
	ErrNoToken = errors.New("tcpls: the server has given no token for a further path")
	// ErrJoined: the connection given to Server has become a further path of a
	// session that exists, which owns it.
	ErrJoined = errors.New("tcpls: the connection has joined a session")
	// ErrTokenSpent: a client tried to use a token of a session a second time,
	// or after the end of the session.
	ErrTokenSpent = errors.New("tcpls: the token was used before, or its session has ended")
	// ErrJoinRefused: whoever answered didn't accept the session's token, and
	// so isn't its server, or has forgotten it.
	ErrJoinRefused = errors.New("tcpls: the server doesn't know the session")
	// ErrIdleTimeout: nothing was received for the idle timeout.
	ErrIdleTimeout error = &timeoutError{"tcpls: session was idle for too long"}
	// ErrKeepAliveTimeout: nothing came for Config.KeepAlive, nor an answer to
	// the ping that was sent then.
	ErrKeepAliveTimeout error = &timeoutError{"tcpls: peer doesn't answer keepalive pings"}
	// ErrHandshakeTimeout: the handshake took longer than Config.HandshakeTimeout.
	ErrHandshakeTimeout error = &timeoutError{"tcpls: handshake timed out"}
)

type closedError struct{ text string }

func (e *closedError) Error() string   { return e.text }
func (e *closedError) Is(t error) bool { return t == net.ErrClosed }

type timeoutError struct{ text string }

func (e *timeoutError) Error() string   { return e.text }
func (e *timeoutError) Timeout() bool   { return true }
func (e *timeoutError) Temporary() bool { return false }

// A SessionError is the coded end of a session: CloseWithError by either
// application, or a rule of the protocol that was broken.
type SessionError struct {
	// Code is the application's if Application is set, else one of
	// docs/protocol.md, section 7.
	Code uint64
	// Application tells that the code is the application's.
	Application bool
	// Remote tells that the peer closed the session, and so found the fault.
	Remote bool
	// Reason is for people. A remote one is the peer's text, at most 1024 bytes.
	Reason string
}

func (e *SessionError) Error() string {
	who := "closed"
	if e.Remote {
		who = "closed by peer"
	}
	text := fmt.Sprintf("tcpls: session %s with code %d", who, e.Code)
	if !e.Application {
		text = fmt.Sprintf("tcpls: session %s: %v", who, wire.SessionCode(e.Code))
	}
	if e.Reason != "" {
		text += fmt.Sprintf(" (%q)", e.Reason)
	}
	return text
}

// Is reports whether target is a SessionError with the same code, or
// net.ErrClosed.
func (e *SessionError) Is(target error) bool {
	if t, ok := target.(*SessionError); ok {
		return t.Code == e.Code && t.Application == e.Application
	}
	return target == net.ErrClosed
}

// A StreamError is the coded end of one direction of a stream: Reset or
// StopSending by either application.
type StreamError struct {
	// StreamID is the stream's number, as Stream.ID returns it.
	StreamID uint32
	// Code is the application's. The protocol's own are StreamCodeClosed and
	// StreamCodeRefused.
	Code uint64
	// Remote tells that the peer ended it.
	Remote bool
}

// The protocol's own stream codes (docs/protocol.md, section 7).
const (
	// StreamCodeClosed: the peer closed the stream without reading it to its end.
	StreamCodeClosed = uint64(wire.CodeClosed)
	// StreamCodeRefused: the peer never served the stream; it is safe to try again.
	StreamCodeRefused = uint64(wire.CodeRefused)
)

func (e *StreamError) Error() string {
	who := "locally"
	if e.Remote {
		who = "by peer"
	}
	return fmt.Sprintf("tcpls: stream %d ended %s: %v", e.StreamID, who, wire.StreamCode(e.Code))
}

// Is reports whether target is a StreamError with the same code.
func (e *StreamError) Is(target error) bool {
	t, ok := target.(*StreamError)
	return ok && t.Code == e.Code
}

// A PathError is the failure of a path, one TCP connection of a session.
// Unwrap leads to the cause, as syscall.ECONNRESET.
type PathError struct {
	// Path is the path's number; 0 is the one of the session's handshake.
	Path uint32
	// Op is what failed, as "read" or "write".
	Op string
	// Err is the cause.
	Err error
}

func (e *PathError) Error() string { return fmt.Sprintf("tcpls: path %d: %s: %v", e.Path, e.Op, e.Err) }

// Unwrap returns the cause.
func (e *PathError) Unwrap() error { return e.Err }

package tcpls

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/internal/tls13"
	"github.com/go-tcpls/tcpls/internal/tlsconn"
)

// Peers without TCPLS: the session is a shell around one plain TLS connection.
// A server leaves such clients to crypto/tls, a client goes on with its own
// engine, or with crypto/tls if the server has no TLS 1.3.

// A plainConn is a connection of crypto/tls or of our own engine.
type plainConn interface {
	net.Conn
	CloseWrite() error
	NetConn() net.Conn
}

// newPlainSession returns the session around a TLS connection.
func newPlainSession(cfg *Config, conn plainConn, state tls.ConnectionState, why string, client bool) *Session {
	s := &Session{cfg: cfg, client: client, log: cfg.Logger, state: ConnectionState{TLS: state, Fallback: why}}
	s.init()
	s.plain = &Stream{sess: s, plain: conn}
	return s
}

// takePlain hands out the only stream, once.
func (s *Session) takePlain(open bool) (*Stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.over():
		return nil, s.cause()
	case s.plainOut || open != s.client:
		return nil, fmt.Errorf("%w: a plain TLS connection has one stream, opened by the client", ErrNotTCPLS)
	}
	s.plainOut = true
	return s.plain, nil
}

// acceptPlain is AcceptStream: the second call waits for the session's end.
func (s *Session) acceptPlain(ctx context.Context) (*Stream, error) {
	if st, err := s.takePlain(false); err == nil {
		return st, nil
	}
	stop := context.AfterFunc(ctx, s.broadcast)
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	return nil, s.await(ctx, func() bool { return false })
}

// closePlain ends the session by close_notify.
func (s *Session) closePlain() error {
	if !s.endPlain(ErrSessionClosed) {
		return nil
	}
	return s.plain.plain.Close()
}

// abortPlain ends the session without close_notify, which would tell the peer
// that it has everything (RFC 8446, 6.1).
func (s *Session) abortPlain(cause *SessionError) error {
	if !s.endPlain(cause) {
		return nil
	}
	return s.plain.plain.NetConn().Close()
}

// endPlain sets the cause and reports whether the session hadn't one.
func (s *Session) endPlain(cause error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over() {
		return false
	}
	s.life.cause.Store(&cause)
	if s.life.cancel != nil {
		s.life.cancel(cause)
	}
	close(s.life.done)
	s.cond.Broadcast()
	return true
}

func (s *Session) shutdownPlain(ctx context.Context) error {
	select {
	case <-s.life.done:
		return nil
	case <-ctx.Done():
		_ = s.abortPlain(&SessionError{Application: true, Reason: "shut down"}) // the context's error matters more
		return context.Cause(ctx)
	}
}

// servePlain leaves a client to crypto/tls; read holds what it sent so far.
func servePlain(ctx context.Context, conn net.Conn, cfg *Config, read []byte) (*Session, error) {
	if cfg.Fallback == FallbackRefuse {
		refusePlain(conn)
		return nil, fmt.Errorf("%w: its ClientHello doesn't offer it", ErrNotTCPLS)
	}
	if err := conn.SetDeadline(time.Time{}); err != nil { // the context alone stands over the rest
		return nil, err
	}
	tc := tls.Server(&prefixConn{Conn: conn, prefix: read}, cfg.TLS)
	if err := tc.HandshakeContext(ctx); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	return newPlainSession(cfg, tc, tc.ConnectionState(), "client doesn't offer TCPLS", false), nil
}

// refusePlain answers a ClientHello by the alert handshake_failure.
func refusePlain(conn net.Conn) {
	alert := record.AppendPlain(nil, record.Alert, 0x0303, []byte{levelFatal, byte(tls13.AlertHandshakeFailure)})
	_ = conn.SetDeadline(time.Now().Add(lingerTime))
	if _, err := conn.Write(alert); err == nil {
		linger(conn)
	}
}

// A prefixConn is a transport for crypto/tls of which some bytes were already
// read. crypto/tls takes a transport's end between two records for the end of
// the data; here only close_notify is, so the end is ErrTruncated.
type prefixConn struct {
	net.Conn
	prefix []byte
}

func (c *prefixConn) Read(p []byte) (int, error) {
	if len(c.prefix) > 0 {
		n := copy(p, c.prefix)
		c.prefix = c.prefix[n:]
		return n, nil
	}
	n, err := c.Conn.Read(p)
	if err == io.EOF {
		err = ErrTruncated
	}
	return n, err
}

// dialLegacy opens a session to a server that has no TLS 1.3 over conn, a new
// connection to it.
func dialLegacy(ctx context.Context, conn net.Conn, cfg *Config) (*Session, error) {
	ctx, cancel := context.WithTimeout(ctx, cfg.HandshakeTimeout)
	defer cancel()
	tc := tls.Client(&prefixConn{Conn: conn}, cfg.TLS)
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	return newPlainSession(cfg, tc, tc.ConnectionState(), "server doesn't speak TLS 1.3", true), nil
}

// An engineConn is plain TLS by our own engine, with the errors of this
// package, for servers without TCPLS.
type engineConn struct{ *tlsconn.Conn }

func newEngineConn(h *handshake) engineConn {
	return engineConn{tlsconn.New(h.conn, h.engine, nil, h.early)}
}

func (c engineConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("%w: %w", ErrTruncated, err)
	}
	return n, err
}

func (c engineConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	return n, closedStream(err)
}

func (c engineConn) CloseWrite() error { return closedStream(c.Conn.CloseWrite()) }

func closedStream(err error) error {
	if errors.Is(err, tlsconn.ErrWriteClosed) {
		return ErrStreamClosed
	}
	return err
}

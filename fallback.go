package tcpls

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/internal/tls13"
)

// Peers without TCPLS: the session is a shell around one plain TLS connection.
// A server leaves such clients to crypto/tls, a client goes on with its own
// engine, or with crypto/tls if the server has no TLS 1.3.

// newPlainSession returns the session around a TLS connection.
func newPlainSession(cfg *Config, conn net.Conn, state tls.ConnectionState, why string, client bool) *Session {
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
	switch c := s.plain.plain.(type) {
	case *tls.Conn:
		return c.NetConn().Close()
	case *engineConn:
		return c.Conn.Close()
	}
	return s.plain.plain.Close()
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

// An engineConn is a net.Conn over our own TLS engine, for servers without
// TCPLS.
type engineConn struct {
	net.Conn

	inMu sync.Mutex // one Read at a time
	raw  []byte     // received, not yet opened
	data []byte     // opened, not yet read
	rerr error

	outMu  sync.Mutex // one writer to the socket at a time, in the order of sealing
	sealed []byte
	werr   error

	mu     sync.Mutex // the engine, never held during I/O
	engine *tls13.Conn
}

func newEngineConn(h *handshake) *engineConn {
	return &engineConn{Conn: h.conn, engine: h.engine, raw: h.early}
}

// Read is net.Conn's. The end of the connection without close_notify is
// ErrTruncated.
func (c *engineConn) Read(p []byte) (int, error) {
	c.inMu.Lock()
	defer c.inMu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	for len(c.data) == 0 {
		if c.rerr != nil {
			return 0, c.rerr
		}
		if err := c.open(); err != nil {
			c.rerr = err
			continue
		}
		if len(c.data) > 0 {
			break
		}
		if err := c.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, c.data)
	c.data = c.data[n:]
	return n, nil
}

// open takes the complete records out of raw.
func (c *engineConn) open() error {
	c.mu.Lock()
	data, n, err := c.engine.Read(c.data[:0], c.raw)
	c.mu.Unlock()
	c.data = data
	c.raw = append(c.raw[:0], c.raw[n:]...)
	// An answer that is due goes out with the next Write if one is running: a
	// reader never waits for a writer.
	if c.outMu.TryLock() {
		_ = c.flush(nil) // the error is kept for Write
		c.outMu.Unlock()
	}
	if err != nil && err != io.EOF {
		c.end()
	}
	return err
}

// end closes our side of a connection whose engine has failed, behind the alert
// that is due (RFC 8446, 6.2). A writer is in the way for lingerTime at most.
func (c *engineConn) end() {
	_ = c.Conn.SetWriteDeadline(time.Now().Add(lingerTime))
	c.outMu.Lock()
	defer c.outMu.Unlock()
	_ = c.flush(nil) // the error that ends the connection is the engine's
	if half, ok := c.Conn.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
		_ = c.Conn.Close()
	}
}

// fill reads more from the connection. Timeouts leave everything as it was.
func (c *engineConn) fill() error {
	if cap(c.raw)-len(c.raw) < maxRecord {
		c.raw = append(make([]byte, 0, len(c.raw)+4*maxRecord), c.raw...)
	}
	n, err := c.Conn.Read(c.raw[len(c.raw):cap(c.raw)])
	c.raw = c.raw[:len(c.raw)+n]
	switch {
	case n > 0:
		return nil
	case err == io.EOF:
		c.mu.Lock()
		end := c.engine.End()
		c.mu.Unlock()
		if end == nil {
			end = io.EOF
		} else if errors.Is(end, io.ErrUnexpectedEOF) {
			end = fmt.Errorf("%w: %w", ErrTruncated, end)
		}
		c.rerr = end
		return end
	}
	return err
}

// Write is net.Conn's. As with crypto/tls, a Write that fails, by its deadline
// too, ends the sending side for good.
func (c *engineConn) Write(p []byte) (n int, err error) {
	c.outMu.Lock()
	defer c.outMu.Unlock()
	for first := true; first || len(p) > 0; first = false {
		piece := p[:min(len(p), maxBatch)]
		if err := c.flush(piece); err != nil {
			return n, err
		}
		n += len(piece)
		p = p[len(piece):]
	}
	return n, nil
}

// flush writes what the engine has to say and data. The caller holds outMu.
func (c *engineConn) flush(data []byte) error {
	if c.werr != nil {
		return c.werr
	}
	c.mu.Lock()
	out := append(c.sealed[:0], c.engine.Output()...)
	var err error
	if len(data) > 0 {
		out, err = c.engine.Write(out, data)
	}
	c.mu.Unlock()
	c.sealed = out
	if len(out) > 0 { // an engine that has just failed may have an alert to send
		if _, werr := c.Conn.Write(out); err == nil {
			err = werr
		}
	}
	if cap(c.sealed) > 4*maxRecord {
		c.sealed = nil
	}
	c.werr = err
	return err
}

// CloseWrite sends close_notify.
func (c *engineConn) CloseWrite() error {
	c.outMu.Lock()
	defer c.outMu.Unlock()
	c.mu.Lock()
	c.engine.CloseNotify()
	c.mu.Unlock()
	err := c.flush(nil)
	if err == nil {
		c.werr = ErrStreamClosed
	}
	return err
}

// Close sends close_notify, if a writer doesn't hold the connection, and
// closes it.
func (c *engineConn) Close() error {
	_ = c.Conn.SetWriteDeadline(time.Now().Add(5 * time.Second))
	if err := c.CloseWrite(); err != nil && !errors.Is(err, ErrStreamClosed) && !errors.Is(err, os.ErrDeadlineExceeded) {
		_ = c.Conn.Close() // the first error tells more
		return err
	}
	return c.Conn.Close()
}

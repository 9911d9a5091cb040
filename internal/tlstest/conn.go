// Package tlstest runs the TLS engine bare over TCP, for outside test suites:
// plain TLS 1.3 by internal/tls13 alone, without a session and without
// crypto/tls. The programs internal/tlstest/server and internal/tlstest/client
// are its command lines.
package tlstest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/go-tcpls/tcpls/internal/tls13"
)

const (
	// readSize is how much is read from the transport at once, more than a
	// record has at most.
	readSize = 64 << 10
	// lingerTime and lingerBytes bound what is read from a peer after our last
	// word, so that unread bytes don't turn the close into a reset, which could
	// overtake an alert.
	lingerTime  = 2 * time.Second
	lingerBytes = 1 << 20
)

// A Conn is a net.Conn over one engine. One goroutine may read while others
// write. Read returns io.EOF only after the peer's close_notify; without it,
// the end of the transport is io.ErrUnexpectedEOF.
type Conn struct {
	net.Conn // the transport

	inMu    sync.Mutex // one Read at a time
	raw     []byte     // received, not opened
	data    []byte     // opened, not read
	early   int        // bytes of early data sent, or received
	readErr error

	outMu    sync.Mutex // one writer to the transport, in the order of sealing
	out      []byte
	writeErr error

	mu     sync.Mutex // the engine; not held during I/O
	engine *tls13.Conn
}

// Client returns the client's end over a transport. Handshake must come next.
func Client(transport net.Conn, cfg *tls13.Config) (*Conn, error) {
	return newConn(transport, cfg, tls13.NewClient)
}

// Server returns the server's end over a transport. Handshake must come next.
func Server(transport net.Conn, cfg *tls13.Config) (*Conn, error) {
	return newConn(transport, cfg, tls13.NewServer)
}

func newConn(transport net.Conn, cfg *tls13.Config, end func(*tls13.Config) (*tls13.Conn, error)) (*Conn, error) {
	own := *cfg
	own.NetConn = transport
	engine, err := end(&own)
	if err != nil {
		return nil, err
	}
	return &Conn{Conn: transport, engine: engine}, nil
}

// Engine returns the engine, whose facts may be asked between calls of the
// Conn's own methods.
func (c *Conn) Engine() *tls13.Conn { return c.engine }

// WriteEarly sends data with the ClientHello, if the server's ticket allows as
// much; otherwise the error is one of the engine's. Handshake must come next,
// after which the engine's EarlyDataAccepted tells whether the server took it.
func (c *Conn) WriteEarly(data []byte) error {
	c.mu.Lock()
	out, err := c.engine.WriteEarly(nil, data)
	c.mu.Unlock()
	if err != nil {
		return err
	}
	c.early = len(data)
	_, err = c.Conn.Write(out)
	return err
}

// Handshake runs the whole handshake under one deadline, however slowly the
// peer spreads its bytes. After an error the peer has been told by an alert
// where one is due, and the transport is to be closed.
func (c *Conn) Handshake(timeout time.Duration) error {
	c.inMu.Lock()
	defer c.inMu.Unlock()
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	for {
		err := c.feed()
		if werr := c.flush(nil); err == nil {
			err = werr
		}
		switch {
		case err != nil:
			c.linger()
			return err
		case c.complete():
			return c.SetDeadline(time.Time{})
		}
		if err := c.fill(); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				err = fmt.Errorf("handshake took longer than %v: %w", timeout, err)
			}
			return err
		}
	}
}

func (c *Conn) complete() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.engine.HandshakeComplete()
}

// feed gives the handshake what has arrived. A server's early data, of which
// Config.MaxEarlyData is the most, is kept for Read.
func (c *Conn) feed() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		n, err := c.engine.Feed(c.raw)
		c.used(n)
		if err != nil || !c.engine.EarlyData() {
			return err
		}
		c.data, n, err = c.engine.ReadEarly(c.data, c.raw)
		c.used(n)
		c.early = len(c.data)
		if err != nil || c.engine.EarlyData() {
			return err
		}
	}
}

func (c *Conn) used(n int) { c.raw = append(c.raw[:0], c.raw[n:]...) }

// fill reads once from the transport.
func (c *Conn) fill() error {
	have := len(c.raw)
	c.raw = append(c.raw, make([]byte, readSize)...)
	n, err := c.Conn.Read(c.raw[have:])
	c.raw = c.raw[:have+n]
	switch {
	case n > 0:
		return nil
	case err == io.EOF:
		c.mu.Lock()
		defer c.mu.Unlock()
		if end := c.engine.End(); end != nil {
			return end
		}
	}
	return err
}

// Read reads data.
func (c *Conn) Read(p []byte) (int, error) {
	c.inMu.Lock()
	defer c.inMu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	for len(c.data) == 0 {
		if c.readErr != nil {
			return 0, c.readErr
		}
		if c.readErr = c.open(); c.readErr != nil || len(c.data) > 0 {
			continue
		}
		if err := c.fill(); errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, err
		} else if err != nil {
			c.readErr = err
		}
	}
	n := copy(p, c.data)
	c.data = c.data[n:]
	return n, nil
}

// open takes the complete records that have arrived. What the engine wants to
// answer goes out at once, or after the Write that is running, with the next
// one or Close: a reader never waits for a writer.
func (c *Conn) open() error {
	c.mu.Lock()
	data, n, err := c.engine.Read(c.data[:0], c.raw)
	c.mu.Unlock()
	c.data = data
	c.used(n)
	if c.outMu.TryLock() {
		_ = c.flushLocked(nil) // kept for Write
		c.outMu.Unlock()
	}
	return err
}

// Write sends data.
func (c *Conn) Write(p []byte) (int, error) {
	if err := c.flush(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (c *Conn) flush(data []byte) error {
	c.outMu.Lock()
	defer c.outMu.Unlock()
	return c.flushLocked(data)
}

// flushLocked sends what the engine has to say, then data.
func (c *Conn) flushLocked(data []byte) error {
	if c.writeErr != nil {
		return c.writeErr
	}
	c.mu.Lock()
	out := append(c.out[:0], c.engine.Output()...)
	var err error
	if len(data) > 0 {
		out, err = c.engine.Write(out, data)
	}
	c.mu.Unlock()
	c.out = out
	if len(out) > 0 {
		if _, werr := c.Conn.Write(out); err == nil {
			err = werr
		}
	}
	c.writeErr = err
	return err
}

// UpdateKeys moves our sending to new keys and, if asked, the peer's too.
func (c *Conn) UpdateKeys(requestPeer bool) error {
	c.mu.Lock()
	err := c.engine.UpdateKeys(requestPeer)
	c.mu.Unlock()
	if err != nil {
		return err
	}
	return c.flush(nil)
}

// CloseWrite sends close_notify. The peer may go on.
func (c *Conn) CloseWrite() error {
	c.mu.Lock()
	c.engine.CloseNotify()
	c.mu.Unlock()
	return c.flush(nil)
}

// Close sends close_notify, if nothing else has ended the connection, lets the
// peer read it, and closes the transport.
func (c *Conn) Close() error {
	_ = c.SetDeadline(time.Now().Add(lingerTime)) // frees a Write that hangs
	if err := c.CloseWrite(); err == nil {
		c.linger()
	}
	return c.Conn.Close()
}

// linger ends our side of the transport and reads what the peer still sends.
func (c *Conn) linger() {
	t, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok || t.CloseWrite() != nil {
		return
	}
	_ = c.SetDeadline(time.Now().Add(lingerTime))
	_, _ = io.CopyN(io.Discard, c.Conn, lingerBytes) // whatever ends it, the close comes next
}

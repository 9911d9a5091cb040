// Package tlsconn is plain TLS 1.3 over a net.Conn, by the engine of
// internal/tls13, from the end of the handshake on.
package tlsconn

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/internal/tls13"
)

const (
	// recordLen is the longest record there is.
	recordLen = record.HeaderLen + record.MaxCiphertext
	// readLen is how much is read from the transport at once, if it is there.
	readLen = 4 * recordLen
	// batchLen is how much of a Write is sealed at once.
	batchLen = record.BatchRecords * record.MaxPlaintext

	// endTime is how long a hanging writer holds up our last alert.
	endTime = 500 * time.Millisecond
	// closeTime is how long one holds up Close.
	closeTime = 5 * time.Second
)

// ErrWriteClosed is the error of Write after CloseWrite, and of the next
// CloseWrite.
var ErrWriteClosed = errors.New("tlsconn: close_notify has been sent")

// A Conn is a net.Conn over an engine and a transport. Its methods may be
// called from several goroutines. Deadlines are the transport's.
type Conn struct {
	net.Conn // the transport

	inMu    sync.Mutex // one Read at a time
	raw     []byte     // received, not yet opened
	data    []byte     // opened, not yet read
	readErr error

	outMu    sync.Mutex // one writer to the transport at a time, in the order of sealing
	sealed   []byte
	writeErr error

	mu     sync.Mutex // the engine; never held during I/O
	engine *tls13.Conn
}

// New returns a Conn for an engine whose handshake over the transport is
// complete. data is what the engine has opened already, and raw what was
// received behind that. Both belong to the Conn.
func New(transport net.Conn, engine *tls13.Conn, data, raw []byte) *Conn {
	return &Conn{Conn: transport, engine: engine, data: data, raw: raw}
}

// NetConn returns the transport.
func (c *Conn) NetConn() net.Conn { return c.Conn }

// Read is net.Conn's: io.EOF comes only after the peer's close_notify. The end
// of the transport without it is an error of the engine that wraps
// io.ErrUnexpectedEOF. After an error of the engine, the alert that is due has
// been sent, and our side of the transport is closed (RFC 8446, 6.2).
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
		if err := c.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, c.data)
	c.data = c.data[n:]
	return n, nil
}

// open takes the complete records that have arrived.
func (c *Conn) open() error {
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
// that is due. A writer is in the way for endTime at most.
func (c *Conn) end() {
	_ = c.Conn.SetWriteDeadline(time.Now().Add(endTime))
	c.outMu.Lock()
	defer c.outMu.Unlock()
	_ = c.flush(nil) // the error that ends the connection is the engine's
	if half, ok := c.Conn.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
		_ = c.Conn.Close()
	}
}

// fill reads more from the transport. Timeouts leave everything as it was.
func (c *Conn) fill() error {
	if cap(c.raw)-len(c.raw) < recordLen {
		c.raw = append(make([]byte, 0, len(c.raw)+readLen), c.raw...)
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
		if end != nil {
			err = end
		}
		c.readErr = err
	}
	return err
}

// Write is net.Conn's. As with crypto/tls, a Write that fails, by its deadline
// too, ends the sending side for good.
func (c *Conn) Write(p []byte) (n int, err error) {
	c.outMu.Lock()
	defer c.outMu.Unlock()
	for first := true; first || len(p) > 0; first = false {
		piece := p[:min(len(p), batchLen)]
		if err := c.flush(piece); err != nil {
			return n, err
		}
		n += len(piece)
		p = p[len(piece):]
	}
	return n, nil
}

// flush writes what the engine has to say, then data. The caller holds outMu.
func (c *Conn) flush(data []byte) error {
	if c.writeErr != nil {
		return c.writeErr
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
	if cap(c.sealed) > readLen {
		c.sealed = nil
	}
	c.writeErr = err
	return err
}

// UpdateKeys moves our sending to new keys and, if asked, the peer's too.
func (c *Conn) UpdateKeys(requestPeer bool) error {
	c.outMu.Lock()
	defer c.outMu.Unlock()
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
	c.outMu.Lock()
	defer c.outMu.Unlock()
	c.mu.Lock()
	c.engine.CloseNotify()
	c.mu.Unlock()
	err := c.flush(nil)
	if err == nil {
		c.writeErr = ErrWriteClosed
	}
	return err
}

// Close sends close_notify, if no writer hangs, and closes the transport.
func (c *Conn) Close() error {
	_ = c.Conn.SetWriteDeadline(time.Now().Add(closeTime))
	if err := c.CloseWrite(); err != nil && err != ErrWriteClosed && !errors.Is(err, os.ErrDeadlineExceeded) {
		_ = c.Conn.Close() // the first error tells more
		return err
	}
	return c.Conn.Close()
}

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
	"time"

	"github.com/go-tcpls/tcpls/internal/tls13"
	"github.com/go-tcpls/tcpls/internal/tlsconn"
)

const (
	// readSize is how much is read from the transport at once during the
	// handshake, more than a record has at most.
	readSize = 64 << 10
	// lingerTime and lingerBytes bound what is read from a peer after our last
	// word, so that unread bytes don't turn the close into a reset, which could
	// overtake an alert.
	lingerTime  = 2 * time.Second
	lingerBytes = 1 << 20
)

// A Conn is a net.Conn over one engine. Handshake must come first, and before
// it only WriteEarly.
type Conn struct {
	*tlsconn.Conn // nil before the end of the handshake

	transport net.Conn
	engine    *tls13.Conn
	early     int // bytes of early data sent, or received
}

// Client returns the client's end over a transport.
func Client(transport net.Conn, cfg *tls13.Config) (*Conn, error) {
	return newConn(transport, cfg, tls13.NewClient)
}

// Server returns the server's end over a transport.
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
	return &Conn{transport: transport, engine: engine}, nil
}

// Engine returns the engine, whose facts may be asked between calls of the
// Conn's own methods.
func (c *Conn) Engine() *tls13.Conn { return c.engine }

// WriteEarly sends data with the ClientHello, if the server's ticket allows as
// much; otherwise the error is one of the engine's. After the handshake, the
// engine's EarlyDataAccepted tells whether the server took it.
func (c *Conn) WriteEarly(data []byte) error {
	out, err := c.engine.WriteEarly(nil, data)
	if err != nil {
		return err
	}
	c.early = len(data)
	_, err = c.transport.Write(out)
	return err
}

// Handshake runs the whole handshake under one deadline, however slowly the
// peer spreads its bytes. After an error the peer has been told by an alert
// where one is due, and the transport is to be closed. A server's early data,
// of which Config.MaxEarlyData is the most, is kept for Read.
func (c *Conn) Handshake(timeout time.Duration) error {
	if err := c.transport.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	var raw, data []byte
	for {
		var n int
		var err error
		data, n, err = c.feed(data, raw)
		if out := c.engine.Output(); len(out) > 0 {
			if _, werr := c.transport.Write(out); err == nil {
				err = werr
			}
		}
		if err != nil {
			c.linger()
			return err
		}
		raw = append(raw[:0], raw[n:]...)
		if c.engine.HandshakeComplete() {
			c.early = max(c.early, len(data))
			c.Conn = tlsconn.New(c.transport, c.engine, data, raw)
			return c.transport.SetDeadline(time.Time{})
		}
		if raw, err = c.fill(raw); errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("handshake took longer than %v: %w", timeout, err)
		} else if err != nil {
			return err
		}
	}
}

// feed gives the handshake what has arrived, and appends early data to data.
func (c *Conn) feed(data, raw []byte) (_ []byte, n int, err error) {
	for {
		m, err := c.engine.Feed(raw[n:])
		n += m
		if err != nil || !c.engine.EarlyData() {
			return data, n, err
		}
		data, m, err = c.engine.ReadEarly(data, raw[n:])
		n += m
		if err != nil || c.engine.EarlyData() {
			return data, n, err
		}
	}
}

// fill reads once from the transport.
func (c *Conn) fill(raw []byte) ([]byte, error) {
	have := len(raw)
	raw = append(raw, make([]byte, readSize)...)
	n, err := c.transport.Read(raw[have:])
	raw = raw[:have+n]
	switch {
	case n > 0:
		return raw, nil
	case err == io.EOF:
		if end := c.engine.End(); end != nil {
			return raw, end
		}
	}
	return raw, err
}

// Close sends close_notify, if nothing else has ended the connection, lets the
// peer read it, and closes the transport.
func (c *Conn) Close() error {
	_ = c.SetDeadline(time.Now().Add(lingerTime)) // frees a Write that hangs
	if err := c.CloseWrite(); err == nil || errors.Is(err, tlsconn.ErrWriteClosed) {
		c.linger()
	}
	return c.transport.Close()
}

// linger ends our side of the transport and reads what the peer still sends.
func (c *Conn) linger() {
	t, ok := c.transport.(interface{ CloseWrite() error })
	if !ok || t.CloseWrite() != nil {
		return
	}
	_ = c.transport.SetDeadline(time.Now().Add(lingerTime))
	_, _ = io.CopyN(io.Discard, c.transport, lingerBytes) // whatever ends it, the close comes next
}

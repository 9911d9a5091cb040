package tls13

import (
	"crypto/tls"
	"slices"

	"github.com/go-tcpls/tcpls/internal/record"
)

// queue adds a handshake message to the flight, whose messages share records.
func (c *Conn) queue(raw []byte) { c.flight = append(c.flight, raw...) }

// flush makes records of the flight under the keys of the moment.
func (c *Conn) flush() error {
	for len(c.flight) > 0 {
		n := min(len(c.flight), record.MaxPlaintext)
		if c.write != nil {
			n = min(n, c.sendLimit)
		}
		if err := c.appendRecord(record.Handshake, c.flight[:n]); err != nil {
			return err
		}
		c.flight = c.flight[n:]
	}
	c.flight = nil
	return nil
}

// appendRecord adds a record to the output. The very first may say TLS 1.0,
// which old servers like better (RFC 8446, section 5.1).
func (c *Conn) appendRecord(t record.Type, content []byte) (err error) {
	if c.ccsDue {
		c.ccsDue = false
		c.appendChangeCipherSpec()
	}
	if c.write == nil {
		version := uint16(tls.VersionTLS12)
		if c.isClient && !c.input.started {
			version = tls.VersionTLS10
		}
		c.out = record.AppendPlain(c.out, t, version, content)
		return nil
	}
	c.out, err = c.seal(c.out, t, content)
	return err
}

func (c *Conn) appendChangeCipherSpec() {
	c.out = record.AppendPlain(c.out, record.ChangeCipherSpec, tls.VersionTLS12, []byte{1})
}

// seal appends a protected record to dst.
func (c *Conn) seal(dst []byte, t record.Type, content []byte) ([]byte, error) {
	n := len(dst)
	dst = slices.Grow(dst, len(content)+record.Overhead)
	rec := append(dst[n:n+record.HeaderLen], content...)
	rec, err := c.write.Seal(rec, t)
	if err != nil {
		return dst, recordError(err)
	}
	return dst[:n+len(rec)], nil
}

// appendAlert adds an alert to the output, protected if records are. It
// reports whether that was possible.
func (c *Conn) appendAlert(a Alert) bool {
	level := byte(levelFatal)
	if a == AlertCloseNotify || a == AlertUserCanceled {
		level = levelWarning
	}
	return c.appendRecord(record.Alert, []byte{level, byte(a)}) == nil
}

// writeWith moves writing to the keys of a traffic secret, after what the old
// ones still have to protect.
func (c *Conn) writeWith(secret []byte) error {
	if err := c.flush(); err != nil {
		return err
	}
	keys, err := c.suite.Keys(secret)
	if err != nil {
		return err
	}
	c.write = record.NewContext(keys, 0)
	return nil
}

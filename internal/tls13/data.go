package tls13

import (
	"errors"
	"io"
	"slices"

	"github.com/go-tcpls/tcpls/internal/record"
)

// dataState is what the plain data phase keeps.
type dataState struct {
	closed    bool // the peer's close_notify came
	closeSent bool // ours went
	updateDue bool // the peer asked for new keys of ours
	sent      int  // bytes of data, up to where records have their full size
}

var (
	errNotComplete = errors.New("tls13: the handshake is not complete")
	errTaken       = errors.New("tls13: the keys were taken")
	errWriteClosed = errors.New("tls13: write after close_notify")
)

// usable tells why the Conn's own data phase can't be used, if so.
func (c *Conn) usable() error {
	switch {
	case c.err != nil:
		return c.err
	case !c.complete:
		return errNotComplete
	case c.taken || c.sendTaken:
		return errTaken
	}
	return nil
}

// Read opens the complete records of p and appends their data to dst, which
// must not overlap p. n is how many bytes of p were used; the caller brings
// the rest again with more. Post-handshake messages are dealt with; answers
// to them are in Output.
//
// The error is io.EOF after the peer's close_notify, an *AlertError for
// another alert of the peer, or an *Error of our own, whose alert is in
// Output. Data opened before it is returned with it.
func (c *Conn) Read(dst, p []byte) (data []byte, n int, err error) {
	if err := c.usable(); err != nil {
		return dst, 0, err
	}
	if err := c.sendTickets(); err != nil {
		return dst, 0, c.abort(err)
	}
	for !c.data.closed {
		rec, err := c.nextRecord(p[n:])
		if err != nil {
			return dst, n, c.abort(err)
		}
		if rec == nil {
			return dst, n, nil
		}
		n += len(rec)
		if dst, err = c.dataRecord(dst, rec); err != nil {
			return dst, n, c.abort(err)
		}
	}
	return dst, len(p), io.EOF // what follows a close_notify is ignored
}

// dataRecord takes one record after the handshake.
func (c *Conn) dataRecord(dst, rec []byte) ([]byte, error) {
	if t := record.Type(rec[0]); t != record.ApplicationData {
		return dst, broken(AlertUnexpectedMessage, "peer sends a record of type %d in the clear", t)
	}
	dst = slices.Grow(dst, len(rec))
	typ, content, err := c.open(dst[len(dst):], rec)
	if err != nil {
		return dst, recordError(err)
	}
	switch typ {
	case record.ApplicationData:
		if len(c.hand) > 0 {
			return dst, errInterleaved
		}
		if len(content) == 0 {
			return dst, c.countIdle()
		}
		c.idle, c.tickets.received = 0, 0
		return dst[:len(dst)+len(content)], nil
	case record.Handshake:
		return dst, c.postHandshake(content)
	case record.Alert:
		err := c.alert(content, false)
		if end, ok := errors.AsType[*AlertError](err); ok && end.Alert == AlertCloseNotify {
			c.data.closed = true
			return dst, nil
		}
		return dst, err
	}
	return dst, broken(AlertUnexpectedMessage, "peer sends a protected record of type %d", typ)
}

// Write appends to dst what sends data: first anything that waits in Output,
// then data in records. A server that accepted early data may write before the
// handshake is complete, to a client that only its PSK authenticates. Keys are updated before they have protected as much
// as they may (RFC 8446, section 5.5).
func (c *Conn) Write(dst, data []byte) ([]byte, error) {
	if err := c.usable(); err != nil && !c.writesEarly() {
		return dst, err
	}
	if c.data.closeSent {
		return dst, errWriteClosed
	}
	if c.complete {
		if err := c.sendTickets(); err != nil {
			return dst, c.abort(err)
		}
	}
	dst = append(dst, c.Output()...)
	for len(data) > 0 && c.err == nil {
		if c.write.Keys().Sealed() >= c.suite.MaxRecords-keyMargin {
			if err := c.updateKeys(false); err != nil {
				return dst, c.abort(err)
			}
			dst = append(dst, c.Output()...)
		}
		n := min(len(data), c.recordSize())
		var err error
		if dst, err = c.seal(dst, record.ApplicationData, data[:n]); err != nil {
			return dst, c.abort(err)
		}
		c.data.sent += n
		data = data[n:]
	}
	return dst, c.err
}

const (
	// keyMargin leaves room below a key's limit for KeyUpdate and alerts.
	keyMargin = 64
	// The first slowStart bytes of a connection go in records that grow by
	// a packet's worth each, so that they can be opened as packets arrive.
	slowStart  = 128 << 10
	packetSize = 1208
)

// recordSize is how much data goes into the next record.
func (c *Conn) recordSize() int {
	if c.tls.DynamicRecordSizingDisabled || c.data.sent >= slowStart {
		return c.sendLimit
	}
	packets := 1 + int(min(c.write.Seq(), 16))
	return min(packets*packetSize-record.Overhead, c.sendLimit)
}

// CloseNotify says, in Output, that this end sends no more. The peer may go
// on. During the handshake it ends the connection.
func (c *Conn) CloseNotify() {
	switch {
	case c.err != nil || c.taken || c.data.closeSent:
	case !c.complete:
		c.abort(&Error{Alert: AlertCloseNotify, text: "closed during the handshake"})
	case c.sendTaken: // the keys' user says so
	default:
		c.data.closeSent = true
		if !c.appendAlert(AlertCloseNotify) {
			c.abort(recordError(record.ErrKeyLimit))
		}
	}
}

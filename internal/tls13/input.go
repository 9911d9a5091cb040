package tls13

import (
	"bytes"
	"slices"

	"github.com/go-tcpls/tcpls/internal/record"
)

// Limits on what a peer may send without getting anywhere.
const (
	// maxHandshake is the most bytes of records, headers and padding
	// included, that a handshake may take.
	maxHandshake = 1 << 20
	// maxIdle is how many records or messages in a row may carry neither
	// handshake nor data: empty ones, dropped ChangeCipherSpecs, KeyUpdates.
	maxIdle = 32
	// maxCancels is how many user_canceled alerts are put up with.
	maxCancels = 4
	// maxEarlyData is how many bytes are skipped of early data that was not
	// accepted, unless Config.MaxEarlyData or what its PSK allows is more.
	maxEarlyData = 16 << 10
)

// input is what the framing of the handshake needs to know.
type input struct {
	budget    int  // bytes of records still allowed
	started   bool // a record has come
	hello     bool // the peer's first hello has come: ChangeCipherSpec may
	skipping  bool // early data may come, and none of it is accepted
	earlySkip int  // bytes of it that may still be skipped
}

// Feed gives the handshake what the transport received. It consumes complete
// records of p and returns how many bytes that were; an incomplete record at
// the end is not consumed, and the caller brings it again with more, at most
// 5 + 16384 + 256 bytes. It stops after the record that completes the
// handshake, so that whoever takes the keys opens what follows, and before
// early data that was accepted.
func (c *Conn) Feed(p []byte) (n int, err error) {
	if c.err != nil {
		return 0, c.err
	}
	for !c.complete {
		rec, err := c.nextRecord(p[n:])
		if err != nil {
			return n, c.abort(err)
		}
		if rec == nil || c.EarlyData() && record.Type(rec[0]) == record.ApplicationData {
			break
		}
		n += len(rec)
		if c.input.budget -= len(rec); c.input.budget < 0 {
			return n, c.abort(broken(AlertHandshakeFailure, "peer's handshake has more than %d bytes", maxHandshake))
		}
		if err := c.handshakeRecord(rec); err != nil {
			return n, c.abort(err)
		}
	}
	if err := c.flush(); err != nil {
		return n, c.abort(err)
	}
	return n, nil
}

// nextRecord cuts the first record off p, or returns nil if it isn't all
// there. A header that can't be good is refused without waiting for the body.
func (c *Conn) nextRecord(p []byte) ([]byte, error) {
	if len(p) < record.HeaderLen {
		return nil, nil
	}
	h := record.ParseHeader(p)
	if !c.complete && !c.input.started {
		if err := foreignBytes(p); err != nil {
			return nil, err
		}
	}
	limit := record.MaxPlaintext
	switch h.Type {
	case record.ApplicationData:
		limit = record.MaxCiphertext
	case record.ChangeCipherSpec, record.Alert, record.Handshake:
	default:
		return nil, broken(AlertUnexpectedMessage, "peer sends a record of unknown type %d", h.Type)
	}
	if h.Len > limit {
		return nil, broken(AlertRecordOverflow, "peer sends a record of %d bytes", h.Len)
	}
	if len(p) < record.HeaderLen+h.Len {
		return nil, nil
	}
	c.input.started = true
	return p[: record.HeaderLen+h.Len : record.HeaderLen+h.Len], nil
}

// handshakeRecord takes one record during the handshake.
func (c *Conn) handshakeRecord(rec []byte) error {
	typ, content := record.Type(rec[0]), rec[record.HeaderLen:]
	switch typ {
	case record.ChangeCipherSpec:
		return c.changeCipherSpec(content)
	case record.Alert:
		return c.alert(content, c.read != nil)
	case record.Handshake:
		if c.read != nil {
			return broken(AlertUnexpectedMessage, "peer sends a handshake message in the clear")
		}
		return c.addHandshake(content)
	}
	if c.read == nil {
		if c.input.skipping {
			return c.skipEarly(len(content))
		}
		return broken(AlertUnexpectedMessage, "peer sends application data before the handshake")
	}
	return c.openHandshake(rec)
}

// openHandshake opens a protected record into the spare room behind the
// handshake bytes, which never moves over bytes already handed out.
func (c *Conn) openHandshake(rec []byte) error {
	c.hand = slices.Grow(c.hand, len(rec))
	typ, content, err := c.open(c.hand[len(c.hand):], rec)
	if c.input.skipping && (err == record.ErrAuth || err == record.ErrShort) {
		return c.skipEarly(len(rec) - record.HeaderLen)
	}
	if err != nil {
		return recordError(err)
	}
	c.input.skipping = false
	switch typ {
	case record.Alert:
		return c.alert(content, false)
	case record.Handshake:
		return c.addHandshake(content)
	}
	return broken(AlertUnexpectedMessage, "peer sends a protected record of type %d during the handshake", typ)
}

// open opens a record of the current keys and holds it against the size that
// we asked for.
func (c *Conn) open(dst, rec []byte) (record.Type, []byte, error) {
	content, typ, err := c.read.Open(dst, rec)
	if err == nil && len(rec)-record.HeaderLen-record.TagLen > c.recvLimit {
		err = record.ErrOverflow
	}
	return typ, content, err
}

// skipEarly takes a record with a body of n bytes as rejected early data
// (RFC 8446, section 4.2.10). What counts is what it can carry.
func (c *Conn) skipEarly(n int) error {
	c.input.earlySkip -= max(0, n-1-record.TagLen)
	if c.input.earlySkip < 0 {
		return broken(AlertUnexpectedMessage, "client sends more early data than is skipped")
	}
	c.input.budget += record.HeaderLen + n // has a limit of its own
	return nil
}

// changeCipherSpec drops what middlebox compatibility sends, and only that
// (section 5).
func (c *Conn) changeCipherSpec(content []byte) error {
	switch {
	case !c.isClient && !c.input.hello:
		return broken(AlertUnexpectedMessage, "peer sends ChangeCipherSpec before its hello")
	case !bytes.Equal(content, []byte{1}):
		return broken(AlertUnexpectedMessage, "peer sends a malformed ChangeCipherSpec")
	case len(c.hand) > 0:
		return errInterleaved
	}
	return c.countIdle()
}

var errInterleaved = broken(AlertUnexpectedMessage, "peer sends another record within a handshake message")

func (c *Conn) countIdle() error {
	if c.idle++; c.idle > maxIdle {
		return broken(AlertUnexpectedMessage, "peer sends more than %d records in a row that say nothing", maxIdle)
	}
	return nil
}

// alert takes the content of an Alert record. clear says that it came
// unprotected where records are protected: an end that failed early may have
// had no keys, so during the handshake its fatal alert is believed.
func (c *Conn) alert(content []byte, clear bool) error {
	a, err := ParseAlert(content)
	if err != nil {
		return err
	}
	if a == AlertUserCanceled && !clear {
		if c.cancels++; c.cancels > maxCancels {
			return broken(AlertUnexpectedMessage, "peer sends more than %d user_canceled alerts", maxCancels)
		}
		if len(c.hand) > 0 {
			return errInterleaved
		}
		return nil
	}
	// Whatever its level, any other alert is an end (section 6.2).
	return &AlertError{a}
}

// addHandshake takes the content of a Handshake record and runs the messages
// that are complete.
func (c *Conn) addHandshake(content []byte) error {
	if len(content) == 0 {
		return broken(AlertUnexpectedMessage, "peer sends an empty Handshake record")
	}
	c.idle = 0
	c.hand = append(c.hand, content...)
	for !c.complete {
		m, ok, err := c.nextMessage(c.next.want, c.next.or)
		if err != nil || !ok {
			return err
		}
		if c.next, err = c.next.run(m); err != nil {
			return err
		}
	}
	return nil
}

// nextMessage cuts the first message off the handshake bytes. Its head is
// judged at once, so that nothing is kept of a message that can't be good.
func (c *Conn) nextMessage(want, or messageType) (m message, ok bool, err error) {
	if len(c.hand) < messageHeadLen {
		return m, false, nil
	}
	m.typ = messageType(c.hand[0])
	if m.typ != want && (m.typ != or || or == 0) {
		return m, false, broken(AlertUnexpectedMessage, "peer sends %v where %v is due", m.typ, want)
	}
	n := int(c.hand[1])<<16 | int(c.hand[2])<<8 | int(c.hand[3])
	if n > m.typ.maxLen() {
		return m, false, broken(AlertIllegalParameter, "peer announces a %v of %d bytes", m.typ, n)
	}
	n += messageHeadLen
	if len(c.hand) < n {
		return m, false, nil
	}
	m.raw, c.hand = c.hand[:n:n], c.hand[n:]
	return m, true, nil
}

// aligned is evidence that no part of a further message was received, without
// which keys don't change (section 5.1). Only align makes one.
type aligned struct{ ok bool }

func (c *Conn) align() (aligned, error) {
	if len(c.hand) > 0 {
		return aligned{}, broken(AlertUnexpectedMessage, "peer's handshake message crosses a change of keys")
	}
	return aligned{ok: true}, nil
}

// readWith moves reading to the keys of a traffic secret.
func (c *Conn) readWith(secret []byte, proof aligned) error {
	if !proof.ok {
		panic("tls13: change of keys without proof of alignment")
	}
	keys, err := c.suite.Keys(secret)
	if err != nil {
		return err
	}
	c.read = record.NewContext(keys, 0)
	return nil
}

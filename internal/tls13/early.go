package tls13

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"slices"
	"time"

	"github.com/go-tcpls/tcpls/internal/record"
)

// earlyState is what an end keeps for early data (RFC 8446, section 4.2.10).
type earlyState struct {
	context  *record.Context // a client's sending or a server's reading, while there may be early data
	exporter exporterSecret
	left     uint32 // bytes that may still come
	limit    int    // client: bytes of content in a record
	accepted bool
	taken    bool // TakeEarlyKeys was called
}

var (
	// ErrNoEarlyData is the error of a call that needs early data to be
	// possible when it never was, or isn't any more.
	ErrNoEarlyData = errors.New("tls13: early data is not possible now")
	// ErrEarlyDataFull is the error of WriteEarly for more data than the
	// server takes early.
	ErrEarlyDataFull = errors.New("tls13: more early data than the server takes")
)

// earlyKeys begins the use of a PSK's early keys; sum is the transcript of the
// ClientHello.
func (c *Conn) earlyKeys(p *psk, sum, clientRandom []byte) error {
	secret, exporter := p.early.clientTraffic(sum), p.early.exporter(sum)
	if err := c.logSecret(logClientEarly, clientRandom, secret); err != nil {
		return err
	}
	if err := c.logSecret(logEarlyExporter, clientRandom, exporter.secret); err != nil {
		return err
	}
	keys, err := p.suite.Keys(secret)
	if err != nil {
		return err
	}
	c.early.context, c.early.exporter, c.early.left = record.NewContext(keys, 0), exporter, p.maxEarly
	return nil
}

// EarlyDataAccepted tells whether the server accepted early data: on a server
// once its ServerHello is in Output, on a client once EncryptedExtensions have
// come. It stays what it is when the handshake is complete.
func (c *Conn) EarlyDataAccepted() bool { return c.early.accepted }

// ExportEarlyKeyingMaterial is ExportKeyingMaterial for what early data may
// depend on (section 7.5). It is possible while early data may be sent, or
// received. A connection that replays the ClientHello has the same.
func (c *Conn) ExportEarlyKeyingMaterial(label string, context []byte, length int) ([]byte, error) {
	if c.early.exporter.secret == nil {
		return nil, ErrNoEarlyData
	}
	return c.early.exporter.checked(label, context, length)
}

// The client's side.

// RememberedAnswer is the answer to the Config's extension in the session of
// the ticket that the client offers; nil if it offers none, or had no answer.
func (c *Conn) RememberedAnswer() []byte { return c.remembered }

// EarlyContextSend is what a client seals early data with: context 0 of the
// early keys, which the engine uses too, for EndOfEarlyData. It is nil while
// there may be no early data: without a PSK that allows it, after the server
// refused it, and once the server's Finished has come.
//
// Who seals by it counts EarlyLimit.
func (c *Conn) EarlyContextSend() *record.Context {
	if !c.isClient {
		return nil
	}
	return c.early.context
}

// EarlyLimit is how many bytes of early data may still be sent, of those that
// the server takes, or received. What others seal or open doesn't count.
func (c *Conn) EarlyLimit() uint32 { return c.early.left }

// WriteEarly is Write for early data. Data of which not everything may be sent
// is refused with ErrEarlyDataFull, and ErrNoEarlyData is the error where
// EarlyContextSend is nil. Early data can be replayed, and the server may
// refuse it, which EarlyDataAccepted tells; sending it again is the caller's
// business.
func (c *Conn) WriteEarly(dst, data []byte) ([]byte, error) {
	switch {
	case c.err != nil:
		return dst, c.err
	case c.EarlyContextSend() == nil:
		return dst, ErrNoEarlyData
	case uint64(len(data)) > uint64(c.early.left):
		return dst, ErrEarlyDataFull
	}
	dst = append(dst, c.Output()...)
	for piece := range slices.Chunk(data, c.early.limit) {
		var err error
		if dst, err = c.seal(dst, record.ApplicationData, piece); err != nil {
			return dst, c.abort(err)
		}
		c.early.left -= uint32(len(piece))
	}
	return dst, nil
}

// startEarly moves a client that may send early data to the early keys. The
// ChangeCipherSpec comes before the first of it (D.4).
func (h *clientHandshake) startEarly() error {
	c := h.c
	if err := c.earlyKeys(h.psk, digest(h.psk.suite, h.helloRaw), h.hello.random); err != nil {
		return err
	}
	c.early.limit = record.MaxPlaintext
	if s := h.psk.session; s != nil {
		c.early.limit = s.sendLimit
	}
	c.appendChangeCipherSpec()
	c.write = c.early.context
	return nil
}

// endEarly forgets the early keys.
func (c *Conn) endEarly() {
	clear(c.early.exporter.secret)
	c.early.context, c.early.exporter, c.early.left = nil, exporterSecret{}, 0
}

// The server's side.

// acceptsEarly decides on a ClientHello's early data. Whatever speaks against
// it, the handshake goes on, so the reasons need no order; only FirstUse comes
// last, since it remembers.
func (h *serverHandshake) acceptsEarly() bool {
	cfg, p := h.c.cfg, h.psk
	if !h.offer.earlyData || p == nil || h.selected != 0 || h.c.retried ||
		p.maxEarly == 0 || p.suite != h.suite || p.protocol != h.c.protocol {
		return false
	}
	s := p.session
	if s == nil {
		return true
	}
	if cfg.FirstUse == nil || s.maxEarly > cfg.MaxEarlyData || !bytes.Equal(s.own, cfg.EarlyContext) {
		return false
	}
	window := cfg.EarlyWindow
	if window == 0 {
		window = defaultEarlyWindow
	}
	stated := time.Duration(h.offer.psk.identities[0].age-p.ageAdd) * time.Millisecond
	sent := s.created.Add(stated) // the ClientHello, by the client's account
	if timeNow(h.c.tls).Sub(sent).Abs() > window {
		return false
	}
	id := sha256.Sum256(h.offer.psk.binders[0])
	return cfg.FirstUse(id[:], sent.Add(window))
}

// EarlyData tells whether a server is to take early data next: from its
// acceptance to EndOfEarlyData. Feed then stops before the first protected
// record. The caller either goes on with ReadEarly, or takes the keys by
// TakeEarlyKeys and opens the records itself.
func (c *Conn) EarlyData() bool { return !c.isClient && c.early.context != nil }

// ReadEarly is Read for early data. It stops behind EndOfEarlyData, after
// which EarlyData is false and Feed goes on. Without early data it uses
// nothing of p.
func (c *Conn) ReadEarly(dst, p []byte) (data []byte, n int, err error) {
	if c.early.taken {
		panic("tls13: ReadEarly after TakeEarlyKeys")
	}
	if c.err != nil {
		return dst, 0, c.err
	}
	for c.EarlyData() {
		rec, err := c.nextRecord(p[n:])
		if err != nil {
			return dst, n, c.abort(err)
		}
		if rec == nil {
			break
		}
		n += len(rec)
		if dst, err = c.earlyRecord(dst, rec); err != nil {
			return dst, n, c.abort(err)
		}
	}
	return dst, n, nil
}

func (c *Conn) earlyRecord(dst, rec []byte) ([]byte, error) {
	if record.Type(rec[0]) != record.ApplicationData {
		return dst, c.handshakeRecord(rec)
	}
	dst = slices.Grow(dst, len(rec))
	content, typ, err := c.early.context.Open(dst[len(dst):], rec)
	if err != nil {
		return dst, recordError(err)
	}
	switch typ {
	case record.ApplicationData:
		switch {
		case len(c.hand) > 0:
			return dst, errInterleaved
		case len(content) == 0:
			return dst, c.countIdle()
		case uint64(len(content)) > uint64(c.early.left):
			return dst, broken(AlertUnexpectedMessage, "client sends more early data than its ticket allows")
		}
		c.idle = 0
		c.early.left -= uint32(len(content))
		return dst[:len(dst)+len(content)], nil
	case record.Handshake:
		return dst, c.addHandshake(content)
	case record.Alert:
		return dst, c.alert(content, false)
	}
	return dst, broken(AlertUnexpectedMessage, "client sends a protected record of type %d with early data", typ)
}

// TakeEarlyKeys hands over what a server opens early data with: context 0 of
// the early keys, at the first record. The caller takes records of type
// application_data from then on, opens them in this context or others of the
// same keys, and counts their data against EarlyLimit; it gives the content of
// Handshake records of context 0 to EarlyHandshake, and everything in the
// clear to Feed. It panics unless EarlyData is true, or after ReadEarly has
// opened a record, or when called twice.
func (c *Conn) TakeEarlyKeys() *record.Context {
	if !c.EarlyData() || c.early.taken || c.early.context.Seq() != 0 {
		panic("tls13: TakeEarlyKeys without early data, or too late")
	}
	c.early.taken = true
	return c.early.context
}

// EarlyHandshake takes the content of a Handshake record that the user of the
// taken early keys opened in context 0; only EndOfEarlyData is allowed, after
// which EarlyData is false and Feed goes on. It panics without TakeEarlyKeys.
func (c *Conn) EarlyHandshake(content []byte) error {
	switch {
	case !c.early.taken:
		panic("tls13: EarlyHandshake without TakeEarlyKeys")
	case c.err != nil:
		return c.err
	case !c.EarlyData():
		return c.abort(broken(AlertUnexpectedMessage, "client sends a message under the early keys after EndOfEarlyData"))
	}
	if err := c.addHandshake(content); err != nil {
		return c.abort(err)
	}
	return nil
}

func (h *serverHandshake) endOfEarlyData(m message) (step, error) {
	if len(m.body()) != 0 {
		return step{}, malformed(typeEndOfEarlyData)
	}
	proof, err := h.c.align()
	if err != nil {
		return step{}, err
	}
	h.transcript.add(m.raw)
	h.c.endEarly()
	return step{want: typeFinished, run: h.clientFinished}, h.c.readWith(h.traffic.client, proof)
}

// writesEarly tells whether a server may write before the handshake is
// complete.
func (c *Conn) writesEarly() bool {
	return !c.isClient && !c.complete && c.early.accepted && !c.sendTaken && c.err == nil
}

// TakeWriteKeys hands over a server's application keys for sending, once it
// accepted early data and before the handshake is complete; TakeKeys later
// returns the same. From then on the Conn sends nothing: the alert of an error
// is Error.Alert, for the caller to seal in context 0. It panics unless
// EarlyDataAccepted is true and nothing was written, or when called twice.
func (c *Conn) TakeWriteKeys() *record.Keys {
	if !c.writesEarly() || c.write.Seq() != 0 {
		panic("tls13: TakeWriteKeys without accepted early data, or too late")
	}
	c.sendTaken = true
	return c.write.Keys()
}

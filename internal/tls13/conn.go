package tls13

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"

	"github.com/go-tcpls/tcpls/internal/record"
)

// A Conn is one end of a TLS 1.3 connection without its transport. It is not
// safe for concurrent use. An error ends it: it stays, and the alert that
// tells the peer, if one is due, is in Output.
type Conn struct {
	cfg       *Config
	tls       *tls.Config // in force; GetConfigForClient may have chosen it
	isClient  bool
	complete  bool
	taken     bool // TakeKeys was called
	sendTaken bool // TakeWriteKeys was called
	err       error

	next      step      // of the handshake
	input     input     // handshake only: framing of what comes in
	flight    []byte    // handshake messages that wait to become records
	out       []byte    // records for Output
	hand      []byte    // handshake bytes that are no message yet
	ccsDue    bool      // a client's ChangeCipherSpec goes before its next record
	idle      int       // records and messages in a row that moved nothing
	cancels   int       // user_canceled alerts
	data      dataState // plain data phase
	sendLimit int       // bytes of content in a protected record
	recvLimit int       // bytes of inner plaintext in a protected record

	read, write *record.Context // nil while records are in the clear

	suite    *record.Suite
	group    tls.CurveID
	exporter exporterSecret
	// resumption is what the PSKs of tickets derive from.
	resumption []byte
	tickets    ticketState
	early      earlyState

	protocol    string
	serverName  string
	retried     bool
	ownAnswered bool
	answer      []byte // of the extension, on a client that keeps tickets
	remembered  []byte // the same, of the session whose ticket is offered
	resumed     bool   // by a PSK of either kind
	pskIdentity []byte // of the user's PSK, in use
	peer        *verifiedPeer
}

// A step is what the handshake does next: it names the messages that may come
// and what takes them. The state of the handshake is nothing but its step.
type step struct {
	want, or messageType // or is 0 where only one will do
	run      func(m message) (step, error)
}

func newConn(cfg *Config, isClient bool) (*Conn, error) {
	if cfg == nil {
		cfg = &Config{}
	}
	if err := cfg.check(isClient); err != nil {
		return nil, err
	}
	return &Conn{
		cfg: cfg, tls: cfg.tlsConfig(), isClient: isClient,
		sendLimit: record.MaxPlaintext, recvLimit: maxRecordSizeLimit,
		input: input{budget: maxHandshake},
	}, nil
}

// NewServer returns a server that waits for a ClientHello. An error names a
// setting that can't be honoured.
func NewServer(cfg *Config) (*Conn, error) {
	c, err := newConn(cfg, false)
	if err != nil {
		return nil, err
	}
	h := &serverHandshake{c: c}
	c.next = step{want: typeClientHello, run: h.firstHello}
	return c, nil
}

// NewClient returns a client whose ClientHello is ready in Output. An error
// names a setting that can't be honoured.
func NewClient(cfg *Config) (*Conn, error) {
	c, err := newConn(cfg, true)
	if err != nil {
		return nil, err
	}
	h := &clientHandshake{c: c}
	if err := h.start(); err != nil {
		return nil, err
	}
	c.next = step{want: typeServerHello, run: h.serverHello}
	return c, nil
}

// Output returns the bytes to be sent now and forgets them. The slice is the
// caller's until the next call of any method.
func (c *Conn) Output() []byte {
	if c.err == nil {
		if err := c.answerKeyUpdate(); err != nil {
			c.abort(err)
		}
	}
	out := c.out
	c.out = nil
	return out
}

// HandshakeComplete tells whether both ends are authenticated as far as the
// configuration demands, and the application keys are in place.
func (c *Conn) HandshakeComplete() bool { return c.complete }

// ExtensionAnswered tells, on both ends, whether the extension of the Config
// was offered by the client and answered by the server.
func (c *Conn) ExtensionAnswered() bool { return c.ownAnswered }

// PSKUsed returns, on both ends, the identity of the user's PSK that is in use:
// from the ServerHello on, and on a server when Answer is called. It is nil
// for tickets and full handshakes. ConnectionState.DidResume is true for PSKs of
// both kinds.
func (c *Conn) PSKUsed() []byte { return c.pskIdentity }

// Group returns the key exchange in use, 0 while none is agreed.
func (c *Conn) Group() tls.CurveID { return c.group }

// PeerSignature returns the scheme that the peer signed the handshake with, 0
// if it didn't or the handshake isn't complete.
func (c *Conn) PeerSignature() tls.SignatureScheme {
	if c.peer == nil {
		return 0
	}
	return c.peer.chain.scheme
}

// Suite returns the cipher suite in use, nil while none is agreed.
func (c *Conn) Suite() *record.Suite { return c.suite }

// SendLimit is the most bytes of content that the peer takes in one protected
// record (RFC 8449): 63 to 16384. Whoever takes the keys obeys it.
func (c *Conn) SendLimit() int { return c.sendLimit }

// ReceiveLimit is the most bytes of inner plaintext, type and padding
// included, that the peer may send in one protected record: 64 to 16385.
func (c *Conn) ReceiveLimit() int { return c.recvLimit }

// ConnectionState returns what the handshake has settled so far. Its method
// ExportKeyingMaterial panics, as only crypto/tls can make it work; use the
// Conn's.
func (c *Conn) ConnectionState() tls.ConnectionState {
	s := tls.ConnectionState{
		Version:            tls.VersionTLS13,
		HandshakeComplete:  c.complete,
		CurveID:            c.group,
		NegotiatedProtocol: c.protocol,
		ServerName:         c.serverName,
		HelloRetryRequest:  c.retried,
		DidResume:          c.resumed,
	}
	//lint:ignore SA1019 always true, and some callers still ask
	s.NegotiatedProtocolIsMutual = true
	if c.suite != nil {
		s.CipherSuite = c.suite.ID
	}
	if c.peer != nil {
		s.PeerCertificates = c.peer.certificates()
		s.VerifiedChains = c.peer.chains
		s.OCSPResponse = c.peer.chain.ocsp
		s.SignedCertificateTimestamps = c.peer.chain.scts
	}
	return s
}

func (v *verifiedPeer) certificates() []*x509.Certificate { return v.chain.x509 }

// ExportKeyingMaterial derives length bytes for label and context (RFC 8446,
// section 7.5; a nil context is the empty one). Both ends get the same. It is
// an error before the handshake is complete, unless a server has accepted early
// data: then only the PSK has authenticated the client. length may be at most 255 times
// the suite's hash size, label at most 249 bytes.
func (c *Conn) ExportKeyingMaterial(label string, context []byte, length int) ([]byte, error) {
	early := !c.isClient && c.early.accepted && c.err == nil
	if !c.complete && !early {
		return nil, errors.New("tls13: exporting keying material before the handshake is complete")
	}
	return c.exporter.checked(label, context, length)
}

// checked is export for a user's arguments.
func (e exporterSecret) checked(label string, context []byte, length int) ([]byte, error) {
	switch {
	case length < 0 || length > 255*e.suite.HashLen:
		return nil, fmt.Errorf("tls13: exporting %d bytes of keying material, more than 255 hashes", length)
	case len(label) > maxExporterLabel:
		return nil, fmt.Errorf("tls13: exporter label of %d bytes, more than %d", len(label), maxExporterLabel)
	}
	return e.export(label, context, length), nil
}

// maxExporterLabel is what HkdfLabel has room for behind "tls13 ".
const maxExporterLabel = 249

// TakeKeys hands over the application keys of both directions, whose context
// 0 has sealed and opened nothing yet. From then on the Conn only interprets
// what it is given by PostHandshake. It panics unless the handshake is
// complete and no key was used, or when called twice.
func (c *Conn) TakeKeys() (send, receive *record.Keys) {
	switch {
	case !c.complete || c.err != nil:
		panic("tls13: TakeKeys without a complete handshake")
	case c.taken:
		panic("tls13: TakeKeys called twice")
	case c.write.Seq() != 0 || c.read.Seq() != 0:
		panic("tls13: TakeKeys after records under the application keys")
	}
	send, receive = c.write.Keys(), c.read.Keys()
	c.taken, c.read, c.write = true, nil, nil
	return send, receive
}

// Fail ends the connection for a reason of the caller's. The alert in Output
// is that of an *Error within err, none for an *AlertError, and else
// internal_error. It does nothing after another error, and only keeps err
// once the keys were taken.
func (c *Conn) Fail(err error) {
	if c.err == nil {
		c.abort(err)
	}
}

// End tells what the end of the transport's bytes means: nil after the peer's
// close_notify; the error that ended the connection before; and otherwise
// io.ErrUnexpectedEOF, since anyone can end a TCP connection.
func (c *Conn) End() error {
	switch {
	case c.data.closed:
		return nil
	case c.err != nil:
		return c.err
	case !c.complete:
		return fmt.Errorf("tls13: peer ended the connection during the handshake: %w", io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("tls13: peer ended the connection without close_notify: %w", io.ErrUnexpectedEOF)
}

// abort is where every failure goes: it sends the alert, once, and drops what
// a dead connection doesn't need.
func (c *Conn) abort(err error) error {
	if a, send := alertFor(err); send && !c.taken && !c.sendTaken {
		c.flight = nil // half a flight would only puzzle the peer
		if !c.appendAlert(a) {
			c.out = nil
		}
	}
	c.err = err
	c.next, c.input, c.hand = step{}, input{}, nil
	c.read, c.write, c.early.context = nil, nil, nil
	if !c.complete { // section 6: no secrets of failed handshakes
		c.exporter, c.early.exporter, c.resumption = exporterSecret{}, exporterSecret{}, nil
	}
	return err
}

// finish completes the handshake and drops its state. The evidence is its
// price: there is no other way to a complete handshake.
func (c *Conn) finish(peer *verifiedPeer, done *verifiedFinished) {
	if peer == nil || done == nil {
		panic("tls13: handshake complete without evidence")
	}
	c.peer, c.complete = peer, true
	c.next, c.input, c.hand, c.idle = step{}, input{}, nil, 0
}

package bogo

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"

	"github.com/go-tcpls/tcpls/internal/tls13"
)

// config makes the engine's configuration of a connection.
func (s *shim) config(o *options) (*tls13.Config, error) {
	t := &tls.Config{
		ServerName: "test", // as in the runner's certificates
		MinVersion: uint16(o.minVersion), MaxVersion: uint16(o.maxVersion),
		KeyLogWriter:           &s.keyLog,
		ClientSessionCache:     s.sessions,
		SessionTicketsDisabled: o.noTicket,
		Time:                   func() time.Time { return s.time },
		GetConfigForClient:     func(info *tls.ClientHelloInfo) (*tls.Config, error) { return nil, o.judgeHello(info) },
	}
	if o.hostName != "" {
		t.ServerName = o.hostName
	}
	for _, id := range o.curves {
		t.CurvePreferences = append(t.CurvePreferences, tls.CurveID(id))
	}
	if o.server {
		t.SetSessionTicketKeys([][32]byte{s.ticketKey})
	}
	var err error
	if t.NextProtos, err = o.protocols(); err != nil {
		return nil, err
	}
	if err := s.trust(o, t); err != nil {
		return nil, err
	}
	if err := s.credentials(o, t); err != nil {
		return nil, err
	}
	if o.ticketCallback {
		t.WrapSession, t.UnwrapSession = t.EncryptTicket, t.DecryptTicket
	}
	if o.skipTicket {
		t.WrapSession = func(tls.ConnectionState, *tls.SessionState) ([]byte, error) { return nil, nil }
	}
	cfg := &tls13.Config{TLS: t}
	if o.earlyData {
		cfg.MaxEarlyData = maxEarlyData
		cfg.EarlyWindow = time.Minute
		cfg.FirstUse = s.firstUse
	}
	if o.extension {
		cfg.Extension, cfg.Offer = ownExtension, make([]byte, 8)
		cfg.Answer = func([]byte) ([]byte, error) { return nil, errors.New("the runner offers our extension") }
		cfg.Accept = func([]byte) error { return errors.New("the runner answers our extension") }
		cfg.RecordSizeLimit = 1 << 14
	}
	return cfg, nil
}

// ownExtension is a codepoint for private use, as that of TCPLS.
const ownExtension = 0xff5a

// maxEarlyData is how much the runner expects a server to take.
const maxEarlyData = 14336

func (s *shim) firstUse(id []byte, _ time.Time) bool {
	again := s.seen[string(id)]
	s.seen[string(id)] = true
	return !again
}

// refusal is an error of a callback that wants a certain alert.
func refusal(text string, alert tls13.Alert) error {
	return fmt.Errorf("%s: %w", text, &tls13.Error{Alert: alert})
}

// judgeHello is GetConfigForClient.
func (o *options) judgeHello(info *tls.ClientHelloInfo) error {
	switch {
	case o.failHello:
		return refusal("the hello callback fails", tls13.AlertHandshakeFailure)
	case o.failDDoS:
		return refusal("the hello callback fails", tls13.AlertInternalError)
	}
	if err := o.judgeSchemes(info.SignatureSchemes); err != nil || o.advertisedALPN == "" {
		return err
	}
	want, err := splitProtocols(o.advertisedALPN)
	if err == nil && !slices.Equal(info.SupportedProtos, want) {
		err = fmt.Errorf("client offers protocols %q instead of %q", info.SupportedProtos, want)
	}
	return err
}

// protocols turns the runner's flags for ALPN into a preference. A server
// that declines has none, and one that rejects has one that nobody offers.
func (o *options) protocols() ([]string, error) {
	switch {
	case !o.server:
		return splitProtocols(o.advertiseALPN)
	case o.declineALPN:
		return nil, nil
	case o.rejectALPN:
		return []string{"nobody offers this"}, nil
	case o.selectALPN != "":
		return []string{o.selectALPN}, nil
	}
	return nil, nil
}

// splitProtocols reads the list in the form that ALPN has on the wire.
func splitProtocols(list string) (names []string, err error) {
	s := cryptobyte.String(list)
	for !s.Empty() {
		var name cryptobyte.String
		if !s.ReadUint8LengthPrefixed(&name) {
			return nil, fmt.Errorf("list of protocols %q is cut", list)
		}
		names = append(names, string(name))
	}
	return names, nil
}

// trust says whom the shim believes: the roots that the runner names, and the
// certificates that it announces. Those of its clients need to lead nowhere.
func (s *shim) trust(o *options, t *tls.Config) error {
	t.RootCAs = x509.NewCertPool()
	files := []string{o.trustCert}
	for _, other := range s.phases {
		files = append(files, other.peerCertFile)
	}
	for _, name := range files {
		if name == "" {
			continue
		}
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		t.RootCAs.AppendCertsFromPEM(data)
	}
	switch {
	case o.requireClientCert:
		t.ClientAuth = tls.RequireAnyClientCert
	case o.verifyPeer && o.server:
		t.ClientAuth = tls.RequestClientCert
	}
	t.VerifyConnection = s.judgePeer
	var err error
	switch o.clientCAs {
	case "", "<NULL>", "<EMPTY>":
	default:
		t.ClientCAs, err = namesPool(o.clientCAs)
	}
	return err
}

// judgePeer is VerifyConnection. A session that is resumed was judged before,
// unless the test wants it again or the server refused what was sent early.
func (s *shim) judgePeer(cs tls.ConnectionState) error {
	o := s.now
	if s.early && !s.engine.EarlyDataAccepted() {
		o = s.phases[retry]
	}
	switch {
	case o.failOCSP && !o.server:
		return refusal("the OCSP callback fails", tls13.AlertBadCertificateStatusResponse)
	case !o.verifyFail || !o.verifyPeer || cs.DidResume && !o.verifyResumption:
		return nil
	case o.customVerify:
		return refusal("the verify callback fails", tls13.AlertCertificateUnknown)
	}
	return refusal("the verify callback fails", tls13.AlertHandshakeFailure)
}

// namesPool makes a pool whose subjects are those of a list of names in
// hexadecimal.
func namesPool(list string) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	names, err := splitNames(list)
	for _, name := range names {
		pool.AddCert(&x509.Certificate{RawSubject: name, Raw: name})
	}
	return pool, err
}

func splitNames(list string) (names [][]byte, err error) {
	for word := range strings.SplitSeq(list, ",") {
		name, err := hex.DecodeString(word)
		if err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	return names, nil
}

// credentials gives t the certificates of a connection.
func (s *shim) credentials(o *options, t *tls.Config) error {
	list := o.credential.listed()
	for i, c := range append(slices.Clone(o.credentials), list...) {
		cert, err := c.load()
		if err != nil {
			return err
		}
		if i == len(o.credentials) {
			i = -1 // as the runner counts the default one
		}
		if o.declineOCSP {
			cert.OCSPStaple = nil
		}
		cert.PrivateKey = &signer{Signer: cert.PrivateKey.(crypto.Signer), used: func() { s.selected = i }}
		t.Certificates = append(t.Certificates, *cert)
	}
	certs := t.Certificates
	if fails := o.failedCallback(); fails != nil {
		t.Certificates = nil
		t.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, fails }
	}
	t.GetClientCertificate = func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if fails := o.failedCallback(); fails != nil {
			return nil, fails
		}
		if err := errors.Join(o.judgeSchemes(info.SignatureSchemes), o.judgeAuthorities(info.AcceptableCAs)); err != nil {
			return nil, err
		}
		return o.clientCertificate(certs, info)
	}
	return nil
}

// failedCallback is the error of a callback that chooses a certificate.
func (o *options) failedCallback() error {
	switch {
	case o.failCertificate:
		return errors.New("the certificate callback fails")
	case o.failOCSP && o.server:
		return errors.New("the OCSP callback fails")
	}
	return nil
}

// clientCertificate takes the default certificate whatever the server says,
// since that is what the runner's tests expect, and of several the first that
// suits.
func (o *options) clientCertificate(certs []tls.Certificate, info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
	if len(certs) == 1 && len(o.credentials) == 0 {
		return &certs[0], nil
	}
	for i := range certs {
		asked := *info
		if i >= len(o.credentials) || !o.credentials[i].mustMatchIssuer {
			asked.AcceptableCAs = nil
		}
		if asked.SupportsCertificate(&certs[i]) == nil {
			return &certs[i], nil
		}
	}
	if len(certs) > 0 {
		return nil, refusal("no certificate suits the server", tls13.AlertHandshakeFailure)
	}
	return new(tls.Certificate), nil
}

func (c *credential) listed() []*credential {
	if c.certFile == "" {
		return nil
	}
	return []*credential{c}
}

func (c *credential) load() (*tls.Certificate, error) {
	cert, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return nil, err
	}
	for _, id := range c.signingPrefs {
		cert.SupportedSignatureAlgorithms = append(cert.SupportedSignatureAlgorithms, tls.SignatureScheme(id))
	}
	cert.OCSPStaple = c.ocsp
	cert.SignedCertificateTimestamps, err = splitTimestamps(c.scts)
	return &cert, err
}

// splitTimestamps reads a SignedCertificateTimestampList (RFC 6962, 3.3).
func splitTimestamps(list []byte) (scts [][]byte, err error) {
	if len(list) == 0 {
		return nil, nil
	}
	s := cryptobyte.String(list)
	var body cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&body) || !s.Empty() {
		return nil, errors.New("bad list of timestamps")
	}
	for !body.Empty() {
		var sct cryptobyte.String
		if !body.ReadUint16LengthPrefixed(&sct) {
			return nil, errors.New("bad list of timestamps")
		}
		scts = append(scts, sct)
	}
	return scts, nil
}

// A signer tells that its key was used.
type signer struct {
	crypto.Signer
	used func()
}

func (s *signer) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	s.used()
	return s.Signer.Sign(rand, digest, opts)
}

// judgeSchemes is where the peer's signature_algorithms are seen.
func (o *options) judgeSchemes(got []tls.SignatureScheme) error {
	if o.peerVerifyPrefs == nil {
		return nil
	}
	want := make([]tls.SignatureScheme, len(o.peerVerifyPrefs))
	for i, id := range o.peerVerifyPrefs {
		want[i] = tls.SignatureScheme(id)
	}
	if !slices.Equal(got, want) {
		return fmt.Errorf("peer verifies %v instead of %v", got, want)
	}
	return nil
}

func (o *options) judgeAuthorities(got [][]byte) error {
	if o.clientCAList == "" {
		return nil
	}
	want, err := splitNames(o.clientCAList)
	if err == nil && !slices.EqualFunc(got, want, bytes.Equal) {
		err = fmt.Errorf("server asks for certificates of %x instead of %x", got, want)
	}
	return err
}

// certificateFile returns the chain in a PEM file.
func certificateFile(name string) (chain [][]byte, err error) {
	data, err := os.ReadFile(name)
	for err == nil {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		chain = append(chain, block.Bytes)
	}
	return chain, err
}

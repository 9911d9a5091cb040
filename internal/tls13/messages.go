package tls13

import (
	"bytes"
	"crypto/tls"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
)

// A messageType is the type of a handshake message (RFC 8446, section 4).
type messageType uint8

const (
	typeClientHello         messageType = 1
	typeServerHello         messageType = 2
	typeNewSessionTicket    messageType = 4
	typeEndOfEarlyData      messageType = 5
	typeEncryptedExtensions messageType = 8
	typeCertificate         messageType = 11
	typeCertificateRequest  messageType = 13
	typeCertificateVerify   messageType = 15
	typeFinished            messageType = 20
	typeKeyUpdate           messageType = 24
	typeMessageHash         messageType = 254
)

func (t messageType) String() string {
	switch t {
	case typeClientHello:
		return "ClientHello"
	case typeServerHello:
		return "ServerHello"
	case typeNewSessionTicket:
		return "NewSessionTicket"
	case typeEndOfEarlyData:
		return "EndOfEarlyData"
	case typeEncryptedExtensions:
		return "EncryptedExtensions"
	case typeCertificate:
		return "Certificate"
	case typeCertificateRequest:
		return "CertificateRequest"
	case typeCertificateVerify:
		return "CertificateVerify"
	case typeFinished:
		return "Finished"
	case typeKeyUpdate:
		return "KeyUpdate"
	}
	return fmt.Sprintf("handshake message of type %d", uint8(t))
}

const (
	messageHeadLen = 4 // type and 24-bit length

	// Announced lengths beyond these are refused before anything is kept.
	maxMessage     = 64 << 10
	maxCertificate = 256 << 10
)

func (t messageType) maxLen() int {
	if t == typeCertificate {
		return maxCertificate
	}
	return maxMessage
}

// A message is a complete handshake message.
type message struct {
	typ messageType
	raw []byte // with its head, as the transcript wants it
}

func (m message) body() []byte { return m.raw[messageHeadLen:] }

// An outgoing message can write its body.
type outgoing interface {
	messageType() messageType
	build(b *cryptobyte.Builder)
}

// encode writes a message with its head. It fails where a part is too long
// for its length field.
func encode(m outgoing) ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, usualMessage))
	b.AddUint8(uint8(m.messageType()))
	b.AddUint24LengthPrefixed(m.build)
	raw, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("tls13: writing %v: %w", m.messageType(), err)
	}
	return raw, nil
}

// usualMessage is room enough for most messages.
const usualMessage = 512

func malformed(t messageType) error {
	return broken(AlertDecodeError, "peer's %v is malformed", t)
}

// clientHello is RFC 8446, section 4.1.2.
type clientHello struct {
	version      uint16
	random       []byte // 32 bytes
	sessionID    []byte
	suites       []uint16
	compressions []byte
	extensions   []extension
}

func (m *clientHello) messageType() messageType { return typeClientHello }

func (m *clientHello) build(b *cryptobyte.Builder) {
	b.AddUint16(m.version)
	b.AddBytes(m.random)
	addBytes8(b, m.sessionID)
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		for _, id := range m.suites {
			b.AddUint16(id)
		}
	})
	addBytes8(b, m.compressions)
	if m.extensions != nil { // old clients have no such block at all
		addExtensions(b, m.extensions)
	}
}

func parseClientHello(body []byte, own uint16) (*clientHello, error) {
	s, m := cryptobyte.String(body), new(clientHello)
	var suites cryptobyte.String
	if !s.ReadUint16(&m.version) || !s.ReadBytes(&m.random, randomLen) ||
		!readBytes8(&s, &m.sessionID) || len(m.sessionID) > 32 ||
		!s.ReadUint16LengthPrefixed(&suites) || suites.Empty() || len(suites)%2 != 0 ||
		!readBytes8(&s, &m.compressions) || len(m.compressions) == 0 {
		return nil, malformed(typeClientHello)
	}
	m.suites = readUint16s(suites)
	if s.Empty() {
		return m, nil
	}
	var err error
	if m.extensions, err = readExtensions(&s, inClientHello, own); err != nil {
		return nil, err
	}
	if !s.Empty() {
		return nil, malformed(typeClientHello)
	}
	return m, nil
}

const randomLen = 32

// retryRandom in a ServerHello makes it a HelloRetryRequest: the SHA-256 of
// "HelloRetryRequest" (section 4.1.3).
var retryRandom = []byte{
	0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
	0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
}

// serverHello is RFC 8446, section 4.1.3, and also the HelloRetryRequest.
type serverHello struct {
	version     uint16
	random      []byte // 32 bytes
	sessionID   []byte
	suite       uint16
	compression uint8
	extensions  []extension
}

func (m *serverHello) messageType() messageType { return typeServerHello }

func (m *serverHello) isRetry() bool { return bytes.Equal(m.random, retryRandom) }

// isDowngrade tells whether a server that answers with an older version says
// in its random that it would have spoken a newer one (section 4.1.3).
func (m *serverHello) isDowngrade() bool {
	tail := string(m.random[randomLen-8:])
	return tail == "DOWNGRD\x01" || tail == "DOWNGRD\x00"
}

func (m *serverHello) build(b *cryptobyte.Builder) {
	b.AddUint16(m.version)
	b.AddBytes(m.random)
	addBytes8(b, m.sessionID)
	b.AddUint16(m.suite)
	b.AddUint8(m.compression)
	if m.extensions != nil {
		addExtensions(b, m.extensions)
	}
}

func parseServerHello(body []byte, own uint16) (*serverHello, error) {
	s, m := cryptobyte.String(body), new(serverHello)
	if !s.ReadUint16(&m.version) || !s.ReadBytes(&m.random, randomLen) ||
		!readBytes8(&s, &m.sessionID) || len(m.sessionID) > 32 ||
		!s.ReadUint16(&m.suite) || !s.ReadUint8(&m.compression) {
		return nil, malformed(typeServerHello)
	}
	if s.Empty() {
		return m, nil
	}
	in := inServerHello
	if m.isRetry() {
		in = inHelloRetryRequest
	}
	if !offersTLS13(s) { // the extensions follow older rules
		in = inOldServerHello
	}
	var err error
	if m.extensions, err = readExtensions(&s, in, own); err != nil {
		return nil, err
	}
	if !s.Empty() {
		return nil, malformed(typeServerHello)
	}
	return m, nil
}

// offersTLS13 looks for supported_versions in an extension block, without
// judging anything else.
func offersTLS13(s cryptobyte.String) bool {
	var block, body cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&block) {
		return false
	}
	for !block.Empty() {
		var id uint16
		if !block.ReadUint16(&id) || !block.ReadUint16LengthPrefixed(&body) {
			return false
		}
		if id == extSupportedVersions {
			return true
		}
	}
	return false
}

// encryptedExtensions is RFC 8446, section 4.3.1.
type encryptedExtensions struct {
	extensions []extension
}

func (m *encryptedExtensions) messageType() messageType    { return typeEncryptedExtensions }
func (m *encryptedExtensions) build(b *cryptobyte.Builder) { addExtensions(b, m.extensions) }

func parseEncryptedExtensions(body []byte, own uint16) (*encryptedExtensions, error) {
	s := cryptobyte.String(body)
	extensions, err := readExtensions(&s, inEncryptedExtensions, own)
	if err != nil {
		return nil, err
	}
	if !s.Empty() {
		return nil, malformed(typeEncryptedExtensions)
	}
	return &encryptedExtensions{extensions}, nil
}

// endOfEarlyData is RFC 8446, section 4.5.
type endOfEarlyData struct{}

func (endOfEarlyData) messageType() messageType  { return typeEndOfEarlyData }
func (endOfEarlyData) build(*cryptobyte.Builder) {}

// certificateRequest is RFC 8446, section 4.3.2.
type certificateRequest struct {
	context    []byte
	extensions []extension
}

func (m *certificateRequest) messageType() messageType { return typeCertificateRequest }

func (m *certificateRequest) build(b *cryptobyte.Builder) {
	addBytes8(b, m.context)
	addExtensions(b, m.extensions)
}

func parseCertificateRequest(body []byte, own uint16) (*certificateRequest, error) {
	s, m := cryptobyte.String(body), new(certificateRequest)
	if !readBytes8(&s, &m.context) {
		return nil, malformed(typeCertificateRequest)
	}
	var err error
	if m.extensions, err = readExtensions(&s, inCertificateRequest, own); err != nil {
		return nil, err
	}
	if !s.Empty() {
		return nil, malformed(typeCertificateRequest)
	}
	return m, nil
}

// certificate is RFC 8446, section 4.4.2.
type certificate struct {
	context []byte
	entries []certificateEntry
}

type certificateEntry struct {
	der        []byte
	extensions []extension
}

func (m *certificate) messageType() messageType { return typeCertificate }

func (m *certificate) build(b *cryptobyte.Builder) {
	addBytes8(b, m.context)
	b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) {
		for _, e := range m.entries {
			b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(e.der) })
			addExtensions(b, e.extensions)
		}
	})
}

func parseCertificate(body []byte, own uint16) (*certificate, error) {
	s, m := cryptobyte.String(body), new(certificate)
	var list cryptobyte.String
	if !readBytes8(&s, &m.context) || !s.ReadUint24LengthPrefixed(&list) || !s.Empty() {
		return nil, malformed(typeCertificate)
	}
	for !list.Empty() {
		if len(m.entries) == maxChain {
			return nil, broken(AlertBadCertificate, "peer's chain has more than %d certificates", maxChain)
		}
		var e certificateEntry
		var der cryptobyte.String
		if !list.ReadUint24LengthPrefixed(&der) || der.Empty() {
			return nil, malformed(typeCertificate)
		}
		e.der = der
		var err error
		if e.extensions, err = readExtensions(&list, inCertificate, own); err != nil {
			return nil, err
		}
		m.entries = append(m.entries, e)
	}
	return m, nil
}

// maxChain is the most certificates that a peer may send; path building
// among them is not free.
const maxChain = 32

// certificateVerify is RFC 8446, section 4.4.3.
type certificateVerify struct {
	scheme    tls.SignatureScheme
	signature []byte
}

func (m *certificateVerify) messageType() messageType { return typeCertificateVerify }

func (m *certificateVerify) build(b *cryptobyte.Builder) {
	b.AddUint16(uint16(m.scheme))
	addBytes16(b, m.signature)
}

func parseCertificateVerify(body []byte) (*certificateVerify, error) {
	s, m := cryptobyte.String(body), new(certificateVerify)
	if !s.ReadUint16((*uint16)(&m.scheme)) || !readBytes16(&s, &m.signature) || !s.Empty() {
		return nil, malformed(typeCertificateVerify)
	}
	return m, nil
}

// finished is RFC 8446, section 4.4.4.
type finished struct {
	mac []byte
}

func (m *finished) messageType() messageType    { return typeFinished }
func (m *finished) build(b *cryptobyte.Builder) { b.AddBytes(m.mac) }

// keyUpdate is RFC 8446, section 4.6.3.
type keyUpdate struct {
	requested bool
}

func (m *keyUpdate) messageType() messageType { return typeKeyUpdate }

func (m *keyUpdate) build(b *cryptobyte.Builder) {
	if m.requested {
		b.AddUint8(1)
	} else {
		b.AddUint8(0)
	}
}

func parseKeyUpdate(body []byte) (*keyUpdate, error) {
	if len(body) != 1 {
		return nil, malformed(typeKeyUpdate)
	}
	if body[0] > 1 {
		return nil, broken(AlertIllegalParameter, "peer's KeyUpdate has value %d", body[0])
	}
	return &keyUpdate{requested: body[0] == 1}, nil
}

// newSessionTicket is RFC 8446, section 4.6.1.
type newSessionTicket struct {
	lifetime   uint32 // seconds
	ageAdd     uint32
	nonce      []byte
	ticket     []byte
	extensions []extension
}

func (m *newSessionTicket) messageType() messageType { return typeNewSessionTicket }

func (m *newSessionTicket) build(b *cryptobyte.Builder) {
	b.AddUint32(m.lifetime)
	b.AddUint32(m.ageAdd)
	addBytes8(b, m.nonce)
	addBytes16(b, m.ticket)
	addExtensions(b, m.extensions)
}

func parseNewSessionTicket(body []byte, own uint16) (*newSessionTicket, error) {
	s, m := cryptobyte.String(body), new(newSessionTicket)
	if !s.ReadUint32(&m.lifetime) || !s.ReadUint32(&m.ageAdd) ||
		!readBytes8(&s, &m.nonce) || !readBytes16(&s, &m.ticket) || len(m.ticket) == 0 {
		return nil, malformed(typeNewSessionTicket)
	}
	var err error
	if m.extensions, err = readExtensions(&s, inNewSessionTicket, own); err != nil {
		return nil, err
	}
	if !s.Empty() {
		return nil, malformed(typeNewSessionTicket)
	}
	for _, e := range m.extensions {
		if e.id == extEarlyData && len(e.body) != 4 {
			return nil, malformed(typeNewSessionTicket)
		}
	}
	return m, nil
}

func addBytes8(b *cryptobyte.Builder, p []byte) {
	b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(p) })
}

func addBytes16(b *cryptobyte.Builder, p []byte) {
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(p) })
}

func readBytes8(s *cryptobyte.String, out *[]byte) bool {
	return s.ReadUint8LengthPrefixed((*cryptobyte.String)(out))
}

func readBytes16(s *cryptobyte.String, out *[]byte) bool {
	return s.ReadUint16LengthPrefixed((*cryptobyte.String)(out))
}

// readUint16s reads a list that is known to have an even number of bytes.
func readUint16s(s cryptobyte.String) []uint16 {
	list := make([]uint16, len(s)/2)
	for i := range list {
		s.ReadUint16(&list[i])
	}
	return list
}

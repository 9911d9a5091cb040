package tls13

import (
	"crypto/tls"
	"strings"

	"golang.org/x/crypto/cryptobyte"
)

// The extensions that the engine knows (RFC 8446, section 4.2), if only to
// tell where they may not be.
const (
	extServerName             uint16 = 0
	extMaxFragmentLength      uint16 = 1
	extStatusRequest          uint16 = 5
	extSupportedGroups        uint16 = 10
	extSignatureAlgorithms    uint16 = 13
	extUseSRTP                uint16 = 14
	extHeartbeat              uint16 = 15
	extALPN                   uint16 = 16
	extSCT                    uint16 = 18
	extClientCertificateType  uint16 = 19
	extServerCertificateType  uint16 = 20
	extPadding                uint16 = 21
	extRecordSizeLimit        uint16 = 28
	extPreSharedKey           uint16 = 41
	extEarlyData              uint16 = 42
	extSupportedVersions      uint16 = 43
	extCookie                 uint16 = 44
	extPSKModes               uint16 = 45
	extCertificateAuthorities uint16 = 47
	extOIDFilters             uint16 = 48
	extPostHandshakeAuth      uint16 = 49
	extSignatureAlgsCert      uint16 = 50
	extKeyShare               uint16 = 51
)

// A place is a set of messages in which an extension may appear.
type place uint8

const (
	inClientHello place = 1 << iota
	inServerHello
	inHelloRetryRequest
	inEncryptedExtensions
	inCertificate
	inCertificateRequest
	inNewSessionTicket

	// inOldServerHello is that of an older version: any extension may be
	// there, since the handshake ends at the version anyway.
	inOldServerHello place = 0
)

func (p place) String() string {
	switch p {
	case inClientHello:
		return "ClientHello"
	case inServerHello, inOldServerHello:
		return "ServerHello"
	case inHelloRetryRequest:
		return "HelloRetryRequest"
	case inEncryptedExtensions:
		return "EncryptedExtensions"
	case inCertificate:
		return "Certificate"
	case inCertificateRequest:
		return "CertificateRequest"
	}
	return "NewSessionTicket"
}

// extensionPlaces is the table of RFC 8446, section 4.2, and record_size_limit
// of RFC 8449.
var extensionPlaces = map[uint16]place{
	extServerName:             inClientHello | inEncryptedExtensions,
	extMaxFragmentLength:      inClientHello | inEncryptedExtensions,
	extStatusRequest:          inClientHello | inCertificateRequest | inCertificate,
	extSupportedGroups:        inClientHello | inEncryptedExtensions,
	extSignatureAlgorithms:    inClientHello | inCertificateRequest,
	extUseSRTP:                inClientHello | inEncryptedExtensions,
	extHeartbeat:              inClientHello | inEncryptedExtensions,
	extALPN:                   inClientHello | inEncryptedExtensions,
	extSCT:                    inClientHello | inCertificateRequest | inCertificate,
	extClientCertificateType:  inClientHello | inEncryptedExtensions,
	extServerCertificateType:  inClientHello | inEncryptedExtensions,
	extPadding:                inClientHello,
	extRecordSizeLimit:        inClientHello | inEncryptedExtensions,
	extPreSharedKey:           inClientHello | inServerHello,
	extEarlyData:              inClientHello | inEncryptedExtensions | inNewSessionTicket,
	extSupportedVersions:      inClientHello | inServerHello | inHelloRetryRequest,
	extCookie:                 inClientHello | inHelloRetryRequest,
	extPSKModes:               inClientHello,
	extCertificateAuthorities: inClientHello | inCertificateRequest,
	extOIDFilters:             inCertificateRequest,
	extPostHandshakeAuth:      inClientHello,
	extSignatureAlgsCert:      inClientHello | inCertificateRequest,
	extKeyShare:               inClientHello | inServerHello | inHelloRetryRequest,
}

// An extension as it is on the wire.
type extension struct {
	id   uint16
	body []byte
}

func findExtension(list []extension, id uint16) (body []byte, ok bool) {
	for _, e := range list {
		if e.id == id {
			return e.body, true
		}
	}
	return nil, false
}

// readExtensions reads an extension block and holds it against the table:
// none twice, and none that is known where it may not be. own is the one
// extension that the engine carries for its user, 0 if none.
func readExtensions(s *cryptobyte.String, in place, own uint16) ([]extension, error) {
	var block cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&block) {
		return nil, broken(AlertDecodeError, "extensions of peer's %v are malformed", in)
	}
	var seen [1 << 16 / 64]uint64
	list := make([]extension, 0, 16)
	for !block.Empty() {
		var e extension
		if !block.ReadUint16(&e.id) || !readBytes16(&block, &e.body) {
			return nil, broken(AlertDecodeError, "extensions of peer's %v are malformed", in)
		}
		word, bit := &seen[e.id/64], uint64(1)<<(e.id%64)
		if *word&bit != 0 {
			return nil, broken(AlertIllegalParameter, "peer's %v has extension %d twice", in, e.id)
		}
		*word |= bit
		if in != inOldServerHello && misplaced(e.id, in, own) {
			return nil, broken(AlertIllegalParameter, "extension %d may not be in peer's %v", e.id, in)
		}
		list = append(list, e)
	}
	return list, nil
}

func misplaced(id uint16, in place, own uint16) bool {
	places, known := extensionPlaces[id]
	if own != 0 && id == own {
		places, known = inClientHello|inEncryptedExtensions, true
	}
	return known && places&in == 0
}

func addExtensions(b *cryptobyte.Builder, list []extension) {
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		for _, e := range list {
			b.AddUint16(e.id)
			addBytes16(b, e.body)
		}
	})
}

// unasked finds an extension in an answer that was not asked for.
func unasked(list []extension, in place, asked func(id uint16) bool) error {
	for _, e := range list {
		if !asked(e.id) {
			return broken(AlertUnsupportedExtension, "peer's %v has extension %d, which was not asked for", in, e.id)
		}
	}
	return nil
}

// badExtension is the error of an extension whose body can't be read.
func badExtension(id uint16) error {
	return broken(AlertDecodeError, "body of peer's extension %d is malformed", id)
}

// buildBody writes an extension's body. What goes in was checked when the
// configuration was, or has a fixed size, so it fits.
func buildBody(f func(b *cryptobyte.Builder)) []byte {
	var b cryptobyte.Builder
	f(&b)
	return b.BytesOrPanic()
}

func uint16Body(v uint16) []byte { return []byte{byte(v >> 8), byte(v)} }

// uint16List is a list with a 16-bit length, such as supported_groups.
func uint16List[T ~uint16](list []T) []byte {
	return buildBody(func(b *cryptobyte.Builder) {
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			for _, v := range list {
				b.AddUint16(uint16(v))
			}
		})
	})
}

func parseUint16List[T ~uint16](p []byte) ([]T, bool) {
	s := cryptobyte.String(p)
	var list cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&list) || !s.Empty() || list.Empty() || len(list)%2 != 0 {
		return nil, false
	}
	out := make([]T, len(list)/2)
	for i, v := range readUint16s(list) {
		out[i] = T(v)
	}
	return out, true
}

// versionList is supported_versions in a ClientHello: an 8-bit length.
func versionList(list []uint16) []byte {
	return buildBody(func(b *cryptobyte.Builder) {
		b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) {
			for _, v := range list {
				b.AddUint16(v)
			}
		})
	})
}

func parseVersionList(p []byte) ([]uint16, bool) {
	s := cryptobyte.String(p)
	var list cryptobyte.String
	if !s.ReadUint8LengthPrefixed(&list) || !s.Empty() || list.Empty() || len(list)%2 != 0 {
		return nil, false
	}
	return readUint16s(list), true
}

func parseUint16(p []byte) (v uint16, ok bool) {
	s := cryptobyte.String(p)
	ok = s.ReadUint16(&v) && s.Empty()
	return v, ok
}

const nameTypeHost = 0

func serverNameBody(name string) []byte {
	return buildBody(func(b *cryptobyte.Builder) {
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			b.AddUint8(nameTypeHost)
			addBytes16(b, []byte(name))
		})
	})
}

// parseServerName reads server_name of a ClientHello (RFC 6066, section 3).
func parseServerName(p []byte) (name string, ok bool) {
	s := cryptobyte.String(p)
	var list cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&list) || !s.Empty() || list.Empty() {
		return "", false
	}
	for !list.Empty() {
		var typ uint8
		var host []byte
		if !list.ReadUint8(&typ) || !readBytes16(&list, &host) || len(host) == 0 {
			return "", false
		}
		if typ != nameTypeHost {
			continue
		}
		if name != "" { // at most one of a type
			return "", false
		}
		name = string(host)
	}
	return name, !strings.HasSuffix(name, ".")
}

func alpnBody(protocols []string) []byte {
	return buildBody(func(b *cryptobyte.Builder) {
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			for _, p := range protocols {
				addBytes8(b, []byte(p))
			}
		})
	})
}

func parseALPN(p []byte) ([]string, bool) {
	s := cryptobyte.String(p)
	var list cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&list) || !s.Empty() || list.Empty() {
		return nil, false
	}
	var protocols []string
	for !list.Empty() {
		var protocol []byte
		if !readBytes8(&list, &protocol) || len(protocol) == 0 {
			return nil, false
		}
		protocols = append(protocols, string(protocol))
	}
	return protocols, true
}

// A keyShare is one KeyShareEntry.
type keyShare struct {
	group tls.CurveID
	data  []byte
}

func addKeyShare(b *cryptobyte.Builder, k keyShare) {
	b.AddUint16(uint16(k.group))
	addBytes16(b, k.data)
}

func readKeyShare(s *cryptobyte.String, k *keyShare) bool {
	return s.ReadUint16((*uint16)(&k.group)) && readBytes16(s, &k.data) && len(k.data) > 0
}

func keyShareBody(k keyShare) []byte {
	return buildBody(func(b *cryptobyte.Builder) { addKeyShare(b, k) })
}

func parseKeyShare(p []byte) (k keyShare, ok bool) {
	s := cryptobyte.String(p)
	ok = readKeyShare(&s, &k) && s.Empty()
	return k, ok
}

func keyShareList(list []keyShare) []byte {
	return buildBody(func(b *cryptobyte.Builder) {
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			for _, k := range list {
				addKeyShare(b, k)
			}
		})
	})
}

func parseKeyShareList(p []byte) ([]keyShare, bool) {
	s := cryptobyte.String(p)
	var block cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&block) || !s.Empty() {
		return nil, false
	}
	list := []keyShare{}
	for !block.Empty() {
		var k keyShare
		if !readKeyShare(&block, &k) {
			return nil, false
		}
		list = append(list, k)
	}
	return list, true
}

// parseVector16 reads a body that is one non-empty vector with a 16-bit
// length, such as cookie.
func parseVector16(p []byte) (v []byte, ok bool) {
	s := cryptobyte.String(p)
	ok = readBytes16(&s, &v) && s.Empty() && len(v) > 0
	return v, ok
}

func vector16Body(v []byte) []byte {
	return buildBody(func(b *cryptobyte.Builder) { addBytes16(b, v) })
}

func vectorList(list [][]byte) []byte {
	return buildBody(func(b *cryptobyte.Builder) {
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			for _, v := range list {
				addBytes16(b, v)
			}
		})
	})
}

// parseVectorList reads a non-empty list of non-empty vectors, such as
// certificate_authorities and the SCTs of a certificate.
func parseVectorList(p []byte) ([][]byte, bool) {
	s := cryptobyte.String(p)
	var block cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&block) || !s.Empty() || block.Empty() {
		return nil, false
	}
	var list [][]byte
	for !block.Empty() {
		var v []byte
		if !readBytes16(&block, &v) || len(v) == 0 {
			return nil, false
		}
		list = append(list, v)
	}
	return list, true
}

const statusTypeOCSP = 1

// statusRequestBody asks for an OCSP response of any responder.
func statusRequestBody() []byte { return []byte{statusTypeOCSP, 0, 0, 0, 0} }

func parseStatusRequest(p []byte) (ocsp, ok bool) {
	s := cryptobyte.String(p)
	var typ uint8
	var responders, extensions []byte
	if !s.ReadUint8(&typ) {
		return false, false
	}
	if typ != statusTypeOCSP { // unknown kinds have forms of their own
		return false, true
	}
	ok = readBytes16(&s, &responders) && readBytes16(&s, &extensions) && s.Empty()
	return ok, ok
}

func ocspBody(response []byte) []byte {
	return buildBody(func(b *cryptobyte.Builder) {
		b.AddUint8(statusTypeOCSP)
		b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(response) })
	})
}

func parseOCSP(p []byte) (response []byte, ok bool) {
	s := cryptobyte.String(p)
	var typ uint8
	ok = s.ReadUint8(&typ) && typ == statusTypeOCSP &&
		s.ReadUint24LengthPrefixed((*cryptobyte.String)(&response)) && len(response) > 0 && s.Empty()
	return response, ok
}

package tls13

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"

	"github.com/go-tcpls/tcpls/internal/record"
)

// The key schedule of RFC 8446, section 7.1, one type a stage: a secret can
// only be asked for what its stage may derive.
//
//	PSK or 0  ──► earlySecret ──► handshakeSecret ──► masterSecret
//	                 binder           client, server      client, server application
//	                 client early     handshake traffic   exporter, resumption

type earlySecret struct {
	suite  *record.Suite
	secret []byte
}

type handshakeSecret struct {
	suite  *record.Suite
	secret []byte
}

type masterSecret struct {
	suite  *record.Suite
	secret []byte
}

// The secrets of application data derive from these, so that a KeyUpdate,
// which wipes the traffic secret before it, would protect nothing if they
// stayed. Whoever has derived all that is needed wipes them.

func (e earlySecret) wipe()     { clear(e.secret) }
func (h handshakeSecret) wipe() { clear(h.secret) }
func (m masterSecret) wipe()    { clear(m.secret) }

// An exporterSecret is what keying material is exported from (section 7.5).
type exporterSecret struct {
	suite  *record.Suite
	secret []byte
}

// newEarlySecret begins the schedule. Without a PSK, key is nil.
func newEarlySecret(s *record.Suite, key []byte) earlySecret {
	if key == nil {
		key = make([]byte, s.HashLen)
	}
	return earlySecret{s, extract(s, key, nil)}
}

// earlySecretOf is that of a handshake by a PSK, or nil.
func earlySecretOf(s *record.Suite, p *psk) earlySecret {
	if p == nil {
		return newEarlySecret(s, nil)
	}
	return p.early
}

// binderKey is that of a resumption.
func (e earlySecret) binderKey() []byte {
	return deriveSecret(e.suite, e.secret, "res binder", emptyDigest(e.suite))
}

// clientTraffic and exporter take the transcript of the ClientHello alone.
func (e earlySecret) clientTraffic(transcript []byte) []byte {
	return deriveSecret(e.suite, e.secret, "c e traffic", transcript)
}

func (e earlySecret) exporter(transcript []byte) exporterSecret {
	return exporterSecret{e.suite, deriveSecret(e.suite, e.secret, "e exp master", transcript)}
}

func (e earlySecret) handshake(shared []byte) handshakeSecret {
	return handshakeSecret{e.suite, extract(e.suite, shared, derived(e.suite, e.secret))}
}

func (h handshakeSecret) clientTraffic(transcript []byte) []byte {
	return deriveSecret(h.suite, h.secret, "c hs traffic", transcript)
}

func (h handshakeSecret) serverTraffic(transcript []byte) []byte {
	return deriveSecret(h.suite, h.secret, "s hs traffic", transcript)
}

func (h handshakeSecret) master() masterSecret {
	zeros := make([]byte, h.suite.HashLen)
	return masterSecret{h.suite, extract(h.suite, zeros, derived(h.suite, h.secret))}
}

func (m masterSecret) clientTraffic(transcript []byte) []byte {
	return deriveSecret(m.suite, m.secret, "c ap traffic", transcript)
}

func (m masterSecret) serverTraffic(transcript []byte) []byte {
	return deriveSecret(m.suite, m.secret, "s ap traffic", transcript)
}

func (m masterSecret) exporter(transcript []byte) exporterSecret {
	return exporterSecret{m.suite, deriveSecret(m.suite, m.secret, "exp master", transcript)}
}

// resumption takes the transcript up to the client's Finished, the others
// that of the server's.
func (m masterSecret) resumption(transcript []byte) []byte {
	return deriveSecret(m.suite, m.secret, "res master", transcript)
}

func (e exporterSecret) export(label string, context []byte, length int) []byte {
	secret := e.suite.ExpandLabel(e.secret, label, digest(e.suite, nil), e.suite.HashLen)
	return e.suite.ExpandLabel(secret, "exporter", digest(e.suite, context), length)
}

// finishedMAC is the verify_data of a Finished, or a binder (section 4.4.4).
func finishedMAC(s *record.Suite, base, transcript []byte) []byte {
	mac := hmac.New(s.NewHash, s.ExpandLabel(base, "finished", nil, s.HashLen))
	mac.Write(transcript)
	return mac.Sum(nil)
}

func deriveSecret(s *record.Suite, secret []byte, label string, transcript []byte) []byte {
	return s.ExpandLabel(secret, label, transcript, s.HashLen)
}

// derived is the salt that leads from one stage to the next.
func derived(s *record.Suite, secret []byte) []byte {
	return deriveSecret(s, secret, "derived", emptyDigest(s))
}

var (
	emptySHA256 = sha256.Sum256(nil)
	emptySHA384 = sha512.Sum384(nil)
)

func emptyDigest(s *record.Suite) []byte {
	if s.HashLen == len(emptySHA256) {
		return emptySHA256[:]
	}
	return emptySHA384[:]
}

func digest(s *record.Suite, b []byte) []byte {
	h := s.NewHash()
	h.Write(b)
	return h.Sum(nil)
}

func extract(s *record.Suite, secret, salt []byte) []byte {
	out, err := hkdf.Extract(s.NewHash, secret, salt)
	if err != nil { // only where FIPS mode forbids the hash
		panic("tls13: HKDF-Extract: " + err.Error())
	}
	return out
}

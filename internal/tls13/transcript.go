package tls13

import (
	"hash"

	"github.com/go-tcpls/tcpls/internal/record"
)

// A transcript is the running hash of all handshake messages, heads included
// (RFC 8446, section 4.4.1).
type transcript struct {
	hash  hash.Hash
	suite *record.Suite
}

func newTranscript(s *record.Suite) *transcript {
	return &transcript{hash: s.NewHash(), suite: s}
}

func (t *transcript) add(raw []byte) { t.hash.Write(raw) }

func (t *transcript) sum() []byte { return t.hash.Sum(make([]byte, 0, t.suite.HashLen)) }

// sumWith is the sum as if raw had been added.
func (t *transcript) sumWith(raw []byte) ([]byte, error) {
	clone, err := t.hash.(hash.Cloner).Clone()
	if err != nil {
		return nil, err
	}
	clone.Write(raw)
	return clone.Sum(nil), nil
}

// retry puts the synthetic message_hash in the place of the first
// ClientHello, which is all that t may have seen.
func (t *transcript) retry() {
	hello := t.sum()
	t.hash.Reset()
	t.hash.Write([]byte{byte(typeMessageHash), 0, 0, byte(len(hello))})
	t.hash.Write(hello)
}

package record

import (
	"crypto/cipher"
	"fmt"
	"sync/atomic"
)

// Keys are the AEAD key and IV of one direction and one key epoch, derived
// from a traffic secret (RFC 8446, section 7.3). All contexts of that
// direction share them, and they count what all of them seal.
type Keys struct {
	suite  *Suite
	secret []byte
	aead   cipher.AEAD
	iv     [nonceLen]byte
	sealed atomic.Uint64
}

const nonceLen = 12

// Keys derives the keys of a traffic secret. It keeps the slice.
func (s *Suite) Keys(secret []byte) (*Keys, error) {
	if len(secret) != s.HashLen {
		return nil, fmt.Errorf("record: traffic secret has %d bytes, %s needs %d", len(secret), s.Name, s.HashLen)
	}
	key := s.ExpandLabel(secret, "key", nil, s.KeyLen)
	aead, err := s.newAEAD(key)
	clear(key)
	if err != nil {
		return nil, err
	}
	k := &Keys{suite: s, secret: secret, aead: aead}
	copy(k.iv[:], s.ExpandLabel(secret, "iv", nil, nonceLen))
	return k, nil
}

// Next derives the keys of the next epoch (RFC 8446, section 7.2) and wipes
// the secret of this one, which can still seal and open.
func (k *Keys) Next() (*Keys, error) {
	if k.secret == nil {
		return nil, fmt.Errorf("record: the next keys were already derived")
	}
	next, err := k.suite.Keys(k.suite.ExpandLabel(k.secret, "traffic upd", nil, k.suite.HashLen))
	clear(k.secret)
	k.secret = nil
	return next, err
}

// Suite tells which suite the keys belong to.
func (k *Keys) Suite() *Suite { return k.suite }

// Sealed counts the records that all contexts have sealed with these keys.
func (k *Keys) Sealed() uint64 { return k.sealed.Load() }

package tls13

import (
	"crypto/ecdh"
	"crypto/mlkem"
	"crypto/tls"
	"fmt"
	"io"
	"slices"
)

// A group is a key exchange: an elliptic curve, a KEM, or both, where the
// hybrids concatenate shares and secrets in a fixed order
// (draft-ietf-tls-ecdhe-mlkem).
type group struct {
	id    tls.CurveID
	curve ecdh.Curve
	kem   *kem // nil: only the curve
	// kemFirst puts the KEM's part before the curve's.
	kemFirst bool
	// pointLen is the size in bytes of the curve's share.
	pointLen int
}

// A kem is a parameter set of ML-KEM behind one shape.
type kem struct {
	keyLen, ciphertextLen int
	generate              func() (decapsulator, []byte, error)
	encapsulate           func(key []byte) (shared, ciphertext []byte, err error)
}

type decapsulator interface {
	Decapsulate(ciphertext []byte) (shared []byte, err error)
}

var mlkem768 = &kem{
	keyLen: mlkem.EncapsulationKeySize768, ciphertextLen: mlkem.CiphertextSize768,
	generate: func() (decapsulator, []byte, error) {
		k, err := mlkem.GenerateKey768()
		if err != nil {
			return nil, nil, err
		}
		return k, k.EncapsulationKey().Bytes(), nil
	},
	encapsulate: func(key []byte) (shared, ciphertext []byte, err error) {
		k, err := mlkem.NewEncapsulationKey768(key)
		if err != nil {
			return nil, nil, err
		}
		shared, ciphertext = k.Encapsulate()
		return shared, ciphertext, nil
	},
}

var mlkem1024 = &kem{
	keyLen: mlkem.EncapsulationKeySize1024, ciphertextLen: mlkem.CiphertextSize1024,
	generate: func() (decapsulator, []byte, error) {
		k, err := mlkem.GenerateKey1024()
		if err != nil {
			return nil, nil, err
		}
		return k, k.EncapsulationKey().Bytes(), nil
	},
	encapsulate: func(key []byte) (shared, ciphertext []byte, err error) {
		k, err := mlkem.NewEncapsulationKey1024(key)
		if err != nil {
			return nil, nil, err
		}
		shared, ciphertext = k.Encapsulate()
		return shared, ciphertext, nil
	},
}

// groups is what the engine can do, in the order of preference: hybrids
// first, since what they protect stays secret from tomorrow's computers.
var groups = []*group{
	{id: tls.X25519MLKEM768, curve: ecdh.X25519(), pointLen: 32, kem: mlkem768, kemFirst: true},
	{id: tls.SecP256r1MLKEM768, curve: ecdh.P256(), pointLen: 65, kem: mlkem768},
	{id: tls.SecP384r1MLKEM1024, curve: ecdh.P384(), pointLen: 97, kem: mlkem1024},
	{id: tls.X25519, curve: ecdh.X25519(), pointLen: 32},
	{id: tls.CurveP256, curve: ecdh.P256(), pointLen: 65},
	{id: tls.CurveP384, curve: ecdh.P384(), pointLen: 97},
	{id: tls.CurveP521, curve: ecdh.P521(), pointLen: 133},
}

func groupByID(id tls.CurveID) *group {
	for _, g := range groups {
		if g.id == id {
			return g
		}
	}
	return nil
}

// groupPreference applies Config.CurvePreferences: as in crypto/tls since Go
// 1.24 it is a set, empty for all, and the order is ours.
func groupPreference(cfg *tls.Config) []tls.CurveID {
	ids := make([]tls.CurveID, 0, len(groups))
	for _, g := range groups {
		if len(cfg.CurvePreferences) == 0 || slices.Contains(cfg.CurvePreferences, g.id) {
			ids = append(ids, g.id)
		}
	}
	return ids
}

// A keyPair is a client's ephemeral key for one group.
type keyPair struct {
	group *group
	point *ecdh.PrivateKey
	kem   decapsulator
	share []byte // as it goes into key_share
}

func (g *group) generate(random io.Reader) (*keyPair, error) {
	point, err := g.curve.GenerateKey(random)
	if err != nil {
		return nil, err
	}
	return g.withPoint(point)
}

// withPoint makes the pair around a key of the curve, so that a hybrid and
// its curve alone can share one.
func (g *group) withPoint(point *ecdh.PrivateKey) (*keyPair, error) {
	k := &keyPair{group: g, point: point, share: point.PublicKey().Bytes()}
	if g.kem == nil {
		return k, nil
	}
	var key []byte
	var err error
	if k.kem, key, err = g.kem.generate(); err != nil {
		return nil, err
	}
	k.share = g.join(k.share, key)
	return k, nil
}

// shared computes the secret from the server's share.
func (k *keyPair) shared(share []byte) ([]byte, error) {
	ciphertextLen := 0
	if k.group.kem != nil {
		ciphertextLen = k.group.kem.ciphertextLen
	}
	point, ciphertext, err := k.group.split(share, ciphertextLen)
	if err != nil {
		return nil, err
	}
	secret, err := agree(k.point, point)
	if err != nil || k.kem == nil {
		return secret, err
	}
	kemSecret, err := k.kem.Decapsulate(ciphertext)
	if err != nil {
		return nil, err
	}
	return k.group.join(secret, kemSecret), nil
}

// respond is the server's half: with a key of its own for the curve, it makes
// its share and the secret from the client's share, which alone can be wrong.
func (g *group) respond(own *ecdh.PrivateKey, share []byte) (answer, secret []byte, err error) {
	keyLen := 0
	if g.kem != nil {
		keyLen = g.kem.keyLen
	}
	point, kemKey, err := g.split(share, keyLen)
	if err != nil {
		return nil, nil, err
	}
	answer = own.PublicKey().Bytes()
	if secret, err = agree(own, point); err != nil || g.kem == nil {
		return answer, secret, err
	}
	kemSecret, ciphertext, err := g.kem.encapsulate(kemKey)
	if err != nil {
		return nil, nil, err
	}
	return g.join(answer, ciphertext), g.join(secret, kemSecret), nil
}

// agree is the curve's part. The all-zero secret of X25519 is refused by
// crypto/ecdh, as RFC 8446, section 7.4.2, asks.
func agree(own *ecdh.PrivateKey, point []byte) ([]byte, error) {
	peer, err := own.Curve().NewPublicKey(point)
	if err != nil {
		return nil, err
	}
	return own.ECDH(peer)
}

func (g *group) join(point, kem []byte) []byte {
	if g.kemFirst {
		return slices.Concat(kem, point)
	}
	return slices.Concat(point, kem)
}

func (g *group) split(share []byte, kemLen int) (point, kem []byte, err error) {
	if len(share) != g.pointLen+kemLen {
		return nil, nil, fmt.Errorf("share of %v has %d bytes instead of %d", g.id, len(share), g.pointLen+kemLen)
	}
	if g.kemFirst {
		return share[kemLen:], share[:kemLen], nil
	}
	return share[:g.pointLen], share[g.pointLen:], nil
}

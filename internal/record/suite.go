package record

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"hash"

	"golang.org/x/crypto/chacha20poly1305"
)

// A Suite is a TLS 1.3 cipher suite: an AEAD and a hash (RFC 8446, B.4).
type Suite struct {
	ID   uint16
	Name string
	// NewHash makes the hash of the transcript and of HKDF.
	NewHash func() hash.Hash
	// HashLen is the size in bytes of the hash and of every secret.
	HashLen int
	// KeyLen is the size in bytes of an AEAD key.
	KeyLen int
	// MaxRecords is how many records may be sealed under one key (RFC 8446,
	// section 5.5): 2^24.5 for AES-GCM. For ChaCha20-Poly1305 the sequence
	// number would wrap first; 2^48 keeps every counter far from its end.
	MaxRecords uint64

	newAEAD func(key []byte) (cipher.AEAD, error)
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// maxRecordsGCM is 2^24.5, rounded down.
const maxRecordsGCM = 23_726_566

var (
	aes128 = &Suite{
		ID: tls.TLS_AES_128_GCM_SHA256, Name: "TLS_AES_128_GCM_SHA256",
		NewHash: sha256.New, HashLen: sha256.Size, KeyLen: 16,
		MaxRecords: maxRecordsGCM, newAEAD: newGCM,
	}
	aes256 = &Suite{
		ID: tls.TLS_AES_256_GCM_SHA384, Name: "TLS_AES_256_GCM_SHA384",
		NewHash: sha512.New384, HashLen: sha512.Size384, KeyLen: 32,
		MaxRecords: maxRecordsGCM, newAEAD: newGCM,
	}
	chacha20 = &Suite{
		ID: tls.TLS_CHACHA20_POLY1305_SHA256, Name: "TLS_CHACHA20_POLY1305_SHA256",
		NewHash: sha256.New, HashLen: sha256.Size, KeyLen: chacha20poly1305.KeySize,
		MaxRecords: 1 << 48, newAEAD: chacha20poly1305.New,
	}
)

// SuiteByID returns the suite with a TLS codepoint, or nil.
func SuiteByID(id uint16) *Suite {
	for _, s := range [...]*Suite{aes128, aes256, chacha20} {
		if s.ID == id {
			return s
		}
	}
	return nil
}

// ExpandLabel is HKDF-Expand-Label (RFC 8446, section 7.1). Labels are short
// constants and contexts are hashes, so it panics where they don't fit.
func (s *Suite) ExpandLabel(secret []byte, label string, context []byte, length int) []byte {
	const prefix = "tls13 "
	if len(prefix)+len(label) > 255 || len(context) > 255 || length > 0xffff {
		panic("record: HKDF label or context too long")
	}
	info := make([]byte, 0, 2+1+255+1+255) // of constant size, so not on the heap
	info = append(info, byte(length>>8), byte(length), byte(len(prefix)+len(label)))
	info = append(info, prefix...)
	info = append(info, label...)
	info = append(info, byte(len(context)))
	info = append(info, context...)
	out, err := hkdf.Expand(s.NewHash, secret, string(info), length)
	if err != nil {
		panic("record: HKDF-Expand: " + err.Error())
	}
	return out
}

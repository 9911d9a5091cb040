package main

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// A pin is the SHA-256 of a certificate's SubjectPublicKeyInfo. A peer that
// proves the pinned key is the right one, whatever names and dates its
// certificate bears.
type pin [sha256.Size]byte

const pinPrefix = "sha256:"

func pinOf(cert *x509.Certificate) pin { return sha256.Sum256(cert.RawSubjectPublicKeyInfo) }

func parsePin(text string) (pin, error) {
	var p pin
	digits, ok := strings.CutPrefix(text, pinPrefix)
	if !ok {
		return p, fmt.Errorf("the pin %q doesn't begin with %q", text, pinPrefix)
	}
	if len(digits) != hex.EncodedLen(len(p)) {
		return p, fmt.Errorf("the pin has %d hexadecimal digits, not %d", len(digits), hex.EncodedLen(len(p)))
	}
	if _, err := hex.Decode(p[:], []byte(digits)); err != nil {
		return p, errors.New("the pin isn't hexadecimal")
	}
	return p, nil
}

func (p pin) String() string { return pinPrefix + hex.EncodeToString(p[:]) }

// verify is for tls.Config.VerifyConnection.
func (p pin) verify(state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("the peer has no certificate, and so none that matches the pin")
	}
	got := pinOf(state.PeerCertificates[0])
	if subtle.ConstantTimeCompare(got[:], p[:]) != 1 {
		return &pinError{want: p, got: got}
	}
	return nil
}

// A pinError is a peer with another key than the pinned one.
type pinError struct{ want, got pin }

func (e *pinError) Error() string {
	return fmt.Sprintf("the peer's key is %v, not the pinned %v", e.got, e.want)
}

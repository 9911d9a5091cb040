package tls13

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// schemesOffered is what we say in signature_algorithms. Those of PKCS #1
// v1.5 are for signatures in certificates only (RFC 8446, section 4.2.3); a
// CertificateVerify with them is refused.
var schemesOffered = []tls.SignatureScheme{
	tls.ECDSAWithP256AndSHA256,
	tls.PSSWithSHA256,
	tls.Ed25519,
	tls.ECDSAWithP384AndSHA384,
	tls.ECDSAWithP521AndSHA512,
	tls.PSSWithSHA384,
	tls.PSSWithSHA512,
	tls.PKCS1WithSHA256,
	tls.PKCS1WithSHA384,
	tls.PKCS1WithSHA512,
}

// A signature scheme of TLS 1.3's CertificateVerify.
type scheme struct {
	hash  crypto.Hash    // 0: the message is signed itself
	curve elliptic.Curve // of ECDSA
	pss   bool
}

var schemes = map[tls.SignatureScheme]scheme{
	tls.ECDSAWithP256AndSHA256: {hash: crypto.SHA256, curve: elliptic.P256()},
	tls.ECDSAWithP384AndSHA384: {hash: crypto.SHA384, curve: elliptic.P384()},
	tls.ECDSAWithP521AndSHA512: {hash: crypto.SHA512, curve: elliptic.P521()},
	tls.PSSWithSHA256:          {hash: crypto.SHA256, pss: true},
	tls.PSSWithSHA384:          {hash: crypto.SHA384, pss: true},
	tls.PSSWithSHA512:          {hash: crypto.SHA512, pss: true},
	tls.Ed25519:                {},
}

// fits tells whether a key can sign or verify with the scheme. An RSA modulus
// must have room for hash, salt and two bytes more (RFC 8017, 9.1.1).
func (s scheme) fits(key crypto.PublicKey) bool {
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		return s.curve != nil && s.curve == key.Curve
	case *rsa.PublicKey:
		return s.pss && key.Size() >= 2*s.hash.Size()+2
	case ed25519.PublicKey:
		return s == scheme{}
	}
	return false
}

// signedContent is what a CertificateVerify signs (section 4.4.3).
func signedContent(byClient bool, transcript []byte) []byte {
	context := "TLS 1.3, server CertificateVerify\x00"
	if byClient {
		context = "TLS 1.3, client CertificateVerify\x00"
	}
	return slices.Concat(bytes.Repeat([]byte{' '}, 64), []byte(context), transcript)
}

func (s scheme) digest(content []byte) []byte {
	if s.hash == 0 {
		return content
	}
	h := s.hash.New()
	h.Write(content)
	return h.Sum(nil)
}

func (s scheme) options() crypto.SignerOpts {
	if s.pss {
		return &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: s.hash}
	}
	return s.hash
}

func (s scheme) verify(key crypto.PublicKey, content, signature []byte) bool {
	digest := s.digest(content)
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(key, digest, signature)
	case *rsa.PublicKey:
		opts := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}
		return rsa.VerifyPSS(key, s.hash, digest, signature, opts) == nil
	case ed25519.PublicKey:
		return ed25519.Verify(key, digest, signature)
	}
	return false
}

// selectScheme picks, in the peer's order, a scheme that the certificate's
// key can sign with.
func selectScheme(cert *tls.Certificate, offered []tls.SignatureScheme) (tls.SignatureScheme, error) {
	signer, ok := cert.PrivateKey.(crypto.Signer)
	if !ok {
		return 0, fmt.Errorf("private key of type %T is not a crypto.Signer", cert.PrivateKey)
	}
	key, usable := signer.Public(), false
	for _, id := range schemesOffered {
		s, ok := schemes[id]
		usable = usable || ok && s.fits(key)
	}
	if !usable {
		return 0, fmt.Errorf("TLS 1.3 has no signature scheme for the certificate's key of type %T", key)
	}
	for _, id := range offered {
		s, ok := schemes[id]
		allowed := cert.SupportedSignatureAlgorithms == nil || slices.Contains(cert.SupportedSignatureAlgorithms, id)
		if ok && allowed && s.fits(key) {
			return id, nil
		}
	}
	return 0, errors.New("peer supports no signature scheme of the certificate's key")
}

// sign makes a CertificateVerify.
func sign(cert *tls.Certificate, id tls.SignatureScheme, byClient bool, transcript []byte, random io.Reader) (*certificateVerify, error) {
	s := schemes[id]
	signer := cert.PrivateKey.(crypto.Signer) // selectScheme saw to it
	signature, err := signer.Sign(random, s.digest(signedContent(byClient, transcript)), s.options())
	if err != nil {
		return nil, because(AlertInternalError, err, "signing the handshake with own certificate")
	}
	return &certificateVerify{scheme: id, signature: signature}, nil
}

// maxRSABits bounds the work of verifying with a peer's key.
const maxRSABits = 8192

// A peerChain is what the peer sent as its certificate, parsed and not yet
// believed.
type peerChain struct {
	raw  [][]byte
	x509 []*x509.Certificate
	ocsp []byte
	scts [][]byte

	scheme tls.SignatureScheme // of a CertificateVerify that was good
}

// parseChain parses certificates and the extensions of the first, which were
// found to be asked for.
func parseChain(m *certificate) (*peerChain, error) {
	p := new(peerChain)
	for i, e := range m.entries {
		der := bytes.Clone(e.der) // the x509 certificate lives on and refers to it
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, because(AlertBadCertificate, err, "peer's certificate %d can't be parsed", i)
		}
		if key, ok := cert.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() > maxRSABits {
			return nil, broken(AlertBadCertificate, "peer's certificate %d has an RSA key of more than %d bits", i, maxRSABits)
		}
		p.raw, p.x509 = append(p.raw, der), append(p.x509, cert)
		if err := p.parseEntry(i, e.extensions); err != nil {
			return nil, err
		}
	}
	if len(p.x509) == 0 {
		return p, nil
	}
	leaf := p.x509[0]
	switch key := leaf.PublicKey.(type) {
	case *ecdsa.PublicKey, *rsa.PublicKey, ed25519.PublicKey:
	default:
		return nil, broken(AlertUnsupportedCertificate, "peer's certificate has a key of type %T", key)
	}
	if leaf.KeyUsage != 0 && leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 { // section 4.4.2.2
		return nil, broken(AlertBadCertificate, "peer's certificate has a key usage without digitalSignature")
	}
	return p, nil
}

func (p *peerChain) parseEntry(i int, extensions []extension) error {
	if body, ok := findExtension(extensions, extStatusRequest); ok {
		response, ok := parseOCSP(body)
		if !ok {
			return badExtension(extStatusRequest)
		}
		if i == 0 {
			p.ocsp = bytes.Clone(response)
		}
	}
	if body, ok := findExtension(extensions, extSCT); ok {
		list, ok := parseVectorList(bytes.Clone(body))
		if !ok {
			return badExtension(extSCT)
		}
		if i == 0 {
			p.scts = list
		}
	}
	return nil
}

// checkSignature verifies the peer's CertificateVerify over the transcript
// before it.
func (p *peerChain) checkSignature(m *certificateVerify, byClient bool, transcript []byte) error {
	s, ok := schemes[m.scheme]
	if !ok || !slices.Contains(schemesOffered, m.scheme) {
		return broken(AlertIllegalParameter, "peer signs with %v, which may not sign handshakes or was not offered", m.scheme)
	}
	key := p.x509[0].PublicKey
	if !s.fits(key) {
		return broken(AlertIllegalParameter, "peer signs with %v, which doesn't fit its key of type %T", m.scheme, key)
	}
	if !s.verify(key, signedContent(byClient, transcript), m.signature) {
		return broken(AlertDecryptError, "signature in peer's CertificateVerify is wrong")
	}
	p.scheme = m.scheme
	return nil
}

// A policy is what an end demands of its peer's certificate.
type policy struct {
	required bool // a certificate must come
	verify   bool // and chain up to roots
	roots    *x509.CertPool
	name     string // "": any
	usage    x509.ExtKeyUsage
	now      time.Time
	custom   func(raw [][]byte, chains [][]*x509.Certificate) error
}

// verifiedPeer is evidence that the peer is who the policy wants: it holds the
// key of its certificate, and the certificate was judged. Only authenticate
// makes one, and without one there are no application keys.
type verifiedPeer struct {
	chain  *peerChain
	chains [][]*x509.Certificate
}

// authenticate checks the peer's CertificateVerify and then its certificate.
// m is nil, and p empty, for a peer that has none.
func (p *peerChain) authenticate(by policy, m *certificateVerify, byClient bool, transcript []byte) (*verifiedPeer, error) {
	switch {
	case len(p.x509) > 0:
		if err := p.checkSignature(m, byClient, transcript); err != nil {
			return nil, err
		}
	case by.required:
		return nil, broken(AlertCertificateRequired, "peer sends no certificate, which the configuration requires")
	}
	chains, err := p.verifyChain(by)
	if err != nil {
		return nil, err
	}
	return &verifiedPeer{p, chains}, nil
}

// verifyChain lets crypto/x509 and then the configuration's own check judge
// the chain.
func (p *peerChain) verifyChain(by policy) (chains [][]*x509.Certificate, err error) {
	if by.verify && len(p.x509) > 0 {
		opts := x509.VerifyOptions{
			Roots: by.roots, DNSName: by.name, CurrentTime: by.now,
			Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{by.usage},
		}
		for _, cert := range p.x509[1:] {
			opts.Intermediates.AddCert(cert)
		}
		if chains, err = p.x509[0].Verify(opts); err != nil {
			err = &tls.CertificateVerificationError{UnverifiedCertificates: p.x509, Err: err}
			return nil, because(p.alertFor(err), err, "peer's certificate is refused")
		}
	}
	if by.custom != nil {
		if err := by.custom(p.raw, chains); err != nil {
			return nil, refusal(AlertBadCertificate, err, "VerifyPeerCertificate refuses the peer's certificate")
		}
	}
	return chains, nil
}

// alertFor gives a refusal of the chain its alert. crypto/x509 never verifies
// a signature with MD5, and RFC 8446, section 4.4.2.4, has an alert for that.
func (p *peerChain) alertFor(err error) Alert {
	if slices.ContainsFunc(p.x509, signedWithMD5) {
		return AlertBadCertificate
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return AlertUnknownCA
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return AlertCertificateExpired
	}
	return AlertBadCertificate
}

// signedWithMD5 leaves out what vouches for itself: nobody verifies that.
func signedWithMD5(c *x509.Certificate) bool {
	return c.SignatureAlgorithm == x509.MD5WithRSA && !bytes.Equal(c.RawIssuer, c.RawSubject)
}

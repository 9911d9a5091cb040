package tls13

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
)

// certificateMessage makes a Certificate of ours. The staple and SCTs go with
// the leaf, if the peer asked for them.
func certificateMessage(cert *tls.Certificate, ocsp, sct bool) *certificate {
	m := new(certificate)
	for i, der := range cert.Certificate {
		e := certificateEntry{der: der}
		if i == 0 && ocsp && len(cert.OCSPStaple) > 0 {
			e.extensions = append(e.extensions, extension{extStatusRequest, ocspBody(cert.OCSPStaple)})
		}
		if i == 0 && sct && len(cert.SignedCertificateTimestamps) > 0 {
			e.extensions = append(e.extensions, extension{extSCT, vectorList(cert.SignedCertificateTimestamps)})
		}
		m.entries = append(m.entries, e)
	}
	return m
}

// clientCertificate picks the answer to a CertificateRequest; an empty one if
// none is acceptable to the server.
func clientCertificate(t *tls.Config, info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
	if t.GetClientCertificate != nil {
		cert, err := t.GetClientCertificate(info)
		switch {
		case err != nil:
			return nil, refusal(AlertInternalError, err, "GetClientCertificate")
		case cert == nil:
			return nil, broken(AlertInternalError, "GetClientCertificate returned neither a certificate nor an error")
		}
		return cert, nil
	}
	for i := range t.Certificates {
		if info.SupportsCertificate(&t.Certificates[i]) == nil {
			return &t.Certificates[i], nil
		}
	}
	return new(tls.Certificate), nil
}

// serverCertificate picks the server's certificate in the way that
// tls.Config documents: GetCertificate, NameToCertificate, the first that
// suits the client, the first.
func serverCertificate(t *tls.Config, info *tls.ClientHelloInfo, certSchemes []tls.SignatureScheme) (*tls.Certificate, error) {
	if t.GetCertificate != nil && (len(t.Certificates) == 0 || info.ServerName != "") {
		cert, err := t.GetCertificate(info)
		if err != nil {
			return nil, refusal(AlertInternalError, err, "GetCertificate")
		}
		if cert != nil {
			return cert, nil
		}
	}
	switch len(t.Certificates) {
	case 0:
		if info.ServerName == "" && t.GetCertificate != nil { // section 9.2
			return nil, broken(AlertMissingExtension, "client sends no server_name, without which GetCertificate has no certificate")
		}
		return nil, broken(AlertUnrecognizedName, "no certificate is configured for the name %q", info.ServerName)
	case 1:
		return &t.Certificates[0], nil
	}
	if cert := certificateByName(t, info.ServerName); cert != nil {
		return cert, nil
	}
	var suitable *tls.Certificate
	for i := range t.Certificates {
		cert := &t.Certificates[i]
		if info.SupportsCertificate(cert) != nil {
			continue
		}
		if signedWithin(cert, certSchemes) {
			return cert, nil
		}
		if suitable == nil {
			suitable = cert
		}
	}
	if suitable == nil {
		suitable = &t.Certificates[0]
	}
	return suitable, nil
}

// certificateByName looks a name up as it is, and with its first label as a
// wildcard.
func certificateByName(t *tls.Config, name string) *tls.Certificate {
	//lint:ignore SA1019 deprecated, and still honoured
	certificates := t.NameToCertificate
	name = strings.ToLower(name)
	if cert, ok := certificates[name]; ok {
		return cert
	}
	if _, parent, ok := strings.Cut(name, "."); ok {
		return certificates["*."+parent]
	}
	return nil
}

// schemesOfCertificates tells in which signature schemes a certificate may
// have been signed. RSA and ECDSA there are not bound to key or curve.
var schemesOfCertificates = map[x509.SignatureAlgorithm]tls.SignatureScheme{
	x509.SHA256WithRSA:    tls.PKCS1WithSHA256,
	x509.SHA384WithRSA:    tls.PKCS1WithSHA384,
	x509.SHA512WithRSA:    tls.PKCS1WithSHA512,
	x509.SHA256WithRSAPSS: tls.PSSWithSHA256,
	x509.SHA384WithRSAPSS: tls.PSSWithSHA384,
	x509.SHA512WithRSAPSS: tls.PSSWithSHA512,
	x509.ECDSAWithSHA256:  tls.ECDSAWithP256AndSHA256,
	x509.ECDSAWithSHA384:  tls.ECDSAWithP384AndSHA384,
	x509.ECDSAWithSHA512:  tls.ECDSAWithP521AndSHA512,
	x509.PureEd25519:      tls.Ed25519,
}

// signedWithin tells whether a certificate's own signature is among the
// schemes of signature_algorithms_cert, as far as the parsed leaf shows it.
func signedWithin(cert *tls.Certificate, schemes []tls.SignatureScheme) bool {
	if schemes == nil || cert.Leaf == nil {
		return true
	}
	scheme, known := schemesOfCertificates[cert.Leaf.SignatureAlgorithm]
	return known && slices.Contains(schemes, scheme)
}

// clientPolicy is how a client judges its server.
func clientPolicy(t *tls.Config) policy {
	return policy{
		required: true, verify: !t.InsecureSkipVerify, roots: t.RootCAs, name: t.ServerName,
		usage: x509.ExtKeyUsageServerAuth, now: timeNow(t), custom: t.VerifyPeerCertificate,
	}
}

// serverPolicy is how a server judges its client, by Config.ClientAuth.
func serverPolicy(t *tls.Config) policy {
	if t.ClientAuth == tls.NoClientCert {
		return policy{}
	}
	return policy{
		required: t.ClientAuth == tls.RequireAnyClientCert || t.ClientAuth == tls.RequireAndVerifyClientCert,
		verify:   t.ClientAuth >= tls.VerifyClientCertIfGiven, roots: t.ClientCAs,
		usage: x509.ExtKeyUsageClientAuth, now: timeNow(t), custom: t.VerifyPeerCertificate,
	}
}

// verifyConnection asks the configuration's VerifyConnection, which sees the
// peer that was just verified.
func (c *Conn) verifyConnection() error {
	if c.tls.VerifyConnection == nil {
		return nil
	}
	if err := c.tls.VerifyConnection(c.ConnectionState()); err != nil {
		return refusal(AlertBadCertificate, err, "VerifyConnection refuses the connection")
	}
	return nil
}

// verifyResumed is verifyConnection for a peer whose certificate was verified
// in an earlier session. A PSK of the user's is its own proof.
func (c *Conn) verifyResumed(peer *verifiedPeer) error {
	c.peer = peer
	if c.pskIdentity != nil {
		return nil
	}
	return c.verifyConnection()
}

// extensionError gives an error of Config.Answer or Accept its alert.
func extensionError(err error, what string) error {
	if err == nil {
		return nil
	}
	if own, ok := errors.AsType[*Error](err); ok {
		return own
	}
	return because(AlertIllegalParameter, err, "%s in the extension is refused", what)
}

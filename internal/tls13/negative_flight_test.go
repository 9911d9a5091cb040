package tls13

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
)

// greeted is a puppet server that has sent its ServerHello.
func greeted(t *testing.T, use extensionUse) *puppet {
	p := puppetServer(t, use)
	p.serverHello(nil)
	return p
}

func TestClientRefusesEncryptedExtensions(t *testing.T) {
	with := func(more ...extension) func(p *puppet) {
		return func(p *puppet) { p.encryptedExtensions(more...) }
	}
	limit := func(n uint16) extension { return extension{extRecordSizeLimit, uint16Body(n)} }
	runNegative(t, []negative{
		{"extension never asked for", AlertUnsupportedExtension, false, with(extension{0x7a7b, nil})},
		{"GREASE extension echoed", AlertUnsupportedExtension, false, func(p *puppet) { p.encryptedExtensions(p.grease()) }},
		{"early_data never asked for", AlertUnsupportedExtension, false, with(extension{extEarlyData, nil})},
		{"record_size_limit never asked for", AlertUnsupportedExtension, false, with(limit(16384))},
		{"max_fragment_length never asked for", AlertUnsupportedExtension, false, with(extension{extMaxFragmentLength, []byte{1}})},
		{"status_request_v2 never asked for", AlertUnsupportedExtension, false, with(extension{17, nil})},
		{"status_request misplaced", AlertIllegalParameter, false, with(extension{extStatusRequest, nil})},
		{"psk_key_exchange_modes misplaced", AlertIllegalParameter, false, with(extension{extPSKModes, []byte{1, 1}})},
		{"pre_shared_key misplaced", AlertIllegalParameter, false, with(extension{extPreSharedKey, []byte{0, 0}})},
		{"cookie misplaced", AlertIllegalParameter, false, with(extension{extCookie, vector16Body([]byte("c"))})},
		{"key_share misplaced", AlertIllegalParameter, false, with(extension{extKeyShare, nil})},
		{"supported_versions misplaced", AlertIllegalParameter, false, with(extension{extSupportedVersions, uint16Body(tls.VersionTLS13)})},
		{"signature_algorithms misplaced", AlertIllegalParameter, false, with(extension{extSignatureAlgorithms, uint16List(schemesOffered)})},
		{"extension twice", AlertIllegalParameter, false, with(extension{extServerName, nil})},
		{"server_name not empty", AlertDecodeError, false, func(p *puppet) {
			p.send(&encryptedExtensions{[]extension{{extServerName, []byte{0}}}})
		}},
		{"ALPN not offered", AlertIllegalParameter, false, with(extension{extALPN, alpnBody([]string{"b"})})},
		{"ALPN with two protocols", AlertDecodeError, false, with(extension{extALPN, alpnBody([]string{"a", "a"})})},
		{"ALPN empty", AlertDecodeError, false, with(extension{extALPN, []byte{0, 0}})},
		{"ALPN with an empty name", AlertDecodeError, false, with(extension{extALPN, []byte{0, 1, 0}})},
		{"supported_groups malformed", AlertDecodeError, false, with(extension{extSupportedGroups, []byte{0, 1, 2}})},
		{"bytes left over", AlertDecodeError, false, func(p *puppet) { p.sendRaw([]byte{8, 0, 0, 3, 0, 0, 0}) }},
		{"too short", AlertDecodeError, false, func(p *puppet) { p.sendRaw([]byte{8, 0, 0, 1, 0}) }},
		{"an extension cut", AlertDecodeError, false, func(p *puppet) { p.sendRaw([]byte{8, 0, 0, 5, 0, 3, 0, 10, 0}) }},
		{"skipped", AlertUnexpectedMessage, false, func(p *puppet) { p.proof() }},
		{"twice", AlertUnexpectedMessage, false, func(p *puppet) {
			p.encryptedExtensions()
			p.encryptedExtensions()
		}},
		{"supported_groups", 0, true, func(p *puppet) {
			p.encryptedExtensions(extension{extSupportedGroups, uint16List([]tls.CurveID{0x0a0a, tls.X25519})})
			p.proof()
			p.serverFinished()
		}},
	}, greeted)
}

func TestClientRefusesRecordSizeLimit(t *testing.T) {
	for _, test := range []struct {
		limit uint16
		fine  bool
	}{{63, false}, {64, true}, {16385, true}, {16386, false}} {
		p := newPuppetServer(t, &Config{TLS: clientTLS(), RecordSizeLimit: 1000})
		p.serverHello(nil)
		p.encryptedExtensions(extension{extRecordSizeLimit, uint16Body(test.limit)})
		p.feed()
		p.wantAlert(AlertIllegalParameter, test.fine)
		if test.fine && (p.engine.SendLimit() != int(test.limit)-1 || p.engine.ReceiveLimit() != 1000) {
			t.Errorf("limits %d and %d", p.engine.SendLimit(), p.engine.ReceiveLimit())
		}
	}
}

func TestMalformedRecordSizeLimit(t *testing.T) {
	for _, body := range [][]byte{nil, {64}, {0, 64, 0}} {
		p := newPuppetServer(t, &Config{TLS: clientTLS(), RecordSizeLimit: 1000})
		p.serverHello(nil)
		p.encryptedExtensions(extension{extRecordSizeLimit, body})
		p.feed()
		p.wantAlert(AlertDecodeError, false)
	}
}

func TestClientRefusesCertificate(t *testing.T) {
	with := func(change func(m *certificate)) func(p *puppet) {
		return func(p *puppet) {
			m := certificateMessage(&p.cert, false, false)
			change(m)
			p.send(m)
			p.send(p.certificateVerify())
			p.serverFinished()
		}
	}
	entry := func(list ...extension) func(p *puppet) {
		return with(func(m *certificate) { m.entries[0].extensions = list })
	}
	runNegative(t, []negative{
		{"empty", AlertDecodeError, false, with(func(m *certificate) { m.entries = nil })},
		{"empty entry", AlertDecodeError, false, with(func(m *certificate) { m.entries[0].der = nil })},
		{"context not empty", AlertIllegalParameter, false, with(func(m *certificate) { m.context = []byte{1} })},
		{"garbage DER", AlertBadCertificate, false, with(func(m *certificate) { m.entries[0].der = []byte("garbage") })},
		{"garbage behind the leaf", AlertBadCertificate, false, with(func(m *certificate) {
			m.entries = append(m.entries, certificateEntry{der: []byte("garbage")})
		})},
		{"chain without end", AlertBadCertificate, false, with(func(m *certificate) {
			for range maxChain {
				m.entries = append(m.entries, m.entries[0])
			}
		})},
		{"extension never asked for", AlertUnsupportedExtension, false, entry(extension{0x7a7b, nil})},
		{"GREASE extension echoed", AlertUnsupportedExtension, false, func(p *puppet) { entry(p.grease())(p) }},
		{"known extension misplaced", AlertIllegalParameter, false, entry(extension{extALPN, nil})},
		{"extension twice", AlertIllegalParameter, false, entry(extension{0x7a7b, nil}, extension{0x7a7b, nil})},
		{"staple malformed", AlertDecodeError, false, entry(extension{extStatusRequest, []byte{1, 0, 0, 0}})},
		{"SCTs malformed", AlertDecodeError, false, entry(extension{extSCT, []byte{0, 0}})},
		{"bytes left over", AlertDecodeError, false, func(p *puppet) { p.sendRaw([]byte{11, 0, 0, 5, 0, 0, 0, 0, 0}) }},
		{"skipped", AlertUnexpectedMessage, false, func(p *puppet) { p.serverFinished() }},
		{"untrusted", AlertUnknownCA, false, with(func(m *certificate) {
			key := testKeys()["P-256"]
			template := authority().cert
			forged := &x509.Certificate{SerialNumber: template.SerialNumber, DNSNames: []string{testName}, NotBefore: testStart, NotAfter: testStart.AddDate(9, 0, 0)}
			m.entries[0].der = must(x509.CreateCertificate(rand.Reader, forged, forged, key.Public(), key))
		})},
		{"expired", AlertCertificateExpired, false, with(func(m *certificate) {
			m.entries[0].der = authority().issue(testKeys()["P-256"], func(c *x509.Certificate) { c.NotAfter = testStart.AddDate(0, 1, 0) }).Certificate[0]
		})},
		{"for another name", AlertBadCertificate, false, with(func(m *certificate) {
			m.entries[0].der = authority().issue(testKeys()["P-256"], func(c *x509.Certificate) { c.DNSNames = []string{"other.example"} }).Certificate[0]
		})},
		{"for clients only", AlertBadCertificate, false, with(func(m *certificate) {
			m.entries[0].der = authority().issue(testKeys()["P-256"], func(c *x509.Certificate) {
				c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
			}).Certificate[0]
		})},
		{"for key agreement only", AlertBadCertificate, false, with(func(m *certificate) {
			m.entries[0].der = authority().issue(testKeys()["P-256"], func(c *x509.Certificate) {
				c.KeyUsage = x509.KeyUsageKeyAgreement
			}).Certificate[0]
		})},
		{"without a key usage", 0, true, with(func(m *certificate) {
			m.entries[0].der = authority().issue(testKeys()["P-256"], func(c *x509.Certificate) { c.KeyUsage = 0 }).Certificate[0]
		})},
		{"RSA key without end", AlertBadCertificate, false, withKey(&rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), maxRSABits), E: 65537})},
		{"key that can't sign", AlertUnsupportedCertificate, false, with(func(m *certificate) {
			// Ed25519's OID becomes X25519's.
			der := testCertificates()["Ed25519"].Certificate[0]
			m.entries[0].der = bytes.Replace(der, []byte{6, 3, 0x2b, 0x65, 0x70}, []byte{6, 3, 0x2b, 0x65, 0x6e}, 1)
		})},
		{"signed with MD5", AlertBadCertificate, false, with(func(m *certificate) {
			key := testKeys()["RSA-2048"].(*rsa.PrivateKey)
			root := &x509.Certificate{Subject: pkix.Name{CommonName: "old"}, PublicKeyAlgorithm: x509.RSA}
			template := &x509.Certificate{SerialNumber: big.NewInt(5), DNSNames: []string{testName}, NotBefore: testStart, NotAfter: testStart.AddDate(9, 0, 0)}
			der := must(x509.CreateCertificate(rand.Reader, template, root, testKeys()["P-256"].Public(), key))
			// sha256WithRSAEncryption becomes md5WithRSAEncryption.
			oid := []byte{6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11}
			m.entries[0].der = bytes.ReplaceAll(der, oid, append(oid[:10:10], 4))
		})},
		{"good", 0, true, with(func(*certificate) {})},
	}, encrypted)
}

// withKey sends a certificate for any key at all.
func withKey(key crypto.PublicKey) func(p *puppet) {
	return func(p *puppet) {
		a := authority()
		template := &x509.Certificate{SerialNumber: big.NewInt(4), DNSNames: []string{testName}, NotBefore: testStart, NotAfter: testStart.AddDate(9, 0, 0)}
		der := must(x509.CreateCertificate(rand.Reader, template, a.cert, key, a.key))
		p.send(certificateMessage(&tls.Certificate{Certificate: [][]byte{der}}, false, false))
	}
}

// TestUnusableClientCertificate lets a client's callback answer with a
// certificate that the server's request rules out.
func TestUnusableClientCertificate(t *testing.T) {
	cert := testCertificates()["P-384"]
	client := clientTLS()
	client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	p := newPuppetServer(t, &Config{TLS: client})
	p.serverHello(nil)
	p.encryptedExtensions()
	p.send(&certificateRequest{extensions: []extension{{extSignatureAlgorithms, uint16List([]tls.SignatureScheme{tls.Ed25519})}}})
	p.proof()
	p.serverFinished()
	p.wantAlert(AlertHandshakeFailure, false)
}

// encrypted is a puppet server that has sent its EncryptedExtensions.
func encrypted(t *testing.T, use extensionUse) *puppet {
	p := greeted(t, use)
	p.encryptedExtensions()
	return p
}

// proven sends a certificate of a kind and what change makes of a good
// CertificateVerify.
func proven(kind string, scheme tls.SignatureScheme, change func(p *puppet, m *certificateVerify)) func(p *puppet) {
	return func(p *puppet) {
		p.cert = testCertificates()[kind]
		p.send(certificateMessage(&p.cert, false, false))
		m := must(sign(&p.cert, scheme, false, p.transcript.sum(), rand.Reader))
		change(p, m)
		p.send(m)
	}
}

func TestClientRefusesCertificateVerify(t *testing.T) {
	as := func(s tls.SignatureScheme) func(*puppet, *certificateVerify) {
		return func(_ *puppet, m *certificateVerify) { m.scheme = s }
	}
	// resign signs the right content in a way that TLS 1.3 doesn't allow.
	resign := func(s tls.SignatureScheme, opts crypto.SignerOpts) func(*puppet, *certificateVerify) {
		return func(p *puppet, m *certificateVerify) {
			h := opts.HashFunc().New()
			h.Write(signedContent(false, p.transcript.sum()))
			m.scheme, m.signature = s, must(p.cert.PrivateKey.(crypto.Signer).Sign(rand.Reader, h.Sum(nil), opts))
		}
	}
	p256, rsaKind := tls.ECDSAWithP256AndSHA256, "RSA-2048"
	runNegative(t, []negative{
		{"unknown algorithm", AlertIllegalParameter, false, proven("P-256", p256, as(0x7a7a))},
		{"unknown algorithm with an Ed25519 key", AlertIllegalParameter, false, proven("Ed25519", tls.Ed25519, as(0x7a7a))},
		{"PKCS#1 v1.5", AlertIllegalParameter, false, proven(rsaKind, tls.PSSWithSHA256, resign(tls.PKCS1WithSHA256, crypto.SHA256))},
		{"SHA-1", AlertIllegalParameter, false, proven("P-256", p256, as(tls.ECDSAWithSHA1))},
		{"curve that doesn't fit", AlertIllegalParameter, false, proven("P-384", tls.ECDSAWithP384AndSHA384, resign(p256, crypto.SHA256))},
		{"key type that doesn't fit", AlertIllegalParameter, false, proven("P-256", p256, as(tls.Ed25519))},
		{"RSA scheme with an ECDSA key", AlertIllegalParameter, false, proven("P-256", p256, as(tls.PSSWithSHA256))},
		{"wrong signature", AlertDecryptError, false, proven("P-256", p256, func(_ *puppet, m *certificateVerify) { m.signature[8] ^= 1 })},
		{"empty signature", AlertDecryptError, false, proven("P-256", p256, func(_ *puppet, m *certificateVerify) { m.signature = nil })},
		{"context string of the other side", AlertDecryptError, false, proven("P-256", p256, func(p *puppet, m *certificateVerify) {
			*m = *must(sign(&p.cert, p256, true, p.transcript.sum(), rand.Reader))
		})},
		{"salt longer than the hash", AlertDecryptError, false, proven(rsaKind, tls.PSSWithSHA256,
			resign(tls.PSSWithSHA256, &rsa.PSSOptions{SaltLength: 48, Hash: crypto.SHA256}))},
		{"salt shorter than the hash", AlertDecryptError, false, proven(rsaKind, tls.PSSWithSHA256,
			resign(tls.PSSWithSHA256, &rsa.PSSOptions{SaltLength: 20, Hash: crypto.SHA256}))},
		{"bytes left over", AlertDecodeError, false, func(p *puppet) {
			p.send(certificateMessage(&p.cert, false, false))
			p.sendRaw([]byte{15, 0, 0, 5, 4, 3, 0, 0, 0})
		}},
		{"skipped", AlertUnexpectedMessage, false, func(p *puppet) {
			p.send(certificateMessage(&p.cert, false, false))
			p.serverFinished()
		}},
	}, encrypted)
}

func TestClientRefusesFinished(t *testing.T) {
	mac := func(change func(mac []byte) []byte) func(p *puppet) {
		return func(p *puppet) {
			p.send(&finished{change(finishedMAC(p.suite, p.traffic.server, p.transcript.sum()))})
		}
	}
	runNegative(t, []negative{
		{"wrong", AlertDecryptError, false, mac(func(m []byte) []byte { m[0] ^= 1; return m })},
		{"short", AlertDecodeError, false, mac(func(m []byte) []byte { return m[1:] })},
		{"long", AlertDecodeError, false, mac(func(m []byte) []byte { return append(m, 0) })},
		{"empty", AlertDecodeError, false, mac(func([]byte) []byte { return nil })},
		{"KeyUpdate before it", AlertUnexpectedMessage, false, func(p *puppet) { p.send(&keyUpdate{}) }},
		{"ticket before it", AlertUnexpectedMessage, false, func(p *puppet) { p.send(&newSessionTicket{ticket: []byte("t")}) }},
		{"CertificateRequest before it", AlertUnexpectedMessage, false, func(p *puppet) { p.send(goodRequest()) }},
		{"a message behind it in its record", AlertUnexpectedMessage, false, func(p *puppet) {
			raw := must(encode(&finished{finishedMAC(p.suite, p.traffic.server, p.transcript.sum())}))
			p.sendRaw(append(raw, must(encode(&newSessionTicket{ticket: []byte("t")}))...))
		}},
	}, func(t *testing.T, use extensionUse) *puppet {
		p := encrypted(t, use)
		p.proof()
		return p
	})
}

func goodRequest() *certificateRequest {
	return &certificateRequest{extensions: []extension{{extSignatureAlgorithms, uint16List(schemesOffered)}}}
}

func TestClientRefusesCertificateRequest(t *testing.T) {
	with := func(change func(m *certificateRequest)) func(p *puppet) {
		return func(p *puppet) {
			m := goodRequest()
			change(m)
			p.send(m)
			p.proof()
			p.serverFinished()
		}
	}
	more := func(list ...extension) func(p *puppet) {
		return with(func(m *certificateRequest) { m.extensions = append(m.extensions, list...) })
	}
	runNegative(t, []negative{
		{"context in the handshake", AlertIllegalParameter, false, with(func(m *certificateRequest) { m.context = []byte{1} })},
		{"without signature_algorithms", AlertMissingExtension, false, with(func(m *certificateRequest) { m.extensions = []extension{} })},
		{"signature_algorithms empty", AlertDecodeError, false, with(func(m *certificateRequest) { m.extensions[0].body = []byte{0, 0} })},
		{"known extension misplaced", AlertIllegalParameter, false, more(extension{extALPN, nil})},
		{"extension twice", AlertIllegalParameter, false, more(extension{extSCT, nil}, extension{extSCT, nil})},
		{"bytes left over", AlertDecodeError, false, func(p *puppet) { p.sendRaw(longer(must(encode(goodRequest())))) }},
		{"authorities malformed", AlertDecodeError, false, more(extension{extCertificateAuthorities, []byte{0, 0}})},
		{"status_request not empty", AlertDecodeError, false, more(extension{extStatusRequest, statusRequestBody()})},
		{"twice", AlertUnexpectedMessage, false, func(p *puppet) {
			p.send(goodRequest())
			p.send(goodRequest())
		}},
		{"unknown extension and scheme", 0, true, with(func(m *certificateRequest) {
			m.extensions[0].body = uint16List(append([]tls.SignatureScheme{0x0a0a}, schemesOffered...))
			m.extensions = append(m.extensions, extension{0x0a0a, nil}, extension{extOIDFilters, []byte{0, 0}},
				extension{extSignatureAlgsCert, uint16List(schemesOffered)},
				extension{extCertificateAuthorities, vectorList([][]byte{authority().cert.RawSubject})})
		})},
	}, encrypted)
}

package tls13

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"runtime"
	"slices"
	"testing"

	"github.com/go-tcpls/tcpls/internal/record"
)

// isZero tells whether a secret is gone: there, but wiped.
func isZero(secret []byte) bool {
	return len(secret) > 0 && len(bytes.Trim(secret, "\x00")) == 0
}

// TestSecretsAreWiped looks at what a handshake leaves behind. What the
// application's keys derive from is gone, or a KeyUpdate would protect nothing.
func TestSecretsAreWiped(t *testing.T) {
	cc, err := newConn(&Config{TLS: clientTLS()}, true)
	if err != nil {
		t.Fatal(err)
	}
	client := &clientHandshake{c: cc}
	if err := client.start(); err != nil {
		t.Fatal(err)
	}
	cc.next = step{want: typeServerHello, run: client.serverHello}
	sc, err := newConn(&Config{TLS: serverTLS()}, false)
	if err != nil {
		t.Fatal(err)
	}
	server := &serverHandshake{c: sc}
	sc.next = step{want: typeClientHello, run: server.firstHello}
	mustShake(t, cc, sc)
	for name, secret := range map[string][]byte{
		"client's handshake secret":                client.keys.secret,
		"client's traffic secret of the handshake": client.traffic.client,
		"server's traffic secret, at the client":   client.traffic.server,
		"server's master secret":                   server.master.secret,
		"server's traffic secret of the handshake": server.traffic.server,
		"client's traffic secret, at the server":   server.traffic.client,
	} {
		if !isZero(secret) {
			t.Errorf("%s is left: %x", name, secret)
		}
	}
	if client.pairs != nil || cc.next.run != nil || sc.next.run != nil {
		t.Error("a complete handshake keeps its state, with its ephemeral keys")
	}
}

// wide is a ClientHello of some 60 KiB, filled up with one kind of thing.
func wide(p *puppet, fill func(m *clientHello, n int)) {
	const room = 60 << 10
	n := room
	for {
		m := *p.hello
		m.extensions = slices.Clone(m.extensions)
		fill(&m, n)
		if raw, err := encode(&m); err == nil && len(raw) <= maxMessage {
			p.hello = &m
			return
		}
		n -= n / 20
	}
}

// TestWideHellos costs the server memory, and so work, in proportion to what
// it is sent, whatever that is.
func TestWideHellos(t *testing.T) {
	for _, test := range []struct {
		name string
		fill func(m *clientHello, n int)
	}{
		{"extensions", func(m *clientHello, n int) {
			for id := range n / 4 {
				if _, known := extensionPlaces[uint16(id)]; !known && !isGrease(uint16(id)) {
					m.extensions = append(m.extensions, extension{uint16(id), nil})
				}
			}
		}},
		{"suites", func(m *clientHello, n int) {
			for range n / 2 {
				m.suites = append(m.suites, 0x5600)
			}
		}},
		{"groups", func(m *clientHello, n int) {
			body, _ := findExtension(m.extensions, extSupportedGroups)
			groups, _ := parseUint16List[tls.CurveID](body)
			groups = append(groups, slices.Repeat([]tls.CurveID{0x5600}, n/2)...)
			m.extensions = setExtension(m.extensions, extSupportedGroups, uint16List(groups))
		}},
		{"shares", func(m *clientHello, n int) {
			shares := []keyShare{{tls.X25519, bytes.Repeat([]byte{9}, 32)}}
			groups := []tls.CurveID{tls.X25519}
			for id := range n / 7 {
				groups = append(groups, tls.CurveID(0x4000+id))
				shares = append(shares, keyShare{tls.CurveID(0x4000 + id), []byte{1}})
			}
			m.extensions = setExtension(m.extensions, extSupportedGroups, uint16List(groups))
			m.extensions = setExtension(m.extensions, extKeyShare, keyShareList(shares))
		}},
		{"protocols", func(m *clientHello, n int) {
			m.extensions = append(m.extensions, extension{extALPN, alpnBody(slices.Repeat([]string{"x"}, n/2))})
		}},
		{"signature schemes", func(m *clientHello, n int) {
			list := append(slices.Repeat([]tls.SignatureScheme{0x5600}, n/2), schemesOffered...)
			m.extensions = setExtension(m.extensions, extSignatureAlgorithms, uint16List(list))
		}},
		{"PSK identities", func(m *clientHello, n int) {
			o := new(offeredPSKs)
			for range n / 40 {
				o.identities = append(o.identities, pskIdentity{identity: []byte("x")})
				o.binders = append(o.binders, make([]byte, 32))
			}
			m.extensions = append(dropExtension(m.extensions, extPSKModes), extension{extPSKModes, pskModesBody()}, extension{extPreSharedKey, pskBody(o)})
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			looks := 0
			server := serverTLS()
			server.NextProtos = []string{"x"}
			p := newPuppetClient(t, &Config{TLS: server, LookupPSK: func([]byte) (*PSK, error) { looks++; return nil, nil }})
			wide(p, test.fill)
			raw := must(encode(p.hello))
			for n := 0; n < len(raw); n += 1000 {
				p.plain(record.Handshake, raw[n:min(n+1000, len(raw))])
			}
			if len(raw) < 40<<10 {
				t.Fatalf("a ClientHello of %d bytes is none to prove this with", len(raw))
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			p.feed()
			runtime.ReadMemStats(&after)
			if p.err != nil {
				t.Fatal(p.err)
			}
			if spent := (after.TotalAlloc - before.TotalAlloc) / uint64(len(raw)); spent > 64 {
				t.Errorf("%d bytes are allocated for each byte of the ClientHello", spent)
			}
			if looks > maxIdentities {
				t.Errorf("%d PSK identities are looked at, %d may be", looks, maxIdentities)
			}
		})
	}
}

// TestTinyRecords sends the server a byte in a record, up to what a handshake
// may take.
func TestTinyRecords(t *testing.T) {
	p := newPuppetClient(t, &Config{TLS: serverTLS()})
	head := []byte{byte(typeClientHello), 1, 0, 0} // 64 KiB
	for _, b := range append(head, make([]byte, maxMessage-1)...) {
		p.plain(record.Handshake, []byte{b})
	}
	sent := len(p.wire)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	p.feed()
	runtime.ReadMemStats(&after)
	if p.err != nil {
		t.Fatal("refused before the message is complete:", p.err)
	}
	if spent := (after.TotalAlloc - before.TotalAlloc) / uint64(sent); spent > 8 {
		t.Errorf("%d bytes are allocated for each byte received", spent)
	}
	if cap(p.engine.hand) > 4*maxMessage {
		t.Errorf("%d bytes are kept for a message of %d", cap(p.engine.hand), maxMessage)
	}
	p.plain(record.Handshake, []byte{0})
	p.feed()
	p.wantAlert(AlertDecodeError, false)
}

// TestChainMaze sends a chain of certificates that all seem to have issued
// each other, in which a search for a path to a root could get lost.
func TestChainMaze(t *testing.T) {
	p := newPuppetServer(t, &Config{TLS: clientTLS()})
	p.serverHello(nil)
	p.encryptedExtensions()
	name := pkix.Name{CommonName: "maze"}
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		Subject: name, SerialNumber: big.NewInt(1), NotBefore: testStart, NotAfter: testStart.AddDate(9, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	m := &certificate{}
	leaf := *template
	leaf.IsCA, leaf.DNSNames, leaf.KeyUsage = false, []string{testName}, x509.KeyUsageDigitalSignature
	m.entries = append(m.entries, certificateEntry{der: must(x509.CreateCertificate(rand.Reader, &leaf, template, testKeys()["P-256"].Public(), key))})
	for serial := range int64(maxChain - 1) {
		next := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
		template.SerialNumber = big.NewInt(serial + 2)
		m.entries = append(m.entries, certificateEntry{der: must(x509.CreateCertificate(rand.Reader, template, template, next.Public(), key))})
		if serial%2 == 0 {
			key = next
		}
	}
	p.send(m)
	p.send(p.certificateVerify())
	p.feed()
	p.wantAlert(AlertUnknownCA, false) // and the test comes to its end
}

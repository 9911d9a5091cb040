package tls13

import (
	"bytes"
	"crypto/tls"
	"slices"
	"testing"
	"time"

	"github.com/go-tcpls/tcpls/internal/record"
)

// realMessages are the messages of a real handshake with everything in it:
// HelloRetryRequest, client certificate, staple, ALPN, our extension.
func realMessages(t testing.TB) [][]byte {
	t.Helper()
	server := serverTLS()
	server.ClientAuth, server.ClientCAs = tls.RequireAndVerifyClientCert, authority().pool
	server.CurvePreferences, server.NextProtos = []tls.CurveID{tls.CurveP256}, []string{"a"}
	server.Certificates[0].OCSPStaple = []byte("staple")
	server.Certificates[0].SignedCertificateTimestamps = [][]byte{[]byte("sct")}
	p := newPuppetClient(t, withExtension(&Config{TLS: server, RecordSizeLimit: 9000}, true))
	p.hello.extensions = append(p.hello.extensions, extension{extALPN, alpnBody([]string{"a"})}, extension{extRecordSizeLimit, uint16Body(8000)})
	list := [][]byte{must(encode(p.hello))}
	p.clientHello()
	list = append(list, p.receive()[0].raw)
	p.secondHello(tls.CurveP256)
	list = append(list, must(encode(p.hello)))
	for _, m := range p.serverFlight() {
		list = append(list, m.raw)
	}
	psk := &clientHello{version: tls.VersionTLS12, random: make([]byte, 32), suites: []uint16{1}, compressions: []byte{0},
		extensions: []extension{{extPSKModes, []byte{1, 1}}, {extEarlyData, nil}, {extPreSharedKey, pskBody(goodPSK())}}}
	return append(list, must(encode(psk)), must(encode(&keyUpdate{true})), must(encode(&newSessionTicket{
		lifetime: 1, ageAdd: 2, nonce: []byte{3}, ticket: []byte("t"), extensions: []extension{{extEarlyData, make([]byte, 4)}}})))
}

// parseAny parses a message by its type, as something that can be written.
func parseAny(typ messageType, body []byte) (outgoing, error) {
	switch typ {
	case typeClientHello:
		m, err := parseClientHello(body, testExtension)
		if err == nil {
			_, err = parseOffer(m.extensions, testExtension)
		}
		return m, err
	case typeServerHello:
		return parseServerHello(body, testExtension)
	case typeEncryptedExtensions:
		return parseEncryptedExtensions(body, testExtension)
	case typeCertificateRequest:
		return parseCertificateRequest(body, testExtension)
	case typeCertificate:
		return parseCertificate(body, testExtension)
	case typeCertificateVerify:
		return parseCertificateVerify(body)
	case typeKeyUpdate:
		return parseKeyUpdate(body)
	case typeNewSessionTicket:
		return parseNewSessionTicket(body, testExtension)
	}
	return &finished{body}, nil
}

// FuzzMessages parses any message. What is accepted must come out as it went
// in, so that nothing is overlooked; what is refused must have an alert.
func FuzzMessages(f *testing.F) {
	for _, raw := range realMessages(f) {
		f.Add(raw[0], raw[messageHeadLen:])
	}
	f.Fuzz(func(t *testing.T, typ byte, body []byte) {
		if len(body) > maxCertificate {
			return
		}
		m, err := parseAny(messageType(typ), body)
		if err != nil {
			if _, ok := alertOf(err); !ok {
				t.Fatalf("%v has no alert", err)
			}
			return
		}
		raw, err := encode(m)
		if err != nil || !bytes.Equal(raw[messageHeadLen:], body) {
			t.Fatalf("%v: %x became %x, %v", messageType(typ), body, raw, err)
		}
	})
}

// FuzzExtensions reads an extension's body and writes it again.
func FuzzExtensions(f *testing.F) {
	for _, raw := range realMessages(f) {
		if raw[0] == byte(typeClientHello) {
			for _, e := range must(parseClientHello(raw[messageHeadLen:], testExtension)).extensions {
				f.Add(e.id, e.body)
			}
		}
	}
	for _, m := range malformedBodies {
		f.Add(m.id, m.body)
	}
	f.Fuzz(func(t *testing.T, id uint16, body []byte) {
		o := new(offer)
		if !o.parseExtension(extension{id, body}) {
			return
		}
		var again []byte
		switch id {
		case extSupportedVersions:
			again = versionList(o.versions)
		case extSupportedGroups:
			again = uint16List(o.groups)
		case extKeyShare:
			again = keyShareList(o.shares)
		case extSignatureAlgorithms:
			again = uint16List(o.schemes)
		case extALPN:
			again = alpnBody(o.protocols)
		case extCookie:
			again = vector16Body(o.cookie)
		case extPreSharedKey:
			again = pskBody(o.psk)
		case extCertificateAuthorities:
			again = vectorList(o.authorities)
		default:
			return
		}
		if !bytes.Equal(again, body) {
			t.Fatalf("extension %d: %x became %x", id, body, again)
		}
	})
}

func FuzzSniffHello(f *testing.F) {
	wire := mustClient(f, withExtension(&Config{TLS: clientTLS()}, true)).Output()
	f.Add(wire)
	f.Add(helloOfGo(f, &tls.Config{ServerName: testName, NextProtos: []string{"h2"}}))
	fragmented := []byte{}
	for piece := range slices.Chunk(wire[record.HeaderLen:], 100) {
		fragmented = record.AppendPlain(fragmented, record.Handshake, tls.VersionTLS10, piece)
	}
	f.Add(fragmented)
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, p []byte) {
		h, n, err := SniffHello(p)
		switch {
		case err != nil && h != nil:
			t.Fatal("hello and error")
		case err == nil && h == nil && n <= len(p):
			t.Fatalf("%d bytes needed of %d", n, len(p))
		case h != nil && n > len(p):
			t.Fatalf("%d bytes used of %d", n, len(p))
		}
		// An end that is given less never sees more.
		if h != nil {
			if less, _, err := SniffHello(p[:n-1]); less != nil || err != nil {
				t.Fatalf("complete one byte early: %v, %v", less, err)
			}
		}
	})
}

// FuzzClient replaces a message of a server's flight, inside the encryption
// where there is one, or the bytes of a record.
func FuzzClient(f *testing.F) {
	addMutations(f)
	f.Fuzz(func(t *testing.T, at, typ byte, body []byte, split uint16) {
		client := clientTLS()
		client.NextProtos = []string{"a"}
		p := newPuppetServer(t, withExtension(&Config{TLS: client, RecordSizeLimit: 5000}, true))
		mutate := newMutation(p, at, typ, body, int(split))
		if mutate(0) {
			p.feed()
			checkEngine(t, p)
			return
		}
		p.serverHello(nil)
		if !mutate(1) {
			p.encryptedExtensions()
		}
		if !mutate(2) {
			p.send(goodRequest())
		}
		if !mutate(3) {
			p.send(certificateMessage(&p.cert, false, false))
		}
		if !mutate(4) {
			p.send(p.certificateVerify())
		}
		if !mutate(5) {
			p.send(&finished{finishedMAC(p.suite, p.traffic.server, p.transcript.sum())})
		}
		p.application()
		p.feed()
		if p.engine.HandshakeComplete() {
			p.setKeys(p.app)
			mutate(6)
			p.feed()
		}
		checkEngine(t, p)
	})
}

// FuzzServer does the same to a client's flights.
func FuzzServer(f *testing.F) {
	addMutations(f)
	f.Fuzz(func(t *testing.T, at, typ byte, body []byte, split uint16) {
		server := serverTLS()
		server.ClientAuth, server.ClientCAs = tls.VerifyClientCertIfGiven, authority().pool
		p := newPuppetClient(t, withExtension(&Config{TLS: server}, true))
		mutate := newMutation(p, at, typ, body, int(split))
		if mutate(0) {
			p.feed()
			checkEngine(t, p)
			return
		}
		p.clientHello()
		p.serverFlight()
		if !mutate(1) {
			p.send(certificateMessage(&p.cert, false, false))
		}
		if !mutate(2) {
			p.send(p.certificateVerify())
		}
		if !mutate(3) {
			p.send(&finished{finishedMAC(p.suite, p.traffic.client, p.transcript.sum())})
		}
		p.feed()
		if p.engine.HandshakeComplete() {
			p.write = record.NewContext(must(p.suite.Keys(bytes.Clone(p.app.client))), 0)
			mutate(4)
			p.feed()
		}
		checkEngine(t, p)
	})
}

func addMutations(f *testing.F) {
	for i, raw := range realMessages(f) {
		f.Add(byte(i%7), raw[0], raw[messageHeadLen:], uint16(100*i))
	}
	f.Add(byte(6), byte(typeKeyUpdate), []byte{1}, uint16(0))
}

// newMutation returns a function that, at one place of a flight, sends a
// message of the fuzzer's instead, cut into two records.
func newMutation(p *puppet, at, typ byte, body []byte, split int) func(place int) bool {
	return func(place int) bool {
		if place != int(at)%7 || len(body) > record.MaxPlaintext-messageHeadLen {
			return false
		}
		raw := append([]byte{typ, 0, byte(len(body) >> 8), byte(len(body))}, body...)
		if p.transcript != nil {
			p.transcript.add(raw)
		}
		split = min(split, len(raw))
		if split > 0 {
			p.record(record.Handshake, raw[:split])
		}
		p.record(record.Handshake, raw[split:])
		return true
	}
}

// checkEngine holds what must be true whatever came in: an error of ours has
// one alert and stays, a peer's has none, and memory is bounded.
func checkEngine(t *testing.T, p *puppet) {
	t.Helper()
	if p.err == nil {
		if len(p.engine.hand) > maxCertificate || cap(p.engine.out) > maxHandshake {
			t.Fatal("unbounded memory")
		}
		return
	}
	if _, ours := alertOf(p.err); ours {
		p.engine.Fail(errTest)
		if len(p.engine.Output()) < record.HeaderLen+2 {
			t.Fatalf("%v without an alert", p.err)
		}
	}
	if _, err := p.engine.Write(nil, []byte("x")); err != p.err {
		t.Fatalf("%v after %v", err, p.err)
	}
	if len(p.engine.Output()) > 0 {
		t.Fatalf("more output after %v", p.err)
	}
}

// FuzzSession parses what a cache or a ticket may hold. What is accepted must
// come out as it went in, and be usable without a panic.
func FuzzSession(f *testing.F) {
	w := newWorld().withEarlyData()
	c, s := w.meet(f)
	for _, end := range []*Conn{c, s} {
		f.Add((&session{
			isClient: end.isClient, suite: end.suite, secret: make([]byte, end.suite.HashLen),
			since: w.now, created: w.now, lifetime: time.Hour, ageAdd: 1, maxEarly: 2, protocol: "a", serverName: testName,
			chain: end.peer.chain, chains: end.peer.chains, own: []byte("own"), ticket: []byte("t"), sendLimit: 100,
		}).encode())
	}
	client, server := clientTLS(), serverTLS()
	server.ClientAuth = tls.VerifyClientCertIfGiven
	f.Fuzz(func(t *testing.T, entry []byte) {
		s, err := parseSession(bytes.Clone(entry))
		if err != nil {
			return
		}
		if again := s.encode(); !bytes.Equal(again, entry) {
			t.Fatalf("%x became %x", entry, again)
		}
		s.suitsClient(client, testNow())
		s.suitsServer(server, s.serverName, testNow())
	})
}

package tls13

import (
	"bytes"
	"crypto/tls"
	"testing"
)

// TestExtensionMisplaced puts the user's extension where it may not be. An
// engine that knows it, offered or not, calls it misplaced; to one that doesn't
// it is like any unknown extension.
func TestExtensionMisplaced(t *testing.T) {
	own := extension{testExtension, []byte("answer")}
	for _, test := range []struct {
		name    string
		known   Alert
		unknown Alert // close_notify: ignored
		script  func(p *puppet)
	}{
		{"ServerHello", AlertIllegalParameter, AlertUnsupportedExtension, helloWith(func(m *serverHello) {
			m.extensions = append(m.extensions, own)
		})},
		{"HelloRetryRequest", AlertIllegalParameter, AlertUnsupportedExtension, func(p *puppet) {
			p.retry(tls.CurveP384, func(m *serverHello) { m.extensions = append(m.extensions, own) })
		}},
		{"EncryptedExtensions, twice", AlertIllegalParameter, AlertIllegalParameter, func(p *puppet) {
			p.serverHello(nil)
			p.send(&encryptedExtensions{[]extension{own, own}})
		}},
		{"EncryptedExtensions, never asked for", AlertUnsupportedExtension, AlertUnsupportedExtension, func(p *puppet) {
			p.serverHello(nil)
			p.send(&encryptedExtensions{[]extension{own}})
		}},
		{"Certificate", AlertIllegalParameter, AlertUnsupportedExtension, func(p *puppet) {
			p.serverHello(nil)
			p.send(&encryptedExtensions{})
			m := certificateMessage(&p.cert, false, false)
			m.entries[0].extensions = []extension{own}
			p.send(m)
		}},
		{"CertificateRequest", AlertIllegalParameter, 0, func(p *puppet) {
			p.serverHello(nil)
			p.send(&encryptedExtensions{})
			m := goodRequest()
			m.extensions = append(m.extensions, own)
			p.send(m)
		}},
		{"NewSessionTicket", AlertIllegalParameter, 0, func(p *puppet) {
			p.serverHello(nil)
			p.send(&encryptedExtensions{})
			p.proof()
			p.serverFinished()
			p.sendRaw(must(encode(&newSessionTicket{lifetime: 1, ticket: []byte("t"), extensions: []extension{own}})))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newPuppetServer(t, &Config{TLS: clientTLS()})
			test.script(p)
			p.feed()
			p.wantAlert(test.unknown, test.unknown == 0)

			p = newPuppetServer(t, extensionUnasked.in(&Config{TLS: clientTLS()}))
			test.script(p)
			p.feed()
			p.wantAlert(test.known, false)
		})
	}
}

// TestExtensionUnanswered: a server answers what it was asked, once, and
// nothing else, in the one message that may carry it.
func TestExtensionUnanswered(t *testing.T) {
	for _, use := range []extensionUse{extensionOff, extensionAnswered, extensionUnasked} {
		p := puppetClient(t, use)
		p.clientHello()
		count := 0
		for _, m := range p.serverFlight() {
			switch m.typ {
			case typeServerHello:
				for _, e := range must(parseServerHello(m.body(), 0)).extensions {
					if e.id != extSupportedVersions && e.id != extKeyShare {
						t.Errorf("extension %s: ServerHello has extension %d", use, e.id)
					}
				}
			case typeEncryptedExtensions:
				for _, e := range must(parseEncryptedExtensions(m.body(), testExtension)).extensions {
					if e.id == testExtension && bytes.Equal(e.body, []byte("answer")) {
						count++
					}
				}
			case typeCertificate:
				for _, e := range must(parseCertificate(m.body(), testExtension)).entries {
					if len(e.extensions) > 0 {
						t.Errorf("extension %s: Certificate has extensions that nobody configured", use)
					}
				}
			}
		}
		if want := map[bool]int{true: 1}[use == extensionAnswered]; count != want {
			t.Errorf("extension %s: answered %d times, want %d", use, count, want)
		}
	}
}

package tls13

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"io"
	"slices"
	"testing"

	"github.com/go-tcpls/tcpls/internal/record"
)

// TestClientHelloAsSent holds both ClientHellos against what a client must and
// must not send.
func TestClientHelloAsSent(t *testing.T) {
	for _, use := range []extensionUse{extensionOff, extensionAnswered} {
		p := puppetServer(t, use)
		first := p.hello
		checkHelloAsSent(t, first, testExtension)
		if _, ok := findExtension(first.extensions, testExtension); ok != (use == extensionAnswered) {
			t.Errorf("extension %s: offered %v", use, ok)
		}
		if _, ok := findExtension(first.extensions, extCookie); ok {
			t.Error("the first ClientHello has a cookie")
		}
		cookie := extension{extCookie, vector16Body([]byte("cookie"))}
		p.retry(tls.CurveP384, func(m *serverHello) { m.extensions = append(m.extensions, cookie) })
		second := p.hello
		checkHelloAsSent(t, second, testExtension)
		o := must(parseOffer(second.extensions, testExtension))
		if err := checkSecond(first, second, o, tls.CurveP384, testExtension); err != nil {
			t.Errorf("extension %s: the second ClientHello isn't one that a server would take: %v", use, err)
		}
		kept := func(list []extension) (ids []uint16) {
			for _, e := range list {
				if e.id != extCookie && e.id != extPreSharedKey {
					ids = append(ids, e.id)
				}
			}
			return ids
		}
		if !slices.Equal(kept(first.extensions), kept(second.extensions)) {
			t.Errorf("extension %s: the second ClientHello has the extensions %v, the first %v",
				use, kept(second.extensions), kept(first.extensions))
		}
	}
}

func checkHelloAsSent(t *testing.T, m *clientHello, own uint16) {
	t.Helper()
	if m.version != tls.VersionTLS12 || len(m.sessionID) != 32 || !bytes.Equal(m.compressions, []byte{0}) {
		t.Errorf("legacy version %#x, session id of %d bytes, compressions %v", m.version, len(m.sessionID), m.compressions)
	}
	for _, id := range m.suites {
		if !isGrease(id) && record.SuiteByID(id) == nil {
			t.Errorf("suite %#04x is offered, which is none of TLS 1.3's", id)
		}
	}
	o := must(parseOffer(m.extensions, own))
	for _, v := range o.versions {
		if v != tls.VersionTLS13 && !isGrease(v) {
			t.Errorf("version %#04x is offered", v)
		}
	}
	rest := o.groups
	for _, k := range o.shares { // of listed groups, none twice, in their order
		i := slices.Index(rest, k.group)
		if i < 0 {
			t.Fatalf("key share for group %d is out of order, repeated, or of no group that is offered", k.group)
		}
		rest = rest[i+1:]
	}
	for _, id := range o.groups {
		if !isGrease(uint16(id)) && groupByID(id) == nil {
			t.Errorf("group %d is offered, which the engine can't do", id)
		}
	}
	for _, s := range o.schemes {
		if s == tls.PKCS1WithSHA1 || s == tls.ECDSAWithSHA1 || byte(s) == 2 { // DSA
			t.Errorf("signature scheme %v is offered", s)
		}
	}
}

// TestRecordsAsSent looks at every record of handshakes with and without a
// HelloRetryRequest: their versions, their types, and where keys change.
func TestRecordsAsSent(t *testing.T) {
	for _, retry := range []bool{false, true} {
		server := serverTLS()
		if retry {
			server.CurvePreferences = []tls.CurveID{tls.CurveP521}
		}
		c, s := newTestPair(t, &Config{TLS: clientTLS()}, &Config{TLS: server})
		for i, first := 0, true; i < 4; i++ {
			from, to := c, s
			if i%2 == 1 {
				from, to = s, c
			}
			out := from.Output()
			for _, rec := range splitRecords(out) {
				h := record.ParseHeader(rec)
				if h.Version != 0x0303 && !(first && h.Version == 0x0301) {
					t.Errorf("a record of version %#04x", h.Version)
				}
				if h.Len == 0 {
					t.Error("an empty record")
				}
				if hello := rec[record.HeaderLen:]; h.Type == record.Handshake {
					n := messageHeadLen + int(hello[1])<<16 + int(hello[2])<<8 + int(hello[3])
					if n != h.Len {
						t.Errorf("a hello of %d bytes in a record of %d, which keys change behind", n, h.Len)
					}
				}
				first = false
			}
			if err := feed(to, out, nil); err != nil {
				t.Fatal(err)
			}
		}
		mustShake(t, c, s)
	}
}

// TestServerHelloAsSent has a source of randomness that would say "downgrade":
// the random of a ServerHello is the source's, not the client's, and a server
// of TLS 1.3 alone adds no sentinel.
func TestServerHelloAsSent(t *testing.T) {
	for range 20 {
		source := make([]byte, 4096)
		if _, err := rand.Read(source); err != nil {
			t.Fatal(err)
		}
		server := serverTLS()
		server.Rand = bytes.NewReader(source)
		p := newPuppetClient(t, &Config{TLS: server})
		p.clientHello()
		m := must(parseServerHello(p.serverFlight()[0].body(), 0))
		if !bytes.Equal(m.random, source[:randomLen]) || m.isDowngrade() {
			t.Errorf("random %x from %x", m.random, source[:randomLen])
		}
		if m.version != tls.VersionTLS12 || m.compression != 0 || !bytes.Equal(m.sessionID, p.hello.sessionID) {
			t.Errorf("legacy version %#x, compression %d, session id %x", m.version, m.compression, m.sessionID)
		}
		version, ok := findExtension(m.extensions, extSupportedVersions)
		if !ok || !bytes.Equal(version, []byte{3, 4}) {
			t.Errorf("supported_versions %x", version)
		}
	}
}

// TestServerSendsChangeCipherSpec: it follows the ServerHello, whether or not
// the client seems to be in compatibility mode.
func TestServerSendsChangeCipherSpec(t *testing.T) {
	for _, sessionID := range [][]byte{nil, make([]byte, 16), make([]byte, 32)} {
		p := puppetClient(t, extensionOff)
		p.hello.sessionID = sessionID
		p.clientHello()
		out := p.engine.Output()
		if h := record.ParseHeader(out); h.Type != record.Handshake {
			t.Fatalf("session id of %d bytes: first record of type %d", len(sessionID), h.Type)
		} else if out = out[record.HeaderLen+h.Len:]; !bytes.HasPrefix(out, []byte{20, 3, 3, 0, 1, 1}) {
			t.Errorf("session id of %d bytes: %x behind the ServerHello", len(sessionID), out[:6])
		}
	}
}

// TestFailedHandshakeForgets: a handshake that fails leaves no secrets behind.
func TestFailedHandshakeForgets(t *testing.T) {
	p := puppetClient(t, extensionOff)
	p.clientHello()
	p.serverFlight()
	p.send(&finished{make([]byte, 32)})
	p.feed()
	p.wantAlert(AlertDecryptError, false)
	c := p.engine
	if c.read != nil || c.write != nil || c.exporter.secret != nil || c.resumption != nil || c.next.run != nil {
		t.Error("a failed handshake has still keys, secrets or a next step")
	}
	if _, err := c.ExportKeyingMaterial("x", nil, 32); err == nil {
		t.Error("keying material of a failed handshake")
	}
	if err := c.End(); err != p.err || err == io.EOF {
		t.Errorf("End: %v, want the first error", err)
	}
}

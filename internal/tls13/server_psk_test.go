package tls13

import (
	"bytes"
	"crypto/tls"
	"testing"

	"github.com/go-tcpls/tcpls/internal/record"
)

// TestNoServerNameInResumption is RFC 6066, section 3: the name is answered in
// a full handshake only.
func TestNoServerNameInResumption(t *testing.T) {
	h := &serverHandshake{c: mustServer(t, &Config{TLS: serverTLS()}), offer: &offer{serverName: testName}}
	for _, chosen := range []*psk{nil, {}} {
		h.psk = chosen
		if _, ok := findExtension(must(h.encryptedExtensions()).extensions, extServerName); ok != (chosen == nil) {
			t.Errorf("PSK %v: server_name answered: %v", chosen != nil, ok)
		}
	}
}

// TestSecondHelloWithoutPSK drops the PSK that made the server choose, after
// its HelloRetryRequest.
func TestSecondHelloWithoutPSK(t *testing.T) {
	w := newWorld()
	w.meet(t)
	w.server.TLS.CurvePreferences = []tls.CurveID{tls.CurveP384}
	c, s := newTestPair(t, w.client, w.server)
	if _, err := s.Feed(c.Output()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Feed(s.Output()); err != nil {
		t.Fatal(err)
	}
	second := bytes.TrimPrefix(c.Output(), []byte{20, 3, 3, 0, 1, 1})
	hello := must(parseClientHello(second[record.HeaderLen+messageHeadLen:], 0))
	last := len(hello.extensions) - 1
	if hello.extensions[last].id != extPreSharedKey {
		t.Fatalf("last extension of the second ClientHello is %d", hello.extensions[last].id)
	}
	hello.extensions = hello.extensions[:last]
	_, err := s.Feed(record.AppendPlain(nil, record.Handshake, tls.VersionTLS12, must(encode(hello))))
	if a, ok := alertOf(err); !ok || a != AlertMissingExtension {
		t.Errorf("%v, want %v", err, AlertMissingExtension)
	}
}

// TestTicketHasGrease: clients must learn to live with extensions there too
// (RFC 8701, section 4).
func TestTicketHasGrease(t *testing.T) {
	_, s := newWorld().meet(t)
	m := must(parseNewSessionTicket(must(s.NewTicket())[messageHeadLen:], 0))
	if len(m.extensions) != 1 || !isGrease(m.extensions[0].id) {
		t.Errorf("extensions of a ticket: %v", m.extensions)
	}
}

// TestExportWithEarlyData: a server that accepted early data exports before
// the handshake is complete what the client exports after it.
func TestExportWithEarlyData(t *testing.T) {
	w := newWorld().withEarlyData()
	w.meet(t)
	c, s := newTestPair(t, w.client, w.server)
	wire := must(c.WriteEarly(nil, []byte("early")))
	if _, err := s.Feed(wire); err != nil || !s.EarlyData() {
		t.Fatal("no early data:", err)
	}
	ours, err := s.ExportKeyingMaterial("label", nil, 32)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.ExportKeyingMaterial("label", nil, 32); err == nil {
		t.Error("client exports before it has heard of the server")
	}
	if _, err := c.Feed(s.Output()); err != nil {
		t.Fatal(err)
	}
	if theirs := must(c.ExportKeyingMaterial("label", nil, 32)); !bytes.Equal(ours, theirs) {
		t.Error("both ends export different material")
	}
	s.Fail(broken(AlertInternalError, "the test says so"))
	if _, err := s.ExportKeyingMaterial("label", nil, 32); err == nil {
		t.Error("a failed server exports")
	}
}

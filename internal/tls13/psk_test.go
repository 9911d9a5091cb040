package tls13

import (
	"bytes"
	"crypto/tls"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/go-tcpls/tcpls/internal/record"
)

func testPSK() *PSK {
	return &PSK{
		Identity: []byte("token"), Secret: bytes.Repeat([]byte{9}, 32), Suite: selectSuite(suitesAESFirst),
		MaxEarlyData: 100,
	}
}

// TestUserPSK joins by a PSK that the server looks up.
func TestUserPSK(t *testing.T) {
	key := testPSK()
	w := newWorld()
	w.client.PSK = key
	w.server.LookupPSK = func(id []byte) (*PSK, error) {
		if string(id) == "token" {
			return key, nil
		}
		return nil, nil
	}
	c, s := newTestPair(t, w.client, w.server)
	wire, err := c.WriteEarly(nil, []byte("early"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := s.Feed(wire)
	if err != nil || !s.EarlyData() {
		t.Fatal("no early data:", err)
	}
	read := s.TakeEarlyKeys()
	send := s.TakeWriteKeys()
	content, typ, err := read.Open(make([]byte, 100), wire[n:])
	if err != nil || string(content) != "early" || typ != 23 {
		t.Fatal(err)
	}
	if _, err := c.Feed(s.Output()); err != nil || !c.HandshakeComplete() {
		t.Fatal(err)
	}
	last := splitRecords(c.Output())
	if content, typ, err = read.Open(make([]byte, 100), last[0]); err != nil || typ != 22 {
		t.Fatal(err)
	}
	if err := s.EarlyHandshake(content); err != nil || s.EarlyData() {
		t.Fatal(err)
	}
	if _, err := s.Feed(last[1]); err != nil || !s.HandshakeComplete() {
		t.Fatal(err)
	}
	if again, _ := s.TakeKeys(); again != send {
		t.Error("TakeKeys gives other keys than TakeWriteKeys")
	}
	for _, end := range []*Conn{c, s} {
		if string(end.PSKUsed()) != "token" || len(end.ConnectionState().PeerCertificates) > 0 {
			t.Errorf("PSK %q, certificates %d", end.PSKUsed(), len(end.ConnectionState().PeerCertificates))
		}
	}
}

// TestPSKLooksLikeATicket compares the first flights: same extensions in the
// same order, with bodies of the same length.
func TestPSKLooksLikeATicket(t *testing.T) {
	shape := func(c *Conn) (list [][2]int) {
		for _, rec := range splitRecords(c.Output()) {
			list = append(list, [2]int{int(rec[0]), len(rec)})
			if len(list) > 1 {
				continue
			}
			hello := must(parseClientHello(rec[record.HeaderLen+messageHeadLen:], 0))
			for i, e := range hello.extensions {
				id := int(e.id)
				if isGrease(e.id) {
					id = -i
				}
				list = append(list, [2]int{id, len(e.body)})
			}
		}
		return list
	}
	for _, early := range []bool{false, true} {
		w := newWorld()
		if early {
			w.withEarlyData()
		}
		w.meet(t)
		ticket := offeredTicket(t, mustClient(t, w.client))
		byTicket := shape(mustClient(t, w.client))
		key := testPSK()
		key.Identity = bytes.Repeat([]byte{7}, len(ticket))
		if !early {
			key.MaxEarlyData = 0
		}
		w.client.PSK = key
		if byPSK := shape(mustClient(t, w.client)); !slices.Equal(byPSK, byTicket) {
			t.Errorf("early data %v: first flight with a ticket %v, with a PSK %v", early, byTicket, byPSK)
		}
		if offeredTicket(t, mustClient(t, &Config{TLS: w.client.TLS})) != nil != (len(byTicket) == 0) {
			t.Error("offering a PSK took a ticket, or there were more than two")
		}
	}
}

// TestLookupPSK has the answers that a look-up may give.
func TestLookupPSK(t *testing.T) {
	key := testPSK()
	other := *key
	other.Secret = []byte("other")
	for _, test := range []struct {
		name   string
		lookup func([]byte) (*PSK, error)
		used   bool
		alert  Alert // of the server, 0: none
	}{
		{"found", func([]byte) (*PSK, error) { return key, nil }, true, 0},
		{"unknown", func([]byte) (*PSK, error) { return nil, nil }, false, 0},
		{"nobody looks", nil, false, 0},
		{"error", func([]byte) (*PSK, error) { return nil, errTest }, false, AlertHandshakeFailure},
		{"error with an alert", func([]byte) (*PSK, error) { return nil, &Error{Alert: AlertAccessDenied, cause: errTest} }, false, AlertAccessDenied},
		{"another secret", func([]byte) (*PSK, error) { return &other, nil }, false, AlertDecryptError},
		{"no suite", func([]byte) (*PSK, error) { return &PSK{Secret: key.Secret}, nil }, false, AlertInternalError},
		{"no secret", func([]byte) (*PSK, error) { return &PSK{Suite: key.Suite}, nil }, false, AlertInternalError},
		{"another hash", func([]byte) (*PSK, error) {
			return &PSK{Secret: key.Secret, Suite: record.SuiteByID(tls.TLS_AES_256_GCM_SHA384)}, nil
		}, false, AlertDecryptError},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld()
			w.client.PSK, w.server.LookupPSK = key, test.lookup
			calls := 0
			w.client.TLS.VerifyConnection = func(tls.ConnectionState) error { calls++; return nil }
			c, s := newTestPair(t, w.client, w.server)
			clientErr, serverErr := shake(c, s)
			if test.alert != 0 {
				if a, ok := alertOf(serverErr); !ok || a != test.alert {
					t.Errorf("server: %v, want %v", serverErr, test.alert)
				}
				if e, ok := clientErr.(*AlertError); !ok || e.Alert != test.alert {
					t.Errorf("client: %v, want the alert %v", clientErr, test.alert)
				}
				return
			}
			if clientErr != nil || serverErr != nil {
				t.Fatal(clientErr, serverErr)
			}
			wantResumed(t, test.used, c, s)
			for _, end := range []*Conn{c, s} {
				if used := string(end.PSKUsed()) == "token"; used != test.used {
					t.Errorf("client %v: PSK %q", end.isClient, end.PSKUsed())
				}
			}
			if (calls == 0) != test.used {
				t.Errorf("VerifyConnection called %d times", calls)
			}
		})
	}
}

// TestPSKAfterRetry: the PSK is looked up once, and has a new binder after the
// HelloRetryRequest.
func TestPSKAfterRetry(t *testing.T) {
	w := newWorld()
	lookups := 0
	w.client.PSK, w.server.LookupPSK = testPSK(), func([]byte) (*PSK, error) { lookups++; return testPSK(), nil }
	w.server.TLS.CurvePreferences = []tls.CurveID{tls.CurveP384}
	c, s := w.meet(t)
	wantResumed(t, true, c, s)
	if lookups != 1 || !c.ConnectionState().HelloRetryRequest || c.EarlyDataAccepted() {
		t.Errorf("%d look-ups, retried %v, early data %v", lookups, c.ConnectionState().HelloRetryRequest, c.EarlyDataAccepted())
	}
}

// TestSkippingWithPSK skips as much early data as a known PSK allows, here
// because of a HelloRetryRequest.
func TestSkippingWithPSK(t *testing.T) {
	w, key := newWorld(), testPSK()
	key.MaxEarlyData = 8 * maxEarlyData
	w.client.PSK, w.server.LookupPSK = key, func([]byte) (*PSK, error) { return key, nil }
	w.server.TLS.CurvePreferences = []tls.CurveID{tls.CurveP384}
	c, s, _ := w.hasty(t, string(make([]byte, key.MaxEarlyData)))
	wantResumed(t, true, c, s)
}

// TestAnswerSeesPSK is what a server's answer to the extension may depend on.
func TestAnswerSeesPSK(t *testing.T) {
	w := newWorld()
	withExtension(w.client, true)
	withExtension(w.server, true)
	w.client.PSK, w.server.LookupPSK = testPSK(), func([]byte) (*PSK, error) { return testPSK(), nil }
	var s *Conn
	w.server.Answer = func([]byte) ([]byte, error) {
		if string(s.PSKUsed()) != "token" || !s.EarlyDataAccepted() {
			t.Errorf("Answer sees PSK %q, early data %v", s.PSKUsed(), s.EarlyDataAccepted())
		}
		return []byte{}, nil
	}
	c, server := newTestPair(t, w.client, w.server)
	s = server
	mustShake(t, c, s)
}

func TestRefusedPSKs(t *testing.T) {
	for name, change := range map[string]func(cfg *Config){
		"PSK.Identity": func(cfg *Config) { cfg.PSK.Identity = nil },
		"PSK.Secret":   func(cfg *Config) { cfg.PSK.Secret = nil },
		"PSK.Suite":    func(cfg *Config) { cfg.PSK.Suite = nil },
		"EarlyContext": func(cfg *Config) { cfg.EarlyContext = make([]byte, maxEarlyContext+1) },
		"EarlyWindow":  func(cfg *Config) { cfg.EarlyWindow = -time.Second },
	} {
		cfg := &Config{TLS: clientTLS(), PSK: testPSK()}
		change(cfg)
		if _, err := NewClient(cfg); err == nil || !bytes.Contains([]byte(err.Error()), []byte("Config."+name+":")) {
			t.Errorf("%s: error %v doesn't name it", name, err)
		}
	}
}

// TestTakenWriteKeys: the engine seals nothing with keys that it gave away,
// and leaves the alert to their user.
func TestTakenWriteKeys(t *testing.T) {
	w := newWorld()
	w.client.PSK, w.server.LookupPSK = testPSK(), func([]byte) (*PSK, error) { return testPSK(), nil }
	c, s := newTestPair(t, w.client, w.server)
	if _, err := s.Feed(c.Output()); err != nil {
		t.Fatal(err)
	}
	flight := s.Output()
	send := s.TakeWriteKeys()
	if _, err := s.Write(nil, []byte("x")); !errors.Is(err, errNotComplete) {
		t.Error("Write without keys:", err)
	}
	if _, _, err := s.ReadEarly(nil, sealed(c.EarlyContextSend(), record.Handshake, []byte{20, 0, 0, 0})); err == nil {
		t.Error("Finished instead of EndOfEarlyData")
	} else if a, _ := alertOf(err); a != AlertUnexpectedMessage || len(s.Output()) > 0 {
		t.Errorf("%v, and output", err)
	}
	if _, err := c.Feed(flight); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Read(nil, sealed(record.NewContext(send, 0), record.Alert, []byte{2, byte(AlertUnexpectedMessage)})); err == nil {
		t.Error("the alert that the user seals doesn't arrive")
	}
}

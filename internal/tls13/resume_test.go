package tls13

import (
	"bytes"
	"crypto/tls"
	"testing"
	"time"
)

// A world is a client and a server that meet again and again: their
// configurations, the client's cache, the server's ticket keys and the time.
type world struct {
	client, server *Config
	now            time.Time
	seen           map[string]time.Time // the strike register
}

func newWorld() *world {
	w := &world{now: testNow(), seen: map[string]time.Time{}}
	clock := func() time.Time { return w.now }
	w.client, w.server = &Config{TLS: clientTLS()}, &Config{TLS: serverTLS()}
	w.client.TLS.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	w.client.TLS.Time, w.server.TLS.Time = clock, clock
	w.server.TLS.SetSessionTicketKeys([][32]byte{{1}})
	return w
}

// withEarlyData makes both ends ready for early data.
func (w *world) withEarlyData() *world {
	w.client.MaxEarlyData, w.server.MaxEarlyData = 1000, 1000
	w.server.EarlyContext = []byte("context")
	w.server.FirstUse = func(id []byte, until time.Time) bool {
		_, again := w.seen[string(id)]
		w.seen[string(id)] = until
		return !again
	}
	return w
}

// meet does a handshake and lets the tickets come.
func (w *world) meet(t testing.TB) (c, s *Conn) {
	t.Helper()
	c, s = newTestPair(t, w.client, w.server)
	mustShake(t, c, s)
	w.use(t, c, s)
	return c, s
}

func (w *world) use(t testing.TB, c, s *Conn) {
	t.Helper()
	exchange(t, s, c, []byte("pong"))
	exchange(t, c, s, []byte("ping"))
}

func wantResumed(t testing.TB, want bool, ends ...*Conn) {
	t.Helper()
	for _, c := range ends {
		if got := c.ConnectionState().DidResume; got != want {
			t.Errorf("client %v: DidResume is %v, want %v", c.isClient, got, want)
		}
	}
}

func TestResumption(t *testing.T) {
	w := newWorld()
	w.client.TLS.NextProtos, w.server.TLS.NextProtos = []string{"a"}, []string{"a"}
	c, s := w.meet(t)
	wantResumed(t, false, c, s)
	before := c.ConnectionState()
	for range 3 {
		w.now = w.now.Add(time.Hour)
		c, s = w.meet(t)
		wantResumed(t, true, c, s)
		got := c.ConnectionState()
		if len(got.PeerCertificates) != 1 || !got.PeerCertificates[0].Equal(before.PeerCertificates[0]) || len(got.VerifiedChains) != 1 {
			t.Errorf("resumed with %d certificates and %d chains", len(got.PeerCertificates), len(got.VerifiedChains))
		}
		if got.NegotiatedProtocol != "a" || s.PSKUsed() != nil || c.EarlyDataAccepted() {
			t.Errorf("protocol %q, PSK %q, early data %v", got.NegotiatedProtocol, s.PSKUsed(), c.EarlyDataAccepted())
		}
	}
}

// TestEarlyData sends some in the first flight, and an answer before the
// handshake is complete.
func TestEarlyData(t *testing.T) {
	w := newWorld().withEarlyData()
	w.meet(t)
	c, s := newTestPair(t, w.client, w.server)
	if c.EarlyContextSend() == nil || c.EarlyLimit() != 1000 {
		t.Fatalf("client with a ticket may send %d bytes early", c.EarlyLimit())
	}
	wire, err := c.WriteEarly(nil, []byte("early"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := s.Feed(wire)
	if err != nil || !s.EarlyData() || !s.EarlyDataAccepted() {
		t.Fatalf("server accepts no early data: %v", err)
	}
	data, m, err := s.ReadEarly(nil, wire[n:])
	if err != nil || string(data) != "early" || n+m != len(wire) {
		t.Fatalf("early data %q, %d of %d bytes used, %v", data, n+m, len(wire), err)
	}
	flight, err := s.Write(nil, []byte("answer"))
	if err != nil || s.HandshakeComplete() {
		t.Fatal("the server can't write yet:", err)
	}
	n, err = c.Feed(flight)
	if err != nil || !c.HandshakeComplete() || !c.EarlyDataAccepted() || c.EarlyContextSend() != nil {
		t.Fatal(err)
	}
	if data, _, err = c.Read(nil, flight[n:]); err != nil || string(data) != "answer" {
		t.Fatalf("answer %q, %v", data, err)
	}
	last := c.Output()
	if n, err = s.Feed(last); err != nil || n != 0 {
		t.Fatalf("Feed takes %d bytes of early data: %v", n, err)
	}
	if data, n, err = s.ReadEarly(nil, last); err != nil || len(data) > 0 || s.EarlyData() {
		t.Fatalf("EndOfEarlyData: %q, %v", data, err)
	}
	if _, err = s.Feed(last[n:]); err != nil || !s.HandshakeComplete() {
		t.Fatal(err)
	}
	wantResumed(t, true, c, s)
	w.use(t, c, s)
}

// TestUserPSK joins by a PSK that the server looks up.
func TestUserPSK(t *testing.T) {
	key := &PSK{Identity: []byte("token"), Secret: bytes.Repeat([]byte{9}, 32), Suite: selectSuite(suitesAESFirst), MaxEarlyData: 100}
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

// TestTicketsInSmallRecords has tickets longer than the records that the
// client takes.
func TestTicketsInSmallRecords(t *testing.T) {
	w := newWorld()
	w.client.RecordSizeLimit = 64
	for _, want := range []bool{false, true} {
		c, s := w.meet(t)
		wantResumed(t, want, c, s)
	}
}

package tls13

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/go-tcpls/tcpls/internal/record"
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

// oneForAll is a cache that has the same entry for every name.
type oneForAll struct {
	tls.ClientSessionCache
}

func (c oneForAll) Get(string) (*tls.ClientSessionState, bool) { return c.ClientSessionCache.Get("") }

func (c oneForAll) Put(_ string, s *tls.ClientSessionState) { c.ClientSessionCache.Put("", s) }

// TestWhetherTicketIsUsed changes something between two handshakes. Both must
// succeed, and the second resume the first or not.
func TestWhetherTicketIsUsed(t *testing.T) {
	const other = "other.example"
	cert := authority().issue(testKeys()["P-256"], func(c *x509.Certificate) { c.DNSNames = []string{testName, other} })
	mine := authority().issue(testKeys()["P-384"], nil)
	withClientCert := func(w *world) {
		w.client.TLS.Certificates = []tls.Certificate{mine}
		w.server.TLS.ClientAuth, w.server.TLS.ClientCAs = tls.VerifyClientCertIfGiven, authority().pool
	}
	withTicketKey := func(w *world) {
		w.server.TLS = serverTLS()
		//lint:ignore SA1019 deprecated, and still honoured
		w.server.TLS.SessionTicketKey = [32]byte{3}
	}
	for _, test := range []struct {
		name          string
		before, after func(w *world)
		resumed       bool
	}{
		{"nothing changed", nil, nil, true},
		{"7 days less a second", nil, func(w *world) { w.now = w.now.Add(maxLifetime - time.Second) }, true},
		{"7 days", nil, func(w *world) { w.now = w.now.Add(maxLifetime) }, false},
		{"clock set back", nil, func(w *world) { w.now = w.now.Add(-time.Second) }, false},
		{"another name", nil, func(w *world) { w.client.TLS.ServerName = other }, false},
		{"another name, unverified", nil, func(w *world) { w.client.TLS.ServerName, w.client.TLS.InsecureSkipVerify = other, true }, false},
		{"the name with a dot", nil, func(w *world) { w.client.TLS.ServerName += "." }, true},
		{"no longer verified", nil, func(w *world) { w.client.TLS.InsecureSkipVerify = true }, true},
		{"verified since", func(w *world) { w.client.TLS.InsecureSkipVerify = true }, func(w *world) { w.client.TLS.InsecureSkipVerify = false }, false},
		{"tickets off at the client", nil, func(w *world) { w.client.TLS.SessionTicketsDisabled = true }, false},
		{"tickets off at the server", nil, func(w *world) { w.server.TLS.SessionTicketsDisabled = true }, false},
		{"tickets off before at the client", func(w *world) { w.client.TLS.SessionTicketsDisabled = true },
			func(w *world) { w.client.TLS.SessionTicketsDisabled = false }, false},
		{"no tickets sent", func(w *world) { w.server.TicketCount = -1 }, nil, false},
		{"another protocol", func(w *world) { w.client.TLS.NextProtos, w.server.TLS.NextProtos = []string{"a", "b"}, []string{"a"} },
			func(w *world) { w.server.TLS.NextProtos = []string{"b"} }, true},
		{"ticket key rotated", nil, func(w *world) { w.server.TLS.SetSessionTicketKeys([][32]byte{{2}, {1}}) }, true},
		{"ticket key gone", nil, func(w *world) { w.server.TLS.SetSessionTicketKeys([][32]byte{{2}}) }, false},
		{"SessionTicketKey", withTicketKey, withTicketKey, true},
		{"automatic ticket keys", func(w *world) { w.server.TLS = serverTLS() }, nil, true},
		{"GetConfigForClient with the same keys", nil, func(w *world) {
			same := w.server.TLS.Clone()
			w.server.TLS.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return same, nil }
		}, true},
		{"GetConfigForClient with other keys", nil, func(w *world) {
			fresh := serverTLS()
			w.server.TLS.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return fresh, nil }
		}, false},
		{"HelloRetryRequest", nil, func(w *world) { w.server.TLS.CurvePreferences = []tls.CurveID{tls.CurveP384} }, true},
		{"client certificate", withClientCert, nil, true},
		{"client certificate not wanted any more", withClientCert, func(w *world) { w.server.TLS.ClientAuth = tls.NoClientCert }, false},
		{"client certificate demanded since", nil, withClientCert, true},
		{"client certificate required since", nil, func(w *world) {
			withClientCert(w)
			w.server.TLS.ClientAuth = tls.RequireAndVerifyClientCert
		}, false},
		{"client certificate verified since", func(w *world) {
			withClientCert(w)
			w.server.TLS.ClientAuth = tls.RequestClientCert
		}, withClientCert, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld()
			w.client.TLS.ClientSessionCache = oneForAll{w.client.TLS.ClientSessionCache}
			w.server.TLS.Certificates = []tls.Certificate{cert}
			if test.before != nil {
				test.before(w)
			}
			w.server.TLS.Time, w.server.TLS.Certificates = w.client.TLS.Time, []tls.Certificate{cert}
			w.meet(t)
			if test.after != nil {
				test.after(w)
			}
			w.server.TLS.Time, w.server.TLS.Certificates = w.client.TLS.Time, []tls.Certificate{cert}
			c, s := w.meet(t)
			wantResumed(t, test.resumed, c, s)
			clients := len(s.ConnectionState().PeerCertificates)
			if wants := w.server.TLS.ClientAuth != tls.NoClientCert && w.client.TLS.Certificates != nil; clients > 0 != wants && !test.resumed {
				t.Errorf("server has %d certificates of the client", clients)
			}
		})
	}
}

// TestTicketOfUnacceptableServer: what would fail in a full handshake isn't
// saved by a ticket.
func TestTicketOfUnacceptableServer(t *testing.T) {
	for _, test := range []struct {
		name  string
		after func(w *world)
		alert Alert
	}{
		{"roots changed", func(w *world) { w.client.TLS.RootCAs = x509.NewCertPool() }, AlertUnknownCA},
		{"certificate expired", func(w *world) { w.now = w.now.Add(2 * time.Hour) }, AlertCertificateExpired},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld()
			w.server.TLS.Certificates = []tls.Certificate{authority().issue(testKeys()["P-256"], func(c *x509.Certificate) {
				c.NotAfter = testNow().Add(time.Hour)
			})}
			w.meet(t)
			test.after(w)
			c, s := newTestPair(t, w.client, w.server)
			clientErr, _ := shake(c, s)
			if a, ok := alertOf(clientErr); !ok || a != test.alert {
				t.Errorf("client: %v, want %v", clientErr, test.alert)
			}
		})
	}
}

// TestCallbacksOnResumption: VerifyConnection is called then, and
// VerifyPeerCertificate isn't.
func TestCallbacksOnResumption(t *testing.T) {
	w := newWorld()
	mine := testCertificates()["Ed25519"]
	w.client.TLS.Certificates = []tls.Certificate{mine}
	w.server.TLS.ClientAuth, w.server.TLS.ClientCAs = tls.RequireAndVerifyClientCert, authority().pool
	var connections, certificates int
	for _, cfg := range []*Config{w.client, w.server} {
		cfg.TLS.VerifyConnection = func(s tls.ConnectionState) error {
			connections++
			if len(s.PeerCertificates) != 1 || len(s.VerifiedChains) != 1 || s.DidResume != (connections > 2) {
				t.Errorf("VerifyConnection sees %d certificates, %d chains, resumed %v", len(s.PeerCertificates), len(s.VerifiedChains), s.DidResume)
			}
			return nil
		}
		cfg.TLS.VerifyPeerCertificate = func([][]byte, [][]*x509.Certificate) error { certificates++; return nil }
	}
	w.meet(t)
	c, s := w.meet(t)
	wantResumed(t, true, c, s)
	if connections != 4 || certificates != 2 {
		t.Errorf("VerifyConnection called %d times, VerifyPeerCertificate %d", connections, certificates)
	}
	for _, cfg := range []*Config{w.client, w.server} {
		cfg.TLS.VerifyConnection = func(tls.ConnectionState) error { return errTest }
		c, s := newTestPair(t, w.client, w.server)
		clientErr, serverErr := shake(c, s)
		if !errors.Is(clientErr, errTest) && !errors.Is(serverErr, errTest) {
			t.Errorf("refused by VerifyConnection: %v, %v", clientErr, serverErr)
		}
		cfg.TLS.VerifyConnection = nil
		w.meet(t) // new tickets
	}
}

// TestTotalLifetime resumes every day: after a week the server wants to see a
// certificate again.
func TestTotalLifetime(t *testing.T) {
	w := newWorld()
	w.meet(t)
	for day := range 15 {
		w.now = w.now.Add(24*time.Hour - time.Second)
		c, s := w.meet(t)
		wantResumed(t, day%8 != 7, c, s)
	}
}

// TestStatedAge has tickets come and go within fractions of milliseconds. A
// client must not state more than their age: GnuTLS refuses early data then.
func TestStatedAge(t *testing.T) {
	for _, test := range []struct {
		came, later time.Duration
		want        uint32
	}{
		{0, 0, 0},
		{900 * time.Microsecond, 200 * time.Microsecond, 0},
		{900 * time.Microsecond, 1099 * time.Microsecond, 1},
		{1, 5*time.Millisecond - 1, 4},
		{1, 5 * time.Millisecond, 5},
	} {
		w := newWorld()
		w.now = w.now.Add(test.came)
		w.meet(t)
		w.now = w.now.Add(test.later)
		offered := offeredIdentity(t, mustClient(t, w.client))
		state := must(mustServer(t, w.server).openTicket(offered.identity))
		if got := offered.age - state.ageAdd; got != test.want {
			t.Errorf("after %v: %d ms, want %d", test.later, got, test.want)
		}
	}
}

// offeredTicket is the ticket in a client's first flight, nil if none.
func offeredTicket(t testing.TB, c *Conn) []byte {
	t.Helper()
	return offeredIdentity(t, c).identity
}

func offeredIdentity(t testing.TB, c *Conn) pskIdentity {
	t.Helper()
	var raw []byte
	for _, rec := range splitRecords(c.Output()) {
		if record.Type(rec[0]) == record.Handshake {
			raw = append(raw, rec[record.HeaderLen:]...)
		}
	}
	hello := must(parseClientHello(raw[messageHeadLen:], c.cfg.Extension))
	o := must(parseOffer(hello.extensions, c.cfg.Extension))
	if o.psk == nil {
		return pskIdentity{}
	}
	return o.psk.identities[0]
}

// TestEachTicketOnce lets many clients start at once; no two offer the same
// ticket, and no more are kept than the limit.
func TestEachTicketOnce(t *testing.T) {
	w := newWorld()
	w.server.TicketCount = 7
	w.meet(t)
	clients := make(chan *Conn)
	for range 8 {
		go func() {
			c, err := NewClient(w.client)
			if err != nil {
				t.Error(err)
			}
			clients <- c
		}()
	}
	seen := map[string]bool{}
	for range 8 {
		if ticket := offeredTicket(t, <-clients); ticket != nil {
			if seen[string(ticket)] {
				t.Error("a ticket is offered twice")
			}
			seen[string(ticket)] = true
		}
	}
	if len(seen) != maxKept {
		t.Errorf("%d tickets were kept, want %d", len(seen), maxKept)
	}
}

// TestNewestTicketFirst also shows that a failed handshake costs its ticket.
func TestNewestTicketFirst(t *testing.T) {
	w := newWorld()
	w.meet(t)
	first := offeredTicket(t, mustClient(t, w.client))
	w.meet(t)
	if second := offeredTicket(t, mustClient(t, w.client)); second == nil || bytes.Equal(first, second) {
		t.Error("the old ticket is offered again, or none")
	}
}

// byteCache keeps sessions as bytes, as a cache on disk does.
type byteCache map[string][2][]byte

func (m byteCache) Get(key string) (*tls.ClientSessionState, bool) {
	e, ok := m[key]
	if !ok {
		return nil, false
	}
	return must(tls.NewResumptionState(e[0], must(tls.ParseSessionState(e[1])))), true
}

func (m byteCache) Put(key string, s *tls.ClientSessionState) {
	delete(m, key)
	if s == nil {
		return
	}
	ticket, state, err := s.ResumptionState()
	if err != nil {
		panic(err)
	}
	m[key] = [2][]byte{ticket, must(state.Bytes())}
}

func TestSerializedCache(t *testing.T) {
	w := newWorld()
	w.client.TLS.ClientSessionCache = byteCache{}
	w.meet(t)
	c, s := w.meet(t)
	wantResumed(t, true, c, s)
}

// TestDamagedCache returns nonsense, which is only ever ignored.
func TestDamagedCache(t *testing.T) {
	w := newWorld()
	w.meet(t)
	cached, _ := w.client.TLS.ClientSessionCache.Get(testName)
	_, state, _ := cached.ResumptionState()
	entry := state.Extra[0]
	for i := range len(entry) {
		cut := must(sealable([]byte("of somebody else"), entry[:i]))
		w.client.TLS.ClientSessionCache.Put(testName, must(tls.NewResumptionState([]byte("t"), cut)))
		if offeredTicket(t, mustClient(t, w.client)) != nil {
			t.Fatalf("a session cut after %d bytes is used", i)
		}
	}
}

// TestSessionHooks replaces the sealing of tickets.
func TestSessionHooks(t *testing.T) {
	w := newWorld()
	store := map[string][]byte{}
	w.server.TLS.WrapSession = func(cs tls.ConnectionState, s *tls.SessionState) ([]byte, error) {
		if cs.Version != tls.VersionTLS13 || !cs.HandshakeComplete || cs.ServerName != testName {
			t.Errorf("WrapSession sees %+v", cs)
		}
		s.Extra = append([][]byte{[]byte("of somebody else")}, s.Extra...)
		id := strconv.Itoa(len(store))
		store[id] = must(s.Bytes())
		return []byte(id), nil
	}
	w.server.TLS.UnwrapSession = func(id []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
		if b, ok := store[string(id)]; ok {
			return tls.ParseSessionState(b)
		}
		return nil, nil
	}
	w.meet(t)
	c, s := w.meet(t)
	wantResumed(t, true, c, s)
	store = map[string][]byte{}
	c, s = w.meet(t)
	wantResumed(t, false, c, s)

	w.server.TLS.UnwrapSession = func([]byte, tls.ConnectionState) (*tls.SessionState, error) {
		return nil, &Error{Alert: AlertAccessDenied, cause: errTest}
	}
	c, s = newTestPair(t, w.client, w.server)
	if _, err := shake(c, s); !errors.Is(err, errTest) {
		t.Error("UnwrapSession's error:", err)
	} else if a, _ := alertOf(err); a != AlertAccessDenied {
		t.Errorf("UnwrapSession's error sends %v", a)
	}
	w.server.TLS.WrapSession = func(tls.ConnectionState, *tls.SessionState) ([]byte, error) { return nil, errTest }
	w.client.TLS.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	c, s = newTestPair(t, w.client, w.server)
	mustShake(t, c, s)
	if _, err := s.Write(nil, []byte("x")); !errors.Is(err, errTest) {
		t.Error("WrapSession's error:", err)
	}
}

// TestNewTicket is how a user who took the keys sends tickets.
func TestNewTicket(t *testing.T) {
	w := newWorld()
	c, s := newTestPair(t, w.client, w.server)
	if _, err := s.NewTicket(); err == nil {
		t.Error("a ticket before the handshake is complete")
	}
	mustShake(t, c, s)
	c.TakeKeys()
	s.TakeKeys()
	var last *newSessionTicket
	for range 2 {
		raw, err := s.NewTicket()
		if err != nil || raw == nil {
			t.Fatalf("no ticket: %v", err)
		}
		ticket := must(parseNewSessionTicket(raw[messageHeadLen:], 0))
		if last != nil && (ticket.ageAdd == last.ageAdd || bytes.Equal(ticket.nonce, last.nonce) || bytes.Equal(ticket.ticket, last.ticket)) {
			t.Error("two tickets have the same nonce, the same ticket_age_add, or are the same")
		}
		last = ticket
		if err := c.PostHandshake(raw); err != nil {
			t.Fatal(err)
		}
	}
	if raw, err := c.NewTicket(); raw != nil || err != nil {
		t.Errorf("a client makes a ticket: %x, %v", raw, err)
	}
	c, s = w.meet(t)
	wantResumed(t, true, c, s)
}

// TestNoTicketDue has the cases in which none is made.
func TestNoTicketDue(t *testing.T) {
	large := authority().issue(testKeys()["P-256"], func(c *x509.Certificate) {
		for i := range 900 {
			c.DNSNames = append(c.DNSNames, fmt.Sprintf("name%d.example.com", i))
		}
	})
	for _, test := range []struct {
		name   string
		change func(w *world)
	}{
		{"client without a cache", func(w *world) { w.client.TLS.ClientSessionCache = nil }},
		{"tickets disabled", func(w *world) { w.server.TLS.SessionTicketsDisabled = true }},
		{"client's certificate too long", func(w *world) {
			w.client.TLS.Certificates, w.server.TLS.ClientAuth = []tls.Certificate{large}, tls.RequireAnyClientCert
		}},
		{"a PSK of the user's", func(w *world) {
			key := testPSK()
			w.client.PSK, w.server.LookupPSK = key, func([]byte) (*PSK, error) { return key, nil }
		}},
		{"sealed to more than a ClientHello should bear", func(w *world) {
			w.server.TLS.WrapSession = func(tls.ConnectionState, *tls.SessionState) ([]byte, error) { return make([]byte, maxIdentity+1), nil }
		}},
		{"sealed to nothing", func(w *world) {
			w.server.TLS.WrapSession = func(tls.ConnectionState, *tls.SessionState) ([]byte, error) { return nil, nil }
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld()
			test.change(w)
			_, s := w.meet(t)
			if raw, err := s.NewTicket(); raw != nil || err != nil {
				t.Errorf("ticket of %d bytes, %v", len(raw), err)
			}
			if w.client.TLS.ClientSessionCache != nil && offeredTicket(t, mustClient(t, &Config{TLS: w.client.TLS})) != nil {
				t.Error("client has a ticket all the same")
			}
		})
	}
}

// TestTicketIsDropped sends a client tickets that it must not keep.
func TestTicketIsDropped(t *testing.T) {
	for _, test := range []struct {
		name   string
		ticket newSessionTicket
		kept   bool
	}{
		{"good", newSessionTicket{lifetime: 3600, ticket: []byte("t")}, true},
		{"of the longest size", newSessionTicket{lifetime: 604800, ticket: make([]byte, maxIdentity)}, true},
		{"lifetime zero", newSessionTicket{ticket: []byte("t")}, false},
		{"lifetime over 7 days", newSessionTicket{lifetime: 604801, ticket: []byte("t")}, false},
		{"too long", newSessionTicket{lifetime: 3600, ticket: make([]byte, maxIdentity+1)}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			client := clientTLS()
			client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			p := newPuppetServer(t, &Config{TLS: client})
			p.connect()
			for raw := range slices.Chunk(must(encode(&test.ticket)), record.MaxPlaintext) {
				p.record(record.Handshake, raw)
			}
			p.feed()
			if p.err != nil {
				t.Fatal(p.err)
			}
			if kept := offeredTicket(t, mustClient(t, &Config{TLS: client})) != nil; kept != test.kept {
				t.Errorf("ticket kept: %v, want %v", kept, test.kept)
			}
		})
	}
}

// TestRememberedAnswer is what a client needs for early data on its extension.
func TestRememberedAnswer(t *testing.T) {
	w := newWorld()
	withExtension(w.client, true)
	withExtension(w.server, true)
	if c, _ := w.meet(t); c.RememberedAnswer() != nil {
		t.Error("an answer is remembered from nowhere")
	}
	w.server.Answer = func([]byte) ([]byte, error) { return nil, nil }
	if c, _ := w.meet(t); string(c.RememberedAnswer()) != "answer" {
		t.Errorf("remembered %q", c.RememberedAnswer())
	}
	if c, _ := w.meet(t); c.RememberedAnswer() != nil {
		t.Errorf("remembered %q from a session without an answer", c.RememberedAnswer())
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

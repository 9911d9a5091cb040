package tlstest_test

import (
	"cmp"
	"crypto/tls"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-tcpls/tcpls/internal/tls13"
	"github.com/go-tcpls/tcpls/internal/tlstest"
	"github.com/go-tcpls/tcpls/internal/tlstest/outside"
)

// TestInterop has the engine meet other programs in both roles, and compares
// what works with the table of docs/interop.md. Every cell of the table is some
// connections: data goes there and back, and both ends are told of the end.

// Names of one thing with us and with other programs.
type (
	suite struct{ name, gnutls, nss string }
	group struct {
		id                   tls.CurveID
		openssl, gnutls, nss string
	}
)

var (
	suites = []suite{
		{"TLS_AES_128_GCM_SHA256", "AES-128-GCM", ":1301"},
		{"TLS_AES_256_GCM_SHA384", "AES-256-GCM", ":1302"},
		{"TLS_CHACHA20_POLY1305_SHA256", "CHACHA20-POLY1305", ":1303"},
	}

	hybrid = group{tls.X25519MLKEM768, "X25519MLKEM768", "GROUP-X25519-MLKEM768", "mlkem768x25519"}
	x25519 = group{tls.X25519, "X25519", "GROUP-X25519", "x25519"}
	p256   = group{tls.CurveP256, "P-256", "GROUP-SECP256R1", "P256"}
	p384   = group{tls.CurveP384, "P-384", "GROUP-SECP384R1", "P384"}
	p521   = group{tls.CurveP521, "P-521", "GROUP-SECP521R1", "P521"}
	groups = []group{hybrid, x25519, p256, p384, p521}
)

// A special is what a connection shows beside suite, group and certificates.
type special string

const (
	plain       special = ""
	retry       special = "HelloRetryRequest"
	alpn        special = "ALPN"
	ourUpdate   special = "key update, by us"
	theirUpdate special = "key update, by the program"
	ourLimit    special = "record_size_limit, by us"
	theirLimit  special = "record_size_limit, by the program"
	// These take a second connection.
	resume      special = "resumption"
	resumeRetry special = "resumption after a HelloRetryRequest"
	early       special = "0-RTT"
	earlyRetry  special = "0-RTT, refused by a HelloRetryRequest"
)

func (s special) resumes() bool { return s == resume || s == resumeRetry || s.isEarly() }
func (s special) isEarly() bool { return s == early || s == earlyRetry }
func (s special) retries() bool { return s == retry || s == resumeRetry || s == earlyRetry }

// protocol is what alpn agrees on.
const protocol = "http/1.1"

// maxEarly is how much early data a ticket of ours allows.
const maxEarly = 4 << 10

// sizeLimit is what ourLimit and theirLimit announce.
const sizeLimit = 512

// terms are what both ends of a connection are told.
type terms struct {
	suite     suite  // zero: any
	group     group  // zero: any
	key       string // kind of the server's key; P-256 if empty
	clientKey string // kind of the client's key; none if empty
	special   special
}

func (m terms) String() string {
	var words []string
	for _, w := range []string{m.suite.name, m.group.openssl, m.key, m.clientKey, string(m.special)} {
		if w != "" {
			words = append(words, w)
		}
	}
	return strings.Join(words, " ")
}

// A feature is a row of the table.
type feature struct {
	name  string
	terms []terms // one connection each, as far as the program can
}

// features returns all rows.
func features() (all []feature) {
	for _, s := range suites {
		f := feature{name: s.name + ", with every group and certificate"}
		for _, g := range groups {
			f.terms = append(f.terms, terms{suite: s, group: g})
		}
		for _, key := range outside.Kinds {
			f.terms = append(f.terms, terms{suite: s, key: key})
		}
		all = append(all, f)
	}
	for _, g := range groups {
		all = append(all, feature{g.openssl, []terms{{group: g}}})
	}
	for _, key := range outside.Kinds {
		all = append(all, feature{"server certificate " + key, []terms{{key: key}}})
	}
	for _, key := range outside.Kinds {
		all = append(all, feature{"client certificate " + key, []terms{{clientKey: key}}})
	}
	all = append(all, feature{string(retry), []terms{
		{group: p256, special: retry}, {group: p384, special: retry}, {group: p521, special: retry},
	}})
	for _, s := range []special{alpn, ourUpdate, theirUpdate, ourLimit, theirLimit} {
		all = append(all, feature{string(s), []terms{{special: s}}})
	}
	for _, s := range []special{resume, early} {
		f := feature{string(s) + ", with every suite", []terms{{special: s}}}
		for _, suite := range suites {
			f.terms = append(f.terms, terms{suite: suite, special: s})
		}
		all = append(all, f)
	}
	for _, s := range []special{resumeRetry, earlyRetry} {
		all = append(all, feature{string(s), []terms{{group: p384, special: s}}})
	}
	return append(all, feature{"resumption with a client certificate", []terms{{clientKey: outside.P256, special: resume}}})
}

// A peer is a program in one role: a column of the table.
type peer struct {
	name     string
	programs []string                       // what must be installed
	version  func(t *testing.T) string      // of what the program belongs to
	lacks    func(*testing.T, terms) string // why the program can't do it; "" if it can

	prepare func(*testing.T, *room) // may be nil

	// One of these. server starts a server, and returns where it listens and
	// what is to be said to it. client runs a client from its beginning to its
	// end, which has sent a line and had it back.
	server func(*meeting) (addr string, talk func(*tlstest.Conn))
	client func(*meeting, *served)
}

func peers() []*peer {
	return []*peer{
		opensslClient, opensslServer, gnutlsClient, gnutlsServer, nssClient, nssServer,
		goClient, goServer, nodeClient, nodeServer, curlClient,
	}
}

// A meeting is one connection of us and a peer.
type meeting struct {
	terms
	*testing.T
	*room
}

// A room is what all meetings with a peer share.
type room struct {
	authority *outside.Authority
	leaves    map[string]*outside.Leaf // by kind of key
	nssDB     string                   // a database for NSS, if its programs are the peer
	node      *outside.Process         // testdata/peer.js, if Node.js is
}

func newRoom(t *testing.T) *room {
	r := &room{authority: outside.NewAuthority(t), leaves: make(map[string]*outside.Leaf)}
	for _, kind := range outside.Kinds {
		r.leaves[kind] = r.authority.Issue(t, kind, nil)
	}
	return r
}

// leaf is the server's certificate.
func (m *meeting) leaf() *outside.Leaf {
	if m.key == "" {
		return m.leaves[outside.P256]
	}
	return m.leaves[m.key]
}

// own is the client's certificate, nil if it has none.
func (m *meeting) own() *outside.Leaf { return m.leaves[m.clientKey] }

// clientGroups are the groups that the client offers, best first.
func (m *meeting) clientGroups() []group {
	switch {
	case m.special.retries():
		return []group{x25519, m.group}
	case m.group.id != 0:
		return []group{m.group}
	}
	return nil
}

// names joins one of the names of each group.
func names(groups []group, name func(group) string, separator string) string {
	var all []string
	for _, g := range groups {
		all = append(all, name(g))
	}
	return strings.Join(all, separator)
}

func opensslName(g group) string { return g.openssl }
func nssName(g group) string     { return g.nss }

// file writes a file and returns its name.
func (m *meeting) file(content string) string {
	name := filepath.ToSlash(filepath.Join(m.TempDir(), "file"))
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		m.Fatal(err)
	}
	return name
}

// line is what is said: with a limit, more than one record's worth.
func (m *meeting) line() string {
	if m.special == ourLimit || m.special == theirLimit {
		return strings.Repeat("0123456789", 2*sizeLimit/10)
	}
	return "a line there and back"
}

// serverConfig is ours when we are the server.
func (m *meeting) serverConfig() *tls13.Config {
	cfg := &tls13.Config{TLS: serverConfig(m.leaf())}
	if m.group.id != 0 {
		cfg.TLS.CurvePreferences = []tls.CurveID{m.group.id}
	}
	if m.own() != nil {
		cfg.TLS.ClientAuth, cfg.TLS.ClientCAs = tls.RequireAndVerifyClientCert, m.authority.Pool
	}
	switch m.special {
	case alpn:
		cfg.TLS.NextProtos = []string{"other", protocol}
	case ourLimit:
		cfg.RecordSizeLimit = sizeLimit
	case early, earlyRetry:
		cfg.MaxEarlyData, cfg.FirstUse = maxEarly, new(tlstest.Strikes).FirstUse
	}
	return cfg
}

// clientConfig is ours when we are the client.
func (m *meeting) clientConfig() *tls13.Config {
	cfg := &tls13.Config{TLS: clientConfig(m.authority)}
	for _, g := range m.clientGroups() {
		cfg.TLS.CurvePreferences = append(cfg.TLS.CurvePreferences, g.id)
	}
	if m.own() != nil {
		cfg.TLS.Certificates = []tls.Certificate{m.own().TLS}
	}
	switch m.special {
	case alpn:
		cfg.TLS.NextProtos = []string{"x-unknown", protocol}
	case ourLimit:
		cfg.RecordSizeLimit = sizeLimit
	case early, earlyRetry:
		cfg.MaxEarlyData = maxEarly
	}
	if m.special.resumes() {
		cfg.TLS.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	}
	return cfg
}

// facts are the words of Facts that the terms demand, of a resumed connection
// or another.
func (m *meeting) facts(resumed bool) []string {
	words := []string{"name=localhost"}
	if m.suite.name != "" {
		words = append(words, m.suite.name)
	}
	if m.group.id != 0 {
		words = append(words, m.group.id.String())
	}
	if m.special.retries() {
		words = append(words, "retried=yes")
	}
	if m.special == alpn {
		words = append(words, "alpn="+protocol)
	}
	if resumed && m.special != earlyRetry { // s_server takes a ticket once, and asks for it twice
		words = append(words, "resumed=yes")
	}
	if resumed && m.special == early {
		words = append(words, "early=")
	}
	return words
}

// hold makes the meeting.
func (p *peer) hold(m *meeting) {
	if p.client != nil {
		s := serveEngine(m.T, m.serverConfig(), tlstest.Behaviour{KeyUpdate: m.special == ourUpdate})
		p.client(m, s)
		also := []string{": closed"}
		if m.clientKey != "" {
			also = append(also, "peer=", m.clientKey)
		}
		s.said(append(m.facts(false), also...)...)
		if m.special.resumes() {
			s.said(append(m.facts(true), also...)...)
		}
		return
	}
	addr, talk := p.server(m)
	cfg := m.clientConfig()
	c := mustDialEngine(m.T, addr, cfg)
	mustContain(m.T, "handshake", tlstest.Facts(c), append(m.facts(false), "peer=")...)
	if m.special == ourUpdate {
		if err := c.UpdateKeys(true); err != nil {
			m.Fatal(err)
		}
	}
	talk(c)
	if m.special.resumes() {
		c := m.again(addr, cfg)
		mustContain(m.T, "handshake", tlstest.Facts(c), m.facts(true)...)
		talk(c)
	}
}

// again connects a second time, with early data if the terms say so.
func (m *meeting) again(addr string, cfg *tls13.Config) *tlstest.Conn {
	c := newClient(m.T, addr, cfg)
	if m.special.isEarly() {
		if err := c.WriteEarly([]byte(m.earlyLine() + "\n")); err != nil {
			m.Fatal(err)
		}
	}
	if err := c.Handshake(patience); err != nil {
		m.Fatal(err)
	}
	if accepted := c.Engine().EarlyDataAccepted(); accepted != (m.special == early) {
		m.Errorf("the server's acceptance of early data is %v", accepted)
	}
	return c
}

// earlyLine is what is said early.
func (m *meeting) earlyLine() string { return "an early line" }

// echoes says the line to a server that answers by it, or by its reverse.
func (m *meeting) echoes(answer func(string) string) func(*tlstest.Conn) {
	return func(c *tlstest.Conn) {
		mustAnswer(m.T, c, m.line(), answer(m.line()))
		mustEndCleanly(m.T, c)
	}
}

func same(line string) string { return line }

// echoed says a line to our server by a client that is connected, wants it
// back, and ends the client.
func (m *meeting) echoed(p *outside.Process, line string) {
	p.Say(line)
	p.WaitFor(line)
	if out, err := p.Finish(); err != nil {
		m.Errorf("%v\n%s", err, out)
	}
}

// request is the line for programs that speak HTTP.
func (m *meeting) request() string { return "GET /" + m.line() + " HTTP/1.0\r\n\r\n" }

func TestInterop(t *testing.T) {
	results := newResults(peers(), features())
	t.Run("peers", func(t *testing.T) {
		for _, p := range results.peers {
			t.Run(p.name, func(t *testing.T) {
				t.Parallel()
				for _, program := range p.programs {
					outside.Need(t, program)
				}
				results.setVersion(p, p.version(t))
				r := newRoom(t)
				if p.prepare != nil {
					p.prepare(t, r)
				}
				for _, f := range results.features {
					t.Run(f.name, func(t *testing.T) { p.show(t, r, f, results) })
				}
			})
		}
	})
	results.settle(t)
}

// show runs the connections of one cell.
func (p *peer) show(t *testing.T, r *room, f feature, results *results) {
	var held int
	var reason string
	for _, terms := range f.terms {
		if why := p.lacks(t, terms); why != "" {
			reason = cmp.Or(reason, why)
			continue
		}
		held++
		t.Run(terms.String(), func(t *testing.T) { p.hold(&meeting{terms, t, r}) })
	}
	switch {
	case t.Failed():
	case held > 0:
		results.set(p, f, works)
	default:
		results.set(p, f, reason)
		if results.page.says(p.name, f.name) == works && os.Getenv("CI") == "true" {
			t.Errorf("%s says that this works, and this version can't: %s", pageFile, reason)
		}
		t.Skip(reason)
	}
}

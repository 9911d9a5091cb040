package tls13

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"slices"
	"testing"

	"github.com/go-tcpls/tcpls/internal/record"
)

// A puppet is the peer of the engine under test. It says whatever the test
// wants, keeps keys and transcript right all the same, and stops at the
// engine's first error.
type puppet struct {
	t        testing.TB
	engine   *Conn
	isClient bool
	err      error  // the engine's
	wire     []byte // what the engine gets next

	suite       *record.Suite
	transcript  *transcript
	read, write *record.Context
	traffic     trafficSecrets
	handshake   handshakeSecret
	psk         []byte // nil: none is in use
	early       *record.Context
	app         trafficSecrets

	client *clientHandshake // a client's hello and keys
	hello  *clientHello
	group  *group
	cert   tls.Certificate
	alerts []Alert // that the engine sent
	echoed bool    // the extension was answered, and nobody had asked
	among  bool    // and other extensions with it

	// A tolerant puppet may have other keys than the engine, and only notes it.
	tolerant, deafened bool
}

const testExtension = 0xff5a

// withExtension adds the user's extension to a configuration.
func withExtension(cfg *Config, on bool) *Config {
	if on {
		cfg.Extension = testExtension
		cfg.Offer = []byte("offer")
		cfg.Answer = func([]byte) ([]byte, error) { return []byte("answer"), nil }
		cfg.Accept = func([]byte) error { return nil }
	}
	return cfg
}

// An extensionUse says who has the user's extension.
type extensionUse uint8

const (
	extensionOff extensionUse = iota
	extensionAnswered
	// extensionUnasked: the engine knows it and says nothing of it, while the puppet
	// behaves as if it had: a server answers it, a client offers it.
	extensionUnasked
)

func (u extensionUse) String() string { return [...]string{"off", "answered", "unasked"}[u] }

func (u extensionUse) in(cfg *Config) *Config {
	if u == extensionUnasked {
		cfg.Extension = testExtension
		return cfg
	}
	return withExtension(cfg, u == extensionAnswered)
}

// record adds a record under the puppet's current keys to the wire.
func (p *puppet) record(t record.Type, content []byte) {
	if p.write == nil {
		p.wire = record.AppendPlain(p.wire, t, tls.VersionTLS12, content)
		return
	}
	p.wire = append(p.wire, sealed(p.write, t, content)...)
}

func (p *puppet) plain(t record.Type, content []byte) {
	p.wire = record.AppendPlain(p.wire, t, tls.VersionTLS12, content)
}

// send adds a message, alone in its records, to transcript and wire.
func (p *puppet) send(m outgoing) { p.sendRaw(must(encode(m))) }

func (p *puppet) sendRaw(raw []byte) {
	p.transcript.add(raw)
	for len(raw) > 0 {
		n := min(len(raw), record.MaxPlaintext)
		p.record(record.Handshake, raw[:n])
		raw = raw[n:]
	}
}

// feed gives the engine what is on the wire.
func (p *puppet) feed() {
	if p.err != nil {
		return
	}
	var n int
	if p.engine.HandshakeComplete() {
		_, n, p.err = p.engine.Read(nil, p.wire)
	} else {
		n, p.err = p.engine.Feed(p.wire)
	}
	p.wire = p.wire[n:]
}

// receive reads what the engine says and returns its handshake messages.
func (p *puppet) receive() []message {
	var list []message
	var hand []byte
	for _, rec := range splitRecords(p.engine.Output()) {
		typ, content := record.Type(rec[0]), rec[record.HeaderLen:]
		if typ == record.ApplicationData {
			var err error
			if p.tolerant && p.read == nil {
				p.deafened = true
				return list
			}
			read := p.read
			if p.early != nil { // a client may still write under its early keys
				if content, typ, err = p.early.Open(make([]byte, 0, len(rec)), rec); err == nil {
					read = nil
				}
			}
			if read != nil {
				content, typ, err = read.Open(make([]byte, 0, len(rec)), rec)
			}
			if err != nil {
				if p.deafened = p.tolerant; p.deafened {
					return list
				}
				p.t.Fatal("the engine's record can't be opened:", err)
			}
		}
		switch typ {
		case record.Handshake:
			hand = append(hand, content...)
		case record.Alert:
			p.alerts = append(p.alerts, Alert(content[1]))
			if content[0] != levelFatal || len(content) != 2 {
				p.t.Errorf("the engine sends the alert %x", content)
			}
		}
		for len(hand) >= messageHeadLen {
			n := messageHeadLen + int(hand[1])<<16 + int(hand[2])<<8 + int(hand[3])
			if len(hand) < n {
				break
			}
			list = append(list, message{messageType(hand[0]), hand[:n:n]})
			hand = hand[n:]
			if typ == record.Handshake && p.isClient && p.read == nil && len(list) == 1 {
				p.serverHelloCame(list[0])
			}
		}
	}
	return list
}

// wantRow ends the test of a row. A client refuses an answer that it didn't ask
// for as soon as it comes, whatever follows; another broken rule of the same
// message may be found first.
func (p *puppet) wantRow(row negative) {
	p.t.Helper()
	if found, _ := alertOf(p.err); p.echoed && !(p.among && !row.fine && found == row.alert) {
		p.wantAlert(AlertUnsupportedExtension, false)
		return
	}
	p.wantAlert(row.alert, row.fine)
}

// wantAlert ends a test: the engine must have failed with the alert, have
// sent it once, and be dead from then on. With no alert it must be well.
func (p *puppet) wantAlert(want Alert, none bool) {
	p.t.Helper()
	p.receive()
	if none {
		if p.err != nil || len(p.alerts) > 0 {
			p.t.Errorf("engine refuses what it should take: %v, alerts %v", p.err, p.alerts)
		}
		return
	}
	if p.err == nil {
		p.t.Fatalf("engine takes what it should refuse with %v", want)
	}
	if got, ok := alertOf(p.err); !ok || got != want {
		p.t.Errorf("engine fails with %q, want %v", p.err, want)
	}
	if !slices.Equal(p.alerts, []Alert{want}) {
		p.t.Errorf("alerts sent: %v, want one %v", p.alerts, want)
	}
	if _, err := p.engine.Feed(p.wire); err != p.err && !p.engine.HandshakeComplete() {
		p.t.Errorf("later Feed: %v, want the first error", err)
	}
	if _, err := p.engine.Write(nil, []byte("x")); err == nil {
		p.t.Error("Write after a fatal error")
	}
	p.engine.CloseNotify()
	if out := p.engine.Output(); len(out) > 0 {
		p.t.Errorf("%d more bytes after the alert", len(out))
	}
}

// longer adds a byte that means nothing to a message of less than 255 bytes.
func longer(raw []byte) []byte {
	raw = append(bytes.Clone(raw), 0)
	raw[3]++
	return raw
}

func setExtension(list []extension, id uint16, body []byte) []extension {
	list = slices.Clone(list)
	for i := range list {
		if list[i].id == id {
			list[i].body = body
			return list
		}
	}
	return append(list, extension{id, body})
}

func dropExtension(list []extension, id uint16) []extension {
	return slices.DeleteFunc(slices.Clone(list), func(e extension) bool { return e.id == id })
}

// A puppet client, against our server.

func newPuppetClient(t testing.TB, server *Config) *puppet {
	t.Helper()
	p := &puppet{t: t, isClient: true, engine: mustServer(t, server), cert: testCertificates()["P-256"]}
	c, err := newConn(withExtension(&Config{TLS: clientTLS()}, server.Extension != 0), true)
	if err != nil {
		t.Fatal(err)
	}
	p.client = &clientHandshake{c: c}
	if err := p.client.start(); err != nil {
		t.Fatal(err)
	}
	p.hello = p.client.hello
	return p
}

// clientHello sends the hello as it stands and feeds it.
func (p *puppet) clientHello() {
	raw := must(encode(p.hello))
	if p.transcript == nil {
		p.client.helloRaw = raw
	} else {
		p.transcript.add(raw)
	}
	p.record(record.Handshake, raw)
	p.feed()
}

// serverHelloCame gives a puppet client its keys.
func (p *puppet) serverHelloCame(m message) {
	sh := must(parseServerHello(m.body(), 0))
	p.suite = record.SuiteByID(sh.suite)
	if p.transcript == nil {
		p.transcript = newTranscript(p.suite)
		p.transcript.add(p.client.helloRaw)
	}
	if sh.isRetry() {
		p.transcript.retry()
		p.transcript.add(m.raw)
		return
	}
	p.transcript.add(m.raw)
	if _, ok := findExtension(sh.extensions, extPreSharedKey); !ok {
		p.psk = nil
	}
	body, _ := findExtension(sh.extensions, extKeyShare)
	share, _ := parseKeyShare(body)
	for _, pair := range p.client.pairs {
		if pair.group.id == share.group {
			p.keys(must(pair.shared(share.data)))
		}
	}
}

func (p *puppet) keys(shared []byte) {
	p.handshake = newEarlySecret(p.suite, p.psk).handshake(shared)
	sum := p.transcript.sum()
	p.traffic = trafficSecrets{p.handshake.clientTraffic(sum), p.handshake.serverTraffic(sum)}
	p.setKeys(p.traffic)
}

func (p *puppet) setKeys(t trafficSecrets) {
	read, write := t.server, t.client
	if !p.isClient {
		read, write = write, read
	}
	p.read = record.NewContext(must(p.suite.Keys(bytes.Clone(read))), 0)
	p.write = record.NewContext(must(p.suite.Keys(bytes.Clone(write))), 0)
}

// serverFlight reads the server's flight. The server then writes under the
// application keys, so the puppet reads under them.
func (p *puppet) serverFlight() []message {
	if p.err != nil {
		return nil
	}
	list := p.receive()
	for _, m := range list[1:] {
		p.transcript.add(m.raw)
	}
	p.application()
	p.read = record.NewContext(must(p.suite.Keys(bytes.Clone(p.app.server))), 0)
	return list
}

func (p *puppet) application() {
	sum, master := p.transcript.sum(), p.handshake.master()
	p.app = trafficSecrets{master.clientTraffic(sum), master.serverTraffic(sum)}
}

// clientFinished ends a puppet client's handshake.
func (p *puppet) clientFinished() {
	if p.err != nil {
		return
	}
	p.send(&finished{finishedMAC(p.suite, p.traffic.client, p.transcript.sum())})
	p.feed()
	if p.err == nil {
		p.write = record.NewContext(must(p.suite.Keys(bytes.Clone(p.app.client))), 0)
	}
}

// connect does a whole handshake, for what comes after it.
func (p *puppet) connect() {
	if p.isClient {
		p.clientHello()
		p.serverFlight()
		p.clientFinished()
		return
	}
	p.serverHello(nil)
	p.rest()
}

// certificateVerify signs the transcript with the puppet's certificate.
func (p *puppet) certificateVerify() *certificateVerify {
	return must(sign(&p.cert, tls.ECDSAWithP256AndSHA256, p.isClient, p.transcript.sum(), nil))
}

// A puppet server, against our client.

func newPuppetServer(t testing.TB, client *Config) *puppet {
	t.Helper()
	p := &puppet{t: t, engine: mustClient(t, client), cert: testCertificates()["P-256"]}
	p.suite = record.SuiteByID(tls.TLS_AES_128_GCM_SHA256)
	p.transcript = newTranscript(p.suite)
	p.clientHelloCame()
	p.group = groupByID(tls.X25519)
	return p
}

func (p *puppet) clientHelloCame() {
	list := p.receive()
	if len(list) != 1 {
		p.t.Fatalf("client sends %d messages, want a ClientHello", len(list))
	}
	p.transcript.add(list[0].raw)
	p.hello = must(parseClientHello(list[0].body(), p.engine.cfg.Extension))
}

// grease is an extension of the ClientHello that no server can know.
func (p *puppet) grease() extension {
	first := p.hello.extensions[0]
	if !isGrease(first.id) {
		p.t.Fatalf("the ClientHello begins with extension %d, not with GREASE", first.id)
	}
	return first
}

// serverHello answers the ClientHello after a change to the answer.
func (p *puppet) serverHello(change func(m *serverHello)) {
	if p.err != nil {
		return
	}
	o := must(parseOffer(p.hello.extensions, p.engine.cfg.Extension))
	share, ok := o.share(p.group.id)
	if !ok {
		p.t.Fatalf("client sends no share for %v", p.group.id)
	}
	answer, shared, err := p.group.respond(must(p.group.curve.GenerateKey(rand.Reader)), share)
	if err != nil {
		p.t.Fatal(err)
	}
	m := p.newServerHello(bytes.Repeat([]byte{7}, randomLen), extension{extKeyShare, keyShareBody(keyShare{p.group.id, answer})})
	if change != nil {
		change(m)
	}
	p.send(m)
	p.keys(shared)
}

func (p *puppet) newServerHello(random []byte, share extension) *serverHello {
	return &serverHello{
		version: tls.VersionTLS12, random: random, sessionID: p.hello.sessionID, suite: p.suite.ID,
		extensions: []extension{{extSupportedVersions, uint16Body(tls.VersionTLS13)}, share},
	}
}

// retry sends a HelloRetryRequest and reads the second ClientHello.
func (p *puppet) retry(group tls.CurveID, change func(m *serverHello)) {
	p.transcript.retry()
	m := p.newServerHello(retryRandom, extension{extKeyShare, uint16Body(uint16(group))})
	if change != nil {
		change(m)
	}
	p.send(m)
	p.feed()
	if p.err == nil {
		p.clientHelloCame()
	}
}

// encryptedExtensions sends what a usual server says, and more.
func (p *puppet) encryptedExtensions(more ...extension) {
	m := &encryptedExtensions{[]extension{{extServerName, nil}}}
	if own := p.engine.cfg.Extension; own != 0 {
		m.extensions = append(m.extensions, extension{own, []byte("answer")})
		p.echoed = !p.engine.cfg.offers()
	}
	m.extensions = append(m.extensions, more...)
	p.among = len(more) > 0
	p.send(m)
}

// serverFinished sends the server's Finished and moves to application keys as
// far as the client does.
func (p *puppet) serverFinished() {
	p.send(&finished{finishedMAC(p.suite, p.traffic.server, p.transcript.sum())})
	p.application()
	p.feed()
	if p.err != nil {
		return
	}
	p.receive() // the client's second flight
	p.setKeys(p.app)
}

// rest sends everything after ServerHello.
func (p *puppet) rest() {
	p.encryptedExtensions()
	p.proof()
	p.serverFinished()
}

// proof sends the server's Certificate and CertificateVerify.
func (p *puppet) proof() {
	p.send(certificateMessage(&p.cert, false, false))
	p.send(p.certificateVerify())
}

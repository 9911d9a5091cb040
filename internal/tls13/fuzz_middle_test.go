package tls13

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"strings"
	"testing"
	"testing/cryptotest"

	"github.com/go-tcpls/tcpls/internal/record"
)

// A middle stands between a client and a server and knows what their key logs
// tell. So it can change what is inside the encryption, and seal it again; but
// it has no private key.
type middle struct {
	t              *testing.T
	client, server *end
	script         *script
}

// An end is an engine as the middle sees it.
type end struct {
	conn     *Conn
	err      error
	keyLog   bytes.Buffer
	finished bool // the handshake was complete when last looked at

	says   [epochs]*record.Context // what opens this end's records
	hears  [epochs]*record.Context // what seals records for it
	epoch  int                     // of what it says
	hand   []byte                  // part of a message that it says
	said   []byte                  // all handshake messages
	heard  []byte                  // the same that it was given under the right keys
	wire   []byte                  // for it
	joined []byte                  // for the front of its next record
	alerts []Alert                 // that it sent
	silent bool                    // it may not say anything more
	early  int                     // bytes of early data that it took
}

var logLabels = map[bool][epochs]string{
	true:  {"", logClientEarly, logClientHandshake, logClientApplication},
	false: {"", "", logServerHandshake, logServerApplication},
}

// secret is what the end's key log tells of a direction and epoch; nil if
// nothing yet.
func (e *end) secret(ofClient bool, epoch int) []byte {
	for line := range strings.Lines(e.keyLog.String()) {
		if fields := strings.Fields(line); fields[0] == logLabels[ofClient][epoch] {
			return must(hex.DecodeString(fields[2]))
		}
	}
	return nil
}

// context returns the context of an epoch, once its keys are known.
func (e *end) context(list *[epochs]*record.Context, ofClient bool, epoch int) *record.Context {
	if list[epoch] == nil && epoch != inTheClear {
		if secret := e.secret(ofClient, epoch); secret != nil {
			suite := e.conn.Suite()
			if suite == nil { // a client's early data
				suite = selectSuite(suitesAESFirst)
			}
			list[epoch] = record.NewContext(must(suite.Keys(secret)), 0)
		}
	}
	return list[epoch]
}

// open takes apart what an end says: one item a message, or a record that
// holds none.
func (m *middle) open(e *end) (list []item) {
	out := e.conn.Output()
	if e.conn.EarlyContextSend() != nil && len(out) > 0 {
		out = append(bytes.Clone(out), must(e.conn.WriteEarly(nil, []byte("early data")))...)
	}
	if len(out) > 0 && e.silent {
		m.t.Fatalf("an end says more after its last word: %x", out)
	}
	for _, rec := range splitRecords(out) {
		typ, content := record.Type(rec[0]), rec[record.HeaderLen:]
		if typ == record.ApplicationData {
			typ, content = m.openSealed(e, rec)
		}
		switch typ {
		case record.Handshake:
			e.hand = append(e.hand, content...)
			for len(e.hand) >= messageHeadLen {
				n := messageHeadLen + int(e.hand[1])<<16 + int(e.hand[2])<<8 + int(e.hand[3])
				if len(e.hand) < n {
					break
				}
				e.said = append(e.said, e.hand[:n]...)
				list = append(list, item{typ: typ, content: e.hand[:n:n], epoch: e.epoch})
				e.hand = e.hand[n:]
			}
			continue
		case record.Alert:
			e.alerts = append(e.alerts, Alert(content[1]))
		}
		list = append(list, item{typ: typ, content: content, epoch: e.epoch})
	}
	e.silent = e.err != nil
	return list
}

// openSealed opens a record of the end's epoch, or else the next.
func (m *middle) openSealed(e *end, rec []byte) (record.Type, []byte) {
	for epoch := max(e.epoch, underEarlyKeys); epoch <= underApplicationKeys; epoch++ {
		if ctx := e.context(&e.says, e.conn.isClient, epoch); ctx != nil {
			if content, typ, err := ctx.Open(make([]byte, 0, len(rec)), rec); err == nil {
				e.epoch = epoch
				return typ, content
			}
		}
	}
	m.t.Fatal("an end says what its own key log doesn't open")
	return 0, nil
}

// deliver seals an item for an end and feeds it.
func (m *middle) deliver(e *end, it item) {
	if it.joined {
		e.joined = append(e.joined, it.content...)
		return
	}
	content := append(e.joined, it.content...)
	e.joined = nil
	epoch := it.epoch
	if it.stray {
		epoch = (epoch + 1) % epochs
	}
	ctx := e.context(&e.hears, !e.conn.isClient, epoch)
	if it.typ == record.ChangeCipherSpec {
		ctx = nil
	} else if right := e.context(&e.hears, !e.conn.isClient, it.epoch); it.typ == record.Handshake && ctx == right && !it.damaged && e.err == nil {
		e.heard = append(e.heard, content...)
	}
	for again := true; again; again = len(content) > 0 {
		piece := content[:min(len(content), e.conn.ReceiveLimit()-1)]
		content = content[len(piece):]
		rec := record.AppendPlain(nil, it.typ, tls.VersionTLS12, piece)
		if ctx != nil {
			rec = sealed(ctx, it.typ, piece)
		}
		if it.damaged {
			rec[len(rec)-1] ^= 1
		}
		m.feed(e, rec)
	}
}

func (m *middle) feed(e *end, rec []byte) {
	if e.err != nil {
		return
	}
	e.wire = append(e.wire, rec...)
	for n := 1; n > 0 && e.err == nil; e.wire = e.wire[n:] {
		switch {
		case e.conn.HandshakeComplete():
			_, n, e.err = e.conn.Read(nil, e.wire)
		case e.conn.EarlyData():
			var data []byte
			data, n, e.err = e.conn.ReadEarly(nil, e.wire)
			e.early += len(data)
		default:
			n, e.err = e.conn.Feed(e.wire)
		}
	}
	if e.early > maxEarlyOfFuzz {
		m.t.Fatalf("%d bytes of early data, %d are allowed", e.early, maxEarlyOfFuzz)
	}
	if len(e.conn.hand) > messageHeadLen+maxCertificate+record.MaxPlaintext || len(e.wire) > record.HeaderLen+record.MaxCiphertext {
		m.t.Fatalf("an end keeps %d and leaves %d bytes", len(e.conn.hand), len(e.wire))
	}
	if e.conn.HandshakeComplete() && !e.finished {
		e.finished = true
		m.checkComplete(e)
	}
}

// checkComplete is TLS's promise: an end is complete only if both have seen
// the very same messages, and the peer's are those of the peer.
func (m *middle) checkComplete(e *end) {
	peer := m.client
	if e == m.client {
		peer = m.server
	}
	if !bytes.HasPrefix(peer.said, e.heard) {
		m.t.Fatalf("complete, though it heard\n %.200x\nand its peer said\n %.200x", e.heard, peer.said)
	}
	switch {
	case e == m.client && !bytes.HasPrefix(peer.heard, e.said):
		m.t.Fatalf("complete, though the server heard\n %.200x\nand it said\n %.200x", peer.heard, e.said)
	case e == m.server && !peer.finished:
		m.t.Fatal("complete before the client")
	}
	if len(e.heard) < messageHeadLen+e.conn.suite.HashLen || e.heard[len(e.heard)-messageHeadLen-e.conn.suite.HashLen] != byte(typeFinished) {
		m.t.Fatal("complete without the peer's Finished")
	}
	state := e.conn.ConnectionState()
	if e.conn.peer == nil || e.conn.isClient && len(state.VerifiedChains) == 0 && e.conn.PSKUsed() == nil {
		m.t.Fatal("complete without evidence of the peer")
	}
}

// run carries the conversation on until nobody has anything to say.
func (m *middle) run() {
	for range 4 * places {
		quiet := true
		for _, e := range []*end{m.client, m.server} {
			other := m.client
			if e == m.client {
				other = m.server
			}
			for _, it := range m.open(e) {
				quiet = false
				for _, changed := range m.script.change(it) {
					if changed.back {
						m.deliver(e, changed)
					} else {
						m.deliver(other, changed)
					}
				}
			}
		}
		if quiet {
			return
		}
	}
	m.t.Fatal("a conversation without end")
}

// checkEnd holds an end's result against the rules of alerts: one for an
// error of ours, none for the peer's, and none without an error.
func (m *middle) checkEnd(e *end) {
	own, isOwn := alertOf(e.err)
	switch {
	case e.err == nil && len(e.alerts) > 0:
		m.t.Fatalf("no error, and alerts %v", e.alerts)
	case isOwn && (len(e.alerts) != 1 || e.alerts[0] != own):
		m.t.Fatalf("%v, and alerts %v", e.err, e.alerts)
	case e.err != nil && !isOwn && len(e.alerts) > 0:
		m.t.Fatalf("%v is the peer's, and was answered by %v", e.err, e.alerts)
	case e.err != nil && !strings.HasPrefix(e.err.Error(), "tls13: ") && !strings.HasPrefix(e.err.Error(), "remote error: "):
		m.t.Fatalf("%q doesn't say whose it is", e.err)
	case isOwn && own == AlertInternalError:
		m.t.Fatalf("%v, which is nobody's fault but ours", e.err)
	}
}

// What the first byte of the fuzzers' input switches on.
const (
	withTCPLS = 1 << iota
	withClientCertificate
	withRetry
	withSmallRecords
	withProtocols
	withTicket
	withUserPSK
	withEarlyData
)

const maxEarlyOfFuzz = 100

// fuzzWorld has the configurations that a setting asks for.
func fuzzWorld(setting byte) *world {
	w := newWorld()
	client, server := w.client, w.server
	if setting&withTicket == 0 {
		client.TLS.ClientSessionCache = nil
	}
	if setting&withEarlyData != 0 {
		w.withEarlyData()
		client.MaxEarlyData, server.MaxEarlyData = maxEarlyOfFuzz, maxEarlyOfFuzz
	}
	if setting&withUserPSK != 0 {
		client.PSK = &PSK{Identity: []byte("token"), Secret: bytes.Repeat([]byte{9}, 32), Suite: selectSuite(suitesAESFirst), MaxEarlyData: client.MaxEarlyData}
		server.LookupPSK = func(id []byte) (*PSK, error) {
			if bytes.Equal(id, client.PSK.Identity) {
				return client.PSK, nil
			}
			return nil, nil
		}
	}
	if setting&withClientCertificate != 0 {
		client.TLS.Certificates = []tls.Certificate{testCertificates()["Ed25519"]}
		server.TLS.ClientAuth, server.TLS.ClientCAs = tls.RequireAndVerifyClientCert, authority().pool
	}
	if setting&withRetry != 0 {
		server.TLS.CurvePreferences = []tls.CurveID{tls.CurveP256}
	} else {
		client.TLS.CurvePreferences = []tls.CurveID{tls.X25519, tls.CurveP256} // cheap ones
	}
	if setting&withSmallRecords != 0 {
		client.RecordSizeLimit, server.RecordSizeLimit = 200, 300
	}
	if setting&withProtocols != 0 {
		client.TLS.NextProtos, server.TLS.NextProtos = []string{"a", "b"}, []string{"b"}
		if client.PSK != nil {
			client.PSK.ALPN = "b"
		}
	}
	own := setting&withTCPLS != 0
	withExtension(client, own)
	withExtension(server, own)
	return w
}

func newMiddle(t *testing.T, setting byte, input []byte) *middle {
	w := fuzzWorld(setting)
	if setting&withTicket != 0 && setting&withUserPSK == 0 {
		w.meet(t) // nobody is in the middle, and the client gets a ticket
	}
	m := &middle{t: t, client: new(end), server: new(end), script: parseScript(input)}
	w.client.TLS.KeyLogWriter, w.server.TLS.KeyLogWriter = &m.client.keyLog, &m.server.keyLog
	m.client.conn, m.server.conn = newTestPair(t, w.client, w.server)
	return m
}

// FuzzHandshake changes what a client and a server say to each other. Nobody
// in the middle, even one who knows all traffic secrets, can make an end
// believe that it talks to its peer when it doesn't.
func FuzzHandshake(f *testing.F) {
	addScripts(f)
	f.Fuzz(func(t *testing.T, setting byte, input []byte) {
		cryptotest.SetGlobalRandom(t, uint64(setting))
		m := newMiddle(t, setting, input)
		m.run()
		m.checkEnd(m.client)
		m.checkEnd(m.server)
		switch {
		case m.client.finished && m.server.finished:
			a, _ := m.client.conn.ExportKeyingMaterial("fuzz", nil, 32)
			b, _ := m.server.conn.ExportKeyingMaterial("fuzz", nil, 32)
			if !bytes.Equal(a, b) {
				t.Fatal("two complete ends don't share their secrets")
			}
		case len(m.script.list) == 0:
			t.Fatalf("nothing was changed, and client: %v, server: %v", m.client.err, m.server.err)
		}
	})
}

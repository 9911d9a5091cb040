package tls13

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"testing"

	"github.com/go-tcpls/tcpls/internal/record"
)

// update sends a KeyUpdate and moves the puppet's writing.
func (p *puppet) update(requested bool) {
	p.record(record.Handshake, must(encode(&keyUpdate{requested})))
	p.write.Restart(must(p.write.Keys().Next()))
}

func TestPostHandshakeMessages(t *testing.T) {
	message := func(m outgoing) func(p *puppet) {
		return func(p *puppet) { p.record(record.Handshake, must(encode(m))) }
	}
	rawMessage := func(b ...byte) func(p *puppet) { return sending(record.Handshake, b) }
	ask, tell := func(p *puppet) { p.update(true) }, func(p *puppet) { p.update(false) }
	runBoth(t, []negative{
		{"KeyUpdate over 1", AlertIllegalParameter, false, rawMessage(24, 0, 0, 1, 2)},
		{"KeyUpdate empty", AlertDecodeError, false, rawMessage(24, 0, 0, 0)},
		{"KeyUpdate of two bytes", AlertDecodeError, false, rawMessage(24, 0, 0, 2, 0, 0)},
		{"KeyUpdate with a message behind it in its record", AlertUnexpectedMessage, false, rawMessage(24, 0, 0, 1, 0, 24)},
		{"KeyUpdates", 0, true, func(p *puppet) { repeat(maxIdle/2, ask)(p); repeat(maxIdle/2, tell)(p); oneData(p) }},
		{"KeyUpdates without end", AlertUnexpectedMessage, false, repeat(maxIdle+1, tell)},
		{"KeyUpdates and empty records without end", AlertUnexpectedMessage, false, repeat(maxIdle/2+1, func(p *puppet) {
			tell(p)
			p.record(app, nil)
		})},
		{"KeyUpdate cut in two", 0, true, func(p *puppet) {
			p.record(record.Handshake, []byte{24, 0})
			p.record(record.Handshake, []byte{0, 1, 0})
			p.write.Restart(must(p.write.Keys().Next()))
			oneData(p)
		}},
		{"ClientHello", AlertUnexpectedMessage, false, func(p *puppet) { message(p.hello)(p) }},
		{"CertificateRequest", AlertUnexpectedMessage, false, message(goodRequest())},
		{"Finished", AlertUnexpectedMessage, false, message(&finished{make([]byte, 32)})},
		{"EndOfEarlyData", AlertUnexpectedMessage, false, rawMessage(5, 0, 0, 0)},
		{"HelloRequest", AlertUnexpectedMessage, false, rawMessage(0, 0, 0, 0)},
		{"old keys after KeyUpdate", AlertBadRecordMAC, false, func(p *puppet) {
			p.record(record.Handshake, must(encode(&keyUpdate{})))
			oneData(p)
		}},
	})
	runNegative(t, []negative{{"ticket to a server", AlertUnexpectedMessage, false, message(&newSessionTicket{ticket: []byte("t")})}},
		func(t *testing.T, use extensionUse) *puppet {
			p := puppetClient(t, use)
			p.connect()
			return p
		})
}

func ticketRows() []negative {
	with := func(change func(m *newSessionTicket)) func(p *puppet) {
		return func(p *puppet) {
			m := &newSessionTicket{lifetime: 3600, nonce: []byte{0}, ticket: []byte("ticket"), extensions: []extension{{extEarlyData, []byte{0, 0, 64, 0}}}}
			change(m)
			p.record(record.Handshake, must(encode(m)))
		}
	}
	return []negative{
		{"good", 0, true, with(func(*newSessionTicket) {})},
		{"lifetime over 7 days", 0, true, with(func(m *newSessionTicket) { m.lifetime = 604801 })},
		{"lifetime zero", 0, true, with(func(m *newSessionTicket) { m.lifetime = 0 })},
		{"unknown extension", 0, true, with(func(m *newSessionTicket) { m.extensions = []extension{{0x0a0a, nil}} })},
		{"bytes left over", AlertDecodeError, false, func(p *puppet) {
			p.sendRaw(longer(must(encode(&newSessionTicket{ticket: []byte("ticket")}))))
		}},
		{"empty ticket", AlertDecodeError, false, with(func(m *newSessionTicket) { m.ticket = nil })},
		{"early_data malformed", AlertDecodeError, false, with(func(m *newSessionTicket) { m.extensions[0].body = []byte{1} })},
		{"known extension misplaced", AlertIllegalParameter, false, with(func(m *newSessionTicket) { m.extensions = []extension{{extALPN, nil}} })},
		{"extension twice", AlertIllegalParameter, false, with(func(m *newSessionTicket) { m.extensions = append(m.extensions, m.extensions...) })},
		{"tickets without end", AlertUnexpectedMessage, false, repeat(maxIdle+1, with(func(*newSessionTicket) {}))},
		{"tickets and empty records, as many as may be of each", 0, true, func(p *puppet) {
			repeat(maxIdle, with(func(*newSessionTicket) {}))(p)
			repeat(maxIdle, func(p *puppet) { p.record(app, nil) })(p)
			oneData(p)
			repeat(maxIdle, with(func(*newSessionTicket) {}))(p)
		}},
		{"cut", AlertDecodeError, false, sending(record.Handshake, []byte{4, 0, 0, 3, 0, 0, 0})},
		{"too long", AlertIllegalParameter, false, sending(record.Handshake, []byte{4, 1, 0, 1})},
	}
}

func TestTickets(t *testing.T) {
	runNegative(t, ticketRows(), func(t *testing.T, use extensionUse) *puppet {
		p := puppetServer(t, use)
		p.connect()
		return p
	})
}

// TestOneAnswerToManyRequests asks for new keys several times before the
// engine sends anything: one KeyUpdate has to come, before the next data.
func TestOneAnswerToManyRequests(t *testing.T) {
	for _, first := range []string{"Output", "Write", "UpdateKeys"} {
		t.Run(first, func(t *testing.T) {
			p := puppetServer(t, extensionOff)
			p.connect()
			repeat(5, func(p *puppet) { p.update(true) })(p)
			p.feed()
			var wire []byte
			switch first {
			case "Output":
				wire = p.engine.Output()
			case "UpdateKeys":
				if err := p.engine.UpdateKeys(false); err != nil {
					t.Fatal(err)
				}
				wire = p.engine.Output()
			}
			wire = append(wire, must(p.engine.Write(nil, []byte("data")))...)
			records := splitRecords(wire)
			if len(records) != 2 {
				t.Fatalf("%d records, want one KeyUpdate and one of data", len(records))
			}
			content, typ, err := p.read.Open(make([]byte, 0, 99), records[0])
			if err != nil || typ != record.Handshake || !bytes.Equal(content, []byte{24, 0, 0, 1, 0}) {
				t.Fatalf("first record: type %d, %x, %v", typ, content, err)
			}
			p.read.Restart(must(p.read.Keys().Next()))
			if content, _, err = p.read.Open(make([]byte, 0, 99), records[1]); err != nil || string(content) != "data" {
				t.Errorf("second record: %q, %v", content, err)
			}
		})
	}
}

// TestKeyLimit brings the writing keys near the end of what they may protect:
// Write must move on by itself.
func TestKeyLimit(t *testing.T) {
	c, s := newTestPair(t, &Config{TLS: clientTLS()}, &Config{TLS: serverTLS()})
	mustShake(t, c, s)
	few := *c.suite
	few.MaxRecords = keyMargin + 3
	c.suite = &few
	before := s.read.Keys()
	for range 10 {
		exchange(t, c, s, []byte("data"))
	}
	if s.read.Keys() == before {
		t.Error("no KeyUpdate before the limit")
	}
}

func TestKeyUpdatesBetweenUs(t *testing.T) {
	c, s := newTestPair(t, &Config{TLS: clientTLS()}, &Config{TLS: serverTLS()})
	mustShake(t, c, s)
	for i := range 20 {
		from, to := c, s
		if i%3 == 0 {
			from, to = s, c
		}
		if err := from.UpdateKeys(i%2 == 0); err != nil {
			t.Fatal(err)
		}
		exchange(t, from, to, []byte("data"))
		exchange(t, to, from, []byte("data"))
	}
}

// TestTakeKeys hands the application keys over and lets the engine interpret
// what its user opens.
func TestTakeKeys(t *testing.T) {
	pair := func(t *testing.T) (c, s *Conn) {
		c, s = newTestPair(t, withExtension(&Config{TLS: clientTLS()}, true), withExtension(&Config{TLS: serverTLS()}, true))
		mustShake(t, c, s)
		if !c.ExtensionAnswered() || !s.ExtensionAnswered() {
			t.Fatal("extension not answered")
		}
		return c, s
	}
	c, s := pair(t)
	cSend, cReceive := c.TakeKeys()
	sSend, sReceive := s.TakeKeys()
	for _, way := range [][2]*record.Keys{{cSend, sReceive}, {sSend, cReceive}} {
		rec := sealed(record.NewContext(way[0], 0), app, []byte("data"))
		got, _, err := record.NewContext(way[1], 0).Open(make([]byte, 0, 99), rec)
		if err != nil || string(got) != "data" {
			t.Errorf("taken keys don't fit: %q, %v", got, err)
		}
	}
	if _, err := c.Write(nil, []byte("x")); err == nil {
		t.Error("Write after TakeKeys")
	}
	if _, _, err := c.Read(nil, nil); err == nil {
		t.Error("Read after TakeKeys")
	}
	if err := c.UpdateKeys(false); err == nil {
		t.Error("UpdateKeys after TakeKeys")
	}
	if c.CloseNotify(); len(c.Output()) > 0 {
		t.Error("CloseNotify after TakeKeys says something")
	}
	mustPanic(t, "TakeKeys twice", func() { c.TakeKeys() })
	mustPanic(t, "TakeKeys before completion", func() { mustClient(t, &Config{TLS: clientTLS()}).TakeKeys() })
	c, s = pair(t)
	exchange(t, c, s, []byte("x"))
	mustPanic(t, "TakeKeys after data", func() { c.TakeKeys() })
	mustPanic(t, "PostHandshake before TakeKeys", func() { c.PostHandshake(nil) })
}

func mustPanic(t *testing.T, what string, f func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Errorf("%s doesn't panic", what)
		}
	}()
	f()
}

func TestPostHandshakeOfTakenKeys(t *testing.T) {
	ticket := must(encode(&newSessionTicket{lifetime: 1, ticket: []byte("t")}))
	taken := func(isClient bool) *Conn {
		c, s := newTestPair(t, &Config{TLS: clientTLS()}, &Config{TLS: serverTLS()})
		mustShake(t, c, s)
		if !isClient {
			c = s
		}
		c.TakeKeys()
		return c
	}
	for _, test := range []struct {
		name   string
		client bool
		send   [][]byte
		want   Alert // close_notify: none
	}{
		{"ticket", true, [][]byte{ticket}, 0},
		{"two in one", true, [][]byte{append(bytes.Clone(ticket), ticket...)}, 0},
		{"in pieces", true, [][]byte{ticket[:1], ticket[1:5], ticket[5:]}, 0},
		{"malformed ticket", true, [][]byte{{4, 0, 0, 1, 0}}, AlertDecodeError},
		{"too long", true, [][]byte{{4, 2, 0, 0}}, AlertIllegalParameter},
		{"empty", true, [][]byte{nil}, AlertUnexpectedMessage},
		{"KeyUpdate", true, [][]byte{{24, 0, 0, 1, 0}}, AlertUnexpectedMessage},
		{"KeyUpdate behind a ticket", true, [][]byte{append(bytes.Clone(ticket), 24, 0, 0, 1, 0)}, AlertUnexpectedMessage},
		{"ticket to a server", false, [][]byte{ticket}, AlertUnexpectedMessage},
		{"tickets without end", true, slicesRepeat(ticket, maxTickets+1), AlertUnexpectedMessage},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := taken(test.client)
			var err error
			for _, content := range test.send {
				if err = c.PostHandshake(content); err != nil {
					break
				}
			}
			if a, ok := alertOf(err); test.want == 0 && err != nil || test.want != 0 && (!ok || a != test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
			if err != nil && c.PostHandshake(ticket) != err {
				t.Error("the error doesn't stay")
			}
			if len(c.Output()) > 0 {
				t.Error("output without keys")
			}
		})
	}
}

func slicesRepeat(b []byte, n int) [][]byte {
	list := make([][]byte, n)
	for i := range list {
		list[i] = b
	}
	return list
}

// TestTooEarly: no data moves and no key changes before the handshake is
// complete, and none behind close_notify.
func TestTooEarly(t *testing.T) {
	c, s := newTestPair(t, &Config{TLS: clientTLS()}, &Config{TLS: serverTLS()})
	for _, end := range []*Conn{c, s} {
		if out, err := end.Write(nil, []byte("x")); err != errNotComplete || len(out) > 0 {
			t.Errorf("Write: %d bytes, %v", len(out), err)
		}
		if _, n, err := end.Read(nil, []byte{23, 3, 3, 0, 0}); err != errNotComplete || n != 0 {
			t.Errorf("Read of %d bytes: %v", n, err)
		}
		if err := end.UpdateKeys(true); err != errNotComplete {
			t.Errorf("UpdateKeys: %v", err)
		}
	}
	mustShake(t, c, s)
	c.CloseNotify()
	c.Output()
	if err := c.UpdateKeys(false); err != errWriteClosed || len(c.Output()) > 0 {
		t.Errorf("UpdateKeys behind our close_notify: %v", err)
	}
}

// TestServerWipes: a server that is done keeps no secret from which those of
// its traffic could be derived again.
func TestServerWipes(t *testing.T) {
	s, err := newConn(&Config{TLS: serverTLS()}, false)
	if err != nil {
		t.Fatal(err)
	}
	h := &serverHandshake{c: s}
	s.next = step{want: typeClientHello, run: h.firstHello}
	c := mustClient(t, &Config{TLS: clientTLS()})
	mustShake(t, c, s)
	for _, secret := range [][]byte{h.master.secret, h.traffic.client, h.traffic.server} {
		if !bytes.Equal(secret, make([]byte, h.suite.HashLen)) {
			t.Error("the handshake is complete, and its secrets are still there")
		}
	}
	exchange(t, c, s, []byte("and the connection works"))
}

// TestFail gives errors of the caller their alerts, in the clear and
// protected.
func TestFail(t *testing.T) {
	for _, test := range []struct {
		err  error
		want []Alert
	}{
		{fmt.Errorf("wrapped: %w", &Error{Alert: AlertAccessDenied}), []Alert{AlertAccessDenied}},
		{fmt.Errorf("anything"), []Alert{AlertInternalError}},
		{&AlertError{AlertHandshakeFailure}, nil},
	} {
		for _, stage := range []string{"first", "hello", "complete"} {
			p := puppetClient(t, extensionAnswered)
			if stage != "first" {
				p.clientHello()
				p.serverFlight()
			}
			if stage == "complete" {
				p.clientFinished()
			}
			p.engine.Fail(test.err)
			p.engine.Fail(fmt.Errorf("another"))
			p.receive()
			if fmt.Sprint(p.alerts) != fmt.Sprint(test.want) {
				t.Errorf("%s, %v: alerts %v, want %v", stage, test.err, p.alerts, test.want)
			}
			if err := p.engine.End(); err != test.err {
				t.Errorf("End: %v, want the first error", err)
			}
		}
	}
	c := mustClient(t, &Config{TLS: clientTLS()})
	c.Output()
	c.CloseNotify()
	if out := c.Output(); !bytes.Equal(out, []byte{21, 3, 1, 0, 2, levelWarning, 0}) {
		t.Errorf("CloseNotify during the handshake: %x", out)
	}
}

func TestDynamicRecordSizes(t *testing.T) {
	for _, disabled := range []bool{false, true} {
		client := clientTLS()
		client.DynamicRecordSizingDisabled = disabled
		c, s := newTestPair(t, &Config{TLS: client}, &Config{TLS: serverTLS()})
		mustShake(t, c, s)
		wire := must(c.Write(nil, make([]byte, 1<<18)))
		records := splitRecords(wire)
		full := record.MaxPlaintext + record.Overhead
		if first := len(records[0]); (first == full) != disabled {
			t.Errorf("first record has %d bytes, sizing disabled %v", first, disabled)
		}
		if late := len(records[len(records)-2]); late != full {
			t.Errorf("late record has %d bytes", late)
		}
		if got, _, err := s.Read(nil, wire); err != nil || len(got) != 1<<18 {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	}
}

func TestExporterLimits(t *testing.T) {
	c, s := newTestPair(t, &Config{TLS: clientTLS()}, &Config{TLS: serverTLS()})
	if _, err := c.ExportKeyingMaterial("x", nil, 1); err == nil {
		t.Error("exporting before the handshake")
	}
	mustShake(t, c, s)
	a, b := must(c.ExportKeyingMaterial("x", nil, 32)), must(s.ExportKeyingMaterial("x", []byte{}, 32))
	if !bytes.Equal(a, b) {
		t.Error("nil context differs from the empty one")
	}
	if bytes.Equal(a, must(c.ExportKeyingMaterial("x", []byte("y"), 32))) {
		t.Error("context doesn't matter")
	}
	for _, test := range []struct{ label, length int }{{250, 1}, {1, 255*32 + 1}, {1, -1}} {
		if _, err := c.ExportKeyingMaterial(string(make([]byte, test.label)), nil, test.length); err == nil {
			t.Errorf("label of %d and %d bytes exported", test.label, test.length)
		}
	}
	if _, err := c.ExportKeyingMaterial(string(make([]byte, 249)), nil, 255*32); err != nil {
		t.Error(err)
	}
	if s := c.ConnectionState(); s.Version != tls.VersionTLS13 || !s.HandshakeComplete {
		t.Errorf("state %+v", s)
	}
}

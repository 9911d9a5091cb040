package tcpls

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/internal/tls13"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// A keyLog collects the secrets of a connection by their labels.
type keyLog struct {
	mu      sync.Mutex
	secrets map[string][]byte
}

func (l *keyLog) Write(line []byte) (int, error) {
	f := strings.Fields(string(line))
	secret, err := hex.DecodeString(f[2])
	if err != nil {
		return 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.secrets[f[0]] = secret
	return len(line), nil
}

// A rogue plays the peer of one handshake of ours, up to the point where it
// breaks a rule. It knows the victim's secrets, so that it can break rules
// inside the encryption too.
type rogue struct {
	t      *testing.T
	conn   *memnet.Conn
	client bool // the role that it plays
	log    *keyLog
	engine *tls13.Conn // honest, for what comes before
	raw    []byte
	suite  *record.Suite
	write  *record.Context
	result func() error // of the victim
}

// newRogue starts a victim in the other role. offers tells whether a client
// offers TCPLS, be it rogue or victim.
func newRogue(t *testing.T, client, offers bool, change func(*Config)) *rogue {
	t.Helper()
	clientConfig, serverConfig := newTestConfigs()
	theirs, ours := serverConfig, clientConfig
	if !client {
		theirs, ours = clientConfig, serverConfig
	}
	near, far := memnet.Pipe(memnet.Link{Queue: 1 << 20})
	r := &rogue{t: t, conn: near, client: client, log: &keyLog{secrets: make(map[string][]byte)}}
	theirs.TLS = theirs.TLS.Clone()
	theirs.TLS.KeyLogWriter = r.log
	if change != nil {
		change(theirs)
	}
	full, err := theirs.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	r.result = begunResult(func() error {
		if client {
			_, err := Server(context.Background(), far, full)
			return err
		}
		_, _, err := connect(context.Background(), far, full, approach{offer: offers})
		return err
	})
	tc := &tls13.Config{TLS: ours.TLS, Extension: wire.ExtensionType}
	newEngine := tls13.NewServer
	if client {
		newEngine = tls13.NewClient
		if offers {
			tc.Offer = wire.AppendOffer(nil)
		}
	}
	if r.engine, err = newEngine(tc); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = near.Close() })
	return r
}

// begunResult runs f and returns a function that waits for its result.
func begunResult(f func() error) func() error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return func() error { return <-done }
}

// send doesn't mind a victim that is gone: what it said before is judged.
func (r *rogue) send(b ...byte) { _, _ = r.conn.Write(b) }

// fill reads more of what the victim says.
func (r *rogue) fill() error {
	_ = r.conn.SetReadDeadline(time.Now().Add(time.Minute)) // Read tells if it fails
	buf := make([]byte, 64<<10)
	n, err := r.conn.Read(buf)
	r.raw = append(r.raw, buf[:n]...)
	if n > 0 {
		return nil
	}
	return err
}

// records takes the complete records out of what was received.
func (r *rogue) records() (list [][]byte) {
	for len(r.raw) >= record.HeaderLen {
		n := record.HeaderLen + record.ParseHeader(r.raw).Len
		if len(r.raw) < n {
			break
		}
		list, r.raw = append(list, r.raw[:n]), r.raw[n:]
	}
	return list
}

// hello returns the ClientHello of a rogue client, or reads the victim's.
func (r *rogue) hello() []byte {
	if r.client {
		return bytes.Clone(r.engine.Output())
	}
	for len(r.raw) < record.HeaderLen || len(r.raw) < record.HeaderLen+record.ParseHeader(r.raw).Len {
		if err := r.fill(); err != nil {
			r.t.Fatal(err)
		}
	}
	return r.records()[0]
}

// answer returns the records of a rogue server's honest flight.
func (r *rogue) answer() [][]byte {
	if _, err := r.engine.Feed(r.hello()); err != nil {
		r.t.Fatal(err)
	}
	r.raw = bytes.Clone(r.engine.Output())
	list := r.records()
	r.suite = suiteOf(list[0])
	return list
}

// suiteOf reads the suite out of a record with a ServerHello.
func suiteOf(rec []byte) *record.Suite {
	at := record.HeaderLen + 4 + 2 + 32
	at += 1 + int(rec[at])
	return record.SuiteByID(binary.BigEndian.Uint16(rec[at:]))
}

// greet brings the handshake to where both have handshake keys.
func (r *rogue) greet() {
	r.t.Helper()
	label := "SERVER_HANDSHAKE_TRAFFIC_SECRET"
	if r.client {
		label = "CLIENT_HANDSHAKE_TRAFFIC_SECRET"
		r.send(r.hello()...)
		if err := r.fill(); err != nil {
			r.t.Fatal(err)
		}
		r.suite = suiteOf(r.records()[0]) // the rest is well-formed, which others test
	} else {
		r.send(r.answer()[0]...)
	}
	synctest.Wait()
	r.write = record.NewContext(r.keys(label), 0)
}

func (r *rogue) keys(label string) *record.Keys {
	r.t.Helper()
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	keys, err := r.suite.Keys(bytes.Clone(r.log.secrets[label]))
	if err != nil {
		r.t.Fatalf("the victim has no %s: %v", label, err)
	}
	return keys
}

// sealed sends a protected record.
func (r *rogue) sealed(t record.Type, content ...byte) {
	r.t.Helper()
	b := make([]byte, record.HeaderLen, record.Overhead+len(content))
	rec, err := r.write.Seal(append(b, content...), t)
	if err != nil {
		r.t.Fatal(err)
	}
	r.send(rec...)
}

// alerts reads up to the end of the connection and returns the alerts in it.
func (r *rogue) alerts() (list [][]byte) {
	r.t.Helper()
	r.wantEnd()
	var open []*record.Context
	labels := []string{"SERVER_HANDSHAKE_TRAFFIC_SECRET", "SERVER_TRAFFIC_SECRET_0"}
	if !r.client {
		labels = []string{"CLIENT_HANDSHAKE_TRAFFIC_SECRET", "CLIENT_TRAFFIC_SECRET_0"}
	}
	for _, label := range labels {
		if _, ok := r.log.secrets[label]; ok && r.suite != nil {
			open = append(open, record.NewContext(r.keys(label), 0))
		}
	}
	for _, rec := range r.records() {
		t, content := record.Type(rec[0]), rec[record.HeaderLen:]
		for _, ctx := range open {
			if inner, it, err := ctx.Open(make([]byte, len(rec)), rec); t == record.ApplicationData && err == nil {
				t, content = it, inner
			}
		}
		switch {
		case len(list) > 0:
			r.t.Errorf("a record of type %d behind the alert", t)
		case t == record.ApplicationData:
			r.t.Error("the victim's last records can't be opened")
		}
		if t == record.Alert {
			list = append(list, content)
		}
	}
	if len(r.raw) > 0 {
		r.t.Errorf("%d bytes behind the last record", len(r.raw))
	}
	return list
}

// editHello changes the extensions of a ClientHello or ServerHello in a record.
func editHello(rec []byte, change func(list []helloExtension) []helloExtension) []byte {
	at := record.HeaderLen + 4 + 2 + 32
	at += 1 + int(rec[at])
	if rec[record.HeaderLen] == 1 {
		at += 2 + int(binary.BigEndian.Uint16(rec[at:]))
		at += 1 + int(rec[at])
	} else {
		at += 3
	}
	var list []helloExtension
	for rest := rec[at+2:]; len(rest) > 0; {
		n := int(binary.BigEndian.Uint16(rest[2:]))
		list = append(list, helloExtension{binary.BigEndian.Uint16(rest), rest[4 : 4+n]})
		rest = rest[4+n:]
	}
	var block []byte
	for _, e := range change(list) {
		block = append(binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(block, e.id), uint16(len(e.body))), e.body...)
	}
	out := append(binary.BigEndian.AppendUint16(bytes.Clone(rec[:at]), uint16(len(block))), block...)
	binary.BigEndian.PutUint16(out[3:], uint16(len(out)-record.HeaderLen))
	binary.BigEndian.PutUint16(out[record.HeaderLen+2:], uint16(len(out)-record.HeaderLen-4))
	return out
}

type helloExtension struct {
	id   uint16
	body []byte
}

func without(id uint16) func([]helloExtension) []helloExtension {
	return func(list []helloExtension) (kept []helloExtension) {
		for _, e := range list {
			if e.id != id {
				kept = append(kept, e)
			}
		}
		return kept
	}
}

func with(more ...helloExtension) func([]helloExtension) []helloExtension {
	return func(list []helloExtension) []helloExtension { return append(list, more...) }
}

const (
	extKeyShare          = 51
	extSupportedVersions = 43
)

// message is a handshake message.
func message(t byte, body ...byte) []byte {
	return append([]byte{t, byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body))}, body...)
}

// encrypted is an EncryptedExtensions message.
func encrypted(list ...helloExtension) []byte {
	var block []byte
	for _, e := range list {
		block = append(binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(block, e.id), uint16(len(e.body))), e.body...)
	}
	return message(8, append([]byte{byte(len(block) >> 8), byte(len(block))}, block...)...)
}

type handshakeViolation struct {
	name  string
	alert tls13.Alert
	do    func(r *rogue)
}

var clientHandshakeViolations = []handshakeViolation{
	{"an HTTP request", tls13.AlertUnexpectedMessage, func(r *rogue) { r.send([]byte("GET / HTTP/1.1\r\n\r\n")...) }},
	{"an SSL 2.0 hello", tls13.AlertProtocolVersion, func(r *rogue) { r.send(0x80, 0x2e, 1, 0, 2) }},
	{"ChangeCipherSpec first", tls13.AlertUnexpectedMessage, func(r *rogue) { r.send(20, 3, 3, 0, 1, 1) }},
	{"data first", tls13.AlertUnexpectedMessage, func(r *rogue) { r.send(23, 3, 3, 0, 1, 0) }},
	{"an empty record first", tls13.AlertUnexpectedMessage, func(r *rogue) { r.send(22, 3, 1, 0, 0) }},
	{"a record longer than TLS allows", tls13.AlertRecordOverflow, func(r *rogue) { r.send(22, 3, 1, 0x40, 1) }},
	{"another message first", tls13.AlertUnexpectedMessage, func(r *rogue) { r.send(22, 3, 1, 0, 4, 20, 0, 0, 0) }},
	{"a ClientHello of 16 MiB announced", tls13.AlertIllegalParameter, func(r *rogue) { r.send(22, 3, 1, 0x10, 0, 1, 0xff, 0xff, 0xff) }},
	{"a malformed ClientHello", tls13.AlertDecodeError, func(r *rogue) { r.send(22, 3, 1, 0, 5, 1, 0, 0, 1, 3) }},
	{"two alerts in a record first", tls13.AlertDecodeError, func(r *rogue) { r.send(21, 3, 1, 0, 4, 1, 90, 1, 90) }},
	{"no supported_versions", tls13.AlertProtocolVersion, func(r *rogue) { r.send(editHello(r.hello(), without(extSupportedVersions))...) }},
	{"no key_share", tls13.AlertMissingExtension, func(r *rogue) { r.send(editHello(r.hello(), without(extKeyShare))...) }},
	{"a malformed offer", tls13.AlertDecodeError, func(r *rogue) {
		r.send(editHello(r.hello(), func(list []helloExtension) []helloExtension {
			return with(helloExtension{wire.ExtensionType, []byte{2, wire.Version}})(without(wire.ExtensionType)(list))
		})...)
	}},
	{"the offer twice", tls13.AlertIllegalParameter, func(r *rogue) {
		r.send(editHello(r.hello(), with(helloExtension{wire.ExtensionType, wire.AppendOffer(nil)}))...)
	}},
	{"a wrong Finished", tls13.AlertDecryptError, func(r *rogue) {
		r.greet()
		r.sealed(record.Handshake, message(20, make([]byte, r.suite.HashLen)...)...)
	}},
	{"a short Finished", tls13.AlertDecodeError, func(r *rogue) { r.greet(); r.sealed(record.Handshake, message(20, 1)...) }},
	{"KeyUpdate before Finished", tls13.AlertUnexpectedMessage, func(r *rogue) { r.greet(); r.sealed(record.Handshake, message(24, 0)...) }},
	{"EndOfEarlyData unasked for", tls13.AlertUnexpectedMessage, func(r *rogue) { r.greet(); r.sealed(record.Handshake, message(5)...) }},
}

var serverHandshakeViolations = []handshakeViolation{
	{"an HTTP response", tls13.AlertUnexpectedMessage, func(r *rogue) { r.hello(); r.send([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")...) }},
	{"a ServerHello of 16 MiB announced", tls13.AlertIllegalParameter, func(r *rogue) { r.hello(); r.send(22, 3, 3, 0, 4, 2, 0xff, 0xff, 0xff) }},
	{"ServerHello without supported_versions", tls13.AlertProtocolVersion, func(r *rogue) {
		r.send(editHello(r.answer()[0], without(extSupportedVersions))...)
	}},
	{"ServerHello with an answer", tls13.AlertIllegalParameter, func(r *rogue) {
		r.send(editHello(r.answer()[0], with(helloExtension{wire.ExtensionType, wire.AppendAnswer(nil, generous)}))...)
	}},
	{"an answer twice", tls13.AlertIllegalParameter, func(r *rogue) {
		r.greet()
		answer := helloExtension{wire.ExtensionType, wire.AppendAnswer(nil, generous)}
		r.sealed(record.Handshake, encrypted(answer, answer)...)
	}},
	{"an answer with another version", tls13.AlertIllegalParameter, func(r *rogue) {
		r.greet()
		r.sealed(record.Handshake, encrypted(helloExtension{wire.ExtensionType, []byte{wire.Version + 1}})...)
	}},
	{"an answer that can't be read", tls13.AlertDecodeError, func(r *rogue) {
		r.greet()
		r.sealed(record.Handshake, encrypted(helloExtension{wire.ExtensionType, []byte{wire.Version, 1}})...)
	}},
	{"an answer with too many tokens", tls13.AlertDecodeError, func(r *rogue) {
		r.greet()
		var tokens []wire.PathToken
		for n := range uint32(wire.MaxAnswerTokens + 1) {
			tokens = append(tokens, wire.PathToken{Path: n + 1, Token: make([]byte, 16)})
		}
		r.sealed(record.Handshake, encrypted(helloExtension{wire.ExtensionType, wire.AppendTokens(wire.AppendAnswer(nil, generous), tokens)})...)
	}},
	{"an answer with too many addresses", tls13.AlertDecodeError, func(r *rogue) {
		r.greet()
		var addresses []wire.Address
		for n := range uint64(wire.MaxAddresses + 1) {
			addresses = append(addresses, anAddress(n+1))
		}
		r.sealed(record.Handshake, encrypted(helloExtension{wire.ExtensionType, wire.AppendAddresses(wire.AppendAnswer(nil, generous), addresses)})...)
	}},
	{"an extension never asked for beside the answer", tls13.AlertUnsupportedExtension, func(r *rogue) {
		r.greet()
		r.sealed(record.Handshake, encrypted(helloExtension{wire.ExtensionType, wire.AppendAnswer(nil, generous)}, helloExtension{0x7a7b, nil})...)
	}},
	{"no Certificate", tls13.AlertUnexpectedMessage, func(r *rogue) {
		r.greet()
		r.sealed(record.Handshake, encrypted()...)
		r.sealed(record.Handshake, message(20, make([]byte, r.suite.HashLen)...)...)
	}},
}

// What either role may do wrong once there are keys.
var keyedViolations = []handshakeViolation{
	{"data before Finished", tls13.AlertUnexpectedMessage, func(r *rogue) { r.greet(); r.sealed(record.ApplicationData, 'x') }},
	{"a TCPLS record before Finished", tls13.AlertUnexpectedMessage, func(r *rogue) { r.greet(); r.sealed(wire.TypeFrames, framed(nil)...) }},
	{"a damaged record", tls13.AlertBadRecordMAC, func(r *rogue) { r.greet(); r.send(append([]byte{23, 3, 3, 0, 30}, make([]byte, 30)...)...) }},
	{"a message of 16 MiB announced", tls13.AlertUnexpectedMessage, func(r *rogue) { r.greet(); r.sealed(record.Handshake, 1, 0xff, 0xff, 0xff) }},
	{"an empty Handshake record", tls13.AlertUnexpectedMessage, func(r *rogue) { r.greet(); r.sealed(record.Handshake) }},
	{"an alert of a bad level", tls13.AlertIllegalParameter, func(r *rogue) { r.greet(); r.sealed(record.Alert, 3, 40) }},
	{"ChangeCipherSpec of two bytes", tls13.AlertUnexpectedMessage, func(r *rogue) { r.greet(); r.send(20, 3, 3, 0, 2, 1, 1) }},
	{"a record longer than TLS allows", tls13.AlertRecordOverflow, func(r *rogue) { r.greet(); r.send(23, 3, 3, 0x41, 1) }},
}

// A handshake with a peer that breaks a rule ends by one alert, the one that is
// due, and by the end of the connection, at once.
func TestHandshakeViolations(t *testing.T) {
	run := func(test handshakeViolation, client, offers bool) {
		role := map[bool]string{true: "client", false: "server"}[client]
		t.Run(role+", "+test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				r := newRogue(t, client, offers, nil)
				test.do(r)
				alerts := r.alerts()
				err := r.result()
				if len(alerts) != 1 || !bytes.Equal(alerts[0], []byte{levelFatal, byte(test.alert)}) {
					t.Errorf("alerts %v, want one %v (%d)", alerts, test.alert, test.alert)
				}
				var broken *tls13.Error
				if !errors.As(err, &broken) || broken.Alert != test.alert {
					t.Errorf("the victim's error is %v, want one of the alert %v", err, test.alert)
				}
				if took := time.Since(began); took > lingerTime {
					t.Errorf("it took %v", took)
				}
				if _, err := r.conn.Write([]byte("x")); err == nil {
					t.Error("the connection is still open")
				}
			})
		})
	}
	for _, test := range append(clientHandshakeViolations, keyedViolations...) {
		run(test, true, true)
	}
	for _, test := range append(serverHandshakeViolations, keyedViolations...) {
		run(test, false, true)
	}
	// A server that answers TCPLS to a client that doesn't offer it.
	run(handshakeViolation{"an answer never asked for", tls13.AlertUnsupportedExtension, func(r *rogue) {
		r.greet()
		r.sealed(record.Handshake, encrypted(helloExtension{wire.ExtensionType, wire.AppendAnswer(nil, generous)})...)
	}}, false, false)
}

// The peer's own alert, and the end of its bytes, are not answered.
func TestHandshakeEnds(t *testing.T) {
	for _, test := range []struct {
		name   string
		client bool
		do     func(r *rogue)
		want   error // nil: the peer's alert
	}{
		{"server: alert first", true, func(r *rogue) { r.send(21, 3, 1, 0, 2, 2, 40) }, nil},
		{"server: alert after keys", true, func(r *rogue) { r.greet(); r.sealed(record.Alert, 2, 40) }, nil},
		{"server: nothing", true, func(*rogue) {}, io.ErrUnexpectedEOF},
		{"server: half a ClientHello", true, func(r *rogue) { r.send(r.hello()[:100]...) }, io.ErrUnexpectedEOF},
		{"server: no Finished", true, func(r *rogue) { r.greet() }, io.ErrUnexpectedEOF},
		{"client: alert first", false, func(r *rogue) { r.hello(); r.send(21, 3, 3, 0, 2, 2, 40) }, nil},
		{"client: alert after keys", false, func(r *rogue) { r.greet(); r.sealed(record.Alert, 2, 40) }, nil},
		{"client: nothing", false, func(r *rogue) { r.hello() }, io.ErrUnexpectedEOF},
		{"client: half a ServerHello", false, func(r *rogue) { r.send(r.answer()[0][:50]...) }, io.ErrUnexpectedEOF},
		{"client: half a flight", false, func(r *rogue) { r.greet(); r.sealed(record.Handshake, encrypted()...) }, io.ErrUnexpectedEOF},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRogue(t, test.client, true, nil)
				test.do(r)
				_ = r.conn.CloseWrite() // the victim's answer tells whether it came
				if alerts := r.alerts(); len(alerts) > 0 {
					t.Errorf("answered by the alert %v", alerts)
				}
				err := r.result()
				var theirs *tls13.AlertError
				if test.want == nil && !(errors.As(err, &theirs) && theirs.Alert == tls13.AlertHandshakeFailure) {
					t.Errorf("the victim's error is %v, want the peer's alert", err)
				}
				if test.want != nil && !errors.Is(err, test.want) {
					t.Errorf("the victim's error is %v, want %v", err, test.want)
				}
			})
		})
	}
}

// One deadline stands over the whole handshake: bytes that trickle in its last
// flight, as those of its first, don't extend it.
func TestSlowFlight(t *testing.T) {
	for _, test := range []struct {
		name           string
		client, offers bool
	}{{"server", true, true}, {"server behind crypto/tls", true, false}, {"client", false, true}, {"client without offer", false, false}} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const timeout = 10 * time.Second
				began := time.Now()
				r := newRogue(t, test.client, test.offers, func(c *Config) { c.HandshakeTimeout = timeout })
				if test.client {
					hello := r.hello()
					r.send(hello[:20]...)
					time.Sleep(timeout / 2) // half of it for the first flight
					r.send(hello[20:]...)
				} else {
					r.send(r.answer()[0]...)
				}
				slow := begunResult(func() error {
					for _, b := range append([]byte{23, 3, 3, 0x10, 0}, make([]byte, 100)...) {
						if _, err := r.conn.Write([]byte{b}); err != nil {
							return err
						}
						time.Sleep(time.Second)
					}
					return nil
				})
				err := r.result()
				if took := time.Since(began); took != timeout {
					t.Errorf("the handshake ended after %v, want its timeout of %v", took, timeout)
				}
				if !errors.Is(err, ErrHandshakeTimeout) {
					t.Errorf("the handshake ended by %v", err)
				}
				if slow() == nil {
					t.Error("all of it was taken")
				}
			})
		})
	}
}

// A message after the handshake that is cut may not have other records of its
// context between (RFC 8446, section 5.1).
func TestInterleavedMessage(t *testing.T) {
	ticket := message(4, append([]byte{0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 1, 't'}, 0, 0)...)
	synctest.Test(t, func(t *testing.T) {
		p := newTestPeer(t, false, nil)
		p.write(p.own, ticket[:3], record.Handshake)
		p.write(p.own, ticket[3:], record.Handshake)
		p.wantIdle("a ticket in two pieces")
		p.write(p.own, ticket[:3], record.Handshake)
		p.writeFrames(wire.AppendPing(nil, [8]byte{1}))
		p.wantAlert("a frame within a ticket", levelFatal, alertUnexpectedMessage)
		_ = p.conn.CloseWrite() // the session reads until then
		p.wantEnd("a frame within a ticket")
	})
}

package tls13

import (
	"bytes"
	"crypto/ecdh"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"testing"

	"golang.org/x/crypto/cryptobyte"

	"github.com/go-tcpls/tcpls/internal/record"
)

// A trace is one of the examples of RFC 8448, by the name of each value.
type trace map[string][]byte

func readTraces(t *testing.T) (simple, resumed trace) {
	t.Helper()
	raw, err := os.ReadFile("testdata/rfc8448.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Simple, Resumed map[string]string }
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	decode := func(m map[string]string) trace {
		tr := trace{}
		for name, value := range m {
			tr[name] = must(hex.DecodeString(value))
		}
		return tr
	}
	return decode(file.Simple), decode(file.Resumed)
}

func (tr trace) want(t *testing.T, name string, got []byte) {
	t.Helper()
	if !bytes.Equal(got, tr[name]) {
		t.Errorf("%s:\n got  %x\n want %x", name, got, tr[name])
	}
}

func (tr trace) wantKeys(t *testing.T, s *record.Suite, name string, secret []byte) {
	t.Helper()
	tr.want(t, name+"_key", s.ExpandLabel(secret, "key", nil, s.KeyLen))
	tr.want(t, name+"_iv", s.ExpandLabel(secret, "iv", nil, 12))
}

// sum hashes the named messages.
func (tr trace) sum(s *record.Suite, names ...string) []byte {
	h := newTranscript(s)
	for _, name := range names {
		h.add(tr[name])
	}
	return h.sum()
}

// TestScheduleSimple follows the key schedule of RFC 8448, section 3.
func TestScheduleSimple(t *testing.T) {
	tr, _ := readTraces(t)
	s := record.SuiteByID(tls.TLS_AES_128_GCM_SHA256)
	private := must(ecdh.X25519().NewPrivateKey(tr["server_private"]))
	shared := must(agree(private, tr["client_public"]))
	tr.want(t, "shared", shared)

	early := newEarlySecret(s, nil)
	tr.want(t, "early_secret", early.secret)
	handshake := early.handshake(shared)
	tr.want(t, "handshake_secret", handshake.secret)
	hellos := tr.sum(s, "client_hello", "server_hello")
	client, server := handshake.clientTraffic(hellos), handshake.serverTraffic(hellos)
	tr.want(t, "client_handshake_traffic", client)
	tr.want(t, "server_handshake_traffic", server)
	tr.wantKeys(t, s, "client_handshake", client)
	tr.wantKeys(t, s, "server_handshake", server)

	flight := []string{"client_hello", "server_hello", "encrypted_extensions", "certificate", "certificate_verify"}
	tr.want(t, "server_finished", append([]byte{20, 0, 0, 32}, finishedMAC(s, server, tr.sum(s, flight...))...))
	flight = append(flight, "server_finished")
	tr.want(t, "client_finished", append([]byte{20, 0, 0, 32}, finishedMAC(s, client, tr.sum(s, flight...))...))

	master := handshake.master()
	tr.want(t, "master_secret", master.secret)
	sum := tr.sum(s, flight...)
	tr.want(t, "client_application_traffic", master.clientTraffic(sum))
	tr.want(t, "server_application_traffic", master.serverTraffic(sum))
	tr.wantKeys(t, s, "client_application", master.clientTraffic(sum))
	tr.wantKeys(t, s, "server_application", master.serverTraffic(sum))
	tr.want(t, "exporter_master", master.exporter(sum).secret)
	tr.want(t, "resumption_master", master.resumption(tr.sum(s, append(flight, "client_finished")...)))
}

// TestScheduleResumed follows the schedule of section 4, which begins with the
// ticket's PSK.
func TestScheduleResumed(t *testing.T) {
	simple, tr := readTraces(t)
	s := record.SuiteByID(tls.TLS_AES_128_GCM_SHA256)
	ticket := must(parseNewSessionTicket(simple["new_session_ticket"][messageHeadLen:], 0))
	psk := s.ExpandLabel(simple["resumption_master"], "resumption", ticket.nonce, s.HashLen)
	simple.want(t, "psk", psk)

	early := newEarlySecret(s, psk)
	tr.want(t, "early_secret", early.secret)
	binderKey := deriveSecret(s, early.secret, "res binder", digest(s, nil))
	tr.want(t, "binder_key", binderKey)
	tr.want(t, "binder", finishedMAC(s, binderKey, digest(s, tr["client_hello_without_binders"])))

	hello := addBinder(tr)
	h := newTranscript(s)
	h.add(hello)
	tr.want(t, "client_early_traffic", deriveSecret(s, early.secret, "c e traffic", h.sum()))
	tr.want(t, "early_exporter_master", deriveSecret(s, early.secret, "e exp master", h.sum()))

	shared := must(agree(must(ecdh.X25519().NewPrivateKey(tr["client_private"])), tr["server_public"]))
	tr.want(t, "shared", shared)
	handshake := early.handshake(shared)
	tr.want(t, "handshake_secret", handshake.secret)
	h.add(tr["server_hello"])
	tr.want(t, "client_handshake_traffic", handshake.clientTraffic(h.sum()))
	tr.want(t, "server_handshake_traffic", handshake.serverTraffic(h.sum()))
	master := handshake.master()
	tr.want(t, "master_secret", master.secret)
	h.add(tr["encrypted_extensions"])
	h.add(tr["server_finished"])
	tr.want(t, "client_application_traffic", master.clientTraffic(h.sum()))
	tr.want(t, "server_application_traffic", master.serverTraffic(h.sum()))
	tr.want(t, "exporter_master", master.exporter(h.sum()).secret)
	tr.wantKeys(t, s, "server_application", master.serverTraffic(h.sum()))
}

// addBinder completes the ClientHello of section 4.
func addBinder(tr trace) []byte {
	var b cryptobyte.Builder
	b.AddBytes(tr["client_hello_without_binders"])
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { addBytes8(b, tr["binder"]) })
	return b.BytesOrPanic()
}

// TestReplayServerFlight lets the client of RFC 8448, section 3, meet that
// server: same keys and messages in, same Finished and secrets out.
func TestReplayServerFlight(t *testing.T) {
	tr, _ := readTraces(t)
	c, err := newConn(&Config{
		TLS:             &tls.Config{ServerName: "server", InsecureSkipVerify: true},
		RecordSizeLimit: 0x4001,
	}, true)
	if err != nil {
		t.Fatal(err)
	}
	x25519 := groupByID(tls.X25519)
	h := &clientHandshake{
		c: c, helloRaw: tr["client_hello"],
		hello:  must(parseClientHello(tr["client_hello"][messageHeadLen:], 0)),
		groups: []tls.CurveID{tls.X25519},
		pairs:  []*keyPair{must(x25519.withPoint(must(ecdh.X25519().NewPrivateKey(tr["client_private"]))))},
	}
	c.next = step{want: typeServerHello, run: h.serverHello}

	wire := record.AppendPlain(nil, record.Handshake, tls.VersionTLS12, tr["server_hello"])
	suite := record.SuiteByID(tls.TLS_AES_128_GCM_SHA256)
	handshake := record.NewContext(must(suite.Keys(bytes.Clone(tr["server_handshake_traffic"]))), 0)
	flight := slices.Concat(tr["encrypted_extensions"], tr["certificate"], tr["certificate_verify"], tr["server_finished"])
	wire = append(wire, sealed(handshake, record.Handshake, flight)...)
	if n, err := c.Feed(wire); err != nil || n != len(wire) || !c.HandshakeComplete() {
		t.Fatalf("Feed used %d of %d bytes: %v", n, len(wire), err)
	}

	wiped := make([]byte, suite.HashLen)
	if !bytes.Equal(h.keys.secret, wiped) || !bytes.Equal(h.traffic.client, wiped) || !bytes.Equal(h.traffic.server, wiped) {
		t.Error("the handshake is complete, and its secrets are still there")
	}

	records := splitRecords(c.Output())
	if len(records) != 2 || record.Type(records[0][0]) != record.ChangeCipherSpec {
		t.Fatalf("%d records in the client's answer", len(records))
	}
	client := record.NewContext(must(suite.Keys(bytes.Clone(tr["client_handshake_traffic"]))), 0)
	got, _, err := client.Open(make([]byte, len(records[1])), records[1])
	if err != nil {
		t.Fatal(err)
	}
	tr.want(t, "client_finished", got)
	tr.want(t, "exporter_master", c.exporter.secret)
	tr.want(t, "resumption_master", c.resumption)

	application := record.NewContext(must(suite.Keys(bytes.Clone(tr["server_application_traffic"]))), 0)
	wire = sealed(application, record.Handshake, tr["new_session_ticket"])
	wire = append(wire, sealed(application, record.ApplicationData, []byte("data"))...)
	if data, _, err := c.Read(nil, wire); err != nil || string(data) != "data" {
		t.Errorf("data after the ticket: %q, %v", data, err)
	}
}

// sealed protects content as a record of its own.
func sealed(c *record.Context, t record.Type, content []byte) []byte {
	b := make([]byte, record.HeaderLen, len(content)+record.Overhead)
	return must(c.Seal(append(b, content...), t))
}

// ticketOf is the PSK of the ticket in RFC 8448, section 3, as a user's.
func ticketOf(simple trace) *PSK {
	ticket := must(parseNewSessionTicket(simple["new_session_ticket"][messageHeadLen:], 0))
	return &PSK{
		Identity: ticket.ticket, Secret: simple["psk"], Suite: record.SuiteByID(tls.TLS_AES_128_GCM_SHA256), MaxEarlyData: 1024,
	}
}

// TestReplayResumption lets our server meet the client of RFC 8448, section 4:
// its binder must be right, and its early keys and exporter ours.
func TestReplayResumption(t *testing.T) {
	simple, tr := readTraces(t)
	var log bytes.Buffer
	server := serverTLS()
	server.KeyLogWriter = &log
	s := mustServer(t, &Config{TLS: server, LookupPSK: func(id []byte) (*PSK, error) {
		if key := ticketOf(simple); bytes.Equal(key.Identity, id) {
			return key, nil
		}
		return nil, nil
	}})
	hello := record.AppendPlain(nil, record.Handshake, tls.VersionTLS10, addBinder(tr))
	if _, err := s.Feed(hello); err != nil || !s.EarlyData() || s.PSKUsed() == nil {
		t.Fatalf("early data %v, PSK %x: %v", s.EarlyData(), s.PSKUsed(), err)
	}
	for label, name := range map[string]string{logClientEarly: "client_early_traffic", logEarlyExporter: "early_exporter_master"} {
		if !bytes.Contains(log.Bytes(), fmt.Appendf(nil, "%s %x %x\n", label, tr["client_hello_without_binders"][6:38], tr[name])) {
			t.Errorf("key log lacks %s:\n%s", name, &log)
		}
	}
	early := record.NewContext(must(ticketOf(simple).Suite.Keys(bytes.Clone(tr["client_early_traffic"]))), 0)
	data, _, err := s.ReadEarly(nil, sealed(early, record.ApplicationData, []byte("ABCDEF")))
	if err != nil || string(data) != "ABCDEF" {
		t.Errorf("early data %q, %v", data, err)
	}
	if _, _, err := s.ReadEarly(nil, sealed(early, record.Handshake, tr["end_of_early_data"])); err != nil || s.EarlyData() {
		t.Error("EndOfEarlyData:", err)
	}
}

// TestReplayResumedFlight lets the client of section 4 meet that server.
func TestReplayResumedFlight(t *testing.T) {
	simple, tr := readTraces(t)
	key := ticketOf(simple)
	c, err := newConn(&Config{
		TLS:             &tls.Config{ServerName: "server", InsecureSkipVerify: true},
		RecordSizeLimit: 0x4001, PSK: key,
	}, true)
	if err != nil {
		t.Fatal(err)
	}
	raw := addBinder(tr)
	h := &clientHandshake{
		c: c, helloRaw: raw,
		hello:  must(parseClientHello(raw[messageHeadLen:], 0)),
		groups: []tls.CurveID{tls.X25519},
		pairs:  []*keyPair{must(groupByID(tls.X25519).withPoint(must(ecdh.X25519().NewPrivateKey(tr["client_private"]))))},
	}
	h.pickPSK()
	tr.want(t, "binder", h.psk.binder(digest(key.Suite, tr["client_hello_without_binders"])))
	if err := h.startEarly(); err != nil {
		t.Fatal(err)
	}
	c.next = step{want: typeServerHello, run: h.serverHello}
	if _, err := c.WriteEarly(nil, []byte("ABCDEF")); err != nil {
		t.Fatal(err)
	}

	wire := record.AppendPlain(nil, record.Handshake, tls.VersionTLS12, tr["server_hello"])
	handshake := record.NewContext(must(key.Suite.Keys(bytes.Clone(tr["server_handshake_traffic"]))), 0)
	wire = append(wire, sealed(handshake, record.Handshake, slices.Concat(tr["encrypted_extensions"], tr["server_finished"]))...)
	if n, err := c.Feed(wire); err != nil || n != len(wire) || !c.HandshakeComplete() || !c.EarlyDataAccepted() {
		t.Fatalf("Feed used %d of %d bytes: %v", n, len(wire), err)
	}
	if !bytes.Equal(h.psk.early.secret, make([]byte, key.Suite.HashLen)) {
		t.Error("the handshake is complete, and its early secret is still there")
	}
	records := splitRecords(c.Output())
	if len(records) != 2 {
		t.Fatalf("%d records in the client's second flight", len(records))
	}
	early := record.NewContext(must(key.Suite.Keys(bytes.Clone(tr["client_early_traffic"]))), 0)
	sealed(early, record.ApplicationData, []byte("ABCDEF"))
	traffic := record.NewContext(must(key.Suite.Keys(bytes.Clone(tr["client_handshake_traffic"]))), 0)
	end, _, err1 := early.Open(make([]byte, len(records[0])), records[0])
	last, _, err2 := traffic.Open(make([]byte, len(records[1])), records[1])
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	tr.want(t, "end_of_early_data", end)
	tr.want(t, "client_finished", last)
	tr.want(t, "exporter_master", c.exporter.secret)
	send, _ := c.TakeKeys()
	want := must(key.Suite.Keys(bytes.Clone(tr["client_application_traffic"])))
	if !bytes.Equal(sealed(record.NewContext(send, 0), 23, []byte("x")), sealed(record.NewContext(want, 0), 23, []byte("x"))) {
		t.Error("the client's application keys are others")
	}
}

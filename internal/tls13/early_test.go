package tls13

import (
	"bytes"
	"crypto/tls"
	"errors"
	"testing"
	"time"

	"github.com/go-tcpls/tcpls/internal/record"
)

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

// hasty begins a connection with early data and completes it, sending nothing
// again.
func (w *world) hasty(t testing.TB, data string) (c, s *Conn, taken []byte) {
	t.Helper()
	c, s = newTestPair(t, w.client, w.server)
	wire, err := c.WriteEarly(nil, []byte(data))
	if err != nil {
		t.Fatal("WriteEarly:", err)
	}
	n, err := s.Feed(wire)
	if err == nil {
		var m int
		taken, m, err = s.ReadEarly(nil, wire[n:])
		n += m
	}
	if err != nil || n != len(wire) {
		t.Fatalf("server used %d of %d bytes: %v", n, len(wire), err)
	}
	mustShake(t, c, s)
	w.use(t, c, s)
	return c, s, taken
}

// TestWhetherEarlyDataIsAccepted changes something before the early data.
// Whatever the decision, the handshake is completed.
func TestWhetherEarlyDataIsAccepted(t *testing.T) {
	later := func(at *Config, by time.Duration) {
		clock := at.TLS.Time
		at.TLS.Time = func() time.Time { return clock().Add(by) }
	}
	for _, test := range []struct {
		name              string
		before, after     func(w *world)
		accepted, resumed bool
	}{
		{"nothing changed", nil, nil, true, true},
		{"an hour later", nil, func(w *world) { w.now = w.now.Add(time.Hour) }, true, true},
		{"age off by the whole window", nil, func(w *world) { later(w.server, defaultEarlyWindow) }, true, true},
		{"age off by more than the window", nil, func(w *world) { later(w.server, defaultEarlyWindow+time.Millisecond) }, false, true},
		{"age off the other way", nil, func(w *world) { later(w.client, defaultEarlyWindow) }, true, true},
		{"age off the other way by more", nil, func(w *world) { later(w.client, defaultEarlyWindow+time.Millisecond) }, false, true},
		{"a narrower window", nil, func(w *world) { w.server.EarlyWindow = time.Second; later(w.server, 2*time.Second) }, false, true},
		{"MaxEarlyData is 0", nil, func(w *world) { w.server.MaxEarlyData = 0 }, false, true},
		{"MaxEarlyData is less", nil, func(w *world) { w.server.MaxEarlyData-- }, false, true},
		{"MaxEarlyData is more", nil, func(w *world) { w.server.MaxEarlyData++ }, true, true},
		{"no strike register", nil, func(w *world) { w.server.FirstUse = nil }, false, true},
		{"seen before", nil, func(w *world) { w.server.FirstUse = func([]byte, time.Time) bool { return false } }, false, true},
		{"another EarlyContext", nil, func(w *world) { w.server.EarlyContext = []byte("other") }, false, true},
		{"no EarlyContext", nil, func(w *world) { w.server.EarlyContext = nil }, false, true},
		{"another protocol", speaking, func(w *world) { w.server.TLS.NextProtos = []string{"b"} }, false, true},
		{"the same protocol", speaking, nil, true, true},
		{"a protocol where there was none", nil, speaking, false, true},
		{"no protocol any more", speaking, func(w *world) { w.server.TLS.NextProtos = nil }, false, true},
		{"HelloRetryRequest", nil, func(w *world) { w.server.TLS.CurvePreferences = []tls.CurveID{tls.CurveP384} }, false, true},
		{"ticket key gone", nil, func(w *world) { w.server.TLS.SetSessionTicketKeys([][32]byte{{2}}) }, false, false},
		{"tickets off", nil, func(w *world) { w.server.TLS.SessionTicketsDisabled = true }, false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld().withEarlyData()
			if test.before != nil {
				test.before(w)
			}
			w.meet(t)
			if test.after != nil {
				test.after(w)
			}
			c, s, taken := w.hasty(t, "early")
			wantResumed(t, test.resumed, c, s)
			if c.EarlyDataAccepted() != test.accepted || s.EarlyDataAccepted() != test.accepted {
				t.Errorf("accepted: client %v, server %v, want %v", c.EarlyDataAccepted(), s.EarlyDataAccepted(), test.accepted)
			}
			if got := string(taken); got != "early" && test.accepted || got != "" && !test.accepted {
				t.Errorf("server reads %q", got)
			}
			if c.EarlyContextSend() != nil || s.EarlyData() {
				t.Error("early data is possible after the handshake")
			}
		})
	}
}

func speaking(w *world) {
	w.client.TLS.NextProtos, w.server.TLS.NextProtos = []string{"a", "b"}, []string{"a"}
}

// TestAnotherSuiteOfTheSameHash resumes, and its early data can't be opened.
func TestAnotherSuiteOfTheSameHash(t *testing.T) {
	w := newWorld().withEarlyData()
	withSuite(t, tls.TLS_AES_128_GCM_SHA256)
	w.meet(t)
	withSuite(t, tls.TLS_CHACHA20_POLY1305_SHA256)
	c, s, _ := w.hasty(t, "early")
	wantResumed(t, true, c, s)
	if s.EarlyDataAccepted() || c.EarlyDataAccepted() {
		t.Error("early data under another suite is accepted")
	}
}

// TestAnotherHash: the PSK doesn't fit, whether the server says so at once or
// by a HelloRetryRequest.
func TestAnotherHash(t *testing.T) {
	for _, retried := range []bool{false, true} {
		w := newWorld().withEarlyData()
		withSuite(t, tls.TLS_AES_128_GCM_SHA256)
		w.meet(t)
		withSuite(t, tls.TLS_AES_256_GCM_SHA384)
		if retried {
			w.server.TLS.CurvePreferences = []tls.CurveID{tls.CurveP384}
		}
		c, s, _ := w.hasty(t, "early")
		wantResumed(t, false, c, s)
	}
}

// TestReplay sends the same first flight to two servers with one register.
func TestReplay(t *testing.T) {
	w := newWorld().withEarlyData()
	w.meet(t)
	wire := must(mustClient(t, w.client).WriteEarly(nil, []byte("early")))
	for i := range 3 {
		s := mustServer(t, w.server)
		if _, err := s.Feed(wire); err != nil || s.EarlyData() != (i == 0) {
			t.Errorf("server %d: early data %v, %v", i, s.EarlyData(), err)
		}
	}
	if len(w.seen) != 1 {
		t.Errorf("%d entries in the register", len(w.seen))
	}
	for id, until := range w.seen {
		if len(id) != 32 || !until.Equal(w.now.Add(defaultEarlyWindow)) {
			t.Errorf("entry of %d bytes until %v, now %v", len(id), until, w.now)
		}
	}
	w.now = w.now.Add(defaultEarlyWindow + time.Millisecond)
	clear(w.seen) // the register may forget it now
	s := mustServer(t, w.server)
	if _, err := s.Feed(wire); err != nil || s.EarlyData() || len(w.seen) > 0 {
		t.Errorf("stale: early data %v, %d entries, %v", s.EarlyData(), len(w.seen), err)
	}
}

// TestEarlyLimit reaches max_early_data_size on both ends.
func TestEarlyLimit(t *testing.T) {
	w := newWorld().withEarlyData()
	w.meet(t)
	c, s := newTestPair(t, w.client, w.server)
	wire := must(c.WriteEarly(nil, make([]byte, 400)))
	wire = must(c.WriteEarly(wire, make([]byte, 600)))
	if _, err := c.WriteEarly(nil, []byte{0}); !errors.Is(err, ErrEarlyDataFull) || c.EarlyLimit() != 0 {
		t.Errorf("byte 1001 of 1000: %v", err)
	}
	n, err := s.Feed(wire)
	if err != nil {
		t.Fatal(err)
	}
	data, m, err := s.ReadEarly(nil, wire[n:])
	if err != nil || len(data) != 1000 || n+m != len(wire) || s.EarlyLimit() != 0 {
		t.Fatalf("%d bytes of 1000, %v", len(data), err)
	}
	more := sealed(c.EarlyContextSend(), record.ApplicationData, []byte{0})
	if _, _, err = s.ReadEarly(nil, more); err == nil {
		t.Fatal("byte 1001 is taken")
	}
	if a, _ := alertOf(err); a != AlertUnexpectedMessage {
		t.Errorf("byte 1001: %v", err)
	}
}

// TestRefusedEarlyDataIsSkipped up to what the tickets allow.
func TestRefusedEarlyDataIsSkipped(t *testing.T) {
	for _, over := range []int{0, 1} {
		w := newWorld().withEarlyData()
		w.client.MaxEarlyData, w.server.MaxEarlyData = 3<<20, 3<<20 // more than a handshake may have
		w.meet(t)
		w.server.EarlyContext = nil
		c, s := newTestPair(t, w.client, w.server)
		wire := must(c.WriteEarly(nil, make([]byte, 3<<20)))
		if over > 0 {
			wire = append(wire, sealed(c.EarlyContextSend(), record.ApplicationData, []byte{0})...)
		}
		n, err := s.Feed(wire)
		if a, _ := alertOf(err); (err != nil) != (over > 0) || err != nil && a != AlertUnexpectedMessage || err == nil && n != len(wire) {
			t.Errorf("%d bytes over the limit: used %d of %d, %v", over, n, len(wire), err)
		}
		if over == 0 {
			mustShake(t, c, s)
		}
	}
}

// TestWithoutEarlyData: the calls of early data where there is none.
func TestWithoutEarlyData(t *testing.T) {
	w := newWorld()
	w.meet(t)
	c, s := newTestPair(t, w.client, w.server)
	if _, err := c.WriteEarly(nil, []byte("x")); !errors.Is(err, ErrNoEarlyData) || c.EarlyContextSend() != nil {
		t.Error("WriteEarly:", err)
	}
	if _, err := c.ExportEarlyKeyingMaterial("label", nil, 8); !errors.Is(err, ErrNoEarlyData) {
		t.Error("ExportEarlyKeyingMaterial:", err)
	}
	for name, call := range map[string]func(){
		"TakeEarlyKeys": func() { s.TakeEarlyKeys() }, "TakeWriteKeys": func() { s.TakeWriteKeys() },
		"EarlyHandshake": func() { _ = s.EarlyHandshake(nil) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s doesn't panic", name)
				}
			}()
			call()
		}()
	}
	mustShake(t, c, s)
	if _, err := s.Write(nil, []byte("x")); err != nil {
		t.Error(err)
	}
}

// TestEarlyKeyLogAndExporter: both ends have the same.
func TestEarlyKeyLogAndExporter(t *testing.T) {
	w := newWorld().withEarlyData()
	w.meet(t)
	var atClient, atServer bytes.Buffer
	w.client.TLS.KeyLogWriter, w.server.TLS.KeyLogWriter = &atClient, &atServer
	c, s := newTestPair(t, w.client, w.server)
	if _, err := s.Feed(c.Output()); err != nil {
		t.Fatal(err)
	}
	a, err1 := c.ExportEarlyKeyingMaterial("label", []byte("context"), 40)
	b, err2 := s.ExportEarlyKeyingMaterial("label", []byte("context"), 40)
	if err1 != nil || err2 != nil || !bytes.Equal(a, b) || len(a) != 40 {
		t.Errorf("early keying material %x and %x, %v, %v", a, b, err1, err2)
	}
	mustShake(t, c, s)
	if _, err := c.ExportEarlyKeyingMaterial("label", nil, 8); err == nil {
		t.Error("the early exporter's secret outlives early data")
	}
	if atClient.String() != atServer.String() || !bytes.HasPrefix(atClient.Bytes(), []byte(logClientEarly)) ||
		!bytes.Contains(atClient.Bytes(), []byte("\n"+logEarlyExporter+" ")) {
		t.Errorf("key logs:\n%s\n%s", &atClient, &atServer)
	}
}

// TestOneChangeCipherSpecWithEarlyData: it comes before the early data, and
// not again (RFC 8446, D.4).
func TestOneChangeCipherSpecWithEarlyData(t *testing.T) {
	for _, what := range []string{"accepted", "refused", "retried"} {
		w := newWorld().withEarlyData()
		w.meet(t)
		switch what {
		case "refused":
			w.server.EarlyContext = nil
		case "retried":
			w.server.TLS.CurvePreferences = []tls.CurveID{tls.CurveP384}
		}
		c, s := newTestPair(t, w.client, w.server)
		var types []byte
		for !s.HandshakeComplete() {
			out := c.Output()
			for _, rec := range splitRecords(out) {
				types = append(types, rec[0])
			}
			if err := feed(s, out, nil); err != nil {
				t.Fatal(what, err)
			}
			if err := feed(c, s.Output(), nil); err != nil {
				t.Fatal(what, err)
			}
		}
		if bytes.Count(types, []byte{byte(record.ChangeCipherSpec)}) != 1 || types[1] != byte(record.ChangeCipherSpec) {
			t.Errorf("%s: client sends records of types %v", what, types)
		}
	}
}

// TestEarlyRecordLimit keeps to the record_size_limit of the ticket's session.
func TestEarlyRecordLimit(t *testing.T) {
	w := newWorld().withEarlyData()
	w.client.RecordSizeLimit, w.server.RecordSizeLimit = 5000, 101
	w.meet(t)
	wire := must(mustClient(t, w.client).WriteEarly(nil, make([]byte, 1000)))
	var lengths []int
	for _, rec := range splitRecords(wire)[2:] {
		lengths = append(lengths, len(rec)-record.Overhead)
	}
	if len(lengths) != 10 || lengths[0] != 100 {
		t.Errorf("early data in records of %v bytes", lengths)
	}
}

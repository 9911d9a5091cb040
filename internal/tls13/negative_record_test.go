package tls13

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/go-tcpls/tcpls/internal/record"
)

// inner seals any inner plaintext under the puppet's current writing secret,
// as the next record of its context, which package record would not do.
func (p *puppet) inner(secret, plaintext []byte) {
	s := p.suite
	aead := must(cipher.NewGCM(must(aes.NewCipher(s.ExpandLabel(secret, "key", nil, s.KeyLen)))))
	nonce := s.ExpandLabel(secret, "iv", nil, aead.NonceSize())
	binary.BigEndian.PutUint64(nonce[4:], binary.BigEndian.Uint64(nonce[4:])^p.write.Seq())
	n := len(plaintext) + aead.Overhead()
	head := []byte{23, 3, 3, byte(n >> 8), byte(n)}
	p.wire = append(append(p.wire, head...), aead.Seal(nil, nonce, plaintext, head)...)
	sealed(p.write, record.Alert, nil) // takes the sequence number
}

// appSecret is what the puppet writes with after the handshake.
func (p *puppet) appSecret() []byte {
	if p.isClient {
		return p.app.client
	}
	return p.app.server
}

func (p *puppet) handshakeSecret() []byte {
	if p.isClient {
		return p.traffic.client
	}
	return p.traffic.server
}

// runBoth runs rows against a connected client and a connected server.
func runBoth(t *testing.T, rows []negative) {
	t.Run("client", func(t *testing.T) {
		runNegative(t, rows, func(t *testing.T, use extensionUse) *puppet {
			p := puppetServer(t, use)
			p.connect()
			return p
		})
	})
	t.Run("server", func(t *testing.T) {
		runNegative(t, rows, func(t *testing.T, use extensionUse) *puppet {
			p := puppetClient(t, use)
			p.connect()
			return p
		})
	})
}

func repeat(n int, f func(p *puppet)) func(p *puppet) {
	return func(p *puppet) {
		for range n {
			f(p)
		}
	}
}

func sending(t record.Type, content []byte) func(p *puppet) {
	return func(p *puppet) { p.record(t, content) }
}

func inClear(t record.Type, content []byte) func(p *puppet) {
	return func(p *puppet) { p.plain(t, content) }
}

func innerOf(plaintext []byte) func(p *puppet) {
	return func(p *puppet) { p.inner(p.appSecret(), plaintext) }
}

func wireOf(b ...byte) func(p *puppet) {
	return func(p *puppet) { p.wire = append(p.wire, b...) }
}

var (
	app      = record.ApplicationData
	oneData  = sending(app, []byte("data"))
	canceled = sending(record.Alert, []byte{levelWarning, byte(AlertUserCanceled)})
)

func TestDataRecords(t *testing.T) {
	padded := func(t record.Type, content string, padding int) []byte {
		return append(append([]byte(content), byte(t)), make([]byte, padding)...)
	}
	full := make([]byte, record.MaxPlaintext)
	runBoth(t, []negative{
		{"ciphertext over 2^14+256", AlertRecordOverflow, false, wireOf(23, 3, 3, 0x41, 0x01)},
		{"plaintext over 2^14", AlertRecordOverflow, false, wireOf(22, 3, 3, 0x40, 0x01)},
		{"inner plaintext over 2^14+1", AlertRecordOverflow, false, innerOf(padded(app, string(full), 1))},
		{"content over 2^14", AlertRecordOverflow, false, innerOf(padded(app, string(full)+"x", 0))},
		{"full record", 0, true, innerOf(padded(app, string(full), 0))},
		{"padded record", 0, true, innerOf(padded(app, "data", 1000))},
		{"zeros only", AlertUnexpectedMessage, false, innerOf(make([]byte, 10))},
		{"nothing at all", AlertUnexpectedMessage, false, innerOf(nil)},
		{"shorter than a tag", AlertBadRecordMAC, false, wireOf(23, 3, 3, 0, 1, 0)},
		{"unknown inner type", AlertUnexpectedMessage, false, sending(24, []byte("x"))},
		{"unknown outer type", AlertUnexpectedMessage, false, wireOf(99, 3, 3, 0, 1, 0)},
		{"empty Handshake record", AlertUnexpectedMessage, false, sending(record.Handshake, nil)},
		{"empty Alert record", AlertUnexpectedMessage, false, sending(record.Alert, nil)},
		{"empty application records", 0, true, repeat(maxIdle, sending(app, nil))},
		{"empty application records without end", AlertUnexpectedMessage, false, repeat(maxIdle+1, sending(app, nil))},
		{"empty application records with data between", 0, true, func(p *puppet) {
			for range 3 {
				repeat(maxIdle, sending(app, nil))(p)
				oneData(p)
			}
		}},
		{"data in the clear", AlertBadRecordMAC, false, inClear(app, bytes.Repeat([]byte("d"), 40))},
		{"handshake in the clear", AlertUnexpectedMessage, false, inClear(record.Handshake, []byte{24, 0, 0, 1, 0})},
		{"alert in the clear", AlertUnexpectedMessage, false, inClear(record.Alert, []byte{levelFatal, byte(AlertHandshakeFailure)})},
		{"close_notify in the clear", AlertUnexpectedMessage, false, inClear(record.Alert, []byte{levelWarning, 0})},
		{"ChangeCipherSpec after Finished", AlertUnexpectedMessage, false, inClear(record.ChangeCipherSpec, []byte{1})},
		{"ChangeCipherSpec inside a record", AlertUnexpectedMessage, false, sending(record.ChangeCipherSpec, []byte{1})},
		{"data within a message", AlertUnexpectedMessage, false, func(p *puppet) {
			p.record(record.Handshake, []byte{24, 0})
			oneData(p)
		}},
		{"damaged", AlertBadRecordMAC, false, func(p *puppet) { oneData(p); p.wire[len(p.wire)-1] ^= 1 }},
		{"dropped", AlertBadRecordMAC, false, func(p *puppet) { oneData(p); p.wire = nil; oneData(p) }},
		{"repeated", AlertBadRecordMAC, false, func(p *puppet) { oneData(p); p.wire = append(p.wire, p.wire...) }},
		{"reordered", AlertBadRecordMAC, false, func(p *puppet) {
			oneData(p)
			first := p.wire
			p.wire = nil
			oneData(p)
			p.wire = append(p.wire, first...)
		}},
	})
}

func TestAlerts(t *testing.T) {
	runBoth(t, []negative{
		{"bad level", AlertIllegalParameter, false, sending(record.Alert, []byte{3, byte(AlertHandshakeFailure)})},
		{"level 0", AlertIllegalParameter, false, sending(record.Alert, []byte{0, 0})},
		{"cut", AlertDecodeError, false, sending(record.Alert, []byte{levelFatal})},
		{"two in a record", AlertDecodeError, false, sending(record.Alert, []byte{levelWarning, 90, levelWarning, 90})},
		{"user_canceled", 0, true, repeat(maxCancels, canceled)},
		{"user_canceled without end", AlertUnexpectedMessage, false, repeat(maxCancels+1, canceled)},
	})
	// An alert of any level but close_notify and user_canceled is an end, and
	// isn't answered.
	for _, content := range [][]byte{{levelFatal, 40}, {levelWarning, 40}, {levelFatal, 99}, {levelWarning, 100}} {
		p := puppetServer(t, extensionAnswered)
		p.connect()
		p.record(record.Alert, content)
		p.feed()
		theirs, ok := errors.AsType[*AlertError](p.err)
		if !ok || theirs.Alert != Alert(content[1]) {
			t.Errorf("alert %v: error %v", content, p.err)
		}
		if out := p.engine.Output(); len(out) > 0 {
			t.Errorf("alert %v is answered", content)
		}
	}
}

// TestPlainAlertDuringHandshake believes an alert in the clear as long as the
// peer may have had no keys.
func TestPlainAlertDuringHandshake(t *testing.T) {
	p := puppetClient(t, extensionAnswered)
	p.clientHello()
	p.serverFlight()
	p.plain(record.Alert, []byte{levelFatal, byte(AlertDecodeError)})
	p.feed()
	if theirs, ok := errors.AsType[*AlertError](p.err); !ok || theirs.Alert != AlertDecodeError {
		t.Errorf("plain alert before Finished: %v", p.err)
	}
	if p.engine.HandshakeComplete() || len(p.engine.Output()) > 0 {
		t.Error("the handshake goes on")
	}
}

func TestHandshakeRecords(t *testing.T) {
	ccs := inClear(record.ChangeCipherSpec, []byte{1})
	rows := []negative{
		{"ChangeCipherSpec of another value", AlertUnexpectedMessage, false, inClear(record.ChangeCipherSpec, []byte{2})},
		{"ChangeCipherSpec of two bytes", AlertUnexpectedMessage, false, inClear(record.ChangeCipherSpec, []byte{1, 1})},
		{"ChangeCipherSpec empty", AlertUnexpectedMessage, false, inClear(record.ChangeCipherSpec, nil)},
		{"ChangeCipherSpec protected", AlertUnexpectedMessage, false, sending(record.ChangeCipherSpec, []byte{1})},
		{"ChangeCipherSpecs", 0, true, repeat(maxIdle, ccs)},
		{"ChangeCipherSpec without end", AlertUnexpectedMessage, false, repeat(maxIdle+1, ccs)},
		{"data before Finished", AlertUnexpectedMessage, false, oneData},
		{"handshake in the clear", AlertUnexpectedMessage, false, inClear(record.Handshake, []byte{8, 0, 0, 2, 0, 0})},
		{"empty Handshake record", AlertUnexpectedMessage, false, sending(record.Handshake, nil)},
		{"message of 16 MiB announced", AlertIllegalParameter, false, func(p *puppet) {
			if p.isClient {
				p.record(record.Handshake, []byte{20, 0xff, 0xff, 0xff})
			} else {
				p.record(record.Handshake, []byte{8, 0xff, 0xff, 0xff})
			}
		}},
		{"ChangeCipherSpec within a message", AlertUnexpectedMessage, false, func(p *puppet) {
			p.record(record.Handshake, []byte{map[bool]byte{true: 20, false: 8}[p.isClient], 0})
			ccs(p)
		}},
		{"damaged", AlertBadRecordMAC, false, func(p *puppet) {
			p.record(record.Handshake, []byte{20})
			p.wire[len(p.wire)-1] ^= 1
		}},
	}
	rows = append(rows, negative{"alert within a message", AlertUnexpectedMessage, false, func(p *puppet) {
		p.record(record.Handshake, []byte{map[bool]byte{true: 20, false: 8}[p.isClient], 0})
		canceled(p)
	}},
		negative{"alert cut", AlertDecodeError, false, sending(record.Alert, []byte{levelFatal})},
		negative{"empty Alert record", AlertUnexpectedMessage, false, sending(record.Alert, nil)},
		negative{"user_canceled without end", AlertUnexpectedMessage, false, repeat(maxCancels+1, canceled)},
		negative{"ciphertext over 2^14+256", AlertRecordOverflow, false, wireOf(23, 3, 3, 0x41, 0x01)},
		negative{"shorter than a tag", AlertBadRecordMAC, false, wireOf(23, 3, 3, 0, 1, 0)},
		negative{"zeros only", AlertUnexpectedMessage, false, func(p *puppet) { p.inner(p.handshakeSecret(), make([]byte, 10)) }})
	t.Run("client", func(t *testing.T) { runNegative(t, rows, greeted) })
	t.Run("server", func(t *testing.T) {
		runNegative(t, rows, func(t *testing.T, use extensionUse) *puppet {
			p := puppetClient(t, use)
			p.clientHello()
			p.serverFlight()
			return p
		})
	})
}

func TestFirstRecords(t *testing.T) {
	ccs := inClear(record.ChangeCipherSpec, []byte{1})
	both := []negative{
		{"data before keys", AlertUnexpectedMessage, false, inClear(app, []byte("data"))},
		{"an empty Handshake record", AlertUnexpectedMessage, false, inClear(record.Handshake, nil)},
		{"an empty Alert record", AlertUnexpectedMessage, false, inClear(record.Alert, nil)},
		{"an alert cut", AlertDecodeError, false, inClear(record.Alert, []byte{levelFatal})},
		{"two alerts in a record", AlertDecodeError, false, inClear(record.Alert, []byte{levelWarning, 90, levelWarning, 90})},
		{"an alert of a bad level", AlertIllegalParameter, false, inClear(record.Alert, []byte{3, byte(AlertHandshakeFailure)})},
		{"user_canceled without end", AlertUnexpectedMessage, false, repeat(maxCancels+1, inClear(record.Alert, []byte{levelWarning, byte(AlertUserCanceled)}))},
		{"plaintext over 2^14", AlertRecordOverflow, false, wireOf(22, 3, 3, 0x40, 0x01)},
		{"ciphertext over 2^14+256", AlertRecordOverflow, false, wireOf(23, 3, 3, 0x41, 0x01)},
		{"a record of unknown type", AlertUnexpectedMessage, false, wireOf(24, 3, 3, 0, 1, 0)},
	}
	t.Run("client", func(t *testing.T) {
		runNegative(t, append(both, negative{"ChangeCipherSpec before ServerHello", 0, true, func(p *puppet) { ccs(p); p.connect() }},
			negative{"ServerHello of 16 MiB announced", AlertIllegalParameter, false, inClear(record.Handshake, []byte{2, 0xff, 0xff, 0xff})},
			negative{"an HTTP response", AlertUnexpectedMessage, false, wireOf([]byte("HTTP/1.1 400 Bad Request\r\n")...)},
		), puppetServer)
	})
	t.Run("server", func(t *testing.T) { runNegative(t, both, puppetClient) })
	runNegative(t, []negative{
		{"ChangeCipherSpec before ClientHello", AlertUnexpectedMessage, false, inClear(record.ChangeCipherSpec, []byte{1})},
		{"an HTTP request", AlertUnexpectedMessage, false, wireOf([]byte("GET / HTTP/1.1\r\n")...)},
		{"an SSL 2.0 hello", AlertProtocolVersion, false, wireOf(0x80, 0x2e, 1, 0, 2)},
		{"ClientHello of 16 MiB announced", AlertIllegalParameter, false, inClear(record.Handshake, []byte{1, 0xff, 0xff, 0xff})},
		{"any record version", 0, true, func(p *puppet) {
			p.client.helloRaw = must(encode(p.hello))
			p.wire = record.AppendPlain(nil, record.Handshake, 0x7f1c, p.client.helloRaw)
			p.feed()
			p.serverFlight()
			p.clientFinished()
		}},
		{"a byte in a record", 0, true, func(p *puppet) {
			p.client.helloRaw = must(encode(p.hello))
			for _, b := range p.client.helloRaw {
				p.plain(record.Handshake, []byte{b})
			}
			p.feed()
			p.serverFlight()
			p.clientFinished()
		}},
	}, puppetClient)
}

// TestHandshakeBudget sends a permitted message in records that are nearly all
// padding.
func TestHandshakeBudget(t *testing.T) {
	p := encrypted(t, extensionAnswered)
	body := must(encode(&certificate{entries: []certificateEntry{{der: make([]byte, 1000)}}}))
	for _, b := range body {
		p.inner(p.traffic.server, append([]byte{b, byte(record.Handshake)}, make([]byte, 16000)...))
		if p.feed(); p.err != nil {
			break
		}
	}
	if n := cap(p.engine.hand); n > maxCertificate {
		t.Errorf("%d bytes are kept", n)
	}
	p.wantAlert(AlertHandshakeFailure, false)
}

func TestRecordSizeLimitIsEnforced(t *testing.T) {
	const limit = 100
	for _, extra := range []int{0, 1} {
		p := newPuppetServer(t, &Config{TLS: clientTLS(), RecordSizeLimit: limit})
		p.serverHello(nil)
		p.encryptedExtensions(extension{extRecordSizeLimit, uint16Body(64)})
		p.cert.Certificate = p.cert.Certificate[:1]
		for _, m := range []outgoing{certificateMessage(&p.cert, false, false), nil, &finished{}} {
			if m == nil {
				m = p.certificateVerify()
			}
			if _, ok := m.(*finished); ok {
				m = &finished{finishedMAC(p.suite, p.traffic.server, p.transcript.sum())}
			}
			raw := must(encode(m))
			p.transcript.add(raw)
			for piece := range slices.Chunk(raw, limit-1) {
				p.record(record.Handshake, piece)
			}
		}
		p.application()
		p.feed()
		for _, rec := range splitRecords(p.engine.Output())[1:] {
			if n := len(rec) - record.HeaderLen - record.TagLen; n > 64 {
				t.Errorf("client sends an inner plaintext of %d bytes to a server that takes 64", n)
			}
		}
		p.setKeys(p.app)
		p.record(app, make([]byte, limit-1+extra))
		p.feed()
		p.wantAlert(AlertRecordOverflow, extra == 0)
	}
}

// TestTruncation tells a clean end from a cut connection.
func TestTruncation(t *testing.T) {
	p := puppetServer(t, extensionAnswered)
	if err := p.engine.End(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("end before the handshake: %v", err)
	}
	p.connect()
	oneData(p)
	p.feed()
	if err := p.engine.End(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("end without close_notify: %v", err)
	}
	oneData(p)
	p.record(record.Alert, []byte{levelWarning, 0})
	p.plain(record.Handshake, []byte("whatever follows is ignored"))
	data, n, err := p.engine.Read(nil, p.wire)
	if string(data) != "data" || n != len(p.wire) || err != io.EOF {
		t.Errorf("Read: %q, %d of %d, %v", data, n, len(p.wire), err)
	}
	if err := p.engine.End(); err != nil {
		t.Errorf("end after close_notify: %v", err)
	}
	wire, err := p.engine.Write(nil, []byte("the other direction goes on"))
	if err != nil || len(wire) == 0 {
		t.Errorf("Write after the peer's close_notify: %v", err)
	}
	p.engine.CloseNotify()
	if len(p.engine.Output()) == 0 {
		t.Error("no close_notify in Output")
	}
	if _, err := p.engine.Write(nil, []byte("x")); err == nil {
		t.Error("Write after close_notify")
	}
}

package tcpls

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/internal/tls13"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// A violation of docs/protocol.md: what the peer does, and the code that
// closes the session.
type violationTest struct {
	name string
	do   func(p *testPeer)
	code wire.SessionCode
}

// With the peer as client, after its parameters.
var clientViolations = []violationTest{
	// Section 4.1: types and places.
	{"4.1 stream bytes in the path's context", func(p *testPeer) { p.write(p.own, []byte("x"), record.ApplicationData) }, wire.CodeProtocol},
	{"4.1 bytes before frames in the path's context", func(p *testPeer) { p.write(p.own, framed([]byte("x")), wire.TypeFrames) }, wire.CodeProtocol},
	{"4.1 stream bytes in the control context", func(p *testPeer) { p.write(p.control, []byte("x"), record.ApplicationData) }, wire.CodeProtocol},
	{"4.1 bytes before frames in the control context", func(p *testPeer) { p.write(p.control, framed([]byte("x")), wire.TypeFrames) }, wire.CodeProtocol},
	{"4.1 a TCP option in the path's context", func(p *testPeer) { p.write(p.own, nil, wire.TypeOption) }, wire.CodeProtocol},
	{"4.1 a TCP option in a stream", func(p *testPeer) { p.write(p.attach(1), nil, wire.TypeOption) }, wire.CodeProtocol},
	{"4.1 an alert in the control context", func(p *testPeer) { p.write(p.control, []byte{1, 0}, record.Alert) }, wire.CodeProtocol},
	{"4.1 an alert in a stream", func(p *testPeer) { p.write(p.attach(1), []byte{1, 0}, record.Alert) }, wire.CodeProtocol},
	{"4.1 a handshake message in a stream", func(p *testPeer) { p.write(p.attach(1), []byte{4, 0, 0, 0}, record.Handshake) }, wire.CodeProtocol},
	{"4.1 no length of the frames", func(p *testPeer) { p.write(p.own, []byte{0}, wire.TypeFrames) }, wire.CodeFrame},
	{"4.1 frames longer than their record", func(p *testPeer) { p.write(p.attach(1), []byte{0, 9}, wire.TypeFrames) }, wire.CodeFrame},

	// Section 5: frames.
	{"5 a frame cut off", func(p *testPeer) { p.writeFrames([]byte{byte(wire.Ping), 8, 1, 2}) }, wire.CodeFrame},
	{"5 a frame too short", func(p *testPeer) { p.writeFrames([]byte{byte(wire.Ping), 2, 1, 2}) }, wire.CodeFrame},
	{"5 a frame with bytes left over", func(p *testPeer) { p.writeFrames([]byte{byte(wire.Ping), 9, 1, 2, 3, 4, 5, 6, 7, 8, 9}) }, wire.CodeFrame},
	{"5 FIN in the path's context", func(p *testPeer) { p.writeFrames(wire.AppendFin(nil)) }, wire.CodeFrame},
	{"5 PING in the control context", func(p *testPeer) { p.writeControl(wire.AppendPing(nil, [8]byte{})) }, wire.CodeFrame},
	{"5 ACK in a stream", func(p *testPeer) { p.attach(1); p.writeStream(1, nil, wire.AppendAck(nil, 1, 0, 0)) }, wire.CodeFrame},
	{"5 CLOSE in the path's context", func(p *testPeer) { p.writeFrames(wire.AppendClose(nil, wire.Protocol, 0, "")) }, wire.CodeFrame},
	{"5.1 NEXT of a path", func(p *testPeer) { p.writeFrames([]byte{byte(wire.Next), 1, 0}) }, wire.CodeFrame},
	{"5.2 ATTACH with a reserved mode", func(p *testPeer) { p.writeFrames([]byte{byte(wire.Attach), 4, 1, 0, 0, 1}) }, wire.CodeFrame},
	{"5.16 PATH_LEFT of path 65536", func(p *testPeer) { p.writeFrames(wire.AppendPathLeft(nil, 1<<16, false)) }, wire.CodeFrame},
	{"5.16 PATH_LEFT for an unknown reason", func(p *testPeer) { p.writeFrames([]byte{byte(wire.PathLeft), 2, 0, 2}) }, wire.CodeFrame},
	{"5.20 PATH_STATUS 2", func(p *testPeer) { p.writeFrames([]byte{byte(wire.PathStatus), 2, 2, 0}) }, wire.CodeFrame},
	{"5.20 PATH_STATUS in the control context", func(p *testPeer) { p.writeControl(wire.AppendPathStatus(nil, true, 0)) }, wire.CodeFrame},
	{"5.16 PATH_LEFT in the control context", func(p *testPeer) { p.writeControl(wire.AppendPathLeft(nil, 0, false)) }, wire.CodeFrame},
	{"5.5 STREAM_LIMIT too large", func(p *testPeer) { p.writeFrames(wire.AppendStreamLimit(nil, wire.MaxStreams+1)) }, wire.CodeFrame},
	{"5.9 KEY_UPDATE to epoch 0", func(p *testPeer) { p.writeFrames(wire.AppendKeyUpdate(nil, 0)) }, wire.CodeFrame},
	{"5.10 a parameter twice", func(p *testPeer) { p.writeControl([]byte{byte(wire.Params), 6, 1, 1, 0, 1, 1, 0}) }, wire.CodeFrame},
	{"5.15 CLOSE of an unknown class", func(p *testPeer) { p.writeControl(wire.AppendClose(nil, 2, 0, "")) }, wire.CodeFrame},
	{"5.15 CLOSE with a reason that isn't UTF-8", func(p *testPeer) { p.writeControl([]byte{byte(wire.Close), 3, 0, 0, 0xff}) }, wire.CodeFrame},

	// 5.2: ATTACH.
	{"5.2 ATTACH of a stream that isn't open", func(p *testPeer) { p.writeFrames(wire.AppendAttach(nil, 2, 0, 0)) }, wire.CodeStreamState},
	{"5.2 ATTACH beyond the limit", func(p *testPeer) { p.writeFrames(wire.AppendAttach(nil, 2*1024+1, 0, 0)) }, wire.CodeStreamLimit},
	{"5.2 ATTACH of the highest id", func(p *testPeer) { p.writeFrames(wire.AppendAttach(nil, wire.MaxStreamID, 0, 0)) }, wire.CodeStreamLimit},
	{"5.2 ATTACH at another record", func(p *testPeer) { p.writeFrames(wire.AppendAttach(nil, 1, 1, 0)) }, wire.CodeStreamState},
	{"5.2 ATTACH once more at another record", func(p *testPeer) {
		p.attach(1)
		p.writeStream(1, []byte("x"))
		p.writeFrames(wire.AppendAttach(nil, 1, 0, 0))
	}, wire.CodeStreamState},
	{"5.2 ATTACH in an unborn epoch", func(p *testPeer) { p.writeFrames(wire.AppendAttach(nil, 1, 0, 1)) }, wire.CodeKeyUpdate},

	// 5.3: ACK.
	{"5.3 ACK beyond the control records", func(p *testPeer) { p.writeFrames(wire.AppendAck(nil, wire.Control, 1, 0)) }, wire.CodeAck},
	{"5.3 ACK beyond a stream's records", func(p *testPeer) { p.attach(1); p.writeFrames(wire.AppendAck(nil, 1, 1, 0)) }, wire.CodeAck},
	{"5.3 ACK of a stream that isn't open", func(p *testPeer) { p.writeFrames(wire.AppendAck(nil, 1, 0, 0)) }, wire.CodeStreamState},

	// 5.8, 5.11, 5.12: the ends of streams.
	{"5.11 RESET of a stream that isn't open", func(p *testPeer) { p.writeControl(wire.AppendReset(nil, 1, 0, 0)) }, wire.CodeStreamState},
	{"5.11 RESET below what was sent", func(p *testPeer) {
		p.attach(1)
		p.writeStream(1, []byte("xyz"))
		p.writeControl(wire.AppendReset(nil, 1, 0, 2))
	}, wire.CodeStreamState},
	{"5.11 RESET with another size than FIN", func(p *testPeer) {
		p.attach(1)
		p.writeStream(1, []byte("xyz"), wire.AppendFin(nil))
		p.writeControl(wire.AppendReset(nil, 1, 0, 4))
	}, wire.CodeStreamState},
	{"5.11 two RESETs with different sizes", func(p *testPeer) {
		p.attach(1)
		p.writeControl(wire.AppendReset(nil, 1, 0, 4))
		p.writeControl(wire.AppendReset(nil, 1, 0, 5))
	}, wire.CodeStreamState},
	{"5.11 RESET beyond the stream's credit", func(p *testPeer) {
		p.attach(1)
		p.writeControl(wire.AppendReset(nil, 1, 0, 1<<20+1))
	}, wire.CodeFlowControl},
	{"5.12 STOP_SENDING of a stream that isn't open", func(p *testPeer) { p.writeControl(wire.AppendStopSending(nil, 2, 0)) }, wire.CodeStreamState},

	// 3.5, 5.9, 5.13: keys.
	{"5.9 KEY_UPDATE over an epoch", func(p *testPeer) { p.writeFrames(wire.AppendKeyUpdate(nil, 2)) }, wire.CodeKeyUpdate},
	{"5.9 KEY_UPDATE to the same epoch", func(p *testPeer) {
		p.updateOwn()
		p.writeFrames(wire.AppendKeyUpdate(nil, 1))
	}, wire.CodeKeyUpdate},
	{"3.5 a third epoch", func(p *testPeer) {
		p.attach(1) // stays in epoch 0
		p.updateOwn()
		p.writeFrames(wire.AppendKeyUpdate(nil, 2))
	}, wire.CodeKeyUpdate},
	{"5.17 TOKEN from a client", func(p *testPeer) { p.writeControl(wire.AppendToken(nil, 1, make([]byte, tokenLen))) }, wire.CodeProtocol},
	{"5.18 ADD_ADDRESS from a client", func(p *testPeer) { p.writeControl(wire.AppendAddAddress(nil, anAddress(1))) }, wire.CodeProtocol},
	{"5.19 REMOVE_ADDRESS from a client", func(p *testPeer) { p.writeControl(wire.AppendRemoveAddress(nil, 1)) }, wire.CodeProtocol},
	{"5.26 SYN_REQUEST for a path that can't be", func(p *testPeer) { p.writeControl(wire.AppendSYNRequest(nil, 65535)) }, wire.CodeProtocol},
	{"5.27 SYN_REPORT from a client", func(p *testPeer) { p.writeControl(wire.AppendSYNReport(nil, 0, &wire.SYN{})) }, wire.CodeProtocol},
	{"13.2 SYN_REQUESTs without end", func(p *testPeer) {
		p.writeControl(slices.Repeat(wire.AppendSYNRequest(nil, 0), 9)) // more than a client may have paths
	}, wire.CodeLimit},
	{"5.13 KEY_REQUEST over an epoch", func(p *testPeer) { p.writeControl(wire.AppendKeyRequest(nil, 2)) }, wire.CodeKeyUpdate},

	// 5.10: parameters.
	{"5.10 PARAMETERS twice", func(p *testPeer) { p.writeControl(wire.AppendParameters(nil, generous)) }, wire.CodeProtocol},

	// 6.1: credit.
	{"6.1 more than the stream's credit", func(p *testPeer) {
		p.attach(1)
		for range 64 {
			p.writeStream(1, make([]byte, record.MaxPlaintext))
		}
		p.writeStream(1, []byte("x"))
	}, wire.CodeFlowControl},
	{"6.1 more than the session's credit", func(p *testPeer) {
		for id := uint32(1); id <= 5; id += 2 {
			p.attach(id)
			for range 64 {
				p.writeStream(id, make([]byte, record.MaxPlaintext))
			}
		}
	}, wire.CodeFlowControl},
	{"6.1 RESETs beyond the session's credit", func(p *testPeer) {
		for id := uint32(1); id <= 5; id += 2 {
			p.attach(id)
			p.writeStream(id, make([]byte, 100))
		}
		for id := uint32(1); id <= 3; id += 2 {
			for range 63 {
				p.writeStream(id, make([]byte, record.MaxPlaintext))
			}
		}
		p.writeControl(wire.AppendReset(nil, 5, 0, 1<<20))
	}, wire.CodeFlowControl},

	// 6.3: floods.
	{"6.3 a flood of empty records", func(p *testPeer) {
		p.attach(1)
		for range 2 * budgetMax {
			p.writeStream(1, nil)
		}
	}, wire.CodeLimit},
	{"6.3 a flood of pings", func(p *testPeer) {
		for range 4 * budgetMax {
			p.writeFrames(wire.AppendPing(nil, [8]byte{}))
		}
	}, wire.CodeLimit},
	{"6.3 a flood of control records", func(p *testPeer) {
		for range 4 * budgetMax {
			p.writeControl([]byte{0x30, 0})
		}
	}, wire.CodeLimit},
	{"6.3 a flood of key updates", func(p *testPeer) {
		for epoch := range uint64(2 * budgetMax) {
			next := p.nextKeys()
			p.writeFrames(wire.AppendKeyUpdate(nil, epoch+1))
			p.own.SetKeys(next)
			p.writeControl(wire.AppendKeyUpdate(nil, epoch+1))
			p.control.SetKeys(next)
		}
	}, wire.CodeLimit},
}

func anAddress(id uint64) wire.Address {
	return wire.Address{ID: id, AddrPort: netip.MustParseAddrPort("192.0.2.1:443")}
}

// With the peer as server.
var serverViolations = []violationTest{
	{"5.10 PARAMETERS of a server", func(p *testPeer) { p.writeControl(wire.AppendParameters(nil, generous)) }, wire.CodeProtocol},
	{"5.17 TOKEN for path 65536", func(p *testPeer) { p.writeControl(wire.AppendToken(nil, 1<<16, make([]byte, 192))) }, wire.CodeFrame},
	{"5.17 TOKEN too long", func(p *testPeer) { p.writeControl(wire.AppendToken(nil, 9, make([]byte, wire.MaxToken+1))) }, wire.CodeFrame},
	{"5.17 TOKEN in the path's context", func(p *testPeer) { p.writeFrames(wire.AppendToken(nil, 9, make([]byte, 192))) }, wire.CodeFrame},
	{"5.2 ATTACH of the client's stream that isn't open", func(p *testPeer) { p.writeFrames(wire.AppendAttach(nil, 1, 0, 0)) }, wire.CodeStreamState},
	{"5.2 ATTACH beyond the limit", func(p *testPeer) { p.writeFrames(wire.AppendAttach(nil, 2*1024+2, 0, 0)) }, wire.CodeStreamLimit},
	{"5.3 ACK beyond the control records", func(p *testPeer) { p.writeFrames(wire.AppendAck(nil, wire.Control, 2, 0)) }, wire.CodeAck},
	{"5.17 TOKEN for path 0", func(p *testPeer) { p.writeControl(wire.AppendToken(nil, 0, make([]byte, tokenLen))) }, wire.CodeFrame},
	{"5.18 ADD_ADDRESS with the same id again", func(p *testPeer) {
		p.writeControl(wire.AppendAddAddress(nil, anAddress(1)), wire.AppendAddAddress(nil, anAddress(1)))
	}, wire.CodeProtocol},
	{"5.18 ADD_ADDRESS with an id that was withdrawn", func(p *testPeer) {
		p.writeControl(wire.AppendAddAddress(nil, anAddress(1)), wire.AppendRemoveAddress(nil, 1), wire.AppendAddAddress(nil, anAddress(1)))
	}, wire.CodeProtocol},
	{"5.18 ADD_ADDRESSes without end", func(p *testPeer) {
		for id := range uint64(wire.MaxAddresses + 1) {
			p.writeControl(wire.AppendAddAddress(nil, anAddress(id+1)))
		}
	}, wire.CodeLimit},
	{"5.18 ADD_ADDRESS of port 0", func(p *testPeer) {
		p.writeControl(wire.AppendAddAddress(nil, wire.Address{ID: 1, AddrPort: netip.MustParseAddrPort("192.0.2.1:0")}))
	}, wire.CodeFrame},
	{"5.19 REMOVE_ADDRESS that was never given", func(p *testPeer) {
		p.writeControl(wire.AppendAddAddress(nil, anAddress(1)), wire.AppendRemoveAddress(nil, 2))
	}, wire.CodeProtocol},
	{"5.26 SYN_REQUEST from a server", func(p *testPeer) { p.writeControl(wire.AppendSYNRequest(nil, 0)) }, wire.CodeProtocol},
	{"5.27 SYN_REPORT that wasn't asked for", func(p *testPeer) { p.writeControl(wire.AppendSYNReport(nil, 0, &wire.SYN{})) }, wire.CodeProtocol},
	{"5.17 TOKEN of one byte", func(p *testPeer) { p.writeControl(wire.AppendToken(nil, 1, []byte("a"))) }, wire.CodeFrame},
	{"5.17 TOKENs without end", func(p *testPeer) {
		for n := range uint32(4*maxTokens + 1) {
			p.writeControl(wire.AppendToken(nil, n+1, make([]byte, wire.MaxToken)))
		}
	}, wire.CodeLimit},
}

// With the peer as client, before its parameters.
var earlyViolations = []violationTest{
	{"2.4 ATTACH before PARAMETERS", func(p *testPeer) { p.attach(1) }, wire.CodeProtocol},
	{"2.4 another frame before PARAMETERS", func(p *testPeer) { p.writeControl(wire.AppendKeyRequest(nil, 1)) }, wire.CodeProtocol},
	{"2.4 a control record without PARAMETERS", func(p *testPeer) { p.writeControl() }, wire.CodeProtocol},
	{"2.4 PARAMETERS behind an unknown frame", func(p *testPeer) {
		p.writeControl([]byte{0x30, 0}, wire.AppendParameters(nil, generous))
	}, wire.CodeProtocol},
}

// nextKeys moves to the next sending keys.
func (p *testPeer) nextKeys() *record.Keys {
	p.t.Helper()
	next, err := p.sendKeys.Next()
	if err != nil {
		p.t.Fatal(err)
	}
	p.sendKeys = next
	return next
}

// updateOwn moves the path's own and the control context to epoch 1.
func (p *testPeer) updateOwn() {
	p.t.Helper()
	next := p.nextKeys()
	p.writeFrames(wire.AppendKeyUpdate(nil, 1))
	p.own.SetKeys(next)
	p.writeControl(wire.AppendKeyUpdate(nil, 1))
	p.control.SetKeys(next)
}

func TestViolations(t *testing.T) {
	run := func(test violationTest, connect func(t *testing.T) *testPeer) {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := connect(t)
				go test.do(p) // a session that has ended may not read all of it
				p.wantClose(test.name, test.code)
			})
		})
	}
	for _, test := range clientViolations {
		run(test, func(t *testing.T) *testPeer { return newTestPeer(t, true, nil) })
	}
	for _, test := range serverViolations {
		run(test, func(t *testing.T) *testPeer { return newTestPeer(t, false, nil) })
	}
	for _, test := range earlyViolations {
		run(test, func(t *testing.T) *testPeer { return startTestPeer(t, true, nil) })
	}
}

// What breaks the rules of TLS itself is answered by an alert.
func TestTLSViolations(t *testing.T) {
	for _, test := range []struct {
		name      string
		do        func(p *testPeer)
		alert     byte
		authentic string // what can be read, if not "before"
	}{
		{name: "a forged record", do: func(p *testPeer) {
			rec := p.sealed(p.own, framed(nil), wire.TypeFrames)
			rec[len(rec)-1] ^= 1
			p.writeRaw(rec)
		}, alert: alertBadRecordMAC},
		{name: "a record twice", authentic: "beforex", do: func(p *testPeer) {
			rec := p.sealed(p.streams[1], []byte("x"), record.ApplicationData)
			p.writeRaw(append(rec, rec...))
		}, alert: alertBadRecordMAC},
		{name: "a record of a stream that isn't attached", do: func(p *testPeer) {
			p.writeRaw(p.sealed(record.NewContext(p.sendKeys, 1), []byte("x"), record.ApplicationData))
		}, alert: alertBadRecordMAC},
		{name: "a record without a tag", do: func(p *testPeer) { p.writeRaw([]byte{23, 3, 3, 0, 5, 1, 2, 3, 4, 5}) }, alert: alertBadRecordMAC},
		{name: "an empty record", do: func(p *testPeer) { p.writeRaw([]byte{23, 3, 3, 0, 0}) }, alert: alertBadRecordMAC},
		{name: "a record longer than TLS allows", do: func(p *testPeer) { p.writeRaw([]byte{23, 3, 3, 0x41, 1}) }, alert: alertRecordOverflow},
		{name: "a record in the clear", do: func(p *testPeer) { p.writeRaw([]byte{22, 3, 3, 0, 1, 0}) }, alert: alertUnexpectedMessage},
		{name: "ChangeCipherSpec after the handshake", do: func(p *testPeer) { p.writeRaw([]byte{20, 3, 3, 0, 1, 1}) }, alert: alertUnexpectedMessage},
		{name: "TLS's own KeyUpdate", do: func(p *testPeer) { p.write(p.own, []byte{24, 0, 0, 1, 0}, record.Handshake) }, alert: alertUnexpectedMessage},
		{name: "a ClientHello in the session", do: func(p *testPeer) { p.write(p.own, []byte{1, 0, 0, 1, 0}, record.Handshake) }, alert: alertUnexpectedMessage},
		{name: "an alert of one byte", do: func(p *testPeer) { p.write(p.own, []byte{1}, record.Alert) }, alert: byte(tls13.AlertDecodeError)},
		{name: "two alerts in a record", do: func(p *testPeer) { p.write(p.own, []byte{1, 90, 1, 90}, record.Alert) }, alert: byte(tls13.AlertDecodeError)},
		{name: "an alert of a bad level", do: func(p *testPeer) { p.write(p.own, []byte{3, 40}, record.Alert) }, alert: byte(tls13.AlertIllegalParameter)},
		{name: "an empty Alert record", do: func(p *testPeer) { p.write(p.own, nil, record.Alert) }, alert: alertUnexpectedMessage},
		{name: "an empty Handshake record", do: func(p *testPeer) { p.write(p.own, nil, record.Handshake) }, alert: alertUnexpectedMessage},
		{name: "a ticket to a server", do: func(p *testPeer) { p.write(p.own, []byte{4, 0, 0, 0}, record.Handshake) }, alert: alertUnexpectedMessage},
		{name: "EndOfEarlyData in the session", do: func(p *testPeer) { p.write(p.own, []byte{5, 0, 0, 0}, record.Handshake) }, alert: alertUnexpectedMessage},
		{name: "close_notify in the clear", do: func(p *testPeer) { p.writeRaw([]byte{21, 3, 3, 0, 2, 1, 0}) }, alert: alertUnexpectedMessage},
		{name: "an alert in the clear", do: func(p *testPeer) { p.writeRaw([]byte{21, 3, 3, 0, 2, 2, 40}) }, alert: alertUnexpectedMessage},
		{name: "an unknown inner type", do: func(p *testPeer) { p.write(p.streams[1], []byte("x"), 99) }, alert: alertUnexpectedMessage},
		{name: "ChangeCipherSpec inside a record", do: func(p *testPeer) { p.write(p.own, []byte{1}, record.ChangeCipherSpec) }, alert: alertUnexpectedMessage},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newTestPeer(t, true, nil)
				p.attach(1)
				p.writeStream(1, []byte("before"))
				st := p.accept()
				go test.do(p)
				p.wantAlert(test.name, levelFatal, test.alert)
				_ = p.conn.CloseWrite() // the session reads until then
				p.wantEnd(test.name)
				wantRead(t, "what was authentic", st, []byte(cmp.Or(test.authentic, "before")))
				_, err := st.Read(make([]byte, 1))
				var broken *protocolError
				if !errors.As(err, &broken) || broken.alert != test.alert {
					t.Errorf("Read behind it: %v", err)
				}
			})
		})
	}
}

// A record of nothing but padding has no type (RFC 8446, section 5.4).
func TestRecordWithoutType(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPeer(t, true, nil)
		p.write(p.own, make([]byte, 10), 0)
		p.wantAlert("a record of padding", levelFatal, alertUnexpectedMessage)
		_ = p.conn.CloseWrite() // the session reads until then
		p.wantEnd("a record of padding")
	})
}

func TestPeerAlert(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPeer(t, true, nil)
		p.write(p.own, []byte{levelWarning, byte(tls13.AlertUserCanceled)}, record.Alert)
		p.wantIdle("user_canceled says nothing by itself")
		p.write(p.own, []byte{levelFatal, 80}, record.Alert)
		<-p.sess.Context().Done()
		var alert *tls13.AlertError
		var failed *PathError
		err := context.Cause(p.sess.Context())
		if !errors.As(err, &alert) || alert.Alert != 80 || !errors.As(err, &failed) {
			t.Errorf("after a fatal alert: %v", err)
		}
	})
}

func TestPeerClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPeer(t, true, nil)
		p.attach(1)
		p.writeStream(1, []byte("last"))
		p.writeControl(wire.AppendClose(nil, wire.Application, 5, "bye"))
		for f := p.wantFrame("CLOSE is acknowledged", wire.Ack); f.Frame.Context != wire.Control || f.Seq != 2; {
			f = p.wantFrame("CLOSE is acknowledged", wire.Ack)
		}
		p.wantAlert("the answer to CLOSE", levelWarning, alertCloseNotify)
		p.write(p.own, []byte{levelWarning, alertCloseNotify}, record.Alert)
		p.wantEnd("the answer to CLOSE")
		st := p.accept()
		wantRead(t, "what came before CLOSE", st, []byte("last"))
		_, err := st.Read(make([]byte, 1))
		var e *SessionError
		if !errors.As(err, &e) || *e != (SessionError{Code: 5, Application: true, Remote: true, Reason: "bye"}) {
			t.Errorf("Read after CLOSE: %#v", err)
		}
		if err := p.sess.Close(); err != nil {
			t.Errorf("Close of a session that the peer has closed: %v", err)
		}
	})
}

// close_notify ends the path but not the session: nothing says that streams
// are complete.
func TestCloseNotifyWithoutClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPeer(t, true, nil)
		p.attach(1)
		p.writeStream(1, []byte("last"))
		p.write(p.own, []byte{levelWarning, alertCloseNotify}, record.Alert)
		st := p.accept()
		wantRead(t, "what came before close_notify", st, []byte("last"))
		_, err := st.Read(make([]byte, 1))
		var failed *PathError
		if !errors.As(err, &failed) || !strings.Contains(err.Error(), "not the session") {
			t.Errorf("Read after close_notify alone: %v", err)
		}
	})
}

func TestUnknownFramesAreSkipped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPeer(t, true, nil)
		unknown := []byte{0x40, 0x99, 3, 1, 2, 3}
		p.writeFrames(unknown, wire.AppendPing(nil, [8]byte{7}), unknown)
		if f := p.wantFrame("PING behind an unknown frame", wire.Pong); f.Data != [8]byte{7} {
			t.Errorf("PONG with %v", f.Data)
		}
		p.writeControl(unknown)
		p.attach(1)
		p.writeStream(1, []byte("data"), unknown, wire.AppendFin(nil))
		st := p.accept()
		wantRead(t, "a stream with an unknown frame", st, []byte("data"))
		wantEOF(t, "a stream with an unknown frame", st)
		p.wantIdle("unknown frames")
	})
}

// Of several pings, the last needs an answer (protocol 5.6), whatever their
// number: what is owed is state.
func TestPingsAreState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPeer(t, true, nil)
		p.writeFrames(wire.AppendPing(nil, [8]byte{1}), wire.AppendPing(nil, [8]byte{2}), wire.AppendPing(nil, [8]byte{3}))
		if f := p.wantFrame("three pings in one record", wire.Pong); f.Data != [8]byte{3} {
			t.Errorf("PONG with %v, want that of the last PING", f.Data)
		}
		p.wantIdle("an answer")
		if len(p.frames) != 0 {
			t.Errorf("more frames for three pings: %v", p.frames)
		}
	})
}

// What was said with a lower number or credit, or of a stream that is gone,
// changes nothing (protocol 5.2, 5.3).
func TestStaleFramesAreIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPeer(t, true, nil)
		p.attach(1)
		p.writeStream(1, []byte("x"), wire.AppendFin(nil))
		st := p.accept()
		wantRead(t, "the stream", st, []byte("x"))
		wantEOF(t, "the stream", st)
		mustWrite(t, st, []byte("answer"))
		if err := st.Close(); err != nil {
			t.Fatal(err)
		}
		p.wantFrame("the end of the answer", wire.Fin)
		if string(p.data[1]) != "answer" {
			t.Errorf("the answer was %q", p.data[1])
		}
		p.writeFrames(wire.AppendAck(nil, 1, 2, 1<<20))
		p.wantIdle("the stream has ended in both directions")
		if n := p.sess.Stats().Streams; n != 0 {
			t.Fatalf("%d streams are left", n)
		}
		p.writeFrames(
			wire.AppendAck(nil, 1, 99, 1<<30), wire.AppendAttach(nil, 1, 5, 5), wire.AppendNext(nil, 1),
			wire.AppendSessionCredit(nil, 1), wire.AppendStreamLimit(nil, 1), wire.AppendPong(nil, [8]byte{9}),
		)
		p.writeControl(wire.AppendReset(nil, 1, 0, 1<<30), wire.AppendStopSending(nil, 1, 0), wire.AppendKeyRequest(nil, 0))
		p.wantIdle("frames about the past")
	})
}

// Records of an attached context are found without NEXT, and in spite of a
// wrong one, however many streams there are (protocol 4.4).
func TestTrialDecryption(t *testing.T) {
	for _, n := range []uint32{1, 2, 50} {
		for _, hint := range []string{"none", "wrong", "unattached", "control"} {
			synctest.Test(t, func(t *testing.T) {
				p := newTestPeer(t, true, nil)
				streams := make([]*Stream, n)
				for i := range streams {
					p.attach(2*uint32(i) + 1)
					streams[i] = p.accept()
				}
				for round := range uint32(3) {
					for i, st := range streams {
						switch hint {
						case "wrong":
							p.writeFrames(wire.AppendNext(nil, 2*((uint32(i)+1)%n)+1))
						case "unattached":
							p.writeFrames(wire.AppendNext(nil, 2*n+1))
						case "control":
							p.writeFrames(wire.AppendNext(nil, wire.Control))
						}
						data := testBytes(uint64(round), 100+i)
						p.writeStream(st.ID(), data[:50])
						p.writeStream(st.ID(), data[50:])
						wantRead(t, "a record that nothing announced", st, data)
					}
				}
				p.wantIdle("records without announcement")
			})
		}
	}
}

// Padding is TLS's: zeros behind the type (protocol 4.1).
func TestPaddedRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPeer(t, true, nil)
		p.attach(1)
		st := p.accept()
		for _, size := range []int{0, 1, 100, record.MaxPlaintext - 1} {
			data := testBytes(1, size)
			padded := append(append(data[:len(data):len(data)], byte(record.ApplicationData)), make([]byte, record.MaxPlaintext-size-1)...)
			p.write(p.streams[1], padded, 0)
			wantRead(t, "a padded record", st, data)
		}
		p.wantIdle("padded records")
	})
}

func TestStreamsOfOtherSideSurviveOneReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPeer(t, true, nil)
		p.attach(1)
		p.writeStream(1, []byte("one"))
		p.attach(3)
		p.writeStream(3, []byte("three"))
		one, three := p.accept(), p.accept()
		p.writeControl(wire.AppendReset(nil, 1, 6, 100))
		synctest.Wait()
		_, err := one.Read(make([]byte, 10))
		wantStreamError(t, "the stream that was reset", err, 6, true)
		wantRead(t, "another stream", three, []byte("three"))
		p.wantIdle("a reset")
	})
}

package tcpls

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/internal/tls13"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// early connects a client that the test plays, with a ticket of w's client. It
// has sent its ClientHello, after a pause, and nothing behind it.
func (w *earlyWorld) early(t *testing.T, pause time.Duration) *testPeer {
	t.Helper()
	conn, err := w.inner.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(pause)
	tc := w.client.TLS.Clone()
	tc.ServerName = "localhost"
	p := &testPeer{
		t: t, conn: conn, client: true, next: wire.Control, tickets: true,
		streams: make(map[uint32]*record.Context), heard: make(map[uint32]*record.Context), data: make(map[uint32][]byte),
	}
	t.Cleanup(func() { _ = conn.Close() }) // often closed already
	p.engine, err = tls13.NewClient(&tls13.Config{
		TLS: tc, NetConn: conn, Extension: wire.ExtensionType, Offer: wire.AppendOffer(nil), MaxEarlyData: 1,
		Accept: func(answer []byte) (err error) {
			p.params, err = wire.ParseAnswer(answer)
			return err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if p.own = p.engine.EarlyContextSend(); p.own == nil {
		t.Fatal("the client has no ticket that allows early data")
	}
	p.sendKeys = p.own.Keys()
	p.control = record.NewContext(p.sendKeys, wire.Control)
	p.writeRaw(p.engine.Output())
	return p
}

// greeted hears the server's flight, and returns EndOfEarlyData and Finished.
func (p *testPeer) greeted() (end, finished []byte) {
	p.t.Helper()
	for !p.engine.HandshakeComplete() {
		p.fill()
		n, err := p.engine.Feed(p.raw)
		if err != nil {
			p.t.Fatalf("handshake of the test's peer: %v", err)
		}
		p.raw = p.raw[n:]
	}
	if !p.engine.EarlyDataAccepted() {
		p.t.Fatal("the server has refused the early data")
	}
	last := p.engine.Output()
	p.sendKeys, p.receiveKeys = p.engine.TakeKeys()
	for _, id := range []uint32{wire.FirstPath, wire.Control} {
		p.heard[id] = record.NewContext(p.receiveKeys, id)
	}
	n := record.HeaderLen + record.ParseHeader(last).Len
	return last[:n], last[n:]
}

// finish completes the handshake.
func (p *testPeer) finish() {
	p.t.Helper()
	end, finished := p.greeted()
	p.writeRaw(append(end, finished...))
	p.own = record.NewContext(p.sendKeys, wire.FirstPath)
	p.control.SetKeys(p.sendKeys)
	for _, ctx := range p.streams {
		ctx.SetKeys(p.sendKeys)
	}
}

func (p *testPeer) writeParameters() { p.writeControl(wire.AppendParameters(nil, generous)) }

// What a client may do wrong around its early data, and how the session ends:
// by an alert, or where it is set, by CLOSE with a code.
func TestEarlyDataViolations(t *testing.T) {
	handshake := func(b ...byte) func(p *testPeer) {
		return func(p *testPeer) {
			p.writeParameters()
			p.write(p.own, b, record.Handshake)
			p.greeted()
		}
	}
	for _, test := range []struct {
		name  string
		do    func(p *testPeer)
		alert tls13.Alert
		code  wire.SessionCode
	}{
		{name: "10.1 more than was allowed", alert: tls13.AlertUnexpectedMessage, do: func(p *testPeer) {
			p.writeParameters()
			p.attach(1)
			p.writeStream(1, make([]byte, 16<<10))
			p.writeStream(1, []byte("x"))
			p.greeted()
		}},
		{name: "10.1 more than was allowed, on many streams", alert: tls13.AlertUnexpectedMessage, do: func(p *testPeer) {
			p.writeParameters()
			for id := uint32(1); id < 40; id += 2 {
				p.attach(id)
				p.writeStream(id, make([]byte, 1<<10))
			}
			p.greeted()
		}},
		{name: "10.1 ATTACH before PARAMETERS", code: wire.CodeProtocol, do: func(p *testPeer) { p.attach(1); p.greeted() }},
		{name: "10.4 KEY_UPDATE", code: wire.CodeKeyUpdate, do: func(p *testPeer) {
			p.writeParameters()
			p.writeFrames(wire.AppendKeyUpdate(nil, 1))
			p.greeted()
		}},
		{name: "10.4 ATTACH in the next epoch", code: wire.CodeKeyUpdate, do: func(p *testPeer) {
			p.writeParameters()
			p.writeFrames(wire.AppendAttach(nil, 1, 0, 1))
			p.greeted()
		}},
		{name: "6.3 a flood of empty records", code: wire.CodeLimit, do: func(p *testPeer) {
			p.writeParameters()
			p.attach(1)
			for range 2 * budgetMax {
				p.writeStream(1, nil)
			}
			p.greeted()
		}},
		{name: "TLS's own KeyUpdate", alert: tls13.AlertUnexpectedMessage, do: handshake(24, 0, 0, 1, 0)},
		{name: "a ClientHello", alert: tls13.AlertUnexpectedMessage, do: handshake(1, 0, 0, 0)},
		{name: "Finished in place of EndOfEarlyData", alert: tls13.AlertUnexpectedMessage, do: handshake(append([]byte{20, 0, 0, 32}, make([]byte, 32)...)...)},
		{name: "EndOfEarlyData with a body", alert: tls13.AlertDecodeError, do: handshake(5, 0, 0, 1, 0)},
		{name: "EndOfEarlyData of 16 MiB announced", alert: tls13.AlertIllegalParameter, do: handshake(5, 0xff, 0xff, 0xff)},
		{name: "a message behind EndOfEarlyData in its record", alert: tls13.AlertUnexpectedMessage, do: handshake(5, 0, 0, 0, 20)},
		{name: "an empty Handshake record", alert: tls13.AlertUnexpectedMessage, do: handshake()},
		{name: "a record within EndOfEarlyData", alert: tls13.AlertUnexpectedMessage, do: func(p *testPeer) {
			p.writeParameters()
			p.write(p.own, []byte{5, 0}, record.Handshake)
			p.writeFrames()
			p.greeted()
		}},
		{name: "EndOfEarlyData in the control context", code: wire.CodeProtocol, do: func(p *testPeer) {
			p.writeParameters()
			p.write(p.control, []byte{5, 0, 0, 0}, record.Handshake)
			p.greeted()
		}},
		{name: "EndOfEarlyData in a stream", code: wire.CodeProtocol, do: func(p *testPeer) {
			p.writeParameters()
			p.write(p.attach(1), []byte{5, 0, 0, 0}, record.Handshake)
			p.greeted()
		}},
		{name: "no EndOfEarlyData", alert: tls13.AlertBadRecordMAC, do: func(p *testPeer) {
			p.writeParameters()
			_, finished := p.greeted()
			p.writeRaw(finished)
		}},
		{name: "EndOfEarlyData twice", alert: tls13.AlertBadRecordMAC, do: func(p *testPeer) {
			p.writeParameters()
			end, finished := p.greeted()
			p.writeRaw(bytes.Join([][]byte{end, end, finished}, nil))
		}},
		{name: "early data behind EndOfEarlyData", alert: tls13.AlertBadRecordMAC, do: func(p *testPeer) {
			p.writeParameters()
			ctx := p.attach(1)
			end, finished := p.greeted()
			p.writeRaw(bytes.Join([][]byte{end, p.sealed(ctx, []byte("late"), record.ApplicationData), finished}, nil))
		}},
		{name: "a damaged Finished", alert: tls13.AlertBadRecordMAC, do: func(p *testPeer) {
			p.writeParameters()
			end, finished := p.greeted()
			finished[len(finished)-1] ^= 1
			p.writeRaw(append(end, finished...))
		}},
		{name: "a damaged record", alert: tls13.AlertBadRecordMAC, do: func(p *testPeer) {
			rec := p.sealed(p.control, framed(nil, wire.AppendParameters(nil, generous)), wire.TypeFrames)
			rec[len(rec)-1] ^= 1
			p.writeRaw(rec)
			p.greeted()
		}},
		{name: "a record twice", alert: tls13.AlertBadRecordMAC, do: func(p *testPeer) {
			p.writeParameters()
			rec := p.sealed(p.attach(1), []byte("x"), record.ApplicationData)
			p.writeRaw(append(rec, rec...))
			p.greeted()
		}},
		{name: "a record in the clear", alert: tls13.AlertUnexpectedMessage, do: func(p *testPeer) {
			p.writeParameters()
			p.writeRaw([]byte{22, 3, 3, 0, 4, 5, 0, 0, 0})
			p.greeted()
		}},
		{name: "ChangeCipherSpec of two bytes", alert: tls13.AlertUnexpectedMessage, do: func(p *testPeer) {
			p.writeRaw([]byte{20, 3, 3, 0, 2, 1, 1})
			p.greeted()
		}},
		{name: "ChangeCipherSpecs without end", alert: tls13.AlertUnexpectedMessage, do: func(p *testPeer) {
			p.writeRaw(bytes.Repeat([]byte{20, 3, 3, 0, 1, 1}, 100))
			p.greeted()
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newEarlyWorld(t, nil)
				w.visit(t)
				p := w.early(t, 0)
				test.do(p)
				p.sess = w.accept(t)
				defer closeSilent(t, p)
				if test.alert == 0 {
					p.wantClose(test.name, test.code)
					return
				}
				p.wantAlert(test.name, levelFatal, byte(test.alert))
				_ = p.conn.CloseWrite() // the session reads until then
				p.wantEnd(test.name)
				err := context.Cause(p.sess.Context())
				var engine *tls13.Error
				var session *protocolError
				if !(errors.As(err, &engine) && engine.Alert == test.alert || errors.As(err, &session) && session.alert == byte(test.alert)) {
					t.Errorf("the session's cause is %v", err)
				}
			})
		})
	}
}

// The test's client does nothing wrong of its own.
func TestEarlyDataOfPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newEarlyWorld(t, nil)
		w.visit(t)
		p := w.early(t, 0)
		p.writeParameters()
		p.attach(1)
		p.writeStream(1, make([]byte, 16<<10))
		p.finish()
		p.writeStream(1, []byte("more"), wire.AppendFin(nil))
		p.sess = w.accept(t)
		st := p.accept()
		wantRead(t, "the stream", st, append(make([]byte, 16<<10), "more"...))
		wantEOF(t, "the stream", st)
		p.wantIdle("early data")
		closeSilent(t, p)
	})
}

// closeSilent ends a session whose peer has gone.
func closeSilent(t *testing.T, p *testPeer) {
	t.Helper()
	_ = p.conn.Close()
	_ = p.sess.Close() // the test has judged it
}

// A client that never finishes the handshake of its early data is given up
// when it should have, however slowly it began and whatever it goes on to send.
func TestEarlyDataWithoutFinished(t *testing.T) {
	for _, test := range []struct{ slow, busy bool }{{false, false}, {false, true}, {true, false}, {true, true}} {
		synctest.Test(t, func(t *testing.T) {
			w := newEarlyWorld(t, nil)
			w.visit(t)
			limit := w.listener.cfg.HandshakeTimeout
			began := time.Now()
			pause := time.Duration(0)
			if test.slow {
				pause = limit * 9 / 10
			}
			p := w.early(t, pause)
			p.writeParameters()
			p.attach(1)
			p.sess = w.accept(t)
			var talk sync.WaitGroup
			talk.Go(func() {
				for test.busy && p.sess.Context().Err() == nil {
					p.writeStream(1, []byte("x"))
					time.Sleep(limit / 100)
				}
			})
			_, err := io.Copy(io.Discard, p.accept())
			if !errors.Is(err, ErrHandshakeTimeout) || !errors.Is(p.sess.Handshake(t.Context()), ErrHandshakeTimeout) {
				t.Errorf("%+v: the stream has ended by %v", test, err)
			}
			if took := time.Since(began); took < limit || took > limit+3*wideLink.Delay {
				t.Errorf("%+v: the client was given up after %v", test, took)
			}
			talk.Wait()
			closeSilent(t, p)
		})
	}
}

// Early data that is sent again, byte for byte, reaches no application: not by
// the same listener, and not by another one that shares its ticket keys.
func TestEarlyDataReplayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newEarlyWorld(t, nil)
		w.visit(t)
		p := w.early(t, 0)
		p.writeParameters()
		p.attach(1)
		p.writeStream(1, []byte("pay"), wire.AppendFin(nil))
		p.finish()
		p.sess = w.accept(t)
		wantRead(t, "the request", p.accept(), []byte("pay"))

		other := newEarlyWorld(t, nil)
		other.listener.cfg.TLS = w.listener.cfg.TLS
		for _, to := range []*earlyWorld{w, w, other} {
			conn, err := to.inner.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write(p.said); err != nil {
				t.Fatal(err)
			}
			if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			if s, err := to.listener.Accept(ctx); ctx.Err() == nil {
				t.Errorf("a replay has opened a session: %v, %v", s, err)
			}
			cancel()
			_ = conn.Close()
		}
		closeSilent(t, p)
	})
}

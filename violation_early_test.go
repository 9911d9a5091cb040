package tcpls

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
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

// meet makes the dialer's connections lead to a server that the test plays.
// wait waits for the ends of all that it served.
func (w *earlyWorld) meet(server func(conn *memnet.Conn)) (wait func()) {
	var all sync.WaitGroup
	w.dialer.DialContext = func(context.Context, string, string) (net.Conn, error) {
		near, far := memnet.Pipe(wideLink)
		all.Go(func() {
			server(near)
			_ = near.Close() // often closed already
		})
		return far, nil
	}
	return all.Wait
}

// playServer runs an engine as server until it or the connection fails. It
// passes over early data.
func playServer(conn *memnet.Conn, tc *tls13.Config) {
	e, err := tls13.NewServer(tc)
	var raw []byte
	buf := make([]byte, 32<<10)
	for err == nil {
		var n int
		if n, err = conn.Read(buf); n == 0 {
			return
		}
		raw = append(raw, buf[:n]...)
		for n > 0 && err == nil {
			if n = 0; !e.EarlyData() {
				n, err = e.Feed(raw)
			} else if len(raw) >= record.HeaderLen {
				n = min(record.HeaderLen+record.ParseHeader(raw).Len, len(raw))
			}
			raw = raw[n:]
		}
		_, _ = conn.Write(e.Output()) // Read tells if it fails
	}
}

// A server that isn't any more what it was when it gave the ticket ends the
// session, and is met as what it is by the next one.
func TestEarlyDataElsewhere(t *testing.T) {
	played := func(change func(tc *tls13.Config)) func(w *earlyWorld) func(conn *memnet.Conn) {
		return func(w *earlyWorld) func(conn *memnet.Conn) {
			tc := &tls13.Config{TLS: w.listener.cfg.TLS, Extension: wire.ExtensionType}
			tc.Answer = func([]byte) ([]byte, error) { return wire.AppendAnswer(nil, w.listener.cfg.parameters()), nil }
			w.listener.cfg.serverEarly(context.Background(), tc)
			change(tc)
			return func(conn *memnet.Conn) { playServer(conn, tc) }
		}
	}
	cryptoTLS := func(version uint16) func(w *earlyWorld) func(conn *memnet.Conn) {
		return func(w *earlyWorld) func(conn *memnet.Conn) {
			cfg := w.listener.cfg.TLS.Clone()
			cfg.MaxVersion = version
			return func(conn *memnet.Conn) {
				tc := tls.Server(conn, cfg)
				_, _ = io.Copy(tc, tc) // until the client leaves
				_ = tc.Close()
			}
		}
	}
	for _, test := range []struct {
		name   string
		server func(w *earlyWorld) func(conn *memnet.Conn)
		want   func(err error) bool
		again  string // what the next session is, if not an ordinary one
	}{
		{"crypto/tls", cryptoTLS(tls.VersionTLS13), func(err error) bool { // it refuses all early data so
			e, ok := errors.AsType[*tls13.AlertError](err)
			return ok && e.Alert == tls13.AlertUnsupportedExtension
		}, "server doesn't answer the offer of TCPLS"},
		{"TLS 1.2", cryptoTLS(tls.VersionTLS12), isOld, "server doesn't speak TLS 1.3"},
		{"10.1 no TCPLS, early data accepted", played(func(tc *tls13.Config) { tc.Extension, tc.Answer = 0, nil }),
			func(err error) bool { return errors.Is(err, ErrNotTCPLS) }, "server doesn't answer the offer of TCPLS"},
		{"10.4 other parameters, early data accepted", played(func(tc *tls13.Config) {
			tc.Answer = func([]byte) ([]byte, error) { return wire.AppendAnswer(nil, generous), nil }
		}), func(err error) bool {
			e, ok := errors.AsType[*tls13.Error](err)
			return ok && e.Alert == tls13.AlertIllegalParameter
		}, ""},
		{"less than was sent, early data refused", played(func(tc *tls13.Config) {
			tc.MaxEarlyData = 0
			tc.Answer = func([]byte) ([]byte, error) {
				return wire.AppendAnswer(nil, &wire.Parameters{StreamCredit: 999, SessionCredit: 1 << 20, StreamLimit: 9}), nil
			}
		}), isRefusal, ""},
		{"fewer streams than were opened, early data refused", played(func(tc *tls13.Config) {
			tc.MaxEarlyData = 0
			tc.Answer = func([]byte) ([]byte, error) {
				return wire.AppendAnswer(nil, &wire.Parameters{StreamCredit: 1 << 20, SessionCredit: 1 << 20}), nil
			}
		}), isRefusal, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newEarlyWorld(t, nil)
				w.visit(t)
				defer w.meet(test.server(w))()
				c := w.dial(t)
				st, err := c.OpenStream(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				mustWrite(t, st, testBytes(1, 1000))
				if _, err := st.Read(make([]byte, 1)); !test.want(err) {
					t.Errorf("Read: %v", err)
				}
				if err := c.Handshake(t.Context()); !test.want(err) {
					t.Errorf("Handshake: %v", err)
				}
				_ = c.Close() // it has ended already

				c = w.dial(t)
				if state := c.ConnectionState(); c.EarlyData() != EarlyDataNone || state.Fallback != test.again || state.TCPLS != (test.again == "") {
					t.Errorf("the next session is %+v, with early data %v", state, c.EarlyData())
				}
				_ = c.CloseWithError(0, "the server is no real one")
			})
		})
	}
}

// isRefusal recognises the error of early data that can't be sent again.
func isRefusal(err error) bool { return errors.Is(err, errShrunk) }

// A connection that ends in the handshake ends the session.
func TestEarlyDataToNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newEarlyWorld(t, nil)
		w.visit(t)
		defer w.meet(func(conn *memnet.Conn) { _, _ = conn.Read(make([]byte, 1<<10)) })()
		c := w.dial(t)
		began := time.Now()
		if err := c.Handshake(t.Context()); !errors.Is(err, ErrTruncated) || time.Since(began) > time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		if again, err := w.dialer.Dial(t.Context(), "tcp", "localhost:443"); err == nil {
			t.Errorf("the next Dial doesn't wait for the server: %v", again.EarlyData())
		}
		_ = c.Close() // it has ended already
	})
}

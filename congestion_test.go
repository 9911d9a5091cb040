package tcpls

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/wire"
)

// A testCCHost says what it is told to, and "loads" what the kernel has.
type testCCHost struct {
	max                    int
	refusal, failure       error
	takes                  time.Duration // to load it
	name                   string
	checked, loads, closed atomic.Int32
	object                 atomic.Pointer[[]byte]
}

func (h *testCCHost) MaxSize() int { return h.max }

func (h *testCCHost) Check(o CCOffer) error {
	h.checked.Add(1)
	if o.Object != nil {
		return errors.New("there is an object before it was asked for")
	}
	return h.refusal
}

func (h *testCCHost) Load(o CCOffer) (CCProgram, error) {
	h.loads.Add(1)
	h.object.Store(&o.Object)
	time.Sleep(h.takes)
	if h.failure != nil {
		return nil, h.failure
	}
	return testCCProgram{h}, nil
}

type testCCProgram struct{ host *testCCHost }

func (p testCCProgram) Name() string { return p.host.name }

func (p testCCProgram) Close() error {
	p.host.closed.Add(1)
	return nil
}

// takeCC makes a Config take congestion controls from anybody.
func takeCC(h CCHost) func(*Config) {
	return func(c *Config) { c.CCHost, c.AcceptCC = h, func(*Session, CCOffer) error { return nil } }
}

// offerOf is the offer of an object.
func offerOf(id uint64, object []byte) []byte {
	hash := sha256.Sum256(object)
	return wire.AppendOfferCC(nil, &wire.Program{ID: id, Size: uint64(len(object)), Kernel: 0x0604, Hash: hash[:], Name: []byte("test")})
}

// wantAnswerCC checks the next CC_ANSWER.
func (p *testPeer) wantAnswerCC(why string, id uint64, state wire.ProgramState, code wire.ProgramCode) string {
	p.t.Helper()
	f := p.wantFrame(why, wire.AnswerCC)
	if f.Program.ID != id || f.Program.State != state || f.Code != uint64(code) {
		p.t.Errorf("%s: offer %d is %v, %v (%q); want %d, %v, %v", why, f.Program.ID, f.Program.State,
			wire.ProgramCode(f.Code), f.Reason, id, state, code)
	}
	return string(f.Reason)
}

// TestCCRefused goes through the reasons for which an offer is refused, after
// each of which the session goes on.
func TestCCRefused(t *testing.T) {
	object := testBytes(1, 3000)
	secret := errors.New("open /etc/secret: no such file")
	for _, test := range []struct {
		name   string
		change func(*Config)
		sent   []byte // nil: refused before it is asked for
		code   wire.ProgramCode
		reason string
	}{
		{"none is taken", nil, nil, wire.ProgramNotAllowed, "none"},
		{"no certificate", func(c *Config) { c.CCHost = &testCCHost{max: 1 << 16} }, nil, wire.ProgramNotAllowed, "certificate"},
		{"not by the application", func(c *Config) {
			c.CCHost = &testCCHost{max: 1 << 16}
			c.AcceptCC = func(s *Session, o CCOffer) error {
				if s == nil || o.Size != len(object) || o.Name != "test" || o.Hash != sha256.Sum256(object) || o.MinKernel != [2]int{6, 4} {
					t.Errorf("the application is asked for %+v", o)
				}
				return errors.New("not on Sundays")
			}
		}, nil, wire.ProgramNotAllowed, "not on Sundays"},
		{"too large", takeCC(&testCCHost{max: len(object) - 1}), nil, wire.ProgramTooLarge, "2999"},
		{"not by the host", takeCC(&testCCHost{max: 1 << 16, refusal: &CCError{Code: CCTooMany, Reason: "4 are loaded"}}), nil, wire.ProgramTooMany, "4 are loaded"},
		{"for a private reason", takeCC(&testCCHost{max: 1 << 16, refusal: secret}), nil, wire.ProgramUnsupported, "it can't be loaded here"},
		{"other bytes", takeCC(&testCCHost{max: 1 << 16}), testBytes(2, 3000), wire.ProgramHash, "SHA-256"},
		{"no program", takeCC(&testCCHost{max: 1 << 16, failure: &CCError{Code: CCForm, Reason: "not ELF"}}), object, wire.ProgramForm, "not ELF"},
		{"no socket", takeCC(&testCCHost{max: 1 << 16}), object, wire.ProgramUnsupported, "isn't a TCP connection"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newTestPeer(t, true, test.change)
				p.writeControl(offerOf(1, object))
				if test.sent != nil {
					p.wantAnswerCC("an offer", 1, wire.ProgramWanted, wire.ProgramNone)
					for at := 0; at < len(test.sent); at += 1000 {
						p.writeControl(wire.AppendDataCC(nil, 1, uint64(at), test.sent[at:at+1000]))
					}
				}
				if reason := p.wantAnswerCC(test.name, 1, wire.ProgramRefused, test.code); !strings.Contains(reason, test.reason) || strings.Contains(reason, "secret") {
					t.Errorf("the reason is %q", reason)
				}
				p.writeControl(wire.AppendDataCC(nil, 1, 0, object[:10]), wire.AppendWithdrawCC(nil, 1)) // crossing the answer
				p.wantIdle("what was on its way when the offer was refused")
				if h, ok := p.sess.cfg.CCHost.(*testCCHost); ok && h.failure == nil && h.closed.Load() != h.loads.Load() {
					t.Errorf("%d were loaded and %d unloaded", h.loads.Load(), h.closed.Load())
				}
			})
		})
	}
}

// Whatever the number of offers, few are looked at, and the session goes on.
func TestCCFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &testCCHost{max: 1 << 16}
		p := newTestPeer(t, true, takeCC(h))
		const flood = 4000
		for id := uint64(1); id <= flood; id++ {
			p.writeControl(offerOf(id, []byte("x")))
			if id <= 10 { // slowly at first
				p.wantAnswerCC("one of the first", id, wire.ProgramWanted, wire.ProgramNone)
			}
		}
		for {
			if f := p.wantFrame("the last offer", wire.AnswerCC); f.Program.ID == flood {
				if f.Program.State != wire.ProgramRefused || f.Code != uint64(wire.ProgramTooMany) {
					t.Errorf("offer %d is %v, %v", flood, f.Program.State, wire.ProgramCode(f.Code))
				}
				break
			}
		}
		p.wantIdle("a flood of offers")
		if n := h.checked.Load(); n < 10 || n > maxCCOffers {
			t.Errorf("%d offers were looked at, want at most %d", n, maxCCOffers)
		}
		if h.loads.Load() != 0 {
			t.Error("something was loaded")
		}
	})
}

// Objects that take the kernel long are loaded for some seconds, and no more.
func TestCCSlowToLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &testCCHost{max: 1 << 16, takes: maxCCLoading/2 + 1, failure: &CCError{Code: CCVerifier, Reason: "too complex"}}
		p := newTestPeer(t, true, takeCC(h))
		for id := uint64(1); id <= 2; id++ {
			p.writeControl(offerOf(id, []byte("x")))
			p.wantAnswerCC("an offer", id, wire.ProgramWanted, wire.ProgramNone)
			p.writeControl(wire.AppendDataCC(nil, id, 0, []byte("x")))
			time.Sleep(h.takes)
			p.wantAnswerCC("an offer that takes long", id, wire.ProgramRefused, wire.ProgramVerifier)
		}
		p.writeControl(offerOf(3, []byte("x")))
		if reason := p.wantAnswerCC("one more", 3, wire.ProgramRefused, wire.ProgramTooMany); !strings.Contains(reason, "took 5s") {
			t.Errorf("the reason is %q", reason)
		}
		p.wantIdle("offers that take long")
	})
}

// A new offer withdraws the one before it, and so does CC_WITHDRAW, which is
// confirmed.
func TestCCWithdrawn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPeer(t, true, takeCC(&testCCHost{max: 1 << 16}))
		p.writeControl(offerOf(1, []byte("abc")))
		p.wantAnswerCC("an offer", 1, wire.ProgramWanted, wire.ProgramNone)
		p.writeControl(offerOf(7, []byte("def")), wire.AppendDataCC(nil, 1, 0, []byte("abc")))
		p.wantAnswerCC("an offer behind it", 7, wire.ProgramWanted, wire.ProgramNone)
		p.writeControl(wire.AppendWithdrawCC(nil, 1), wire.AppendWithdrawCC(nil, 7))
		p.wantAnswerCC("its withdrawal", 7, wire.ProgramEnded, wire.ProgramNone)
		p.writeControl(wire.AppendWithdrawCC(nil, 7))
		p.wantIdle("a withdrawal that crosses the end")
	})
}

// newOfferer returns a server's session that may offer a congestion control of up to
// 64 KiB, and its peer.
func newOfferer(t *testing.T) *testPeer {
	p := startTestPeer(t, true, nil)
	params := *generous
	params.ProgramSize = wire.MaxProgram
	p.writeControl(wire.AppendParameters(nil, &params))
	return p
}

// ackControl acknowledges all control records that have come.
func (p *testPeer) ackControl() {
	p.writeFrames(wire.AppendAck(nil, wire.Control, p.heard[wire.Control].Seq(), 0))
}

// An object is sent when it is wanted, and no faster than it is acknowledged.
func TestCCObjectIsPaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newOfferer(t)
		object := testBytes(1, wire.MaxProgram)
		offered := begun(func() error {
			return p.sess.OfferCC(context.Background(), CCOffer{Name: "large", Object: object, MinKernel: [2]int{6, 10}})
		})
		f := p.wantFrame("the offer", wire.OfferCC)
		if hash := sha256.Sum256(object); f.Program.Size != wire.MaxProgram || f.Program.Kernel != 0x060a {
			t.Errorf("the offer is %+v, want the hash %x", f.Program, hash)
		}
		p.wantIdle("nobody wants the object yet")
		p.writeControl(wire.AppendAnswerCC(nil, 1, wire.ProgramWanted, 0, ""))
		var got []byte
		for len(got) < len(object) {
			p.ackControl()
			p.wantIdle("the object on its way")
			n := 0
			for _, f := range p.frames {
				if f.Kind == wire.DataCC {
					if f.Program.Offset != uint64(len(got)) {
						t.Fatalf("bytes at %d behind %d", f.Program.Offset, len(got))
					}
					n += len(f.Program.Data)
					got = append(got, object[len(got):len(got)+len(f.Program.Data)]...)
				}
			}
			p.frames = nil
			if n == 0 || n > ccWindow+ccPiece {
				t.Fatalf("%d bytes came without an acknowledgement, want at most %d", n, ccWindow+ccPiece)
			}
		}
		wantBlocked(t, "before the answer", offered)
		p.writeControl(wire.AppendAnswerCC(nil, 1, wire.ProgramLoaded, 0, ""))
		if err := <-offered; err != nil {
			t.Fatal(err)
		}
		events := make(chan Event, 1)
		go func() {
			for e := range p.sess.Events(context.Background()) {
				events <- e
			}
		}()
		synctest.Wait()
		p.writeControl(wire.AppendAnswerCC(nil, 1, wire.ProgramEnded, wire.ProgramStalled, "cwnd 0"))
		if e := <-events; e.Kind != EventCCEnded || !errors.Is(e.Err, &CCError{Code: CCStalled}) || !strings.Contains(e.Err.Error(), `"cwnd 0"`) {
			t.Errorf("event %v, %v", e.Kind, e.Err)
		}
		if err := p.sess.WithdrawCC(context.Background()); err != nil {
			t.Errorf("withdrawing what has ended: %v", err)
		}
	})
}

// What a call to OfferCC returns, by what the peer does.
func TestOfferCC(t *testing.T) {
	object := []byte("object")
	for _, test := range []struct {
		name string
		do   func(p *testPeer, cancel context.CancelFunc)
		want error
	}{
		{"refused", func(p *testPeer, _ context.CancelFunc) {
			p.writeControl(wire.AppendAnswerCC(nil, 1, wire.ProgramRefused, wire.ProgramVerifier, "R1"))
		}, &CCError{Code: CCVerifier}},
		{"refused once it was sent", func(p *testPeer, _ context.CancelFunc) {
			p.writeControl(wire.AppendAnswerCC(nil, 1, wire.ProgramWanted, 0, ""))
			if f := p.wantFrame("the object", wire.DataCC); !bytes.Equal(f.Program.Data, object) {
				t.Errorf("the object is %q", f.Program.Data)
			}
			p.writeControl(wire.AppendAnswerCC(nil, 1, wire.ProgramRefused, 77, "something new"))
		}, &CCError{Code: 77}},
		{"the call is over", func(p *testPeer, cancel context.CancelFunc) {
			cancel()
			p.wantFrame("the withdrawal", wire.WithdrawCC)
			p.writeControl(wire.AppendAnswerCC(nil, 1, wire.ProgramWanted, 0, "")) // crossing it
			p.writeControl(wire.AppendAnswerCC(nil, 1, wire.ProgramEnded, 0, ""))
		}, context.Canceled},
		{"the session ends", func(p *testPeer, _ context.CancelFunc) {
			p.writeControl(wire.AppendClose(nil, wire.Application, 5, ""))
		}, &SessionError{Code: 5, Application: true}},
		{"another offer", func(p *testPeer, _ context.CancelFunc) {
			ctx, cancel := context.WithCancel(context.Background())
			second := begun(func() error { return p.sess.OfferCC(ctx, CCOffer{Name: "b", Object: []byte("b")}) })
			if f := p.wantFrame("the second", wire.OfferCC); f.Program.ID != 2 {
				t.Errorf("it has number %d", f.Program.ID)
			}
			p.writeControl(wire.AppendAnswerCC(nil, 1, wire.ProgramLoaded, 0, "")) // nobody cares
			cancel()
			wantErrorIs(t, "the second", <-second, context.Canceled)
		}, ErrCCReplaced},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newOfferer(t)
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				done := begun(func() error { return p.sess.OfferCC(ctx, CCOffer{Name: "a", Object: object}) })
				p.wantFrame("the offer", wire.OfferCC)
				test.do(p, cancel)
				wantErrorIs(t, test.name, <-done, test.want)
			})
		})
	}
}

// What is wrong with an offer is told before anything is sent.
func TestOfferCCIsChecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPeer(t, true, nil)
		wantErrorIs(t, "a peer that takes none", p.sess.OfferCC(t.Context(), CCOffer{Name: "a", Object: []byte("x")}), ErrNoCC)
		for field, o := range map[string]CCOffer{
			"Name":      {Name: "no spaces", Object: []byte("x")},
			"Object":    {Name: "a", Object: make([]byte, wire.MaxProgram+1)},
			"MinKernel": {Name: "a", Object: []byte("x"), MinKernel: [2]int{6, 256}},
		} {
			if err := p.sess.OfferCC(t.Context(), o); err == nil || !strings.Contains(err.Error(), field) {
				t.Errorf("a bad %s: %v", field, err)
			}
		}
		if err := p.sess.WithdrawCC(t.Context()); err != nil {
			t.Errorf("withdrawing nothing: %v", err)
		}
		p.wantIdle("nothing was said")
	})
	synctest.Test(t, func(t *testing.T) {
		p := startTestPeer(t, true, nil)
		params := *generous
		params.ProgramSize = 10
		go p.writeControl(wire.AppendParameters(nil, &params)) // the call waits for them
		wantErrorIs(t, "a large one", p.sess.OfferCC(t.Context(), CCOffer{Name: "a", Object: make([]byte, 11)}), &CCError{Code: CCTooLarge})
	})
}

// ccViolations are those of a peer that takes or offers a congestion control.
var ccViolations = []violationTest{
	{"5.22 CC_OFFER by a number that was used", func(p *testPeer) { p.writeControl(offerOf(2, []byte("x")), offerOf(2, []byte("x"))) }, wire.CodeProtocol},
	{"12.2 CC_DATA without an offer", func(p *testPeer) { p.writeControl(wire.AppendDataCC(nil, 1, 0, []byte("x"))) }, wire.CodeProtocol},
	{"12.2 CC_DATA before it is wanted", func(p *testPeer) {
		p.writeControl(offerOf(1, []byte("x")), wire.AppendDataCC(nil, 1, 0, []byte("x")))
	}, wire.CodeProtocol},
	{"12.2 CC_DATA with a gap", func(p *testPeer) {
		p.writeControl(offerOf(1, []byte("xy")))
		p.wantAnswerCC("the offer", 1, wire.ProgramWanted, 0)
		p.writeControl(wire.AppendDataCC(nil, 1, 1, []byte("y")))
	}, wire.CodeProtocol},
	{"12.2 CC_DATA beyond the size", func(p *testPeer) {
		p.writeControl(offerOf(1, []byte("xy")))
		p.wantAnswerCC("the offer", 1, wire.ProgramWanted, 0)
		p.writeControl(wire.AppendDataCC(nil, 1, 0, []byte("xyz")))
	}, wire.CodeProtocol},
	{"12.5 CC_WITHDRAW of nothing", func(p *testPeer) { p.writeControl(wire.AppendWithdrawCC(nil, 1)) }, wire.CodeProtocol},
	{"12.5 CC_ANSWER to nothing", func(p *testPeer) {
		p.writeControl(wire.AppendAnswerCC(nil, 1, wire.ProgramRefused, 1, ""))
	}, wire.CodeProtocol},
	{"12.5 loaded before it was sent", func(p *testPeer) {
		go p.sess.OfferCC(context.Background(), CCOffer{Name: "a", Object: []byte("x")})
		p.wantFrame("the offer", wire.OfferCC)
		p.writeControl(wire.AppendAnswerCC(nil, 1, wire.ProgramLoaded, 0, ""))
	}, wire.CodeProtocol},
	{"12.5 wanted twice", func(p *testPeer) {
		go p.sess.OfferCC(context.Background(), CCOffer{Name: "a", Object: []byte("x")})
		p.wantFrame("the offer", wire.OfferCC)
		p.writeControl(wire.AppendAnswerCC(nil, 1, wire.ProgramWanted, 0, ""), wire.AppendAnswerCC(nil, 1, wire.ProgramWanted, 0, ""))
	}, wire.CodeProtocol},
	{"12.5 refused twice", func(p *testPeer) {
		go p.sess.OfferCC(context.Background(), CCOffer{Name: "a", Object: []byte("x")})
		p.wantFrame("the offer", wire.OfferCC)
		p.writeControl(wire.AppendAnswerCC(nil, 1, wire.ProgramRefused, 0, ""), wire.AppendAnswerCC(nil, 1, wire.ProgramRefused, 0, ""))
	}, wire.CodeProtocol},
}

func TestCCViolations(t *testing.T) {
	for _, test := range ccViolations {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := startTestPeer(t, true, takeCC(&testCCHost{max: 1 << 16}))
				params := *generous
				params.ProgramSize = wire.MaxProgram
				p.writeControl(wire.AppendParameters(nil, &params))
				test.do(p)
				p.wantClose(test.name, test.code)
			})
		})
	}
}

// A session that waits for an object that never comes ends as any other.
func TestCCHostEndsWithSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPeer(t, true, takeCC(&testCCHost{max: 1 << 16}))
		p.writeControl(offerOf(1, []byte("abc")))
		p.wantAnswerCC("an offer", 1, wire.ProgramWanted, wire.ProgramNone)
		_ = p.conn.Close()
		<-p.sess.Context().Done()
		closed := begun(p.sess.Close)
		time.Sleep(time.Minute)
		select {
		case <-closed:
		default:
			t.Error("Close doesn't return")
		}
	})
}

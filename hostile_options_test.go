package tcpls

import (
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/wire"
)

// writeOption asks for an option.
func (p *testPeer) writeOption(number uint64, path uint32, kind uint64, value ...byte) {
	p.t.Helper()
	r := &wire.OptionRequest{Number: number, Path: path, TCPOption: wire.TCPOption{Kind: kind, Value: value}}
	p.write(p.control, wire.AppendOptionRequest(nil, r), wire.TypeOption)
}

// What breaks the rules for TCP options closes the session by a code.
func TestOptionViolations(t *testing.T) {
	for _, test := range []violationTest{
		{"11.2 a TCP option of no bytes", func(p *testPeer) { p.write(p.control, nil, wire.TypeOption) }, wire.CodeFrame},
		{"11.2 a TCP option without a kind", func(p *testPeer) { p.write(p.control, []byte{1, 0}, wire.TypeOption) }, wire.CodeFrame},
		{"11.2 a TCP option for path 65537", func(p *testPeer) { p.writeOption(1, wire.AllPaths+1, 28, 0, 30) }, wire.CodeFrame},
		{"11.2 a TCP option that is too long", func(p *testPeer) { p.writeOption(1, 0, 28, make([]byte, wire.MaxOptionValue+1)...) }, wire.CodeFrame},
		{"11.2 a TCP option with number 0", func(p *testPeer) { p.writeOption(0, 0, 28, 0, 30) }, wire.CodeProtocol},
		{"11.2 a gap in the numbers", func(p *testPeer) { p.writeOption(2, 0, 28, 0, 30) }, wire.CodeProtocol},
		{"11.2 a number twice", func(p *testPeer) {
			p.writeOption(1, 0, 28, 0, 30)
			p.writeOption(1, 0, 28, 0, 30)
		}, wire.CodeProtocol},
		{"11.4 an answer to no request", func(p *testPeer) { p.writeControl(wire.AppendOptionAnswer(nil, 1, wire.OptionRefused, nil)) }, wire.CodeProtocol},
		{"11.4 an answer twice", func(p *testPeer) {
			p.askForOption()
			p.writeControl(wire.AppendOptionAnswer(nil, 1, wire.OptionSet, []byte{1}), wire.AppendOptionAnswer(nil, 1, wire.OptionSet, []byte{1}))
		}, wire.CodeProtocol},
		{"11.4 a value that the option can't have", func(p *testPeer) {
			p.askForOption()
			p.writeControl(wire.AppendOptionAnswer(nil, 1, wire.OptionSet, []byte{0x40, 64}))
		}, wire.CodeProtocol},
		{"11.4 no value", func(p *testPeer) {
			p.askForOption()
			p.writeControl(wire.AppendOptionAnswer(nil, 1, wire.OptionSet, nil))
		}, wire.CodeProtocol},
		{"11.5 more than may be unanswered, acknowledging nothing", func(p *testPeer) {
			for n := range uint64(4 * budgetMax) {
				p.writeOption(n+1, 0, 28, 0, 30)
			}
		}, wire.CodeLimit},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newTestPeer(t, true, nil)
				go test.do(p) // a session that has ended may not read all of it
				p.wantClose(test.name, test.code)
			})
		})
	}
	t.Run("2.4 a TCP option before PARAMETERS", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := startTestPeer(t, true, nil)
			p.writeOption(1, 0, 28, 0, 30)
			p.wantClose("no PARAMETERS", wire.CodeProtocol)
		})
	})
}

// askForOption lets the session ask for TCPDSCP(1).
func (p *testPeer) askForOption() {
	go func() { _, _ = p.sess.SetPeerTCPOption(p.t.Context(), nil, TCPDSCP(1)) }() // the test looks at the session
	synctest.Wait()
}

// While the application thinks about a request, 15 more may wait.
func TestOptionsWhilePolicyThinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		think := make(chan struct{})
		p := newTestPeer(t, true, func(c *Config) {
			c.AcceptTCPOption = func(o TCPOption) (TCPOption, error) {
				<-think
				return o, errors.New("no")
			}
		})
		defer close(think)
		for n := range uint64(wire.MaxOptions) {
			p.writeOption(n+1, wire.AllPaths, 28, 0, 30)
		}
		p.wantIdle("as many requests as may be")
		p.writeOption(wire.MaxOptions+1, wire.AllPaths, 28, 0, 30)
		p.wantClose("one more", wire.CodeLimit)
	})
}

// Requests that can't be met are answered, each with its reason, and the session
// doesn't mind.
func TestUnfitOptionsAreAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPeer(t, true, nil)
		all := wire.AllPaths
		for i, test := range []struct {
			name  string
			path  uint32
			kind  uint64
			value []byte
			want  wire.OptionStatus
		}{
			{"a kind of TCP's that isn't known", all, 8, nil, wire.OptionUnknown},
			{"a kind of a later version", all, wire.MaxVarint, []byte{1}, wire.OptionUnknown},
			{"a user timeout of 0", all, 28, []byte{0, 0}, wire.OptionRange},
			{"a user timeout of 0 minutes", all, 28, []byte{0x80, 0}, wire.OptionRange},
			{"a user timeout of one byte", all, 28, []byte{30}, wire.OptionRange},
			{"a keepalive of 32768 s", all, 256, []byte{0x80, 0, 0x80, 0}, wire.OptionRange},
			{"a number with bytes left over", all, 258, []byte{1, 1}, wire.OptionRange},
			{"a number that is cut off", all, 258, []byte{0x80, 1}, wire.OptionRange},
			{"no number", all, 258, nil, wire.OptionRange},
			{"a low-water mark of 0", all, 258, []byte{0}, wire.OptionRange},
			{"the largest number", all, 258, wire.AppendVarint(nil, wire.MaxVarint), wire.OptionRange},
			{"a window of 0", all, 260, []byte{0}, wire.OptionRange},
			{"code point 64", all, 261, []byte{0x40, 64}, wire.OptionRange},
			{"a code point for better service", all, 261, []byte{46}, wire.OptionRefused},
			{"a congestion control without a name", all, 257, nil, wire.OptionRange},
			{"a name of 16 bytes", all, 257, []byte("abcdefghijklmnop"), wire.OptionRange},
			{"a name with a slash", all, 257, []byte("../reno"), wire.OptionRange},
			{"a name that isn't ASCII", all, 257, []byte("caf\xc3\xa9"), wire.OptionRange},
			{"a congestion control that isn't there", all, 257, []byte("nonesuch"), wire.OptionRefused},
			{"a path that isn't there", 77, 28, []byte{0, 30}, wire.OptionNoPath},
			{"a connection that isn't the kernel's", 0, 28, []byte{0, 30}, wire.OptionUnsupported},
			{"connections that aren't the kernel's", all, 28, []byte{0, 30}, wire.OptionUnsupported},
		} {
			p.writeOption(uint64(i+1), test.path, test.kind, test.value...)
			f := p.wantFrame(test.name, wire.OptionAnswer)
			if f.Number != uint64(i+1) || f.Status != test.want || len(f.Value) != 0 {
				t.Errorf("%s: request %d answered by %v with %x, want %d by %v", test.name, f.Number, f.Status, f.Value, i+1, test.want)
			}
			p.writeFrames(wire.AppendAck(nil, wire.Control, uint64(i+1), 0))
		}
		p.wantIdle("whatever is asked")
		if n := len(p.sess.options.standing); n != 0 {
			t.Errorf("%d options that weren't set would be set on further paths", n)
		}
	})
}

// A request that comes again, on another path, is acknowledged and not carried
// out a second time.
func TestOptionAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		p := newTestPeer(t, true, func(c *Config) {
			c.MaxPaths, c.ReconnectFor = 3, time.Minute
			c.AcceptTCPOption = func(o TCPOption) (TCPOption, error) {
				asked.Add(1)
				return o, errors.New("no")
			}
		})
		q := p.join()
		seq := p.control.Seq()
		rec := slices.Clone(p.sealed(p.control, wire.AppendOptionRequest(nil, &wire.OptionRequest{
			Number: 1, Path: wire.AllPaths, TCPOption: wire.TCPOption{Kind: 28, Value: []byte{0, 30}},
		}), wire.TypeOption))
		p.writeRaw(rec)
		p.wantFrame("the answer", wire.OptionAnswer)
		for range 3 {
			q.attachAt(wire.Control, seq, 0)
			q.writeRaw(rec)
			synctest.Wait()
		}
		for {
			f := p.wantFrame("the request that came again is acknowledged", wire.Ack)
			if f.Frame.Context == wire.Control && f.Seq == seq+1 {
				break
			}
		}
		if n := asked.Load(); n != 1 {
			t.Errorf("the policy was asked %d times, want once", n)
		}
		q.writeControl(wire.AppendGoingAway(nil, 0)) // q shares the control context
		q.wantIdle("what follows")
	})
}

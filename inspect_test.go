package tcpls

import (
	"context"
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/osnet"
	"github.com/go-tcpls/tcpls/internal/wire"
)

func TestCompareSYN(t *testing.T) {
	const all = wire.NegotiatedTimestamps | wire.NegotiatedSACK | wire.NegotiatedScale
	local := netip.MustParseAddrPort("10.0.0.1:40000")
	type change func(sent *osnet.SentSYN, seen *wire.SYN)
	without := func(bit uint8, kind byte) change {
		return func(sent *osnet.SentSYN, seen *wire.SYN) {
			sent.Negotiated &^= bit
			seen.Negotiated &^= bit
			seen.Options = slices.DeleteFunc(seen.Options, func(k byte) bool { return k == kind })
		}
	}
	proxy := "a proxy ends the TCP connection: another SYN than ours reached the server, from "
	for _, test := range []struct {
		name   string
		change change
		hops   int
		want   []string
	}{
		{"nothing on the way", func(*osnet.SentSYN, *wire.SYN) {}, 1, nil},
		{"NAT", func(_ *osnet.SentSYN, seen *wire.SYN) { seen.Source = netip.MustParseAddrPort("192.0.2.9:2000") }, 1, []string{
			"a NAT rewrote the source address 10.0.0.1 to 192.0.2.9", "a NAT rewrote the source port 40000 to 2000",
		}},
		{"SACK stripped", without(wire.NegotiatedSACK, optSACK), 1, []string{"option SACK was stripped"}},
		{"timestamps stripped", without(wire.NegotiatedTimestamps, optTimestamps), 1, []string{"option timestamps was stripped"}},
		{"window scale stripped", without(wire.NegotiatedScale, optScale), 1, []string{"option window scale was stripped"}},
		{"the server doesn't want SACK", func(sent *osnet.SentSYN, seen *wire.SYN) {
			sent.Negotiated &^= wire.NegotiatedSACK
			seen.Negotiated &^= wire.NegotiatedSACK
		}, 1, nil},
		{"SACK of the answer stripped", func(sent *osnet.SentSYN, _ *wire.SYN) { sent.Negotiated &^= wire.NegotiatedSACK }, 1,
			[]string{"option SACK of the server's answer was stripped"}},
		{"MSS clamped", func(sent *osnet.SentSYN, seen *wire.SYN) { seen.MSS, sent.PeerMSS = 900, 900 }, 1, []string{
			"option MSS was changed from 1460 to 900", "option MSS of the server's answer was changed from 1460 to 900",
		}},
		{"no MSS", func(_ *osnet.SentSYN, seen *wire.SYN) { seen.MSS = 0 }, 1, []string{"option MSS was stripped"}},
		{"the server has a small MSS", func(sent *osnet.SentSYN, seen *wire.SYN) { seen.AnswerMSS, sent.PeerMSS = 1000, 1000 }, 1, nil},
		{"other scale", func(_ *osnet.SentSYN, seen *wire.SYN) { seen.Scale = 0 }, 1, []string{"option window scale was changed from 7 to 0"}},
		{"SACK added", func(sent *osnet.SentSYN, _ *wire.SYN) {
			sent.Asked, sent.Negotiated = sent.Asked&^wire.NegotiatedSACK, sent.Negotiated&^wire.NegotiatedSACK
		}, 1, []string{"option SACK was added"}},
		{"the system doesn't say what it asks for", func(sent *osnet.SentSYN, seen *wire.SYN) {
			sent.Known, sent.Asked = 0, 0
			without(wire.NegotiatedSACK, optSACK)(sent, seen)
		}, 1, nil},
		{"ECN stripped", func(sent *osnet.SentSYN, _ *wire.SYN) { sent.Asked |= wire.NegotiatedECN }, 1, []string{"option ECN was stripped"}},
		{"ECN", func(sent *osnet.SentSYN, seen *wire.SYN) { sent.Asked |= wire.NegotiatedECN; seen.Flags |= 0xc0 }, 1, nil},
		{"proxy", func(_ *osnet.SentSYN, seen *wire.SYN) {
			seen.Source, seen.Timestamp = netip.MustParseAddrPort("192.0.2.9:2000"), 1<<31
		}, -1, []string{proxy + "192.0.2.9:2000, with the timestamp of another clock"}},
		{"proxy without timestamps", func(_ *osnet.SentSYN, seen *wire.SYN) { seen.Options = []byte{optMSS, optSACK, optScale} }, -1,
			[]string{proxy + "10.0.0.1:40000, without option timestamps, which ours was answered"}},
		{"proxy with another hop limit", func(sent *osnet.SentSYN, seen *wire.SYN) {
			without(wire.NegotiatedTimestamps, optTimestamps)(sent, seen)
			seen.HopLimit = 127
		}, -1, []string{proxy + "10.0.0.1:40000, with a higher hop limit than it was sent with"}},
		{"the clock has gone round", func(sent *osnet.SentSYN, seen *wire.SYN) { sent.Timestamp, seen.Timestamp = 500, 1<<32-500 }, 1, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			sent := &osnet.SentSYN{
				HopLimit: 64, MSS: 1460, Scale: 7, Timestamp: 100_000, HasClock: true,
				Negotiated: all, Asked: all, Known: all | wire.NegotiatedECN,
			}
			seen := &wire.SYN{
				Source: local, HopLimit: 63, Flags: 2, MSS: 1460, Scale: 7, Timestamp: 99_000, Negotiated: all, AnswerMSS: 1460,
				Options: []byte{optMSS, optSACK, optTimestamps, optScale},
			}
			test.change(sent, seen)
			r := compareSYN(sent, local, seen, time.Minute)
			var got []string
			for _, f := range r.Findings {
				got = append(got, f.String())
			}
			if !slices.Equal(got, test.want) || r.Hops != test.hops || r.Local != local || r.Source != seen.Source {
				t.Errorf("got %+v, and in words %q", r, got)
			}
		})
	}
}

// A SYN as Linux sends it over loopback, behind the headers of both versions of
// IP.
const (
	synTCP  = "c004001500000001" + "00000000a002faf000000000" + "0204ffc4" + "0402" + "080a1234567800000000" + "01" + "03030a"
	synIPv4 = "4500003c1c4640003f06aa7ac0000207c6336401" + synTCP
	synIPv6 = "60000000002806" + "40" + "20010db8000000000000000000000007" + "20010db8000000000000000000000001" + synTCP
	synExt  = "60000000003000" + "40" + "20010db8000000000000000000000007" + "20010db8000000000000000000000001" + "0600050200000000" + synTCP
)

func TestParseSYN(t *testing.T) {
	for _, test := range []struct {
		name, hex string
		source    string // "": it isn't one
	}{
		{"IPv4", synIPv4, "192.0.2.7:49156"},
		{"IPv6", synIPv6, "[2001:db8::7]:49156"},
		{"IPv6 with an extension", synExt, "[2001:db8::7]:49156"},
		{"nothing", "", ""},
		{"IPv5", "55" + synIPv4[2:], ""},
		{"half of IPv4", synIPv4[:30], ""},
		{"half of IPv6", synIPv6[:60], ""},
		{"half of TCP", synIPv4[:40+30], ""},
		{"TCP without its options", synIPv4[:40+40], ""},
		{"a header of 4 bytes", "41" + synIPv4[2:], ""},
		{"an option of 1 byte", synIPv4[:40+40] + "0201" + synIPv4[40+44:], ""},
		{"an extension that is too long", synExt[:82] + "ff" + synExt[84:], ""},
		{"UDP", synIPv6[:12] + "11" + synIPv6[14:], ""},
	} {
		b, err := hex.DecodeString(test.hex)
		if err != nil {
			t.Fatal(err)
		}
		syn, ok := parseSYN(b)
		if ok != (test.source != "") {
			t.Errorf("%s: got %+v, %v", test.name, syn, ok)
		}
		if ok && (syn.Source != netip.MustParseAddrPort(test.source) || syn.HopLimit < 63 || syn.Flags != 2 || syn.MSS != 65476 || syn.Scale != 10 ||
			syn.Timestamp != 0x12345678 || !slices.Equal(syn.Options, []byte{optMSS, optSACK, optTimestamps, optScale})) {
			t.Errorf("%s: got %+v", test.name, syn)
		}
	}
}

func FuzzParseSYN(f *testing.F) {
	for _, s := range []string{synIPv4, synIPv6, synExt} {
		b, err := hex.DecodeString(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		syn, ok := parseSYN(b)
		if !ok {
			return
		}
		frame := wire.AppendSYNReport(nil, 65535, &syn)
		var got wire.Frame
		if _, err := got.Parse(frame, wire.OnControl); err != nil || len(frame) > wire.MaxSYNReport {
			t.Errorf("the report of %+v is %x: %v", syn, frame, err)
		}
	})
}

// What a server tells of paths of which it knows nothing.
func TestReportWithoutSYN(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPeer(t, true, func(c *Config) { c.MaxPaths = 3 })
		const unopened = 1
		for _, path := range []uint32{0, unopened, 0} {
			p.writeControl(wire.AppendSYNRequest(nil, path))
			if f := p.wantFrame("the answer", wire.SYNReport); f.Path != path || f.SYN.Source.IsValid() {
				t.Errorf("asked for path %d, got %+v", path, f)
			}
		}
	})
}

func TestNoSYNReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPeer(t, true, func(c *Config) { c.NoSYNReports = true })
		if p.params.SYNReports {
			t.Error("the server says that it answers")
		}
		go p.writeControl(wire.AppendSYNRequest(nil, 0))
		p.wantClose("SYN_REQUEST to a server that doesn't answer", wire.CodeProtocol)
	})
}

// A client asks once for a path, whoever waits for the answer, and takes one.
func TestAskSYN(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPeer(t, false, nil)
		path := p.sess.path()
		ask := func(ctx context.Context) <-chan error {
			return begun(func() error {
				syn, err := p.sess.askSYN(ctx, path)
				if err == nil && syn.MSS != 1460 {
					t.Errorf("got %+v", syn)
				}
				return err
			})
		}
		if err := <-ask(t.Context()); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("a server that hasn't said that it answers: %v", err)
		}
		p.sess.mu.Lock()
		p.sess.peer.SYNReports = true
		p.sess.mu.Unlock()
		ctx, cancel := context.WithCancel(t.Context())
		first, second := ask(t.Context()), ask(ctx)
		p.wantFrame("the question", wire.SYNRequest)
		cancel()
		if err := <-second; !errors.Is(err, context.Canceled) {
			t.Errorf("without the context: %v", err)
		}
		wantBlocked(t, "before the answer", first)
		seen := wire.SYN{Source: netip.MustParseAddrPort("192.0.2.1:1"), MSS: 1460, Options: []byte{optMSS}}
		p.writeControl(wire.AppendSYNReport(nil, 0, &seen))
		if err := errors.Join(<-first, <-ask(t.Context())); err != nil {
			t.Error(err)
		}
		p.wantIdle("all is known")
		for _, f := range p.frames {
			if f.Kind == wire.SYNRequest {
				t.Error("the server is asked again")
			}
		}
		go p.writeControl(wire.AppendSYNReport(nil, 0, &seen))
		p.wantClose("a second answer", wire.CodeProtocol)
		if _, err := p.sess.askSYN(t.Context(), &Path{sess: p.sess, id: 7}); !errors.Is(err, context.Cause(p.sess.Context())) {
			t.Errorf("after the end: %v", err)
		}
	})
}

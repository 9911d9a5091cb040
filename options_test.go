package tcpls

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/go-tcpls/tcpls/internal/wire"
)

// Every option has one form for people and one on the wire, both of which lead
// back to it.
func TestTCPOptionForms(t *testing.T) {
	covered := make(map[TCPOptionKind]bool)
	for _, test := range []struct {
		option TCPOption
		text   string
		value  string
	}{
		{TCPUserTimeout(30 * time.Second), "user-timeout=30s", "\x00\x1e"},
		{TCPUserTimeout(29*time.Second + 1), "user-timeout=30s", "\x00\x1e"},
		{TCPUserTimeout(10 * time.Hour), "user-timeout=10h0m0s", "\x82\x58"},
		{TCPKeepAlive(time.Minute), "keepalive=1m0s", "\x3c"},
		{TCPKeepAlive(0), "keepalive=0s", "\x00"},
		{TCPCongestion("reno"), "congestion=reno", "reno"},
		{TCPNotSentLowWater(128 << 10), "notsent-lowat=131072", "\x80\x02\x00\x00"},
		{TCPMaxPacingRate(1_000_000), "max-pacing-rate=1000000", "\x80\x0f\x42\x40"},
		{TCPMaxPacingRate(wire.MaxVarint), "max-pacing-rate=4611686018427387903", "\xff\xff\xff\xff\xff\xff\xff\xff"},
		{TCPWindowClamp(65536), "window-clamp=65536", "\x80\x01\x00\x00"},
		{TCPDSCP(63), "dscp=63", "\x3f"},
	} {
		covered[test.option.Kind] = true
		if got := test.option.String(); got != test.text {
			t.Errorf("%#v reads %q, want %q", test.option, got, test.text)
		}
		if got, err := ParseTCPOption(test.text); got != test.option || err != nil {
			t.Errorf("%q is %v, %v; want %v", test.text, got, err, test.option)
		}
		w, err := test.option.encode()
		if string(w.Value) != test.value || w.Kind != uint64(test.option.Kind) || err != nil {
			t.Errorf("%v is sent as %d, %x, %v; want %x", test.option, w.Kind, w.Value, err, test.value)
		}
		if got, err := decodeOption(w); got != test.option || err != nil {
			t.Errorf("%x is taken for %v, %v; want %v", w.Value, got, err, test.option)
		}
	}
	for _, option := range optionTypes {
		if !covered[option.kind] {
			t.Errorf("%v isn't tested", option.kind)
		}
		if !strings.Contains(string(optionKinds()), string(wire.AppendVarint(nil, uint64(option.kind)))) && optionKinds() != "" {
			t.Errorf("%v isn't among the kinds that the peer is told", option.kind)
		}
	}
}

func TestBadTCPOptions(t *testing.T) {
	for _, text := range []string{
		"", "user-timeout", "=30s", "user-timeout=", "user-timeout=30", "user-timeout=0s", "user-timeout=-1s", "user-timeout=600h",
		"keepalive=-1s", "keepalive=10h", "notsent-lowat=0", "notsent-lowat=-1", "notsent-lowat=4294967296", "notsent-lowat=1k",
		"max-pacing-rate=-1", "max-pacing-rate=4611686018427387904", "max-pacing-rate=99999999999999999999", "window-clamp=0",
		"dscp=64", "dscp=-1", "congestion=", "congestion=a/b", "congestion=sixteenlettersxx", "nagle=off",
	} {
		if o, err := ParseTCPOption(text); err == nil {
			t.Errorf("%q was taken for %v", text, o)
		}
	}
	var many []TCPOption
	for range wire.MaxOptions + 1 {
		many = append(many, TCPDSCP(0))
	}
	for _, options := range [][]TCPOption{many, {TCPDSCP(64)}, {{}}} {
		c, _ := newTestConfigs()
		c.PeerTCPOptions = options
		if _, err := c.withDefaults(); err == nil || !strings.Contains(err.Error(), "PeerTCPOptions") {
			t.Errorf("%v: error %v doesn't name Config.PeerTCPOptions", options, err)
		}
	}
}

func TestLimitTCPOption(t *testing.T) {
	const kib = 1 << 10
	for _, test := range []struct{ asked, want TCPOption }{
		{TCPUserTimeout(time.Second), TCPUserTimeout(time.Second)},
		{TCPUserTimeout(500 * time.Hour), TCPUserTimeout(15 * time.Minute)},
		{TCPKeepAlive(time.Second), TCPKeepAlive(10 * time.Second)},
		{TCPKeepAlive(9 * time.Hour), TCPKeepAlive(2 * time.Hour)},
		{TCPKeepAlive(0), TCPKeepAlive(0)},
		{TCPNotSentLowWater(1), TCPNotSentLowWater(16 * kib)},
		{TCPNotSentLowWater(1 << 30), TCPNotSentLowWater(1 << 30)},
		{TCPMaxPacingRate(1), TCPMaxPacingRate(8 * kib)},
		{TCPMaxPacingRate(0), TCPMaxPacingRate(0)},
		{TCPWindowClamp(1), TCPWindowClamp(16 * kib)},
		{TCPDSCP(0), TCPDSCP(0)},
		{TCPDSCP(1), TCPDSCP(1)},
		{TCPDSCP(8), TCPDSCP(8)},
	} {
		if got, err := LimitTCPOption(test.asked); got != test.want || err != nil {
			t.Errorf("%v became %v, %v; want %v", test.asked, got, err, test.want)
		}
	}
	for _, test := range []struct {
		asked  TCPOption
		reason TCPOptionReason
	}{
		{TCPDSCP(46), TCPOptionRefused},
		{TCPDSCP(48), TCPOptionRefused},
		{TCPCongestion("nonesuch"), TCPOptionRefused},
		{TCPUserTimeout(0), TCPOptionRange},
		{TCPOption{Kind: KindDSCP, Name: "x"}, TCPOptionRange},
		{TCPOption{}, TCPOptionUnknown},
	} {
		_, err := LimitTCPOption(test.asked)
		wantErrorIs(t, test.asked.String(), err, &TCPOptionError{Reason: test.reason})
	}
}

func TestTCPOptionErrors(t *testing.T) {
	cause := errors.New("the cause")
	for _, test := range []struct {
		err         *TCPOptionError
		text        string
		unsupported bool
	}{
		{&TCPOptionError{Option: TCPDSCP(46), Reason: TCPOptionRefused, Remote: true}, "tcpls: peer doesn't set dscp=46: refused by policy", false},
		{&TCPOptionError{Option: TCPDSCP(46), Reason: TCPOptionFailed, Err: cause}, "tcpls: dscp=46: the kernel refused it: the cause", false},
		{&TCPOptionError{Option: TCPOption{Kind: 99}, Reason: TCPOptionUnknown}, "tcpls: TCP option 99: the option isn't known there", true},
		{&TCPOptionError{Option: TCPDSCP(0), Reason: TCPOptionUnsupported}, "tcpls: dscp=0: the system can't set it", true},
		{&TCPOptionError{Option: TCPDSCP(0), Reason: TCPOptionRange}, "tcpls: dscp=0: the value is out of range", false},
		{&TCPOptionError{Option: TCPDSCP(0), Reason: TCPOptionNoPath}, "tcpls: dscp=0: the path is gone", false},
		{&TCPOptionError{Option: TCPDSCP(0), Reason: 99}, "tcpls: dscp=0: refused by policy", false}, // of a later version
	} {
		if test.err.Error() != test.text {
			t.Errorf("error %q, want %q", test.err, test.text)
		}
		if errors.Is(test.err, errors.ErrUnsupported) != test.unsupported {
			t.Errorf("%v: is it ErrUnsupported? want %v", test.err, test.unsupported)
		}
		if test.err.Err != nil && !errors.Is(test.err, test.err.Err) {
			t.Errorf("%v doesn't lead to its cause", test.err)
		}
	}
}

// Who asks for what can't be is told what can.
func TestTCPOptionBounds(t *testing.T) {
	for text, want := range map[string]string{
		"user-timeout=0s": "must be 1s to 546h7m0s", "keepalive=10h": "must be 0 or 1s to 9h6m7s",
		"dscp=64": "must be 0 to 63", "notsent-lowat=0": "must be 1 to 2147483647", "congestion=": "must be 1 to 15 letters",
	} {
		_, err := ParseTCPOption(text)
		wantErrorIs(t, text, err, &TCPOptionError{Reason: TCPOptionRange})
		if err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %q, want %q", text, err, want)
		}
	}
}

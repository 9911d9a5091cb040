package tcpls

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/go-tcpls/tcpls/internal/osnet"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// TCP options that travel inside TLS: what there is, how it is written, what a
// peer may set by default, and how it is set (protocol 11). One more option is
// one more entry of optionTypes. How options are asked for and answered is in
// options_session.go.

// A TCPOptionKind is the number of a TCP option (docs/protocol.md, 11.6).
type TCPOptionKind uint64

// The options that exist. Each is about the socket of the one who is asked.
const (
	// KindUserTimeout: how long sent data may stay unacknowledged before the
	// connection fails (RFC 5482).
	KindUserTimeout TCPOptionKind = 28
	// KindKeepAlive: after how much silence TCP probes the peer.
	KindKeepAlive TCPOptionKind = 256
	// KindCongestion: which congestion control is used.
	KindCongestion TCPOptionKind = 257
	// KindNotSentLowWater: how much the socket takes that it hasn't sent.
	KindNotSentLowWater TCPOptionKind = 258
	// KindMaxPacingRate: how fast the socket sends at most.
	KindMaxPacingRate TCPOptionKind = 259
	// KindWindowClamp: the largest receive window that the socket offers.
	KindWindowClamp TCPOptionKind = 260
	// KindDSCP: the DiffServ code point of the socket's packets.
	KindDSCP TCPOptionKind = 261
)

func (k TCPOptionKind) String() string {
	if t := k.optionType(); t != nil {
		return t.name
	}
	return fmt.Sprintf("TCP option %d", uint64(k))
}

// A TCPOption is an option with its value. The zero value is none. Options can
// be compared by ==.
type TCPOption struct {
	Kind TCPOptionKind
	// Value is in seconds (user timeout, keepalive), bytes (low-water mark,
	// window), bytes per second (pacing), or a code point. 0 turns a keepalive
	// or a pacing rate off; others can't be 0 but the code point.
	Value int64
	// Name is that of a congestion control, which has no Value.
	Name string
}

// TCPUserTimeout fails a connection whose data stays unacknowledged for so long,
// from 1 s to 32,767 minutes. It is rounded up to seconds, and to minutes beyond 9
// hours.
func TCPUserTimeout(d time.Duration) TCPOption {
	return TCPOption{Kind: KindUserTimeout, Value: wholeSeconds(d)}
}

// TCPKeepAlive probes the peer after so much silence, rounded up to seconds, at
// most 32,767; the connection fails after about as long again without an answer. 0:
// no probes.
func TCPKeepAlive(idle time.Duration) TCPOption {
	return TCPOption{Kind: KindKeepAlive, Value: wholeSeconds(idle)}
}

// TCPCongestion chooses a congestion control by its name in the kernel, as "reno".
func TCPCongestion(name string) TCPOption {
	return TCPOption{Kind: KindCongestion, Name: name}
}

// TCPNotSentLowWater lets a socket take no more while it has so many bytes that it
// hasn't sent.
func TCPNotSentLowWater(bytes int64) TCPOption {
	return TCPOption{Kind: KindNotSentLowWater, Value: bytes}
}

// TCPMaxPacingRate makes a socket send no faster; 0: no limit.
func TCPMaxPacingRate(bytesPerSecond int64) TCPOption {
	return TCPOption{Kind: KindMaxPacingRate, Value: bytesPerSecond}
}

// TCPWindowClamp makes a socket offer no larger receive window, up to 1 GiB. The
// kernel has a least one.
func TCPWindowClamp(bytes int64) TCPOption {
	return TCPOption{Kind: KindWindowClamp, Value: bytes}
}

// TCPDSCP marks a socket's packets, 0 to 63 (RFC 2474).
func TCPDSCP(codePoint int64) TCPOption {
	return TCPOption{Kind: KindDSCP, Value: codePoint}
}

// ParseTCPOption reads an option in the form that String writes, such as
// "user-timeout=30s", "congestion=reno" or "max-pacing-rate=1000000".
func ParseTCPOption(text string) (TCPOption, error) {
	name, value, ok := strings.Cut(text, "=")
	i := slices.IndexFunc(optionTypes[:], func(t optionType) bool { return t.name == name })
	if !ok || i < 0 {
		return TCPOption{}, fmt.Errorf("tcpls: %q isn't one of the TCP options %s", text, strings.Join(optionUsage(), ", "))
	}
	o, ok := optionTypes[i].form.read(value)
	o.Kind = optionTypes[i].kind
	if !ok {
		return TCPOption{}, fmt.Errorf("tcpls: %q has no value of the form %s=%s", text, name, optionTypes[i].form.usage)
	}
	_, err := o.encode()
	return o, err
}

func (o TCPOption) String() string {
	if t := o.Kind.optionType(); t != nil {
		return t.name + "=" + t.form.write(o)
	}
	return o.Kind.String()
}

// MarshalText is String.
func (o TCPOption) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// wholeSeconds rounds up.
func wholeSeconds(d time.Duration) int64 {
	return int64(d/time.Second) + min(1, int64(max(0, d%time.Second)))
}

// A TCPOptionReason says why an option isn't set.
type TCPOptionReason uint64

// The reasons of a TCPOptionError.
const (
	// TCPOptionRefused: the policy of who was asked is against it.
	TCPOptionRefused = TCPOptionReason(wire.OptionRefused)
	// TCPOptionUnknown: who was asked doesn't know the option.
	TCPOptionUnknown = TCPOptionReason(wire.OptionUnknown)
	// TCPOptionRange: the value isn't one of this option, or out of bounds.
	TCPOptionRange = TCPOptionReason(wire.OptionRange)
	// TCPOptionUnsupported: the system of who was asked can't set it.
	TCPOptionUnsupported = TCPOptionReason(wire.OptionUnsupported)
	// TCPOptionNoPath: the path has ended, or was never there.
	TCPOptionNoPath = TCPOptionReason(wire.OptionNoPath)
	// TCPOptionFailed: the kernel of who was asked has refused it.
	TCPOptionFailed = TCPOptionReason(wire.OptionFailed)
)

func (r TCPOptionReason) String() string {
	switch r {
	case TCPOptionUnknown:
		return "the option isn't known there"
	case TCPOptionRange:
		return "the value is out of range"
	case TCPOptionUnsupported:
		return "the system can't set it"
	case TCPOptionNoPath:
		return "the path is gone"
	case TCPOptionFailed:
		return "the kernel refused it"
	}
	return "refused by policy"
}

// A TCPOptionError tells that a TCP option isn't set, and why. It matches
// errors.ErrUnsupported where the reason is TCPOptionUnknown or
// TCPOptionUnsupported.
type TCPOptionError struct {
	Option TCPOption
	Reason TCPOptionReason
	// Remote tells that the peer was asked, and says so.
	Remote bool
	// Err is the cause, where it is known.
	Err error
}

func (e *TCPOptionError) Error() string {
	text := fmt.Sprintf("tcpls: %v: %v", e.Option, e.Reason)
	if e.Remote {
		text = fmt.Sprintf("tcpls: peer doesn't set %v: %v", e.Option, e.Reason)
	}
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// Is reports whether target is a TCPOptionError with the same reason, or
// errors.ErrUnsupported where that is what it comes to.
func (e *TCPOptionError) Is(target error) bool {
	if t, ok := target.(*TCPOptionError); ok {
		return t.Reason == e.Reason
	}
	return target == errors.ErrUnsupported && (e.Reason == TCPOptionUnknown || e.Reason == TCPOptionUnsupported)
}

// Unwrap returns the cause.
func (e *TCPOptionError) Unwrap() error { return e.Err }

// LimitTCPOption is what Config.AcceptTCPOption does by default. It moves values
// into bounds: user timeouts into 1 s to 15 minutes, keepalives into 10 s to 2 hours,
// low-water marks and windows to 16 KiB and more, pacing rates to 8 KiB/s and more. It
// refuses a congestion control that not every process of the system may choose, and
// code points other than 0, 1 (lower effort) and 8, with which packets get no better
// service than others.
func LimitTCPOption(o TCPOption) (TCPOption, error) {
	t := o.Kind.optionType()
	switch {
	case t == nil:
		return o, &TCPOptionError{Option: o, Reason: TCPOptionUnknown}
	case !t.valid(o):
		return o, t.outOfRange(o)
	case t.harmless != nil && !t.harmless(o):
		return o, &TCPOptionError{Option: o, Reason: TCPOptionRefused}
	case t.most > 0 && !(t.zero && o.Value == 0):
		o.Value = min(max(o.Value, t.least), t.most)
	}
	return o, nil
}

// An optionType is all there is to say of an option.
type optionType struct {
	kind TCPOptionKind
	name string // for people
	form *optionForm

	lo, hi int64 // the values that exist; 0 too if zero is set
	zero   bool

	least, most int64                // by default, if most isn't 0
	harmless    func(TCPOption) bool // likewise; nil: all values are

	set func(syscall.RawConn, TCPOption) (inForce TCPOption, err error)
}

var optionTypes = [...]optionType{
	{
		kind: KindUserTimeout, name: "user-timeout", form: &timeoutForm,
		lo: 1, hi: wire.MaxUserTimeout, least: 1, most: 15 * 60,
		set: setting(osnet.SetUserTimeout, osnet.UserTimeout, time.Second),
	}, {
		kind: KindKeepAlive, name: "keepalive", form: &secondsForm,
		lo: 1, hi: 32767, zero: true, least: 10, most: 2 * 60 * 60,
		set: setting(osnet.SetKeepAlive, osnet.KeepAlive, time.Second),
	}, {
		kind: KindCongestion, name: "congestion", form: &nameForm,
		harmless: func(o TCPOption) bool { return osnet.MayChooseCongestion(o.Name) },
		set: func(rc syscall.RawConn, o TCPOption) (_ TCPOption, err error) {
			if err = osnet.SetCongestion(rc, o.Name); err == nil {
				o.Name, err = osnet.Congestion(rc)
			}
			return o, err
		},
	}, {
		kind: KindNotSentLowWater, name: "notsent-lowat", form: &numberForm,
		lo: 1, hi: math.MaxInt32, least: 16 << 10, most: math.MaxInt32,
		set: setting(osnet.SetNotSentLowWater, osnet.NotSentLowWater, 1),
	}, {
		kind: KindMaxPacingRate, name: "max-pacing-rate", form: &numberForm,
		lo: 1, hi: wire.MaxVarint, zero: true, least: 8 << 10, most: wire.MaxVarint,
		set: setting(osnet.SetMaxPacingRate, osnet.MaxPacingRate, 1),
	}, {
		kind: KindWindowClamp, name: "window-clamp", form: &numberForm,
		lo: 1, hi: 1 << 30, least: 16 << 10, most: 1 << 30,
		set: setting(osnet.SetWindowClamp, osnet.WindowClamp, 1),
	}, {
		kind: KindDSCP, name: "dscp", form: &numberForm, lo: 0, hi: 63,
		harmless: func(o TCPOption) bool { return slices.Contains([]int64{0, 1, 8}, o.Value) },
		set:      setting(osnet.SetDSCP, osnet.DSCP, 1),
	},
}

// setting sets a number and reads back what came of it.
func setting[T int | uint64 | time.Duration](
	set func(syscall.RawConn, T) error, get func(syscall.RawConn) (T, error), unit T,
) func(syscall.RawConn, TCPOption) (TCPOption, error) {
	return func(rc syscall.RawConn, o TCPOption) (TCPOption, error) {
		err := set(rc, T(o.Value)*unit)
		if err != nil {
			return o, err
		}
		v, err := get(rc)
		o.Value = int64(v / unit)
		return o, err
	}
}

func (k TCPOptionKind) optionType() *optionType {
	for i := range optionTypes {
		if optionTypes[i].kind == k {
			return &optionTypes[i]
		}
	}
	return nil
}

// optionUsage lists how options are written.
func optionUsage() (list []string) {
	for _, t := range optionTypes {
		list = append(list, t.name+"="+t.form.usage)
	}
	return list
}

// valid reports whether there can be such an option (protocol 11.6).
func (t *optionType) valid(o TCPOption) bool {
	if t.form == &nameForm {
		return o.Value == 0 && isCongestionName(o.Name)
	}
	return o.Name == "" && (t.lo <= o.Value && o.Value <= t.hi || t.zero && o.Value == 0)
}

// outOfRange says which values there are.
func (t *optionType) outOfRange(o TCPOption) error {
	zero := ""
	if t.zero {
		zero = "0 or "
	}
	err := fmt.Errorf("it must be %s%s to %s", zero, t.form.write(TCPOption{Value: t.lo}), t.form.write(TCPOption{Value: t.hi}))
	if t.form == &nameForm {
		err = errors.New("it must be 1 to 15 letters, digits, '_', '-' and '.'")
	}
	return &TCPOptionError{Option: o, Reason: TCPOptionRange, Err: err}
}

func isCongestionName(name string) bool {
	return 1 <= len(name) && len(name) <= 15 && strings.IndexFunc(name, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("_-.", r))
	}) < 0
}

// encode returns the option as it is sent.
func (o TCPOption) encode() (wire.TCPOption, error) {
	t := o.Kind.optionType()
	switch {
	case t == nil:
		return wire.TCPOption{}, &TCPOptionError{Option: o, Reason: TCPOptionUnknown}
	case !t.valid(o):
		return wire.TCPOption{}, t.outOfRange(o)
	}
	return wire.TCPOption{Kind: uint64(o.Kind), Value: t.form.append(nil, o)}, nil
}

// decodeOption reads an option that was sent: of a kind that isn't known the Kind
// alone, with TCPOptionUnknown.
func decodeOption(w wire.TCPOption) (TCPOption, error) {
	o := TCPOption{Kind: TCPOptionKind(w.Kind)}
	t := o.Kind.optionType()
	if t == nil {
		return o, &TCPOptionError{Option: o, Reason: TCPOptionUnknown}
	}
	read, ok := t.form.parse(w.Value)
	o.Value, o.Name = read.Value, read.Name
	if !ok || !t.valid(o) {
		return o, t.outOfRange(o)
	}
	return o, nil
}

// An optionForm is how the values of some options are written, on the wire and
// for people. Whether a value is in bounds isn't its business.
type optionForm struct {
	append func(b []byte, o TCPOption) []byte
	parse  func(value []byte) (o TCPOption, ok bool)
	write  func(o TCPOption) string
	read   func(text string) (o TCPOption, ok bool)
	usage  string
}

var numberForm = optionForm{
	append: func(b []byte, o TCPOption) []byte { return wire.AppendVarint(b, uint64(o.Value)) },
	parse: func(value []byte) (TCPOption, bool) {
		v, ok := wire.ParseOptionNumber(value)
		return TCPOption{Value: int64(v)}, ok
	},
	write: func(o TCPOption) string { return strconv.FormatInt(o.Value, 10) },
	read: func(text string) (o TCPOption, ok bool) {
		v, err := strconv.ParseInt(text, 10, 64)
		return TCPOption{Value: v}, err == nil
	},
	usage: "NUMBER",
}

var secondsForm = optionForm{
	append: numberForm.append,
	parse:  numberForm.parse,
	write:  func(o TCPOption) string { return (time.Duration(o.Value) * time.Second).String() },
	read: func(text string) (o TCPOption, ok bool) {
		d, err := time.ParseDuration(text)
		return TCPOption{Value: wholeSeconds(d)}, err == nil && d >= 0
	},
	usage: "DURATION",
}

var timeoutForm = optionForm{
	append: func(b []byte, o TCPOption) []byte { return wire.AppendUserTimeout(b, uint64(o.Value)) },
	parse: func(value []byte) (TCPOption, bool) {
		v, ok := wire.ParseUserTimeout(value)
		return TCPOption{Value: int64(v)}, ok
	},
	write: secondsForm.write,
	read:  secondsForm.read,
	usage: secondsForm.usage,
}

var nameForm = optionForm{
	append: func(b []byte, o TCPOption) []byte { return append(b, o.Name...) },
	parse:  func(value []byte) (TCPOption, bool) { return TCPOption{Name: string(value)}, true },
	write:  func(o TCPOption) string { return o.Name },
	read:   func(text string) (TCPOption, bool) { return TCPOption{Name: text}, true },
	usage:  "NAME",
}

// encodeOptions returns Config.PeerTCPOptions as they are sent.
func (c *Config) encodeOptions() (string, error) {
	if len(c.PeerTCPOptions) > wire.MaxOptions {
		return "", fmt.Errorf("tcpls: Config.PeerTCPOptions has %d; a peer takes %d", len(c.PeerTCPOptions), wire.MaxOptions)
	}
	var b []byte
	for _, o := range c.PeerTCPOptions {
		w, err := o.encode()
		if err != nil {
			return "", fmt.Errorf("%w (Config.PeerTCPOptions)", err)
		}
		b = wire.AppendTCPOptions(b, w)
	}
	return string(b), nil
}

// optionKinds are those that a peer may ask for, as they are sent.
func optionKinds() string {
	var b []byte
	for _, t := range optionTypes {
		if osnet.HasOptions {
			b = wire.AppendVarint(b, uint64(t.kind))
		}
	}
	return string(b)
}

// decide asks the application's policy, or the default one, about an option that
// the peer has asked for.
func (c *Config) decide(o TCPOption) (TCPOption, error) {
	if c.AcceptTCPOption == nil {
		if o.Kind == KindCongestion && c.Congestion != "" && c.Congestion != o.Name {
			return o, &TCPOptionError{Option: o, Reason: TCPOptionRefused, Err: errors.New("Config.Congestion is set")}
		}
		return LimitTCPOption(o)
	}
	decided, err := c.AcceptTCPOption(o)
	var known *TCPOptionError
	switch {
	case errors.As(err, &known):
		return o, err
	case err != nil:
		return o, &TCPOptionError{Option: o, Reason: TCPOptionRefused, Err: err}
	}
	decided.Kind = cmp.Or(decided.Kind, o.Kind)
	if decided.Kind != o.Kind {
		return o, &TCPOptionError{Option: o, Reason: TCPOptionRefused, Err: fmt.Errorf("Config.AcceptTCPOption returned %v", decided)}
	}
	_, err = decided.encode()
	return decided, err
}

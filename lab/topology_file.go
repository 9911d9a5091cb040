package lab

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// mostTopology is how long a topology's file may be.
const mostTopology = 1 << 20

// A topologyFile is a Topology in JSON. Hosts and links are read one by one, so
// that errors can name them; shapes, addresses and middleboxes are text.
type topologyFile struct {
	Hosts []json.RawMessage `json:"hosts"`
	Links []json.RawMessage `json:"links"`
	Seed  uint64            `json:"seed"`
}

type hostFile struct {
	Name    string            `json:"name"`
	Forward bool              `json:"forward"`
	Routes  []routeFile       `json:"routes"`
	Sysctls map[string]string `json:"sysctls"`
}

type routeFile struct {
	To   prefixText `json:"to"`
	Via  addrText   `json:"via"`
	From prefixText `json:"from"`
}

type endFile struct {
	Host  string       `json:"host"`
	Addrs []prefixText `json:"addrs"`
}

type linkFile struct {
	Name  string   `json:"name"`
	A     endFile  `json:"a"`
	B     endFile  `json:"b"`
	Shape Shape    `json:"shape"`
	Back  *Shape   `json:"back"`
	MTU   int      `json:"mtu"`
	Boxes []string `json:"boxes"`
}

// LoadTopology reads a topology from a file.
func LoadTopology(file string) (*Topology, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	t, err := ReadTopology(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return t, nil
}

// ReadTopology reads a topology in JSON, of at most 1 MiB, and checks it. Its names are
// those of Topology's fields; what it doesn't know is an error. If it lists hosts at all,
// a link to one that isn't listed is an error too. Shapes are text, see
// [Shape.UnmarshalText], and so are middleboxes, see [ParseMiddlebox]:
//
//	{
//	  "hosts": [{"name": "client", "routes": [{"via": "10.1.0.254"}]}, {"name": "router", "forward": true}],
//	  "links": [{
//	    "name":  "wifi",
//	    "a":     {"host": "client", "addrs": ["10.1.0.1/24", "fd01::1/64"]},
//	    "b":     {"host": "router", "addrs": ["10.1.0.254/24", "fd01::254/64"]},
//	    "shape": "rate=30Mbit/s delay=20ms loss=1%",
//	    "back":  "rate=5Mbit/s delay=20ms",
//	    "mtu":   1400,
//	    "boxes": ["nat idle=30s"]
//	  }]
//	}
func ReadTopology(r io.Reader) (*Topology, error) {
	b, err := io.ReadAll(io.LimitReader(r, mostTopology+1))
	if err != nil {
		return nil, err
	}
	if len(b) > mostTopology {
		return nil, fmt.Errorf("lab: a topology of more than %d bytes", mostTopology)
	}
	t, err := readTopology(b)
	if err == nil {
		err = checkHosts(t)
	}
	if err != nil {
		return nil, fmt.Errorf("lab: topology: %w", err)
	}
	return t, t.Check()
}

func readTopology(b []byte) (*Topology, error) {
	// First the syntax, whose errors know where they are also at the end.
	if err := json.Unmarshal(b, new(json.RawMessage)); err != nil {
		return nil, fmt.Errorf("%w%s", err, line(b, err))
	}
	var file topologyFile
	if err := decode(b, &file); err != nil {
		return nil, fmt.Errorf("%w%s", err, line(b, err))
	}
	t := &Topology{Seed: file.Seed}
	for i, text := range file.Hosts {
		host, err := readHost(text)
		if err != nil {
			return nil, fmt.Errorf("host %s: %w", nameIn(text, i), err)
		}
		t.Hosts = append(t.Hosts, host)
	}
	for i, text := range file.Links {
		link, err := readLink(text)
		if err != nil {
			return nil, fmt.Errorf("link %s: %w", nameIn(text, i), err)
		}
		t.Links = append(t.Links, link)
	}
	return t, nil
}

func readHost(text []byte) (HostSpec, error) {
	var h hostFile
	if err := decode(text, &h); err != nil {
		return HostSpec{}, err
	}
	spec := HostSpec{Name: h.Name, Forward: h.Forward, Sysctls: h.Sysctls}
	for _, r := range h.Routes {
		spec.Routes = append(spec.Routes, Route{To: netip.Prefix(r.To), Via: netip.Addr(r.Via), From: netip.Prefix(r.From)})
	}
	return spec, nil
}

func readLink(text []byte) (LinkSpec, error) {
	var l linkFile
	if err := decode(text, &l); err != nil {
		return LinkSpec{}, err
	}
	spec := LinkSpec{Name: l.Name, A: l.A.end(), B: l.B.end(), Shape: l.Shape, Back: l.Back, MTU: l.MTU}
	for _, text := range l.Boxes {
		box, err := ParseMiddlebox(text)
		if err != nil {
			return LinkSpec{}, err
		}
		spec.Boxes = append(spec.Boxes, box)
	}
	return spec, nil
}

func (e endFile) end() End {
	end := End{Host: e.Host}
	for _, a := range e.Addrs {
		end.Addrs = append(end.Addrs, netip.Prefix(a))
	}
	return end
}

// checkHosts refuses links to hosts that a file which lists hosts doesn't list:
// they are misspelt.
func checkHosts(t *Topology) error {
	if len(t.Hosts) == 0 {
		return nil
	}
	for i := range t.Links {
		l := &t.Links[i]
		for _, host := range []string{l.A.Host, l.B.Host} {
			if host != "" && !slices.ContainsFunc(t.Hosts, func(h HostSpec) bool { return h.Name == host }) {
				return fmt.Errorf("link %q: there is no host %q among the hosts", l.Name, host)
			}
		}
	}
	return nil
}

// decode reads JSON whose syntax is right; what v hasn't is an error.
func decode(text []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	err := dec.Decode(v)
	if kind := (*json.UnmarshalTypeError)(nil); errors.As(err, &kind) {
		return &kindError{kind}
	}
	if err != nil {
		return errors.New(strings.TrimPrefix(err.Error(), "json: "))
	}
	return nil
}

// A kindError says a json.UnmarshalTypeError without the names of Go's types.
type kindError struct{ err *json.UnmarshalTypeError }

func (e *kindError) Error() string {
	if e.err.Field == "" {
		return fmt.Sprintf("a JSON object is needed, not a %s", e.err.Value)
	}
	return fmt.Sprintf("%q can't be a %s", e.err.Field, e.err.Value)
}

func (e *kindError) Unwrap() error { return e.err }

// line names the line of an error that knows where it is.
func line(b []byte, err error) string {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	var offset int64
	switch {
	case errors.As(err, &syntax):
		offset = syntax.Offset
	case errors.As(err, &kind):
		offset = kind.Offset
	default:
		return ""
	}
	return fmt.Sprintf(" (line %d)", 1+bytes.Count(b[:min(int(offset), len(b))], []byte("\n")))
}

// nameIn returns the quoted name of a host or link, or which one it is.
func nameIn(text []byte, i int) string {
	var named struct {
		Name string `json:"name"`
	}
	// It has errors, but perhaps not there.
	if _ = json.Unmarshal(text, &named); named.Name != "" {
		return strconv.Quote(named.Name)
	}
	return strconv.Itoa(i + 1)
}

type prefixText netip.Prefix

func (p *prefixText) UnmarshalText(text []byte) error {
	if err := (*netip.Prefix)(p).UnmarshalText(text); err != nil {
		return fmt.Errorf("%q is no address with the length of its network, as 10.0.0.1/24 is", text)
	}
	return nil
}

type addrText netip.Addr

func (a *addrText) UnmarshalText(text []byte) error {
	if err := (*netip.Addr)(a).UnmarshalText(text); err != nil {
		return fmt.Errorf("%q is no address, as 10.0.0.1 is", text)
	}
	return nil
}

// UnmarshalText reads what [Rate.String] writes; "30Mbit" and "30mbit" are 30Mbit/s too.
func (r *Rate) UnmarshalText(text []byte) error {
	s := strings.TrimSuffix(strings.ToLower(string(text)), "/s")
	unit := Rate(1)
	for _, u := range []struct {
		name string
		rate Rate
	}{{"gbit", Gbit}, {"mbit", Mbit}, {"kbit", Kbit}, {"bit", 1}} {
		if number, ok := strings.CutSuffix(s, u.name); ok {
			s, unit = number, u.rate
			break
		}
	}
	n, err := strconv.ParseFloat(s, 64)
	if err != nil || !(n >= 0) {
		return fmt.Errorf("%q is no rate, as 30Mbit/s is", text)
	}
	*r = Rate(n) * unit
	return nil
}

// String returns what UnmarshalText reads. That of the zero Shape is empty.
func (s Shape) String() string {
	var words []string
	add := func(is bool, format string, args ...any) {
		if is {
			words = append(words, fmt.Sprintf(format, args...))
		}
	}
	add(s.Rate != 0, "rate=%v", s.Rate)
	add(s.Queue != 0, "queue=%d", s.Queue)
	add(s.Delay != 0, "delay=%v", s.Delay)
	add(s.Jitter != 0, "jitter=%v", s.Jitter)
	add(s.Loss != 0, "loss=%g", s.Loss)
	add(s.LossBurst != 0, "burst=%g", s.LossBurst)
	add(s.MaxPacket != 0, "maxpacket=%d", s.MaxPacket)
	add(s.Blackhole, "blackhole=true")
	return strings.Join(words, " ")
}

// UnmarshalText changes the fields that the text names, and leaves the others:
//
//	rate=30Mbit/s queue=125000 delay=20ms jitter=2ms loss=1% burst=4 maxpacket=1400 blackhole=false
//
// burst is LossBurst; loss is a fraction, or has a percent sign.
func (s *Shape) UnmarshalText(text []byte) error {
	set := *s
	for word := range strings.FieldsSeq(string(text)) {
		name, value, _ := strings.Cut(word, "=")
		var err error
		kind := "number"
		switch name {
		case "rate":
			kind = "rate, as 30Mbit/s is"
			err = set.Rate.UnmarshalText([]byte(value))
		case "queue":
			set.Queue, err = strconv.Atoi(value)
		case "delay":
			kind = "time, as 20ms is"
			set.Delay, err = time.ParseDuration(value)
		case "jitter":
			kind = "time, as 20ms is"
			set.Jitter, err = time.ParseDuration(value)
		case "loss":
			number, percent := strings.CutSuffix(value, "%")
			set.Loss, err = strconv.ParseFloat(number, 64)
			if percent {
				set.Loss /= 100
			}
		case "burst":
			set.LossBurst, err = strconv.ParseFloat(value, 64)
		case "maxpacket":
			set.MaxPacket, err = strconv.Atoi(value)
		case "blackhole":
			kind = "boolean, as true is"
			set.Blackhole, err = strconv.ParseBool(value)
		default:
			return fmt.Errorf("a shape has no %q", name)
		}
		if err != nil {
			return fmt.Errorf("shape: %s: %q is no %s", name, value, kind)
		}
	}
	*s = set
	return nil
}

// ParseMiddlebox reads a middlebox: its kind, then what is special about it.
//
//	nat [idle=30s]              NAT
//	firewall [idle=30s]         Firewall
//	strip-options 30 34         StripOptions
//	clamp-mss 1400              ClampMSS
//	cut-after 300000            CutAfter
//	filter-hellos [swallow]     HelloFilter
//	rewrite-sequence [keep-sack]  RewriteSequence
func ParseMiddlebox(text string) (Middlebox, error) {
	words := strings.Fields(text)
	if len(words) == 0 {
		return nil, errors.New("a middlebox has no kind")
	}
	m, err := parseMiddlebox(words[0], words[1:])
	if err != nil {
		return nil, fmt.Errorf("middlebox %q: %w", text, err)
	}
	return m, nil
}

func parseMiddlebox(kind string, args []string) (Middlebox, error) {
	switch kind {
	case "nat":
		idle, err := idleTime(args)
		return NAT{Idle: idle}, err
	case "firewall":
		idle, err := idleTime(args)
		return Firewall{Idle: idle}, err
	case "strip-options":
		var m StripOptions
		if len(args) == 0 {
			return nil, errors.New("which options?")
		}
		for _, arg := range args {
			n, err := number(arg, 8)
			if err != nil {
				return nil, err
			}
			m.Kinds = append(m.Kinds, byte(n))
		}
		return m, nil
	case "clamp-mss":
		n, err := number(strings.Join(args, " "), 16)
		return ClampMSS{MSS: uint16(n)}, err
	case "cut-after":
		n, err := number(strings.Join(args, " "), 63)
		return CutAfter{Bytes: int64(n)}, err
	case "filter-hellos":
		swallow, err := option(args, "swallow")
		return HelloFilter{Swallow: swallow}, err
	case "rewrite-sequence":
		keep, err := option(args, "keep-sack")
		return RewriteSequence{KeepSACK: keep}, err
	}
	return nil, errors.New("there is none of this kind")
}

func idleTime(args []string) (time.Duration, error) {
	if len(args) == 0 {
		return 0, nil
	}
	value, ok := strings.CutPrefix(args[0], "idle=")
	if !ok || len(args) > 1 {
		return 0, errors.New("only idle=DURATION may follow")
	}
	idle, err := time.ParseDuration(value)
	if err != nil || idle < 0 {
		return 0, fmt.Errorf("%q is no time, as 30s is", value)
	}
	return idle, nil
}

// number reads one of so many bits.
func number(text string, bits int) (uint64, error) {
	n, err := strconv.ParseUint(text, 10, bits)
	if err != nil {
		return 0, fmt.Errorf("%q is no number from 0 to %d", text, uint64(1)<<bits-1)
	}
	return n, nil
}

// option reports whether the one word that may follow does.
func option(args []string, word string) (bool, error) {
	if len(args) == 0 {
		return false, nil
	}
	if len(args) > 1 || args[0] != word {
		return false, fmt.Errorf("only %s may follow", word)
	}
	return true, nil
}

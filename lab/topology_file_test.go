package lab_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/go-tcpls/tcpls/lab"
)

func TestReadTopology(t *testing.T) {
	got, err := lab.LoadTopology("testdata/two-isps.json")
	if err != nil {
		t.Fatal(err)
	}
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	end := func(host, addr string) lab.End { return lab.End{Host: host, Addrs: []netip.Prefix{prefix(addr)}} }
	wifi := lab.Shape{Rate: 10 * lab.Mbit, Delay: 10 * time.Millisecond, Jitter: 2 * time.Millisecond}
	back := wifi
	back.Rate = 50 * lab.Mbit
	want := &lab.Topology{
		Hosts: []lab.HostSpec{
			{Name: "laptop", Routes: []lab.Route{
				{Via: addr("10.1.0.254")},
				{Via: addr("10.1.0.254"), From: prefix("10.1.0.1/32")},
				{Via: addr("10.2.0.254"), From: prefix("10.2.0.1/32")},
			}},
			{Name: "internet", Forward: true},
			{Name: "server", Routes: []lab.Route{{Via: addr("10.9.0.254")}}},
		},
		Links: []lab.LinkSpec{
			{
				Name: "wifi", A: end("laptop", "10.1.0.1/24"), B: end("internet", "10.1.0.254/24"), Shape: wifi, Back: &back,
				Boxes: []lab.Middlebox{lab.NAT{Idle: 30 * time.Second}},
			},
			{
				Name: "lte", A: end("laptop", "10.2.0.1/24"), B: end("internet", "10.2.0.254/24"), MTU: 1400,
				Shape: lab.Shape{Rate: 20 * lab.Mbit, Delay: 30 * time.Millisecond, Queue: 250000, Loss: 0.001, LossBurst: 3},
			},
			{Name: "rack", A: end("internet", "10.9.0.254/24"), B: end("server", "10.9.0.1/24")},
		},
	}
	if !reflect.DeepEqual(got, want) {
		a, _ := json.MarshalIndent(got, "", " ") // only to be looked at
		t.Errorf("the file is read as %s", a)
	}
	file, err := os.ReadFile("testdata/two-isps.json")
	if err != nil {
		t.Fatal(err)
	}
	manual, err := os.ReadFile("../docs/lab.md")
	if err != nil || !bytes.Contains(manual, file) {
		t.Errorf("the manual shows another file, %v", err)
	}
	if _, err := lab.LoadTopology("testdata/absent.json"); err == nil || !strings.Contains(err.Error(), "absent.json") {
		t.Errorf("a file that isn't there: %v", err)
	}
}

// TestTopologyFile makes the file's network, and reaches the server over both
// of the laptop's links.
func TestTopologyFile(t *testing.T) {
	topology, err := lab.LoadTopology("testdata/two-isps.json")
	if err != nil {
		t.Fatal(err)
	}
	n := lab.Start(t, topology)
	ln, err := n.Host("server").Listen(t.Context(), "tcp", "10.9.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for _, from := range []string{"10.1.0.1", "10.2.0.1"} {
		d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		conn, err := n.Host("laptop").DialWith(t.Context(), d, "tcp", "10.9.0.1:80")
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
}

func TestReadTopologyErrors(t *testing.T) {
	link := func(more string) string {
		return `{"links": [{"name": "l", "a": {"host": "x"}, "b": {"host": "y"}` + more + `}]}`
	}
	for _, test := range []struct{ text, want string }{
		{"", "(line 1)"},
		{"{\"links\": [\n", "unexpected end of JSON input (line 2)"},
		{"{\n\"links\": [,]}", "(line 2)"},
		{"{\n\n\"links\": 7}", "(line 3)"},
		{"{} {}", "after top-level value (line 1)"},
		{`{"link": []}`, `unknown field "link"`},
		{`{"links": [{"name": "l"}]}`, "a link joins two hosts"},
		{`{"links": [{"mtuu": 1}]}`, `link 1: unknown field "mtuu"`},
		{`{"links": [7]}`, `link 1: a JSON object is needed, not a number`},
		{`{"hosts": [{"name": "x"}, {"nam": "y"}]}`, `host 2: unknown field "nam"`},
		{`{"hosts": [{"name": "x", "routes": [{"via": "gateway"}]}]}`, `host "x": "gateway" is no address`},
		{`{"hosts": [{"name": "x", "routes": [{"via": "10.0.0.1", "to": "10.0.0.0"}]}]}`, `host "x": "10.0.0.0" is no address with the length`},
		{`{"hosts": [{"name": "x"}, {"name": "z"}],` + link("")[1:], `link "l": there is no host "y" among the hosts`},
		{link(`, "a": {"host": "x", "addrs": ["10.0.0.1"]}`), `link "l": "10.0.0.1" is no address with the length of its network, as 10.0.0.1/24 is`},
		{link(`, "mtu": "big"`), `link "l": "mtu" can't be a string`},
		{link(`, "shape": "speed=1Mbit"`), `link "l": a shape has no "speed"`},
		{link(`, "shape": "rate=fast"`), `"fast" is no rate`},
		{link(`, "shape": "rate=-1Mbit"`), `is no rate`},
		{link(`, "shape": "rate=NaNbit"`), `is no rate`},
		{link(`, "shape": "delay=20"`), `shape: delay: "20" is no time, as 20ms is`},
		{link(`, "shape": "loss=200%"`), "the loss 2 is not in 0 to 1"},
		{link(`, "shape": "blackhole=maybe"`), `shape: blackhole: "maybe" is no boolean`},
		{link(`, "boxes": [""]`), "has no kind"},
		{link(`, "boxes": ["wall"]`), "there is none of this kind"},
		{link(`, "boxes": ["nat 30s"]`), "only idle=DURATION may follow"},
		{link(`, "boxes": ["nat idle=-1s"]`), `"-1s" is no time`},
		{link(`, "boxes": ["strip-options"]`), "which options?"},
		{link(`, "boxes": ["strip-options 300"]`), `"300" is no number from 0 to 255`},
		{link(`, "boxes": ["clamp-mss"]`), `"" is no number from 0 to 65535`},
		{link(`, "boxes": ["cut-after -1"]`), `"-1" is no number from 0 to 9223372036854775807`},
		{link(`, "boxes": ["filter-hellos all"]`), "only swallow may follow"},
		{strings.Repeat(" ", 1<<20+1), "more than 1048576 bytes"},
	} {
		got, err := lab.ReadTopology(strings.NewReader(test.text))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%.80s: %v, %v, want an error with %q", test.text, got, err, test.want)
		}
	}
}

func TestParseMiddlebox(t *testing.T) {
	for text, want := range map[string]lab.Middlebox{
		"nat":                        lab.NAT{},
		" firewall  idle=1m ":        lab.Firewall{Idle: time.Minute},
		"strip-options 30 34":        lab.StripOptions{Kinds: []byte{30, 34}},
		"clamp-mss 1400":             lab.ClampMSS{MSS: 1400},
		"cut-after 300000":           lab.CutAfter{Bytes: 300000},
		"filter-hellos":              lab.HelloFilter{},
		"filter-hellos swallow":      lab.HelloFilter{Swallow: true},
		"rewrite-sequence keep-sack": lab.RewriteSequence{KeepSACK: true},
	} {
		if got, err := lab.ParseMiddlebox(text); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %#v, %v", text, got, err)
		}
	}
}

func TestShapeText(t *testing.T) {
	for _, s := range []lab.Shape{
		{},
		{Rate: 1.5 * lab.Gbit, Queue: 1 << 20, Delay: time.Second, Jitter: 1500 * time.Microsecond, Loss: 0.015, LossBurst: 2.5, MaxPacket: 1280, Blackhole: true},
		{Rate: 100, Loss: 1},
	} {
		var got lab.Shape
		if err := got.UnmarshalText([]byte(s.String())); err != nil || got != s {
			t.Errorf("%q is read as %q, %v", s, got, err)
		}
	}
	s := lab.Shape{Rate: lab.Mbit, Delay: time.Second}
	if err := s.UnmarshalText([]byte("rate=2mbit loss=3%")); err != nil || s != (lab.Shape{Rate: 2 * lab.Mbit, Delay: time.Second, Loss: 0.03}) {
		t.Errorf("what isn't named stays: %v, %v", s, err)
	}
	before := s
	if err := s.UnmarshalText([]byte("rate=3mbit loss=x")); err == nil || s != before {
		t.Errorf("an error changes nothing: %v, %v", s, err)
	}
}

func FuzzReadTopology(f *testing.F) {
	f.Add(`{"hosts": [{"name": "a", "routes": [{"via": "::1"}]}, {"name": "b"}], "links": [{"name": "l", "a": {"host": "a"}, "b": {"host": "b"},
		"shape": "rate=1kbit loss=1% burst=3", "boxes": ["nat idle=1s"]}]}`)
	f.Fuzz(func(t *testing.T, text string) {
		topology, err := lab.ReadTopology(strings.NewReader(text))
		if err != nil {
			return
		}
		if err := topology.Check(); err != nil {
			t.Errorf("what was read isn't right: %v", err)
		}
		for _, l := range topology.Links {
			var s lab.Shape
			if err := s.UnmarshalText([]byte(l.Shape.String())); err != nil || s != l.Shape {
				t.Errorf("%v becomes %v, %v", l.Shape, s, err)
			}
		}
	})
}

func ExampleReadTopology() {
	topology, err := lab.ReadTopology(strings.NewReader(`{"links": [{
		"name":  "path",
		"a":     {"host": "client", "addrs": ["10.0.0.1/24"]},
		"b":     {"host": "server", "addrs": ["10.0.0.2/24"]},
		"shape": "rate=30mbit delay=20ms loss=1%"
	}]}`))
	fmt.Println(topology.Links[0].Shape, err)
	// Output:
	// rate=30Mbit/s delay=20ms loss=0.01 <nil>
}

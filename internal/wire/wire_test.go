package wire_test

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/go-tcpls/tcpls/internal/wire"
)

func TestContexts(t *testing.T) {
	for _, test := range []struct {
		id           uint32
		stream, path bool
	}{
		{0, false, true},
		{1, true, false},
		{0x3fffffff, true, false},
		{0x40000000, false, false},
		{0x7fffffff, false, false},
		{wire.Control, false, false},
		{0xc0000000, false, false},
		{0xc0000001, false, true},
		{0xc000ffff, false, true},
		{0xc0010000, false, false},
		{math.MaxUint32, false, false},
	} {
		if wire.IsStream(test.id) != test.stream || wire.IsPath(test.id) != test.path {
			t.Errorf("%#x: stream %v, path %v", test.id, wire.IsStream(test.id), wire.IsPath(test.id))
		}
	}
	for path, id := range map[uint16]uint32{0: 0, 1: 0xc0000001, 65535: 0xc000ffff} {
		if got := wire.PathContext(path); got != id {
			t.Errorf("path %d has context %#x, want %#x", path, got, id)
		}
	}
	if !wire.ClientOpened(1) || wire.ClientOpened(2) {
		t.Error("odd streams are the client's, even ones the server's")
	}
}

// TestParametersOfTime checks that a timeout is never shortened, nor turned
// into none.
func TestParametersOfTime(t *testing.T) {
	const most = math.MaxInt64 / time.Millisecond * time.Millisecond
	for _, test := range []struct{ in, want time.Duration }{
		{0, 0},
		{-time.Second, 0},
		{1, time.Millisecond},
		{time.Millisecond + 1, 2 * time.Millisecond},
		{30 * time.Second, 30 * time.Second},
		{most, most},
		{math.MaxInt64, most},
	} {
		p, err := wire.ParseAnswer(wire.AppendAnswer(nil, &wire.Parameters{IdleTimeout: test.in}))
		if p.IdleTimeout != test.want || err != nil {
			t.Errorf("%v became %v, %v; want %v", test.in, p.IdleTimeout, err, test.want)
		}
	}
	// The largest value that a peer can send.
	p, err := wire.ParseAnswer([]byte("\x01\x04\x08\xff\xff\xff\xff\xff\xff\xff\xff"))
	if p.IdleTimeout != most || err != nil {
		t.Errorf("2^62-1 ms became %v, %v", p.IdleTimeout, err)
	}
}

func TestReason(t *testing.T) {
	for _, test := range []struct{ name, in, want string }{
		{"longest", strings.Repeat("x", wire.MaxReason), strings.Repeat("x", wire.MaxReason)},
		{"too long", strings.Repeat("x", wire.MaxReason+1), strings.Repeat("x", wire.MaxReason)},
		{"cut between characters", "x" + strings.Repeat("é", wire.MaxReason/2), "x" + strings.Repeat("é", wire.MaxReason/2-1)},
		{"not UTF-8", "a\xffb", "a\uFFFDb"},
	} {
		var f wire.Frame
		_, err := f.Parse(wire.AppendClose(nil, wire.Application, 1, test.in), wire.OnControl)
		if string(f.Reason) != test.want || err != nil {
			t.Errorf("%s: got %d bytes, %v; want %d", test.name, len(f.Reason), err, len(test.want))
		}
	}
	long := append([]byte{byte(wire.Close), 0x44, 0x03, 0, 0}, bytes.Repeat([]byte("x"), wire.MaxReason+1)...)
	var f wire.Frame
	_, err := f.Parse(long, wire.OnControl)
	var e *wire.Error
	if !errors.As(err, &e) || e.Rule != "5.15" {
		t.Errorf("a reason of %d bytes: got %v", wire.MaxReason+1, err)
	}
}

func TestReasonIsNotCopied(t *testing.T) {
	b := wire.AppendClose(nil, wire.Protocol, 0, "reason")
	var f wire.Frame
	if _, err := f.Parse(append(b, 0), wire.OnControl); err != nil {
		t.Fatal(err)
	}
	if cap(f.Reason) != len(f.Reason) {
		t.Error("appending to Reason would write over the next frame")
	}
}

func TestMaxFrameLen(t *testing.T) {
	p := &wire.Parameters{
		StreamCredit: wire.MaxVarint, SessionCredit: wire.MaxVarint,
		StreamLimit: wire.MaxVarint, IdleTimeout: math.MaxInt64, ProgramSize: wire.MaxVarint,
	}
	longest := 0
	for _, b := range [][]byte{
		wire.AppendAttach(nil, wire.Control, wire.MaxVarint, wire.MaxVarint),
		wire.AppendAck(nil, wire.Control, wire.MaxVarint, wire.MaxVarint),
		wire.AppendReset(nil, wire.MaxStreamID, wire.MaxVarint, wire.MaxVarint),
		wire.AppendParameters(nil, p),
		wire.AppendPing(nil, [8]byte{}),
		wire.AppendOptionAnswer(nil, wire.MaxVarint, wire.OptionSet, make([]byte, wire.MaxOptionValue)),
	} {
		longest = max(longest, len(b))
	}
	if longest != wire.MaxFrameLen {
		t.Errorf("the longest frame has %d bytes, not %d", longest, wire.MaxFrameLen)
	}
}

func TestTooLarge(t *testing.T) {
	for name, f := range map[string]func(){
		"AppendVarint":  func() { wire.AppendVarint(nil, wire.MaxVarint+1) },
		"VarintLen":     func() { wire.VarintLen(wire.MaxVarint + 1) },
		"AppendTrailer": func() { wire.AppendTrailer(make([]byte, 1<<16), 0) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s wrote what can't be read", name)
				}
			}()
			f()
		}()
	}
}

func TestStrings(t *testing.T) {
	for _, test := range []struct{ got, want string }{
		{wire.Ack.String(), "ACK"},
		{wire.Kind(0x3f).String(), "frame 0x3f"},
		{wire.Kind(math.MaxUint64).String(), "frame 0xffffffffffffffff"},
		{wire.CodeNone.String(), "NO_ERROR"},
		{wire.CodeKeyUpdate.String(), "KEY_UPDATE"},
		{wire.SessionCode(10).String(), "session code 0xa"},
		{wire.OptionStatus(7).String(), "status 7"},
		{wire.CodeClosed.String(), "CLOSED"},
		{wire.CodeRefused.String(), "REFUSED"},
		{wire.StreamCode(1).String(), "stream code 0x1"},
		{wire.Protocol.String(), "protocol"},
		{wire.Application.String(), "application"},
		{wire.Class(2).String(), "class 2"},
		{wire.OnPath.String(), "a path context"},
		{wire.OnControl.String(), "the control context"},
		{wire.OnStream.String(), "a stream context"},
		{(wire.OnStream | wire.OnPath).String(), "places 0b101"},
	} {
		if test.got != test.want {
			t.Errorf("got %q, want %q", test.got, test.want)
		}
	}
	var f wire.Frame
	_, err := f.Parse([]byte{byte(wire.Attach), 4, 1, 0, 0, 7}, wire.OnPath)
	const want = "tcpls: peer sent ATTACH with reserved mode 7 (protocol 5.2)"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// TestTableOfFrames compares the kinds and their places with the table in
// docs/protocol.md, section 5.
func TestTableOfFrames(t *testing.T) {
	doc, err := os.ReadFile("../../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile(`(?m)^\| 5\.\d+ \| (0x[0-9a-f]+) \| (\w+) \| ([PCS ]+) \|`).FindAllSubmatch(doc, -1)
	known := 0
	for k := range wire.Kind(256) {
		if k.Known() {
			known++
		}
	}
	if len(rows) != known {
		t.Fatalf("the document has %d frames, the code %d", len(rows), known)
	}
	letters := map[string]wire.Place{"P": wire.OnPath, "C": wire.OnControl, "S": wire.OnStream}
	for _, row := range rows {
		var n number
		if err := n.UnmarshalText(row[1]); err != nil {
			t.Fatal(err)
		}
		k := wire.Kind(n)
		if k.String() != string(row[2]) {
			t.Errorf("type %#x is %v, in the document %s", uint64(n), k, row[2])
		}
		for letter, place := range letters {
			// An empty body may be malformed, but not misplaced.
			var f wire.Frame
			_, err := f.Parse([]byte{byte(k), 0}, place)
			misplaced := err != nil && strings.Contains(err.Error(), " in ")
			if allowed := strings.Contains(string(row[3]), letter); allowed == misplaced {
				t.Errorf("%v in %v: %v", k, place, err)
			}
		}
	}
}

// TestTableOfCodes compares the codes and statuses with the tables in
// docs/protocol.md, sections 7 and 11.
func TestTableOfCodes(t *testing.T) {
	doc, err := os.ReadFile("../../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	codes, rest, _ := bytes.Cut(doc, []byte("\n## 8."))
	_, statuses, _ := bytes.Cut(rest, []byte("\n## 11."))
	rowOf := regexp.MustCompile(`(?m)^\| (\d+) \| ([A-Z_]+) \|`)
	rows, answers := rowOf.FindAllSubmatch(codes, -1), rowOf.FindAllSubmatch(statuses, -1)
	if len(rows) != int(wire.CodeKeyUpdate)+1 || len(answers) != int(wire.OptionFailed)+1 {
		t.Errorf("the document has %d session codes and %d statuses", len(rows), len(answers))
	}
	for i, row := range answers {
		if s := wire.OptionStatus(i); string(row[1]) != strconv.Itoa(i) || s.String() != string(row[2]) {
			t.Errorf("status %d is %v, in the document %s %s", i, s, row[1], row[2])
		}
	}
	for _, row := range rows {
		var n number
		if err := n.UnmarshalText(row[1]); err != nil {
			t.Fatal(err)
		}
		if c := wire.SessionCode(n); c.String() != string(row[2]) {
			t.Errorf("code %d is %v, in the document %s", n, c, row[2])
		}
	}
	for code, text := range map[wire.StreamCode]string{
		wire.CodeClosed:  "0x3fffffffffffff00 CLOSED",
		wire.CodeRefused: "0x3fffffffffffff01 REFUSED",
	} {
		if !bytes.Contains(doc, []byte(text)) || !strings.HasSuffix(text, " "+code.String()) {
			t.Errorf("code %v is not %s in the document", code, text)
		}
	}
}

func TestNoAllocations(t *testing.T) {
	p := &wire.Parameters{StreamCredit: 1 << 20, SessionCredit: 1 << 24, StreamLimit: 100, IdleTimeout: time.Minute}
	b := make([]byte, 0, 4096)
	var f wire.Frame
	allocs := testing.AllocsPerRun(1000, func() {
		parse := func(b []byte, place wire.Place) {
			_, frames, err := wire.SplitTrailer(wire.AppendTrailer(b, 0))
			for len(frames) > 0 && err == nil {
				frames, err = f.Parse(frames, place)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		b := wire.AppendNext(b[:0], 1)
		b = wire.AppendAttach(b, 3, 1000, 1)
		b = wire.AppendAck(b, wire.Control, 1000, 0)
		b = wire.AppendSessionCredit(b, 1<<30)
		b = wire.AppendStreamLimit(b, 100)
		b = wire.AppendPing(b, [8]byte{1})
		b = wire.AppendPong(b, [8]byte{1})
		parse(b, wire.OnPath)
		b = wire.AppendFin(b[:0])
		b = wire.AppendKeyUpdate(b, 1)
		parse(b, wire.OnStream)
		b = wire.AppendParameters(b[:0], p)
		b = wire.AppendReset(b, 1, 2, 3)
		b = wire.AppendStopSending(b, 1, 2)
		b = wire.AppendKeyRequest(b, 1)
		b = wire.AppendGoingAway(b, 1)
		b = wire.AppendClose(b, wire.Application, 1, "reason")
		parse(b, wire.OnControl)
		if ours, err := wire.ParseOffer(wire.AppendOffer(b[:0])); !ours || err != nil {
			t.Fatal(err)
		}
		if q, err := wire.ParseAnswer(wire.AppendAnswer(b[:0], p)); q.Parameters != *p || err != nil {
			t.Fatal(err)
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations, want none", allocs)
	}
}

func FuzzVarint(f *testing.F) {
	for _, v := range newTestVectors(f).Varints {
		f.Add([]byte(v.Hex))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		v, n := wire.ConsumeVarint(b)
		if n == 0 {
			return
		}
		if v > wire.MaxVarint || n > len(b) || wire.VarintLen(v) > n {
			t.Fatalf("%x: %d in %d bytes", b, v, n)
		}
		again := wire.AppendVarint(nil, v)
		if w, m := wire.ConsumeVarint(again); w != v || m != len(again) || m != wire.VarintLen(v) {
			t.Fatalf("%d became %d", v, w)
		}
	})
}

// FuzzFrame parses whole records of frames, and what it understands again from
// how it writes it.
func FuzzFrame(f *testing.F) {
	file := newTestVectors(f)
	for _, v := range file.Frames {
		f.Add([]byte(v.Hex), byte(places[v.Where]))
	}
	for _, v := range file.Malformed {
		if place := places[v.Where]; place != 0 {
			f.Add([]byte(v.Hex), byte(place))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, place byte) {
		var f, g wire.Frame
		for len(b) > 0 {
			rest, err := f.Parse(b, wire.Place(place))
			var e *wire.Error
			if err != nil {
				if !errors.As(err, &e) || e.Rule == "" {
					t.Fatalf("%x: %v names no rule", b, err)
				}
				return
			}
			if len(rest) >= len(b) || !bytes.HasSuffix(b, rest) {
				t.Fatalf("%x left %x", b, rest)
			}
			if f.Kind.Known() {
				if !utf8.Valid(f.Reason) || len(f.Reason) > wire.MaxReason {
					t.Fatalf("reason %q", f.Reason)
				}
				again := appendFrame(nil, &f)
				left, err := g.Parse(again, wire.Place(place))
				if err != nil || len(left) > 0 || !sameFrame(f, g) {
					t.Fatalf("%+v became %+v, %v", f, g, err)
				}
			}
			b = rest
		}
	})
}

func FuzzExtension(f *testing.F) {
	file := newTestVectors(f)
	for _, v := range file.Offers {
		f.Add([]byte(v.Hex))
	}
	for _, v := range file.Answers {
		f.Add([]byte(v.Hex))
	}
	for _, v := range file.Malformed {
		if v.Where == "offer" || v.Where == "answer" {
			f.Add([]byte(v.Hex))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		ours, err := wire.ParseOffer(b)
		if ours && (err != nil || !bytes.Contains(b[1:], []byte{wire.Version})) {
			t.Fatalf("Offer %x: %v, %v", b, ours, err)
		}
		a, err := wire.ParseAnswer(b)
		if err != nil {
			return
		}
		again := wire.AppendAddresses(wire.AppendTokens(wire.AppendAnswer(nil, &a.Parameters), a.Tokens), a.Addresses)
		if c, err := wire.ParseAnswer(again); !reflect.DeepEqual(a, c) || err != nil {
			t.Fatalf("%+v became %+v, %v", a, c, err)
		}
	})
}

func FuzzOption(f *testing.F) {
	for _, v := range newTestVectors(f).Options {
		f.Add([]byte(v.Hex))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := wire.ParseOptionRequest(b)
		if err != nil {
			return
		}
		again := wire.AppendOptionRequest(nil, &r)
		if s, err := wire.ParseOptionRequest(again); !reflect.DeepEqual(r, s) || err != nil {
			t.Fatalf("%+v became %+v, %v", r, s, err)
		}
		if seconds, ok := wire.ParseUserTimeout(r.Value); ok {
			if s, ok := wire.ParseUserTimeout(wire.AppendUserTimeout(nil, seconds)); s != seconds || !ok {
				t.Fatalf("%d s became %d s, %v", seconds, s, ok)
			}
		}
	})
}

func FuzzTrailer(f *testing.F) {
	for _, v := range newTestVectors(f).Trailers {
		f.Add([]byte(v.Content))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		stream, frames, err := wire.SplitTrailer(b)
		if err != nil {
			return
		}
		again := wire.AppendTrailer(append(bytes.Clone(stream), frames...), len(stream))
		if !bytes.Equal(again, b) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	frames := wire.AppendAck(wire.AppendNext(nil, 5), 5, 1<<20, 1<<32)
	var f wire.Frame
	for b.Loop() {
		for rest := frames; len(rest) > 0; {
			var err error
			if rest, err = f.Parse(rest, wire.OnPath); err != nil {
				b.Fatal(err)
			}
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	buf := make([]byte, 0, 64)
	for b.Loop() {
		buf = wire.AppendAck(wire.AppendNext(buf[:0], 5), 5, 1<<20, 1<<32)
	}
}

// TestTableOfProgramCodes compares them with docs/protocol.md, 12.6.
func TestTableOfProgramCodes(t *testing.T) {
	doc, err := os.ReadFile("../../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(doc), "\n12.6 ")
	rows := regexp.MustCompile(`(?m)^\| ([A-Z_]+) \| (\d+) \|`).FindAllStringSubmatch(table, -1)
	if len(rows) != int(wire.ProgramStalled)+1 {
		t.Errorf("the document has %d codes", len(rows))
	}
	for n, row := range rows {
		if code := wire.ProgramCode(n).String(); row[1] != code || row[2] != fmt.Sprint(n) {
			t.Errorf("code %d is %s, in the document %s %s", n, code, row[2], row[1])
		}
	}
}

func TestProgramNames(t *testing.T) {
	for name, want := range map[string]bool{
		"": false, "a": true, "bandwidth-2.0_x": true, "bandwidth-2.0_xy": false, "Reno": false, "a b": false, "é": false, "a\x00": false,
	} {
		if got := wire.IsProgramName(name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}

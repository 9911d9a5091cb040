package wire_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/internal/wire"
	"golang.org/x/crypto/chacha20poly1305"
)

// number and octets are how vectors.json writes integers and bytes.
type number uint64

func (n *number) UnmarshalText(text []byte) error {
	v, err := strconv.ParseUint(string(text), 0, 64)
	*n = number(v)
	return err
}

type octets []byte

func (o *octets) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	*o = b
	return err
}

type parameterVector struct {
	StreamCredit  number `json:"stream_credit"`
	SessionCredit number `json:"session_credit"`
	StreamLimit   number `json:"stream_limit"`
	IdleTimeout   number `json:"idle_timeout_ms"`
	Options       []optionVector
	Kinds         []number
	SYNReports    bool   `json:"syn_reports"`
	ProgramSize   number `json:"program_size"`
}

func (v *parameterVector) parameters() wire.Parameters {
	return wire.Parameters{
		StreamCredit:  uint64(v.StreamCredit),
		SessionCredit: uint64(v.SessionCredit),
		StreamLimit:   uint64(v.StreamLimit),
		IdleTimeout:   time.Duration(v.IdleTimeout) * time.Millisecond,
		TCPOptions:    string(wire.AppendTCPOptions(nil, v.options()...)),
		TCPKinds:      string(v.kinds()),
		ProgramSize:   uint64(v.ProgramSize),
		SYNReports:    v.SYNReports,
	}
}

func (v *parameterVector) options() (list []wire.TCPOption) {
	for _, o := range v.Options {
		list = append(list, wire.TCPOption{Kind: uint64(o.Kind), Value: o.Value})
	}
	return list
}

func (v *parameterVector) kinds() (list []byte) {
	for _, k := range v.Kinds {
		list = wire.AppendVarint(list, uint64(k))
	}
	return list
}

type optionVector struct {
	Kind  number
	Value octets
}

type answerVector struct {
	Comment   string
	Hex       octets
	ParseOnly bool `json:"parse_only"`
	parameterVector
	Tokens []struct {
		Path  number
		Token octets
	}
	Addresses []struct {
		ID      number
		Address netip.AddrPort
	}
}

// given returns what is for further paths.
func (v *answerVector) given() (tokens []wire.PathToken, addresses []wire.Address) {
	for _, t := range v.Tokens {
		tokens = append(tokens, wire.PathToken{Path: uint32(t.Path), Token: t.Token})
	}
	for _, a := range v.Addresses {
		addresses = append(addresses, wire.Address{ID: uint64(a.ID), AddrPort: a.Address})
	}
	return tokens, addresses
}

type frameVector struct {
	Comment   string
	Name      string
	Where     string
	Hex       octets
	ParseOnly bool `json:"parse_only"`

	Context, Seq, Epoch, Credit, Streams, Code, Size, Class number
	Data                                                    octets
	Reason                                                  string
	Path, Weight                                            number
	Lost, Backup                                            bool
	Token                                                   octets
	ID                                                      number
	Address                                                 netip.AddrPort
	Number, Status                                          number
	Value                                                   octets
	Kernel, Offset, State                                   number
	Hash, Object                                            octets
	Program                                                 string
	SYN                                                     synVector
	parameterVector
}

type synVector struct {
	Source     netip.AddrPort
	HopLimit   number `json:"hop_limit"`
	Flags      number
	MSS        number
	Scale      number
	Timestamp  number
	Negotiated number
	AnswerMSS  number `json:"answer_mss"`
	Options    octets
}

func (v *synVector) syn() wire.SYN {
	return wire.SYN{
		Source: v.Source, HopLimit: uint8(v.HopLimit), Flags: uint8(v.Flags), MSS: uint16(v.MSS), Scale: uint8(v.Scale),
		Timestamp: uint32(v.Timestamp), Negotiated: uint8(v.Negotiated), AnswerMSS: uint16(v.AnswerMSS), Options: v.Options,
	}
}

type recordVector struct {
	Comment   string
	Suite     string
	Secret    octets
	Epoch     number
	Key, IV   octets
	Context   number
	Seq       number
	Nonce     octets
	InnerType number `json:"inner_type"`
	Content   octets
	Padding   number
	Record    octets
}

type vectorFile struct {
	About   string
	Varints []struct {
		Value     number
		Hex       octets
		ParseOnly bool `json:"parse_only"`
	}
	Offers []struct {
		Version1  bool `json:"version_1"`
		Hex       octets
		ParseOnly bool `json:"parse_only"`
	}
	Answers []answerVector
	Frames  []frameVector
	Options []struct {
		Comment      string
		Number, Path number
		optionVector
		Hex octets
	}
	UserTimeouts []struct {
		Seconds   number
		Hex       octets
		ParseOnly bool `json:"parse_only"`
	} `json:"user_timeouts"`
	Trailers []struct {
		Comment                 string
		Content, Stream, Frames octets
	}
	Malformed []struct {
		Comment, Where, Rule string
		Hex                  octets
	}
	Records []recordVector
}

func newTestVectors(t testing.TB) *vectorFile {
	t.Helper()
	b, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	v := new(vectorFile)
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		t.Fatal(err)
	}
	return v
}

var places = map[string]wire.Place{"path": wire.OnPath, "control": wire.OnControl, "stream": wire.OnStream}

// appendFrame writes f with the function for its kind.
func appendFrame(b []byte, f *wire.Frame) []byte {
	switch f.Kind {
	case wire.Next:
		return wire.AppendNext(b, f.Context)
	case wire.Attach:
		return wire.AppendAttach(b, f.Context, f.Seq, f.Epoch)
	case wire.Ack:
		return wire.AppendAck(b, f.Context, f.Seq, f.Credit)
	case wire.SessionCredit:
		return wire.AppendSessionCredit(b, f.Credit)
	case wire.StreamLimit:
		return wire.AppendStreamLimit(b, f.Streams)
	case wire.Ping:
		return wire.AppendPing(b, f.Data)
	case wire.Pong:
		return wire.AppendPong(b, f.Data)
	case wire.Fin:
		return wire.AppendFin(b)
	case wire.KeyUpdate:
		return wire.AppendKeyUpdate(b, f.Epoch)
	case wire.Params:
		return wire.AppendParameters(b, &f.Params)
	case wire.Reset:
		return wire.AppendReset(b, f.Context, f.Code, f.Size)
	case wire.StopSending:
		return wire.AppendStopSending(b, f.Context, f.Code)
	case wire.KeyRequest:
		return wire.AppendKeyRequest(b, f.Epoch)
	case wire.GoingAway:
		return wire.AppendGoingAway(b, f.Context)
	case wire.PathLeft:
		return wire.AppendPathLeft(b, f.Path, f.Lost)
	case wire.PathStatus:
		return wire.AppendPathStatus(b, f.Backup, f.Weight)
	case wire.Token:
		return wire.AppendToken(b, f.Path, f.Token)
	case wire.AddAddress:
		return wire.AppendAddAddress(b, f.Address)
	case wire.RemoveAddress:
		return wire.AppendRemoveAddress(b, f.Address.ID)
	case wire.OptionAnswer:
		return wire.AppendOptionAnswer(b, f.Number, f.Status, f.Value)
	case wire.OfferCC:
		return wire.AppendOfferCC(b, &f.Program)
	case wire.DataCC:
		return wire.AppendDataCC(b, f.Program.ID, f.Program.Offset, f.Program.Data)
	case wire.AnswerCC:
		return wire.AppendAnswerCC(b, f.Program.ID, f.Program.State, wire.ProgramCode(f.Code), string(f.Reason))
	case wire.WithdrawCC:
		return wire.AppendWithdrawCC(b, f.Program.ID)
	case wire.SYNRequest:
		return wire.AppendSYNRequest(b, f.Path)
	case wire.SYNReport:
		return wire.AppendSYNReport(b, f.Path, &f.SYN)
	case wire.Close:
		return wire.AppendClose(b, f.Class, f.Code, string(f.Reason))
	}
	panic(fmt.Sprintf("no function for %v", f.Kind))
}

// sameFrame compares two frames; a Reason makes them incomparable with ==.
func sameFrame(f, g wire.Frame) bool {
	same := bytes.Equal(f.Reason, g.Reason) && bytes.Equal(f.Token, g.Token) && bytes.Equal(f.Value, g.Value)
	f.Reason, g.Reason, f.Token, g.Token, f.Value, g.Value = nil, nil, nil, nil, nil, nil
	return same && fmt.Sprintf("%+v", f) == fmt.Sprintf("%+v", g)
}

func TestVarintVectors(t *testing.T) {
	for _, v := range newTestVectors(t).Varints {
		got, n := wire.ConsumeVarint(append(v.Hex, 0xff))
		if got != uint64(v.Value) || n != len(v.Hex) {
			t.Errorf("%x: got %d in %d bytes, want %d in %d", v.Hex, got, n, v.Value, len(v.Hex))
		}
		for short := range v.Hex {
			if _, n := wire.ConsumeVarint(v.Hex[:short]); n != 0 {
				t.Errorf("%x: %d bytes suffice", v.Hex, short)
			}
		}
		if v.ParseOnly {
			continue
		}
		if b := wire.AppendVarint(nil, uint64(v.Value)); !bytes.Equal(b, v.Hex) {
			t.Errorf("%d: wrote %x, want %x", v.Value, b, v.Hex)
		}
		if n := wire.VarintLen(uint64(v.Value)); n != len(v.Hex) {
			t.Errorf("%d: length %d, want %d", v.Value, n, len(v.Hex))
		}
	}
}

func TestExtensionVectors(t *testing.T) {
	file := newTestVectors(t)
	for _, v := range file.Offers {
		if ours, err := wire.ParseOffer(v.Hex); ours != v.Version1 || err != nil {
			t.Errorf("Offer %x: got %v, %v", v.Hex, ours, err)
		}
		if b := wire.AppendOffer(nil); !v.ParseOnly && !bytes.Equal(b, v.Hex) {
			t.Errorf("wrote Offer %x, want %x", b, v.Hex)
		}
	}
	for _, v := range file.Answers {
		want := v.parameters()
		got, err := wire.ParseAnswer(v.Hex)
		if got.Parameters != want || err != nil {
			t.Errorf("Answer with %s: got %+v, %v; want %+v", v.Comment, got, err, want)
		}
		tokens, addresses := v.given()
		if !reflect.DeepEqual(got.Tokens, tokens) || !slices.Equal(got.Addresses, addresses) {
			t.Errorf("Answer with %s: got %x and %v; want %x and %v", v.Comment, got.Tokens, got.Addresses, tokens, addresses)
		}
		b := wire.AppendAddresses(wire.AppendTokens(wire.AppendAnswer(nil, &want), tokens), addresses)
		if !v.ParseOnly && !bytes.Equal(b, v.Hex) {
			t.Errorf("Answer with %s: wrote %x, want %x", v.Comment, b, v.Hex)
		}
	}
}

func TestFrameVectors(t *testing.T) {
	seen := make(map[wire.Kind]bool)
	for _, v := range newTestVectors(t).Frames {
		t.Run(v.Name, func(t *testing.T) {
			var f wire.Frame
			rest, err := f.Parse(append(v.Hex, "rest"...), places[v.Where])
			if err != nil || string(rest) != "rest" || f.Kind.String() != v.Name {
				t.Fatalf("%x: got %v, %q left, %v", v.Hex, f.Kind, rest, err)
			}
			want := wire.Frame{
				Kind:    f.Kind,
				Context: uint32(v.Context),
				Class:   wire.Class(v.Class),
				Seq:     uint64(v.Seq),
				Epoch:   uint64(v.Epoch),
				Credit:  uint64(v.Credit),
				Streams: uint64(v.Streams),
				Code:    uint64(v.Code),
				Size:    uint64(v.Size),
				Params:  v.parameters(),
				Reason:  []byte(v.Reason),
				Path:    uint32(v.Path),
				Lost:    v.Lost,
				Backup:  v.Backup,
				Weight:  uint64(v.Weight),
				Token:   v.Token,
				SYN:     v.SYN.syn(),
				Address: wire.Address{ID: uint64(v.ID), AddrPort: v.Address},
				Number:  uint64(v.Number),
				Status:  wire.OptionStatus(v.Status),
				Value:   v.Value,
			}
			if strings.HasPrefix(v.Name, "CC_") {
				want.Address.ID = 0
				want.Program = wire.Program{
					ID: uint64(v.ID), Size: uint64(v.Size), Kernel: uint64(v.Kernel), Hash: v.Hash, Name: []byte(v.Program),
					Offset: uint64(v.Offset), Data: v.Object, State: wire.ProgramState(v.State),
				}
				want.Size = 0
			}
			copy(want.Data[:], v.Data)
			if !sameFrame(f, want) {
				t.Errorf("%x:\ngot  %+v\nwant %+v", v.Hex, f, want)
			}
			if v.ParseOnly {
				return
			}
			seen[f.Kind] = true
			if b := appendFrame(nil, &f); !bytes.Equal(b, v.Hex) {
				t.Errorf("wrote %x, want %x", b, v.Hex)
			}
		})
	}
	for k := range wire.Kind(64) {
		if k.Known() && !seen[k] {
			t.Errorf("no vector for %v", k)
		}
	}
}

func TestOptionVectors(t *testing.T) {
	file := newTestVectors(t)
	for _, v := range file.Options {
		want := wire.OptionRequest{
			Number: uint64(v.Number), Path: uint32(v.Path), TCPOption: wire.TCPOption{Kind: uint64(v.Kind), Value: append([]byte{}, v.Value...)},
		}
		got, err := wire.ParseOptionRequest(v.Hex)
		if !reflect.DeepEqual(got, want) || err != nil {
			t.Errorf("%s, %x: got %+v, %v; want %+v", v.Comment, v.Hex, got, err, want)
		}
		if b := wire.AppendOptionRequest(nil, &want); !bytes.Equal(b, v.Hex) {
			t.Errorf("%s: wrote %x, want %x", v.Comment, b, v.Hex)
		}
	}
	for _, v := range file.UserTimeouts {
		got, ok := wire.ParseUserTimeout(v.Hex)
		if got != uint64(v.Seconds) || !ok {
			t.Errorf("user timeout %x: got %d s, %v; want %d s", v.Hex, got, ok, v.Seconds)
		}
		if b := wire.AppendUserTimeout(nil, uint64(v.Seconds)); !v.ParseOnly && !bytes.Equal(b, v.Hex) {
			t.Errorf("user timeout of %d s: wrote %x, want %x", v.Seconds, b, v.Hex)
		}
	}
	for _, value := range [][]byte{nil, {0}, {0, 0}, {0x80, 0}, {0, 0, 1}} {
		if got, ok := wire.ParseUserTimeout(value); ok {
			t.Errorf("user timeout %x: got %d s, which RFC 5482 reserves or doesn't know", value, got)
		}
	}
	if b := wire.AppendUserTimeout(nil, 32768); !bytes.Equal(b, []byte{0x82, 0x23}) {
		t.Errorf("32768 s became %x, want 547 minutes: rounded up", b)
	}
}

func TestTrailerVectors(t *testing.T) {
	for _, v := range newTestVectors(t).Trailers {
		stream, frames, err := wire.SplitTrailer(v.Content)
		if err != nil || !bytes.Equal(stream, v.Stream) || !bytes.Equal(frames, v.Frames) {
			t.Errorf("%s: got %x and %x, %v", v.Comment, stream, frames, err)
		}
		b := append(bytes.Clone(v.Stream), v.Frames...)
		if b = wire.AppendTrailer(b, len(v.Stream)); !bytes.Equal(b, v.Content) {
			t.Errorf("%s: wrote %x, want %x", v.Comment, b, v.Content)
		}
	}
}

func TestMalformedVectors(t *testing.T) {
	for _, v := range newTestVectors(t).Malformed {
		var err error
		switch v.Where {
		case "offer":
			_, err = wire.ParseOffer(v.Hex)
		case "answer":
			_, err = wire.ParseAnswer(v.Hex)
		case "option":
			_, err = wire.ParseOptionRequest(v.Hex)
		case "record":
			_, _, err = wire.SplitTrailer(v.Hex)
		default:
			var f wire.Frame
			_, err = f.Parse(v.Hex, places[v.Where])
		}
		var e *wire.Error
		if !errors.As(err, &e) || e.Rule != v.Rule {
			t.Errorf("%s, %x: got %v, want an error that cites protocol %s", v.Comment, v.Hex, err, v.Rule)
		}
	}
}

// TestRecordVectors computes keys, nonces and records from the formulas of
// protocol 3 with the standard library alone, and again with package record.
func TestRecordVectors(t *testing.T) {
	for _, v := range newTestVectors(t).Records {
		t.Run(v.Comment, func(t *testing.T) {
			suite := newTestSuite(t, v.Suite)
			v.checkFormulas(t, suite)
			v.checkImplementation(t, suite)
		})
	}
}

func newTestSuite(t *testing.T, name string) *record.Suite {
	t.Helper()
	for id := range uint16(8) {
		if s := record.SuiteByID(0x1300 + id); s != nil && s.Name == name {
			return s
		}
	}
	t.Fatalf("no suite %s", name)
	return nil
}

func (v *recordVector) checkFormulas(t *testing.T, suite *record.Suite) {
	expand := func(secret []byte, label string, n int) []byte {
		info := append([]byte{byte(n >> 8), byte(n), byte(len("tls13 " + label))}, "tls13 "+label...)
		out, err := hkdf.Expand(suite.NewHash, secret, string(append(info, 0)), n)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	secret := []byte(v.Secret)
	for range v.Epoch {
		secret = expand(secret, "traffic upd", suite.HashLen)
	}
	key, iv := expand(secret, "key", suite.KeyLen), expand(secret, "iv", 12)
	if !bytes.Equal(key, v.Key) || !bytes.Equal(iv, v.IV) {
		t.Errorf("key %x, iv %x", key, iv)
	}
	nonce := binary.BigEndian.AppendUint32(nil, uint32(v.Context))
	nonce = binary.BigEndian.AppendUint64(nonce, uint64(v.Seq))
	for i := range nonce {
		nonce[i] ^= iv[i]
	}
	if !bytes.Equal(nonce, v.Nonce) {
		t.Errorf("nonce %x", nonce)
	}
	var aead cipher.AEAD
	var err error
	if v.Suite == "TLS_CHACHA20_POLY1305_SHA256" {
		aead, err = chacha20poly1305.New(key)
	} else {
		var block cipher.Block
		if block, err = aes.NewCipher(key); err == nil {
			aead, err = cipher.NewGCM(block)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	inner := append(bytes.Clone(v.Content), byte(v.InnerType))
	inner = append(inner, make([]byte, v.Padding)...)
	header := binary.BigEndian.AppendUint16([]byte{23, 3, 3}, uint16(len(inner)+aead.Overhead()))
	if rec := aead.Seal(bytes.Clone(header), nonce, inner, header); !bytes.Equal(rec, v.Record) {
		t.Errorf("record %x", rec)
	}
}

func (v *recordVector) checkImplementation(t *testing.T, suite *record.Suite) {
	newContext := func() *record.Context {
		keys, err := suite.Keys(bytes.Clone(v.Secret))
		if err != nil {
			t.Fatal(err)
		}
		c := record.NewContext(keys, uint32(v.Context))
		for range v.Seq { // as many records before this one
			if _, err := c.Seal(make([]byte, record.HeaderLen), record.ApplicationData); err != nil {
				t.Fatal(err)
			}
		}
		for range v.Epoch {
			if keys, err = keys.Next(); err != nil {
				t.Fatal(err)
			}
			c.SetKeys(keys)
		}
		return c
	}
	if v.Padding == 0 { // package record doesn't write any
		rec, err := newContext().Seal(append(make([]byte, record.HeaderLen), v.Content...), record.Type(v.InnerType))
		if err != nil || !bytes.Equal(rec, v.Record) {
			t.Errorf("sealed %x, %v", rec, err)
		}
	}
	content, typ, err := newContext().Open(nil, v.Record)
	if err != nil || !bytes.Equal(content, v.Content) || typ != record.Type(v.InnerType) {
		t.Errorf("opened %x of type %d, %v", content, typ, err)
	}
	if typ == wire.TypeFrames {
		_, frames, err := wire.SplitTrailer(content)
		if err != nil {
			t.Fatal(err)
		}
		place := wire.OnControl
		switch {
		case wire.IsStream(uint32(v.Context)):
			place = wire.OnStream
		case wire.IsPath(uint32(v.Context)):
			place = wire.OnPath
		}
		for f := new(wire.Frame); len(frames) > 0; {
			if frames, err = f.Parse(frames, place); err != nil || !f.Kind.Known() {
				t.Fatalf("frame %v: %v", f.Kind, err)
			}
		}
	}
}

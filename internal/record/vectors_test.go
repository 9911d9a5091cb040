package record

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"os"
	"strconv"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestRFC8448 opens and seals the client's first record of application data
// in RFC 8448, section 3. Context 0 being TLS's own is what it shows.
func TestRFC8448(t *testing.T) {
	raw, err := os.ReadFile("../tls13/testdata/rfc8448.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Simple map[string]string }
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	value := func(name string) []byte { return unhex(t, file.Simple[name]) }

	suite := SuiteByID(tls.TLS_AES_128_GCM_SHA256)
	secret := value("client_application_traffic")
	if got := suite.ExpandLabel(secret, "key", nil, suite.KeyLen); !bytes.Equal(got, value("client_application_key")) {
		t.Errorf("key %x", got)
	}
	keys, err := suite.Keys(secret)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(keys.iv[:], value("client_application_iv")) {
		t.Errorf("IV %x", keys.iv)
	}
	want := unhex(t, "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8"+
		"a5b46b395bd54a9a20441e2b62974e1f5a6292a2977014bd1e3deae63aeebb21694915e4")
	content := make([]byte, 50)
	for i := range content {
		content[i] = byte(i)
	}
	if got := mustSeal(t, NewContext(keys, 0), ApplicationData, content); !bytes.Equal(got, want) {
		t.Errorf("record\n got  %x\n want %x", got, want)
	}
	wantOpen(t, NewContext(keys, 0), want, content, ApplicationData)
}

// TestVectors follows the records of the protocol's test vectors through the
// epochs of their keys.
func TestVectors(t *testing.T) {
	raw, err := os.ReadFile("../wire/testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Records []map[string]string
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Records) == 0 {
		t.Fatal("no records among the vectors")
	}
	for _, v := range file.Records {
		t.Run(v["suite"]+"/"+v["comment"], func(t *testing.T) { testVector(t, v) })
	}
}

func testVector(t *testing.T, v map[string]string) {
	number := func(name string) uint64 {
		n, err := strconv.ParseUint(v[name], 0, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	var suite *Suite
	for _, id := range suiteIDs {
		if s := SuiteByID(id); s.Name == v["suite"] {
			suite = s
		}
	}
	keys, err := suite.Keys(unhex(t, v["secret"]))
	for range number("epoch") {
		if err == nil {
			keys, err = keys.Next()
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	c := NewContext(keys, uint32(number("context")))
	c.seq = number("seq")
	if got := c.setNonce(); !bytes.Equal(got, unhex(t, v["nonce"])) {
		t.Errorf("nonce %x, want %s", got, v["nonce"])
	}
	content, typ := unhex(t, v["content"]), Type(number("inner_type"))
	inner := append(append(bytes.Clone(content), byte(typ)), make([]byte, number("padding"))...)
	want := unhex(t, v["record"])
	if got := sealInner(c, inner); !bytes.Equal(got, want) {
		t.Errorf("record\n got  %x\n want %x", got, want)
	}
	if number("padding") == 0 {
		c.seq = number("seq")
		if got := mustSeal(t, c, typ, content); !bytes.Equal(got, want) {
			t.Errorf("sealed\n got  %x\n want %x", got, want)
		}
	}
	c.seq = number("seq")
	wantOpen(t, c, want, content, typ)
}

// TestOpenVectors opens good and bad records: tags, lengths, headers and
// nonces of all kinds.
func TestOpenVectors(t *testing.T) {
	raw, err := os.ReadFile("testdata/open.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Suites []struct {
			Suite, Secret string
			Cases         []struct {
				Comment, Record, Result, Content string
				ID                               uint32
				Seq                              uint64
			}
		}
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	results := map[string]error{"valid": nil, "auth": ErrAuth, "short": ErrShort, "no type": ErrNoType}
	if len(file.Suites) != len(suiteIDs) {
		t.Fatalf("%d suites", len(file.Suites))
	}
	for i, suite := range file.Suites {
		s := SuiteByID(suiteIDs[i])
		if s.Name != suite.Suite {
			t.Fatalf("%s in the place of %s", suite.Suite, s.Name)
		}
		for _, v := range suite.Cases {
			t.Run(s.Name+"/"+v.Comment, func(t *testing.T) {
				keys, err := s.Keys(unhex(t, suite.Secret))
				if err != nil {
					t.Fatal(err)
				}
				c := NewContext(keys, v.ID)
				c.seq = v.Seq
				rec := unhex(t, v.Record)
				before := bytes.Clone(rec)
				want, known := results[v.Result]
				content, typ, err := c.Open(make([]byte, len(rec)), rec)
				if !known || err != want {
					t.Fatalf("Open: %v, want %s", err, v.Result)
				}
				if err == nil && (typ != ApplicationData || !bytes.Equal(content, unhex(t, v.Content))) {
					t.Errorf("content %x of type %d", content, typ)
				}
				if !bytes.Equal(rec, before) {
					t.Error("Open changed the record")
				}
				if (err == ErrAuth || err == ErrShort) && (content != nil || c.Seq() != v.Seq) {
					t.Errorf("content %x, and the sequence number went from %d to %d", content, v.Seq, c.Seq())
				}
			})
		}
	}
}

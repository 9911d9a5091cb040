package tls13

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"os"
	"slices"
	"testing"
)

// readVectors reads a file of testdata.
func readVectors(t *testing.T, name string, into any) {
	t.Helper()
	if err := json.Unmarshal(must(os.ReadFile(name)), into); err != nil {
		t.Fatal(err)
	}
}

// A shareVector is a key share as it is, or the changes to a good one.
type shareVector struct {
	Group, To, Comment, Result string
	Share                      *string
	At, Cut, Front             int
	Bytes                      string
}

func (v *shareVector) group() *group {
	for _, g := range groups {
		if g.id.String() == v.Group {
			return g
		}
	}
	panic("no group " + v.Group)
}

func (v *shareVector) share(good []byte) []byte {
	if v.Share != nil {
		return must(hex.DecodeString(*v.Share))
	}
	b, change := bytes.Clone(good), must(hex.DecodeString(v.Bytes))
	if end := v.At + len(change); end > len(b) {
		b = append(b, make([]byte, end-len(b))...)
	}
	copy(b[v.At:], change)
	return b[v.Front : len(b)-v.Cut]
}

// alertNamed returns what a vector's result stands for.
func alertNamed(t *testing.T, name string) (a Alert, valid bool) {
	t.Helper()
	for a, have := range alertNames {
		if have == name {
			return a, false
		}
	}
	if name != "valid" {
		t.Fatalf("no result %q", name)
	}
	return 0, true
}

// TestShareVectors gives good and bad key shares to both ends: points of low
// order, off the curve, or in forms that TLS 1.3 doesn't have, keys of ML-KEM
// that aren't reduced, and wrong lengths.
func TestShareVectors(t *testing.T) {
	var file struct{ Cases []*shareVector }
	readVectors(t, "testdata/shares.json", &file)
	seen := 0
	for _, v := range file.Cases {
		for _, to := range []string{"server", "client"} {
			if v.To == to || v.To == "both" {
				seen++
				t.Run(to+"/"+v.Group+"/"+v.Comment, func(t *testing.T) {
					if to == "server" {
						v.toServer(t)
					} else {
						v.toClient(t)
					}
				})
			}
		}
	}
	if seen < 200 {
		t.Errorf("only %d cases", seen)
	}
}

func (v *shareVector) toServer(t *testing.T) {
	want, valid := alertNamed(t, v.Result)
	g := v.group()
	p := newPuppetClient(t, &Config{TLS: serverTLS()})
	p.tolerant = true // keys for a share given as bytes are nobody's
	pair := must(g.generate(nil))
	p.client.pairs = []*keyPair{pair}
	p.hello.extensions = setExtension(p.hello.extensions, extSupportedGroups, uint16List([]tls.CurveID{g.id}))
	p.hello.extensions = setExtension(p.hello.extensions, extKeyShare, keyShareList([]keyShare{{g.id, v.share(pair.share)}}))
	p.clientHello()
	p.wantAlert(want, valid)
	if valid && p.engine.Group() != g.id {
		t.Errorf("the server goes on with %v", p.engine.Group())
	}
}

func (v *shareVector) toClient(t *testing.T) {
	want, valid := alertNamed(t, v.Result)
	client := clientTLS()
	client.CurvePreferences = []tls.CurveID{v.group().id}
	p := newPuppetServer(t, &Config{TLS: client})
	p.group = v.group()
	p.serverHello(func(m *serverHello) {
		body, _ := findExtension(m.extensions, extKeyShare)
		good, _ := parseKeyShare(body)
		m.extensions = setExtension(m.extensions, extKeyShare, keyShareBody(keyShare{p.group.id, v.share(good.data)}))
	})
	p.feed()
	if want == AlertBadRecordMAC { // under keys that the puppet can't have
		if p.err != nil {
			t.Fatalf("the share itself is refused: %v", p.err)
		}
		p.rest()
		if got, _ := alertOf(p.err); got != want {
			t.Errorf("%v, want %v", p.err, want)
		}
		return
	}
	if valid && v.Share == nil {
		p.rest()
	}
	p.wantAlert(want, valid)
	if valid && v.Share == nil && !p.engine.HandshakeComplete() {
		t.Error("the handshake isn't complete")
	}
}

// TestSignatureVectors gives good and bad signatures to what reads and checks
// a CertificateVerify.
func TestSignatureVectors(t *testing.T) {
	var file struct {
		Transcript string
		Keys       map[string]string
		Cases      []struct{ Key, Scheme, Comment, Signature, Result string }
	}
	readVectors(t, "testdata/signatures.json", &file)
	transcript := must(hex.DecodeString(file.Transcript))
	valid := 0
	for _, v := range file.Cases {
		t.Run(v.Key+"/"+v.Scheme+"/"+v.Comment, func(t *testing.T) {
			key := must(x509.ParsePKIXPublicKey(must(hex.DecodeString(file.Keys[v.Key]))))
			scheme, signature := must(hex.DecodeString(v.Scheme)), must(hex.DecodeString(v.Signature))
			body := slices.Concat(scheme, binary.BigEndian.AppendUint16(nil, uint16(len(signature))), signature)
			chain := &peerChain{x509: []*x509.Certificate{{PublicKey: key}}}
			err := chain.checkSignature(must(parseCertificateVerify(body)), false, transcript)
			want, good := alertNamed(t, v.Result)
			if got, _ := alertOf(err); good != (err == nil) || got != want {
				t.Errorf("%v, want %v", err, v.Result)
			}
			if !good {
				return
			}
			valid++
			for bit := range 8 * len(signature) {
				flipped := bytes.Clone(signature)
				flipped[bit/8] ^= 1 << (bit % 8)
				m := &certificateVerify{scheme: tls.SignatureScheme(binary.BigEndian.Uint16(scheme)), signature: flipped}
				if bit%7 == 0 && chain.checkSignature(m, false, transcript) == nil {
					t.Errorf("valid with bit %d flipped", bit)
				}
			}
		})
	}
	if valid < 5 {
		t.Errorf("only %d good signatures", valid)
	}
}

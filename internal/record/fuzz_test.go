package record

import (
	"bytes"
	"crypto/tls"
	"testing"
)

// FuzzOpen opens hostile records, and authentic ones with a hostile plaintext.
func FuzzOpen(f *testing.F) {
	suite := func(n byte) *Suite { return SuiteByID(suiteIDs[int(n)%len(suiteIDs)]) }
	for n := range byte(len(suiteIDs)) {
		send, _ := newPair(f, suite(n), 1)
		rec := mustSeal(f, send, ApplicationData, []byte("hello"))
		f.Add(n, rec, []byte("hello\x17"))
		f.Add(n, rec[:len(rec)-1], []byte("hello\x17\x00\x00"))
		f.Add(n, mustSeal(f, send, Alert, []byte{1, 0}), []byte{1, 0, byte(Alert)})
	}
	f.Add(byte(0), []byte{23, 3, 3, 0, 0}, []byte{})
	f.Add(byte(1), append([]byte{23, 3, 3, 0, TagLen}, make([]byte, TagLen)...), []byte{0, 0, 0})
	f.Add(byte(2), make([]byte, HeaderLen+MaxCiphertext+1), append(make([]byte, MaxPlaintext), 23, 0))

	f.Fuzz(func(t *testing.T, n byte, rec, inner []byte) {
		s := suite(n)
		if len(rec) >= HeaderLen {
			fuzzHostile(t, s, rec)
		}
		send, receive := newPair(t, s, 2)
		sealed := sealInner(send, inner)
		content, typ, err := receive.Open(make([]byte, len(sealed)), sealed)
		trimmed := bytes.TrimRight(inner, "\x00")
		switch {
		case len(inner) > MaxPlaintext+1:
			if err != ErrOverflow {
				t.Errorf("inner plaintext of %d bytes: %v", len(inner), err)
			}
		case len(trimmed) == 0:
			if err != ErrNoType {
				t.Errorf("padding only: %v", err)
			}
		case err != nil || typ != Type(trimmed[len(trimmed)-1]) || !bytes.Equal(content, trimmed[:len(trimmed)-1]):
			t.Errorf("inner plaintext %x: type %d, content %x, %v", inner, typ, content, err)
		}
	})
}

// fuzzHostile opens rec in context 1. If that works, rec is what Seal makes.
func fuzzHostile(t *testing.T, s *Suite, rec []byte) {
	send, receive := newPair(t, s, 1)
	before := bytes.Clone(rec)
	content, typ, err := receive.Open(make([]byte, len(rec)), rec)
	if !bytes.Equal(rec, before) {
		t.Fatal("Open changed the record")
	}
	if err != nil {
		if receive.Seq() != 0 && err != ErrNoType {
			t.Errorf("%v moved the sequence number", err)
		}
		return
	}
	inner := len(rec) - HeaderLen - TagLen
	padded := append(append(bytes.Clone(content), byte(typ)), make([]byte, inner-len(content)-1)...)
	if again := sealInner(send, padded); !bytes.Equal(again, rec) {
		t.Errorf("a record opened that was never sealed:\n %x\n %x", rec, again)
	}
}

func FuzzParseHeader(f *testing.F) {
	f.Add([]byte{23, 3, 3, 0x40, 0})
	f.Add([]byte{22, 3, 1, 0, 5, 1})
	f.Add([]byte("GET / HTTP/1.1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < HeaderLen {
			wantPanic(t, "a header that is not there", func() { ParseHeader(b) })
			return
		}
		h := ParseHeader(b)
		if h.Len > MaxPlaintext {
			return
		}
		again := AppendPlain(nil, h.Type, h.Version, make([]byte, h.Len))
		if !bytes.Equal(again[:HeaderLen], b[:HeaderLen]) || len(again) != HeaderLen+h.Len {
			t.Errorf("%x reads as %+v, which is written as %x", b[:HeaderLen], h, again[:HeaderLen])
		}
	})
}

// FuzzSeal gives Seal any content and any room, and opens what it makes.
func FuzzSeal(f *testing.F) {
	f.Add([]byte("hello"), byte(ApplicationData), uint8(0), true)
	f.Add([]byte{}, byte(Alert), uint8(16), false)
	f.Add(make([]byte, 1000), byte(Handshake), uint8(17), true)
	f.Fuzz(func(t *testing.T, content []byte, typ byte, room uint8, inPlace bool) {
		if typ == 0 || len(content) > MaxPlaintext {
			return // not a type; see TestSealTooMuch
		}
		send, receive := newPair(t, SuiteByID(tls.TLS_AES_128_GCM_SHA256), 1)
		b := withRoom(content, int(room))
		rec, err := []byte(nil), error(nil)
		if inPlace {
			rec, err = send.Seal(b, Type(typ))
		} else {
			rec, err = send.SealTo(make([]byte, HeaderLen+int(room)), b[HeaderLen:], Type(typ))
		}
		if err != nil {
			t.Fatal(err)
		}
		wantOpen(t, receive, rec, content, Type(typ))
	})
}

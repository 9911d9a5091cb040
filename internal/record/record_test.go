package record

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
)

var suiteIDs = []uint16{tls.TLS_AES_128_GCM_SHA256, tls.TLS_AES_256_GCM_SHA384, tls.TLS_CHACHA20_POLY1305_SHA256}

// eachSuite runs a test under every suite.
func eachSuite(t *testing.T, run func(t *testing.T, s *Suite)) {
	for _, id := range suiteIDs {
		s := SuiteByID(id)
		t.Run(s.Name, func(t *testing.T) { run(t, s) })
	}
}

// newTestKeys makes keys of a secret that is the same each time.
func newTestKeys(t testing.TB, s *Suite) *Keys {
	t.Helper()
	keys, err := s.Keys(bytes.Repeat([]byte{0x5a}, s.HashLen))
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// newPair returns both ends of the context id.
func newPair(t testing.TB, s *Suite, id uint32) (send, receive *Context) {
	t.Helper()
	return NewContext(newTestKeys(t, s), id), NewContext(newTestKeys(t, s), id)
}

// withRoom lays content out for Seal, with extra bytes of capacity behind it.
func withRoom(content []byte, extra int) []byte {
	b := make([]byte, HeaderLen+len(content), HeaderLen+len(content)+extra)
	copy(b[HeaderLen:], content)
	return b
}

func mustSeal(t testing.TB, c *Context, typ Type, content []byte) []byte {
	t.Helper()
	rec, err := c.Seal(withRoom(content, 1+TagLen), typ)
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

// sealInner protects an inner plaintext that Seal would not make.
func sealInner(c *Context, inner []byte) []byte {
	rec := make([]byte, HeaderLen, HeaderLen+len(inner)+TagLen)
	putHeader(rec, len(inner)+TagLen)
	rec = c.keys.aead.Seal(rec, c.setNonce(), inner, rec[:HeaderLen])
	c.seq++
	return rec
}

func wantOpen(t testing.TB, c *Context, rec, content []byte, typ Type) {
	t.Helper()
	got, gotType, err := c.Open(make([]byte, len(rec)), rec)
	if err != nil || gotType != typ || !bytes.Equal(got, content) {
		t.Errorf("Open: %d bytes of type %d, %v; want %d of type %d", len(got), gotType, err, len(content), typ)
	}
}

// TestNonces computes nonces from the formula of protocol 3.2.
func TestNonces(t *testing.T) {
	keys := newTestKeys(t, SuiteByID(tls.TLS_AES_128_GCM_SHA256))
	seen := map[string]string{}
	for _, id := range []uint32{0, 1, 2, 255, 256, 1 << 16, 1<<31 - 1, 1 << 31, 0xc0000001, 1<<32 - 1} {
		for _, seq := range []uint64{0, 1, 255, 256, 1 << 32, 1<<48 - 1, 1<<64 - 1} {
			c := NewContext(keys, id)
			c.seq = seq
			var want [nonceLen]byte
			binary.BigEndian.PutUint32(want[:4], id)
			binary.BigEndian.PutUint64(want[4:], seq)
			for i := range want {
				want[i] ^= keys.iv[i]
			}
			got := c.setNonce()
			if !bytes.Equal(got, want[:]) {
				t.Errorf("context %#x, record %d: nonce %x, want %x", id, seq, got, want)
			}
			name := fmt.Sprintf("context %#x, record %d", id, seq)
			if other, ok := seen[string(got)]; ok {
				t.Errorf("%s has the nonce of %s", name, other)
			}
			seen[string(got)] = name
		}
	}
}

// TestContextZeroIsTLS compares context 0 with the per-record nonce of
// RFC 8446, section 5.3, which knows no id.
func TestContextZeroIsTLS(t *testing.T) {
	eachSuite(t, func(t *testing.T, s *Suite) {
		secret := bytes.Repeat([]byte{0x5a}, s.HashLen)
		aead, err := s.newAEAD(s.ExpandLabel(secret, "key", nil, s.KeyLen))
		if err != nil {
			t.Fatal(err)
		}
		iv := s.ExpandLabel(secret, "iv", nil, nonceLen)
		send, _ := newPair(t, s, 0)
		for seq := range uint64(300) {
			nonce := bytes.Clone(iv)
			for i := range 8 {
				nonce[nonceLen-1-i] ^= byte(seq >> (8 * i))
			}
			head := []byte{23, 3, 3, 0, 3 + 1 + TagLen}
			want := aead.Seal(bytes.Clone(head), nonce, append([]byte("abc"), 23), head)
			if got := mustSeal(t, send, ApplicationData, []byte("abc")); !bytes.Equal(got, want) {
				t.Fatalf("record %d is %x, TLS makes it %x", seq, got, want)
			}
		}
	})
}

func TestRoundTrip(t *testing.T) {
	eachSuite(t, func(t *testing.T, s *Suite) {
		send, receive := newPair(t, s, 7)
		for i, n := range []int{0, 1, 15, 16, 17, 1000, MaxPlaintext - 1, MaxPlaintext} {
			content := bytes.Repeat([]byte{byte(n)}, n)
			rec := mustSeal(t, send, Handshake, content)
			if len(rec) != n+Overhead {
				t.Errorf("a record of %d bytes of content has %d", n, len(rec))
			}
			if h := ParseHeader(rec); h != (Header{ApplicationData, tls.VersionTLS12, len(rec) - HeaderLen}) {
				t.Errorf("header %+v", h)
			}
			wantOpen(t, receive, rec, content, Handshake)
			if send.Seq() != uint64(i+1) || receive.Seq() != uint64(i+1) {
				t.Errorf("after %d records: sender at %d, receiver at %d", i+1, send.Seq(), receive.Seq())
			}
		}
		if send.Keys().Sealed() != 8 || receive.Keys().Sealed() != 0 {
			t.Errorf("%d records counted by the sender, %d by the receiver", send.Keys().Sealed(), receive.Keys().Sealed())
		}
	})
}

// TestSealRoom seals in place with less and less room behind the content.
func TestSealRoom(t *testing.T) {
	eachSuite(t, func(t *testing.T, s *Suite) {
		content := bytes.Repeat([]byte("content"), 20)
		for extra := range 1 + TagLen + 3 {
			send, receive := newPair(t, s, 1)
			b := withRoom(content, extra)
			rec, err := send.Seal(b, ApplicationData)
			if err != nil {
				t.Fatal(err)
			}
			inPlace := &rec[0] == &b[0]
			if enough := cap(b) >= len(content)+Overhead; inPlace != enough {
				t.Errorf("capacity %d for %d bytes: in place %v", cap(b), len(content)+Overhead, inPlace)
			}
			wantOpen(t, receive, rec, content, ApplicationData)
		}
	})
}

// TestSealTo seals content that lies elsewhere, which stays as it was but for
// the byte behind it.
func TestSealTo(t *testing.T) {
	eachSuite(t, func(t *testing.T, s *Suite) {
		for _, room := range []int{HeaderLen, HeaderLen + 5, Overhead + 4, Overhead + 5, 100} {
			send, receive := newPair(t, s, 1)
			memory := []byte("hello" + "\xee\xee")
			dst := bytes.Repeat([]byte{0xee}, room)
			rec, err := send.SealTo(dst, memory[:5], ApplicationData)
			if err != nil {
				t.Fatal(err)
			}
			if inPlace := &rec[0] == &dst[0]; inPlace != (room >= 5+Overhead) {
				t.Errorf("room of %d bytes: at the front of dst %v", room, inPlace)
			}
			if string(memory) != "hello\x17\xee" {
				t.Errorf("content and what is behind it became %q", memory)
			}
			if room > len(rec) && !bytes.Equal(dst[len(rec):], bytes.Repeat([]byte{0xee}, room-len(rec))) {
				t.Errorf("bytes behind the record were written: %x", dst[len(rec):])
			}
			wantOpen(t, receive, rec, []byte("hello"), ApplicationData)
		}

		send, receive := newPair(t, s, 1)
		whole := []byte("no room behind")
		whole = whole[:len(whole):len(whole)]
		rec, err := send.SealTo(make([]byte, 100), whole, ApplicationData)
		if err != nil {
			t.Fatal(err)
		}
		wantOpen(t, receive, rec, []byte("no room behind"), ApplicationData)
	})
}

func TestSealTooMuch(t *testing.T) {
	send, _ := newPair(t, SuiteByID(tls.TLS_AES_128_GCM_SHA256), 0)
	if _, err := send.Seal(withRoom(make([]byte, MaxPlaintext+1), Overhead), ApplicationData); err != ErrPlaintext {
		t.Errorf("Seal of %d bytes: %v", MaxPlaintext+1, err)
	}
	if send.Seq() != 0 || send.Keys().Sealed() != 0 {
		t.Error("a refused Seal used a number up")
	}
}

// TestOpenSizes is RFC 8446, sections 5.2 and 5.4: what is too long or too
// short, and what remains when padding is taken away.
func TestOpenSizes(t *testing.T) {
	s := SuiteByID(tls.TLS_AES_128_GCM_SHA256)
	zeros := func(n int) []byte { return make([]byte, n) }
	for _, v := range []struct {
		name  string
		inner []byte
		want  int // bytes of content
		err   error
	}{
		{"type only", []byte{23}, 0, nil},
		{"padding of one", []byte{'a', 23, 0}, 1, nil},
		{"zeros within content", []byte{0, 'a', 0, 0, 23, 0, 0}, 4, nil},
		{"padded to the limit", append([]byte{'a', 23}, zeros(MaxPlaintext-1)...), 1, nil},
		{"full", append(zeros(MaxPlaintext), 23), MaxPlaintext, nil},
		{"padded beyond the limit", append([]byte{'a', 23}, zeros(MaxPlaintext)...), 0, ErrOverflow},
		{"content beyond the limit", append(zeros(MaxPlaintext+1), 23), 0, ErrOverflow},
		{"longest ciphertext", append([]byte{'a', 23}, zeros(MaxCiphertext-TagLen-2)...), 0, ErrOverflow},
		{"beyond the longest ciphertext", append([]byte{'a', 23}, zeros(MaxCiphertext-TagLen-1)...), 0, ErrOverflow},
		{"nothing", nil, 0, ErrNoType},
		{"one zero", zeros(1), 0, ErrNoType},
		{"zeros only", zeros(MaxPlaintext + 1), 0, ErrNoType},
	} {
		t.Run(v.name, func(t *testing.T) {
			send, receive := newPair(t, s, 3)
			rec := sealInner(send, v.inner)
			content, typ, err := receive.Open(make([]byte, len(rec)), rec)
			if err != v.err || len(content) != v.want {
				t.Fatalf("%d bytes of content, %v; want %d, %v", len(content), err, v.want, v.err)
			}
			if err == nil && (typ != 23 || !bytes.Equal(content, v.inner[:v.want])) {
				t.Errorf("type %d, content %.20x", typ, content)
			}
		})
	}
}

func TestOpenShort(t *testing.T) {
	eachSuite(t, func(t *testing.T, s *Suite) {
		_, receive := newPair(t, s, 0)
		for n := range TagLen {
			rec := make([]byte, HeaderLen+n)
			putHeader(rec, n)
			if _, _, err := receive.Open(nil, rec); err != ErrShort {
				t.Errorf("body of %d bytes: %v", n, err)
			}
		}
		if receive.Seq() != 0 {
			t.Errorf("sequence number %d after nothing but refusals", receive.Seq())
		}
	})
}

// TestFailedOpen is what trials of several contexts rest upon: a record that
// doesn't authenticate is left whole, and another context still opens it.
func TestFailedOpen(t *testing.T) {
	eachSuite(t, func(t *testing.T, s *Suite) {
		for _, n := range []int{0, 5, 1000, MaxPlaintext} {
			send, right := newPair(t, s, 2)
			content := bytes.Repeat([]byte{0xab}, n)
			rec := mustSeal(t, send, ApplicationData, content)
			before := bytes.Clone(rec)

			wrong := NewContext(newTestKeys(t, s), 4)
			dst := bytes.Repeat([]byte{0xee}, len(rec)+64)
			if _, _, err := wrong.Open(dst, rec); err != ErrAuth {
				t.Fatalf("another context: %v", err)
			}
			used := len(rec) - HeaderLen - TagLen
			if bytes.Contains(dst, []byte{0xab, 0xab, 0xab, 0xab}) || bytes.ContainsFunc(dst[used:], func(r rune) bool { return r == 0 }) {
				t.Error("a failed Open leaves plaintext behind, or writes beyond it")
			}
			if !bytes.Equal(rec, before) || wrong.Seq() != 0 {
				t.Errorf("a failed Open changed the record, or the sequence number to %d", wrong.Seq())
			}
			wantOpen(t, right, rec, content, ApplicationData)
			if _, _, err := right.Open(dst, rec); err != ErrAuth {
				t.Errorf("the record a second time: %v", err)
			}
		}
	})
}

// TestTampering flips each bit of a record; its header is authenticated too.
func TestTampering(t *testing.T) {
	eachSuite(t, func(t *testing.T, s *Suite) {
		send, receive := newPair(t, s, 2)
		rec := mustSeal(t, send, ApplicationData, []byte("x"))
		dst := make([]byte, len(rec))
		for i := range 8 * len(rec) {
			rec[i/8] ^= 1 << (i % 8)
			if _, _, err := receive.Open(dst, rec); err != ErrAuth {
				t.Errorf("bit %d flipped: %v", i, err)
			}
			rec[i/8] ^= 1 << (i % 8)
		}
		wantOpen(t, receive, rec, []byte("x"), ApplicationData)
	})
}

// TestOpenDestination gives Open exactly what it needs, more, and too little.
func TestOpenDestination(t *testing.T) {
	eachSuite(t, func(t *testing.T, s *Suite) {
		send, receive := newPair(t, s, 2)
		content := bytes.Repeat([]byte("data"), 100)
		inner := len(content) + 1
		for _, size := range []int{0, inner - 1, inner, inner + TagLen, inner + 200} {
			rec := mustSeal(t, send, ApplicationData, content)
			dst := bytes.Repeat([]byte{0xee}, size)
			got, _, err := receive.Open(dst, rec)
			if err != nil || !bytes.Equal(got, content) {
				t.Fatalf("dst of %d bytes: %v", size, err)
			}
			if size < inner {
				continue
			}
			if &got[0] != &dst[0] {
				t.Errorf("dst of %d bytes was not used", size)
			}
			if !bytes.Equal(dst[inner:], bytes.Repeat([]byte{0xee}, size-inner)) {
				t.Errorf("dst of %d bytes was written beyond the %d of the plaintext", size, inner)
			}
		}
	})
}

// TestKeyLimit shows that the limit counts all contexts of a key together,
// and that the next key has its own.
func TestKeyLimit(t *testing.T) {
	small := *SuiteByID(tls.TLS_AES_128_GCM_SHA256)
	small.MaxRecords = 3
	keys := newTestKeys(t, &small)
	a, b := NewContext(keys, 1), NewContext(keys, 2)
	for _, c := range []*Context{a, b, a} {
		mustSeal(t, c, ApplicationData, nil)
	}
	for range 2 {
		if _, err := b.Seal(withRoom(nil, Overhead), ApplicationData); err != ErrKeyLimit {
			t.Errorf("record 4 of 3: %v", err)
		}
	}
	if b.Seq() != 1 {
		t.Errorf("a refused Seal moved the sequence number to %d", b.Seq())
	}
	next, err := keys.Next()
	if err != nil {
		t.Fatal(err)
	}
	b.SetKeys(next)
	mustSeal(t, b, ApplicationData, nil)
	if next.Sealed() != 1 {
		t.Errorf("%d records under the next key", next.Sealed())
	}
}

func TestEpochs(t *testing.T) {
	eachSuite(t, func(t *testing.T, s *Suite) {
		secret := sha256.New().Sum(bytes.Repeat([]byte{1}, s.HashLen))[:s.HashLen]
		want := s.ExpandLabel(secret, "traffic upd", nil, s.HashLen)
		first, err := s.Keys(secret)
		if err != nil {
			t.Fatal(err)
		}
		second, err := first.Next()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(second.secret, want) {
			t.Errorf("the next secret is %x, want %x", second.secret, want)
		}
		if !bytes.Equal(secret, make([]byte, s.HashLen)) || first.secret != nil {
			t.Error("the secret of the old epoch is still there")
		}
		if _, err := first.Next(); err == nil {
			t.Error("the next keys were derived twice")
		}
		if second.Suite() != s {
			t.Error("the suite changed with the epoch")
		}

		send, receive := NewContext(first, 5), NewContext(first, 5)
		wantOpen(t, receive, mustSeal(t, send, ApplicationData, []byte("old")), []byte("old"), ApplicationData)
		send.SetKeys(second)
		rec := mustSeal(t, send, ApplicationData, []byte("new"))
		if _, _, err := receive.Open(make([]byte, len(rec)), rec); err != ErrAuth {
			t.Errorf("a record of the new epoch under the old keys: %v", err)
		}
		receive.SetKeys(second)
		wantOpen(t, receive, rec, []byte("new"), ApplicationData)
		if send.Seq() != 2 || send.ID() != 5 || send.Keys() != second {
			t.Errorf("context %d at %d after SetKeys", send.ID(), send.Seq())
		}
		send.Restart(second)
		if send.Seq() != 0 || send.ID() != 5 {
			t.Errorf("context %d at %d after Restart", send.ID(), send.Seq())
		}
		send.Init(first, 9)
		if send.Seq() != 0 || send.ID() != 9 || send.Keys() != first {
			t.Errorf("context %d at %d after Init", send.ID(), send.Seq())
		}
	})
}

func TestSuites(t *testing.T) {
	if SuiteByID(tls.TLS_RSA_WITH_AES_128_GCM_SHA256) != nil || SuiteByID(0x1304) != nil {
		t.Error("a suite that is not offered was found")
	}
	eachSuite(t, func(t *testing.T, s *Suite) {
		if s.Name != tls.CipherSuiteName(s.ID) || s.NewHash().Size() != s.HashLen {
			t.Errorf("%#x is %s with a hash of %d bytes", s.ID, s.Name, s.NewHash().Size())
		}
		for _, n := range []int{0, s.HashLen - 1, s.HashLen + 1} {
			if _, err := s.Keys(make([]byte, n)); err == nil {
				t.Errorf("a secret of %d bytes was taken", n)
			}
		}
	})
	if n := float64(maxRecordsGCM); n*n > 1<<49 || (n+1)*(n+1) <= 1<<49 {
		t.Errorf("%d is not 2^24.5 rounded down", maxRecordsGCM)
	}
}

func TestAppendPlain(t *testing.T) {
	got := AppendPlain([]byte("before"), Handshake, tls.VersionTLS10, []byte("abc"))
	if string(got) != "before\x16\x03\x01\x00\x03abc" {
		t.Errorf("%q", got)
	}
	full := AppendPlain(nil, Handshake, tls.VersionTLS12, make([]byte, MaxPlaintext))
	if h := ParseHeader(full); h.Len != MaxPlaintext || len(full) != HeaderLen+MaxPlaintext {
		t.Errorf("a full record has the header %+v", h)
	}
	wantPanic(t, "a record that is too long", func() {
		AppendPlain(nil, Handshake, tls.VersionTLS12, make([]byte, MaxPlaintext+1))
	})
}

func wantPanic(t *testing.T, what string, f func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Errorf("%s: no panic", what)
		}
	}()
	f()
}

func TestErrorsDiffer(t *testing.T) {
	all := []error{ErrOverflow, ErrAuth, ErrNoType, ErrKeyLimit, ErrShort, ErrPlaintext}
	for i, a := range all {
		for _, b := range all[i+1:] {
			if errors.Is(a, b) {
				t.Errorf("%v and %v are one", a, b)
			}
		}
	}
}

// TestAllocations: the bulk path allocates nothing.
func TestAllocations(t *testing.T) {
	eachSuite(t, func(t *testing.T, s *Suite) {
		send, receive := newPair(t, s, 1)
		content := make([]byte, 4096)
		scratch, b, dst := make([]byte, 4096, 4097), withRoom(content, 1+TagLen), make([]byte, 4096+Overhead)
		out := make([]byte, 4096+Overhead)
		n := testing.AllocsPerRun(100, func() {
			rec, err := send.Seal(b, ApplicationData)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := receive.Open(out, rec); err != nil {
				t.Fatal(err)
			}
			if rec, err = send.SealTo(dst, scratch, ApplicationData); err != nil {
				t.Fatal(err)
			}
			if _, _, err := receive.Open(out, rec); err != nil {
				t.Fatal(err)
			}
			if _, _, err := receive.Open(out, rec); err != ErrAuth { // a trial that fails
				t.Fatal(err)
			}
		})
		if n != 0 {
			t.Errorf("%v allocations", n)
		}
	})
}

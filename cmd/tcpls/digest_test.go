package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestDigestField(t *testing.T) {
	want := digest(sha256.Sum256([]byte("x")))
	for _, test := range []struct {
		value string
		ok    bool
	}{
		{want.field(), true},
		{"sha-512=:AAAA:, " + want.field(), true},
		{want.field() + ";q=1", true},
		{"", false},
		{"sha-256=" + want.field()[len("sha-256=:"):], false},
		{want.field()[:len(want.field())-1], false},
		{"sha-256=:AAAA:", false},
		{"sha-256=:!!!!:", false},
		{"SHA-256" + want.field()[len("sha-256"):], false}, // keys are lower case (RFC 9651, 3.2)
	} {
		got, ok := digestIn(http.Header{reprDigest: {test.value}})
		if ok != test.ok || ok && got != want {
			t.Errorf("%q: %v, %v", test.value, got, ok)
		}
	}
	for value, want := range map[string]bool{"sha-256=10": true, "sha-512=3, sha-256=1": true, "sha-256=0": false, "sha-512=1": false, "": false} {
		if got := wantsDigest(http.Header{wantReprDigest: {value}}); got != want {
			t.Errorf("Want-Repr-Digest %q: %v", value, got)
		}
	}
}

// What a peer says of digests is either the one that it means, or none.
func FuzzDigestField(f *testing.F) {
	one := digest(sha256.Sum256([]byte("x")))
	for _, seed := range []string{one.field(), "sha-512=:AAAA:, " + one.field() + ";q=1", "sha-256=:AAAA:", "sha-256=10", "sha-256=:", ",,=:"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		wantsDigest(http.Header{wantReprDigest: {value}})
		d, ok := digestIn(http.Header{reprDigest: {value}})
		if !ok {
			if d != (digest{}) {
				t.Errorf("%q: no digest, and yet %v", value, d)
			}
			return
		}
		if again, ok := digestIn(http.Header{reprDigest: {d.field()}}); !ok || again != d {
			t.Errorf("%q: %v becomes %v, %v", value, d, again, ok)
		}
	})
}

func TestDigestsOfFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	content := bytes.Repeat([]byte("tcpls"), 200_000)
	if err := os.WriteFile(name, content, 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	d, v := newDigests(), versionOf("f", info)
	if got, err := d.of(t.Context(), f, v); err != nil || got != sha256.Sum256(content) {
		t.Errorf("digest %v, %v", got, err)
	}
	if _, ok := d.lookup(v); !ok {
		t.Error("the digest isn't remembered")
	}

	// A file that isn't what it was has no digest.
	stale := v
	stale.time = stale.time.Add(-time.Second)
	if _, err := d.of(t.Context(), f, stale); !errors.Is(err, errChanged) {
		t.Errorf("changed file: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.of(ended, f, stale); !errors.Is(err, context.Canceled) {
		t.Errorf("ended request: %v", err)
	}
}

func TestDigestsAreBounded(t *testing.T) {
	d := newDigests()
	for i := range maxDigests + 100 {
		d.remember(fileVersion{size: int64(i)}, digest{})
	}
	if len(d.known) != maxDigests {
		t.Errorf("%d digests are kept, not %d", len(d.known), maxDigests)
	}
	if _, ok := d.lookup(fileVersion{size: maxDigests + 99}); !ok {
		t.Error("the newest digest was dropped")
	}
}

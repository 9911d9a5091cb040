package main

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestVerify(t *testing.T) {
	sum, other := sumOf("a"), sumOf("b")
	for _, test := range []struct {
		name     string
		want     offer
		n, whole int64
		text     string
		err      error
	}{
		{"digest", offer{sum: sum, offered: true}, 5, 5, "sha256 verified", nil},
		{"digest without a size", offer{sum: sum, offered: true}, 5, -1, "sha256 verified", nil},
		{"another digest", offer{sum: other, offered: true}, 5, 5, "", &digestError{"the file", other.String(), sum.String()}},
		{"no digest", offer{}, 5, 5, "only the size checked (no digest offered)", nil},
		{"no digest and another size", offer{}, 4, 5, "", errCutOff},
		{"nothing", offer{}, 5, -1, "unchecked (neither digest nor size offered)", nil},
		{"the digest isn't to be had", offer{err: errChanged}, 5, 5, "", errChanged},
	} {
		text, err := verify(sum, test.want, test.n, test.whole)
		var wrong *digestError
		switch {
		case text != test.text || (err == nil) != (test.err == nil):
			t.Errorf("%s: %q, %v", test.name, text, err)
		case errors.As(test.err, &wrong):
			if got := wrong; !errors.As(err, &wrong) || *got != *wrong {
				t.Errorf("%s: %v", test.name, err)
			}
		case !errors.Is(err, test.err):
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

// Only a strong validator says that two answers are of one version.
func TestMark(t *testing.T) {
	for _, test := range []struct {
		tag, modified string
		whole         int64
		want          string
	}{
		{`"a"`, "then", 5, `"a" 5`},
		{`W/"a"`, "then", 5, "then 5"},
		{"", "then", 5, "then 5"},
		{`W/"a"`, "", 5, ""},
		{`"a"`, "", -1, ""},
		{`"a"`, "", 0, ""},
	} {
		h := http.Header{}
		h.Set("Etag", test.tag)
		h.Set("Last-Modified", test.modified)
		a := &answer{Response: &http.Response{Header: h}}
		if got := a.mark(test.whole); got != test.want {
			t.Errorf("%+v: %q", test, got)
		}
	}
}

// A partial answer that isn't the one asked for must not be appended.
func TestPartialAnswer(t *testing.T) {
	for text, want := range map[string]int64{
		"bytes 5-9/10": 10, "bytes 4-9/10": 0, "bytes 5-8/10": 0, "bytes 5-9/*": 0, "": 0, "bytes */10": 0, "items 5-9/10": 0,
	} {
		a := &answer{Response: &http.Response{StatusCode: http.StatusPartialContent, Header: http.Header{"Content-Range": {text}}}}
		if got, err := a.size(5); got != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
}

func TestPartNames(t *testing.T) {
	name := partName("dir/file", "mark")
	if !isPartName(name) || !strings.HasPrefix(name, "dir/file.") || name == partName("dir/file", "other") {
		t.Errorf("part name %q", name)
	}
	if long := partName(strings.Repeat("x", maxName), ""); len(long) > 255 {
		t.Errorf("a part's name has %d bytes", len(long))
	}
	for _, other := range []string{"file.part", "file.0123.part", "file.0123456789ABCDEF.part", "file.0123456789abcdef.part.txt"} {
		if isPartName(other) {
			t.Errorf("%q counts as a part", other)
		}
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "f[1]")
	if hasParts(file) {
		t.Error("parts in an empty folder")
	}
	for _, near := range []string{"f1.0123456789abcdef.part", "f[1]x.0123456789abcdef.part", "f[1].part"} {
		if err := os.WriteFile(filepath.Join(dir, near), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if hasParts(file) {
		t.Error("another file's part counts")
	}
	if err := os.WriteFile(partName(file, "m"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if !hasParts(file) {
		t.Error("the part isn't found")
	}
}

func TestResultLine(t *testing.T) {
	r := &result{size: 3e6, offset: 1e6, duration: time.Second, verified: "sha256 verified", how: "TCPLS"}
	if got, want := r.String(), "3.00 MB  in 1s (2.00 MB/s), went on at 1.00 MB, sha256 verified, over TCPLS"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

package tls13

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// engineSource is the package's source without its tests.
func engineSource(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		b.Write(raw)
	}
	return b.String()
}

// TestEvidence keeps each kind of evidence, and each change of keys that it
// pays for, in one place.
func TestEvidence(t *testing.T) {
	source := engineSource(t)
	for _, test := range []struct {
		what  string
		count int
	}{
		{"&verifiedPeer{", 2},
		{"&verifiedFinished{", 1},
		{"new(verifiedPeer)", 0},
		{"new(verifiedFinished)", 0},
		{"aligned{ok: true}", 1},
		{"complete = ", 1},
		{"c.peer, c.complete = peer, true", 1},
		{"c.read = record.NewContext(", 1},
		{"appendAlert(a)", 1},
		{"record.Alert, []byte{", 1},
	} {
		if n := strings.Count(source, test.what); n != test.count {
			t.Errorf("%q occurs %d times, want %d", test.what, n, test.count)
		}
	}
}

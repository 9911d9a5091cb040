package tlstest_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
)

// writeInterop makes TestInterop write its page instead of comparing with it.
var writeInterop = flag.Bool("write-interop", false, "write docs/interop.md from what TestInterop has seen")

const pageFile = "../../docs/interop.md"

// works is the cell of what works. Every other is the reason why not.
const works = "yes"

const pageHead = `# Interoperability

What our TLS engine (` + "`internal/tls13`" + `) does with other implementations of TLS 1.3. The test that makes every connection of
this table writes it too:

    go test ./internal/tlstest -run Interop -write-interop

and without the flag fails if something doesn't work that the table says works. Every cell stands for at least one connection
whose certificates were verified, which carried data there and back, and which both ends ended by close_notify; "every" means
each that the program can be told to use. A column is a program in the role that it played; a number is the reason, told below, why
it can't show something.

`

const pageFoot = `
Not in the table: keys that are restricted to RSA-PSS (` + "`rsa_pss_pss_*`" + `), since Go's crypto/x509 doesn't know them.
`

// A table is what the page says, or a run has seen: by peer and feature.
type table map[[2]string]string

func (t table) says(peer, feature string) string { return t[[2]string{peer, feature}] }

// results collects what a run sees.
type results struct {
	peers    []*peer
	features []feature
	page     table // as it is in the file
	raw      []byte

	mu       sync.Mutex
	seen     table
	versions map[*peer]string
}

func newResults(peers []*peer, features []feature) *results {
	r := &results{peers: peers, features: features, seen: make(table), versions: make(map[*peer]string)}
	r.raw, _ = os.ReadFile(pageFile) // an empty table where there is none
	r.page = parsePage(r.raw)
	return r
}

func (r *results) setVersion(p *peer, version string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.versions[p] = version
}

func (r *results) set(p *peer, f feature, cell string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen[[2]string{p.name, f.name}] = cell
}

// settle writes the page, or says what it lacks.
func (r *results) settle(t *testing.T) {
	if *writeInterop {
		if whole := len(r.peers) * len(r.features); len(r.seen) < whole {
			t.Fatalf("not written: only %d of %d combinations have a result; all programs are needed, and no failure", len(r.seen), whole)
		}
		if err := os.WriteFile(pageFile, r.format(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	for _, p := range r.peers {
		for _, f := range r.features {
			seen, said := r.seen.says(p.name, f.name), r.page.says(p.name, f.name)
			switch {
			case seen == "" || seen == said:
			case said == "":
				t.Errorf("%s doesn't tell of %s with %s: run this test with -write-interop", pageFile, f.name, p.name)
			case seen == works:
				t.Logf("%s works with this %s, which %s doesn't say yet", f.name, p.name, pageFile)
			}
		}
	}
}

// format returns the page.
func (r *results) format() []byte {
	var b bytes.Buffer
	b.WriteString(pageHead)
	b.WriteString("Made with " + strings.Join(r.sortedVersions(), ", ") + ".\n\n|")
	for _, p := range r.peers {
		b.WriteString(" | " + p.name)
	}
	b.WriteString(" |\n| ---" + strings.Repeat(" | ---", len(r.peers)) + " |\n")
	var reasons []string
	for _, f := range r.features {
		b.WriteString("| " + f.name)
		for _, p := range r.peers {
			cell := r.seen.says(p.name, f.name)
			if cell != works {
				if !slices.Contains(reasons, cell) {
					reasons = append(reasons, cell)
				}
				cell = fmt.Sprint(slices.Index(reasons, cell) + 1)
			}
			b.WriteString(" | " + cell)
		}
		b.WriteString(" |\n")
	}
	b.WriteString("\n")
	for i, reason := range reasons {
		fmt.Fprintf(&b, "%d. %s\n", i+1, reason)
	}
	b.WriteString(pageFoot)
	return b.Bytes()
}

func (r *results) sortedVersions() []string {
	var all []string
	for _, p := range r.peers {
		if v := r.versions[p]; !slices.Contains(all, v) {
			all = append(all, v)
		}
	}
	return all
}

// parsePage reads what format writes.
func parsePage(page []byte) table {
	var peers []string
	reasons := make(map[string]string)
	t := make(table)
	for line := range strings.Lines(string(page)) {
		line = strings.TrimSpace(line)
		if number, reason, ok := strings.Cut(line, ". "); ok && number != "" && strings.Trim(number, "0123456789") == "" {
			reasons[number] = reason
		}
		cells := strings.Split(strings.Trim(line, "|"), " | ")
		switch {
		case !strings.HasPrefix(line, "|"), strings.HasPrefix(line, "| ---"):
		case peers == nil:
			for _, c := range cells[1:] {
				peers = append(peers, strings.TrimSpace(c))
			}
		case len(cells) == 1+len(peers):
			for i, c := range cells[1:] {
				t[[2]string{peers[i], strings.TrimSpace(cells[0])}] = strings.TrimSpace(c)
			}
		}
	}
	for key, cell := range t {
		if reason, ok := reasons[cell]; ok {
			t[key] = reason
		}
	}
	return t
}

package bogo

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const configFile = "testdata/config.json"

// A config is testdata/config.json. The runner reads from it ErrorMap, which
// says how we call its errors, and HalfRTTTickets.
type config struct {
	Disabled []*disabled
}

// disabled are tests that the engine doesn't pass by design. A test belongs
// to the first entry that names it.
type disabled struct {
	Kind   kind
	Reason string
	Tests  []string // patterns of filepath.Match
	Except []string // patterns of what these match and the engine passes
}

// A kind of tests that are disabled.
type kind string

const (
	// protocol: they aren't tests of TLS 1.3 over TCP.
	protocol kind = "protocol"
	// feature: they need what the engine hasn't got.
	feature kind = "feature"
	// choice: they want a behaviour or a setting that isn't the engine's,
	// where RFC 8446 leaves the choice, or even says otherwise.
	choice kind = "choice"
)

var kinds = []kind{protocol, feature, choice}

func readConfig(name string) (*config, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	c := new(config)
	if err := json.Unmarshal(data, c); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return c, c.check()
}

func (c *config) check() error {
	var errs []error
	seen := make(map[string]bool)
	for i, d := range c.Disabled {
		if !slices.Contains(kinds, d.Kind) || d.Reason == "" || len(d.Tests) == 0 {
			errs = append(errs, fmt.Errorf("entry %d of Disabled lacks a kind, a reason or tests", i))
		}
		for _, pattern := range slices.Concat(d.Tests, d.Except) {
			if _, err := filepath.Match(pattern, ""); err != nil || seen[pattern] {
				errs = append(errs, fmt.Errorf("pattern %q is malformed, or there twice", pattern))
			}
			seen[pattern] = true
		}
	}
	return errors.Join(errs...)
}

// A result is how a test of the runner ended.
type result struct {
	status  string // PASSED, FAILED or UNIMPLEMENTED
	message string
}

// parseResults reads what the runner prints with -pipe: a line for each test,
// and behind that of a failed one, what went wrong.
func parseResults(out string) map[string]result {
	results := make(map[string]result)
	last := ""
	for line := range strings.Lines(out) {
		status, rest, _ := strings.Cut(strings.TrimSpace(line), " (")
		name, isResult := strings.CutSuffix(rest, ")")
		isResult = isResult && slices.Contains([]string{"PASSED", "FAILED", "UNIMPLEMENTED"}, status)
		switch r := results[last]; {
		case isResult:
			last = name
			results[name] = result{status: status}
		case r.status == "FAILED":
			r.message += line
			results[last] = r
		}
	}
	return results
}

// A count is the sum of a run.
type count struct {
	total, passed int
	kinds         map[kind]int
	tests         map[*disabled]int
	entries       []*disabled
}

// judge finds what went otherwise than the configuration says.
func (c *config) judge(results map[string]result) (*count, []error) {
	n := &count{total: len(results), kinds: make(map[kind]int), tests: make(map[*disabled]int), entries: c.Disabled}
	used := make(map[string]bool)
	var faults []error
	for _, name := range names(results) {
		r, d := results[name], c.disables(name, used)
		switch passed := r.status == "PASSED"; {
		case d != nil:
			n.tests[d]++
			n.kinds[d.Kind]++
			if passed {
				faults = append(faults, fmt.Errorf("%s is disabled, and passes: %s", name, d.Reason))
			}
		case passed:
			n.passed++
		default:
			faults = append(faults, fmt.Errorf("%s: %s\n%s", name, r.status, r.message))
		}
	}
	for _, d := range c.Disabled {
		for _, pattern := range slices.Concat(d.Tests, d.Except) {
			if !used[pattern] {
				faults = append(faults, fmt.Errorf("pattern %q is stale: it matches no test that an earlier one leaves to it", pattern))
			}
		}
	}
	return n, faults
}

// disables returns the entry that a test belongs to, or nil, and notes the
// patterns that were needed to tell.
func (c *config) disables(name string, used map[string]bool) *disabled {
	for _, d := range c.Disabled {
		pattern := matching(d.Tests, name)
		if pattern == "" {
			continue
		}
		used[pattern] = true
		if except := matching(d.Except, name); except != "" {
			used[except] = true
			continue
		}
		return d
	}
	return nil
}

// matching returns the first pattern that matches, or nothing.
func matching(patterns []string, name string) string {
	for _, pattern := range patterns {
		if ok, err := filepath.Match(pattern, name); ok && err == nil {
			return pattern
		}
	}
	return ""
}

// String is the result in Markdown, as docs/conformance.md has it.
func (n *count) String() string {
	var b strings.Builder
	row := func(tests int, format string, args ...any) {
		fmt.Fprintf(&b, "| %d | %s |\n", tests, fmt.Sprintf(format, args...))
	}
	ours := n.total - n.kinds[protocol]
	has := ours - n.kinds[feature]
	b.WriteString("| tests | |\n| ---: | --- |\n")
	row(n.total, "of the runner")
	row(ours, "of TLS 1.3 over TCP")
	row(has, "of them, of what the engine has")
	row(n.passed, "**run, and passed: %.1f %% of what the engine has, %.1f %% of TLS 1.3 over TCP**", percent(n.passed, has), percent(n.passed, ours))
	for _, k := range kinds {
		fmt.Fprintf(&b, "\n%s\n\n| tests | |\n| ---: | --- |\n", k.title())
		row(n.kinds[k], "**together**")
		for _, d := range n.entries {
			if d.Kind == k {
				row(n.tests[d], "%s", d.Reason)
			}
		}
	}
	return b.String()
}

func (k kind) title() string {
	switch k {
	case protocol:
		return "Disabled, as they aren't tests of TLS 1.3 over TCP:"
	case feature:
		return "Disabled, as they need what the engine hasn't got:"
	}
	return "Disabled, as the engine chooses otherwise, where RFC 8446 leaves the choice or even demands it:"
}

func percent(part, whole int) float64 { return 100 * float64(part) / float64(whole) }

// TestConfig reads the configuration also where there is no runner.
func TestConfig(t *testing.T) {
	if _, err := readConfig(configFile); err != nil {
		t.Error(err)
	}
}

// TestJudge has one test of each kind, and one of each fault.
func TestJudge(t *testing.T) {
	c := &config{Disabled: []*disabled{
		{Kind: protocol, Reason: "other", Tests: []string{"*-DTLS"}, Except: []string{"Kept-*"}},
		{Kind: choice, Reason: "not here", Tests: []string{"Missing", "Missing-*"}},
	}}
	if err := c.check(); err != nil {
		t.Fatal(err)
	}
	out := "PASSED (Basic)\nUNIMPLEMENTED (Basic-DTLS)\nPASSED (Kept-DTLS)\nFAILED (Missing)\nwhy\nFAILED (Missing-1)\nwhy\n\n"
	n, faults := c.judge(parseResults(out))
	if len(faults) != 0 || n.total != 5 || n.kinds[protocol] != 1 || n.passed != 2 || n.tests[c.Disabled[1]] != 2 {
		t.Errorf("faults %v, count\n%v", faults, n)
	}
	for _, test := range []struct{ out, fault string }{
		{strings.Replace(out, "PASSED (Basic)", "FAILED (Basic)\nfirst\nsecond", 1), "Basic: FAILED\nfirst\nsecond\n"},
		{strings.Replace(out, "PASSED (Basic)", "UNIMPLEMENTED (Basic)", 1), "Basic: UNIMPLEMENTED\n"},
		{strings.Replace(out, "FAILED (Missing)", "PASSED (Missing)", 1), "Missing is disabled, and passes: not here"},
		{strings.Replace(out, "Missing-1", "Missing", 1), `pattern "Missing-*" is stale`},
		{strings.Replace(out, "Kept-DTLS", "Basic", 1), `pattern "Kept-*" is stale`},
	} {
		_, faults := c.judge(parseResults(test.out))
		if len(faults) != 1 || !strings.HasPrefix(faults[0].Error(), test.fault) {
			t.Errorf("faults %v, want %q", faults, test.fault)
		}
	}
	for _, bad := range []*disabled{
		{Kind: feature, Tests: []string{"x"}}, {Kind: feature, Reason: "x"}, {Reason: "x", Tests: []string{"x"}},
		{Kind: feature, Reason: "x", Tests: []string{"["}}, {Kind: feature, Reason: "x", Tests: []string{"x", "x"}},
	} {
		if (&config{Disabled: []*disabled{bad}}).check() == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
}

// TestFlags reads a command line of each kind.
func TestFlags(t *testing.T) {
	all, err := parseFlags([]string{
		"-port", "443", "-server", "-on-resume-expect-alpn", "a", "-on-shim-shim-writes-first", "-cert-file", "default",
		"-new-x509-credential", "-cert-file", "first", "-signing-prefs", "1027", "-signing-prefs", "1283",
		"-on-retry-new-x509-credential", "-on-retry-cert-file", "second",
	})
	if err != nil {
		t.Fatal(err)
	}
	for p, o := range all {
		if o.port != 443 || !o.server || !o.writesFirst || o.readSize != 512 || (o.alpn == "a") != (phase(p) == resumption) {
			t.Errorf("phase %d: %+v", p, o)
		}
		var files []string
		for _, c := range append(o.credentials, &o.credential) {
			files = append(files, c.certFile)
		}
		want := []string{"first", "default"}
		if phase(p) == retry {
			want = []string{"first", "second", "default"}
		}
		if !slices.Equal(files, want) || !slices.Equal(o.credentials[0].signingPrefs, numbers{1027, 1283}) {
			t.Errorf("phase %d: credentials %v", p, files)
		}
	}
	for _, args := range [][]string{{"-dtls"}, {"-no-tls13"}, {"-max-version", "771"}, {"-on-resume-quic"}} {
		if _, err := parseFlags(args); !errors.Is(err, errUnimplemented) {
			t.Errorf("%v: %v", args, err)
		}
	}
	for _, args := range [][]string{{"port"}, {"-port"}, {"-port", "x"}} {
		if _, err := parseFlags(args); err == nil || errors.Is(err, errUnimplemented) {
			t.Errorf("%v: %v", args, err)
		}
	}
}

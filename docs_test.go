package tcpls_test

import (
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var markdownLink = regexp.MustCompile(`\]\(([^)\s]+)\)`)

// TestLinks follows the links from one document of the project to another, and
// to what it shows.
func TestLinks(t *testing.T) {
	files, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, pattern := range []string{"docs/*.md", "docs/*/*.md"} {
		more, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, more...)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, link := range markdownLink.FindAllStringSubmatch(string(text), -1) {
			u, err := url.Parse(link[1])
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if u.Scheme != "" || u.Path == "" || strings.HasPrefix(u.Path, "/") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(name), filepath.FromSlash(u.Path))); err != nil {
				t.Errorf("%s: the link to %s: %v", name, u.Path, err)
			}
		}
	}
}

var (
	codeSpan    = regexp.MustCompile("`([^`]+)`")
	testCited   = regexp.MustCompile(`^((?:Test|Fuzz)\w+)(?:/(.+))?$`)
	testDefined = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
)

// TestCitations looks up the files, tests and rows of tests that these pages
// cite.
func TestCitations(t *testing.T) {
	sources := make(map[string][]string) // by test
	err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, m := range testDefined.FindAllStringSubmatch(string(source), -1) {
			sources[m[1]] = append(sources[m[1]], string(source))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range []struct {
		name         string
		files, tests int // at least
	}{{"docs/rfc8446.md", 100, 200}, {"docs/security.md", 70, 100}} {
		text, err := os.ReadFile(page.name)
		if err != nil {
			t.Fatal(err)
		}
		files, tests := 0, 0
		for _, span := range codeSpan.FindAllStringSubmatch(string(text), -1) {
			cited := span[1]
			if m := testCited.FindStringSubmatch(cited); m != nil {
				tests++
				row := func(source string) bool { return strings.Contains(source, strconv.Quote(m[2])) }
				if list := sources[m[1]]; len(list) == 0 || m[2] != "" && !slices.ContainsFunc(list, row) {
					t.Errorf("%s: no test has the name %s", page.name, cited)
				}
			} else if strings.HasSuffix(cited, ".go") {
				files++
				if !strings.Contains(cited, "/") {
					cited = "internal/tls13/" + cited
				}
				if _, err := os.Stat(cited); err != nil {
					t.Errorf("%s: %v", page.name, err)
				}
			}
		}
		if files < page.files || tests < page.tests {
			t.Errorf("%s cites only %d files and %d tests, as if it had another form", page.name, files, tests)
		}
	}
}

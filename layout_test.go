package tcpls_test

import (
	"bytes"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/go-tcpls/tcpls"

// mayImport says for every package which others of this module it may import.
// What isn't listed is forbidden, so that dependencies go one way.
var mayImport = map[string][]string{
	"internal/linkemu": {},
	"internal/memnet":  {},
	"internal/netns":   {},
	"internal/osnet":   {},
	"internal/record":  {},
	"internal/wire":    {},
	"sched":            {},

	"internal/tls13":   {"internal/record"},
	"internal/tlsconn": {"internal/record", "internal/tls13"},

	".": {"internal/osnet", "internal/record", "internal/tls13", "internal/tlsconn", "internal/wire", "sched"},

	"bpfcc":     {"."},
	"cmd/tcpls": {".", "sched", "bpfcc", "internal/linkemu", "lab"},

	"lab": {".", "bpfcc", "internal/record", "internal/wire"},

	"internal/bogo":            {}, // tests only
	"internal/tlstest":         {"internal/record", "internal/tls13", "internal/tlsconn", "internal/wire"},
	"internal/tlstest/outside": {},
	"internal/tlstest/client":  {"internal/tls13", "internal/tlstest"},
	"internal/tlstest/server":  {"internal/tls13", "internal/tlstest"},
}

// mayNeedMore are the packages that aren't part of the library, and so may
// import other modules than allowedModules.
var mayNeedMore = []string{"bpfcc", "cmd/tcpls", "internal/tlstest", "lab"}

var allowedModules = []string{module, "golang.org/x/crypto", "golang.org/x/sys"}

// The largest sizes of what is written by hand, tests aside.
const (
	maxFileLines     = 600
	maxFunctionLines = 80
	maxStructFields  = 40
)

// oversized lists what may exceed these sizes, as "file.go" or "file.go:Name",
// and why.
var oversized = map[string]string{}

// readsClock lists what may ask for the time, and why; "dir/" is a whole
// package. The rest of the library is told, so that it can be tested with any.
var readsClock = map[string]string{
	"session_timers.go":        "the session's timers give the time to what they call",
	"congestion_host.go":       "how long loading the peer's programs takes is bounded",
	"path_write.go":            "how fast a full socket takes bytes is a path's rate",
	"inspect.go":               "a SYN's timestamp is as old as its path",
	"path_length.go":           "records are short again after a path was idle",
	"path_handover.go":         "a new path is helped for some round trips",
	"path_watch.go":            "a path knows how long it was silent",
	"path_read.go":             "each large read of a path has one time",
	"deadline.go":              "deadlines of the application are points in time",
	"handshake.go":             "one deadline stands over a handshake, and its round trip is measured",
	"fallback.go":              "plain TLS connections have deadlines for their handshake and their end",
	"path_keeper.go":           "attempts to open a path are spaced",
	"race.go":                  "how long an answer may take depends on how long the connection took",
	"dial.go":                  "what a Dialer knows of an address grows old",
	"flow.go":                  "a window grows by how fast it is used up, and asks only when credit is due",
	"internal/tls13/config.go": "tls.Config.Time stands for time.Now where it is nil",
	"internal/netns/":          "a test's deadline is passed on to its process",
	"internal/tlsconn/":        "the last words of a connection have a deadline",
	"internal/linkemu/":        "a link's rate and delay are made of time",
	"internal/memnet/":         "a link's rate and delay are made of time",
}

// A listedPackage is what go list says about a package.
type listedPackage struct {
	ImportPath string
	Standard   bool
	Imports    []string
	Module     *struct{ Path string }
}

// listPackages returns the packages of this module and all that they need on
// a system, by import path.
func listPackages(t *testing.T, goos string) map[string]*listedPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Standard,Imports,Module", "./...")
	cmd.Env = append(os.Environ(), "GOOS="+goos, "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.Bytes())
	}
	packages := make(map[string]*listedPackage)
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		p := new(listedPackage)
		if err := d.Decode(p); err == io.EOF {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages[p.ImportPath] = p
	}
}

// inModule returns the directory of a package of this module.
func inModule(importPath string) (dir string, ok bool) {
	if importPath == module {
		return ".", true
	}
	return strings.CutPrefix(importPath, module+"/")
}

func TestImports(t *testing.T) {
	for _, goos := range []string{"linux", "darwin", "windows", "freebsd"} {
		t.Run(goos, func(t *testing.T) {
			packages := listPackages(t, goos)
			for _, p := range packages {
				dir, ok := inModule(p.ImportPath)
				if !ok {
					continue
				}
				checkDirection(t, dir, p)
				if !slices.Contains(mayNeedMore, dir) {
					checkModules(t, dir, packages)
				}
			}
		})
	}
}

func checkDirection(t *testing.T, dir string, p *listedPackage) {
	allowed, ok := mayImport[dir]
	if !ok {
		t.Errorf("package %s has no place in the order of packages", dir)
		return
	}
	for _, path := range p.Imports {
		if to, ok := inModule(path); ok && !slices.Contains(allowed, to) {
			t.Errorf("package %s imports %s, against the order of packages", dir, to)
		}
	}
}

// checkModules follows the imports of a package to those of other modules.
func checkModules(t *testing.T, dir string, packages map[string]*listedPackage) {
	seen := make(map[string]bool)
	var visit func(importPath, from string)
	visit = func(importPath, from string) {
		p := packages[importPath]
		if seen[importPath] || p == nil || p.Standard {
			return
		}
		seen[importPath] = true
		if !slices.Contains(allowedModules, p.Module.Path) {
			t.Errorf("package %s needs %s, which %s imports; the library must not", dir, importPath, from)
			return
		}
		for _, to := range p.Imports {
			visit(to, importPath)
		}
	}
	visit(path.Join(module, dir), "")
}

// A sourceFile is a Go file that isn't a test.
type sourceFile struct {
	name  string // from the module's root, with slashes
	lines int
	fset  *token.FileSet
	ast   *ast.File
}

func parseSources(t *testing.T) []*sourceFile {
	t.Helper()
	var files []*sourceFile
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		base := d.Name()
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != "." && (base == "testdata" || base[0] == '.' || base[0] == '_'):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(base, ".go") || strings.HasSuffix(base, "_test.go"):
			return nil
		}
		f := &sourceFile{name: filepath.ToSlash(name), fset: token.NewFileSet()}
		if f.ast, err = parser.ParseFile(f.fset, name, nil, parser.ParseComments); err != nil {
			return err
		}
		f.lines = f.fset.File(f.ast.FileStart).LineCount()
		files = append(files, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Fatal("no source files")
	}
	return files
}

func TestSizes(t *testing.T) {
	used := make(map[string]bool)
	check := func(name, what string, size, most int) {
		if size <= most {
			return
		}
		if _, ok := oversized[name]; ok {
			used[name] = true
			return
		}
		t.Errorf("%s has %d %s, at most %d are allowed", name, size, what, most)
	}
	for _, f := range parseSources(t) {
		if ast.IsGenerated(f.ast) {
			continue
		}
		check(f.name, "lines", f.lines, maxFileLines)
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				check(f.name+":"+n.Name.Name, "lines", f.span(n), maxFunctionLines)
			case *ast.TypeSpec:
				if s, ok := n.Type.(*ast.StructType); ok {
					check(f.name+":"+n.Name.Name, "fields", s.Fields.NumFields(), maxStructFields)
				}
			}
			return true
		})
	}
	for name, reason := range oversized {
		if !used[name] {
			t.Errorf("%s needs no exception any more (%s)", name, reason)
		}
	}
}

func (f *sourceFile) span(n ast.Node) int {
	return f.fset.Position(n.End()).Line - f.fset.Position(n.Pos()).Line + 1
}

func TestPackageDocs(t *testing.T) {
	documented := make(map[string]bool)
	for _, f := range parseSources(t) {
		dir := path.Dir(f.name)
		documented[dir] = documented[dir] || f.ast.Doc != nil
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("package %s has no package comment", dir)
		}
	}
}

func TestClock(t *testing.T) {
	for _, f := range parseSources(t) {
		dir := path.Dir(f.name)
		if slices.ContainsFunc(mayNeedMore, func(d string) bool { return dir == d || strings.HasPrefix(dir, d+"/") }) {
			continue
		}
		if readsClock[f.name] != "" || readsClock[dir+"/"] != "" {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := s.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains([]string{"Now", "Since", "Until"}, s.Sel.Name) {
				t.Errorf("%v: time.%s: the time should be given to this code", f.fset.Position(s.Pos()), s.Sel.Name)
			}
			return true
		})
	}
}

package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// newTestFiles serves a folder with some files in it. The parent holds a
// "secret" file that no request may reach.
func newTestFiles(t *testing.T) (*fileServer, *httptest.Server) {
	t.Helper()
	parent := t.TempDir()
	dir := filepath.Join(parent, "served")
	for name, content := range map[string]string{
		"secret": "secret", "served/a.txt": "hello", "served/sub/b c.txt": "in sub", "served/.hidden": "hidden",
		"served/a.txt.0123456789abcdef.part": "part", "served/<i>.txt": "markup", "served/sub:1.txt": "colon",
	} {
		name = filepath.Join(parent, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := &fileServer{root: root, sums: newDigests(), logger: slog.New(slog.DiscardHandler), say: t.Logf}
	server := httptest.NewTLSServer(files)
	t.Cleanup(func() {
		server.Close()
		root.Close()
	})
	return files, server
}

// fetchTest sends a request whose path is written to the wire as it is.
func fetchTest(t *testing.T, server *httptest.Server, method, rawPath string, body io.Reader, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, server.URL, body)
	if err != nil {
		t.Fatal(err)
	}
	req.URL.Opaque = "//" + req.URL.Host + rawPath
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	client := *server.Client()
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(text)
}

func TestServeFiles(t *testing.T) {
	_, server := newTestFiles(t)
	sum := digest(sha256.Sum256([]byte("hello"))).field()
	whole, _ := fetchTest(t, server, "GET", "/a.txt", nil)
	tag := whole.Header.Get("Etag")
	for _, test := range []struct {
		name, method, path string
		header             []string
		status             int
		body               string
		digest             string
	}{
		{"file", "GET", "/a.txt", nil, 200, "hello", ""},
		{"file with a digest", "GET", "/a.txt", []string{wantReprDigest, "sha-256=10"}, 200, "hello", sum},
		{"range with the digest of the whole", "GET", "/a.txt", []string{wantReprDigest, "sha-256=1", "Range", "bytes=3-"}, 206, "lo", sum},
		{"range of this version", "GET", "/a.txt", []string{"Range", "bytes=3-", "If-Range", tag}, 206, "lo", ""},
		{"range of another version", "GET", "/a.txt", []string{"Range", "bytes=3-", "If-Range", `"0-5"`}, 200, "hello", ""},
		{"range past the end", "GET", "/a.txt", []string{"Range", "bytes=9-"}, 416, "invalid range: failed to overlap\n", ""},
		{"digest of another version", "HEAD", "/a.txt", []string{wantReprDigest, "sha-256=1", "If-Match", `"0-5"`}, 412, "", sum},
		{"head", "HEAD", "/a.txt", []string{wantReprDigest, "sha-256=1"}, 200, "", sum},
		{"escaped name", "GET", "/sub/b%20c.txt", nil, 200, "in sub", ""},
		{"name with a colon", "GET", "/sub:1.txt", nil, 200, "colon", ""},
		{"method", "POST", "/a.txt", nil, 405, "only GET, HEAD and PUT are served\n", ""},
		{"upload", "PUT", "/new", nil, 403, "this server takes no uploads\n", ""},
		{"missing", "GET", "/none", nil, 404, errNoFile.Error() + "\n", ""},
		{"file as a folder", "GET", "/a.txt/", nil, 404, errNoFile.Error() + "\n", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			resp, body := fetchTest(t, server, test.method, test.path, nil, test.header...)
			if resp.StatusCode != test.status || body != test.body || resp.Header.Get(reprDigest) != test.digest {
				t.Errorf("%d %q, digest %q; want %d %q, digest %q",
					resp.StatusCode, body, resp.Header.Get(reprDigest), test.status, test.body, test.digest)
			}
		})
	}
	if resp, _ := fetchTest(t, server, "GET", "/sub", nil); resp.StatusCode != 301 || resp.Header.Get("Location") != "/sub/" {
		t.Errorf("folder without a slash: %d to %q", resp.StatusCode, resp.Header.Get("Location"))
	}
}

// No path leads out of the folder, or to what isn't shown.
func TestPathsStayInside(t *testing.T) {
	files, server := newTestFiles(t)
	dir := files.root.Name()
	links := map[string]string{
		"link-up": "../secret", "link-dir": "..", "link-abs": filepath.Join(filepath.Dir(dir), "secret"), "link-in": "a.txt", "link-loop": "link-loop",
	}
	for name, to := range links {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			if runtime.GOOS == "windows" {
				t.Skip("symbolic links need a privilege on Windows: ", err)
			}
			t.Fatal(err)
		}
	}
	for _, path := range []string{
		"/../secret", "/..%2fsecret", "/%2e%2e/secret", "/%2e%2e%2fsecret", "/sub/../../secret", "/sub/..%2f..%2fsecret", "/./a.txt/../../secret",
		`/..\secret`, "/..%5csecret", "//../secret", "/%2f..%2fsecret", "/sub//../../secret", "/a.txt%00", "/%00", "/link-up", "/link-abs", "/link-dir/", "/link-dir/secret",
		"/link-loop", "/.hidden", "/sub/../.hidden", "/a.txt.0123456789abcdef.part", "/" + url.PathEscape(filepath.Join(filepath.Dir(dir), "secret")),
		"/" + strings.Repeat("a", 300), "/" + strings.Repeat("a/", 2000) + "b",
	} {
		for _, method := range []string{"GET", "HEAD", "PUT"} {
			resp, body := fetchTest(t, server, method, path, nil)
			if resp.StatusCode < 300 || strings.Contains(body, "secret") || strings.Contains(body, dir) {
				t.Errorf("%s %s: %d %q", method, path, resp.StatusCode, body)
			}
		}
	}
	if resp, body := fetchTest(t, server, "GET", "/link-in", nil); resp.StatusCode != 200 || body != "hello" {
		t.Errorf("a link within the folder: %d %q", resp.StatusCode, body)
	}
	resp, body := fetchTest(t, server, "GET", "/", nil, "Accept", listingType)
	for _, name := range []string{"link-up", "link-abs", "link-dir", "link-loop", "secret"} {
		if resp.StatusCode != 200 || strings.Contains(body, `"`+name+`"`) {
			t.Errorf("the listing shows %s: %s", name, body)
		}
	}
}

func TestHiddenAndOnly(t *testing.T) {
	files, server := newTestFiles(t)
	files.hidden = true
	if resp, body := fetchTest(t, server, "GET", "/.hidden", nil); resp.StatusCode != 200 || body != "hidden" {
		t.Errorf("--hidden: %d %q", resp.StatusCode, body)
	}
	files.only = "a.txt"
	for path, status := range map[string]int{"/a.txt": 200, "/": 302, "/sub/": 404, "/.hidden": 404, "/sub:1.txt": 404} {
		if resp, _ := fetchTest(t, server, "GET", path, nil); resp.StatusCode != status {
			t.Errorf("one file served: GET %s: %d, want %d", path, resp.StatusCode, status)
		}
	}
}

func TestListing(t *testing.T) {
	_, server := newTestFiles(t)
	resp, body := fetchTest(t, server, "GET", "/", nil, "Accept", listingType)
	var l listing
	if err := json.Unmarshal([]byte(body), &l); err != nil || resp.Header.Get("Content-Type") != listingType {
		t.Fatalf("%q, %v", resp.Header.Get("Content-Type"), err)
	}
	var names []string
	for _, e := range l.Entries {
		names = append(names, e.Name)
	}
	if want := []string{"sub", "<i>.txt", "a.txt", "sub:1.txt"}; !slices.Equal(names, want) || !l.Entries[0].Folder || l.Entries[2].Size != 5 {
		t.Errorf("entries %+v; want %q", l.Entries, want)
	}
	var out bytes.Buffer
	if err := l.show(&out, target{address: "h:1", path: "/d/"}); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); !strings.Contains(got, "tcpls://h:1/d/sub/\n") || !strings.Contains(got, "5 B") || !strings.Contains(got, "tcpls://h:1/d/%3Ci%3E.txt\n") {
		t.Errorf("listing:\n%s", got)
	}

	resp, html := fetchTest(t, server, "GET", "/", nil)
	if resp.StatusCode != 200 || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html") {
		t.Errorf("%d %s", resp.StatusCode, resp.Header.Get("Content-Type"))
	}
	for _, want := range []string{`<a href="./sub/">sub/</a>`, `<a href="./%3Ci%3E.txt">&lt;i&gt;.txt</a>`, `<a href="./sub:1.txt">`} {
		if !strings.Contains(html, want) {
			t.Errorf("the page lacks %s:\n%s", want, html)
		}
	}
	if strings.Contains(html, "../") {
		t.Error("the top of the folder leads up")
	}
	if _, html := fetchTest(t, server, "GET", "/sub/", nil); !strings.Contains(html, `<a href="../">`) {
		t.Error("a folder below doesn't lead up")
	}
}

func TestListingIsBounded(t *testing.T) {
	files, server := newTestFiles(t)
	for i := range maxEntries + 10 {
		if err := files.root.WriteFile(fmt.Sprintf("sub/%05d", i), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	_, body := fetchTest(t, server, "GET", "/sub/", nil, "Accept", listingType)
	var l listing
	if err := json.Unmarshal([]byte(body), &l); err != nil || len(l.Entries) != maxEntries || !l.Truncated {
		t.Errorf("%d entries, truncated %v, %v", len(l.Entries), l.Truncated, err)
	}
	if len(body) > maxListing {
		t.Errorf("the listing has %d bytes; get reads %d", len(body), maxListing)
	}
}

// An open of a named pipe waits for a writer: it must not be tried.
func TestNamedPipeIsNotServed(t *testing.T) {
	files, server := newTestFiles(t)
	if err := makePipe(filepath.Join(files.root.Name(), "pipe")); err != nil {
		t.Skip("no named pipes in the file system here: ", err)
	}
	if resp, _ := fetchTest(t, server, "GET", "/pipe", nil); resp.StatusCode != 404 {
		t.Errorf("named pipe: %d", resp.StatusCode)
	}
}

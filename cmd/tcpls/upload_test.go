package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func newTestUploads(t *testing.T, overwrite bool, limit int64) (*fileServer, *httptest.Server) {
	t.Helper()
	files, server := newTestFiles(t)
	files.put = newUploads(overwrite, limit)
	return files, server
}

func sumOf(content string) digest { return sha256.Sum256([]byte(content)) }

func readTest(t *testing.T, files *fileServer, name string) string {
	t.Helper()
	content, err := files.root.ReadFile(name)
	if err != nil {
		return err.Error()
	}
	return string(content)
}

// partsIn lists the unfinished uploads, but for the one that newTestFiles made.
func partsIn(t *testing.T, files *fileServer) []string {
	t.Helper()
	entries, err := os.ReadDir(files.root.Name())
	if err != nil {
		t.Fatal(err)
	}
	var parts []string
	for _, e := range entries {
		if isPartName(e.Name()) && !strings.HasPrefix(e.Name(), "a.txt.") {
			parts = append(parts, e.Name())
		}
	}
	return parts
}

func TestUpload(t *testing.T) {
	const content = "new content"
	sum := sumOf(content).field()
	for _, test := range []struct {
		name      string
		overwrite bool
		path      string
		header    []string
		status    int
		want      string // of the file afterwards
	}{
		{"new", false, "/new", []string{reprDigest, sum}, 201, content},
		{"new in a folder", false, "/sub/new", []string{reprDigest, sum}, 201, content},
		{"there already", false, "/a.txt", []string{reprDigest, sum}, 409, "hello"},
		{"replaced", true, "/a.txt", []string{reprDigest, sum}, 204, content},
		{"folder", true, "/sub", []string{reprDigest, sum}, 409, ""},
		{"folder by its slash", true, "/new/", []string{reprDigest, sum}, 400, ""},
		{"root", true, "/", []string{reprDigest, sum}, 400, ""},
		{"no such folder", false, "/none/new", []string{reprDigest, sum}, 409, ""},
		{"no digest", false, "/new", nil, 400, ""},
		{"wrong digest", false, "/new", []string{reprDigest, sumOf("other").field()}, 422, ""},
		{"hidden", false, "/.ssh", []string{reprDigest, sum}, 403, ""},
		{"in a hidden folder", false, "/.ssh/key", []string{reprDigest, sum}, 403, ""},
		{"out of the folder", false, "/sub/../../new", []string{reprDigest, sum}, 400, ""},
		{"an empty element", false, "/sub//new", []string{reprDigest, sum}, 400, ""},
		{"control characters", false, "/a%07b", []string{reprDigest, sum}, 400, ""},
		{"too long a name", false, "/" + strings.Repeat("x", maxName+1), []string{reprDigest, sum}, 400, ""},
		{"part of another", false, "/x.0123456789abcdef.part", []string{reprDigest, sum}, 403, ""},
		{"range without a part", false, "/new", []string{reprDigest, sum, "Content-Range", "bytes 5-15/16"}, 409, ""},
		{"range short of the end", false, "/new", []string{reprDigest, sum, "Content-Range", "bytes 0-10/20"}, 400, ""},
		{"range of another length", false, "/new", []string{reprDigest, sum, "Content-Range", "bytes 0-19/20"}, 400, ""},
		{"range that isn't one", false, "/new", []string{reprDigest, sum, "Content-Range", "bytes */20"}, 400, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			files, server := newTestUploads(t, test.overwrite, 1000)
			resp, body := fetchTest(t, server, "PUT", test.path, strings.NewReader(content), test.header...)
			if resp.StatusCode != test.status {
				t.Errorf("%d %q, want %d", resp.StatusCode, body, test.status)
			}
			if ok := resp.StatusCode < 300; ok != (resp.Header.Get(reprDigest) == sum) {
				t.Errorf("%d confirms the digest %q", resp.StatusCode, resp.Header.Get(reprDigest))
			}
			if got := readTest(t, files, strings.TrimPrefix(test.path, "/")); test.want != "" && got != test.want {
				t.Errorf("the file holds %q, want %q", got, test.want)
			}
			if _, err := files.root.Stat("new"); test.want == "" && err == nil {
				t.Error("a refused upload left a file")
			}
			if parts := partsIn(t, files); test.name != "range without a part" && len(parts) > 0 {
				t.Errorf("left over: %q", parts)
			}
		})
	}
}

func TestUploadNeedsLength(t *testing.T) {
	_, server := newTestUploads(t, false, 1000)
	resp, body := fetchTest(t, server, "PUT", "/new", io.MultiReader(strings.NewReader("x")), reprDigest, sumOf("x").field())
	if resp.StatusCode != http.StatusLengthRequired {
		t.Errorf("%d %q", resp.StatusCode, body)
	}
}

// cutTest uploads the first n bytes of content and then breaks the connection.
func cutTest(t *testing.T, server *httptest.Server, path, content string, n int) {
	t.Helper()
	req, err := http.NewRequest("PUT", server.URL+path, io.MultiReader(strings.NewReader(content[:n]), brokenReader{}))
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = int64(len(content))
	req.Header.Set(reprDigest, sumOf(content).field())
	if resp, err := server.Client().Do(req); err == nil {
		resp.Body.Close()
		t.Fatalf("the cut upload was answered %s", resp.Status)
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestUploadResumes(t *testing.T) {
	files, server := newTestUploads(t, false, 10<<20)
	reported := make(chan string, 10)
	files.say = func(format string, args ...any) { reported <- fmt.Sprintf(format, args...) }
	content := strings.Repeat("0123456789abcdef", 64<<10)
	sum := sumOf(content).field()
	offsetOf := func() string {
		resp, _ := fetchTest(t, server, "HEAD", "/big", nil, reprDigest, sum)
		return resp.Header.Get(uploadOffset)
	}
	if got := offsetOf(); got != "0" {
		t.Errorf("offset %q before the upload", got)
	}
	cutTest(t, server, "/big", content, 700_000)
	var line string
	for !strings.Contains(line, "PUT") { // then the server is done with the cut upload
		line = <-reported
	}
	part := partName("big", sumOf(content).String())
	var offset int
	if _, err := fmt.Sscan(offsetOf(), &offset); err != nil || offset == 0 || offset > 700_000 {
		t.Fatalf("offset %d after the cut, %v", offset, err)
	}
	if !strings.Contains(line, size(offset).String()+" in") {
		t.Errorf("%q doesn't tell the %v that came", line, size(offset))
	}
	if _, err := files.root.Stat("big"); err == nil {
		t.Fatal("half a file has the name of the whole")
	}

	// From elsewhere than where the part ends: refused, and nothing is lost.
	resp, body := fetchTest(t, server, "PUT", "/big", strings.NewReader(content[10:]), reprDigest, sum,
		"Content-Range", fmt.Sprintf("bytes 10-%d/%d", len(content)-1, len(content)))
	if resp.StatusCode != 409 {
		t.Errorf("wrong offset: %d %q", resp.StatusCode, body)
	}
	resp, body = fetchTest(t, server, "PUT", "/big", strings.NewReader(content[offset:]), reprDigest, sum,
		"Content-Range", fmt.Sprintf("bytes %d-%d/%d", offset, len(content)-1, len(content)))
	if resp.StatusCode != 201 || readTest(t, files, "big") != content {
		t.Errorf("resumed: %d %q", resp.StatusCode, body)
	}
	if _, err := files.root.Stat(part); err == nil {
		t.Error("the part is still there")
	}
}

// A resumed part whose first bytes were spoilt must not become a file.
func TestUploadChecksWhatWasThere(t *testing.T) {
	files, server := newTestUploads(t, false, 1000)
	const content = "0123456789"
	part := partName("new", sumOf(content).String())
	if err := files.root.WriteFile(part, []byte("01234---"), 0o644); err != nil {
		t.Fatal(err)
	}
	resp, body := fetchTest(t, server, "PUT", "/new", strings.NewReader("89"), reprDigest, sumOf(content).field(), "Content-Range", "bytes 8-9/10")
	if resp.StatusCode != 422 || len(partsIn(t, files)) != 0 {
		t.Errorf("%d %q, parts %q", resp.StatusCode, body, partsIn(t, files))
	}
}

func TestUploadLimits(t *testing.T) {
	files, server := newTestUploads(t, false, 10)
	for i, status := range []int{201, 201, 507} {
		content := fmt.Sprintf("%04d", i)
		resp, body := fetchTest(t, server, "PUT", fmt.Sprintf("/f%d", i), strings.NewReader(content), reprDigest, sumOf(content).field())
		if resp.StatusCode != status {
			t.Errorf("upload %d of 4 bytes with a limit of 10: %d %q, want %d", i, resp.StatusCode, body, status)
		}
	}

	// Only the newest of the parts that were given up stay.
	files.put = newUploads(false, 1<<20)
	for i := range maxParts + 5 {
		part := partName("f", fmt.Sprint(i))
		if err := files.put.begin(part, 1); err != nil {
			t.Fatal(err)
		}
		if err := files.root.WriteFile(part, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
		files.put.end(files.root, part, true)
	}
	parts := partsIn(t, files)
	if len(parts) != maxParts {
		t.Errorf("%d parts are kept, not %d", len(parts), maxParts)
	}
	if _, err := files.root.Stat(partName("f", "0")); err == nil {
		t.Error("the oldest part is still there")
	}
}

func TestUploadIsExclusive(t *testing.T) {
	u := newUploads(false, 100)
	if err := u.begin("p", 1); err != nil {
		t.Fatal(err)
	}
	if err := u.begin("p", 1); err == nil {
		t.Error("two uploads write to one part")
	}
}

// An upload can't be led out of the folder by a link, and doesn't write through one.
func TestUploadThroughLinks(t *testing.T) {
	files, server := newTestUploads(t, true, 1000)
	dir := files.root.Name()
	secret := filepath.Join(filepath.Dir(dir), "secret")
	const content = "changed"
	for name, to := range map[string]string{"up": "../secret", "out": filepath.Dir(dir), partName("new", sumOf(content).String()): "a.txt"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Skip("symbolic links need a privilege here: ", err)
		}
	}
	for _, path := range []string{"/up", "/out/secret", "/new"} {
		resp, body := fetchTest(t, server, "PUT", path, strings.NewReader(content), reprDigest, sumOf(content).field())
		if resp.StatusCode < 400 {
			t.Errorf("PUT %s: %d %q", path, resp.StatusCode, body)
		}
	}
	if got, err := os.ReadFile(secret); err != nil || !bytes.Equal(got, []byte("secret")) {
		t.Errorf("outside of the folder: %q, %v", got, err)
	}
	if got := readTest(t, files, "a.txt"); got != "hello" {
		t.Errorf("the file behind a link holds %q", got)
	}
}

// A taken name is refused at the last moment too, unless it may be replaced.
func TestPlace(t *testing.T) {
	files, _ := newTestUploads(t, false, 1000)
	for _, name := range []string{"p", "q"} {
		if err := files.root.WriteFile(name, []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := files.place("p", "a.txt"); err != errExists || readTest(t, files, "a.txt") != "hello" {
		t.Errorf("a taken name: %v", err)
	}
	if err := files.place("p", "new"); err != nil || readTest(t, files, "new") != "p" {
		t.Errorf("a free name: %v", err)
	}
	files.put.overwrite = true
	if err := files.place("q", "a.txt"); err != nil || readTest(t, files, "a.txt") != "q" {
		t.Errorf("a name that may be replaced: %v", err)
	}
}

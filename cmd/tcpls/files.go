package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path"
	"strings"
	"syscall"
	"time"
)

// A fileServer serves one folder, or one file in it, over HTTP.
//
// Every path is opened through root, so that neither "..", nor a symbolic link,
// nor a folder swapped for a link at the wrong moment leads out of the folder.
type fileServer struct {
	root   *os.Root
	only   string // the one file that is served; "" serves the folder
	hidden bool   // also names that begin with a dot
	sums   *digests
	put    *uploads // nil: uploads are refused
	logger *slog.Logger
	say    func(format string, args ...any)
}

// ServeHTTP answers one request and reports it in a line.
func (s *fileServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	started := time.Now()
	count := &counter{ResponseWriter: w, head: r.Method == http.MethodHead}
	body := &bodyCounter{ReadCloser: r.Body}
	r.Body = body
	defer func() {
		s.say("%s  %s %q  %d  %v in %s%s", r.RemoteAddr, r.Method, r.URL.Path, cmp.Or(count.status, http.StatusOK),
			size(count.n+body.n), brief(time.Since(started)), over(r))
	}()
	w.Header().Set("Server", "tcpls")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	name, err := s.name(r.URL.Path)
	if err != nil && r.Method == http.MethodPut {
		refused := s.refuseName(r.URL.Path)
		http.Error(count, refused.text, refused.status)
		return
	}
	if err != nil {
		http.Error(count, err.Error(), http.StatusNotFound)
		return
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		s.get(count, r, name)
	case http.MethodPut:
		s.upload(count, r, name)
	default:
		w.Header().Set("Allow", "GET, HEAD, PUT")
		http.Error(count, "only GET, HEAD and PUT are served", http.StatusMethodNotAllowed)
	}
}

var errNoFile = errors.New("there is no such file or folder")

// name maps the path of a URL to a name within the root.
func (s *fileServer) name(p string) (string, error) {
	name := strings.TrimSuffix(strings.TrimPrefix(p, "/"), "/")
	if name == "" {
		return ".", nil
	}
	// Only plain elements: what path.Clean would change isn't ours to guess.
	for element := range strings.SplitSeq(name, "/") {
		if !s.shows(element) {
			return "", errNoFile
		}
	}
	if s.only != "" && name != s.only {
		return "", errNoFile
	}
	return name, nil
}

// shows reports whether an element of a path may be named.
func (s *fileServer) shows(element string) bool {
	return checkName(element) == nil && (s.hidden || !strings.HasPrefix(element, ".")) && !isPartName(element)
}

// get answers GET and HEAD.
func (s *fileServer) get(w http.ResponseWriter, r *http.Request, name string) {
	if s.only != "" && name == "." {
		http.Redirect(w, r, (&url.URL{Path: "/" + s.only}).String(), http.StatusFound)
		return
	}
	s.offerResume(w, r, name)
	// Not all files can be opened without waiting: a named pipe can't.
	info, err := s.root.Stat(name)
	if err == nil && !info.IsDir() && !info.Mode().IsRegular() {
		err = errNoFile
	}
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	f, err := s.root.Open(name)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		s.refuse(w, r, err)
		return
	}
	isFolder := strings.HasSuffix(r.URL.Path, "/")
	switch {
	case info.IsDir() && !isFolder:
		http.Redirect(w, r, path.Base(r.URL.EscapedPath())+"/", http.StatusMovedPermanently)
	case info.IsDir():
		s.list(w, r, f, name)
	case isFolder || !info.Mode().IsRegular():
		s.refuse(w, r, errNoFile)
	default:
		s.send(w, r, f, versionOf(name, info))
	}
}

// send answers with a file, or with the range of it that is asked for.
//
// The digest costs a reading of the whole file. A GET of a large file doesn't
// wait for it: the client asks by a HEAD, meanwhile, on another stream.
func (s *fileServer) send(w http.ResponseWriter, r *http.Request, f *os.File, v fileVersion) {
	w.Header().Set("Etag", v.tag())
	w.Header().Set("Cache-Control", "no-cache")
	if wantsDigest(r.Header) {
		sum, known := s.sums.lookup(v)
		if !known && (r.Method == http.MethodHead || v.size <= promptSize) {
			var err error
			if sum, err = s.sums.of(r.Context(), f, v); err != nil {
				s.refuse(w, r, err)
				return
			}
			known = true
		}
		if known {
			w.Header().Set(reprDigest, sum.field())
		}
	}
	http.ServeContent(w, r, path.Base(v.path), v.time, f)
}

// tag returns the entity tag of a version.
func (v fileVersion) tag() string { return fmt.Sprintf(`"%x-%x"`, v.time.UnixNano(), v.size) }

// refuse answers that a file can't be had. The person at the server learns why;
// the peer learns no more than it needs.
func (s *fileServer) refuse(w http.ResponseWriter, r *http.Request, err error) {
	status, text := http.StatusNotFound, errNoFile.Error()
	switch {
	case errors.Is(err, fs.ErrPermission):
		status, text = http.StatusForbidden, "the server may not read that"
	case errors.Is(err, errChanged):
		status, text = http.StatusServiceUnavailable, errChanged.Error()
	case r.Context().Err() != nil:
		status, text = http.StatusServiceUnavailable, "interrupted"
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		status, text = http.StatusServiceUnavailable, "the server has too many files open"
	}
	s.logger.Info("refused", "path", r.URL.Path, "err", err)
	w.Header().Del("Etag")
	http.Error(w, text, status)
}

// over says what a request came over.
func over(r *http.Request) string {
	if isTCPLS(r.Context()) {
		return "  TCPLS"
	}
	return "  plain TLS"
}

// A bodyCounter counts the bytes of an upload that have come, whatever was
// announced.
type bodyCounter struct {
	io.ReadCloser
	n int64
}

func (b *bodyCounter) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n += int64(n)
	return n, err
}

// A counter notes what a handler answered.
type counter struct {
	http.ResponseWriter
	head   bool // net/http drops the body
	status int
	n      int64
}

func (c *counter) WriteHeader(status int) {
	c.status = status
	c.ResponseWriter.WriteHeader(status)
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	if !c.head {
		c.n += int64(n)
	}
	return n, err
}

// ReadFrom keeps the way from a file to the stream short.
func (c *counter) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.Copy(c.ResponseWriter, r)
	c.n += n
	return n, err
}

// Unwrap is for http.ResponseController.
func (c *counter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

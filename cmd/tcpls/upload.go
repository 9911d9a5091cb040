package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// An upload is a PUT of a whole file with its Repr-Digest. It grows in a part
// and gets its name when the digest is right, so that no one ever sees half of
// it. A client that was cut off asks, by a HEAD with the same digest, for the
// Upload-Offset, and sends the rest with a Content-Range (RFC 9110, 14.5).
const uploadOffset = "Upload-Offset"

const (
	maxParts       = 64          // unfinished uploads that are kept
	uploadPatience = time.Minute // for the next bytes of an upload
)

// uploads is what a server allows and remembers of them.
type uploads struct {
	overwrite bool

	mu    sync.Mutex
	left  int64           // bytes that may still come
	busy  map[string]bool // parts being written
	parts []string        // unfinished ones of this run, oldest first
}

func newUploads(overwrite bool, limit int64) *uploads {
	return &uploads{overwrite: overwrite, left: limit, busy: make(map[string]bool)}
}

// An uploadError is a refusal.
type uploadError struct {
	status int
	text   string
}

func (e *uploadError) Error() string { return e.text }

// offerResume tells how much of an upload has arrived, if the request asks.
func (s *fileServer) offerResume(w http.ResponseWriter, r *http.Request, name string) {
	sum, ok := digestIn(r.Header)
	if s.put == nil || !ok || r.Method != http.MethodHead {
		return
	}
	var offset int64
	if info, err := s.root.Lstat(partName(name, sum.String())); err == nil && info.Mode().IsRegular() {
		offset = info.Size()
	}
	w.Header().Set(uploadOffset, strconv.FormatInt(offset, 10))
}

// upload answers PUT.
func (s *fileServer) upload(w http.ResponseWriter, r *http.Request, name string) {
	created, err := s.receive(http.NewResponseController(w), r, name)
	var refused *uploadError
	if err == nil {
		w.Header().Set(reprDigest, r.Header.Get(reprDigest))
	}
	switch {
	case err == nil && created:
		w.WriteHeader(http.StatusCreated)
	case err == nil:
		w.WriteHeader(http.StatusNoContent)
	case errors.As(err, &refused):
		http.Error(w, refused.text, refused.status)
	case errors.Is(err, fs.ErrNotExist):
		http.Error(w, "there is no such folder", http.StatusConflict)
	default:
		s.logger.Warn("upload failed", "path", r.URL.Path, "err", err)
		http.Error(w, "the server couldn't store it", http.StatusInternalServerError)
	}
}

// receive stores the body of r under name.
func (s *fileServer) receive(control *http.ResponseController, r *http.Request, name string) (created bool, err error) {
	if s.put == nil {
		return false, &uploadError{http.StatusForbidden, noUploads}
	}
	sum, ok := digestIn(r.Header)
	switch {
	case name == "." || strings.HasSuffix(r.URL.Path, "/"):
		return false, &uploadError{http.StatusBadRequest, "the URL of an upload names a file, not a folder"}
	case !ok:
		return false, &uploadError{http.StatusBadRequest, "an upload needs a Repr-Digest with sha-256 (RFC 9530)"}
	case r.ContentLength < 0:
		return false, &uploadError{http.StatusLengthRequired, "an upload needs a Content-Length"}
	}
	offset, err := uploadStart(r)
	if err != nil {
		return false, err
	}
	exists, err := s.mayStore(name)
	if err != nil {
		return false, err
	}
	part := partName(name, sum.String())
	if err := s.put.begin(part, r.ContentLength); err != nil {
		return false, err
	}
	keep, err := s.fill(control, r, part, offset, sum)
	if err == nil {
		err = s.install(part, name, sum)
	}
	s.put.end(s.root, part, keep)
	return !exists, err
}

// refuseName tells an uploader why a path isn't one that can be stored at.
func (s *fileServer) refuseName(p string) *uploadError {
	if s.put == nil {
		return &uploadError{http.StatusForbidden, noUploads}
	}
	for element := range strings.SplitSeq(strings.Trim(p, "/"), "/") {
		switch err := checkName(element); {
		case err != nil:
			return &uploadError{http.StatusBadRequest, err.Error()}
		case !s.hidden && strings.HasPrefix(element, "."):
			return &uploadError{http.StatusForbidden, nameHidden}
		}
	}
	return &uploadError{http.StatusForbidden, "that name is kept for uploads that aren't complete"}
}

// uploadStart returns where the body of a PUT begins in the file.
func uploadStart(r *http.Request) (int64, error) {
	text := r.Header.Get("Content-Range")
	if text == "" {
		return 0, nil
	}
	var first, last, total int64
	_, err := fmt.Sscanf(text, "bytes %d-%d/%d", &first, &last, &total)
	if err != nil || first < 0 || last != total-1 || total-first != r.ContentLength || r.ContentLength == 0 {
		return 0, &uploadError{http.StatusBadRequest, "the Content-Range must reach from an offset to the end of the file"}
	}
	return first, nil
}

// mayStore checks what is at name now.
func (s *fileServer) mayStore(name string) (exists bool, err error) {
	info, err := s.root.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, err
	case !info.Mode().IsRegular():
		return true, &uploadError{http.StatusConflict, "a folder has that name"}
	case !s.put.overwrite:
		return true, errExists
	}
	return true, nil
}

// Words by which the client knows what to advise.
const (
	noUploads  = "this server takes no uploads"
	nameHidden = "this server takes no names that begin with a dot"
	nameTaken  = "a file has that name already, and this server doesn't replace files"
)

var errExists = &uploadError{http.StatusConflict, nameTaken}

// begin reserves a part and the bytes that are to come.
func (u *uploads) begin(part string, n int64) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case u.busy[part]:
		return &uploadError{http.StatusServiceUnavailable, "the same upload is still going on"}
	case n > u.left:
		return &uploadError{http.StatusInsufficientStorage, fmt.Sprintf("this server takes only %v more", size(u.left))}
	}
	u.busy[part] = true
	u.left -= n
	return nil
}

// end releases a part. Of those that may be continued, the oldest go.
func (u *uploads) end(root *os.Root, part string, keep bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.busy, part)
	u.parts = slices.DeleteFunc(u.parts, func(p string) bool { return p == part })
	if !keep {
		root.Remove(part) // gone already when it got its name
		return
	}
	u.parts = append(u.parts, part)
	for len(u.parts) > maxParts {
		if !u.busy[u.parts[0]] {
			root.Remove(u.parts[0])
		}
		u.parts = u.parts[1:]
	}
}

// fill writes the body behind the first offset bytes of the part, and checks
// the whole. After an error, keep tells whether the part is worth going on with.
func (s *fileServer) fill(control *http.ResponseController, r *http.Request, part string, offset int64, want digest) (keep bool, err error) {
	if info, err := s.root.Lstat(part); err == nil && !info.Mode().IsRegular() {
		return false, &uploadError{http.StatusConflict, "the server has something else where the upload would grow"}
	}
	f, err := s.root.OpenFile(part, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return false, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return true, err
	}
	if offset == 0 {
		err = f.Truncate(0)
	} else if info.Size() != offset {
		return true, &uploadError{http.StatusConflict, fmt.Sprintf("the upload would go on at %d, not %d", info.Size(), offset)}
	}
	if err != nil {
		return true, err
	}
	hash := sha256.New()
	if _, err := io.CopyBuffer(hash, io.NewSectionReader(f, 0, offset), make([]byte, copyBuffer)); err != nil {
		return true, err
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return true, err
	}
	// MultiWriter also hides the file's ReadFrom, which would use small steps.
	body := &patientReader{r.Context(), r.Body, control}
	n, err := io.CopyBuffer(io.MultiWriter(f, hash), body, make([]byte, copyBuffer))
	if err != nil || n != r.ContentLength {
		s.logger.Info("upload cut off", "path", r.URL.Path, "received", n, "of", r.ContentLength, "err", err)
		return true, &uploadError{http.StatusBadRequest, "the upload was cut off"}
	}
	if got := digest(hash.Sum(nil)); got != want {
		return false, &uploadError{http.StatusUnprocessableEntity, fmt.Sprintf("the content has the SHA-256 %v, not the announced %v", got, want)}
	}
	return false, errors.Join(f.Sync(), f.Close())
}

// install gives a complete part its name.
func (s *fileServer) install(part, name string, sum digest) error {
	err := s.place(part, name)
	if err != nil {
		return err
	}
	if info, err := s.root.Stat(name); err == nil {
		s.sums.remember(versionOf(name, info), sum)
	}
	return nil
}

// place renames, and where nothing may be replaced, it links: that fails when
// someone else was faster. A file system without links leaves a moment between
// the look and the rename.
func (s *fileServer) place(part, name string) error {
	if !s.put.overwrite {
		err := s.root.Link(part, name)
		if err == nil {
			return s.root.Remove(part)
		}
		if errors.Is(err, fs.ErrExist) {
			return errExists
		}
		if _, err := s.root.Lstat(name); err == nil {
			return errExists
		}
	}
	return s.root.Rename(part, name)
}

// A patientReader reads a body as long as bytes keep coming.
type patientReader struct {
	ctx     context.Context
	body    io.Reader
	control *http.ResponseController
}

func (p *patientReader) Read(b []byte) (int, error) {
	if err := p.ctx.Err(); err != nil {
		return 0, err
	}
	if err := p.control.SetReadDeadline(time.Now().Add(uploadPatience)); err != nil {
		return 0, err
	}
	return p.body.Read(b)
}

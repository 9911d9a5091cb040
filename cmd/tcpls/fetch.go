package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// A fetch is the download of one file.
//
// Bytes are collected in a part beside the file's place. It is marked with the
// server's validator, so that a part goes on only as the version that it began
// as, and gets the file's name after the digest of the whole was compared.
type fetch struct {
	from     target
	remote   *remote
	saveAs   string // "-": standard output
	force    bool
	progress *progress
}

func (d *fetch) label() string {
	if d.saveAs == "-" {
		return d.from.path
	}
	return d.saveAs
}

func (d *fetch) run(ctx context.Context) (*result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // also the request for the digest
	if d.saveAs == "-" {
		return d.stream(ctx)
	}
	if info, err := os.Stat(d.saveAs); err == nil && !d.force {
		if !info.Mode().IsRegular() {
			return nil, &localError{fmt.Errorf("%s is there and isn't a file", d.saveAs)}
		}
		return d.compare(ctx, info.Size())
	}
	offset, err := d.resumeAt(ctx)
	if err != nil {
		return nil, err
	}
	a, err := d.ask(ctx, offset)
	if err != nil {
		return nil, err
	}
	defer a.Body.Close()
	whole, err := a.size(offset.n)
	if err != nil {
		return nil, err
	}
	if a.StatusCode == http.StatusOK {
		offset.n = 0
	}
	name := d.saveAs + ".part"
	if mark := a.mark(whole); mark != "" {
		name = partName(d.saveAs, mark)
	}
	part, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, &localError{err}
	}
	defer part.Close()
	r, err := d.fill(ctx, part, a, offset.n, whole)
	var wrong *digestError
	if errors.As(err, &wrong) {
		err = errors.Join(err, part.Close(), os.Remove(name))
	}
	if err != nil {
		return nil, err
	}
	if err := errors.Join(part.Sync(), part.Close()); err != nil {
		return nil, &localError{err}
	}
	if err := os.Rename(name, d.saveAs); err != nil {
		return nil, &localError{err}
	}
	return r, nil
}

// A resumption is where a download may go on.
type resumption struct {
	n         int64
	validator string // for If-Range
}

// resumeAt looks for a part, and asks the server whether it is of the version
// that the server has now.
func (d *fetch) resumeAt(ctx context.Context) (resumption, error) {
	if !hasParts(d.saveAs) {
		return resumption{}, nil
	}
	a, err := d.remote.do(newRequest(ctx, http.MethodHead, d.from, nil), d.remote.timeout)
	if err != nil {
		return resumption{}, err
	}
	a.Body.Close()
	mark := a.mark(a.ContentLength)
	if a.StatusCode != http.StatusOK || mark == "" {
		return resumption{}, nil
	}
	info, err := os.Stat(partName(d.saveAs, mark))
	if err != nil || !info.Mode().IsRegular() || info.Size() == 0 {
		return resumption{}, nil
	}
	// A whole part's last byte is asked for again: there is always an answer to
	// take the file's facts from.
	return resumption{min(info.Size(), a.ContentLength-1), a.validator()}, nil
}

// hasParts reports whether there is any part of the file.
func hasParts(file string) bool {
	entries, err := os.ReadDir(filepath.Dir(file))
	if err != nil {
		return false
	}
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), filepath.Base(file))
		if ok && rest != "" && partPattern.FindString(rest) == rest {
			return true
		}
	}
	return false
}

// ask sends the GET.
func (d *fetch) ask(ctx context.Context, offset resumption) (*answer, error) {
	req := newRequest(ctx, http.MethodGet, d.from, nil)
	req.Header.Set(wantReprDigest, "sha-256=10")
	if offset.n > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset.n))
		req.Header.Set("If-Range", offset.validator)
	}
	a, err := d.remote.do(req, d.remote.timeout)
	if err != nil {
		return nil, err
	}
	if a.StatusCode != http.StatusOK && (a.StatusCode != http.StatusPartialContent || offset.n == 0) {
		defer a.Body.Close()
		return nil, a.refusal()
	}
	if !d.from.https && strings.HasSuffix(a.Request.URL.Path, "/") && !d.from.isFolder() {
		a.Body.Close()
		return nil, &usageError{"that is a folder, not a file", "a URL that ends in a slash prints its listing"}
	}
	return a, nil
}

// validator returns what identifies the version for If-Range: a strong entity
// tag, or the time of modification (RFC 9110, 13.1.5), or "".
func (a *answer) validator() string {
	if tag := a.Header.Get("Etag"); strings.HasPrefix(tag, `"`) {
		return tag
	}
	return a.Header.Get("Last-Modified")
}

// mark returns what a part is named after, or "" if it can't be resumed.
func (a *answer) mark(whole int64) string {
	if v := a.validator(); v != "" && whole > 0 {
		return fmt.Sprintf("%s %d", v, whole)
	}
	return ""
}

// size returns the size of the whole file, or -1, and checks that a partial
// answer begins at the offset and reaches to the end.
func (a *answer) size(offset int64) (int64, error) {
	if a.StatusCode == http.StatusOK {
		return a.ContentLength, nil
	}
	var first, last, whole int64
	text := a.Header.Get("Content-Range")
	if _, err := fmt.Sscanf(text, "bytes %d-%d/%d", &first, &last, &whole); err != nil || first != offset || last != whole-1 {
		return 0, fmt.Errorf("the server answered with the range %q, not the one from %d to the end", text, offset)
	}
	return whole, nil
}

// fill appends the body of an answer to the part and verifies the whole.
func (d *fetch) fill(ctx context.Context, part *os.File, a *answer, offset, whole int64) (*result, error) {
	sum := d.askDigest(ctx, a, whole)
	started := time.Now()
	d.progress.total.Add(max(0, whole))
	d.progress.done.Add(offset)
	d.progress.skipped.Add(offset)
	if err := part.Truncate(offset); err != nil {
		return nil, &localError{err}
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(part, 0, offset)); err != nil {
		return nil, &localError{err}
	}
	if _, err := part.Seek(offset, io.SeekStart); err != nil {
		return nil, &localError{err}
	}
	n, err := move(part, a.Body, h, d.progress)
	if err != nil {
		return nil, err
	}
	r := &result{size: offset + n, offset: offset, duration: time.Since(started), how: a.how()}
	r.verified, err = verify(digest(h.Sum(nil)), sum(), r.size, whole)
	return r, err
}

// stream copies the file to standard output. What was wrong shows at the end.
func (d *fetch) stream(ctx context.Context) (*result, error) {
	a, err := d.ask(ctx, resumption{})
	if err != nil {
		return nil, err
	}
	defer a.Body.Close()
	sum := d.askDigest(ctx, a, a.ContentLength)
	started := time.Now()
	d.progress.total.Add(max(0, a.ContentLength))
	h := sha256.New()
	n, err := move(d.progress.u.out, a.Body, h, d.progress)
	if err != nil {
		return nil, err
	}
	r := &result{size: n, duration: time.Since(started), how: a.how()}
	r.verified, err = verify(digest(h.Sum(nil)), sum(), n, a.ContentLength)
	return r, err
}

// compare checks a file that is there already.
func (d *fetch) compare(ctx context.Context, n int64) (*result, error) {
	exists := &localError{fmt.Errorf("%s is there already; -f replaces it", d.saveAs)}
	want := d.head(ctx, "", n)
	switch {
	case want.err != nil:
		return nil, want.err
	case !want.offered || want.size != n:
		return nil, exists
	}
	f, err := os.Open(d.saveAs)
	if err != nil {
		return nil, &localError{err}
	}
	defer f.Close()
	got, err := hashFile(ctx, f, nil)
	if err != nil {
		return nil, &localError{err}
	}
	if got != want.sum {
		return nil, exists
	}
	return &result{size: n, there: true, verified: "sha256 verified"}, nil
}

// An offer is what the server says of a file's digest.
type offer struct {
	sum     digest
	offered bool
	size    int64
	err     error
}

// askDigest learns the digest that the server offers: from the answer, or, if
// the server is one that computes it, by a request of its own, meanwhile. The
// returned function waits for the result and may be called after the body's end.
func (d *fetch) askDigest(ctx context.Context, a *answer, whole int64) func() offer {
	if sum, ok := digestIn(a.Header); ok {
		return func() offer { return offer{sum: sum, offered: true} }
	}
	tag := a.Header.Get("Etag")
	if is, _ := a.isTCPLS(); is || a.Header.Get("Server") == "tcpls" {
		c := make(chan offer, 1)
		go func() { c <- d.head(ctx, tag, whole) }()
		return func() offer { return <-c }
	}
	return func() offer {
		sum, ok := digestIn(a.Trailer)
		return offer{sum: sum, offered: ok}
	}
}

// hashSpeed is the least that a server is expected to hash, in bytes per second.
const hashSpeed = 20 << 20

// head asks for the digest of the version with the entity tag.
func (d *fetch) head(ctx context.Context, tag string, whole int64) offer {
	req := newRequest(ctx, http.MethodHead, d.from, nil)
	req.Header.Set(wantReprDigest, "sha-256=10")
	if tag != "" {
		req.Header.Set("If-Match", tag)
	}
	a, err := d.remote.do(req, d.remote.timeout+time.Duration(max(0, whole)/hashSpeed)*time.Second)
	if err != nil {
		return offer{err: err}
	}
	defer a.Body.Close()
	switch a.StatusCode {
	case http.StatusOK:
		sum, ok := digestIn(a.Header)
		return offer{sum: sum, offered: ok, size: a.ContentLength}
	case http.StatusPreconditionFailed:
		return offer{err: errChanged}
	}
	return offer{err: a.refusal()}
}

// verify compares what arrived with what was announced, and says how.
func verify(got digest, want offer, n, whole int64) (string, error) {
	switch {
	case want.err != nil:
		return "", fmt.Errorf("the server's digest: %w", want.err)
	case want.offered && got != want.sum:
		return "", &digestError{"the file", want.sum.String(), got.String()}
	case whole >= 0 && n != whole:
		return "", errCutOff
	case want.offered:
		return "sha256 verified", nil
	case whole >= 0:
		return "only the size checked (no digest offered)", nil
	}
	return "unchecked (neither digest nor size offered)", nil
}

// move copies r to w and into h. Errors of w are local ones.
func move(w io.Writer, r io.Reader, h hash.Hash, p *progress) (int64, error) {
	buf := make([]byte, copyBuffer)
	var moved int64
	for {
		n, err := r.Read(buf)
		if n > 0 {
			h.Write(buf[:n])
			if _, err := w.Write(buf[:n]); err != nil {
				return moved, &localError{err}
			}
			moved += int64(n)
			p.done.Add(int64(n))
		}
		switch {
		case err == io.EOF:
			return moved, nil
		case errors.Is(err, io.ErrUnexpectedEOF):
			return moved, errCutOff
		case err != nil:
			return moved, err
		}
	}
}

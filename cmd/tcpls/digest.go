package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"
)

// Digest fields of RFC 9530. They speak of the whole file, whatever range a
// message carries.
const (
	reprDigest     = "Repr-Digest"
	wantReprDigest = "Want-Repr-Digest"
)

// A digest is the SHA-256 of a file's whole content.
type digest [sha256.Size]byte

func (d digest) String() string { return hex.EncodeToString(d[:]) }

// field returns the value of Repr-Digest.
func (d digest) field() string {
	return "sha-256=:" + base64.StdEncoding.EncodeToString(d[:]) + ":"
}

// digestIn finds the SHA-256 among the digests of a message. A malformed one
// counts as none: it can't be compared with anything.
func digestIn(h http.Header) (d digest, ok bool) {
	for _, line := range h.Values(reprDigest) {
		for member := range strings.SplitSeq(line, ",") {
			value, isSHA256 := strings.CutPrefix(strings.TrimSpace(member), "sha-256=:")
			if !isSHA256 {
				continue
			}
			value, _, closed := strings.Cut(value, ":")
			raw, err := base64.StdEncoding.DecodeString(value)
			if closed && err == nil && len(raw) == len(d) {
				return digest(raw), true
			}
		}
	}
	return d, false
}

// wantsDigest reports whether a request asks for the SHA-256: its preference
// is an integer, and 0 means no.
func wantsDigest(h http.Header) bool {
	for _, line := range h.Values(wantReprDigest) {
		for member := range strings.SplitSeq(line, ",") {
			value, ok := strings.CutPrefix(strings.TrimSpace(member), "sha-256=")
			if ok && strings.TrimLeft(value, "0") != "" {
				return true
			}
		}
	}
	return false
}

// A fileVersion is a file at one time. Its content is assumed to stay while its
// size and time of modification do.
type fileVersion struct {
	path string
	size int64
	time time.Time
}

func versionOf(path string, info fs.FileInfo) fileVersion {
	return fileVersion{path, info.Size(), info.ModTime()}
}

const (
	maxDigests = 4096     // that are remembered
	promptSize = 16 << 20 // up to which a digest doesn't keep a download waiting
)

// digests hashes files on demand, a few at a time, and remembers the results.
type digests struct {
	slots chan struct{}

	mu    sync.Mutex
	known map[fileVersion]digest
}

func newDigests() *digests {
	return &digests{
		slots: make(chan struct{}, max(1, runtime.NumCPU()/2)),
		known: make(map[fileVersion]digest),
	}
}

// lookup returns a digest that is known already.
func (d *digests) lookup(v fileVersion) (digest, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	sum, ok := d.known[v]
	return sum, ok
}

var errChanged = errors.New("the file changed while it was read")

// of returns the digest of f, which is at v. It reads by offset, so that others
// may read f at the same time.
func (d *digests) of(ctx context.Context, f *os.File, v fileVersion) (digest, error) {
	if sum, ok := d.lookup(v); ok {
		return sum, nil
	}
	select {
	case d.slots <- struct{}{}:
		defer func() { <-d.slots }()
	case <-ctx.Done():
		return digest{}, ctx.Err()
	}
	if sum, ok := d.lookup(v); ok {
		return sum, nil
	}
	sum, err := hashFile(ctx, io.NewSectionReader(f, 0, v.size), nil)
	if err != nil {
		return digest{}, err
	}
	info, err := f.Stat()
	if err != nil {
		return digest{}, err
	}
	if versionOf(v.path, info) != v {
		return digest{}, errChanged
	}
	d.remember(v, sum)
	return sum, nil
}

func (d *digests) remember(v fileVersion, sum digest) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.known) >= maxDigests {
		for old := range d.known { // any: what is asked for again is hashed again
			delete(d.known, old)
			break
		}
	}
	d.known[v] = sum
}

// hashFile hashes r to its end, unless ctx ends first, and tells seen how many
// bytes each step took.
func hashFile(ctx context.Context, r io.Reader, seen func(int)) (digest, error) {
	h := sha256.New()
	buf := make([]byte, copyBuffer)
	for {
		if err := ctx.Err(); err != nil {
			return digest{}, err
		}
		n, err := r.Read(buf)
		h.Write(buf[:n])
		if seen != nil {
			seen(n)
		}
		if err == io.EOF {
			return digest(h.Sum(nil)), nil
		}
		if err != nil {
			return digest{}, err
		}
	}
}

// copyBuffer is the size of one step of a copy or a hash.
const copyBuffer = 256 << 10

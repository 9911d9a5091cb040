package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
)

// putFlags are the flags of put.
type putFlags struct {
	clientFlags
	parallel int
}

func (t *tool) putCommand() *cobra.Command {
	f := new(putFlags)
	cmd := &cobra.Command{
		Use:   "put FILE... URL",
		Short: "Upload files",
		Long: `Upload files to a server that runs with --allow-put, several at once over streams
of one session. The server compares the SHA-256 of the whole content before a file
gets its name. An upload that was cut off goes on where it stopped. A URL that ends
in a slash is the folder for the files; else it is the one file's new name.`,
		Example: "  tcpls put a.jpg b.jpg 'tcpls://192.0.2.7:4433/in/?pin=sha256:5f0c...'",
		Args:    atLeast(2, "a file and a URL are needed"),
		RunE:    func(cmd *cobra.Command, args []string) error { return t.put(cmd.Context(), f, args) },
	}
	f.clientFlags.register(cmd)
	f.paths.register(cmd, &f.mode)
	f.registerCC(cmd)
	cmd.Flags().IntVar(&f.parallel, "parallel", 4, "how many files at once")
	return cmd
}

func (t *tool) put(ctx context.Context, f *putFlags, args []string) error {
	if f.parallel < 1 {
		return &usageError{"--parallel must be at least 1", ""}
	}
	files, to := args[:len(args)-1], args[len(args)-1]
	base, err := parseURL(to)
	if err != nil {
		return err
	}
	sends, err := planSends(files, base)
	if err != nil {
		return err
	}
	remotes := make(remotes)
	defer remotes.close(t)
	r, err := remotes.to(t, &f.clientFlags, base)
	if err != nil {
		return err
	}
	p := startProgress(t.ui, len(sends), remotes.paths)
	defer p.stop()
	return t.inParallel(ctx, f.parallel, len(sends), func(i int) error {
		s := sends[i]
		s.remote, s.progress = r, p
		result, err := s.run(ctx)
		if err != nil {
			return &pathedError{s.file, err}
		}
		p.ended.Add(1)
		t.say("%s  %v", s.file, result)
		return nil
	})
}

// planSends decides where each file goes.
func planSends(files []string, base target) ([]*send, error) {
	if len(files) > 1 && !base.isFolder() {
		return nil, &usageError{"several files need the URL of a folder, with a slash at its end", ""}
	}
	if slices.Contains(files, "-") {
		return nil, &usageError{"put doesn't read standard input: the size and the hash of a file go first",
			"save it to a file, or send it with 'tcpls nc'; a file of that name is ./-"}
	}
	taken := make(map[string]string)
	var sends []*send
	for _, file := range files {
		to := base
		if base.isFolder() {
			name := filepath.Base(file)
			if err := checkName(name); err != nil {
				return nil, &usageError{err.Error(), ""}
			}
			to.path += name
		}
		if other, ok := taken[to.path]; ok {
			return nil, &usageError{fmt.Sprintf("%s and %s would both go to %s", other, file, to.path), ""}
		}
		taken[to.path] = file
		sends = append(sends, &send{file: file, to: to})
	}
	return sends, nil
}

// A send is the upload of one file.
type send struct {
	file     string
	to       target
	remote   *remote
	progress *progress
}

func (s *send) run(ctx context.Context) (*result, error) {
	f, err := os.Open(s.file)
	if err != nil {
		return nil, &localError{err}
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, &localError{err}
	}
	if !info.Mode().IsRegular() {
		return nil, &localError{fmt.Errorf("%s isn't a file", s.file)}
	}
	whole := info.Size()
	s.progress.total.Add(whole)
	// The digest goes first: the server refuses early, and knows what it has.
	sum, err := hashFile(ctx, io.NewSectionReader(f, 0, whole), nil)
	if err != nil {
		return nil, &localError{err}
	}
	offset, there, err := s.ask(ctx, sum, whole)
	if err != nil {
		return nil, err
	}
	if there {
		s.progress.done.Add(whole)
		s.progress.skipped.Add(whole)
		return &result{size: whole, there: true, verified: "sha256 verified"}, nil
	}
	return s.put(ctx, f, sum, offset, whole)
}

// ask learns whether the server has the file already, or how much of it.
func (s *send) ask(ctx context.Context, sum digest, whole int64) (offset int64, there bool, err error) {
	req := newRequest(ctx, http.MethodHead, s.to, nil)
	req.Header.Set(wantReprDigest, "sha-256=10")
	req.Header.Set(reprDigest, sum.field())
	a, err := s.remote.do(req, s.remote.timeout+time.Duration(whole/hashSpeed)*time.Second)
	if err != nil {
		return 0, false, err
	}
	defer a.Body.Close()
	got, ok := digestIn(a.Header)
	if a.StatusCode == http.StatusOK && ok && got == sum {
		return 0, true, nil
	}
	offset, err = strconv.ParseInt(a.Header.Get(uploadOffset), 10, 64)
	if err != nil || offset < 0 || offset >= whole {
		offset = 0
	}
	return offset, false, nil
}

// put sends the bytes from offset on.
func (s *send) put(ctx context.Context, f *os.File, sum digest, offset, whole int64) (*result, error) {
	started := time.Now()
	s.progress.done.Add(offset)
	s.progress.skipped.Add(offset)
	var body io.ReadCloser = http.NoBody
	if offset < whole {
		body = io.NopCloser(&countedReader{io.NewSectionReader(f, offset, whole-offset), s.progress})
	}
	req := newRequest(ctx, http.MethodPut, s.to, body)
	req.ContentLength = whole - offset
	req.Header.Set(reprDigest, sum.field())
	req.Header.Set("Content-Type", "application/octet-stream")
	req.Header.Set("Expect", "100-continue")
	if offset > 0 {
		req.Header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", offset, whole-1, whole))
	}
	a, err := s.remote.do(req, s.remote.timeout)
	if err != nil {
		return nil, err
	}
	defer a.Body.Close()
	switch a.StatusCode {
	case http.StatusOK, http.StatusCreated, http.StatusNoContent:
	default:
		return nil, a.refusal()
	}
	r := &result{size: whole, offset: offset, duration: time.Since(started), how: a.how()}
	r.verified = "not verified by the server"
	if got, ok := digestIn(a.Header); ok && got == sum {
		r.verified = "sha256 verified by the server"
	}
	return r, nil
}

// A countedReader tells the progress what was read.
type countedReader struct {
	io.Reader
	progress *progress
}

func (c *countedReader) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.progress.done.Add(int64(n))
	return n, err
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"
)

// getFlags say what becomes of the files.
type getFlags struct {
	clientFlags
	output   string
	force    bool
	parallel int
}

func (t *tool) getCommand() *cobra.Command {
	f := new(getFlags)
	cmd := &cobra.Command{
		Use:   "get URL...",
		Short: "Download files, verified and resumable",
		Long: `Download files, several at once over streams of one session.

A download that was cut off goes on where it stopped when the same command runs
again. The SHA-256 of the whole content is compared with the server's, and a file
gets its name only when it is whole and right. Plain HTTPS servers work too. A URL
that ends in a slash prints the folder's listing.`,
		Example: "  tcpls get 'tcpls://192.0.2.7:4433/a.iso?pin=sha256:5f0c...'\n  tcpls get -o downloads URL URL\n  tcpls get URL -o - | tar x",
		Args:    atLeast(1, "a URL is needed"),
		RunE:    func(cmd *cobra.Command, args []string) error { return t.get(cmd.Context(), f, args) },
	}
	f.clientFlags.register(cmd)
	f.paths.register(cmd, &f.mode)
	f.registerCC(cmd)
	flags := cmd.Flags()
	flags.StringVarP(&f.output, "output", "o", "", "save as this `file`, or in this folder; - is standard output")
	flags.BoolVarP(&f.force, "force", "f", false, "replace files that are there already")
	flags.IntVar(&f.parallel, "parallel", 4, "how many files at once")
	return cmd
}

func (t *tool) get(ctx context.Context, f *getFlags, args []string) error {
	fetches, err := f.plan(args)
	if err != nil {
		return err
	}
	remotes := make(remotes)
	defer remotes.close(t)
	for _, d := range fetches {
		if d.remote, err = remotes.to(t, &f.clientFlags, d.from); err != nil {
			return err
		}
	}
	d := fetches[0]
	if len(fetches) == 1 && d.saveAs == "" {
		return t.list(ctx, d.remote, d.from)
	}
	p := startProgress(t.ui, len(fetches), remotes.paths)
	defer p.stop()
	return t.inParallel(ctx, f.parallel, len(fetches), func(i int) error {
		d := fetches[i]
		d.progress = p
		result, err := d.run(ctx)
		if err != nil {
			return &pathedError{d.from.path, err}
		}
		p.ended.Add(1)
		t.say("%s  %v", d.label(), result)
		return nil
	})
}

// plan decides where each URL is saved. Only a lone URL may be a folder's, and
// isn't saved.
func (f *getFlags) plan(args []string) ([]*fetch, error) {
	if f.parallel < 1 {
		return nil, &usageError{"--parallel must be at least 1", ""}
	}
	if f.output == "-" && len(args) > 1 {
		return nil, &usageError{"-o - takes one URL", ""}
	}
	intoFolder := len(args) > 1 || os.IsPathSeparator(lastByte(f.output))
	if info, err := os.Stat(f.output); err == nil && info.IsDir() {
		intoFolder = true
	} else if intoFolder && f.output != "" {
		return nil, &usageError{fmt.Sprintf("%s isn't a folder", f.output), "make it first, or give one that is there to -o"}
	}
	taken := make(map[string]string)
	var fetches []*fetch
	for _, arg := range args {
		to, err := parseURL(arg)
		if err != nil {
			return nil, err
		}
		d := &fetch{from: to, saveAs: f.output, force: f.force}
		if f.output == "" && len(args) == 1 && to.isFolder() {
			return []*fetch{d}, nil
		}
		if intoFolder || f.output == "" {
			name, err := to.fileName()
			if err != nil {
				return nil, err
			}
			d.saveAs = filepath.Join(f.output, name)
		}
		if other, ok := taken[d.saveAs]; ok {
			return nil, &usageError{fmt.Sprintf("%s and %s would both be saved as %s", other, arg, d.saveAs), ""}
		}
		taken[d.saveAs] = arg
		fetches = append(fetches, d)
	}
	return fetches, nil
}

func lastByte(s string) byte {
	if s == "" {
		return 0
	}
	return s[len(s)-1]
}

// list prints a folder.
func (t *tool) list(ctx context.Context, r *remote, from target) error {
	req := newRequest(ctx, http.MethodGet, from, nil)
	req.Header.Set("Accept", listingType)
	a, err := r.do(req, r.timeout)
	if err != nil {
		return err
	}
	defer a.Body.Close()
	if a.StatusCode != http.StatusOK {
		return a.refusal()
	}
	if a.Header.Get("Content-Type") != listingType {
		_, err := from.fileName()
		if err == nil {
			err = &usageError{"the URL is a page, not a folder of tcpls serve", "say where to save it with -o FILE"}
		}
		return err
	}
	var l listing
	if err := json.NewDecoder(io.LimitReader(a.Body, maxListing)).Decode(&l); err != nil {
		return fmt.Errorf("the server's listing is malformed: %w", err)
	}
	if len(l.Entries) == 0 {
		t.say("the folder is empty")
	}
	if l.Truncated {
		t.say("the folder has more entries than the listing")
	}
	return l.show(t.out, from)
}

// remotes are the servers of a command, one for each address and pin, so that
// all its files share a session.
type remotes map[string]*remote

func (rs remotes) to(t *tool, f *clientFlags, to target) (*remote, error) {
	key := to.address
	if to.pin != nil {
		key += " " + to.pin.String()
	}
	if r, ok := rs[key]; ok {
		return r, nil
	}
	r, err := f.remote(t, to)
	if err != nil {
		return nil, err
	}
	rs[key] = r
	return r, nil
}

// paths tells of the paths of all sessions, if there is something to tell.
func (rs remotes) paths() (rows []pathRow) {
	now := time.Now()
	for _, r := range rs {
		rows = append(rows, r.paths.rows(now)...)
	}
	return rows
}

func (rs remotes) close(t *tool) {
	for _, r := range rs {
		if err := r.Close(); err != nil {
			t.logger.Info("closing", "err", err)
		}
	}
}

// inParallel runs jobs 0 to n-1, at most limit at once. It reports all errors
// but the first, and returns that one.
func (t *tool) inParallel(ctx context.Context, limit, n int, job func(int) error) error {
	slots := make(chan struct{}, limit)
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if errs[i] = ctx.Err(); errs[i] == nil {
				errs[i] = job(i)
			}
		})
	}
	wg.Wait()
	var first error
	for _, err := range errs {
		switch {
		case err == nil:
		case first == nil:
			first = err
		case ctx.Err() == nil:
			t.fail(explain(ctx, err))
		}
	}
	return first
}

func newRequest(ctx context.Context, method string, to target, body io.ReadCloser) *http.Request {
	u := to.request()
	req := &http.Request{
		Method: method, URL: u, Host: u.Host, Header: make(http.Header), Body: body,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, // else net/http doesn't wait for 100 Continue
	}
	req.Header.Set("User-Agent", "tcpls/"+version())
	return req.WithContext(ctx)
}

// A result is a transfer that went well.
type result struct {
	size     int64 // of the whole file
	offset   int64 // where the transfer went on
	duration time.Duration
	verified string // how it was checked
	how      string // TCPLS or not
	there    bool   // nothing had to be moved
}

func (r *result) String() string {
	text := fmt.Sprintf("%v  ", size(r.size))
	if r.there {
		return text + "already there, " + r.verified
	}
	text += fmt.Sprintf("in %s (%s)", brief(r.duration), rate(r.size-r.offset, r.duration))
	if r.offset > 0 {
		text += fmt.Sprintf(", went on at %v", size(r.offset))
	}
	return text + ", " + r.verified + ", over " + r.how
}

var errCutOff = errors.New("the connection ended before the file did")

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-tcpls/tcpls"
	"github.com/go-tcpls/tcpls/internal/linkemu"
)

func TestPathSpecs(t *testing.T) {
	for _, text := range []string{"src:192.0.2.7", "dst:198.51.100.1:4433", "dst:[2001:db8::1]:443", "src:2001:db8::7,dst:[2001:db8::1]:443", "if:wlan0", "if:wlan0,dst:198.51.100.1:4433,backup", "if:wlan0,weight=1", "src:192.0.2.7,backup,weight=1000"} {
		var p pathSpecs
		if err := p.Set(text); err != nil || p.String() != text {
			t.Errorf("%s was read as %v, %v", text, p, err)
		}
	}
	for _, text := range []string{"", "192.0.2.7", "src:", "src:example.com", "src:192.0.2.7:80", "dst:198.51.100.1", "dst:example.com:443", "if:", "backup:yes", "src:192.0.2.7,", "weight=", "weight=0", "weight=1001", "weight=-1", "weight:3", "if:wlan0,weight=two"} {
		var p pathSpecs
		if err := p.Set(text); err == nil {
			t.Errorf("%q was taken as %v", text, p)
		}
	}
}

// A lockedBuffer takes what a command writes while a test reads it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// eventually waits until a condition holds.
func eventually(t *testing.T, why string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not in 20 s", why)
		}
	}
}

// serveBehind serves a folder behind links, and returns its URL over the first.
func serveBehind(t *testing.T, dir string, n int) (*url.URL, []*linkemu.Link) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	r, w := io.Pipe()
	wg.Go(func() {
		run(ctx, &ui{out: w, err: io.Discard}, []string{"serve", "--listen", "127.0.0.1:0", "--allow-put", dir})
		w.Close()
	})
	var line string
	if _, err := fmt.Fscanln(r, &line); err != nil {
		t.Fatal(err)
	}
	wg.Go(func() { io.Copy(io.Discard, r) })
	u, err := url.Parse(line)
	if err != nil {
		t.Fatal(err)
	}
	var links []*linkemu.Link
	for range n {
		shape := linkemu.Shape{Rate: 4 << 20, Delay: 2 * time.Millisecond}
		l, err := linkemu.New(u.Host, shape, shape)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		links = append(links, l)
	}
	u.Host = links[0].Addr().String()
	return u, links
}

// A download and an upload go on over another path when the first one is cut in
// the middle, and say so.
func TestFurtherPath(t *testing.T) {
	for _, verb := range []string{"get", "put"} {
		t.Run(verb, func(t *testing.T) { testFurtherPath(t, verb) })
	}
}

func testFurtherPath(t *testing.T, verb string) {
	served, local := t.TempDir(), t.TempDir()
	u, links := serveBehind(t, served, 2)
	content, err := io.ReadAll(madeData(8 << 20))
	if err != nil {
		t.Fatal(err)
	}
	here, there := filepath.Join(local, "file"), filepath.Join(served, "file")
	u.Path = "/file"
	args := []string{"get", "--path", "dst:" + links[1].Addr().String(), "-o", here, u.String()}
	from, to := there, here
	if verb == "put" {
		args = []string{"put", "--path", "dst:" + links[1].Addr().String(), here, u.String()}
		from, to = here, there
	}
	if err := os.WriteFile(from, content, 0o600); err != nil {
		t.Fatal(err)
	}
	var stderr lockedBuffer
	status := make(chan int, 1)
	go func() { status <- run(t.Context(), &ui{out: io.Discard, err: &stderr}, args) }()
	eventually(t, "the further path", func() bool { return strings.Contains(stderr.String(), "path 1: joined, from ") })
	eventually(t, "the middle", func() bool {
		down, up := links[0].Delivered()
		return down+up > 1<<20
	})
	links[0].Set(linkemu.Blackhole)
	if s := <-status; s != exitOK {
		t.Fatalf("status %d\n%s", s, stderr.String())
	}
	got, err := os.ReadFile(to)
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes of %d arrived, or other ones: %v", len(got), len(content), err)
	}
	for _, want := range []string{`(?m)^path 1: in use from now on$`, `(?m)file  8\.39 MB  in .*over TCPLS$`} {
		if !regexp.MustCompile(want).MatchString(stderr.String()) {
			t.Errorf("%s isn't in\n%s", want, stderr.String())
		}
	}
}

// The display of a terminal shows each path of a download with its rate, and
// that one is suspect, while the download goes on over the others.
func TestPathRows(t *testing.T) {
	served, local := t.TempDir(), t.TempDir()
	u, links := serveBehind(t, served, 2)
	content := make([]byte, 24<<20)
	if err := os.WriteFile(filepath.Join(served, "file"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	u.Path = "/file"
	var stderr lockedBuffer
	status := make(chan int, 1)
	args := []string{"get", "--mode", "aggregate", "--path", "dst:" + links[1].Addr().String(), "-o", filepath.Join(local, "file"), u.String()}
	go func() {
		status <- run(t.Context(), &ui{out: io.Discard, err: &stderr, width: func() int { return 120 }}, args)
	}()
	shown := func(row string) func() bool {
		return func() bool { return regexp.MustCompile(row).MatchString(stderr.String()) }
	}
	eventually(t, "both rates", func() bool {
		return shown(`path 0  active  +[0-9.]+ MB/s .*127\.0\.0\.1:\d+ to 127`)() && shown(`path 1  active  +[0-9.]+ MB/s `)()
	})
	links[1].Set(linkemu.Blackhole)
	eventually(t, "a suspect path", shown(`path 1  suspect`))
	if s := <-status; s != exitOK {
		t.Fatalf("status %d\n%s", s, stderr.String())
	}
	if !shown(`(?m)path 1: suspect: `)() {
		t.Errorf("no line tells of the suspect path in\n%s", stderr.String())
	}
}

// A rate is measured over a second, however often the display asks.
func TestMeter(t *testing.T) {
	var m meter
	at := func(ms int) time.Time { return time.UnixMilli(int64(1000 + ms)) }
	for _, step := range []struct {
		ms    int
		bytes uint64
		want  float64
	}{{0, 1000, -1}, {200, 2000, -1}, {999, 5000, -1}, {1000, 11000, 10000}, {1500, 99000, 10000}, {3000, 51000, 20000}, {4000, 51000, 0}} {
		if got := m.measure(step.bytes, at(step.ms)); got != step.want {
			t.Errorf("after %d ms: %v bytes a second, want %v", step.ms, got, step.want)
		}
	}
}

// A display that asks seldom has the rates the first time that it asks: they are
// measured from when the paths are met.
func TestFirstRates(t *testing.T) {
	u, _ := serveBehind(t, t.TempDir(), 1)
	s, err := tcpls.Dial(t.Context(), "tcp", u.Host, &tcpls.Config{TLS: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	k := &pathKeeper{tool: &tool{ui: &ui{out: io.Discard, err: io.Discard}}}
	k.meet(s)
	if _, err := s.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AddPath(t.Context(), tcpls.PathSpec{}); err != nil {
		t.Fatal(err)
	}
	rows := k.rows(time.Now().Add(10 * time.Second))
	if len(rows) != 2 || rows[0].rate <= 0 || strings.Contains(rows[0].String(), " - ") {
		t.Errorf("the first rows are %v", rows)
	}
	if unknown := (pathRow{state: "active", rate: -1}).String(); strings.Contains(unknown, "/s") || strings.Contains(unknown, "-") {
		t.Errorf("a rate that isn't known is %q", unknown)
	}
}

// A path that can't be opened is told, and the rest goes on without it.
func TestFurtherPathFails(t *testing.T) {
	served, local := t.TempDir(), t.TempDir()
	u, links := serveBehind(t, served, 2)
	links[1].Set(linkemu.Reset)
	if err := os.WriteFile(filepath.Join(served, "file"), make([]byte, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	u.Path = "/file"
	var stderr lockedBuffer
	args := []string{"get", "--path", "dst:" + links[1].Addr().String(), "-o", filepath.Join(local, "file"), u.String()}
	if s := run(t.Context(), &ui{out: io.Discard, err: &stderr}, args); s != exitOK {
		t.Fatalf("status %d\n%s", s, stderr.String())
	}
	if want := fmt.Sprintf("warning: no path dst:%v: ", links[1].Addr()); !strings.Contains(stderr.String(), want) {
		t.Errorf("%q isn't in\n%s", want, stderr.String())
	}
}

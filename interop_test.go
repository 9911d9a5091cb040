package tcpls_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-tcpls/tcpls"
	"github.com/go-tcpls/tcpls/internal/tlstest/outside"
)

// A realm is what both ends of a test trust, and their configurations.
type realm struct {
	authority      *outside.Authority
	leaf           *outside.Leaf
	client, server *tcpls.Config
}

func newRealm(t *testing.T) *realm {
	t.Helper()
	a := outside.NewAuthority(t)
	l := a.Issue(t, outside.P256, nil)
	return &realm{
		authority: a, leaf: l,
		client: &tcpls.Config{TLS: &tls.Config{RootCAs: a.Pool, ServerName: "localhost"}, HandshakeTimeout: 20 * time.Second},
		server: &tcpls.Config{TLS: &tls.Config{Certificates: []tls.Certificate{l.TLS}}, HandshakeTimeout: 20 * time.Second},
	}
}

// listen starts a Listener that ends with the test.
func (r *realm) listen(t *testing.T) *tcpls.Listener {
	t.Helper()
	l, err := tcpls.Listen("tcp", "127.0.0.1:0", r.server)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// raw listens for TCP connections until the test ends, and serves each.
func raw(t *testing.T, serve func(net.Conn)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer conn.Close()
				serve(conn)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		all.Wait()
	})
	return l.Addr().String()
}

// echoTLS serves an echo by crypto/tls.
func echoTLS(cfg *tls.Config) func(net.Conn) {
	return func(conn net.Conn) {
		c := tls.Server(conn, cfg)
		_, _ = io.Copy(c, c) // the client tells what is missing
		_ = c.Close()
	}
}

// mustTalk has a line answered by an echo, or reversed, and ends the stream.
func mustTalk(t *testing.T, c interface {
	net.Conn
	CloseWrite() error
}, answer string) {
	t.Helper()
	if _, err := io.WriteString(c, "stressed\n"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(answer)+1)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != answer+"\n" {
		t.Fatalf("read %q, %v; want %q", got, err, answer)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
		t.Errorf("at the end: %d bytes more, %v; want io.EOF", len(rest), err)
	}
}

// blob is what the HTTP server hands out at /blob, and takes there.
var blob = bytes.Repeat([]byte("0123456789abcdef"), 1<<16)

// serveHTTP runs net/http's server on all streams of a listener.
func serveHTTP(t *testing.T, l *tcpls.Listener) {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /hello", func(w http.ResponseWriter, req *http.Request) {
		fmt.Fprintf(w, "%s over %s for %s\n", req.Proto, tls.VersionName(req.TLS.Version), req.TLS.ServerName)
	})
	mux.HandleFunc("GET /blob", func(w http.ResponseWriter, req *http.Request) {
		http.ServeContent(w, req, "blob", time.Time{}, bytes.NewReader(blob))
	})
	mux.HandleFunc("PUT /blob", func(w http.ResponseWriter, req *http.Request) {
		h := sha256.New()
		if _, err := io.Copy(h, req.Body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintf(w, "%x\n", h.Sum(nil))
	})
	server := &http.Server{Handler: mux}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l.Streams()) }()
	t.Cleanup(func() {
		if err := server.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Errorf("http.Server.Close: %v", err)
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("http.Server.Serve: %v", err)
		}
	})
}

// TestCurl fetches with the certificate verified: curl doesn't know that the
// server speaks more than TLS.
func TestCurl(t *testing.T) {
	outside.Need(t, "curl")
	r := newRealm(t)
	l := r.listen(t)
	serveHTTP(t, l)
	_, port, _ := net.SplitHostPort(l.Addr().String())
	curl := func(t *testing.T, args ...string) (string, error) {
		t.Helper()
		return outside.Start(t, "curl", append([]string{
			"--silent", "--show-error", "--fail", "--http1.1", "--noproxy", "*",
			"--cacert", r.authority.File, "--resolve", "localhost:" + port + ":127.0.0.1",
		}, args...)...).Finish()
	}
	url := "https://localhost:" + port
	for _, version := range []string{"1.2", "1.3"} {
		t.Run("TLS "+version, func(t *testing.T) {
			limits := []string{"--tls-max", version, "--tlsv" + version}
			out, err := curl(t, append(limits, url+"/hello")...)
			if want := "HTTP/1.1 over TLS " + version + " for localhost\n"; err != nil || out != want {
				t.Errorf("curl: %q, %v; want %q", out, err, want)
			}
			// Two requests on one connection.
			out, err = curl(t, append(limits, url+"/blob", url+"/blob")...)
			if err != nil || out != strings.Repeat(string(blob), 2) {
				t.Errorf("curl: %d bytes, %v; want %d", len(out), err, 2*len(blob))
			}
			out, err = curl(t, append(limits, "--range", "16-31", url+"/blob")...)
			if err != nil || out != "0123456789abcdef" {
				t.Errorf("curl: range %q, %v", out, err)
			}
		})
	}
	t.Run("unknown authority", func(t *testing.T) {
		if out, err := curl(t, "--cacert", outside.NewAuthority(t).File, url+"/hello"); err == nil || !strings.Contains(out, "certificate") {
			t.Errorf("curl: %q, %v; want it to refuse the certificate", out, err)
		}
	})
	t.Run("refused", func(t *testing.T) {
		refusing := *r
		refusing.server = r.server.Clone()
		refusing.server.Fallback = tcpls.FallbackRefuse
		l := refusing.listen(t)
		_, port, _ := net.SplitHostPort(l.Addr().String())
		out, err := curl(t, "--resolve", "localhost:"+port+":127.0.0.1", "https://localhost:"+port+"/hello")
		if err == nil || !strings.Contains(out, "alert handshake failure") {
			t.Errorf("curl: %q, %v; want the alert handshake_failure", out, err)
		}
	})
}

// countingListener counts TCP connections.
type countingListener struct {
	net.Listener
	accepted atomic.Int64
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.accepted.Add(1)
	}
	return c, err
}

// TestHTTPClient puts all connections of an http.Client into one session.
func TestHTTPClient(t *testing.T) {
	r := newRealm(t)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	counting := &countingListener{Listener: inner}
	l, err := tcpls.NewListener(counting, r.server)
	if err != nil {
		t.Fatal(err)
	}
	serveHTTP(t, l)

	// A machine that is too busy to answer in time looks like a silent path,
	// which would be replaced.
	r.client.ReconnectFor = -1
	d := &tcpls.Dialer{Config: r.client}
	transport := &http.Transport{DialTLSContext: d.DialStream}
	client := &http.Client{Transport: transport}
	url := "https://" + l.Addr().String()
	want := fmt.Sprintf("%x\n", sha256.Sum256(blob))
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			res, err := client.Get(url + "/blob")
			if err != nil {
				t.Error(err)
				return
			}
			got, err := io.ReadAll(res.Body)
			res.Body.Close()
			if err != nil || !bytes.Equal(got, blob) {
				t.Errorf("GET: %d bytes, %v; want %d", len(got), err, len(blob))
			}
			req, err := http.NewRequestWithContext(context.Background(), http.MethodPut, url+"/blob", bytes.NewReader(blob))
			if err != nil {
				t.Error(err)
				return
			}
			if res, err = client.Do(req); err != nil {
				t.Error(err)
				return
			}
			sum, err := io.ReadAll(res.Body)
			res.Body.Close()
			if err != nil || string(sum) != want {
				t.Errorf("PUT: the server got %q, %v; want %q", sum, err, want)
			}
		})
	}
	all.Wait()
	if n := counting.accepted.Load(); n != 1 {
		t.Errorf("%d TCP connections, want 1 for all requests", n)
	}
	transport.CloseIdleConnections()
	if err := d.Close(); err != nil {
		t.Errorf("Dialer.Close: %v", err)
	}
	if _, err := d.DialStream(context.Background(), "tcp", l.Addr().String()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("DialStream after Close: %v, want net.ErrClosed", err)
	}
}

// TestHTTPClientFallback has the same client talk to an ordinary HTTPS server.
func TestHTTPClientFallback(t *testing.T) {
	r := newRealm(t)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		fmt.Fprintf(w, "%s to %s", tls.VersionName(req.TLS.Version), req.TLS.ServerName)
	})}
	done := make(chan error, 1)
	go func() { done <- server.Serve(tls.NewListener(inner, r.server.TLS)) }()
	d := &tcpls.Dialer{Config: r.client}
	transport := &http.Transport{DialTLSContext: d.DialStream}
	client := &http.Client{Transport: transport}
	for range 3 {
		res, err := client.Get("https://" + inner.Addr().String() + "/")
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || string(got) != "TLS 1.3 to localhost" {
			t.Errorf("GET: %q, %v", got, err)
		}
		transport.CloseIdleConnections() // the next request dials again
	}
	if err := d.Close(); err != nil {
		t.Errorf("Dialer.Close: %v", err)
	}
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		t.Errorf("http.Server.Serve: %v", err)
	}
}

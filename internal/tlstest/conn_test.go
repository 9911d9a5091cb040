package tlstest_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/go-tcpls/tcpls/internal/tls13"
	"github.com/go-tcpls/tcpls/internal/tlstest"
	"github.com/go-tcpls/tcpls/internal/tlstest/outside"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must come at once.
const patience = time.Minute

// A served server runs as the program does; every connection's last line comes
// through lines.
type served struct {
	t     *testing.T
	addr  string
	port  string
	lines chan string
}

type lineWriter chan string

func (w lineWriter) Write(line []byte) (int, error) {
	w <- string(line)
	return len(line), nil
}

// serve starts a TestServer. Behaviour's zero value echoes or answers GET.
func serve(t *testing.T, cfg *tls.Config, b tlstest.Behaviour) *served {
	t.Helper()
	return serveEngine(t, &tls13.Config{TLS: cfg}, b)
}

func serveEngine(t *testing.T, cfg *tls13.Config, b tlstest.Behaviour) *served {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if b.Mode == "" {
		b.Mode = tlstest.ModeAuto
	}
	lines := make(lineWriter, 100)
	server := &tlstest.TestServer{Config: cfg, Timeout: patience, Log: log.New(lines, "", 0), Behaviour: b}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return &served{t: t, addr: l.Addr().String(), port: port, lines: lines}
}

// said expects the next connection's line to hold all texts.
func (s *served) said(texts ...string) {
	s.t.Helper()
	select {
	case line := <-s.lines:
		mustContain(s.t, "our server's line", line, texts...)
	case <-time.After(patience):
		s.t.Errorf("our server's connection doesn't end; expected %q", texts)
	}
}

func mustContain(t *testing.T, what, s string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(s, text) {
			t.Errorf("%s doesn't say %q:\n%s", what, text, s)
		}
	}
}

// dial connects our client and completes its handshake.
func dial(t *testing.T, addr string, cfg *tls.Config) (*tlstest.Conn, error) {
	t.Helper()
	return dialEngine(t, addr, &tls13.Config{TLS: cfg})
}

func dialEngine(t *testing.T, addr string, cfg *tls13.Config) (*tlstest.Conn, error) {
	t.Helper()
	c := newClient(t, addr, cfg)
	return c, c.Handshake(patience)
}

// newClient connects our client, whose handshake comes next.
func newClient(t *testing.T, addr string, cfg *tls13.Config) *tlstest.Conn {
	t.Helper()
	transport, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { transport.Close() })
	c, err := tlstest.Client(transport, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mustDial(t *testing.T, addr string, cfg *tls.Config) *tlstest.Conn {
	t.Helper()
	return mustDialEngine(t, addr, &tls13.Config{TLS: cfg})
}

func mustDialEngine(t *testing.T, addr string, cfg *tls13.Config) *tlstest.Conn {
	t.Helper()
	c, err := dialEngine(t, addr, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// mustAnswer writes a line and expects another.
func mustAnswer(t *testing.T, c io.ReadWriter, line, want string) {
	t.Helper()
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		t.Fatal(err)
	}
	mustRead(t, c, want)
}

func mustRead(t *testing.T, c io.Reader, want string) {
	t.Helper()
	if err := readLine(c, want); err != nil {
		t.Fatal(err)
	}
}

func readLine(c io.Reader, want string) error {
	got := make([]byte, len(want)+1)
	if n, err := io.ReadFull(c, got); err != nil || string(got) != want+"\n" {
		return fmt.Errorf("read %q, %v; want the line %q", got[:n], err, want)
	}
	return nil
}

// mustEndCleanly ends our side and expects the peer's close_notify.
func mustEndCleanly(t *testing.T, c *tlstest.Conn) {
	t.Helper()
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
		t.Errorf("at the end: %d bytes more, %v; want the peer's close_notify", len(rest), err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func clientConfig(a *outside.Authority) *tls.Config {
	return &tls.Config{RootCAs: a.Pool, ServerName: "localhost"}
}

func serverConfig(l *outside.Leaf) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{l.TLS}}
}

// runClient runs a TestClient as the program does.
func runClient(t *testing.T, addr string, client *tlstest.TestClient, in string) (out, facts string, err error) {
	t.Helper()
	var o, f bytes.Buffer
	client.Timeout, client.In, client.Out, client.Log = patience, strings.NewReader(in), &o, &f
	err = client.Run(context.Background(), addr)
	return o.String(), f.String(), err
}

func TestOurselves(t *testing.T) {
	authority := outside.NewAuthority(t)
	leaf := authority.Issue(t, outside.P256, nil)
	const size = 3<<20 + 1
	for _, test := range []struct {
		name           string
		server, client tlstest.Behaviour
		groups         []tls.CurveID // of the server
		get, in        string
		resume         int
		early          bool
		out, facts     string
	}{
		{name: "echo", in: "one\ntwo\nthe end", out: "one\ntwo\nthe end"},
		{name: "empty input"},
		{name: "page", get: "/", out: "HTTP/1.0 200 OK"},
		{name: "no page in echo mode", server: tlstest.Behaviour{Mode: tlstest.ModeEcho}, in: "GET /\n", out: "GET /\n"},
		{name: "to the server", server: tlstest.Behaviour{Mode: tlstest.ModeDiscard}, client: tlstest.Behaviour{Mode: tlstest.ModeSource, Size: size}},
		{
			name: "from the server", server: tlstest.Behaviour{Mode: tlstest.ModeSource, Size: size},
			client: tlstest.Behaviour{Mode: tlstest.ModeDiscard}, facts: fmt.Sprint(size, " bytes"),
		},
		{name: "retry", server: tlstest.Behaviour{Mode: tlstest.ModeEcho}, groups: []tls.CurveID{tls.SecP384r1MLKEM1024}, in: "one\n", out: "one\n", facts: "retried=yes"},
		{name: "key updates", server: tlstest.Behaviour{KeyUpdate: true}, client: tlstest.Behaviour{KeyUpdate: true}, in: "one\n", out: "one\n"},
		{name: "resumption", in: "one\n", resume: 2, out: "one\n", facts: "resumed=yes"},
		{name: "early data", in: "one\n", resume: 1, early: true, out: "one\n", facts: "early=4"},
		{name: "early page", get: "/", resume: 1, early: true, out: "early="},
		{name: "early data without a ticket", in: "one\n", early: true, out: "one\n"},
		{name: "more than a ticket allows", in: strings.Repeat("0123456789\n", maxEarly/10), resume: 1, early: true, out: "0123456789\n", facts: "early=4096"},
		{
			name: "early data refused", groups: []tls.CurveID{tls.SecP384r1MLKEM1024},
			in: "one\n", resume: 1, early: true, out: "one\n", facts: "retried=yes resumed=yes",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := &tls13.Config{TLS: serverConfig(leaf), MaxEarlyData: maxEarly, FirstUse: new(tlstest.Strikes).FirstUse}
			cfg.TLS.CurvePreferences = test.groups
			s := serveEngine(t, cfg, test.server)
			client := &tlstest.TestClient{
				Config: &tls13.Config{TLS: clientConfig(authority)}, Get: test.get, Resume: test.resume, Early: test.early, Behaviour: test.client,
			}
			client.Config.TLS.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			if test.early {
				client.Config.MaxEarlyData = math.MaxUint32
			}
			out, facts, err := runClient(t, s.addr, client, test.in)
			if err != nil {
				t.Fatal(err)
			}
			mustContain(t, "output", out, test.out)
			mustContain(t, "facts", facts, test.facts, "TLS 1.3 TLS_", "MLKEM")
			if test.get == "" && test.client.Mode == "" && out != test.in {
				t.Errorf("the echo of %d bytes has %d, or others", len(test.in), len(out))
			}
			for range 1 + test.resume {
				s.said("name=localhost", ": closed")
			}
		})
	}
}

// TestStrikes fills a strike register, with what is still to be remembered and
// with what isn't.
func TestStrikes(t *testing.T) {
	for _, test := range []struct {
		name     string
		until    time.Time
		thenMore bool
	}{
		{"fresh", time.Now().Add(time.Hour), false},
		{"stale", time.Now().Add(-time.Hour), true},
	} {
		t.Run(test.name, func(t *testing.T) {
			var s tlstest.Strikes
			id := make([]byte, 32)
			n := uint32(0)
			for ; n < 1<<16; n++ {
				binary.BigEndian.PutUint32(id, n)
				if !s.FirstUse(id, test.until) {
					t.Fatalf("use %d isn't taken for the first", n)
				}
				if n == 0 && s.FirstUse(id, test.until) {
					t.Fatal("the second use is taken for the first")
				}
			}
			binary.BigEndian.PutUint32(id, n)
			if s.FirstUse(id, test.until) != test.thenMore {
				t.Errorf("a full register takes more: %v, want %v", !test.thenMore, test.thenMore)
			}
		})
	}
}

func TestFailures(t *testing.T) {
	authority := outside.NewAuthority(t)
	leaf := authority.Issue(t, outside.P256, nil)

	t.Run("server without close_notify", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			transport, err := l.Accept()
			if err != nil {
				return
			}
			conn := tls.Server(transport, serverConfig(leaf))
			_, _ = conn.Write([]byte("half a li")) // the client tells whether it came
			transport.Close()
		}()
		client := &tlstest.TestClient{Config: &tls13.Config{TLS: clientConfig(authority)}, Behaviour: tlstest.Behaviour{Mode: tlstest.ModeDiscard}}
		_, _, err = runClient(t, l.Addr().String(), client, "")
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("client: %v, want io.ErrUnexpectedEOF", err)
		}
	})
	t.Run("client without close_notify", func(t *testing.T) {
		s := serve(t, serverConfig(leaf), tlstest.Behaviour{})
		c := mustDial(t, s.addr, clientConfig(authority))
		mustAnswer(t, c, "a line", "a line")
		if err := c.NetConn().Close(); err != nil {
			t.Fatal(err)
		}
		s.said("failed", "without close_notify")
	})
	t.Run("not TLS", func(t *testing.T) {
		s := serve(t, serverConfig(leaf), tlstest.Behaviour{})
		transport, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer transport.Close()
		if _, err := io.WriteString(transport, "GET / HTTP/1.0\r\n\r\n"+strings.Repeat("unread ", 1<<12)); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, 7)
		if _, err := io.ReadFull(transport, answer); err != nil || answer[0] != 21 {
			t.Errorf("answer % x, %v; want an alert record before the end", answer, err)
		}
		transport.Close()
		s.said("handshake: failed")
	})
	t.Run("silence", func(t *testing.T) {
		a, b := net.Pipe()
		defer a.Close()
		c, err := tlstest.Server(b, &tls13.Config{TLS: serverConfig(leaf)})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Handshake(time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Handshake: %v, want os.ErrDeadlineExceeded", err)
		}
	})
	t.Run("unknown authority", func(t *testing.T) {
		s := serve(t, serverConfig(leaf), tlstest.Behaviour{})
		_, err := dial(t, s.addr, clientConfig(outside.NewAuthority(t)))
		var unknown x509.UnknownAuthorityError
		if !errors.As(err, &unknown) {
			t.Errorf("Handshake: %v, want x509.UnknownAuthorityError", err)
		}
		s.said("unknown_ca")
	})
}

// TestShutdown ends a server while a connection is idle.
func TestShutdown(t *testing.T) {
	authority := outside.NewAuthority(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &tlstest.TestServer{
		Config:  &tls13.Config{TLS: serverConfig(authority.Issue(t, outside.P256, nil))},
		Timeout: patience, Log: log.New(io.Discard, "", 0), Behaviour: tlstest.Behaviour{Mode: tlstest.ModeAuto},
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, l) }()
	idle := mustDial(t, l.Addr().String(), clientConfig(authority))
	mustAnswer(t, idle, "a line", "a line")
	cancel()
	if rest, err := io.ReadAll(idle); err != nil || len(rest) > 0 {
		t.Errorf("the client reads %q, %v; want the server's close_notify", rest, err)
	}
	if err := idle.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

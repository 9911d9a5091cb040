package tcpls_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls"
	"github.com/go-tcpls/tcpls/internal/memnet"
	"github.com/go-tcpls/tcpls/internal/tls13"
	"github.com/go-tcpls/tcpls/internal/tlstest/outside"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// mustBePlain checks all that a client may expect of a session without TCPLS.
func mustBePlain(t *testing.T, s *tcpls.Session, version uint16, why, answer string) {
	t.Helper()
	state := s.ConnectionState()
	if state.TCPLS || !strings.Contains(state.Fallback, why) || state.TLS.Version != version {
		t.Errorf("TCPLS %v, %s, Fallback %q; want %s and %q", state.TCPLS, tls.VersionName(state.TLS.Version), state.Fallback, tls.VersionName(version), why)
	}
	ctx := context.Background()
	st, err := s.OpenStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.OpenStream(ctx); !errors.Is(err, tcpls.ErrNotTCPLS) {
		t.Errorf("second OpenStream: %v, want ErrNotTCPLS", err)
	}
	if _, err := s.Ping(ctx); !errors.Is(err, tcpls.ErrNotTCPLS) {
		t.Errorf("Ping: %v, want ErrNotTCPLS", err)
	}
	mustTalk(t, st, answer)
	if err := s.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func TestFallbackOfClient(t *testing.T) {
	r := newRealm(t)
	old := r.server.TLS.Clone()
	old.MaxVersion = tls.VersionTLS12
	const (
		noAnswer = "server doesn't answer the offer"
		no13     = "server doesn't speak TLS 1.3"
	)
	openssl := func(version string) func(t *testing.T) string {
		return func(t *testing.T) string {
			_, addr := outside.OpenSSLServer(t, version, "-cert", r.leaf.CertFile, "-key", r.leaf.KeyFile, "-rev")
			return addr
		}
	}
	gnutls := func(version string) func(t *testing.T) string {
		return func(t *testing.T) string {
			_, addr := outside.GnuTLSServer(t, "--echo", "-a", "--x509certfile", r.leaf.CertFile, "--x509keyfile", r.leaf.KeyFile,
				"--priority", "NORMAL:-VERS-ALL:+VERS-"+version)
			return addr
		}
	}
	for _, test := range []struct {
		name    string
		server  func(t *testing.T) (addr string)
		version uint16
		why     string
		answer  string
	}{
		{"Go", func(t *testing.T) string { return raw(t, echoTLS(r.server.TLS)) }, tls.VersionTLS13, noAnswer, "stressed"},
		{"Go, TLS 1.2", func(t *testing.T) string { return raw(t, echoTLS(old)) }, tls.VersionTLS12, no13, "stressed"},
		{"OpenSSL", openssl("-tls1_3"), tls.VersionTLS13, noAnswer, "desserts"},
		{"OpenSSL, TLS 1.2", openssl("-tls1_2"), tls.VersionTLS12, no13, "desserts"},
		{"GnuTLS", gnutls("TLS1.3"), tls.VersionTLS13, noAnswer, "stressed"},
		{"GnuTLS, TLS 1.2", gnutls("TLS1.2"), tls.VersionTLS12, no13, "stressed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			addr := test.server(t)
			s, err := tcpls.Dial(context.Background(), "tcp", addr, r.client)
			if err != nil {
				t.Fatal(err)
			}
			mustBePlain(t, s, test.version, test.why, test.answer)

			refusing := r.client.Clone()
			refusing.Fallback = tcpls.FallbackRefuse
			if _, err := tcpls.Dial(context.Background(), "tcp", addr, refusing); !errors.Is(err, tcpls.ErrNotTCPLS) {
				t.Errorf("Dial with FallbackRefuse: %v, want ErrNotTCPLS", err)
			}
			if test.version == tls.VersionTLS13 {
				return
			}
			modern := r.client.Clone()
			modern.TLS = modern.TLS.Clone()
			modern.TLS.MinVersion = tls.VersionTLS13
			if s, err := tcpls.Dial(context.Background(), "tcp", addr, modern); err == nil {
				t.Errorf("Dial with MinVersion TLS 1.3 has succeeded, with %s", tls.VersionName(s.ConnectionState().TLS.Version))
			}
		})
	}
}

// dialTLS connects a crypto/tls client.
func dialTLS(t *testing.T, addr string, cfg *tls.Config, version uint16) (*tls.Conn, error) {
	t.Helper()
	cfg = cfg.Clone()
	cfg.MinVersion, cfg.MaxVersion = version, version
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c := tls.Client(conn, cfg)
	return c, c.Handshake()
}

// echoOnce serves the stream of the next session, which must be plain.
func echoOnce(t *testing.T, l *tcpls.Listener) (done chan struct{}) {
	t.Helper()
	done = make(chan struct{})
	go func() {
		defer close(done)
		s, err := l.Accept(context.Background())
		if err != nil {
			t.Errorf("Accept: %v", err)
			return
		}
		if state := s.ConnectionState(); state.TCPLS || !strings.Contains(state.Fallback, "client doesn't offer TCPLS") {
			t.Errorf("TCPLS %v, Fallback %q", state.TCPLS, state.Fallback)
		}
		if _, err := s.OpenStream(context.Background()); !errors.Is(err, tcpls.ErrNotTCPLS) {
			t.Errorf("OpenStream: %v, want ErrNotTCPLS", err)
		}
		st, err := s.AcceptStream(context.Background())
		if err != nil {
			t.Errorf("AcceptStream: %v", err)
			return
		}
		if _, err := io.Copy(st, st); err != nil {
			t.Errorf("echo: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}()
	return done
}

func TestFallbackOfServer(t *testing.T) {
	r := newRealm(t)
	l := r.listen(t)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run("Go, "+tls.VersionName(version), func(t *testing.T) {
			done := echoOnce(t, l)
			c, err := dialTLS(t, l.Addr().String(), r.client.TLS, version)
			if err != nil {
				t.Fatal(err)
			}
			mustTalk(t, c, "stressed")
			<-done
		})
	}
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		t.Run("OpenSSL"+version, func(t *testing.T) {
			outside.Need(t, "openssl")
			done := echoOnce(t, l)
			p := outside.Start(t, "openssl", "s_client", version, "-connect", l.Addr().String(), "-CAfile", r.authority.File,
				"-verify_return_error", "-verify_hostname", "localhost")
			p.WaitFor("Verify return code: 0 (ok)")
			p.Say("a line there and back")
			p.WaitFor("a line there and back")
			if _, err := p.Finish(); err != nil {
				t.Error(err)
			}
			<-done
		})
	}
	t.Run("GnuTLS", func(t *testing.T) {
		outside.Need(t, "gnutls-cli")
		done := echoOnce(t, l)
		_, port, _ := net.SplitHostPort(l.Addr().String())
		p := outside.Start(t, "gnutls-cli", "--port", port, "--x509cafile", r.authority.File, "--verify-hostname", "localhost", "127.0.0.1")
		p.WaitFor("Handshake was completed")
		p.Say("a line there and back")
		p.WaitFor("a line there and back")
		if _, err := p.Finish(); err != nil {
			t.Error(err)
		}
		<-done
	})
}

func TestFallbackRefusedByServer(t *testing.T) {
	r := newRealm(t)
	r.server.Fallback = tcpls.FallbackRefuse
	failed := make(chan error, 1)
	addr := raw(t, func(conn net.Conn) {
		s, err := tcpls.Server(context.Background(), conn, r.server)
		if err == nil {
			s.Close()
		}
		failed <- err
	})
	const want = "handshake failure"
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		if _, err := dialTLS(t, addr, r.client.TLS, version); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("crypto/tls client, %s: %v, want the alert %s", tls.VersionName(version), err, want)
		}
		if err := <-failed; !errors.Is(err, tcpls.ErrNotTCPLS) {
			t.Errorf("Server: %v, want ErrNotTCPLS", err)
		}
	}
	t.Run("OpenSSL", func(t *testing.T) {
		outside.Start(t, "openssl", "s_client", "-connect", addr).WaitFor("alert " + want)
		if err := <-failed; !errors.Is(err, tcpls.ErrNotTCPLS) {
			t.Errorf("Server: %v, want ErrNotTCPLS", err)
		}
	})
	t.Run("TCPLS", func(t *testing.T) {
		s, err := tcpls.Dial(context.Background(), "tcp", addr, r.client)
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		if err := <-failed; err != nil {
			t.Errorf("Server: %v", err)
		}
	})
}

// TestDialMeets has servers that are none.
func TestDialMeets(t *testing.T) {
	r := newRealm(t)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	for _, test := range []struct {
		name  string
		addr  string
		is    error
		texts []string
	}{
		{"closed port", closed.Addr().String(), syscall.ECONNREFUSED, []string{"refused"}},
		{"server that closes", raw(t, func(c net.Conn) {
			_ = c.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, c)
		}), io.ErrUnexpectedEOF, []string{"without an answer"}},
		{"server that resets", raw(t, func(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0) }), syscall.ECONNRESET, []string{"reset"}},
		{"HTTP server", raw(t, func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
			_, _ = io.Copy(io.Discard, c)
		}), nil, []string{"an HTTP response, not TLS"}},
		{"SSH server", raw(t, func(c net.Conn) {
			_, _ = io.WriteString(c, "SSH-2.0-OpenSSH_9.2\r\n")
			_, _ = io.Copy(io.Discard, c)
		}), nil, []string{"SSH, not TLS"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, policy := range []tcpls.FallbackPolicy{tcpls.FallbackAllow, tcpls.FallbackRefuse} {
				cfg := r.client.Clone()
				cfg.Fallback = policy
				_, err := tcpls.Dial(context.Background(), "tcp", test.addr, cfg)
				if err == nil || test.is != nil && !errors.Is(err, test.is) {
					t.Fatalf("Dial: %v, want %v", err, test.is)
				}
				for _, text := range test.texts {
					if !strings.Contains(err.Error(), text) {
						t.Errorf("Dial: %v; want it to say %q", err, text)
					}
				}
			}
		})
	}
}

// TestSilentServer runs in virtual time: the error must come within the
// timeout and say what was met.
func TestSilentServer(t *testing.T) {
	r := newRealm(t)
	for _, policy := range []tcpls.FallbackPolicy{tcpls.FallbackAllow, tcpls.FallbackRefuse} {
		synctest.Test(t, func(t *testing.T) {
			c, s := memnet.Pipe(memnet.Link{})
			defer s.Close()
			cfg := r.client.Clone()
			cfg.Fallback, cfg.HandshakeTimeout = policy, 10*time.Second
			began := time.Now()
			_, err := tcpls.Client(t.Context(), c, cfg)
			if !errors.Is(err, tcpls.ErrHandshakeTimeout) || !strings.Contains(err.Error(), "sent nothing") {
				t.Errorf("Client: %v, want ErrHandshakeTimeout and that the peer sent nothing", err)
			}
			if took := time.Since(began); took > cfg.HandshakeTimeout {
				t.Errorf("Client took %v, more than its timeout of %v", took, cfg.HandshakeTimeout)
			}
		})
	}
}

// TestSlowServer has a server that spreads its answer: one deadline stands over
// all of it.
func TestSlowServer(t *testing.T) {
	r := newRealm(t)
	synctest.Test(t, func(t *testing.T) {
		c, s := memnet.Pipe(memnet.Link{})
		var slow sync.WaitGroup
		slow.Go(func() {
			defer s.Close()
			for {
				if _, err := s.Write([]byte{22}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		})
		defer slow.Wait()
		cfg := r.client.Clone()
		cfg.HandshakeTimeout = 3 * time.Second // before the record's header is complete
		began := time.Now()
		if _, err := tcpls.Client(t.Context(), c, cfg); !errors.Is(err, tcpls.ErrHandshakeTimeout) {
			t.Errorf("Client: %v, want ErrHandshakeTimeout", err)
		}
		if took := time.Since(began); took != cfg.HandshakeTimeout {
			t.Errorf("Client took %v, want %v", took, cfg.HandshakeTimeout)
		}
	})
}

// TestTruncatedPlain cuts plain TLS connections without close_notify.
func TestTruncatedPlain(t *testing.T) {
	r := newRealm(t)
	const sent = "not all of it"
	cut := func(cfg *tls.Config) func(net.Conn) {
		return func(conn net.Conn) {
			c := tls.Server(conn, cfg)
			_, _ = io.WriteString(c, sent) // the client tells whether it came
			_ = conn.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, conn)
		}
	}
	old := r.server.TLS.Clone()
	old.MaxVersion = tls.VersionTLS12
	for _, cfg := range []*tls.Config{r.server.TLS, old} {
		s, err := tcpls.Dial(context.Background(), "tcp", raw(t, cut(cfg)), r.client)
		if err != nil {
			t.Fatal(err)
		}
		st, err := s.OpenStream(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(st); !errors.Is(err, tcpls.ErrTruncated) || string(got) != sent {
			t.Errorf("client, %s: read %q, %v; want ErrTruncated", tls.VersionName(s.ConnectionState().TLS.Version), got, err)
		}
		s.Close()
	}

	l := r.listen(t)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		c, err := dialTLS(t, l.Addr().String(), r.client.TLS, version)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, sent); err != nil {
			t.Fatal(err)
		}
		if err := c.NetConn().Close(); err != nil {
			t.Fatal(err)
		}
		s, err := l.Accept(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		st, err := s.AcceptStream(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(st); !errors.Is(err, tcpls.ErrTruncated) || string(got) != sent {
			t.Errorf("server, %s: read %q, %v; want ErrTruncated", tls.VersionName(version), got, err)
		}
		s.Close()
	}
}

// A middlebox relays connections to a server, but deals in its own way with
// ClientHellos that offer TCPLS.
type middlebox struct {
	server string
	mu     sync.Mutex
	manner manner
	offers int // ClientHellos with the offer that it saw
	others int
}

type manner int

const (
	passes manner = iota
	resets
	swallows
	closes
)

func (m *middlebox) serve(conn net.Conn) {
	hello, read := m.hello(conn)
	if hello == nil {
		return
	}
	_, offered := hello.Extension(wire.ExtensionType)
	m.mu.Lock()
	manner := passes
	if offered {
		m.offers++
		manner = m.manner
	} else {
		m.others++
	}
	m.mu.Unlock()
	switch manner {
	case resets:
		_ = conn.(*net.TCPConn).SetLinger(0)
		return
	case closes:
		return
	case swallows:
		_, _ = io.Copy(io.Discard, conn)
		return
	}
	server, err := net.Dial("tcp", m.server)
	if err != nil {
		return
	}
	defer server.Close()
	if _, err := server.Write(read); err != nil {
		return
	}
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(conn, server) // the ends notice what is missing
		_ = conn.(*net.TCPConn).CloseWrite()
	})
	_, _ = io.Copy(server, conn)
	_ = server.(*net.TCPConn).CloseWrite()
	back.Wait()
}

func (m *middlebox) hello(conn net.Conn) (*tls13.Hello, []byte) {
	var read []byte
	for {
		chunk := make([]byte, 4096)
		n, err := conn.Read(chunk)
		read = append(read, chunk[:n]...)
		hello, _, sniffErr := tls13.SniffHello(read)
		if hello != nil {
			return hello, read
		}
		if err != nil || sniffErr != nil {
			return nil, nil
		}
	}
}

// saw returns how many ClientHellos came since it was last asked.
func (m *middlebox) saw() (offers, others int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	offers, others = m.offers, m.others
	m.offers, m.others = 0, 0
	return offers, others
}

func (m *middlebox) turn(to manner) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.manner = to
}

func TestMiddlebox(t *testing.T) {
	r := newRealm(t)
	for _, test := range []struct {
		name               string
		manner             manner
		patience, refusing time.Duration
	}{
		{"resets", resets, 20 * time.Second, 20 * time.Second},
		{"closes", closes, 20 * time.Second, 20 * time.Second},
		{"swallows", swallows, 4 * time.Second, time.Second}, // waits for half of the first, and all of the second
	} {
		t.Run(test.name, func(t *testing.T) {
			m := &middlebox{server: raw(t, echoTLS(r.server.TLS)), manner: test.manner}
			addr := raw(t, m.serve)
			cfg := r.client.Clone()
			cfg.HandshakeTimeout = test.patience

			refusing := cfg.Clone()
			refusing.Fallback = tcpls.FallbackRefuse
			refusing.HandshakeTimeout = test.refusing
			if _, err := tcpls.Dial(context.Background(), "tcp", addr, refusing); err == nil {
				t.Error("Dial with FallbackRefuse has succeeded")
			}
			if offers, others := m.saw(); offers != 1 || others != 0 {
				t.Errorf("with FallbackRefuse: %d ClientHellos with the offer and %d without, want 1 and 0", offers, others)
			}

			d := &tcpls.Dialer{Config: cfg}
			for i, want := range [][2]int{{1, 1}, {0, 1}, {0, 1}} {
				s, err := d.Dial(context.Background(), "tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				mustBePlain(t, s, tls.VersionTLS13, "didn't let the offer of TCPLS pass", "stressed")
				if offers, others := m.saw(); offers != want[0] || others != want[1] {
					t.Errorf("Dial %d: %d ClientHellos with the offer and %d without, want %v", i, offers, others, want)
				}
			}
		})
	}
}

// TestMiddleboxTurns has a path that let TCPLS pass once: from then on a
// plain session would be a downgrade.
func TestMiddleboxTurns(t *testing.T) {
	r := newRealm(t)
	l := r.listen(t)
	m := &middlebox{server: l.Addr().String()}
	addr := raw(t, m.serve)
	d := &tcpls.Dialer{Config: r.client}
	s, err := d.Dial(context.Background(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	if !s.ConnectionState().TCPLS {
		t.Error("the session through a middlebox that passes everything is plain TLS")
	}
	served, err := l.Accept(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	go served.Close()
	s.Close()
	m.turn(resets)
	if _, err := d.Dial(context.Background(), "tcp", addr); err == nil {
		t.Error("Dial goes on as plain TLS with a server that has spoken TCPLS")
	}
	if offers, others := m.saw(); offers != 2 || others != 0 {
		t.Errorf("%d ClientHellos with the offer and %d without, want 2 and 0", offers, others)
	}
}

package tlstest_test

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-tcpls/tcpls/internal/tls13"
	"github.com/go-tcpls/tcpls/internal/tlstest"
	"github.com/go-tcpls/tcpls/internal/tlstest/outside"
)

// openssl13 has the arguments that all s_server commands need.
func openssl13(l *outside.Leaf, more ...string) []string {
	return append([]string{"-tls1_3", "-cert", l.CertFile, "-key", l.KeyFile}, more...)
}

// sClient starts openssl s_client, which verifies the server's certificate.
func (s *served) sClient(a *outside.Authority, more ...string) *outside.Process {
	s.t.Helper()
	return outside.Start(s.t, "openssl", append([]string{
		"s_client", "-connect", s.addr, "-CAfile", a.File, "-verify_return_error",
		"-servername", "localhost", "-verify_hostname", "localhost",
	}, more...)...)
}

var opensslClient = &peer{
	name: "OpenSSL s_client", programs: []string{"openssl"}, version: opensslVersion, lacks: opensslLacks,
	client: func(m *meeting, s *served) {
		args := m.opensslArgs(m.own(), m.clientGroups())
		if m.special.resumes() {
			session := filepath.Join(m.TempDir(), "session")
			first := s.sClient(m.authority, append(args, "-sess_out", session)...)
			m.echoed(first, m.line())
			args = append(args, "-sess_in", session)
		}
		if m.special.isEarly() {
			args = append(args, "-early_data", m.file(m.earlyLine()+"\n"))
		}
		p := s.sClient(m.authority, args...)
		p.WaitFor("Verify return code: 0 (ok)")
		if m.special == early {
			p.WaitFor(m.earlyLine()) // echoed
		}
		if m.special == theirUpdate {
			p.Say("K") // it asks for our update too
			p.WaitFor("KEYUPDATE")
		}
		m.echoed(p, m.line())
	},
}

var opensslServer = &peer{
	name: "OpenSSL s_server", programs: []string{"openssl"}, version: opensslVersion, lacks: opensslLacks,
	server: func(m *meeting) (addr string, talk func(*tlstest.Conn)) {
		args := append(m.opensslArgs(m.leaf(), []group{m.group}), "-tls1_3")
		switch {
		case m.special.isEarly():
			args = append(args, "-early_data")
		case m.special != theirUpdate:
			args = append(args, "-rev")
		}
		if m.own() != nil {
			args = append(args, "-CAfile", m.authority.File, "-Verify", "1", "-verify_return_error")
		}
		p, addr := outside.OpenSSLServer(m.T, args...)
		if slices.Contains(args, "-rev") {
			return addr, m.echoes(reversed)
		}
		return addr, func(c *tlstest.Conn) {
			if c.Engine().EarlyDataAccepted() {
				p.WaitFor(m.earlyLine())
			}
			if m.special == theirUpdate {
				p.Say("K") // done before it takes what is sent later
			}
			if _, err := io.WriteString(c, m.line()+"\n"); err != nil {
				m.Fatal(err)
			}
			p.WaitFor(m.line())
			p.Say(m.line())
			mustRead(m.T, c, m.line())
			mustEndCleanly(m.T, c)
		}
	},
}

func reversed(line string) string {
	b := []byte(line)
	slices.Reverse(b)
	return string(b)
}

func opensslVersion(t *testing.T) string {
	return strings.Join(strings.Fields(outside.Run(t, "openssl", "version"))[:2], " ")
}

func opensslLacks(t *testing.T, m terms) string {
	switch {
	case m.group == hybrid && !atLeast(opensslVersion(t), "OpenSSL ", 3, 5):
		return "OpenSSL has X25519MLKEM768 since version 3.5."
	case m.special == ourLimit || m.special == theirLimit:
		return "OpenSSL has no record_size_limit."
	}
	return ""
}

// opensslArgs are the arguments that s_client and s_server share.
func (m *meeting) opensslArgs(cert *outside.Leaf, groups []group) (args []string) {
	if cert != nil {
		args = append(args, "-cert", cert.CertFile, "-key", cert.KeyFile)
	}
	if m.suite.name != "" {
		args = append(args, "-ciphersuites", m.suite.name)
	}
	if m.group.id != 0 {
		args = append(args, "-groups", names(groups, opensslName, ":"))
	}
	if m.special == alpn {
		args = append(args, "-alpn", protocol)
	}
	return args
}

// atLeast tells whether the version behind the first prefix in text is major.minor or later.
func atLeast(text, prefix string, major, minor int) bool {
	_, version, ok := strings.Cut(text, prefix)
	var a, b int
	if n, _ := fmt.Sscanf(version, "%d.%d", &a, &b); !ok || n != 2 {
		return false
	}
	return a > major || a == major && b >= minor
}

func TestOpenSSLClientCertificateRefused(t *testing.T) {
	authority := outside.NewAuthority(t)
	leaf := authority.Issue(t, outside.P256, nil)
	t.Run("server/none", func(t *testing.T) {
		_, addr := outside.OpenSSLServer(t, openssl13(leaf, "-Verify", "1", "-rev")...)
		c := mustDial(t, addr, clientConfig(authority)) // complete before the server has judged
		_, err := io.ReadAll(c)
		var alert *tls13.AlertError
		if !errors.As(err, &alert) || alert.Alert != tls13.AlertCertificateRequired {
			t.Errorf("Read: %v, want the alert certificate_required", err)
		}
	})
	t.Run("client/none", func(t *testing.T) {
		cfg := serverConfig(leaf)
		cfg.ClientAuth, cfg.ClientCAs = tls.RequireAndVerifyClientCert, authority.Pool
		s := serve(t, cfg, tlstest.Behaviour{})
		p := s.sClient(authority)
		p.WaitFor("alert number 116")
		s.said("failed", "certificate_required")
	})
	t.Run("client/stranger", func(t *testing.T) {
		cfg := serverConfig(leaf)
		cfg.ClientAuth, cfg.ClientCAs = tls.RequireAndVerifyClientCert, outside.NewAuthority(t).Pool
		s := serve(t, cfg, tlstest.Behaviour{})
		p := s.sClient(authority, "-cert", leaf.CertFile, "-key", leaf.KeyFile)
		p.WaitFor("alert unknown ca")
		s.said("failed", "unknown_ca")
	})
}

func TestOpenSSLNoProtocol(t *testing.T) {
	authority := outside.NewAuthority(t)
	cfg := serverConfig(authority.Issue(t, outside.P256, nil))
	cfg.NextProtos = []string{"b"}
	s := serve(t, cfg, tlstest.Behaviour{})
	p := s.sClient(authority, "-alpn", "a")
	p.WaitFor("alert no application protocol")
	s.said("failed", "no_application_protocol")
}

// TestOpenSSLRefused has servers whose certificates we must refuse, by the
// right error and the right alert.
func TestOpenSSLRefused(t *testing.T) {
	authority := outside.NewAuthority(t)
	for _, test := range []struct {
		name   string
		leaf   *outside.Leaf
		server string
		is     func(error) bool
		alert  string
	}{
		{"wrong name", authority.Issue(t, outside.P256, nil), "other.example", isError[x509.HostnameError], "alert bad certificate"},
		{"expired", authority.Issue(t, outside.P256, outside.Expired), "localhost", isExpired, "alert certificate expired"},
		{"unknown authority", outside.NewAuthority(t).Issue(t, outside.P256, nil), "localhost", isError[x509.UnknownAuthorityError], "alert unknown ca"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, addr := outside.OpenSSLServer(t, openssl13(test.leaf, "-rev")...)
			cfg := clientConfig(authority)
			cfg.ServerName = test.server
			_, err := dial(t, addr, cfg)
			if !isError[*tls.CertificateVerificationError](err) || !test.is(err) {
				t.Errorf("Handshake: %v (%T)", err, err)
			}
			p.WaitFor(test.alert)
		})
	}
}

func isError[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

func isExpired(err error) bool {
	e, ok := errors.AsType[x509.CertificateInvalidError](err)
	return ok && e.Reason == x509.Expired
}

// TestOpenSSLRefuses has clients that refuse our certificate.
func TestOpenSSLRefuses(t *testing.T) {
	authority := outside.NewAuthority(t)
	for _, test := range []struct {
		name        string
		leaf        *outside.Leaf
		says, alert string
	}{
		{"expired", authority.Issue(t, outside.P256, outside.Expired), "certificate has expired", "certificate_expired"},
		{"unknown authority", outside.NewAuthority(t).Issue(t, outside.P256, nil), "unable to get local issuer certificate", "unknown_ca"},
		{"wrong name", authority.Issue(t, outside.P256, func(c *x509.Certificate) { c.DNSNames = []string{"other.example"} }), "hostname mismatch", "bad_certificate"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := serve(t, serverConfig(test.leaf), tlstest.Behaviour{})
			p := s.sClient(authority)
			p.WaitFor(test.says)
			s.said("handshake: failed", "remote error", test.alert)
		})
	}
}

func TestOpenSSLKeyUpdate(t *testing.T) {
	authority := outside.NewAuthority(t)
	leaf := authority.Issue(t, outside.P256, nil)
	t.Run("server", func(t *testing.T) {
		p, addr := outside.OpenSSLServer(t, openssl13(leaf)...)
		c := mustDial(t, addr, clientConfig(authority))
		for i := range 5 {
			p.Say([]string{"K", "k"}[i%2]) // K asks for our update too, k doesn't
			if _, err := fmt.Fprintf(c, "up %d\n", i); err != nil {
				t.Fatal(err)
			}
			p.WaitFor(fmt.Sprint("up ", i)) // it has done the command before
			p.Say(fmt.Sprint("down ", i))
			mustRead(t, c, fmt.Sprint("down ", i))
			if err := c.UpdateKeys(i%2 == 0); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, ours := range []bool{false, true} {
		t.Run(fmt.Sprint("client/ours=", ours), func(t *testing.T) {
			s := serve(t, serverConfig(leaf), tlstest.Behaviour{KeyUpdate: ours})
			p := s.sClient(authority)
			for i := range 5 {
				p.Say([]string{"K", "k"}[i%2])
				p.WaitFor("KEYUPDATE") // s_client would drop more of the same read
				p.Say(fmt.Sprint("round ", i))
				p.WaitFor(fmt.Sprint("round ", i))
			}
			out, err := p.Finish()
			if err != nil {
				t.Error(err)
			}
			if n := strings.Count(out, "KEYUPDATE"); n != 5 {
				t.Errorf("s_client updated its keys %d times, want 5", n)
			}
			s.said("closed")
		})
	}
}

// TestOpenSSLBulk moves data both ways at once.
func TestOpenSSLBulk(t *testing.T) {
	authority := outside.NewAuthority(t)
	leaf := authority.Issue(t, outside.P256, nil)
	for _, suite := range suites {
		t.Run("client/"+suite.name, func(t *testing.T) {
			s := serve(t, serverConfig(leaf), tlstest.Behaviour{KeyUpdate: true})
			p := s.sClient(authority, "-ciphersuites", suite.name, "-quiet", "-no_ign_eof")
			mustEchoBulk(t, p)
			s.said("closed")
		})
	}
}

// mustEchoBulk sends lines to a program's stdin and expects them on its stdout.
func mustEchoBulk(t *testing.T, p *outside.Process) {
	t.Helper()
	random := make([]byte, 512<<10)
	rand.Read(random)
	var lines bytes.Buffer
	for len(random) > 0 {
		n := min(len(random), 1000)
		fmt.Fprintln(&lines, hex.EncodeToString(random[:n]))
		random = random[n:]
	}
	go p.Write(lines.Bytes()) // what is missing on stdout tells of its failure
	if !bytes.Equal(p.WaitStdout(lines.Len()), lines.Bytes()) {
		t.Error("the echo differs from what was sent")
	}
	if _, err := p.Finish(); err != nil {
		t.Error(err)
	}
}

func TestOpenSSLTruncation(t *testing.T) {
	authority := outside.NewAuthority(t)
	leaf := authority.Issue(t, outside.P256, nil)
	t.Run("server", func(t *testing.T) {
		p, addr := outside.OpenSSLServer(t, openssl13(leaf, "-rev")...)
		c := mustDial(t, addr, clientConfig(authority))
		mustAnswer(t, c, "stressed", "desserts")
		p.Kill()
		if _, err := io.ReadAll(c); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("Read: %v, want io.ErrUnexpectedEOF", err)
		}
	})
	t.Run("client", func(t *testing.T) {
		s := serve(t, serverConfig(leaf), tlstest.Behaviour{})
		p := s.sClient(authority)
		p.Say("a line")
		p.WaitFor("a line")
		p.Kill()
		s.said("failed", "without close_notify")
	})
}

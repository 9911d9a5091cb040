package tlstest_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"testing"

	"github.com/go-tcpls/tcpls/internal/tls13"
	"github.com/go-tcpls/tcpls/internal/tlstest"
	"github.com/go-tcpls/tcpls/internal/tlstest/outside"
)

const gnutls13 = "NORMAL:-VERS-ALL:+VERS-TLS1.3"

// gnutlsOnly is a priority string for one suite and some groups.
func gnutlsOnly(suite string, groups ...string) string {
	p := gnutls13 + ":-CIPHER-ALL:" + suite + ":-GROUP-ALL"
	for _, g := range groups {
		p += ":" + g
	}
	return p
}

// echoServer has the arguments of a gnutls-serv that echoes and asks for no
// client certificate.
func echoServer(l *outside.Leaf, priority string, more ...string) []string {
	return append([]string{"--echo", "--x509certfile", l.CertFile, "--x509keyfile", l.KeyFile, "--priority", priority}, more...)
}

// gnutlsCLI starts gnutls-cli, which verifies the server's certificate.
func (s *served) gnutlsCLI(a *outside.Authority, priority string, more ...string) *outside.Process {
	s.t.Helper()
	return outside.Start(s.t, "gnutls-cli", append(append([]string{
		"--port", s.port, "--x509cafile", a.File, "--priority", priority,
		"--sni-hostname", "localhost", "--verify-hostname", "localhost",
	}, more...), "127.0.0.1")...)
}

func TestGnuTLSServer(t *testing.T) {
	outside.Need(t, "gnutls-serv")
	serverMatrix(t, echoed, echoed, func(t *testing.T, leaf *outside.Leaf, suite commonSuite) (addr string) {
		_, addr = outside.GnuTLSServer(t, echoServer(leaf, gnutlsOnly(suite.gnutls, "+GROUP-ALL"), "-a")...)
		return addr
	})
}

func TestGnuTLSClient(t *testing.T) {
	outside.Need(t, "gnutls-cli")
	clientMatrix(t, func(s *served, a *outside.Authority, suite commonSuite, group commonGroup) {
		p := s.gnutlsCLI(a, gnutlsOnly(suite.gnutls, group.gnutls))
		p.WaitFor("Handshake was completed")
		s.echoes(p, suite, group)
	})
}

func TestGnuTLSRetry(t *testing.T) {
	authority := outside.NewAuthority(t)
	leaf := authority.Issue(t, outside.P256, nil)
	t.Run("server", func(t *testing.T) {
		_, addr := outside.GnuTLSServer(t, echoServer(leaf, gnutlsOnly("+CIPHER-ALL", "+GROUP-SECP384R1"), "-a")...)
		cfg := clientConfig(authority)
		cfg.CurvePreferences = []tls.CurveID{tls.X25519, tls.CurveP384}
		c := mustDial(t, addr, cfg)
		mustContain(t, "handshake", tlstest.Facts(c), "CurveP384", "retried=yes")
		mustAnswer(t, c, "after a retry", "after a retry")
		mustEndCleanly(t, c)
	})
	t.Run("client", func(t *testing.T) {
		cfg := serverConfig(leaf)
		cfg.CurvePreferences = []tls.CurveID{tls.CurveP384}
		s := serve(t, cfg, tlstest.Behaviour{})
		p := s.gnutlsCLI(authority, gnutlsOnly("+CIPHER-ALL", "+GROUP-SECP256R1", "+GROUP-SECP384R1"))
		p.WaitFor("Handshake was completed")
		p.Say("after a retry")
		p.WaitFor("after a retry")
		if _, err := p.Finish(); err != nil {
			t.Error(err)
		}
		s.said("CurveP384", "retried=yes", "closed")
	})
}

func TestGnuTLSClientCertificate(t *testing.T) {
	authority := outside.NewAuthority(t)
	leaf := authority.Issue(t, outside.P256, nil)
	for _, kind := range outside.Kinds {
		own := authority.Issue(t, kind, nil)
		t.Run("server/"+kind, func(t *testing.T) {
			_, addr := outside.GnuTLSServer(t, echoServer(leaf, gnutls13, "--x509cafile", authority.File, "--require-client-cert", "--verify-client-cert")...)
			cfg := clientConfig(authority)
			cfg.Certificates = []tls.Certificate{own.TLS}
			c := mustDial(t, addr, cfg)
			mustAnswer(t, c, "who am I", "who am I")
			mustEndCleanly(t, c)
		})
		t.Run("client/"+kind, func(t *testing.T) {
			cfg := serverConfig(leaf)
			cfg.ClientAuth, cfg.ClientCAs = tls.RequireAndVerifyClientCert, authority.Pool
			s := serve(t, cfg, tlstest.Behaviour{})
			p := s.gnutlsCLI(authority, gnutls13, "--x509certfile", own.CertFile, "--x509keyfile", own.KeyFile)
			p.WaitFor("Handshake was completed")
			p.Say("who am I")
			p.WaitFor("who am I")
			if _, err := p.Finish(); err != nil {
				t.Error(err)
			}
			s.said("peer=", kind, "closed")
		})
	}
	t.Run("server/none", func(t *testing.T) {
		_, addr := outside.GnuTLSServer(t, echoServer(leaf, gnutls13, "--x509cafile", authority.File, "--require-client-cert")...)
		c := mustDial(t, addr, clientConfig(authority)) // complete before the server has judged
		_, err := io.ReadAll(c)
		var alert *tls13.AlertError
		if !errors.As(err, &alert) || alert.Alert != tls13.AlertCertificateRequired {
			t.Errorf("Read: %v, want the alert certificate_required", err)
		}
	})
}

func TestGnuTLSALPN(t *testing.T) {
	authority := outside.NewAuthority(t)
	leaf := authority.Issue(t, outside.P256, nil)
	t.Run("server", func(t *testing.T) {
		_, addr := outside.GnuTLSServer(t, echoServer(leaf, gnutls13, "-a", "--alpn", "b")...)
		cfg := clientConfig(authority)
		cfg.NextProtos = []string{"a", "b"}
		c := mustDial(t, addr, cfg)
		mustContain(t, "handshake", tlstest.Facts(c), "alpn=b")
		mustEndCleanly(t, c)
	})
	t.Run("client", func(t *testing.T) {
		cfg := serverConfig(leaf)
		cfg.NextProtos = []string{"b", "a"}
		s := serve(t, cfg, tlstest.Behaviour{})
		p := s.gnutlsCLI(authority, gnutls13, "--alpn", "a", "--alpn", "b")
		p.WaitFor("Application protocol: b")
		p.WaitFor("Handshake was completed")
		if _, err := p.Finish(); err != nil {
			t.Error(err)
		}
		s.said("alpn=b", "closed")
	})
}

// TestGnuTLSRefuses has clients that refuse our certificate.
func TestGnuTLSRefuses(t *testing.T) {
	authority := outside.NewAuthority(t)
	for _, test := range []struct {
		name string
		leaf *outside.Leaf
		says string
	}{
		{"expired", authority.Issue(t, outside.P256, outside.Expired), "expired"},
		{"unknown authority", outside.NewAuthority(t).Issue(t, outside.P256, nil), "issuer is unknown"},
		{"wrong name", authority.Issue(t, outside.P256, func(c *x509.Certificate) { c.DNSNames = []string{"other.example"} }), "does not match"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := serve(t, serverConfig(test.leaf), tlstest.Behaviour{})
			p := s.gnutlsCLI(authority, gnutls13)
			p.WaitFor(test.says)
			s.said("handshake: failed", "remote error", "bad_certificate")
		})
	}
}

func TestGnuTLSKeyUpdate(t *testing.T) {
	authority := outside.NewAuthority(t)
	leaf := authority.Issue(t, outside.P256, nil)
	t.Run("server", func(t *testing.T) {
		_, addr := outside.GnuTLSServer(t, echoServer(leaf, gnutls13, "-a")...)
		c := mustDial(t, addr, clientConfig(authority))
		for i := range 5 {
			if err := c.UpdateKeys(i%2 == 0); err != nil {
				t.Fatal(err)
			}
			mustAnswer(t, c, fmt.Sprint("round ", i), fmt.Sprint("round ", i))
		}
		mustEndCleanly(t, c)
	})
	for _, ours := range []bool{false, true} {
		t.Run(fmt.Sprint("client/ours=", ours), func(t *testing.T) {
			s := serve(t, serverConfig(leaf), tlstest.Behaviour{KeyUpdate: ours})
			p := s.gnutlsCLI(authority, gnutls13, "--inline-commands")
			p.WaitFor("Handshake was completed")
			p.Say("behind our update") // GnuTLS doesn't bear updates that cross
			p.WaitFor("behind our update")
			for i := range 5 {
				p.Say("^rekey^")
				p.WaitFor("Rekey was completed")
				p.Say(fmt.Sprint("round ", i))
				p.WaitFor(fmt.Sprint("round ", i))
			}
			if _, err := p.Finish(); err != nil {
				t.Error(err)
			}
			s.said("closed")
		})
	}
}

// TestGnuTLSBulk moves data both ways; GnuTLS sends record_size_limit, which
// our records must obey.
func TestGnuTLSBulk(t *testing.T) {
	authority := outside.NewAuthority(t)
	leaf := authority.Issue(t, outside.P256, nil)
	for _, suite := range commonSuites {
		t.Run("server/"+suite.id, func(t *testing.T) {
			_, addr := outside.GnuTLSServer(t, echoServer(leaf, gnutlsOnly(suite.gnutls, "+GROUP-ALL"), "-a", "--recordsize", "1000")...)
			c := mustDial(t, addr, clientConfig(authority))
			for i := range 100 {
				line := fmt.Sprintf("%0999d", i)
				mustAnswer(t, c, line, line)
			}
			mustEndCleanly(t, c)
		})
		t.Run("client/"+suite.id, func(t *testing.T) {
			s := serve(t, serverConfig(leaf), tlstest.Behaviour{})
			p := s.gnutlsCLI(authority, gnutlsOnly(suite.gnutls, "+GROUP-ALL"), "--logfile", filepath.Join(t.TempDir(), "log"))
			// Line by line: gnutls-cli forgets lines that it has read ahead.
			for i := range 100 {
				line := fmt.Sprintf("%02000d", i)
				p.Say(line)
				if all := p.WaitStdout((i + 1) * (len(line) + 1)); !bytes.HasSuffix(all, []byte(line+"\n")) {
					t.Fatalf("line %d differs", i)
				}
			}
			if _, err := p.Finish(); err != nil {
				t.Error(err)
			}
			s.said("closed")
		})
	}
}

func TestGnuTLSTruncation(t *testing.T) {
	authority := outside.NewAuthority(t)
	p, addr := outside.GnuTLSServer(t, echoServer(authority.Issue(t, outside.P256, nil), gnutls13, "-a")...)
	c := mustDial(t, addr, clientConfig(authority))
	mustAnswer(t, c, "a line", "a line")
	p.Kill()
	if _, err := io.ReadAll(c); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Read: %v, want io.ErrUnexpectedEOF", err)
	}
}

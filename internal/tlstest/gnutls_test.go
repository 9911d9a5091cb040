package tlstest_test

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-tcpls/tcpls/internal/tls13"
	"github.com/go-tcpls/tcpls/internal/tlstest"
	"github.com/go-tcpls/tcpls/internal/tlstest/outside"
)

const gnutls13 = "NORMAL:-VERS-ALL:+VERS-TLS1.3"

// priority is the terms' priority string.
func (m *meeting) priority(groups []group) string {
	p := gnutls13
	if m.suite.name != "" {
		p += ":-CIPHER-ALL:+" + m.suite.gnutls
	}
	if m.group.id != 0 {
		p += ":-GROUP-ALL:" + names(groups, func(g group) string { return "+" + g.gnutls }, ":")
	}
	return p
}

var gnutlsClient = &peer{
	name: "gnutls-cli", programs: []string{"gnutls-cli"}, version: gnutlsVersion, lacks: gnutlsLacks,
	client: func(m *meeting, s *served) {
		args := []string{"--single-key-share"}
		if m.own() != nil {
			args = append(args, "--x509certfile", m.own().CertFile, "--x509keyfile", m.own().KeyFile)
		}
		switch m.special {
		case alpn:
			args = append(args, "--alpn", protocol)
		case theirUpdate:
			args = append(args, "--inline-commands")
		case theirLimit:
			args = append(args, "--recordsize", fmt.Sprint(sizeLimit))
		}
		if m.special.resumes() {
			args = append(args, "--resume", "--waitresumption")
		}
		if m.special.isEarly() {
			args = append(args, "--earlydata", m.file(m.earlyLine()+"\n"))
		}
		p := s.gnutlsCLI(m.authority, m.priority(m.clientGroups()), args...)
		p.WaitFor("Handshake was completed")
		if m.special.resumes() {
			p.WaitFor("This is a resumed session")
		}
		if m.special == early {
			p.WaitFor(m.earlyLine()) // echoed
		}
		if m.special == theirUpdate {
			p.Say("^rekey^")
			p.WaitFor("Rekey was completed")
		}
		m.echoed(p, m.line()[:min(len(m.line()), sizeLimit-2)]) // it forgets what one record doesn't hold
	},
}

var gnutlsServer = &peer{
	name: "gnutls-serv", programs: []string{"gnutls-serv"}, version: gnutlsVersion,
	lacks: func(t *testing.T, m terms) string {
		if m.special == theirUpdate {
			return "gnutls-serv has no option or command for it."
		}
		return gnutlsLacks(t, m)
	},
	server: func(m *meeting) (addr string, talk func(*tlstest.Conn)) {
		args := echoServer(m.leaf(), m.priority([]group{m.group}))
		if m.own() != nil {
			args = append(args, "--x509cafile", m.authority.File, "--require-client-cert", "--verify-client-cert")
		} else {
			args = append(args, "-a")
		}
		switch m.special {
		case alpn:
			args = append(args, "--alpn", protocol)
		case theirLimit:
			args = append(args, "--recordsize", fmt.Sprint(sizeLimit))
		case early, earlyRetry:
			args = append(args, "--earlydata", "--maxearlydata", fmt.Sprint(maxEarly))
		}
		_, addr = outside.GnuTLSServer(m.T, args...)
		return addr, m.echoes(same)
	},
}

func gnutlsVersion(t *testing.T) string {
	line, _, _ := strings.Cut(outside.Run(t, "gnutls-cli", "--version"), "\n")
	return strings.Replace(strings.TrimSpace(line), "gnutls-cli", "GnuTLS", 1)
}

func gnutlsLacks(t *testing.T, m terms) string {
	switch {
	case m.group == hybrid && !strings.Contains(outside.Run(t, "gnutls-cli", "--list"), hybrid.gnutls):
		return "This GnuTLS has no X25519MLKEM768."
	case m.special == earlyRetry:
		return "GnuTLS fails here with OpenSSL 3.0 as its peer too: its server tries to open early data that it has refused, its client falls silent after the HelloRetryRequest."
	}
	return ""
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

func TestGnuTLSNoClientCertificate(t *testing.T) {
	authority := outside.NewAuthority(t)
	leaf := authority.Issue(t, outside.P256, nil)
	_, addr := outside.GnuTLSServer(t, echoServer(leaf, gnutls13, "--x509cafile", authority.File, "--require-client-cert")...)
	c := mustDial(t, addr, clientConfig(authority)) // complete before the server has judged
	_, err := io.ReadAll(c)
	var alert *tls13.AlertError
	if !errors.As(err, &alert) || alert.Alert != tls13.AlertCertificateRequired {
		t.Errorf("Read: %v, want the alert certificate_required", err)
	}
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
	for _, suite := range suites {
		priority := gnutls13 + ":-CIPHER-ALL:+" + suite.gnutls
		t.Run("server/"+suite.name, func(t *testing.T) {
			_, addr := outside.GnuTLSServer(t, echoServer(leaf, priority, "-a", "--recordsize", "1000")...)
			c := mustDial(t, addr, clientConfig(authority))
			for i := range 100 {
				line := fmt.Sprintf("%0999d", i)
				mustAnswer(t, c, line, line)
			}
			mustEndCleanly(t, c)
		})
		t.Run("client/"+suite.name, func(t *testing.T) {
			s := serve(t, serverConfig(leaf), tlstest.Behaviour{})
			p := s.gnutlsCLI(authority, priority, "--logfile", filepath.Join(t.TempDir(), "log"))
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

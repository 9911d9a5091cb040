package tlstest_test

import (
	"strings"
	"testing"

	"github.com/go-tcpls/tcpls/internal/tlstest"
	"github.com/go-tcpls/tcpls/internal/tlstest/outside"
)

// curl fetches our page, with the certificate verified.
func (s *served) curl(a *outside.Authority, more ...string) *outside.Process {
	s.t.Helper()
	return outside.Start(s.t, "curl", append([]string{
		"--silent", "--show-error", "--noproxy", "*", "--cacert", a.File,
		"--resolve", "localhost:" + s.port + ":127.0.0.1", "https://localhost:" + s.port + "/",
	}, more...)...)
}

var curlClient = &peer{
	name: "curl", programs: []string{"curl"},
	version: func(t *testing.T) string {
		words := strings.Fields(outside.Run(t, "curl", "--version"))
		return strings.Join(words[:2], " ")
	},
	lacks: func(t *testing.T, m terms) string {
		switch {
		case m.group == hybrid && !atLeast(outside.Run(t, "curl", "--version"), " OpenSSL/", 3, 5):
			return "The OpenSSL below curl has X25519MLKEM768 since version 3.5."
		case m.special.isEarly():
			return "curl has no option for early data before version 8.11; later ones weren't tried."
		case m.special == theirUpdate:
			return "curl doesn't update its keys by itself."
		case m.special == ourLimit || m.special == theirLimit:
			return "OpenSSL has no record_size_limit."
		}
		return ""
	},
	client: func(m *meeting, s *served) {
		args := []string{"--http1.1"}
		if m.suite.name != "" {
			args = append(args, "--tls13-ciphers", m.suite.name)
		}
		if m.group.id != 0 {
			args = append(args, "--curves", names(m.clientGroups(), opensslName, ":"))
		}
		if m.own() != nil {
			args = append(args, "--cert", m.own().CertFile, "--key", m.own().KeyFile)
		}
		if m.special.resumes() {
			args = append(args, "https://localhost:"+s.port+"/again")
		}
		out, err := s.curl(m.authority, args...).Finish()
		if err != nil {
			m.Error(err)
		}
		mustContain(m.T, "page", out, m.facts(m.special.resumes())...)
	},
}

func TestCurlRefuses(t *testing.T) {
	outside.Need(t, "curl")
	authority := outside.NewAuthority(t)
	s := serve(t, serverConfig(authority.Issue(t, outside.P256, outside.Expired)), tlstest.Behaviour{})
	out, err := s.curl(authority).Finish()
	if err == nil {
		t.Error("curl takes an expired certificate")
	}
	mustContain(t, "curl", out, "certificate has expired")
	s.said("handshake: failed", "certificate_expired")
}

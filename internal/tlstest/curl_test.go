package tlstest_test

import (
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

func TestCurl(t *testing.T) {
	outside.Need(t, "curl")
	clientMatrix(t, func(s *served, a *outside.Authority, suite commonSuite, group commonGroup) {
		out, err := s.curl(a, "--tls13-ciphers", suite.id, "--curves", group.openssl).Finish()
		if err != nil {
			s.t.Error(err)
		}
		mustContain(s.t, "page", out, suite.id, group.id.String(), "name=localhost")
		s.said("closed")
	})
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

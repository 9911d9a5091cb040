package tlstest_test

import (
	"crypto/tls"
	"fmt"
	"testing"

	"github.com/go-tcpls/tcpls/internal/tlstest"
	"github.com/go-tcpls/tcpls/internal/tlstest/outside"
)

// What OpenSSL 3.0, GnuTLS 3.7 and we have in common, and their names for it.
type (
	commonSuite struct{ id, gnutls string }
	commonGroup struct {
		id              tls.CurveID
		openssl, gnutls string
	}
)

var (
	commonSuites = []commonSuite{
		{"TLS_AES_128_GCM_SHA256", "+AES-128-GCM"},
		{"TLS_AES_256_GCM_SHA384", "+AES-256-GCM"},
		{"TLS_CHACHA20_POLY1305_SHA256", "+CHACHA20-POLY1305"},
	}
	commonGroups = []commonGroup{
		{tls.X25519, "X25519", "+GROUP-X25519"},
		{tls.CurveP256, "P-256", "+GROUP-SECP256R1"},
		{tls.CurveP384, "P-384", "+GROUP-SECP384R1"},
		{tls.CurveP521, "P-521", "+GROUP-SECP521R1"},
	}
)

// echoed is the line of those who echo.
const echoed = "a line there and back"

// serverMatrix has our client meet a program's server with every certificate,
// suite and group. start runs the server, which answers the line say.
func serverMatrix(t *testing.T, say, answer string, start func(t *testing.T, leaf *outside.Leaf, suite commonSuite) (addr string)) {
	authority := outside.NewAuthority(t)
	for _, kind := range outside.Kinds {
		leaf := authority.Issue(t, kind, nil)
		for _, suite := range commonSuites {
			t.Run(kind+"/"+suite.id, func(t *testing.T) {
				addr := start(t, leaf, suite)
				for _, group := range commonGroups {
					cfg := clientConfig(authority)
					cfg.CurvePreferences = []tls.CurveID{group.id}
					c := mustDial(t, addr, cfg)
					mustContain(t, "handshake", tlstest.Facts(c), suite.id, group.id.String())
					mustAnswer(t, c, say, answer)
					mustEndCleanly(t, c)
				}
			})
		}
	}
}

// clientMatrix has a program's client meet our server with every certificate,
// suite and group. run runs the client to its end.
func clientMatrix(t *testing.T, run func(s *served, a *outside.Authority, suite commonSuite, group commonGroup)) {
	authority := outside.NewAuthority(t)
	for _, kind := range outside.Kinds {
		s := serve(t, serverConfig(authority.Issue(t, kind, nil)), tlstest.Behaviour{})
		for _, suite := range commonSuites {
			for _, group := range commonGroups {
				t.Run(fmt.Sprint(kind, "/", suite.id, "/", group.id), func(t *testing.T) {
					run(&served{t: t, addr: s.addr, port: s.port, lines: s.lines}, authority, suite, group)
				})
			}
		}
	}
}

// echoes says a line to our server by a client that is connected, wants it
// back, and ends the client.
func (s *served) echoes(p *outside.Process, suite commonSuite, group commonGroup) {
	s.t.Helper()
	p.Say(echoed)
	p.WaitFor(echoed)
	if _, err := p.Finish(); err != nil {
		s.t.Error(err)
	}
	s.said(suite.id, group.id.String(), "name=localhost: closed")
}

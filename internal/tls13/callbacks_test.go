package tls13

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

var errTest = errors.New("the test says no")

// TestCallbackErrors sees to it that an error of the user's code ends the
// handshake, can be recognised, and tells the peer what it may.
func TestCallbackErrors(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(client, server *Config)
		server bool // whose error it is
		alert  Alert
	}{
		{"GetCertificate", func(_, s *Config) {
			s.TLS.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, errTest }
		}, true, AlertInternalError},
		{"GetConfigForClient", func(_, s *Config) {
			s.TLS.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, errTest }
		}, true, AlertInternalError},
		{"GetClientCertificate", func(c, s *Config) {
			s.TLS.ClientAuth = tls.RequestClientCert
			c.TLS.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return nil, errTest }
		}, false, AlertInternalError},
		{"client's VerifyPeerCertificate", func(c, _ *Config) {
			c.TLS.VerifyPeerCertificate = func([][]byte, [][]*x509.Certificate) error { return errTest }
		}, false, AlertBadCertificate},
		{"server's VerifyPeerCertificate", func(_, s *Config) {
			s.TLS.ClientAuth = tls.RequestClientCert
			s.TLS.VerifyPeerCertificate = func([][]byte, [][]*x509.Certificate) error { return errTest }
		}, true, AlertBadCertificate},
		{"client's VerifyConnection", func(c, _ *Config) {
			c.TLS.VerifyConnection = func(tls.ConnectionState) error { return errTest }
		}, false, AlertBadCertificate},
		{"server's VerifyConnection", func(_, s *Config) {
			s.TLS.VerifyConnection = func(tls.ConnectionState) error { return errTest }
		}, true, AlertBadCertificate},
		{"GetConfigForClient with an alert", func(_, s *Config) {
			s.TLS.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
				return nil, fmt.Errorf("%w, and %w", errTest, &Error{Alert: AlertAccessDenied})
			}
		}, true, AlertAccessDenied},
		{"VerifyConnection with an alert", func(c, _ *Config) {
			c.TLS.VerifyConnection = func(tls.ConnectionState) error {
				return fmt.Errorf("%w, and %w", errTest, &Error{Alert: AlertCertificateUnknown})
			}
		}, false, AlertCertificateUnknown},
		{"KeyLogWriter", func(_, s *Config) { s.TLS.KeyLogWriter = failingWriter{} }, true, AlertInternalError},
		{"Answer", func(_, s *Config) { s.Answer = func([]byte) ([]byte, error) { return nil, errTest } }, true, AlertIllegalParameter},
		{"Answer with an alert", func(_, s *Config) {
			s.Answer = func([]byte) ([]byte, error) { return nil, &Error{Alert: AlertAccessDenied, cause: errTest} }
		}, true, AlertAccessDenied},
		{"Accept", func(c, _ *Config) { c.Accept = func([]byte) error { return errTest } }, false, AlertIllegalParameter},
	} {
		t.Run(test.name, func(t *testing.T) {
			client := withExtension(&Config{TLS: clientTLS()}, true)
			server := withExtension(&Config{TLS: serverTLS()}, true)
			test.change(client, server)
			c, s := newTestPair(t, client, server)
			err, other := shake(c, s)
			if test.server {
				err, other = other, err
			}
			if a, ok := alertOf(err); !ok || a != test.alert || !errors.Is(err, errTest) {
				t.Errorf("own error %v, want %v and the cause", err, test.alert)
			}
			if theirs, ok := other.(*AlertError); !ok || theirs.Alert != test.alert {
				t.Errorf("peer's error %v", other)
			}
		})
	}
}

// TestConfigForClient: what GetConfigForClient chooses is checked as the
// configuration itself is, and a limit to TLS 1.2 is one that a client hears of.
func TestConfigForClient(t *testing.T) {
	for _, test := range []struct {
		name   string
		chosen *tls.Config
		want   Alert
	}{
		{"TLS 1.2 at most", &tls.Config{MaxVersion: tls.VersionTLS12}, AlertProtocolVersion},
		{"unknown ClientAuth", &tls.Config{ClientAuth: 17}, AlertInternalError},
	} {
		server := serverTLS()
		server.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return test.chosen, nil }
		clientErr, err := shake(newTestPair(t, &Config{TLS: clientTLS()}, &Config{TLS: server}))
		if a, ok := alertOf(err); !ok || a != test.want {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
		if got := errors.Is(clientErr, ErrVersion); got != (test.want == AlertProtocolVersion) {
			t.Errorf("%s: client's error %v matches ErrVersion: %v", test.name, clientErr, got)
		}
	}
}

// TestEmptyServerCertificate: a key without a certificate is nothing to send,
// and the fault is the server's own.
func TestEmptyServerCertificate(t *testing.T) {
	server := serverTLS()
	server.Certificates = []tls.Certificate{{PrivateKey: testKeys()["P-256"]}}
	clientErr, err := shake(newTestPair(t, &Config{TLS: clientTLS()}, &Config{TLS: server}))
	if a, ok := alertOf(err); !ok || a != AlertInternalError {
		t.Errorf("server: %v", err)
	}
	if theirs, ok := clientErr.(*AlertError); !ok || theirs.Alert != AlertInternalError {
		t.Errorf("client: %v", clientErr)
	}
}

// TestNoClientCertificate: tls.Config wants a certificate or an error, be it an
// empty one.
func TestNoClientCertificate(t *testing.T) {
	client, server := clientTLS(), serverTLS()
	server.ClientAuth = tls.RequestClientCert
	client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return nil, nil }
	err, _ := shake(newTestPair(t, &Config{TLS: client}, &Config{TLS: server}))
	if a, ok := alertOf(err); !ok || a != AlertInternalError {
		t.Errorf("neither certificate nor error: %v", err)
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errTest }

// TestCallbacksSee checks what callbacks get to see.
func TestCallbacksSee(t *testing.T) {
	client, server := clientTLS(), serverTLS()
	client.NextProtos = []string{"a"}
	server.ClientAuth, server.ClientCAs = tls.RequireAndVerifyClientCert, authority().pool
	cert := testCertificates()["P-384"]
	seen := map[string]bool{}
	a, _ := loopback(t)
	check := func(info *tls.ClientHelloInfo) {
		if info.ServerName != testName || info.SupportedProtos[0] != "a" || info.Conn != a ||
			!slices.Contains(info.SupportedVersions, tls.VersionTLS13) || !slices.Contains(info.Extensions, extKeyShare) {
			t.Errorf("ClientHelloInfo %+v", info)
		}
	}
	chosen := serverTLS()
	chosen.ClientAuth, chosen.ClientCAs = server.ClientAuth, server.ClientCAs
	chosen.GetCertificate = func(info *tls.ClientHelloInfo) (*tls.Certificate, error) {
		seen["GetCertificate"] = true
		check(info)
		return &cert, info.SupportsCertificate(&cert)
	}
	server.GetConfigForClient = func(info *tls.ClientHelloInfo) (*tls.Config, error) {
		seen["GetConfigForClient"] = true
		check(info)
		return chosen, nil
	}
	client.GetClientCertificate = func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		seen["GetClientCertificate"] = true
		if len(info.AcceptableCAs) != 1 || !bytes.Equal(info.AcceptableCAs[0], authority().cert.RawSubject) {
			t.Errorf("acceptable CAs %x", info.AcceptableCAs)
		}
		return &cert, info.SupportsCertificate(&cert)
	}
	verify := func(who string) func(tls.ConnectionState) error {
		return func(s tls.ConnectionState) error {
			seen[who] = true
			if s.HandshakeComplete || len(s.PeerCertificates) != 1 || len(s.VerifiedChains) != 1 || s.CipherSuite == 0 {
				t.Errorf("%s: state %+v", who, s)
			}
			return nil
		}
	}
	client.VerifyConnection, chosen.VerifyConnection = verify("client's"), verify("server's")
	c, s := newTestPair(t, &Config{TLS: client}, &Config{TLS: server, NetConn: a})
	mustShake(t, c, s)
	if len(seen) != 5 {
		t.Errorf("called: %v", seen)
	}
}

// TestServerCertificates follows the order that tls.Config documents.
func TestServerCertificates(t *testing.T) {
	named := func(kind string, names ...string) tls.Certificate {
		cert := authority().issue(testKeys()[kind], func(c *x509.Certificate) { c.DNSNames = names })
		cert.Leaf = must(x509.ParseCertificate(cert.Certificate[0]))
		return cert
	}
	one, two, wild := named("P-256", "one.example"), named("Ed25519", "two.example"), named("P-521", "*.wild.example")
	list := []tls.Certificate{one, two, wild}
	byName := map[string]*tls.Certificate{"mapped.example": &two, "*.mapped.example": &wild}
	get := func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &wild, nil }
	for _, test := range []struct {
		name  string
		tls   *tls.Config
		sni   string
		certs []tls.SignatureScheme
		want  *tls.Certificate
	}{
		{"only one", &tls.Config{Certificates: list[:1]}, "other.example", nil, &one},
		{"by name", &tls.Config{Certificates: list}, "two.example", nil, &two},
		{"by wildcard", &tls.Config{Certificates: list}, "a.wild.example", nil, &wild},
		{"no name fits", &tls.Config{Certificates: list}, "other.example", nil, &one},
		{"no name asked for", &tls.Config{Certificates: list}, "", nil, &one},
		//lint:ignore SA1019 deprecated, and still honoured
		{"NameToCertificate", &tls.Config{Certificates: list, NameToCertificate: byName}, "Mapped.example", nil, &two},
		//lint:ignore SA1019 deprecated, and still honoured
		{"NameToCertificate, wildcard", &tls.Config{Certificates: list, NameToCertificate: byName}, "a.mapped.example", nil, &wild},
		{"GetCertificate with a name", &tls.Config{Certificates: list, GetCertificate: get}, "one.example", nil, &wild},
		{"GetCertificate without a name", &tls.Config{Certificates: list, GetCertificate: get}, "", nil, &one},
		{"GetCertificate alone", &tls.Config{GetCertificate: get}, "", nil, &wild},
		{"signature_algorithms_cert fits none", &tls.Config{Certificates: list}, "two.example", []tls.SignatureScheme{tls.PSSWithSHA256}, &two},
	} {
		info := &tls.ClientHelloInfo{ServerName: test.sni, SignatureSchemes: schemesOffered, SupportedVersions: []uint16{tls.VersionTLS13}}
		got, err := serverCertificate(test.tls, info, test.certs)
		if err != nil || !bytes.Equal(got.Certificate[0], test.want.Certificate[0]) {
			t.Errorf("%s: wrong certificate, %v", test.name, err)
		}
	}
	_, err := serverCertificate(&tls.Config{}, &tls.ClientHelloInfo{}, nil)
	if a, _ := alertOf(err); a != AlertUnrecognizedName {
		t.Errorf("no certificate at all: %v", err)
	}
	// The chain's signature decides where the client restricts it.
	signed := two
	leaf := *two.Leaf
	leaf.SignatureAlgorithm = x509.PureEd25519
	signed.Leaf = &leaf
	info := &tls.ClientHelloInfo{SignatureSchemes: schemesOffered, SupportedVersions: []uint16{tls.VersionTLS13}}
	got, err := serverCertificate(&tls.Config{Certificates: []tls.Certificate{one, signed}}, info, []tls.SignatureScheme{tls.Ed25519})
	if err != nil || got.Leaf != &leaf {
		t.Errorf("signature_algorithms_cert is not heeded: %v", err)
	}
}

// TestCertificateErrors are read by people, who want to know what is wrong.
func TestCertificateErrors(t *testing.T) {
	for _, test := range []struct {
		change func(client *tls.Config)
		want   string
		alert  Alert
	}{
		{func(c *tls.Config) { c.ServerName = "other.example" }, "not other.example", AlertBadCertificate},
		{func(c *tls.Config) { c.RootCAs = x509.NewCertPool() }, "unknown authority", AlertUnknownCA},
		{func(c *tls.Config) { c.Time = func() time.Time { return testStart.AddDate(20, 0, 0) } }, "expired", AlertCertificateExpired},
	} {
		client := clientTLS()
		test.change(client)
		c, s := newTestPair(t, &Config{TLS: client}, &Config{TLS: serverTLS()})
		err, _ := shake(c, s)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v, want %q", err, test.want)
		}
		if a, _ := alertOf(err); a != test.alert {
			t.Errorf("%v, want the alert %v", err, test.alert)
		}
		var failed *tls.CertificateVerificationError
		if !errors.As(err, &failed) || len(failed.UnverifiedCertificates) != 1 {
			t.Errorf("%v has no certificate", err)
		}
	}
	client := clientTLS()
	client.RootCAs, client.InsecureSkipVerify = nil, true
	c, s := newTestPair(t, &Config{TLS: client}, &Config{TLS: serverTLS()})
	mustShake(t, c, s)
}

// failingSigner is a key whose hardware is out of order.
type failingSigner struct{ crypto.Signer }

func (failingSigner) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) { return nil, errTest }

func TestSignerFails(t *testing.T) {
	cert := testCertificates()["P-256"]
	cert.PrivateKey = failingSigner{cert.PrivateKey.(crypto.Signer)}
	client, server := clientTLS(), serverTLS()
	server.Certificates = []tls.Certificate{cert}
	_, err := shake(newTestPair(t, &Config{TLS: client}, &Config{TLS: server}))
	if a, _ := alertOf(err); a != AlertInternalError || !errors.Is(err, errTest) {
		t.Errorf("server: %v", err)
	}
	client, server = clientTLS(), serverTLS()
	client.Certificates = []tls.Certificate{cert}
	server.ClientAuth = tls.RequireAnyClientCert
	err, _ = shake(newTestPair(t, &Config{TLS: client}, &Config{TLS: server}))
	if a, _ := alertOf(err); a != AlertInternalError || !errors.Is(err, errTest) {
		t.Errorf("client: %v", err)
	}
}

// TestServerNames are what a client puts into server_name.
func TestServerNames(t *testing.T) {
	for name, want := range map[string]string{
		"a.example": "a.example", "a.example.": "a.example", "192.0.2.1": "", "2001:db8::1": "", "[2001:db8::1]": "", "fe80::1%eth0": "", "": "",
	} {
		if got := sniName(name); got != want {
			t.Errorf("%q: server_name %q, want %q", name, got, want)
		}
	}
}

// TestExtensionWithGo offers our extension to a server that ignores it, and
// answers a client that doesn't offer it.
func TestExtensionWithGo(t *testing.T) {
	c := mustClient(t, withExtension(&Config{TLS: clientTLS()}, true))
	theirs, err := overGo(t, c, func(n net.Conn) *tls.Conn { return tls.Server(n, serverTLS()) })
	mustAgree(t, err, c, theirs)
	s := mustServer(t, withExtension(&Config{TLS: serverTLS()}, true))
	theirs, err = overGo(t, s, func(n net.Conn) *tls.Conn { return tls.Client(n, clientTLS()) })
	mustAgree(t, err, s, theirs)
	if c.ExtensionAnswered() || s.ExtensionAnswered() {
		t.Error("extension answered by nobody")
	}
}

// TestAnswerNothing lets a server that could answer keep silent.
func TestAnswerNothing(t *testing.T) {
	client, server := withExtension(&Config{TLS: clientTLS()}, true), withExtension(&Config{TLS: serverTLS()}, true)
	server.Answer = func([]byte) ([]byte, error) { return nil, nil }
	c, s := newTestPair(t, client, server)
	mustShake(t, c, s)
	if c.ExtensionAnswered() || s.ExtensionAnswered() {
		t.Error("extension answered with nothing")
	}
	server.Answer = func([]byte) ([]byte, error) { return []byte{}, nil }
	c, s = newTestPair(t, client, server)
	mustShake(t, c, s)
	if !c.ExtensionAnswered() || !s.ExtensionAnswered() {
		t.Error("an empty answer is none")
	}
}

// TestServerNameDemanded: a server whose certificates are chosen by name may
// have none without one.
func TestServerNameDemanded(t *testing.T) {
	none := func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil }
	for _, test := range []struct {
		name   string
		choose func(*tls.ClientHelloInfo) (*tls.Certificate, error)
		alert  Alert
	}{
		{"", none, AlertMissingExtension},
		{"other.example", none, AlertUnrecognizedName},
		{"", nil, AlertUnrecognizedName},
	} {
		p := newPuppetClient(t, &Config{TLS: &tls.Config{Time: testNow, GetCertificate: test.choose}})
		p.hello.extensions = dropExtension(p.hello.extensions, extServerName)
		if test.name != "" {
			p.hello.extensions = append(p.hello.extensions, extension{extServerName, serverNameBody(test.name)})
		}
		p.clientHello()
		p.wantAlert(test.alert, false)
	}
}

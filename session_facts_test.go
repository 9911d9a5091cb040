package tcpls

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"runtime"
	"strings"
	"testing"

	"github.com/go-tcpls/tcpls/internal/memnet"
)

// What Config.TLS asks of the handshake holds for sessions, and both ends tell
// the same of it.
func TestHandshakeFacts(t *testing.T) {
	cert, pool := testCertificate()
	var keys bytes.Buffer
	p := newMemPair(t, memnet.Link{}, func(client, server *Config) {
		client.TLS.CurvePreferences = []tls.CurveID{tls.X25519, tls.CurveP256}
		server.TLS.CurvePreferences = []tls.CurveID{tls.CurveP256} // forces a HelloRetryRequest
		client.TLS.NextProtos, server.TLS.NextProtos = []string{"a", "b"}, []string{"b"}
		client.TLS.Certificates = []tls.Certificate{cert}
		client.TLS.KeyLogWriter = &keys
		asked := server.TLS.Clone()
		asked.ClientAuth, asked.ClientCAs = tls.RequireAnyClientCert, pool
		server.TLS.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return asked, nil }
	})
	for name, s := range map[string]*Session{"client": p.client, "server": p.server} {
		state := s.ConnectionState()
		if !state.TCPLS || state.Fallback != "" {
			t.Errorf("%s: TCPLS %v, Fallback %q", name, state.TCPLS, state.Fallback)
		}
		if facts := state.TLS; !facts.HelloRetryRequest || facts.CurveID != tls.CurveP256 || facts.NegotiatedProtocol != "b" ||
			facts.ServerName != "localhost" || len(facts.PeerCertificates) != 1 || !facts.PeerCertificates[0].Equal(cert.Leaf) {
			t.Errorf("%s: retried %v, %v, ALPN %q, name %q, %d certificates", name, facts.HelloRetryRequest, facts.CurveID,
				facts.NegotiatedProtocol, facts.ServerName, len(facts.PeerCertificates))
		}
	}
	for _, label := range []string{"CLIENT_TRAFFIC_SECRET_0 ", "SERVER_TRAFFIC_SECRET_0 ", "EXPORTER_SECRET "} {
		if strings.Count(keys.String(), label) != 1 {
			t.Errorf("the key log hasn't one %s", label)
		}
	}
	c, s := p.open(t)
	if c.ConnectionState().NegotiatedProtocol != "b" || c.Session() != p.client || s.Session() != p.server {
		t.Error("a stream tells other facts than its session")
	}
	if c.LocalAddr().String() != s.RemoteAddr().String() || c.RemoteAddr().String() != s.LocalAddr().String() ||
		p.client.LocalAddr().String() != c.LocalAddr().String() {
		t.Errorf("addresses %v to %v, and %v to %v", c.LocalAddr(), c.RemoteAddr(), s.LocalAddr(), s.RemoteAddr())
	}
}

// Both ends derive the same secret, over TCPLS and over plain TLS, and another
// one for another label or context.
func TestExportKeyingMaterial(t *testing.T) {
	p := newMemPair(t, memnet.Link{}, nil)
	client, server := newTestConfigs()
	l, err := Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := tls.Dial("tcp", l.Addr().String(), client.TLS)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	plain, err := l.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	state := conn.ConnectionState()
	type exporter func(label string, context []byte, length int) ([]byte, error)
	for name, ends := range map[string][2]exporter{
		"TCPLS":     {p.client.ExportKeyingMaterial, p.server.ExportKeyingMaterial},
		"plain TLS": {state.ExportKeyingMaterial, plain.ExportKeyingMaterial},
	} {
		export := func(e exporter, label, context string) []byte {
			b, err := e(label, []byte(context), 40)
			if err != nil || len(b) != 40 {
				t.Fatalf("%s: %d bytes, %v", name, len(b), err)
			}
			return b
		}
		a := export(ends[0], "EXPERIMENTAL a", "x")
		if !bytes.Equal(a, export(ends[1], "EXPERIMENTAL a", "x")) {
			t.Errorf("%s: the ends export different secrets", name)
		}
		if bytes.Equal(a, export(ends[1], "EXPERIMENTAL b", "x")) || bytes.Equal(a, export(ends[1], "EXPERIMENTAL a", "y")) {
			t.Errorf("%s: another label or context gives the same secret", name)
		}
	}
}

// A congestion control that can't be had is refused by both ends, clearly.
func TestCongestionIsRefused(t *testing.T) {
	client, server := newTestConfigs()
	client.Congestion = "no-such-control"
	l, err := Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = Dial(context.Background(), "tcp", l.Addr().String(), client)
	if err == nil || !strings.Contains(err.Error(), `Config.Congestion "no-such-control"`) {
		t.Errorf("Dial: %v, want it to name Config.Congestion", err)
	}
	if runtime.GOOS != "linux" {
		wantErrorIs(t, "Dial", err, errors.ErrUnsupported)
	}
	near, far := net.Pipe()
	defer near.Close()
	server.Congestion = "cubic"
	_, err = Server(context.Background(), far, server)
	wantErrorIs(t, "Server over what isn't a socket", err, errors.ErrUnsupported)
}

// A Listen that fails leaves its port free.
func TestListenWithoutCertificate(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	free.Close()
	if _, err := Listen("tcp", address, &Config{TLS: &tls.Config{}}); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Fatalf("Listen: %v, want it to name the certificate", err)
	}
	again, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatalf("the port after a Listen that failed: %v", err)
	}
	again.Close()
}

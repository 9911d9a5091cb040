package tls13

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/go-tcpls/tcpls/internal/record"
)

// loopback returns the two ends of a TCP connection.
func loopback(t testing.TB) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// An outcome is what the crypto/tls end of a connection saw.
type outcome struct {
	state tls.ConnectionState
	err   error
}

const echoed = "one message, and an echo"

// overGo connects one end of ours with one of crypto/tls, lets the client
// send and the server echo, and returns both outcomes.
func overGo(t testing.TB, ours *Conn, peer func(net.Conn) *tls.Conn) (theirs outcome, err error) {
	t.Helper()
	a, b := loopback(t)
	ourNet, theirNet := a, b
	if !ours.isClient {
		ourNet, theirNet = b, a
	}
	done := make(chan outcome, 1)
	go func() {
		conn := peer(theirNet)
		err := goEnd(conn, ours.isClient)
		done <- outcome{conn.ConnectionState(), err}
		conn.Close()
	}()
	err = ourEnd(&driver{Conn: ours, net: ourNet})
	ourNet.Close()
	return <-done, err
}

func goEnd(conn *tls.Conn, isServer bool) error {
	if err := conn.Handshake(); err != nil {
		return err
	}
	buf := make([]byte, len(echoed))
	if isServer {
		if _, err := io.ReadFull(conn, buf); err != nil {
			return err
		}
		_, err := conn.Write(buf)
		return err
	}
	if _, err := conn.Write([]byte(echoed)); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, buf)
	return err
}

func ourEnd(d *driver) error {
	if err := d.handshake(); err != nil {
		return err
	}
	if d.isClient {
		if err := d.write([]byte(echoed)); err != nil {
			return err
		}
		_, err := d.readN(len(echoed))
		return err
	}
	data, err := d.readN(len(echoed))
	if err != nil {
		return err
	}
	return d.write(data)
}

// mustAgree compares what both ends say of a connection.
func mustAgree(t testing.TB, err error, ours *Conn, theirs outcome) {
	t.Helper()
	if err != nil || theirs.err != nil {
		t.Fatalf("ours: %v; crypto/tls: %v", err, theirs.err)
	}
	a, b := ours.ConnectionState(), theirs.state
	if a.Version != b.Version || a.CipherSuite != b.CipherSuite || a.CurveID != b.CurveID ||
		a.NegotiatedProtocol != b.NegotiatedProtocol || a.ServerName != b.ServerName ||
		a.HelloRetryRequest != b.HelloRetryRequest {
		t.Errorf("states differ:\n ours   %+v\n theirs %+v", a, b)
	}
	mine, err1 := ours.ExportKeyingMaterial("EXPERIMENTAL label", []byte("context"), 77)
	other, err2 := b.ExportKeyingMaterial("EXPERIMENTAL label", []byte("context"), 77)
	if err1 != nil || err2 != nil || !bytes.Equal(mine, other) {
		t.Errorf("exported keying material differs (%v, %v)", err1, err2)
	}
}

func mustClient(t testing.TB, cfg *Config) *Conn {
	t.Helper()
	c, err := NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mustServer(t testing.TB, cfg *Config) *Conn {
	t.Helper()
	c, err := NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// bothWays runs a pair of configurations in the three arrangements: both ends
// ours, and each end in turn crypto/tls.
func bothWays(t *testing.T, client, server *tls.Config, check func(t *testing.T, c *Conn)) {
	t.Run("ours", func(t *testing.T) {
		c, s := newTestPair(t, &Config{TLS: client}, &Config{TLS: server})
		mustShake(t, c, s)
		exchange(t, c, s, []byte(echoed))
		exchange(t, s, c, []byte(echoed))
		check(t, c)
		check(t, s)
	})
	t.Run("Go server", func(t *testing.T) {
		c := mustClient(t, &Config{TLS: client})
		theirs, err := overGo(t, c, func(n net.Conn) *tls.Conn { return tls.Server(n, server) })
		mustAgree(t, err, c, theirs)
		check(t, c)
	})
	t.Run("Go client", func(t *testing.T) {
		s := mustServer(t, &Config{TLS: server})
		theirs, err := overGo(t, s, func(n net.Conn) *tls.Conn { return tls.Client(n, client) })
		mustAgree(t, err, s, theirs)
		check(t, s)
	})
}

func TestGroupsAndCertificates(t *testing.T) {
	for _, g := range groups {
		for kind, cert := range testCertificates() {
			t.Run(fmt.Sprint(g.id, "/", kind), func(t *testing.T) {
				client, server := clientTLS(), serverTLS()
				client.CurvePreferences = []tls.CurveID{g.id}
				server.Certificates = []tls.Certificate{cert}
				bothWays(t, client, server, func(t *testing.T, c *Conn) {
					if c.Group() != g.id {
						t.Errorf("group %v, want %v", c.Group(), g.id)
					}
					want := tls.SignatureScheme(0)
					if c.isClient {
						want = signedWith[kind]
					}
					if got := c.PeerSignature(); got != want {
						t.Errorf("peer signed with %v, want %v", got, want)
					}
				})
			})
		}
	}
}

// signedWith is what a peer with each kind of certificate signs with.
var signedWith = map[string]tls.SignatureScheme{
	"P-256": tls.ECDSAWithP256AndSHA256, "P-384": tls.ECDSAWithP384AndSHA384, "P-521": tls.ECDSAWithP521AndSHA512,
	"Ed25519": tls.Ed25519, "RSA-2048": tls.PSSWithSHA256,
}

// withSuite makes id the only suite of ours while the test runs.
func withSuite(t *testing.T, id uint16) {
	first, second := suitesAESFirst, suitesChaChaFirst
	suitesAESFirst, suitesChaChaFirst = []uint16{id}, []uint16{id}
	t.Cleanup(func() { suitesAESFirst, suitesChaChaFirst = first, second })
}

func TestSuites(t *testing.T) {
	for _, id := range suitesAESFirst {
		t.Run(tls.CipherSuiteName(id), func(t *testing.T) {
			withSuite(t, id)
			bothWays(t, clientTLS(), serverTLS(), func(t *testing.T, c *Conn) {
				if c.Suite() != record.SuiteByID(id) {
					t.Errorf("suite %v", c.Suite())
				}
			})
		})
	}
}

// TestOneChangeCipherSpec: each end sends one, whether there was a
// HelloRetryRequest or not (RFC 8446, D.4).
func TestOneChangeCipherSpec(t *testing.T) {
	for _, retried := range []bool{false, true} {
		server := serverTLS()
		if retried {
			server.CurvePreferences = []tls.CurveID{tls.CurveP384}
		}
		c, s := newTestPair(t, &Config{TLS: clientTLS()}, &Config{TLS: server})
		counts := map[*Conn]int{}
		for !c.HandshakeComplete() || !s.HandshakeComplete() {
			for from, to := range map[*Conn]*Conn{c: s, s: c} {
				out := from.Output()
				for _, rec := range splitRecords(out) {
					if record.Type(rec[0]) == record.ChangeCipherSpec {
						counts[from]++
					}
				}
				if _, err := to.Feed(out); err != nil {
					t.Fatal(err)
				}
			}
		}
		if c.ConnectionState().HelloRetryRequest != retried || counts[c] != 1 || counts[s] != 1 {
			t.Errorf("retried %v: client sends %d, server %d", retried, counts[c], counts[s])
		}
	}
}

func TestHelloRetryRequest(t *testing.T) {
	for _, id := range []tls.CurveID{tls.CurveP256, tls.CurveP384, tls.CurveP521, tls.SecP384r1MLKEM1024} {
		t.Run(id.String(), func(t *testing.T) {
			client, server := clientTLS(), serverTLS()
			client.CurvePreferences = []tls.CurveID{tls.X25519MLKEM768, tls.X25519, id}
			server.CurvePreferences = []tls.CurveID{id}
			bothWays(t, client, server, func(t *testing.T, c *Conn) {
				if !c.ConnectionState().HelloRetryRequest || c.Group() != id {
					t.Errorf("retried %v, group %v", c.ConnectionState().HelloRetryRequest, c.Group())
				}
			})
		})
	}
}

func TestClientAuth(t *testing.T) {
	stranger := tls.Certificate{}
	{
		key := testKeys()["P-384"]
		template := &x509.Certificate{SerialNumber: big.NewInt(3), NotBefore: testStart, NotAfter: testStart.AddDate(10, 0, 0)}
		der := must(x509.CreateCertificate(nil, template, template, key.Public(), key))
		stranger = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	}
	types := []tls.ClientAuthType{
		tls.NoClientCert, tls.RequestClientCert, tls.RequireAnyClientCert,
		tls.VerifyClientCertIfGiven, tls.RequireAndVerifyClientCert,
	}
	for _, auth := range types {
		for _, has := range []string{"none", "known", "stranger"} {
			t.Run(fmt.Sprint(auth, "/", has), func(t *testing.T) {
				client, server := clientTLS(), serverTLS()
				server.ClientAuth, server.ClientCAs = auth, authority().pool
				send := func(cert *tls.Certificate) {
					client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
				}
				var want Alert
				switch has {
				case "none":
					if auth == tls.RequireAnyClientCert || auth == tls.RequireAndVerifyClientCert {
						want = AlertCertificateRequired
					}
				case "known":
					cert := testCertificates()["Ed25519"]
					send(&cert)
				case "stranger":
					send(&stranger)
					if auth >= tls.VerifyClientCertIfGiven {
						want = AlertUnknownCA
					}
				}
				if want == 0 {
					bothWays(t, client, server, func(t *testing.T, c *Conn) {
						n := len(c.ConnectionState().PeerCertificates)
						if sent := has != "none" && auth != tls.NoClientCert; !c.isClient && (n == 1) != sent {
							t.Errorf("server has %d certificates of the client", n)
						}
					})
					return
				}
				mustRefuse(t, client, server, want)
			})
		}
	}
}

// mustRefuse expects our server to refuse a client with an alert, and both kinds
// of client to learn that.
func mustRefuse(t *testing.T, client, server *tls.Config, want Alert) {
	t.Helper()
	c, s := newTestPair(t, &Config{TLS: client}, &Config{TLS: server})
	clientErr, serverErr := shake(c, s)
	if a, ok := alertOf(serverErr); !ok || a != want {
		t.Errorf("our server: %v, want %v", serverErr, want)
	}
	if got, ok := clientErr.(*AlertError); !ok || got.Alert != want {
		t.Errorf("our client: %v, want the alert %v", clientErr, want)
	}
	s = mustServer(t, &Config{TLS: server})
	theirs, err := overGo(t, s, func(n net.Conn) *tls.Conn { return tls.Client(n, client) })
	if a, ok := alertOf(err); !ok || a != want {
		t.Errorf("our server: %v, want %v", err, want)
	}
	if theirs.err == nil {
		t.Error("crypto/tls client noticed nothing")
	}
}

func TestALPN(t *testing.T) {
	for _, test := range []struct {
		name           string
		client, server []string
		want           string
	}{
		{"server's order", []string{"a", "b"}, []string{"b", "a"}, "b"},
		{"client without", nil, []string{"b"}, ""},
		{"server without", []string{"a"}, nil, ""},
		{"h2 server and http/1.1 client", []string{"http/1.1"}, []string{"h2"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			client, server := clientTLS(), serverTLS()
			client.NextProtos, server.NextProtos = test.client, test.server
			bothWays(t, client, server, func(t *testing.T, c *Conn) {
				if got := c.ConnectionState().NegotiatedProtocol; got != test.want {
					t.Errorf("protocol %q, want %q", got, test.want)
				}
			})
		})
	}
	t.Run("none in common", func(t *testing.T) {
		client, server := clientTLS(), serverTLS()
		client.NextProtos, server.NextProtos = []string{"a"}, []string{"b"}
		mustRefuse(t, client, server, AlertNoApplicationProtocol)
	})
}

func TestStapleAndSCTs(t *testing.T) {
	client, server := clientTLS(), serverTLS()
	cert := testCertificates()["RSA-2048"]
	cert.OCSPStaple = []byte("not looked into by anyone")
	cert.SignedCertificateTimestamps = [][]byte{[]byte("first"), []byte("second")}
	server.Certificates = []tls.Certificate{cert}
	server.ClientAuth, server.ClientCAs = tls.RequireAndVerifyClientCert, authority().pool
	client.Certificates = server.Certificates
	bothWays(t, client, server, func(t *testing.T, c *Conn) {
		s := c.ConnectionState()
		if !bytes.Equal(s.OCSPResponse, cert.OCSPStaple) || len(s.SignedCertificateTimestamps) != 2 ||
			string(s.SignedCertificateTimestamps[1]) != "second" {
			t.Errorf("staple %q, SCTs %q", s.OCSPResponse, s.SignedCertificateTimestamps)
		}
		if len(s.VerifiedChains) != 1 {
			t.Errorf("%d chains", len(s.VerifiedChains))
		}
	})
}

// keyLogLines sorts a log, without the line that crypto/tls doesn't write.
func keyLogLines(log string) []string {
	lines := strings.Split(strings.TrimSpace(log), "\n")
	lines = slices.DeleteFunc(lines, func(l string) bool { return strings.HasPrefix(l, logExporter) })
	slices.Sort(lines)
	return lines
}

func TestKeyLog(t *testing.T) {
	for _, arrangement := range []string{"Go server", "Go client", "ours"} {
		t.Run(arrangement, func(t *testing.T) {
			var atClient, atServer bytes.Buffer
			client, server := clientTLS(), serverTLS()
			client.KeyLogWriter, server.KeyLogWriter = &atClient, &atServer
			switch arrangement {
			case "Go server":
				c := mustClient(t, &Config{TLS: client})
				theirs, err := overGo(t, c, func(n net.Conn) *tls.Conn { return tls.Server(n, server) })
				mustAgree(t, err, c, theirs)
			case "Go client":
				s := mustServer(t, &Config{TLS: server})
				theirs, err := overGo(t, s, func(n net.Conn) *tls.Conn { return tls.Client(n, client) })
				mustAgree(t, err, s, theirs)
			default:
				c, s := newTestPair(t, &Config{TLS: client}, &Config{TLS: server})
				mustShake(t, c, s)
				if atClient.String() != atServer.String() || !strings.Contains(atClient.String(), logExporter) {
					t.Error("our two ends log different secrets, or not the exporter's")
				}
			}
			a, b := keyLogLines(atClient.String()), keyLogLines(atServer.String())
			if len(a) != 4 || !slices.Equal(a, b) {
				t.Errorf("logs differ:\n%q\n%q", a, b)
			}
		})
	}
}

// TestKeyUpdateWithGo lets crypto/tls follow our updates and answer them.
func TestKeyUpdateWithGo(t *testing.T) {
	for _, isClient := range []bool{true, false} {
		t.Run(fmt.Sprint("client=", isClient), func(t *testing.T) {
			a, b := loopback(t)
			var ours *Conn
			var peer *tls.Conn
			if isClient {
				ours, peer = mustClient(t, &Config{TLS: clientTLS()}), tls.Server(b, serverTLS())
			} else {
				ours, peer = mustServer(t, &Config{TLS: serverTLS()}), tls.Client(b, clientTLS())
			}
			go func() { io.Copy(peer, peer); peer.Close() }()
			d := &driver{Conn: ours, net: a}
			if err := d.handshake(); err != nil {
				t.Fatal(err)
			}
			readKeys := d.Conn.read.Keys()
			for i := range 6 {
				if err := ours.UpdateKeys(i%2 == 0); err != nil {
					t.Fatal(err)
				}
				if err := d.write([]byte(echoed)); err != nil {
					t.Fatal(err)
				}
				if got, err := d.readN(len(echoed)); err != nil || string(got) != echoed {
					t.Fatalf("round %d: %q, %v", i, got, err)
				}
			}
			if d.Conn.read.Keys() == readKeys {
				t.Error("crypto/tls was asked for new keys and kept the old ones")
			}
			ours.CloseNotify()
			a.Write(ours.Output())
			if _, err := d.next(); err != io.EOF {
				t.Errorf("after close_notify both ways: %v, want io.EOF", err)
			}
		})
	}
}

package tcpls

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"
)

// testCertificate is a self-signed certificate for "localhost", and its pool.
var testCertificate = sync.OnceValues(func() (tls.Certificate, *x509.CertPool) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, pool
})

func newTestConfigs() (client, server *Config) {
	cert, pool := testCertificate()
	return &Config{TLS: &tls.Config{RootCAs: pool, ServerName: "localhost"}, ReconnectFor: -1, MaxPaths: 1},
		&Config{TLS: &tls.Config{Certificates: []tls.Certificate{cert}, SessionTicketsDisabled: true}, ReconnectFor: -1, MaxPaths: 1}
}

// newTCPPair returns both ends of a session over a loopback connection.
func newTCPPair(t testing.TB, client, server *Config) (c, s *Session) {
	t.Helper()
	l, err := Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	c, err = Dial(context.Background(), "tcp", l.Addr().String(), client)
	if err != nil {
		t.Fatal(err)
	}
	s, err = l.Accept(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	t.Cleanup(func() {
		var both sync.WaitGroup
		both.Go(func() { c.Close() })
		both.Go(func() { s.Close() })
		both.Wait()
	})
	return c, s
}

func TestEchoTCP(t *testing.T) {
	client, server := newTestConfigs()
	c, s := newTCPPair(t, client, server)
	if !c.ConnectionState().TCPLS || !s.ConnectionState().TCPLS {
		t.Fatal("session is plain TLS")
	}
	go func() {
		for {
			st, err := s.AcceptStream(context.Background())
			if err != nil {
				return
			}
			go func() {
				io.Copy(st, st)
				st.CloseWrite()
			}()
		}
	}()
	data := make([]byte, 3<<20)
	rand.Read(data)
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			st, err := c.OpenStream(context.Background())
			if err != nil {
				t.Error(err)
				return
			}
			go func() {
				if n, err := st.Write(data); err != nil {
					t.Errorf("Write = %d, %v", n, err)
				}
				st.CloseWrite()
			}()
			got, err := io.ReadAll(st)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("echo of %d bytes: got %d, equal %v, error %v", len(data), len(got), bytes.Equal(got, data), err)
			}
			st.Close()
		})
	}
	all.Wait()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

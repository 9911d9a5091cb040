package tls13

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/go-tcpls/tcpls/internal/record"
)

// A testAuthority issues the certificates of the tests.
type testAuthority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

const testName = "server.example"

var testStart = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

var authority = sync.OnceValue(func() *testAuthority {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: testStart, NotAfter: testStart.AddDate(10, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der := must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))
	a := &testAuthority{cert: must(x509.ParseCertificate(der)), key: key, pool: x509.NewCertPool()}
	a.pool.AddCert(a.cert)
	return a
})

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// issue makes a certificate for both usages.
func (a *testAuthority) issue(key crypto.Signer, change func(*x509.Certificate)) tls.Certificate {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: testName},
		DNSNames:  []string{testName},
		NotBefore: testStart, NotAfter: testStart.AddDate(10, 0, 0),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if change != nil {
		change(template)
	}
	der := must(x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// testKeys has one key of every kind.
var testKeys = sync.OnceValue(func() map[string]crypto.Signer {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	return map[string]crypto.Signer{
		"P-256":    must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)),
		"P-384":    must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)),
		"P-521":    must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader)),
		"Ed25519":  ed,
		"RSA-2048": must(rsa.GenerateKey(rand.Reader, 2048)),
	}
})

var testCertificates = sync.OnceValue(func() map[string]tls.Certificate {
	m := map[string]tls.Certificate{}
	for name, key := range testKeys() {
		m[name] = authority().issue(key, nil)
	}
	return m
})

func testNow() time.Time { return testStart.AddDate(1, 0, 0) }

func clientTLS() *tls.Config {
	return &tls.Config{RootCAs: authority().pool, ServerName: testName, Time: testNow}
}

func serverTLS() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{testCertificates()["P-256"]}, Time: testNow}
}

func newTestPair(t testing.TB, client, server *Config) (*Conn, *Conn) {
	t.Helper()
	c, err := NewClient(client)
	if err != nil {
		t.Fatal("NewClient:", err)
	}
	s, err := NewServer(server)
	if err != nil {
		t.Fatal("NewServer:", err)
	}
	return c, s
}

// shake runs the handshake of two ends until neither has anything to say, and
// returns their errors.
func shake(c, s *Conn) (clientErr, serverErr error) {
	for {
		toServer, toClient := c.Output(), s.Output()
		if len(toServer) == 0 && len(toClient) == 0 {
			return clientErr, serverErr
		}
		clientErr = feed(c, toClient, clientErr)
		serverErr = feed(s, toServer, serverErr)
	}
}

func feed(c *Conn, p []byte, before error) error {
	if before != nil || len(p) == 0 {
		return before
	}
	if c.HandshakeComplete() {
		_, _, err := c.Read(nil, p)
		return err
	}
	n, err := c.Feed(p)
	if err == nil && c.EarlyData() {
		var used int
		if _, used, err = c.ReadEarly(nil, p[n:]); err == nil {
			_, err = c.Feed(p[n+used:])
		}
	}
	return err
}

func mustShake(t testing.TB, c, s *Conn) {
	t.Helper()
	clientErr, serverErr := shake(c, s)
	if clientErr != nil || serverErr != nil {
		t.Fatalf("handshake: client %v, server %v", clientErr, serverErr)
	}
	if !c.HandshakeComplete() || !s.HandshakeComplete() {
		t.Fatal("handshake incomplete without an error")
	}
}

// exchange sends data each way and expects it to arrive.
func exchange(t testing.TB, from, to *Conn, data []byte) {
	t.Helper()
	wire, err := from.Write(nil, data)
	if err != nil {
		t.Fatal("Write:", err)
	}
	got, n, err := to.Read(nil, wire)
	if err != nil || n != len(wire) {
		t.Fatalf("Read: used %d of %d bytes, %v", n, len(wire), err)
	}
	if !bytes.Equal(got, data) {
		t.Fatal("data changed on the way")
	}
}

// drive runs a Conn over a net.Conn: the handshake, then echo of what is
// read if it is a server, until close_notify.
type driver struct {
	*Conn
	net  net.Conn
	have []byte
}

func (d *driver) fill() error {
	if out := d.Output(); len(out) > 0 {
		if _, err := d.net.Write(out); err != nil {
			return err
		}
	}
	buf := make([]byte, 4096)
	n, err := d.net.Read(buf)
	d.have = append(d.have, buf[:n]...)
	if n > 0 {
		return nil
	}
	if err == io.EOF {
		err = d.End()
	}
	return err
}

func (d *driver) handshake() error {
	for !d.HandshakeComplete() {
		if err := d.fill(); err != nil {
			return err
		}
		n, err := d.Feed(d.have)
		d.have = d.have[n:]
		if err != nil {
			d.net.Write(d.Output())
			return err
		}
	}
	if out := d.Output(); len(out) > 0 {
		if _, err := d.net.Write(out); err != nil {
			return err
		}
	}
	return nil
}

// next returns the next data, or io.EOF.
func (d *driver) next() ([]byte, error) {
	for {
		data, n, err := d.Read(nil, d.have)
		d.have = d.have[n:]
		if len(data) > 0 {
			return data, nil
		}
		if err == nil {
			err = d.fill()
		}
		if err != nil {
			d.net.Write(d.Output())
			return nil, err
		}
	}
}

func (d *driver) readN(n int) ([]byte, error) {
	var all []byte
	for len(all) < n {
		data, err := d.next()
		if err != nil {
			return all, err
		}
		all = append(all, data...)
	}
	return all, nil
}

func (d *driver) write(data []byte) error {
	wire, err := d.Write(nil, data)
	if err != nil {
		return err
	}
	_, err = d.net.Write(wire)
	return err
}

func alertOf(err error) (Alert, bool) {
	if own, ok := errors.AsType[*Error](err); ok {
		return own.Alert, true
	}
	return 0, false
}

// splitRecords cuts a flight into its records.
func splitRecords(p []byte) [][]byte {
	var list [][]byte
	for len(p) >= record.HeaderLen {
		n := record.HeaderLen + record.ParseHeader(p).Len
		list, p = append(list, p[:n]), p[n:]
	}
	return list
}

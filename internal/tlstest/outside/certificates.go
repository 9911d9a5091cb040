package outside

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// The kinds of keys that certificates have. RSA keys sign with RSA-PSS.
const (
	P256    = "P-256"
	P384    = "P-384"
	P521    = "P-521"
	Ed25519 = "Ed25519"
	RSA     = "RSA-2048"
)

// Kinds are all kinds of keys.
var Kinds = []string{P256, P384, P521, Ed25519, RSA}

var keys = sync.OnceValues(func() (map[string]crypto.Signer, error) {
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return nil, err
	}
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		return nil, err
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	return map[string]crypto.Signer{P256: p256, P384: p384, P521: p521, Ed25519: ed, RSA: r}, nil
})

// An Authority issues certificates for one test.
type Authority struct {
	Pool *x509.CertPool // holds its own certificate
	File string         // the same, PEM

	cert *x509.Certificate
	key  crypto.Signer
}

// A Leaf is a certificate with its key, for Go and for other programs.
type Leaf struct {
	TLS               tls.Certificate
	CertFile, KeyFile string // PEM
}

// NewAuthority returns an authority that nobody else trusts.
func NewAuthority(t testing.TB) *Authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial(t), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: year(2020), NotAfter: year(2100),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a := &Authority{Pool: x509.NewCertPool(), key: key}
	a.cert, _ = sign(t, template, template, key, key)
	a.Pool.AddCert(a.cert)
	a.File = writePEM(t, "CERTIFICATE", a.cert.Raw)
	return a
}

// Issue returns a certificate for localhost with a key of one kind. change, if
// not nil, may alter it before it is signed.
func (a *Authority) Issue(t testing.TB, kind string, change func(*x509.Certificate)) *Leaf {
	t.Helper()
	all, err := keys()
	if err != nil {
		t.Fatal(err)
	}
	key := all[kind]
	template := &x509.Certificate{
		SerialNumber: serial(t), Subject: pkix.Name{CommonName: "localhost, " + kind},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		NotBefore: year(2020), NotAfter: year(2100),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if kind == RSA {
		template.KeyUsage |= x509.KeyUsageKeyEncipherment // NSS wants it, whatever the key is used for
	}
	if change != nil {
		change(template)
	}
	leaf, der := sign(t, template, a.cert, key, a.key)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return &Leaf{
		TLS:      tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf},
		CertFile: writePEM(t, "CERTIFICATE", der), KeyFile: writePEM(t, "PRIVATE KEY", pkcs8),
	}
}

// Expired makes a certificate end long ago.
func Expired(c *x509.Certificate) { c.NotAfter = year(2021) }

func year(y int) time.Time { return time.Date(y, 1, 1, 0, 0, 0, 0, time.UTC) }

func serial(t testing.TB) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func sign(t testing.TB, template, parent *x509.Certificate, key, signer crypto.Signer) (*x509.Certificate, []byte) {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, der
}

func writePEM(t testing.TB, typ string, der []byte) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "*.pem")
	if err != nil {
		t.Fatal(err)
	}
	if err := pem.Encode(f, &pem.Block{Type: typ, Bytes: der}); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return filepath.ToSlash(f.Name())
}

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"os"
	"time"
)

// identityFlags say which certificate a server shows.
type identityFlags struct {
	cert, key string
}

// load returns the certificate of the flags, or makes one for host that lives
// as long as the process.
func (f *identityFlags) load(host string) (tls.Certificate, error) {
	switch {
	case f.cert == "" && f.key == "":
		return selfSigned(append(ownNames(), host))
	case f.cert == "" || f.key == "":
		return tls.Certificate{}, &usageError{"--cert and --key go together", ""}
	}
	cert, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return cert, &localError{fmt.Errorf("certificate: %w", err)}
	}
	return cert, nil
}

// selfSigned makes a P-256 key and a certificate for the names and addresses.
// It isn't an authority: a client that has it among its roots trusts this key
// and no other.
func selfSigned(names []string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "tcpls serve"},
		NotBefore:             now.Add(-time.Hour), // clocks differ
		NotAfter:              now.AddDate(1, 0, 0),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	seen := make(map[string]bool)
	for _, name := range names {
		if name == "" || seen[name] {
			continue
		}
		seen[name] = true
		if ip := net.ParseIP(name); ip == nil {
			template.DNSNames = append(template.DNSNames, name)
		} else if !ip.IsUnspecified() {
			template.IPAddresses = append(template.IPAddresses, ip)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("making a certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("making a certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

// ownNames lists what this machine may be called.
func ownNames() []string {
	names := []string{"localhost", "127.0.0.1", "::1"}
	if host, err := os.Hostname(); err == nil {
		names = append(names, host)
	}
	for _, ip := range ownAddresses() {
		names = append(names, ip.String())
	}
	return names
}

// ownAddresses lists the addresses that others can reach, IPv4 first.
func ownAddresses() []net.IP {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var v4, v6 []net.IP
	for _, addr := range addrs {
		prefix, ok := addr.(*net.IPNet)
		switch {
		case !ok || !prefix.IP.IsGlobalUnicast():
		case prefix.IP.To4() != nil:
			v4 = append(v4, prefix.IP)
		default:
			v6 = append(v6, prefix.IP)
		}
	}
	return append(v4, v6...)
}

// shareAddress returns the address that others can dial for a listener's.
// Behind a wildcard that is the machine's first address.
func shareAddress(listening net.Addr) string {
	host, port, err := net.SplitHostPort(listening.String())
	if err != nil {
		return listening.String()
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
		if own := ownAddresses(); len(own) > 0 {
			host = own[0].String()
		}
	}
	return net.JoinHostPort(host, port)
}

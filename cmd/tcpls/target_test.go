package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
)

const somePin = "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

func TestParseURL(t *testing.T) {
	for _, test := range []struct{ url, address, path, query string }{
		{"tcpls://h:1/a/b?pin=" + somePin, "h:1", "/a/b", ""},
		{"tcpls://h", "h:443", "/", ""},
		{"tcpls://[2001:db8::1]:8/x%20y", "[2001:db8::1]:8", "/x y", ""},
		{"https://h/f?pin=1&q=2", "h:443", "/f", "pin=1&q=2"},
	} {
		got, err := parseURL(test.url)
		if err != nil || got.address != test.address || got.path != test.path || got.query != test.query {
			t.Errorf("parseURL(%q) = %+v, %v", test.url, got, err)
		}
		if hasPin := strings.Contains(test.url, "pin=sha256"); hasPin != (got.pin != nil) {
			t.Errorf("parseURL(%q): pin = %v", test.url, got.pin)
		}
	}
	for _, url := range []string{
		"", "h:1", "http://h/", "tcpls://", "tcpls:///a", "tcpls://:4433/", "tcpls://u:p@h/", "tcpls://h/#f", "tcpls://h:port/", "tcpls://h/%zz",
		"tcpls://h/?pin=", "tcpls://h/?pin=sha1:00", "tcpls://h/?pin=" + somePin[:70], "tcpls://h/?pin=" + somePin[:70] + "z",
		"tcpls://h/?pin=" + somePin + "&pin=" + somePin, "tcpls://h/?Pin=" + somePin, "tcpls://h/?pin=" + somePin + "&x=1", "tcpls://h/?%zz",
	} {
		got, err := parseURL(url)
		var usage *usageError
		if !errors.As(err, &usage) {
			t.Errorf("parseURL(%q) = %+v, %v; want a usage error", url, got, err)
		}
	}
}

func TestParsePeer(t *testing.T) {
	for text, want := range map[string]string{
		"h:1": "h:1", "h": "h:443", "[::1]:5": "[::1]:5", "::1": "[::1]:443", "[::1]": "[::1]:443", "tcpls://h:9/x": "h:9", "https://h/": "h:443",
	} {
		if got, err := parsePeer(text); err != nil || got.address != want {
			t.Errorf("parsePeer(%q) = %+v, %v; want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", ":1", "a b:1", "h:1:2", "ftp://h", "h/x"} {
		if got, err := parsePeer(text); err == nil {
			t.Errorf("parsePeer(%q) = %+v; want an error", text, got)
		}
	}
}

// FuzzParseURL checks that what share prints is what parseURL reads.
func FuzzParseURL(f *testing.F) {
	for _, seed := range []string{"tcpls://h:1/a?pin=" + somePin, "tcpls://[::1]:1/%2e%2e/%00", "tcpls://h//x/?pin=" + somePin, "https://h/?a=b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		first, err := parseURL(text)
		if err != nil || first.https {
			return
		}
		again, err := parseURL(first.share(first.path))
		if err != nil {
			t.Fatalf("%q became %q: %v", text, first.share(first.path), err)
		}
		if again.address != first.address || again.path != first.path || (again.pin == nil) != (first.pin == nil) ||
			again.pin != nil && *again.pin != *first.pin {
			t.Fatalf("%q became %+v, not %+v", text, again, first)
		}
		if name, err := first.fileName(); err == nil && (strings.ContainsAny(name, `/\`) || name == ".." || name == ".") {
			t.Fatalf("%q would be saved as %q", text, name)
		}
	})
}

func TestFileName(t *testing.T) {
	for path, want := range map[string]string{"/a": "a", "/d/a.b": "a.b", "/d/": "d", "/a b": "a b", "/../x": "x"} {
		if got, err := (target{path: path}).fileName(); err != nil || got != want {
			t.Errorf("fileName(%q) = %q, %v; want %q", path, got, err, want)
		}
	}
	for _, path := range []string{"/", "//", "/..", "/.", `/a\b`, "/a\nb", "/a\xff", "/\x1b[31m", "/" + strings.Repeat("a", maxName+1)} {
		if got, err := (target{path: path}).fileName(); err == nil {
			t.Errorf("fileName(%q) = %q; want an error", path, got)
		}
	}
}

func TestPin(t *testing.T) {
	cert, err := selfSigned([]string{"localhost"})
	if err != nil {
		t.Fatal(err)
	}
	other, err := selfSigned([]string{"localhost"})
	if err != nil {
		t.Fatal(err)
	}
	p := pinOf(cert.Leaf)
	if again, err := parsePin(p.String()); err != nil || again != p {
		t.Errorf("parsePin(%v) = %v, %v", p, again, err)
	}
	if upper, err := parsePin(pinPrefix + strings.ToUpper(strings.TrimPrefix(p.String(), pinPrefix))); err != nil || upper != p {
		t.Errorf("upper case: %v, %v", upper, err)
	}
	state := func(certs ...*x509.Certificate) tls.ConnectionState {
		return tls.ConnectionState{PeerCertificates: certs}
	}
	if err := p.verify(state(cert.Leaf, other.Leaf)); err != nil {
		t.Errorf("the pinned key: %v", err)
	}
	// Only the key that the peer proved counts, not one further up the chain.
	var wrong *pinError
	if err := p.verify(state(other.Leaf, cert.Leaf)); !errors.As(err, &wrong) || wrong.want != p {
		t.Errorf("another key: %v", err)
	}
	if err := p.verify(state()); err == nil {
		t.Error("no certificate: no error")
	}
}

func TestSelfSigned(t *testing.T) {
	cert, err := selfSigned([]string{"localhost", "127.0.0.1", "::1", "0.0.0.0", "", "localhost"})
	if err != nil {
		t.Fatal(err)
	}
	leaf := cert.Leaf
	if !slices.Equal(leaf.DNSNames, []string{"localhost"}) || len(leaf.IPAddresses) != 2 || leaf.IsCA {
		t.Errorf("names %v, addresses %v, authority %v", leaf.DNSNames, leaf.IPAddresses, leaf.IsCA)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	for _, name := range []string{"localhost", "127.0.0.1", "::1"} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestShareAddress(t *testing.T) {
	for _, test := range []struct{ ip, want string }{{"192.0.2.1", "192.0.2.1:7"}, {"2001:db8::1", "[2001:db8::1]:7"}} {
		if got := shareAddress(&net.TCPAddr{IP: net.ParseIP(test.ip), Port: 7}); got != test.want {
			t.Errorf("shareAddress(%s) = %s", test.ip, got)
		}
	}
	for _, wildcard := range []string{"0.0.0.0", "::"} {
		host, _, err := net.SplitHostPort(shareAddress(&net.TCPAddr{IP: net.ParseIP(wildcard), Port: 7}))
		if ip := net.ParseIP(host); err != nil || ip == nil || ip.IsUnspecified() {
			t.Errorf("shareAddress(%s) has the host %q, %v", wildcard, host, err)
		}
	}
}

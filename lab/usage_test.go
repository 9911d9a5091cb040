package lab_test

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"github.com/go-tcpls/tcpls"
	"github.com/go-tcpls/tcpls/lab"
)

// TestDownloadSurvivesABlackhole shows how package lab is used: both ends of an application
// are in this test, each on a host of its own, and one of their two links dies.
func TestDownloadSurvivesABlackhole(t *testing.T) {
	n := lab.Start(t, lab.TwoHosts( // until the end of the test
		lab.Shape{Rate: 30 * lab.Mbit, Delay: 20 * time.Millisecond},
		lab.Shape{Rate: 10 * lab.Mbit, Delay: 30 * time.Millisecond, Loss: 0.001},
	))
	certified := httptest.NewTLSServer(nil) // only for its certificate
	defer certified.Close()

	ln, err := n.Host("server").Listen(t.Context(), "tcp", "0.0.0.0:443")
	if err != nil {
		t.Fatal(err)
	}
	server, err := tcpls.NewListener(ln, &tcpls.Config{TLS: &tls.Config{Certificates: certified.TLS.Certificates}})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	const size = 2 << 20
	go func() {
		session, err := server.Accept(t.Context())
		if err != nil {
			return // the test is over
		}
		if stream, err := session.OpenStream(t.Context()); err == nil {
			_, _ = stream.Write(make([]byte, size)) // the client sees what is missing
			stream.Close()
		}
	}()

	roots := x509.NewCertPool()
	roots.AddCert(certified.Certificate())
	trust := &tls.Config{RootCAs: roots, ServerName: "example.com"}
	dialer := &tcpls.Dialer{Config: &tcpls.Config{TLS: trust}, DialContext: n.Host("client").Dial}
	session, err := dialer.Dial(t.Context(), "tcp", "10.0.0.2:443")
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	if _, err := session.AddPath(t.Context(), tcpls.PathSpec{Remote: netip.MustParseAddrPort("10.0.1.2:443")}); err != nil {
		t.Fatal(err)
	}
	stream, err := session.AcceptStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(stream, make([]byte, size/4)); err != nil {
		t.Fatal(err)
	}
	if err := n.Link("path0").SetBlackhole(true); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(stream)
	if err != nil || len(rest) != size-size/4 {
		t.Errorf("after the blackhole came %d bytes, %v", len(rest), err)
	}
	if c, err := n.Link("path1").Counters("server"); err != nil || c.Bytes < size/4 {
		t.Errorf("the other link carried %d bytes, %v", c.Bytes, err)
	}
}

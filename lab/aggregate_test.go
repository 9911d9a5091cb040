package lab_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/go-tcpls/tcpls"
	"github.com/go-tcpls/tcpls/lab"
)

// selfSigned returns the configurations of a server and of a client that trusts
// it.
func selfSigned(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "lab"}, DNSNames: []string{"lab"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, &tls.Config{RootCAs: roots, ServerName: "lab"}
}

// sessionOver returns both ends of a session with a path over each of the links.
func sessionOver(t *testing.T, n *lab.Network, mode tcpls.Mode, links ...string) (client, server *tcpls.Session) {
	t.Helper()
	serverTLS, clientTLS := selfSigned(t)
	inner, err := n.Host("server").Listen(t.Context(), "tcp", "[::]:0")
	if err != nil {
		t.Fatal(err)
	}
	ln, err := tcpls.NewListener(inner, &tcpls.Config{TLS: serverTLS, Mode: mode, Congestion: "cubic"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	at := func(link string) netip.AddrPort {
		return netip.AddrPortFrom(n.Link(link).Addr("server", false), uint16(inner.Addr().(*net.TCPAddr).Port))
	}
	d := tcpls.Dialer{
		DialContext: n.Host("client").Dial,
		Config:      &tcpls.Config{TLS: clientTLS, Mode: mode, Congestion: "cubic"},
	}
	if client, err = d.Dial(t.Context(), "tcp", at(links[0]).String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if server, err = ln.Accept(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	for _, link := range links[1:] {
		if _, err := client.AddPath(t.Context(), tcpls.PathSpec{Remote: at(link)}); err != nil {
			t.Fatal(err)
		}
	}
	return client, server
}

// fetch downloads size bytes over the links of a new network, and returns how
// long that took, and the median of the goodputs of the second half in steps of
// 200 ms, in bytes per second.
func fetch(t *testing.T, shapes []lab.Shape, size int, links ...string) (took time.Duration, rate float64) {
	t.Helper()
	n := lab.Start(t, lab.TwoHosts(shapes...))
	defer n.Close()
	client, server := sessionOver(t, n, tcpls.ModeAggregate, links...)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	began := time.Now()
	sent := make(chan error, 1)
	go func() {
		st, err := server.OpenStream(ctx)
		if err == nil {
			_, err = st.Write(make([]byte, size))
		}
		if err == nil {
			err = st.CloseWrite()
		}
		sent <- err
	}()
	st, err := client.AcceptStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	const step = 200 * time.Millisecond
	total, from, mark := 0, 0, time.Time{}
	var rates []float64
	for b := make([]byte, 256<<10); ; {
		k, err := st.Read(b)
		total += k
		now := time.Now()
		switch {
		case total < size/2:
		case mark.IsZero():
			from, mark = total, now
		case now.Sub(mark) >= step:
			rates = append(rates, float64(total-from)/now.Sub(mark).Seconds())
			from, mark = total, now
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	took = time.Since(began)
	if err := <-sent; err != nil || total != size {
		t.Fatalf("%d bytes arrived of %d: %v", total, size, err)
	}
	slices.Sort(rates)
	return took, rates[len(rates)/2]
}

// best repeats a download until it is as good as wanted, since a machine that
// is busy makes it slower, never faster.
func best(t *testing.T, wanted func(took time.Duration, rate float64) bool, shapes []lab.Shape, size int, links ...string) (took time.Duration, rate float64) {
	t.Helper()
	for range 4 {
		d, r := fetch(t, shapes, size, links...)
		if took == 0 || d < took {
			took = d
		}
		rate = max(rate, r)
		if wanted(took, rate) {
			break
		}
	}
	return took, rate
}

func twoLinks(rate1 lab.Rate, delay1 int, rate2 lab.Rate, delay2 int) []lab.Shape {
	return []lab.Shape{
		{Rate: rate1 * lab.Mbit, Delay: time.Duration(delay1) * time.Millisecond},
		{Rate: rate2 * lab.Mbit, Delay: time.Duration(delay2) * time.Millisecond},
	}
}

// Two equal links bring the sum of both. 98 % of it, where nothing else
// runs.
func TestSumOfEqualLinks(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 5 s")
	}
	const payload = 2 * 100e6 / 8 * 1448 / 1500 // what TCP can carry
	_, rate := best(t, func(_ time.Duration, rate float64) bool { return rate > 0.98*payload },
		twoLinks(100, 20, 100, 20), 80e6, "path0", "path1")
	t.Logf("%.1f of %.1f Mbit/s", rate*8/1e6, payload*8/1e6)
	if rate < 0.7*payload {
		t.Errorf("two equal links bring %.3f of their sum", rate/payload)
	}
}

// However unequal two links are, and whichever comes first, both take no longer
// than the better one alone; half as long again is left to a busy machine.
func TestNeverSlowerThanTheBest(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 30 s")
	}
	for name, test := range map[string]struct {
		shapes []lab.Shape
		fast   string
		queue  int
	}{
		"10 times the rate and a tenth of the delay":             {twoLinks(100, 10, 10, 100), "path0", 0},
		"10 times the rate and a tenth of the delay, the second": {twoLinks(10, 100, 100, 10), "path1", 0},
		"10 times the rate":                                                    {twoLinks(100, 20, 10, 20), "path0", 0},
		"a tenth of the delay":                                                 {twoLinks(100, 10, 100, 100), "path0", 0},
		"10 times the rate, the second":                                        {twoLinks(10, 20, 100, 20), "path1", 0},
		"15 times the rate and a tenth of the delay, short queues":             {twoLinks(30, 15, 2, 150), "path0", 50 * 1500},
		"15 times the rate and a tenth of the delay, short queues, the second": {twoLinks(2, 150, 30, 15), "path1", 50 * 1500},
	} {
		t.Run(name, func(t *testing.T) {
			const size = 16e6
			for i := range test.shapes {
				test.shapes[i].Queue = test.queue
			}
			alone, _ := fetch(t, test.shapes, size, test.fast)
			both, _ := best(t, func(took time.Duration, _ float64) bool { return took < alone }, test.shapes, size, "path0", "path1")
			t.Logf("alone %v, both %v: %.3f", alone, both, both.Seconds()/alone.Seconds())
			if both > alone*3/2 {
				t.Errorf("both links took %v, the better one alone %v", both, alone)
			}
		})
	}
}

// A session with a backup path goes on soon when the path in use becomes a blackhole:
// in the median after less than 0.3 s, where nothing else runs.
func TestBlackholeWithStandby(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 15 s")
	}
	n := lab.Start(t, lab.TwoHosts(twoLinks(100, 20, 100, 20)...))
	var gaps []time.Duration
	for range 7 {
		gaps = append(gaps, gapOfBlackhole(t, n))
	}
	slices.Sort(gaps)
	t.Log(gaps)
	if median := gaps[len(gaps)/2]; median > time.Second {
		t.Errorf("nothing arrives for %v in the median", median)
	}
}

// gapOfBlackhole cuts the path in use in the middle of a download, and returns
// for how long nothing came then.
func gapOfBlackhole(t *testing.T, n *lab.Network) (longest time.Duration) {
	t.Helper()
	client, server := sessionOver(t, n, tcpls.ModeFailover, "path0", "path1")
	defer client.Close()
	const size = 8_000_000
	st, peer := opened(t, server, client)
	sent := make(chan error, 1)
	go func() {
		_, err := st.Write(make([]byte, size))
		sent <- err
	}()
	last, cut := time.Now(), false
	for total, b := 0, make([]byte, 256<<10); total < size; {
		k, err := peer.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		if total += k; cut {
			longest = max(longest, time.Since(last))
		}
		last = time.Now()
		if !cut && total > size/3 {
			cut = true
			if err := n.Link("path0").SetBlackhole(true); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(<-sent, n.Link("path0").SetBlackhole(false)); err != nil {
		t.Fatal(err)
	}
	return longest
}

// opened returns both ends of a stream.
func opened(t *testing.T, from, to *tcpls.Session) (st, peer *tcpls.Stream) {
	t.Helper()
	st, err := from.OpenStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	go st.Write([]byte{0})
	if peer, err = to.AcceptStream(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*tcpls.Stream{st, peer} {
		if err := s.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.ReadFull(peer, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return st, peer
}

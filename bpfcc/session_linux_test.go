package bpfcc_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-tcpls/tcpls"
	"github.com/go-tcpls/tcpls/bpfcc"
	"github.com/go-tcpls/tcpls/internal/netns"
)

// newTestConfigs returns the configurations of a client that takes congestion
// controls, and of its server.
func newTestConfigs(t *testing.T, host *bpfcc.Host) (client, server *tcpls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
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
	return &tcpls.Config{TLS: &tls.Config{RootCAs: roots, ServerName: "localhost"}, CCHost: host},
		&tcpls.Config{TLS: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}}
}

// pair connects both ends of a session over loopback.
func pair(t *testing.T, client, server *tcpls.Config) (c, s *tcpls.Session) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return connect(t, &tcpls.Dialer{Config: client}, ln, server)
}

// connect is pair for a dialer that reaches a listener.
func connect(t *testing.T, d *tcpls.Dialer, ln net.Listener, server *tcpls.Config) (c, s *tcpls.Session) {
	t.Helper()
	l, err := tcpls.NewListener(ln, server)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	if c, err = d.Dial(t.Context(), "tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if s, err = l.Accept(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.CloseWithError(0, "the test is over")
		<-s.Context().Done()
		_ = s.Close()
	})
	return c, s
}

// An upload goes on until it is ended, and is checked then.
type upload struct {
	end func() // checks that what arrived is what was sent

	mu    sync.Mutex
	cond  sync.Cond
	bytes int64 // that have arrived
}

func (u *upload) arrived() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.bytes
}

// startUpload sends from c to s.
func startUpload(t *testing.T, c, s *tcpls.Session) *upload {
	t.Helper()
	from, err := c.OpenStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	u := new(upload)
	u.cond.L = &u.mu
	block := make([]byte, 64<<10)
	_, _ = rand.Read(block) // never fails
	stop, sent, received := make(chan struct{}), sha256.New(), sha256.New()
	done := make(chan error, 2)
	go func() {
		for {
			select {
			case <-stop:
				done <- from.CloseWrite()
				return
			default:
			}
			sent.Write(block)
			if _, err := from.Write(block); err != nil {
				done <- err
				return
			}
		}
	}()
	go func() {
		to, err := s.AcceptStream(t.Context())
		for buf := make([]byte, 64<<10); err == nil; {
			var n int
			n, err = to.Read(buf)
			received.Write(buf[:n])
			u.mu.Lock()
			u.bytes += int64(n)
			u.cond.Broadcast()
			u.mu.Unlock()
		}
		if err == io.EOF {
			err = nil
		}
		done <- err
	}()
	u.end = func() {
		t.Helper()
		close(stop)
		if err := errors.Join(<-done, <-done); err != nil {
			t.Error(err)
		}
		if !bytes.Equal(sent.Sum(nil), received.Sum(nil)) {
			t.Error("other bytes have arrived than were sent")
		}
	}
	return u
}

// more waits until n more bytes have arrived.
func (u *upload) more(t *testing.T, n int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.cond.Broadcast()
	})()
	u.mu.Lock()
	defer u.mu.Unlock()
	for want := u.bytes + n; u.bytes < want; u.cond.Wait() {
		if ctx.Err() != nil {
			t.Fatalf("%d bytes are missing of %d more", want-u.bytes, n)
		}
	}
}

// Both samples are sent, loaded and used in the middle of a transfer, one after
// the other, and taken back; nothing of them is left.
func TestSwitch(t *testing.T) {
	needKernel(t)
	clientConfig, serverConfig := newTestConfigs(t, new(bpfcc.Host))
	c, s := pair(t, clientConfig, serverConfig)
	u := startUpload(t, c, s)
	path := c.Paths()[0]
	before := path.Stats().Congestion
	u.more(t, 1<<20)
	var last string
	for _, offer := range []tcpls.CCOffer{bpfcc.Bandwidth(), bpfcc.Scalable()} {
		if err := s.OfferCC(t.Context(), offer); err != nil {
			t.Fatalf("%s: %v", offer.Name, err)
		}
		name := path.Stats().Congestion
		if !strings.HasPrefix(name, "tcpls_") || name == last {
			t.Errorf("with %s the path uses %q", offer.Name, name)
		}
		if names := available(t); !slices.Contains(names, name) || slices.Contains(names, last) {
			t.Errorf("with %s the kernel knows %v, and %s is in use", offer.Name, names, name)
		}
		last = name
		u.more(t, 1<<20)
	}
	if err := s.WithdrawCC(t.Context()); err != nil {
		t.Fatal(err)
	}
	if name := path.Stats().Congestion; name != before {
		t.Errorf("the path uses %q now, and %q before", name, before)
	}
	if slices.Contains(available(t), last) {
		t.Errorf("the kernel still knows %s", last)
	}
	u.more(t, 1<<20)
	u.end()
}

// A congestion control ends with its session.
func TestEndOfSession(t *testing.T) {
	needKernel(t)
	host := &bpfcc.Host{MaxLoaded: 1}
	clientConfig, serverConfig := newTestConfigs(t, host)
	c, s := pair(t, clientConfig, serverConfig)
	before := held(t)
	offer := bpfcc.Scalable()
	object, marked := mark(t, offer.Object, "scalable")
	offer.Object = object
	if err := s.OfferCC(t.Context(), offer); err != nil {
		t.Fatal(err)
	}
	name := c.Paths()[0].Stats().Congestion
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if slices.Contains(available(t), name) {
		t.Errorf("the kernel still knows %s", name)
	}
	wantNothingLeft(t, "after the session", marked, before)
	if err := host.Check(bpfcc.Scalable()); err != nil {
		t.Errorf("it still counts as loaded: %v", err)
	}
}

// Offers that are refused for what they are, with the reason, and a transfer
// that doesn't mind.
func TestRefusedInSession(t *testing.T) {
	needKernel(t)
	host := &bpfcc.Host{MaxObject: 20 << 10, MaxLoaded: 1}
	clientConfig, serverConfig := newTestConfigs(t, host)
	c, s := pair(t, clientConfig, serverConfig)
	u := startUpload(t, c, s)
	before := c.Paths()[0].Stats().Congestion
	atFirst := held(t)
	for _, test := range []struct {
		name   string
		object []byte
		code   tcpls.CCCode
		reason string
	}{
		{"text", []byte("#!/bin/sh"), tcpls.CCForm, "isn't an ELF object"},
		{"other-type", newTestObject(t, "testdata/xdp.o"), tcpls.CCForm, "tcp_congestion_ops"},
		{"symbol", newTestObject(t, "testdata/symbol.o"), tcpls.CCForm, "asks for the address"},
		{"forbidden", newTestObject(t, "testdata/forbidden.o"), tcpls.CCVerifier, "no write support"},
		{"endless", newTestObject(t, "testdata/endless.o"), tcpls.CCVerifier, "too large"},
		{"incomplete", newTestObject(t, "testdata/incomplete.o"), tcpls.CCVerifier, "invalid argument"},
		{"large", make([]byte, host.MaxObject+1), tcpls.CCTooLarge, "the peer takes 20480"},
	} {
		object, marked := test.object, "no such name"
		if bytes.Contains(object, []byte(test.name+"_")) {
			object, marked = mark(t, object, test.name)
		}
		err := s.OfferCC(t.Context(), tcpls.CCOffer{Name: test.name, Object: object})
		var coded *tcpls.CCError
		if !errors.As(err, &coded) || coded.Code != test.code || !strings.Contains(coded.Reason, test.reason) {
			t.Errorf("%s: %v", test.name, err)
		}
		wantNothingLeft(t, test.name, marked, atFirst)
		u.more(t, 1<<20)
	}
	if name := c.Paths()[0].Stats().Congestion; name != before {
		t.Errorf("the path uses %q", name)
	}
	if err := host.Check(bpfcc.Scalable()); err != nil {
		t.Errorf("one still counts as loaded: %v", err)
	}
	u.end()
}

// One that stalls its connection is switched back, the peer is told why, and
// the transfer goes on: on the same connection, or, where the kernel has put off
// the next segment for hours, on another one.
func TestStalled(t *testing.T) {
	needKernel(t)
	for _, test := range []struct {
		name, file, reason string
		patience           time.Duration // with a silent path; 0: the default
	}{
		{"window 0", "testdata/zero.o", "window is 0", 0},
		{"a byte per second", "testdata/stall.o", "wait", time.Minute}, // the judge is to find it, not the path's watch
		{"a byte per second, impatiently", "testdata/stall.o", "wait", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			clientConfig, serverConfig := newTestConfigs(t, new(bpfcc.Host))
			clientConfig.PathTimeout, serverConfig.PathTimeout = test.patience, test.patience
			c, s := pair(t, clientConfig, serverConfig)
			ended := make(chan tcpls.Event, 1)
			go func() {
				for e := range s.Events(t.Context()) {
					if e.Kind == tcpls.EventCCEnded {
						ended <- e
					}
				}
			}()
			u := startUpload(t, c, s)
			u.more(t, 1<<20)
			err := s.OfferCC(t.Context(), tcpls.CCOffer{Name: "harm", Object: newTestObject(t, test.file)})
			if err == nil {
				err = (<-ended).Err
			}
			var coded *tcpls.CCError
			if !errors.As(err, &coded) || coded.Code != tcpls.CCStalled || !coded.Remote || !strings.Contains(coded.Reason, test.reason) {
				t.Errorf("it ended with %v", err)
			}
			u.more(t, 10<<20)
			for _, p := range c.Paths() {
				if name := p.Stats().Congestion; strings.HasPrefix(name, "tcpls_") {
					t.Errorf("path %d uses %q", p.ID(), name)
				}
			}
			u.end()
		})
	}
}

// A server that stalls its client's connections and then closes them can't make
// the client's kernel keep what they haven't sent.
func TestStalledAndClosed(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		needKernel(t)
		clientConfig, serverConfig := newTestConfigs(t, new(bpfcc.Host))
		clientConfig.PathTimeout, serverConfig.PathTimeout = time.Minute, time.Minute // the server's end comes first
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		accepted := &acceptedConns{Listener: ln, conns: make(chan *net.TCPConn, 16)}
		c, s := connect(t, &tcpls.Dialer{Config: clientConfig}, accepted, serverConfig)
		u := startUpload(t, c, s)
		u.more(t, 1<<20)
		loaded := c.Events(t.Context())
		go func() { // its answer may be held up too
			_ = s.OfferCC(t.Context(), tcpls.CCOffer{Name: "stall", Object: newTestObject(t, "testdata/stall.o")})
		}()
		for e := range loaded {
			if e.Kind == tcpls.EventCCLoaded {
				break
			}
		}
		for range 3 {
			if err := (<-accepted.conns).CloseWrite(); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.WithdrawCC(t.Context()); err != nil {
			t.Fatal(err)
		}
		u.more(t, 10<<20)
		u.end()
		if left := orphans(t); len(left) > 0 {
			t.Errorf("the kernel keeps unsent bytes of connections that nobody has any more:\n%s", strings.Join(left, "\n"))
		}
	})
}

// acceptedConns are the server's ends of all connections.
type acceptedConns struct {
	net.Listener
	conns chan *net.TCPConn
}

func (l *acceptedConns) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if tcp, ok := c.(*net.TCPConn); ok {
		l.conns <- tcp
	}
	return c, err
}

// orphans are the connections of the network namespace that no process has, and that
// still have something to send.
func orphans(t *testing.T) (found []string) {
	t.Helper()
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		if inode, unsent := f[9], f[4]; inode == "0" && !strings.HasPrefix(unsent, "00000000:") {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}

// Both ends may send one to the other.
func TestBothWays(t *testing.T) {
	needKernel(t)
	host := new(bpfcc.Host)
	clientConfig, serverConfig := newTestConfigs(t, host)
	serverConfig.CCHost = host
	refuse := errors.New("only its author's")
	serverConfig.AcceptCC = func(_ *tcpls.Session, o tcpls.CCOffer) error {
		if o.Hash != sha256.Sum256(bpfcc.Scalable().Object) {
			return refuse
		}
		return nil
	}
	c, s := pair(t, clientConfig, serverConfig)
	if err := errors.Join(s.OfferCC(t.Context(), bpfcc.Bandwidth()), c.OfferCC(t.Context(), bpfcc.Scalable())); err != nil {
		t.Fatal(err)
	}
	if a, b := c.Paths()[0].Stats().Congestion, s.Paths()[0].Stats().Congestion; a == b || !strings.HasPrefix(a, "tcpls_") || !strings.HasPrefix(b, "tcpls_") {
		t.Errorf("the client uses %q and the server %q", a, b)
	}
	err := c.OfferCC(t.Context(), bpfcc.Bandwidth())
	if !errors.Is(err, &tcpls.CCError{Code: tcpls.CCNotAllowed}) || !strings.Contains(err.Error(), refuse.Error()) {
		t.Errorf("another one than is allowed: %v", err)
	}
	u := startUpload(t, c, s)
	u.more(t, 1<<20)
	u.end()
}

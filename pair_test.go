package tcpls

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
)

// A memPair is both ends of a session over a connection in memory.
type memPair struct {
	client, server         *Session
	clientConn, serverConn *memnet.Conn
}

// newMemPair makes a pair and closes it at the end of the test. A nil change
// leaves the configurations as they are.
func newMemPair(t testing.TB, link memnet.Link, change func(client, server *Config)) *memPair {
	t.Helper()
	client, server := newTestConfigs()
	smallWindows(client, server)
	if change != nil {
		change(client, server)
	}
	p := &memPair{}
	p.clientConn, p.serverConn = memnet.Pipe(link)
	var clientErr, serverErr error
	var both sync.WaitGroup
	both.Go(func() { p.client, clientErr = Client(context.Background(), p.clientConn, client) })
	both.Go(func() { p.server, serverErr = Server(context.Background(), p.serverConn, server) })
	both.Wait()
	if err := errors.Join(clientErr, serverErr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.close)
	return p
}

// tcpPair opens a session over loopback.
func tcpPair(t testing.TB, change func(client, server *Config)) (client, server *Session) {
	t.Helper()
	return tcpPairAt(t, "127.0.0.1:0", change)
}

// tcpPairAt opens a session with a listener at an address.
func tcpPairAt(t testing.TB, address string, change func(client, server *Config)) (client, server *Session) {
	t.Helper()
	clientConfig, serverConfig := newTestConfigs()
	clientConfig.MaxPaths, serverConfig.MaxPaths = 8, 8
	if change != nil {
		change(clientConfig, serverConfig)
	}
	l, err := Listen("tcp", address, serverConfig)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	d := &Dialer{Config: clientConfig}
	if client, err = d.Dial(t.Context(), "tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = client.CloseWithError(0, "the test is over")
		<-server.Context().Done()
	})
	if _, err := client.Ping(t.Context()); err != nil { // the server's tokens come before the answer
		t.Fatal(err)
	}
	return client, server
}

func (p *memPair) close() {
	var both sync.WaitGroup
	both.Go(func() { _ = p.client.Close() }) // the test has judged what it wanted to
	both.Go(func() { _ = p.server.Close() })
	both.Wait()
}

// open returns both ends of a new stream that the client opened.
func (p *memPair) open(t testing.TB) (c, s *Stream) {
	t.Helper()
	return openStream(t, p.client, p.server)
}

func openStream(t testing.TB, from, to *Session) (opened, accepted *Stream) {
	t.Helper()
	opened, err := from.OpenStream(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	announce(t, opened)
	accepted, err = to.AcceptStream(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if accepted.ID() != opened.ID() {
		t.Fatalf("accepted stream %d, want %d", accepted.ID(), opened.ID())
	}
	return opened, accepted
}

// announce makes the peer learn of a stream: a Read is enough for that.
func announce(t testing.TB, st *Stream) {
	t.Helper()
	if err := st.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("Read with a deadline in the past: %v", err)
	}
	if err := st.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
}

// testBytes are n bytes that only their seed and their place determine.
func testBytes(seed uint64, n int) []byte {
	var key [32]byte
	key[0], key[1], key[2] = byte(seed), byte(seed>>8), byte(seed>>16)
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(b) // never fails
	return b
}

func mustWrite(t testing.TB, w io.Writer, p []byte) {
	t.Helper()
	if n, err := w.Write(p); n != len(p) || err != nil {
		t.Fatalf("Write of %d bytes = %d, %v", len(p), n, err)
	}
}

func wantRead(t testing.TB, why string, r io.Reader, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(r, got); err != nil {
		t.Fatalf("%s: read %d of %d bytes: %v", why, n, len(want), err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%s: other bytes were read than written", why)
	}
}

func wantEOF(t testing.TB, why string, r io.Reader) {
	t.Helper()
	if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("%s: Read = %d, %v; want io.EOF", why, n, err)
	}
}

// wantErrorIs checks an error that a call gave with errors.Is.
func wantErrorIs(t testing.TB, why string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: error %v, want %v", why, err, want)
	}
}

// wantStreamError checks for a *StreamError.
func wantStreamError(t testing.TB, why string, err error, code uint64, remote bool) {
	t.Helper()
	var e *StreamError
	if !errors.As(err, &e) || e.Code != code || e.Remote != remote {
		t.Errorf("%s: error %v (%#v), want a StreamError with code %d and Remote %v", why, err, err, code, remote)
	}
}

// start runs a call on a goroutine of its own; the returned function waits for
// its result.
func start[T any](call func() T) (wait func() T) {
	result := make(chan T, 1)
	go func() { result <- call() }()
	return func() T { return <-result }
}

// begun is start for calls that the test expects to block for now.
func begun(call func() error) (done <-chan error) {
	result := make(chan error, 1)
	go func() { result <- call() }()
	return result
}

func wantBlocked(t testing.TB, why string, done <-chan error) {
	t.Helper()
	select {
	case err := <-done:
		t.Fatalf("%s: it returned %v instead of waiting", why, err)
	default:
	}
}

// echo serves streams until the session ends.
func echo(s *Session) {
	for {
		st, err := s.AcceptStream(context.Background())
		if err != nil {
			return
		}
		go func() {
			_, _ = io.Copy(st, st) // a stream that was reset ends this too
			_ = st.Close()
		}()
	}
}

// smallWindows makes the tests that fill windows quick.
func smallWindows(configs ...*Config) {
	for _, c := range configs {
		c.StreamRecvWindow, c.SessionRecvWindow = 1<<20, 2<<20
	}
}

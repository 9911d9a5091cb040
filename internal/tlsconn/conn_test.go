package tlsconn_test

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/go-tcpls/tcpls/internal/tls13"
	"github.com/go-tcpls/tcpls/internal/tlsconn"
	"github.com/go-tcpls/tcpls/internal/tlstest/outside"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newTestPair returns a Conn over TCP whose handshake is complete, and its
// peer, a server of crypto/tls. received is what the server writes before the
// Conn exists, which New is given.
func newTestPair(t *testing.T, received string) (*tlsconn.Conn, *tls.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	authority := outside.NewAuthority(t)
	server := tls.Server(far, &tls.Config{Certificates: []tls.Certificate{authority.Issue(t, outside.P256, nil).TLS}})
	done := make(chan error, 1)
	go func() {
		_, err := io.WriteString(server, received)
		done <- err
	}()
	engine, err := tls13.NewClient(&tls13.Config{TLS: &tls.Config{RootCAs: authority.Pool, ServerName: "localhost"}})
	if err != nil {
		t.Fatal(err)
	}
	var raw []byte
	for read := make([]byte, 16<<10); !engine.HandshakeComplete(); {
		if _, err := near.Write(engine.Output()); err != nil {
			t.Fatal(err)
		}
		n, err := near.Read(read)
		if err != nil {
			t.Fatal(err)
		}
		raw = append(raw, read[:n]...)
		used, err := engine.Feed(raw)
		if err != nil {
			t.Fatal(err)
		}
		raw = raw[used:]
	}
	c := tlsconn.New(near, engine, []byte("opened, "), raw)
	if _, err := c.Write(nil); err != nil { // our Finished goes out
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return c, server
}

func mustRead(t *testing.T, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v; want %q", got[:n], err, want)
	}
}

func mustWrite(t *testing.T, w io.Writer, s string) {
	t.Helper()
	if n, err := io.WriteString(w, s); err != nil || n != len(s) {
		t.Fatalf("Write = %d, %v", n, err)
	}
}

// TestReceived reads what New was given before what comes later.
func TestReceived(t *testing.T) {
	c, server := newTestPair(t, "received, ")
	mustWrite(t, server, "sent")
	mustRead(t, c, "opened, received, sent")
}

// TestHalfClose ends one direction after the other.
func TestHalfClose(t *testing.T) {
	c, server := newTestPair(t, "")
	long := strings.Repeat("more than a batch ", 1<<15)
	go io.WriteString(c, long) // the server tells what is missing
	mustRead(t, server, long)
	if err := c.UpdateKeys(true); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, c, "under new keys")
	mustRead(t, server, "under new keys")
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(server); err != nil || len(rest) > 0 {
		t.Errorf("the server reads %q, %v; want io.EOF", rest, err)
	}
	if _, err := c.Write([]byte("more")); !errors.Is(err, tlsconn.ErrWriteClosed) {
		t.Errorf("Write after CloseWrite: %v", err)
	}
	if err := c.CloseWrite(); !errors.Is(err, tlsconn.ErrWriteClosed) {
		t.Errorf("CloseWrite after CloseWrite: %v", err)
	}
	mustWrite(t, server, "the other way")
	mustRead(t, c, "opened, the other way")
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
		t.Errorf("read %q, %v; want io.EOF", rest, err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestTruncation(t *testing.T) {
	c, server := newTestPair(t, "half")
	if err := server.NetConn().Close(); err != nil {
		t.Fatal(err)
	}
	mustRead(t, c, "opened, half")
	for range 2 {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("Read: %v, want io.ErrUnexpectedEOF", err)
		}
	}
}

// TestBroken has the server send what isn't a record of the connection.
func TestBroken(t *testing.T) {
	c, server := newTestPair(t, "")
	mustRead(t, c, "opened, ")
	record := append([]byte{23, 3, 3, 0, 32}, make([]byte, 32)...)
	if _, err := server.NetConn().Write(record); err != nil {
		t.Fatal(err)
	}
	_, err := c.Read(make([]byte, 1))
	if e, ok := errors.AsType[*tls13.Error](err); !ok || e.Alert != tls13.AlertBadRecordMAC {
		t.Errorf("Read: %v, want bad_record_mac", err)
	}
	if _, err := server.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "bad record MAC") {
		t.Errorf("the server reads %v, want the alert bad_record_mac", err)
	}
	if n, err := server.NetConn().Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("behind the alert: %d bytes, %v; want the end of the transport", n, err)
	}
	if _, err := c.Write([]byte("more")); err == nil {
		t.Error("Write after the failure succeeds")
	}
}

// TestTimeouts shows that a Read may time out, and that a Write may not.
func TestTimeouts(t *testing.T) {
	c, server := newTestPair(t, "")
	mustRead(t, c, "opened, ")
	past := time.Unix(1, 0)
	if err := c.SetReadDeadline(past); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Read: %v, want os.ErrDeadlineExceeded", err)
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, server, "later")
	mustRead(t, c, "later")
	for _, deadline := range []time.Time{past, {}} {
		if err := c.SetWriteDeadline(deadline); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("lost")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Write: %v, want os.ErrDeadlineExceeded", err)
		}
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if rest, err := io.ReadAll(server.NetConn()); err != nil || len(rest) > 0 {
		t.Errorf("the server gets %d bytes, %v; want no close_notify behind a record that is missing", len(rest), err)
	}
}

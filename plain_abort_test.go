package tcpls_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/go-tcpls/tcpls"
)

// Giving up a plain TLS connection must not look like its end to the peer:
// there is no close_notify (RFC 8446, 6.1).
func TestPlainAbort(t *testing.T) {
	r := newRealm(t)
	old := r.server.TLS.Clone()
	old.MaxVersion = tls.VersionTLS12
	for name, abort := range map[string]func(*tcpls.Stream) error{
		"Reset":          func(st *tcpls.Stream) error { return st.Reset(7) },
		"CloseWithError": func(st *tcpls.Stream) error { return st.Session().CloseWithError(7, "gives up") },
	} {
		for _, cfg := range []*tls.Config{r.server.TLS, old} {
			t.Run(name+" by client", func(t *testing.T) {
				read := make(chan error, 1)
				addr := raw(t, func(conn net.Conn) {
					c := tls.Server(&strictConn{conn}, cfg)
					if c.Handshake() != nil {
						return // the client comes again, by crypto/tls
					}
					_, err := io.Copy(io.Discard, c)
					read <- err
				})
				s, err := tcpls.Dial(context.Background(), "tcp", addr, r.client)
				if err != nil {
					t.Fatal(err)
				}
				st, err := s.OpenStream(context.Background())
				if err != nil {
					t.Fatal(err)
				}
				mustAbort(t, st, abort)
				if err := <-read; !errors.Is(err, errCut) {
					t.Errorf("the peer has read up to %v, want %v", err, errCut)
				}
			})
		}
		t.Run(name+" by server", func(t *testing.T) {
			l := r.listen(t)
			conn, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			c := tls.Client(&strictConn{conn}, r.client.TLS)
			if err := c.Handshake(); err != nil {
				t.Fatal(err)
			}
			s, err := l.Accept(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			st, err := s.AcceptStream(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			mustAbort(t, st, abort)
			if _, err := io.Copy(io.Discard, c); !errors.Is(err, errCut) {
				t.Errorf("the peer has read up to %v, want %v", err, errCut)
			}
		})
	}
}

func mustAbort(t *testing.T, st *tcpls.Stream, abort func(*tcpls.Stream) error) {
	t.Helper()
	if _, err := io.WriteString(st, "half of it"); err != nil {
		t.Fatal(err)
	}
	if err := abort(st); err != nil {
		t.Errorf("giving up: %v", err)
	}
	var coded *tcpls.SessionError
	if err := context.Cause(st.Session().Context()); !errors.As(err, &coded) || coded.Code != 7 || !coded.Application {
		t.Errorf("the session's cause is %v, want the code 7", err)
	}
}

// A strictConn makes crypto/tls tell a transport's end from close_notify.
type strictConn struct{ net.Conn }

var errCut = errors.New("the connection has ended without close_notify")

func (c *strictConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err == io.EOF {
		err = errCut
	}
	return n, err
}

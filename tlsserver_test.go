package tcpls

import (
	"crypto/tls"
	"io"
	"net"
	"testing"
)

// tlsServerOf starts an echo server of crypto/tls with a server's
// configuration, until the end of the test.
func tlsServerOf(t testing.TB, cfg *Config) net.Listener {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", cfg.TLS)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return l
}

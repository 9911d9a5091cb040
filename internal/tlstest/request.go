package tlstest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/go-tcpls/tcpls/internal/tls13"
)

// A TestClient makes one connection.
type TestClient struct {
	Config  *tls13.Config
	Timeout time.Duration // for connecting, and for the whole handshake
	Get     string        // path of a request that is sent instead of In
	In      io.Reader
	Out     io.Writer
	Log     io.Writer // what was agreed
	Behaviour
}

// Run connects, talks, and returns nil only if the server has ended the
// connection by close_notify.
func (t *TestClient) Run(ctx context.Context, addr string) error {
	transport, err := (&net.Dialer{Timeout: t.Timeout}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer transport.Close()
	c, err := Client(transport, t.Config)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = transport.Close() })()
	if err := c.Handshake(t.Timeout); err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	if _, err := fmt.Fprintln(t.Log, Facts(c)); err != nil {
		return err
	}
	if t.KeyUpdate {
		if err := c.UpdateKeys(true); err != nil {
			return err
		}
	}
	return errors.Join(t.talk(c), c.Close())
}

func (t *TestClient) talk(c *Conn) error {
	switch {
	case t.Get != "":
		if _, err := fmt.Fprintf(c, "GET %s HTTP/1.0\r\nHost: %s\r\n\r\n", t.Get, t.Config.TLS.ServerName); err != nil {
			return err
		}
	case t.Mode == ModeSource:
		return Source(c, t.Size)
	case t.Mode == ModeDiscard:
		n, err := io.Copy(io.Discard, c)
		fmt.Fprintf(t.Log, "%d bytes\n", n)
		return err
	default:
		// It ends with the connection, or with its next bytes of In.
		go func() {
			if _, err := io.Copy(c, t.In); err == nil {
				_ = c.CloseWrite() // Read tells what became of the connection
			}
		}()
	}
	_, err := io.Copy(t.Out, c)
	return err
}

package tlstest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/go-tcpls/tcpls/internal/tls13"
)

// A TestClient makes one connection, or several for tickets before it.
type TestClient struct {
	Config  *tls13.Config
	Timeout time.Duration // for connecting, and for the whole handshake
	Get     string        // path of a request that is sent instead of In
	In      io.Reader
	Out     io.Writer
	Log     io.Writer // what was agreed
	Resume  int       // connections before the one that counts
	Early   bool      // the first bytes go as early data, if there is a ticket that allows them
	Behaviour
}

// Run connects, talks, and returns nil only if the server has ended each
// connection by close_notify.
func (t *TestClient) Run(ctx context.Context, addr string) error {
	for range t.Resume {
		first := *t
		first.In, first.Early = strings.NewReader(""), false
		if err := first.connect(ctx, addr); err != nil {
			return err
		}
	}
	return t.connect(ctx, addr)
}

func (t *TestClient) connect(ctx context.Context, addr string) error {
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
	in := t.In
	if t.Get != "" {
		in = strings.NewReader(fmt.Sprintf("GET %s HTTP/1.0\r\nHost: %s\r\n\r\n", t.Get, t.Config.TLS.ServerName))
	}
	if t.Early {
		if in, err = sendEarly(c, in); err != nil {
			return err
		}
	}
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
	return errors.Join(t.talk(c, in), c.Close())
}

// sendEarly sends the first of in as early data, as much as one Read gives and
// the server takes, and returns what is to be sent after the handshake: the
// rest, behind all of it if the server has refused the early data.
func sendEarly(c *Conn, in io.Reader) (rest io.Reader, err error) {
	early := make([]byte, min(c.Engine().EarlyLimit(), readSize))
	if len(early) == 0 {
		return in, nil
	}
	n, err := in.Read(early)
	if err != nil && err != io.EOF {
		return nil, err
	}
	early = early[:n]
	if err := c.WriteEarly(early); err != nil {
		return nil, err
	}
	return io.MultiReader(&refused{c, bytes.NewReader(early)}, in), nil
}

// A refused reader has the early data, if the server refused it.
type refused struct {
	c     *Conn
	early io.Reader
}

func (r *refused) Read(p []byte) (int, error) {
	if r.c.Engine().EarlyDataAccepted() {
		return 0, io.EOF
	}
	return r.early.Read(p)
}

func (t *TestClient) talk(c *Conn, in io.Reader) error {
	switch {
	case t.Get != "": // the server ends first
		if _, err := io.Copy(c, in); err != nil {
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
			if _, err := io.Copy(c, in); err == nil {
				_ = c.CloseWrite() // Read tells what became of the connection
			}
		}()
	}
	_, err := io.Copy(t.Out, c)
	return err
}

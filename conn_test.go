package tcpls

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/go-tcpls/tcpls/internal/memnet"
	"golang.org/x/net/nettest"
)

// Streams are net.Conns, however one comes by them.

func TestConnMemory(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		p := newMemPair(t, memnet.Link{}, nil)
		c1, c2 = p.open(t)
		return c1, c2, p.close, nil
	})
}

func TestConnOpenedByServer(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		p := newMemPair(t, memnet.Link{}, nil)
		c1, c2 = openStream(t, p.server, p.client)
		return c1, c2, p.close, nil
	})
}

func TestConnTCP(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		client, server := newTestConfigs()
		c, s := newTCPPair(t, client, server)
		c1, c2 = openStream(t, c, s)
		return c1, c2, func() {
			var both sync.WaitGroup
			both.Go(func() { c.Close() })
			both.Go(func() { s.Close() })
			both.Wait()
		}, nil
	})
}

// The streams of Session.Streams and Listener.Streams, as net/http sees them.

func TestConnSessionStreams(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		p := newMemPair(t, memnet.Link{}, nil)
		l := p.server.Streams()
		st, err := p.client.OpenStream(context.Background())
		if err != nil {
			return nil, nil, nil, err
		}
		announce(t, st)
		c2, err = l.Accept()
		return st, c2, func() { p.close(); l.Close() }, err
	})
}

func TestConnListenerStreams(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		client, server := newTestConfigs()
		l, err := Listen("tcp", "127.0.0.1:0", server)
		if err != nil {
			return nil, nil, nil, err
		}
		streams := l.Streams()
		d := &Dialer{Config: client}
		c1, err = d.DialStream(context.Background(), "tcp", l.Addr().String())
		if err != nil {
			return nil, nil, nil, err
		}
		announce(t, c1.(*Stream))
		c2, err = streams.Accept()
		return c1, c2, func() {
			ctx, cancel := context.WithCancel(context.Background())
			cancel() // nobody closes the streams
			l.Shutdown(ctx)
			d.Close()
		}, err
	})
}

// TestConnPlain leaves out what plain TLS can't do: after a Write that its
// deadline cut off, neither crypto/tls nor our own engine can go on.
func TestConnPlain(t *testing.T) {
	client, server := newTestConfigs()
	plain := tlsServerOf(t, server)
	c, err := Dial(context.Background(), "tcp", plain.Addr().String(), client)
	if err != nil {
		t.Fatal(err)
	}
	if c.ConnectionState().TCPLS {
		t.Fatal("a crypto/tls server is said to speak TCPLS")
	}
	st, err := c.OpenStream(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	data := testBytes(1, 1<<20)
	var wg sync.WaitGroup
	wg.Go(func() { mustWrite(t, st, data) })
	wantRead(t, "an echo through plain TLS", st, data)
	wg.Wait()
	if err := st.CloseWrite(); err != nil {
		t.Errorf("CloseWrite: %v", err)
	}
	if _, err := io.ReadAll(st); err != nil {
		t.Errorf("the end of the echo: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

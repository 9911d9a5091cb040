package main

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/go-tcpls/tcpls"
)

// An arena sets up the connections of a demo, and closes them all.
type arena struct {
	*tool
	cert    tls.Certificate
	control string // congestion control, or ""

	mu      sync.Mutex
	closers []io.Closer
}

func (a *arena) keep(c io.Closer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closers = append(a.closers, c)
}

// close ends what was opened, the last first. It may be called again.
func (a *arena) close() {
	a.mu.Lock()
	closers := a.closers
	a.closers = nil
	a.mu.Unlock()
	for i := len(closers) - 1; i >= 0; i-- {
		if err := closers[i].Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			a.logger.Debug("closing", "err", err)
		}
	}
}

func (a *arena) serverConfig() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{a.cert}, KeyLogWriter: a.secret}
}

// clientConfig believes the arena's certificate by its pin. Both transports
// agree on the same things, so that the moving is what differs.
func (a *arena) clientConfig() *tls.Config {
	return &tls.Config{
		ServerName:         "127.0.0.1",
		InsecureSkipVerify: true, // VerifyConnection does it
		VerifyConnection:   pinOf(a.cert.Leaf).verify,
		MinVersion:         tls.VersionTLS13,
		KeyLogWriter:       a.secret,
	}
}

// tcpls connects the two ends of a stream.
func (a *arena) tcpls(ctx context.Context) (*racer, error) {
	ln, err := tcpls.Listen("tcp", "127.0.0.1:0", &tcpls.Config{TLS: a.serverConfig(), Congestion: a.control, Logger: a.logger})
	if err != nil {
		return nil, err
	}
	a.keep(ln)
	started := time.Now()
	session, err := tcpls.Dial(ctx, "tcp", ln.Addr().String(), &tcpls.Config{
		TLS: a.clientConfig(), Congestion: a.control, Logger: a.logger, Fallback: tcpls.FallbackRefuse,
	})
	if err != nil {
		return nil, err
	}
	a.keep(session)
	took := time.Since(started)
	to, err := session.OpenStream(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := to.Write(hello); err != nil {
		return nil, err
	}
	server, err := ln.Accept(ctx)
	if err != nil {
		return nil, err
	}
	a.keep(server)
	from, err := server.AcceptStream(ctx)
	if err != nil {
		return nil, err
	}
	return begin("TCPLS", from, to, to.ConnectionState(), took)
}

// tls connects the two ends of a crypto/tls connection.
func (a *arena) tls(ctx context.Context) (*racer, error) {
	config := net.ListenConfig{Control: congestionControl(a.control)}
	config.SetMultipathTCP(false)
	inner, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	ln := tls.NewListener(inner, a.serverConfig())
	a.keep(ln)
	type accepted struct {
		conn net.Conn
		err  error
	}
	serverc := make(chan accepted, 1)
	go func() {
		conn, err := ln.Accept()
		if err == nil {
			err = conn.(*tls.Conn).HandshakeContext(ctx)
		}
		serverc <- accepted{conn, err}
	}()
	started := time.Now()
	dialer := tls.Dialer{NetDialer: &net.Dialer{Control: congestionControl(a.control)}, Config: a.clientConfig()}
	to, err := dialer.DialContext(ctx, "tcp", ln.Addr().String())
	if err != nil {
		return nil, err
	}
	a.keep(to)
	took := time.Since(started)
	server := <-serverc
	if server.err != nil {
		return nil, server.err
	}
	a.keep(server.conn)
	if _, err := to.Write(hello); err != nil {
		return nil, err
	}
	return begin("crypto/tls", server.conn, to, to.(*tls.Conn).ConnectionState(), took)
}

// hello is what the client says first: it makes the stream known to the server.
var hello = []byte("hello\n")

// begin reads the client's hello and makes a racer of the connection.
func begin(name string, from, to net.Conn, state tls.ConnectionState, took time.Duration) (*racer, error) {
	if _, err := io.ReadFull(from, make([]byte, len(hello))); err != nil {
		return nil, err
	}
	return &racer{
		Name:      name,
		Facts:     tls.VersionName(state.Version) + ", " + tls.CipherSuiteName(state.CipherSuite) + ", " + state.CurveID.String(),
		Handshake: milliseconds(took),
		from:      from, to: to,
	}, nil
}

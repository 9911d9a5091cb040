package lab

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"syscall"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/go-tcpls/tcpls"
)

// A transport is one of the protocols that are compared. Their servers give
// streams by a net.Listener, so that one application serves all of them.
type transport struct {
	name   string
	listen func(ctx context.Context, address string, e endpoint) (net.Listener, error)
	dial   func(ctx context.Context, address string, e endpoint) (session, error)
}

// A session is a client's connection of a transport.
type session interface {
	// open returns a further stream. Transports without streams have one, and
	// then return errOneStream.
	open(ctx context.Context) (stream, error)
	Close() error
}

// A stream can end one direction.
type stream interface {
	net.Conn
	CloseWrite() error
}

var errOneStream = errors.New("the protocol has one stream a connection")

// An endpoint is how one side of a transport is set up.
type endpoint struct {
	host       *Host // nil: this machine
	tls        *tls.Config
	congestion string        // of TCP sockets; empty: the system's
	dialer     *tcpls.Dialer // what differs for TCPLS, its Config aside; may be nil
	tcpls      tcpls.Config  // TLS and Congestion aside
	quic       quic.Config
	resolver   *net.Resolver // of a client, for TCP; nil: the system's
	// accepted, if it isn't nil, sees each TCP connection of a server first.
	accepted func(net.Conn)
}

// do calls f where the endpoint is.
func (e endpoint) do(f func() error) error {
	if e.host == nil {
		return f()
	}
	return e.host.Do(f)
}

func (e endpoint) tcplsConfig() *tcpls.Config {
	cfg := e.tcpls.Clone()
	cfg.TLS, cfg.Congestion = e.tls, e.congestion
	return cfg
}

// The transports.
var (
	overTCP   = transport{"TCP", listenTCP, dialTCP}
	overTLS   = transport{"TLS/TCP", listenTLS, dialTLS}
	overMPTCP = transport{"TLS/MPTCP", listenMPTCP, dialMPTCP}
	overQUIC  = transport{"QUIC", listenQUIC, dialQUIC}
	overTCPLS = transport{"TCPLS", listenTCPLS, dialTCPLS}
)

var transports = []transport{overTCP, overTLS, overMPTCP, overQUIC, overTCPLS}

func transportNamed(name string) (transport, error) {
	for _, t := range transports {
		if t.name == name {
			return t, nil
		}
	}
	return transport{}, fmt.Errorf("there is no transport %q", name)
}

// TCP

func (e endpoint) listenTCP(ctx context.Context, address string, multipath bool) (net.Listener, error) {
	lc := net.ListenConfig{Control: e.controlListener}
	lc.SetMultipathTCP(multipath) // Go's default is true
	var l net.Listener
	err := e.do(func() (err error) {
		l, err = lc.Listen(ctx, "tcp", address)
		return err
	})
	if err != nil || e.accepted == nil {
		return l, err
	}
	return acceptor{l, e.accepted}, nil
}

// An acceptor shows the connections that it accepts.
type acceptor struct {
	net.Listener
	accepted func(net.Conn)
}

func (a acceptor) Accept() (net.Conn, error) {
	conn, err := a.Listener.Accept()
	if err == nil {
		a.accepted(conn)
	}
	return conn, err
}

func (e endpoint) dialTCP(ctx context.Context, address string, multipath bool) (net.Conn, error) {
	d := net.Dialer{Control: e.control, Resolver: e.resolver}
	d.SetMultipathTCP(multipath)
	var conn net.Conn
	err := e.do(func() (err error) {
		conn, err = d.DialContext(ctx, "tcp", address)
		return err
	})
	if err != nil {
		return nil, err
	}
	if got, err := conn.(*net.TCPConn).MultipathTCP(); multipath && (err != nil || !got) {
		conn.Close()
		return nil, fmt.Errorf("the connection to %s isn't Multipath TCP: %v", address, err)
	}
	return conn, nil
}

// control prepares a client's TCP socket.
func (e endpoint) control(_, _ string, c syscall.RawConn) error {
	return e.controlSocket(c, controlFastOpen)
}

// controlListener prepares a server's.
func (e endpoint) controlListener(_, _ string, c syscall.RawConn) error {
	return e.controlSocket(c, controlFastOpenListener)
}

func (e endpoint) controlSocket(c syscall.RawConn, fastOpen func(syscall.RawConn) error) error {
	if e.congestion != "" {
		if err := controlCongestion(c, e.congestion); err != nil {
			return err
		}
	}
	if e.tcpls.FastOpen {
		return fastOpen(c)
	}
	return nil
}

func listenTCP(ctx context.Context, address string, e endpoint) (net.Listener, error) {
	return e.listenTCP(ctx, address, false)
}

func dialTCP(ctx context.Context, address string, e endpoint) (session, error) {
	conn, err := e.dialTCP(ctx, address, false)
	if err != nil {
		return nil, err
	}
	return &single{stream: conn.(*net.TCPConn)}, nil
}

// A single is a session of one stream.
type single struct {
	stream
	opened bool
}

func (s *single) open(context.Context) (stream, error) {
	if s.opened {
		return nil, errOneStream
	}
	s.opened = true
	return s.stream, nil
}

// TLS

func listenTLS(ctx context.Context, address string, e endpoint) (net.Listener, error) {
	return e.listenTLS(ctx, address, false)
}

func listenMPTCP(ctx context.Context, address string, e endpoint) (net.Listener, error) {
	return e.listenTLS(ctx, address, true)
}

func (e endpoint) listenTLS(ctx context.Context, address string, multipath bool) (net.Listener, error) {
	l, err := e.listenTCP(ctx, address, multipath)
	if err != nil {
		return nil, err
	}
	return tls.NewListener(l, e.tls), nil
}

func dialTLS(ctx context.Context, address string, e endpoint) (session, error) {
	return e.dialTLS(ctx, address, false)
}

func dialMPTCP(ctx context.Context, address string, e endpoint) (session, error) {
	return e.dialTLS(ctx, address, true)
}

func (e endpoint) dialTLS(ctx context.Context, address string, multipath bool) (session, error) {
	raw, err := e.dialTCP(ctx, address, multipath)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, e.tls)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return &single{stream: conn}, nil
}

// TCPLS

func listenTCPLS(ctx context.Context, address string, e endpoint) (net.Listener, error) {
	l, err := e.listenTCPLS(ctx, address)
	if err != nil {
		return nil, err
	}
	return l.Streams(), nil
}

func (e endpoint) listenTCPLS(ctx context.Context, address string) (*tcpls.Listener, error) {
	inner, err := e.listenTCP(ctx, address, false)
	if err != nil {
		return nil, err
	}
	return tcpls.NewListener(inner, e.tcplsConfig())
}

func dialTCPLS(ctx context.Context, address string, e endpoint) (session, error) {
	s, err := e.dialTCPLS(ctx, address)
	if err != nil {
		return nil, err
	}
	return tcplsSession{s}, nil
}

func (e endpoint) dialTCPLS(ctx context.Context, address string) (*tcpls.Session, error) {
	d := e.dialer
	if d == nil {
		d = new(tcpls.Dialer)
	}
	d.Config = e.tcplsConfig()
	switch {
	case e.host != nil:
		d.DialContext = func(ctx context.Context, _, address string) (net.Conn, error) {
			return e.dialTCP(ctx, address, false)
		}
	case e.resolver != nil:
		d.NetDialer = &net.Dialer{Resolver: e.resolver}
	}
	return d.Dial(ctx, "tcp", address)
}

type tcplsSession struct{ *tcpls.Session }

func (s tcplsSession) open(ctx context.Context) (stream, error) { return s.OpenStream(ctx) }

// QUIC

// quicALPN is needed: QUIC has no connections without ALPN (RFC 9001, 8.1).
const quicALPN = "tcpls-lab"

func (e endpoint) quicTLS() *tls.Config {
	cfg := e.tls.Clone()
	cfg.NextProtos = []string{quicALPN}
	return cfg
}

func listenQUIC(_ context.Context, address string, e endpoint) (net.Listener, error) {
	at, err := net.ResolveUDPAddr("udp", address)
	if err != nil {
		return nil, err
	}
	socket, err := e.listenUDP(at)
	if err != nil {
		return nil, err
	}
	tr := &quic.Transport{Conn: socket}
	l, err := tr.ListenEarly(e.quicTLS(), &e.quic)
	if err != nil {
		return nil, errors.Join(err, socket.Close())
	}
	q := &quicListener{EarlyListener: l, streams: make(chan stream)}
	q.below.add(socket)
	q.below.add(tr)
	q.ctx, q.stop = context.WithCancel(context.Background())
	go q.accept()
	return q, nil
}

func (e endpoint) listenUDP(at *net.UDPAddr) (socket *net.UDPConn, err error) {
	err = e.do(func() (err error) {
		socket, err = net.ListenUDP("udp", at)
		return err
	})
	return socket, err
}

// A quicListener gives the streams of all connections.
type quicListener struct {
	*quic.EarlyListener
	below   closeAll
	streams chan stream
	ctx     context.Context
	stop    context.CancelFunc
}

func (l *quicListener) accept() {
	for {
		conn, err := l.EarlyListener.Accept(l.ctx)
		if err != nil {
			return
		}
		go func() {
			for {
				s, err := conn.AcceptStream(l.ctx)
				if err != nil {
					return
				}
				select {
				case l.streams <- quicStream{s, conn}:
				case <-l.ctx.Done():
					return
				}
			}
		}()
	}
}

func (l *quicListener) Accept() (net.Conn, error) {
	select {
	case s := <-l.streams:
		return s, nil
	case <-l.ctx.Done():
		return nil, net.ErrClosed
	}
}

func (l *quicListener) Close() error {
	l.stop()
	return errors.Join(l.EarlyListener.Close(), l.below.Close())
}

func dialQUIC(ctx context.Context, address string, e endpoint) (session, error) {
	s, err := e.dialQUIC(ctx, address, (*quic.Transport).Dial)
	if err != nil {
		return nil, err // not a nil quicSession
	}
	return s, nil
}

// dialQUIC dials from a Transport of its own: one that can have further paths,
// unlike quic.DialAddr's, whose connections have no connection ID.
func (e endpoint) dialQUIC(ctx context.Context, address string, dial func(*quic.Transport, context.Context, net.Addr, *tls.Config, *quic.Config) (*quic.Conn, error)) (*quicSession, error) {
	to, err := net.ResolveUDPAddr("udp", address)
	if err != nil {
		return nil, err
	}
	socket, err := e.listenUDP(nil)
	if err != nil {
		return nil, err
	}
	s := &quicSession{socket: socket, transport: &quic.Transport{Conn: socket}}
	if s.conn, err = dial(s.transport, ctx, to, e.quicTLS(), &e.quic); err != nil {
		return nil, errors.Join(err, s.transport.Close(), socket.Close())
	}
	return s, nil
}

type quicSession struct {
	conn      *quic.Conn
	transport *quic.Transport
	socket    *net.UDPConn
}

func (s *quicSession) open(ctx context.Context) (stream, error) {
	st, err := s.conn.OpenStreamSync(ctx)
	if err != nil {
		return nil, err
	}
	return quicStream{st, s.conn}, nil
}

func (s *quicSession) Close() error {
	return errors.Join(s.conn.CloseWithError(0, ""), s.transport.Close(), s.socket.Close())
}

// A quicStream is a QUIC stream in net.Conn's terms.
type quicStream struct {
	*quic.Stream
	conn *quic.Conn
}

func (s quicStream) LocalAddr() net.Addr  { return s.conn.LocalAddr() }
func (s quicStream) RemoteAddr() net.Addr { return s.conn.RemoteAddr() }
func (s quicStream) CloseWrite() error    { return s.Stream.Close() }

func (s quicStream) Close() error {
	s.CancelRead(0)
	return s.Stream.Close()
}

// serverName is that of the certificate of every server here.
const serverName = "lab.test"

// newTLS returns the configurations of a server and of a client that trusts it,
// with TLS 1.3 and AES-128-GCM's usual key exchange, without certificates of
// clients.
func newTLS() (server, client *tls.Config, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: serverName},
		DNSNames:              []string{serverName},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(30 * 24 * time.Hour),
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	server = &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}},
		MinVersion:   tls.VersionTLS13,
	}
	client = &tls.Config{RootCAs: roots, ServerName: serverName, MinVersion: tls.VersionTLS13}
	return server, client, nil
}

// closeAll closes what was opened, the last one first.
type closeAll []io.Closer

func (c *closeAll) add(closer io.Closer) { *c = append(*c, closer) }

func (c *closeAll) Close() error {
	var errs []error
	for i := len(*c) - 1; i >= 0; i-- {
		errs = append(errs, (*c)[i].Close())
	}
	*c = nil
	return errors.Join(errs...)
}

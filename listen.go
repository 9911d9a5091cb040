package tcpls

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/go-tcpls/tcpls/internal/osnet"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// Server opens a session over a connection that exists, with the server's
// part. It owns conn from then on, also if it fails. The context bounds the
// handshake only. Errors: ErrNotTCPLS, ErrHandshakeTimeout, the context's, those
// of crypto/tls, or what was met instead of a TLS client.
func Server(ctx context.Context, conn net.Conn, cfg *Config) (*Session, error) {
	full, err := cfg.withDefaults()
	if err != nil {
		_ = conn.Close() // never used
		return nil, err
	}
	return serve(ctx, conn, full)
}

// serve tells TCPLS clients from others by their first bytes: ordinary ones
// are crypto/tls's, so that our engine never has to serve them.
func serve(ctx context.Context, conn net.Conn, cfg *Config) (_ *Session, err error) {
	defer func() {
		if err != nil && err != ErrJoined {
			_ = conn.Close() // the handshake's error matters more
		}
	}()
	ctx, cancel := context.WithTimeoutCause(ctx, cfg.HandshakeTimeout, ErrHandshakeTimeout)
	defer cancel()
	if err := prepareSocket(conn, cfg); err != nil {
		return nil, err
	}
	hello, read, err := readHello(ctx, conn, cfg.HandshakeTimeout)
	if err != nil {
		return nil, refuseHello(conn, cfg, read, err)
	}
	offer, offered := hello.Extension(wire.ExtensionType)
	if ours, err := wire.ParseOffer(offer); !offered || err == nil && !ours { // the engine refuses a malformed one
		return servePlain(ctx, conn, cfg, read)
	}
	h, err := serverHandshake(ctx, conn, cfg, read)
	if err != nil {
		return nil, err
	}
	if !h.tcpls {
		return nil, fmt.Errorf("%w: its offer vanished", ErrNotTCPLS)
	}
	if h.engine.PSKUsed() != nil {
		if err := joined(conn, h); err != nil {
			return nil, err
		}
		return nil, ErrJoined
	}
	return newSession(cfg, conn, h, nil), nil
}

// A Listener accepts sessions. Its methods may be called from many goroutines
// at once.
type Listener struct {
	inner net.Listener
	cfg   *Config
	ready chan *Session
	slots chan struct{} // one for each handshake and session that waits
	doors admission
	ctx   context.Context
	stop  context.CancelFunc
	tasks sync.WaitGroup

	mu       sync.Mutex
	sessions map[*Session]struct{}
	closed   bool

	streamsOnce sync.Once
	streams     *allStreams
}

// Listen listens on a TCP address, as "tcp" and ":443", with plain TCP sockets
// (since Go 1.24, net.Listen alone makes Multipath TCP ones). Errors are those
// of package net, and name what is wrong with the network or the Config.
func Listen(network, address string, cfg *Config) (*Listener, error) {
	switch network {
	case "tcp", "tcp4", "tcp6":
	default:
		return nil, fmt.Errorf("tcpls: network %q is not TCP", network)
	}
	full, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	if full.FastOpen {
		lc.Control = func(_, address string, c syscall.RawConn) error {
			if err := osnet.SetFastOpenQueue(c, full.MaxPending); err != nil {
				full.Logger.Debug("no TCP Fast Open", "address", address, "error", err)
			}
			return nil
		}
	}
	inner, err := lc.Listen(context.Background(), network, address)
	if err != nil {
		return nil, err
	}
	l, err := NewListener(inner, cfg)
	if err != nil {
		_ = inner.Close() // never used
		return nil, err
	}
	return l, nil
}

// NewListener accepts sessions on the connections of inner, which it owns from
// then on, unless it fails: by an error that names what Config lacks. A TCP listener should be a plain one, see Listen; one that speaks
// Multipath TCP is reported to the Logger.
func NewListener(inner net.Listener, cfg *Config) (*Listener, error) {
	full, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if len(full.TLS.Certificates) == 0 && full.TLS.GetCertificate == nil && full.TLS.GetConfigForClient == nil {
		return nil, errors.New("tcpls: Config.TLS has no certificate; a server needs Certificates, GetCertificate or GetConfigForClient")
	}
	if full.reportsSYNs() {
		saveSYNs(inner, full)
	}
	if multipath(inner) {
		full.Logger.Warn("listener speaks Multipath TCP; socket options will fail: use tcpls.Listen, or ListenConfig.SetMultipathTCP(false)")
	}
	ctx, stop := context.WithCancel(context.Background())
	l := &Listener{
		inner: inner, cfg: full, ctx: ctx, stop: stop,
		ready: make(chan *Session), slots: make(chan struct{}, full.MaxPending),
		sessions: make(map[*Session]struct{}),
		doors:    admission{most: full.MaxSessions, share: full.MaxPendingPerSource, pending: make(map[netip.Prefix]int)},
	}
	l.tasks.Add(1)
	go l.acceptLoop()
	return l, nil
}

// saveSYNs makes the kernel keep how SYNs arrive, for clients that ask.
func saveSYNs(l net.Listener, cfg *Config) {
	raw := rawListener(l)
	if raw == nil {
		return
	}
	if err := osnet.SaveSYN(raw); err != nil {
		cfg.Logger.Debug("clients can't learn how their SYN arrived", "address", l.Addr(), "error", err)
	}
}

// rawListener is the listener's socket, nil if it has none.
func rawListener(l net.Listener) syscall.RawConn {
	if c, ok := l.(syscall.Conn); ok {
		if raw, err := c.SyscallConn(); err == nil {
			return raw
		}
	}
	return nil
}

func multipath(l net.Listener) bool {
	raw := rawListener(l)
	if raw == nil {
		return false
	}
	is, err := osnet.IsMPTCP(raw)
	return err == nil && is
}

// acceptLoop takes connections and runs their handshakes, each on a goroutine
// of its own, at most MaxPending at once.
func (l *Listener) acceptLoop() {
	defer l.tasks.Done()
	var pause time.Duration
	for {
		select {
		case l.slots <- struct{}{}:
		case <-l.ctx.Done():
			return
		}
		conn, err := l.inner.Accept()
		if err != nil {
			<-l.slots
			if l.ctx.Err() != nil {
				return
			}
			if errors.Is(err, net.ErrClosed) {
				l.cfg.Logger.Error("listener failed", "error", err)
				l.stop()
				return
			}
			// As when file descriptors have run out: it passes.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			l.cfg.Logger.Warn("accept failed", "error", err, "retry", pause)
			select {
			case <-time.After(pause):
			case <-l.ctx.Done():
			}
			continue
		}
		pause = 0
		source := sourceOf(conn.RemoteAddr())
		if err := l.doors.admit(source); err != nil {
			l.cfg.Logger.Info("connection refused", "remote", conn.RemoteAddr(), "error", err)
			_ = conn.Close() // unread: the client sees a reset
			<-l.slots
			continue
		}
		l.tasks.Add(1)
		go l.handshake(conn, source)
	}
}

func (l *Listener) handshake(conn net.Conn, source netip.Prefix) {
	defer l.tasks.Done()
	defer func() {
		l.doors.settle(source)
		<-l.slots
	}()
	remote := conn.RemoteAddr()
	s, err := serve(l.ctx, conn, l.cfg)
	if err == ErrJoined {
		l.doors.leave() // it isn't one more session
		return
	}
	if err != nil {
		l.doors.leave()
		l.cfg.Logger.Info("handshake failed", "remote", remote, "error", err)
		return
	}
	if !l.track(s) {
		_ = s.CloseWithError(0, "listener closed") // nobody will serve it
		return
	}
	select {
	case l.ready <- s:
	case <-l.ctx.Done():
		_ = s.CloseWithError(0, "listener closed")
	}
}

// track remembers a session until it ends.
func (l *Listener) track(s *Session) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.sessions[s] = struct{}{}
	context.AfterFunc(s.Context(), func() {
		l.doors.leave()
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.sessions, s)
	})
	return true
}

// Accept waits for a session whose handshake is complete. Clients without
// TCPLS are sessions too, with one stream, unless Config.Fallback refuses
// them. A handshake that fails is logged and doesn't end Accept. The error is
// the context's or ErrListenerClosed.
func (l *Listener) Accept(ctx context.Context) (*Session, error) {
	select {
	case s := <-l.ready:
		return s, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-l.ctx.Done():
		return nil, ErrListenerClosed
	}
}

// Addr returns the address that the listener listens on.
func (l *Listener) Addr() net.Addr { return l.inner.Addr() }

// Close stops listening. Sessions that were accepted live on, others are closed.
// A second call returns ErrListenerClosed.
func (l *Listener) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return ErrListenerClosed
	}
	l.closed = true
	l.mu.Unlock()
	l.stop()
	err := l.inner.Close()
	l.tasks.Wait()
	return err
}

// Shutdown stops listening, tells all clients that no new streams are taken,
// waits until the open ones have ended, and closes the sessions. If the
// context ends first, it closes them at once and returns the context's error.
func (l *Listener) Shutdown(ctx context.Context) error {
	err := l.Close()
	if err == ErrListenerClosed {
		err = nil // by its Streams, as a server that shuts down does
	}
	l.mu.Lock()
	sessions := make([]*Session, 0, len(l.sessions))
	for s := range l.sessions {
		sessions = append(sessions, s)
	}
	l.mu.Unlock()
	errs := make([]error, len(sessions))
	var all sync.WaitGroup
	for i, s := range sessions {
		all.Go(func() { errs[i] = s.Shutdown(ctx) })
	}
	all.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.Join(err, errors.Join(errs...))
}

// allStreams is a net.Listener over the streams of all sessions.
type allStreams struct {
	l     *Listener
	ready chan net.Conn
}

// Streams returns a net.Listener whose connections are the streams of all
// sessions, for servers such as net/http's. It takes the sessions, so Accept
// shouldn't be called beside it. Closing it closes the Listener.
func (l *Listener) Streams() net.Listener {
	l.streamsOnce.Do(func() {
		l.streams = &allStreams{l: l, ready: make(chan net.Conn)}
		l.mu.Lock()
		defer l.mu.Unlock()
		if !l.closed {
			l.tasks.Add(1)
			go l.streams.run()
		}
	})
	return l.streams
}

func (a *allStreams) run() {
	defer a.l.tasks.Done()
	for {
		s, err := a.l.Accept(a.l.ctx)
		if err != nil {
			return
		}
		a.l.tasks.Add(1)
		go a.forward(s)
	}
}

// forward passes on the streams of one session until it ends, or until the
// listener does.
func (a *allStreams) forward(s *Session) {
	defer a.l.tasks.Done()
	for {
		st, err := s.AcceptStream(a.l.ctx)
		if err != nil {
			break
		}
		select {
		case a.ready <- st:
			continue
		case <-a.l.ctx.Done():
		}
		if st.plain == nil {
			st.refuse()
		} else {
			_ = st.Close() // nobody will serve it
		}
	}
	if s.plain == nil {
		s.goAway() // nobody will serve what comes
	}
}

func (a *allStreams) Accept() (net.Conn, error) {
	select {
	case c := <-a.ready:
		return c, nil
	case <-a.l.ctx.Done():
		return nil, ErrListenerClosed
	}
}

func (a *allStreams) Close() error   { return a.l.Close() }
func (a *allStreams) Addr() net.Addr { return a.l.Addr() }

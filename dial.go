package tcpls

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/go-tcpls/tcpls/internal/osnet"
	"github.com/go-tcpls/tcpls/internal/tls13"
)

// Dial opens a session to a server, as "tcp" and "example.com:443". The
// context bounds the dialing only. Errors: those of package net where no
// connection comes about, *tls.CertificateVerificationError, ErrNotTCPLS,
// ErrHandshakeTimeout, or what was met instead of a TLS server.
func Dial(ctx context.Context, network, address string, cfg *Config) (*Session, error) {
	d := Dialer{Config: cfg}
	return d.Dial(ctx, network, address)
}

// Client opens a session over a connection that exists, with the client's
// part. It owns conn from then on, also if it fails. The context bounds the
// handshake only. Errors are Dial's; nothing is redialed.
func Client(ctx context.Context, conn net.Conn, cfg *Config) (*Session, error) {
	full, err := cfg.withDefaults()
	if err != nil {
		_ = conn.Close() // never used
		return nil, err
	}
	s, _, err := connect(ctx, conn, full, approach{offer: true})
	return s, err
}

// A Dialer opens sessions, and keeps those that DialStream uses. It may be
// used by many goroutines at once, and must not be copied.
type Dialer struct {
	// Config must not be nil.
	Config *Config
	// NetDialer makes the connections; nil means a zero net.Dialer. Multipath
	// TCP is never used: TCPLS needs plain TCP sockets.
	NetDialer *net.Dialer
	// DialContext makes the connections instead of NetDialer, if it isn't nil,
	// as for proxies. It gets the address as Dial did, so that the proxy
	// resolves names. Local addresses of paths are then its own business.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
	// Interfaces names the network interfaces to dial from, the preferred one
	// first: every address is tried from each of them in turn, for the session
	// and for paths whose PathSpec says nothing of where they start. What
	// PathSpec.Interface says of routing goes for them too. Default: the system
	// chooses. Not with DialContext.
	Interfaces []string
	// EarlyData makes Dial return at once where a ticket in
	// Config.TLS.ClientSessionCache allows early data (RFC 8446, section 2.3):
	// what streams write then travels with the ClientHello, and in the SYN with
	// Config.FastOpen, if it is written at once: the ClientHello waits for it
	// for 5 ms. An observer can send it to the server again, so use it
	// only for what does no harm when done twice. What the server refuses is
	// sent again after the handshake, once; Session.EarlyData tells. A handshake
	// that fails ends the session, with the error that Dial would have returned.
	EarlyData bool
	// FallbackDelay is after how long the next address of a name is tried
	// while the ones before haven't answered (RFC 8305). The same goes for the
	// next of Interfaces. Default 250 ms;
	// negative: only when they have failed.
	FallbackDelay time.Duration
	// AttemptTimeout is how long an address may take to accept the connection,
	// and then, if it isn't the last one, to answer with its first byte.
	// Default, where there are several, or several Interfaces: 5 s, and then 2 s
	// or four times what the connection took; else no other limits than the
	// context's, NetDialer's and Config.HandshakeTimeout.
	AttemptTimeout time.Duration
	// KeepLosers makes standby paths of the connections that come about though
	// another address was faster: as many as Config.MaxPaths allows on both
	// ends. The others are closed, as all are by default.
	KeepLosers bool

	mu       sync.Mutex
	sessions map[string]*pooled
	memory   map[string]memory
	closed   bool
}

// Dial opens a session, as the function Dial does.
//
// It looks a name up by NetDialer.Resolver and tries up to 16 of its addresses
// (times Interfaces), IPv6 and IPv4 ones in turn, FallbackDelay apart, or at once when one fails. The
// first connection is used, unless it is reset, or silent for AttemptTimeout, at
// the sight of the ClientHello: then the others get their chance. An error
// names every address that was tried. With several addresses, TCP Fast
// Open is only used for further paths, since it says too late which of them answer.
//
// If the connection is reset or stays silent when it sees TCPLS's ClientHello,
// Dial tries once more without the offer, where Config.Fallback allows it, and
// goes on so with that address for ten minutes: some middleboxes don't let
// unknown extensions pass. It never does so with a server that has spoken
// TCPLS before.
func (d *Dialer) Dial(ctx context.Context, network, address string) (*Session, error) {
	cfg, err := d.config(network, address)
	if err != nil {
		return nil, err
	}
	to := target{network: network, address: address}
	if to.candidates, err = d.candidates(ctx, network, address); err != nil {
		return nil, err
	}
	offer := !d.recall(address).blocked
	s, h, err := d.attempt(ctx, to, cfg, offer)
	switch {
	case err == nil:
		if s.state.TCPLS {
			d.remember(address, memory{tcpls: true})
		} else if !offer {
			s.state.Fallback = "the path didn't let the offer of TCPLS pass"
		}
		return s, nil
	case h == nil || cfg.Fallback != FallbackAllow || ctx.Err() != nil:
		return nil, err
	case isOld(err) && cfg.legacyAllowed():
		return d.legacy(ctx, network, d.reached(address, h.conn), d.origin(h.conn), cfg)
	case offer && h.swallowed(err) && !d.recall(address).tcpls:
		rest := *cfg
		rest.HandshakeTimeout /= 2 // the first attempt had the other half
		s, _, plainErr := d.attempt(ctx, to, &rest, false)
		if plainErr != nil {
			return nil, err // the first error tells more
		}
		d.remember(address, memory{blocked: true})
		s.state.Fallback = "the path didn't let the offer of TCPLS pass"
		cfg.Logger.Warn("plain TLS: "+s.state.Fallback, "address", address, "error", err)
		return s, nil
	}
	return nil, err
}

// config returns the configuration for an address.
func (d *Dialer) config(network, address string) (*Config, error) {
	switch network {
	case "tcp", "tcp4", "tcp6":
	default:
		return nil, fmt.Errorf("tcpls: network %q is not TCP", network)
	}
	cfg, err := d.Config.withDefaults()
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if cfg.TLS.ServerName == "" {
		cfg.TLS = cfg.TLS.Clone()
		cfg.TLS.ServerName = host
	}
	return cfg, nil
}

// A target is a server that is dialed.
type target struct {
	network, address string      // as the application gave them
	candidates       []candidate // what to try, in this order
}

// attempt runs a handshake over the first connection to the target on which
// somebody answers; h is nil if there was no connection. What Fast Open didn't
// bring about is tried without.
func (d *Dialer) attempt(ctx context.Context, to target, cfg *Config, offer bool) (s *Session, h *handshake, err error) {
	sockets := *cfg
	sockets.FastOpen = cfg.FastOpen && len(to.candidates) == 1
	r := d.newRace(ctx, to.candidates, func(ctx context.Context, c candidate) (net.Conn, error) {
		return d.connection(ctx, to.network, c.address, &sockets, PathSpec{Interface: c.from})
	})
	defer r.end()
	for {
		a, ok := r.next()
		if !ok {
			return nil, h, r.err(to.address)
		}
		reached := d.reached(to.address, a.conn)
		how := approach{offer: offer, early: d.EarlyData, patience: r.patience(a), dial: d.paths(to.network, reached, cfg)}
		if d.DialContext == nil {
			how.server, _ = netip.ParseAddrPort(reached) // none: it isn't known
		}
		s, h, err = connect(ctx, a.conn, cfg, how)
		switch {
		case err == nil && h.tcpls:
			r.keep(s)
			return s, h, nil
		case err == nil:
			return s, h, nil
		case sockets.FastOpen && h.unconnected(err):
			ordinary := *cfg
			ordinary.FastOpen = false
			return d.attempt(ctx, to, &ordinary, offer)
		}
		a.err = err
		r.fail(a)
		if !h.swallowed(err) || ctx.Err() != nil {
			return nil, h, r.err(to.address)
		}
	}
}

// reached returns the address of the server that conn leads to, whatever its
// name means by then. Behind DialContext that isn't known.
func (d *Dialer) reached(address string, conn net.Conn) string {
	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok && d.DialContext == nil {
		return tcp.String()
	}
	return address
}

// origin is where conn starts, if that is for Interfaces to say.
func (d *Dialer) origin(conn net.Conn) (spec PathSpec) {
	if tcp, ok := conn.LocalAddr().(*net.TCPAddr); ok && len(d.Interfaces) > 0 {
		spec.Local = netip.AddrPortFrom(tcp.AddrPort().Addr(), 0)
	}
	return spec
}

// paths returns how a session opens its further paths.
func (d *Dialer) paths(network, address string, cfg *Config) dialPath {
	return func(ctx context.Context, spec PathSpec) (net.Conn, error) {
		to := address
		if spec.Remote.IsValid() {
			to = spec.Remote.String()
		}
		if spec.Interface != "" || spec.Local.IsValid() || len(d.Interfaces) == 0 {
			return d.connection(ctx, network, to, cfg, spec)
		}
		r := newRace(ctx, d.ways(to), func(ctx context.Context, c candidate) (net.Conn, error) {
			return d.connection(ctx, network, c.address, cfg, PathSpec{Interface: c.from})
		})
		defer r.end()
		d.pace(r)
		if deadline, ok := ctx.Deadline(); ok { // each has its turn
			r.delay = min(r.delay, time.Until(deadline)/time.Duration(len(r.waiting)+1))
		}
		if a, ok := r.next(); ok {
			return a.conn, nil
		}
		return nil, r.err(to)
	}
}

func (d *Dialer) connection(ctx context.Context, network, address string, cfg *Config, spec PathSpec) (net.Conn, error) {
	var nd net.Dialer
	if d.NetDialer != nil {
		nd = *d.NetDialer
	}
	nd.SetMultipathTCP(false)
	if cfg.FastOpen {
		useFastOpen(&nd, cfg.Logger)
	}
	if spec.Interface != "" {
		if err := d.locate(&spec, address); err != nil {
			return nil, err
		}
	}
	if spec.Local.IsValid() {
		nd.LocalAddr = net.TCPAddrFromAddrPort(spec.Local)
	}
	dial := nd.DialContext
	if d.DialContext != nil {
		dial = d.DialContext
	}
	conn, err := dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if err := prepareSocket(conn, cfg); err != nil {
		_ = conn.Close() // never used
		return nil, err
	}
	return conn, nil
}

// locate makes a local address of the interface in spec.
func (d *Dialer) locate(spec *PathSpec, address string) error {
	switch {
	case d.DialContext != nil:
		return errors.New("tcpls: an interface can't be chosen with Dialer.DialContext, which makes the connections")
	case spec.Local.IsValid():
		return errors.New("tcpls: PathSpec.Local and Interface can't be used together")
	}
	remote, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("tcpls: interface %q: %w", spec.Interface, err)
	}
	local, err := interfaceAddr(spec.Interface, remote.Addr())
	spec.Local = netip.AddrPortFrom(local, 0)
	return err
}

// useFastOpen makes nd's sockets defer their connecting to the first write,
// after what the application does with them. Where that can't be had they
// connect as always.
func useFastOpen(nd *net.Dialer, log *slog.Logger) {
	before, plain := nd.ControlContext, nd.Control
	nd.ControlContext = func(ctx context.Context, network, address string, c syscall.RawConn) error {
		var err error
		switch { // as net.Dialer chooses between them
		case before != nil:
			err = before(ctx, network, address, c)
		case plain != nil:
			err = plain(network, address, c)
		}
		if err != nil {
			return err
		}
		if err := osnet.SetFastOpenConnect(c); err != nil {
			log.Debug("no TCP Fast Open", "address", address, "error", err)
		}
		return nil
	}
}

// unconnected reports whether err may be that of a connection that Fast Open
// deferred: with an ordinary one, dialing would have failed, or tried another
// address.
func (h *handshake) unconnected(err error) bool {
	return !h.heard && (errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) ||
		errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.ETIMEDOUT) || errors.Is(err, syscall.EINPROGRESS))
}

// prepareSocket applies the configuration to a new connection.
func prepareSocket(conn net.Conn, cfg *Config) error {
	if cfg.Congestion == "" {
		return nil
	}
	c, ok := conn.(syscall.Conn)
	if !ok {
		return fmt.Errorf("tcpls: Config.Congestion is set, but the connection isn't a socket: %w", errors.ErrUnsupported)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	if err := osnet.SetCongestion(raw, cfg.Congestion); err != nil {
		return fmt.Errorf("tcpls: Config.Congestion %q: %w", cfg.Congestion, err)
	}
	return nil
}

// An approach says how a client begins.
type approach struct {
	offer    bool           // offer TCPLS
	early    bool           // send early data if a ticket allows it
	patience time.Duration  // wait for the first byte, at most; 0: as the Config says
	dial     dialPath       // of further paths; nil: the application's business
	server   netip.AddrPort // where it leads to; invalid: that isn't known
}

// connect runs a client's handshake over conn, which it owns.
func connect(ctx context.Context, conn net.Conn, cfg *Config, how approach) (*Session, *handshake, error) {
	h, err := clientHandshake(ctx, conn, cfg, how)
	if err == nil && !h.tcpls && cfg.Fallback == FallbackRefuse {
		err = h.failed(fmt.Errorf("%w: server doesn't answer the offer", ErrNotTCPLS))
	}
	if err != nil {
		_ = conn.Close() // the handshake's error matters more
		if cfg.Fallback == FallbackRefuse && isOld(err) {
			err = fmt.Errorf("%w: %w", ErrNotTCPLS, err)
		}
		return nil, h, err
	}
	if !h.tcpls {
		why := "server doesn't answer the offer of TCPLS"
		return newPlainSession(cfg, newEngineConn(h), h.engine.ConnectionState(), why, true).withEngine(h.engine), h, nil
	}
	return newSession(cfg, conn, h, how.dial), h, nil
}

func (s *Session) withEngine(e *tls13.Conn) *Session {
	s.engine = e
	return s
}

// isOld reports whether err is what a server without TLS 1.3 answers: those
// that don't know supported_versions choose TLS 1.2 and find no cipher suite.
// crypto/tls then offers all versions and detects downgrades (RFC 8446, 4.1.3).
func isOld(err error) bool {
	alert, ok := errors.AsType[*tls13.AlertError](err)
	return errors.Is(err, tls13.ErrVersion) || ok && alert.Alert == tls13.AlertHandshakeFailure
}

// legacyAllowed reports whether a server may be spoken to that has no TLS 1.3.
func (c *Config) legacyAllowed() bool { return c.TLS.MinVersion < tls.VersionTLS13 }

func (d *Dialer) legacy(ctx context.Context, network, address string, from PathSpec, cfg *Config) (*Session, error) {
	conn, err := d.connection(ctx, network, address, cfg, from)
	if err != nil {
		return nil, err
	}
	s, err := dialLegacy(ctx, conn, cfg)
	if err != nil {
		_ = conn.Close() // the handshake's error matters more
		return nil, err
	}
	return s, nil
}

// swallowed reports whether err looks as if somebody on the path had dropped
// or reset the connection because of the ClientHello.
func (h *handshake) swallowed(err error) bool {
	return !h.heard && (errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE))
}

// A memory is what a Dialer knows of an address.
type memory struct {
	tcpls   bool // it has spoken TCPLS
	blocked bool // it is only reached without the offer
	until   time.Time
}

const (
	memoryTime = 10 * time.Minute
	maxMemory  = 1024
)

func (d *Dialer) recall(address string) memory {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := d.memory[address]
	if m.blocked && time.Now().After(m.until) {
		delete(d.memory, address)
		return memory{}
	}
	return m
}

func (d *Dialer) remember(address string, m memory) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.memory == nil {
		d.memory = make(map[string]memory)
	}
	if _, known := d.memory[address]; !known && len(d.memory) >= maxMemory {
		for other := range d.memory { // any one: the map is a hint
			delete(d.memory, other)
			break
		}
	}
	m.until = time.Now().Add(memoryTime)
	d.memory[address] = m
}

// A pooled session serves DialStream. ready is closed when it is known.
type pooled struct {
	ready   chan struct{}
	session *Session
	err     error
	gaveUp  bool // the context of the call that dialed has ended
}

// DialStream opens a stream on a session to address, which it keeps for the
// next call; so one session carries all of a program's connections to a
// server. It fits http.Transport.DialTLSContext and the like. A server without
// TCPLS gets a connection of its own for each call. Errors are those of Dial and
// Session.OpenStream, and ErrSessionClosed after Close.
func (d *Dialer) DialStream(ctx context.Context, network, address string) (net.Conn, error) {
	for range 2 {
		s, err := d.session(ctx, network, address)
		if err != nil {
			return nil, err
		}
		st, err := s.OpenStream(ctx)
		if err == nil {
			return st, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		d.forget(network, address, s)
	}
	return nil, fmt.Errorf("tcpls: two sessions to %s ended before a stream could be opened: %w", address, ErrSessionClosed)
}

// session returns the kept session to address, or opens one; callers that come
// meanwhile wait for it.
func (d *Dialer) session(ctx context.Context, network, address string) (*Session, error) {
	key := network + " " + address
	for {
		d.mu.Lock()
		if d.closed {
			d.mu.Unlock()
			return nil, ErrSessionClosed
		}
		p := d.sessions[key]
		if p == nil || p.over() {
			p = &pooled{ready: make(chan struct{})}
			if d.sessions == nil {
				d.sessions = make(map[string]*pooled)
			}
			d.sessions[key] = p
			d.mu.Unlock()
			return d.fill(ctx, p, network, address)
		}
		d.mu.Unlock()
		select {
		case <-p.ready:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		switch {
		case p.gaveUp:
			continue // our own context still lives
		case p.err != nil:
			return nil, p.err
		case !p.session.state.TCPLS:
			return d.Dial(ctx, network, address)
		}
		return p.session, nil
	}
}

// fill dials for all who wait for p. What can't be shared isn't kept, nor is a
// session that has ended.
func (d *Dialer) fill(ctx context.Context, p *pooled, network, address string) (*Session, error) {
	p.session, p.err = d.Dial(ctx, network, address)
	p.gaveUp = p.err != nil && ctx.Err() != nil
	close(p.ready)
	if p.err != nil || !p.session.state.TCPLS {
		d.forget(network, address, p.session)
	} else {
		context.AfterFunc(p.session.Context(), func() { d.forget(network, address, p.session) })
	}
	return p.session, p.err
}

// over reports whether a session is known to have ended.
func (p *pooled) over() bool {
	select {
	case <-p.ready:
		return p.session == nil || p.session.over()
	default:
		return false
	}
}

// holds reports whether p is ready with s.
func (p *pooled) holds(s *Session) bool {
	select {
	case <-p.ready:
		return p.session == s
	default:
		return false
	}
}

// forget drops a session that takes no more streams; it ends with its last
// one.
func (d *Dialer) forget(network, address string, s *Session) {
	key := network + " " + address
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.sessions[key]; p != nil && p.holds(s) {
		delete(d.sessions, key)
	}
}

// Close gracefully closes the sessions that DialStream kept, and refuses
// further calls of it.
func (d *Dialer) Close() error {
	d.mu.Lock()
	d.closed = true
	sessions := d.sessions
	d.sessions = nil
	d.mu.Unlock()
	var errs []error
	for _, p := range sessions {
		<-p.ready
		if p.session != nil {
			errs = append(errs, p.session.Close())
		}
	}
	return errors.Join(errs...)
}

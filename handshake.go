package tcpls

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/internal/tls13"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// A handshake is one TLS engine on its way over one connection, and then what
// it leaves to the session.
type handshake struct {
	client    bool
	engine    *tls13.Conn
	conn      net.Conn
	heard     bool // the peer has sent something
	began     time.Time
	roundTrip time.Duration // from our first bytes to the peer's first answer
	early     []byte        // bytes read behind the handshake

	joining       *joining  // the path begins before the handshake is complete
	greeting      *greeting // the session begins before the handshake is complete
	tcpls         bool
	peer          wire.Answer    // of a client; else of use once PARAMETERS has come
	invitation    *invitation    // a server's
	server        netip.AddrPort // where a client's further paths lead to; invalid: not known
	send, receive *record.Keys
}

// minSendLimit is the smallest record_size_limit that frames fit in (protocol 4.5).
const minSendLimit = 4096

// clientHandshake runs a client's handshake. With early data to come, and a
// ticket that allows it, it returns a greeting instead.
func clientHandshake(ctx context.Context, conn net.Conn, cfg *Config, how approach) (*handshake, error) {
	h := &handshake{client: true, conn: conn, server: how.server}
	engineConfig := &tls13.Config{TLS: cfg.TLS, NetConn: conn}
	if how.early && how.offer {
		engineConfig.MaxEarlyData = 1
	}
	if how.offer {
		engineConfig.Extension = wire.ExtensionType
		engineConfig.Offer = wire.AppendOffer(nil)
		engineConfig.Accept = func(answer []byte) (err error) {
			h.peer, err = wire.ParseAnswer(answer)
			return extensionError(err)
		}
	}
	engine, err := tls13.NewClient(engineConfig)
	if err != nil {
		return h, err
	}
	h.engine = engine
	if how.early && how.offer && h.beginEarly(time.Now().Add(cfg.HandshakeTimeout)) {
		return h, nil
	}
	patience := cfg.HandshakeTimeout
	if how.offer && cfg.Fallback == FallbackAllow {
		patience /= 2 // leaves time to try without the extension
	}
	if how.patience > 0 {
		patience = min(patience, how.patience)
	}
	return h, h.run(ctx, cfg, patience, nil)
}

// joinHandshake runs the client's handshake of a further path of s, with a token
// as its PSK's identity (protocol 9.2).
func joinHandshake(ctx context.Context, conn net.Conn, s *Session, t token) (*handshake, error) {
	h := &handshake{client: true, conn: conn}
	engine, err := s.joinEngine(conn, t, 0, &h.peer)
	if err != nil {
		return nil, err
	}
	h.engine = engine
	if err := h.run(ctx, s.cfg, s.cfg.HandshakeTimeout, nil); err != nil {
		return h, err
	}
	if !h.tcpls || h.engine.PSKUsed() == nil {
		return h, ErrJoinRefused
	}
	return h, nil
}

// lookUpToken finds the PSK of a token that a client offers. One of ours that
// was spent ends the handshake: it is no ticket, so nothing else can be meant.
// It waits for a session whose handshake goes on, while ctx lives.
func lookUpToken(ctx context.Context, identity []byte) (*tls13.PSK, error) {
	i, ok := joins.find(identity)
	if !ok {
		if joins.isToken(identity) {
			return nil, ErrTokenSpent
		}
		return nil, nil
	}
	s := i.to.wait(ctx)
	if err := context.Cause(ctx); s == nil && err != nil {
		return nil, err
	}
	if s == nil {
		return nil, ErrTokenSpent
	}
	s.mu.Lock()
	full := s.full()
	s.mu.Unlock()
	if full { // told while there is somebody to tell; its token stays good
		return nil, s.errFull()
	}
	secret, err := s.tokenSecret(identity)
	if err != nil {
		return nil, err
	}
	return &tls13.PSK{
		Secret: secret, Suite: s.engine.Suite(),
		ALPN: s.ConnectionState().TLS.NegotiatedProtocol, MaxEarlyData: maxJoinEarly,
	}, nil
}

// serverHandshake runs the handshake of a client that offered TCPLS; read
// holds what it sent so far.
func serverHandshake(ctx context.Context, conn net.Conn, cfg *Config, read []byte) (*handshake, error) {
	h := &handshake{conn: conn, heard: true, invitation: newInvitation()}
	engineConfig := &tls13.Config{
		TLS: cfg.TLS, NetConn: conn, Extension: wire.ExtensionType,
		LookupPSK: func(identity []byte) (*tls13.PSK, error) { return lookUpToken(ctx, identity) },
		Answer: func(offer []byte) ([]byte, error) {
			if ours, err := wire.ParseOffer(offer); err != nil || !ours {
				return nil, extensionError(err)
			}
			answer := wire.AppendAnswer(nil, cfg.parameters())
			if used := h.engine.PSKUsed(); used != nil {
				return wire.AppendTokens(answer, joins.next(used)), nil
			}
			if cfg.MaxPaths > 1 {
				answer = wire.AppendTokens(answer, h.invitation.invite())
				answer = wire.AppendAddresses(answer, cfg.advertised().known)
			}
			return answer, nil
		},
	}
	cfg.serverEarly(ctx, engineConfig)
	engine, err := tls13.NewServer(engineConfig)
	if err != nil {
		return h, err
	}
	h.engine = engine
	err = h.run(ctx, cfg, cfg.HandshakeTimeout, read)
	if err != nil || !h.tcpls || engine.PSKUsed() != nil {
		h.invitation.withdraw()
	}
	return h, err
}

// extensionError gives what an Offer or Answer has wrong its alert: what can't
// be read is decode_error, and a version that wasn't offered what the engine
// says by itself, illegal_parameter (protocol 2.2).
func extensionError(err error) error {
	var malformed *wire.Error
	if errors.As(err, &malformed) && malformed.Rule != "2.2" {
		return tls13.AlertDecodeError.Because(err)
	}
	return err
}

// refuseHello answers bytes that are no ClientHello, for the reason err, by the
// alert that the engine finds due for them.
func refuseHello(conn net.Conn, cfg *Config, read []byte, err error) error {
	var broken *tls13.Error
	if !errors.As(err, &broken) {
		return err // of the connection
	}
	engine, cfgErr := tls13.NewServer(&tls13.Config{TLS: cfg.TLS})
	if cfgErr != nil {
		return err
	}
	if _, found := engine.Feed(read); found != nil {
		err = found
	}
	h := &handshake{engine: engine, conn: conn}
	return h.failed(err)
}

// run drives the engine until the handshake is complete. One deadline stands
// over all of it; patience bounds the wait for the peer's first byte. After an
// error the alert has been sent, and the connection is to be closed.
func (h *handshake) run(ctx context.Context, cfg *Config, patience time.Duration, read []byte) error {
	h.began = time.Now()
	stop := h.limit(ctx, patience)
	err := h.exchange(ctx, cfg, read)
	if !stop() && err == nil {
		err = os.ErrDeadlineExceeded // which stands on the connection, or is about to
	}
	if err != nil {
		if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
			return context.Cause(ctx) // not the peer's fault, and out of time for an alert
		}
		return h.failed(err)
	}
	if err := h.conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	h.tcpls = h.engine.ExtensionAnswered()
	if !h.tcpls {
		return nil
	}
	if h.engine.SendLimit() < minSendLimit {
		return h.failed(fmt.Errorf("tcpls: peer takes records of %d bytes only, TCPLS needs %d (protocol 4.5)", h.engine.SendLimit(), minSendLimit))
	}
	switch {
	case h.engine.EarlyData() && h.engine.PSKUsed() != nil:
		h.joining = &joining{engine: h.engine, early: h.engine.TakeEarlyKeys()}
	case h.engine.EarlyData():
		until, _ := ctx.Deadline() // serve has set it
		h.acceptEarly(until)
	default:
		h.send, h.receive = h.engine.TakeKeys()
	}
	return nil
}

// limit sets the connection's deadline, and moves it into the past when the
// context ends.
func (h *handshake) limit(ctx context.Context, d time.Duration) (stop func() bool) {
	_ = h.conn.SetDeadline(h.began.Add(d)) // if it can't be set, the context still ends the wait
	return context.AfterFunc(ctx, func() { _ = h.conn.SetDeadline(time.Unix(1, 0)) })
}

// awaitRecord waits until the peer has sent something behind its handshake.
func (h *handshake) awaitRecord(ctx context.Context) error {
	if len(h.early) > 0 {
		return nil
	}
	h.began = time.Now()
	stop := h.limit(ctx, max(time.Second, 4*h.roundTrip))
	buf := make([]byte, maxRecord)
	n, err := h.conn.Read(buf)
	h.early = buf[:n]
	if !stop() {
		return context.Cause(ctx)
	}
	if n == 0 {
		return h.transportError(err)
	}
	return h.conn.SetDeadline(time.Time{})
}

func (h *handshake) exchange(ctx context.Context, cfg *Config, read []byte) error {
	in := smallReads.get()
	defer smallReads.put(in)
	have := 0
	var sent time.Time
	for {
		n, err := h.engine.Feed(read)
		if err != nil {
			return err
		}
		have = copy(*in, read[n:])
		if out := h.engine.Output(); len(out) > 0 {
			if sent.IsZero() {
				sent = time.Now()
			}
			if _, err := h.conn.Write(out); err != nil {
				return h.transportError(err)
			}
		}
		if h.engine.HandshakeComplete() || h.engine.EarlyData() {
			h.early = append([]byte(nil), (*in)[:have]...)
			return nil
		}
		n, err = h.conn.Read((*in)[have:])
		if n == 0 && err != nil {
			return h.transportError(err)
		}
		if !h.heard {
			h.heard = true
			_ = h.conn.SetDeadline(h.began.Add(cfg.HandshakeTimeout))
			if ctx.Err() != nil { // its deadline, in the past, was just overwritten
				return os.ErrDeadlineExceeded
			}
		}
		if h.roundTrip == 0 && !sent.IsZero() {
			h.roundTrip = time.Since(sent)
		}
		read = (*in)[:have+n]
	}
}

// transportError says what an I/O error means in the middle of a handshake.
func (h *handshake) transportError(err error) error {
	var timeout net.Error
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		if !h.heard {
			return fmt.Errorf("%w: peer accepted the connection but sent nothing: %w", ErrHandshakeTimeout, os.ErrDeadlineExceeded)
		}
		return fmt.Errorf("%w: %w", ErrHandshakeTimeout, os.ErrDeadlineExceeded)
	case err == io.EOF && !h.heard:
		return fmt.Errorf("tcpls: peer closed the connection without an answer to the ClientHello: %w", io.ErrUnexpectedEOF)
	case err == io.EOF:
		return h.engine.End()
	}
	return fmt.Errorf("tcpls: handshake: %w", err)
}

// lingerTime is how long a peer may take to read the alert that tells it why
// the handshake failed.
const lingerTime = 500 * time.Millisecond

// limitEnd gives a connection lingerTime for its last words.
func limitEnd(conn net.Conn) { _ = conn.SetDeadline(time.Now().Add(lingerTime)) }

// failed sends the alert that is due. Bytes of the peer that nobody read would
// turn the close into a reset, which could overtake the alert.
func (h *handshake) failed(err error) error {
	if h.engine == nil || isTransport(err) {
		return err
	}
	h.engine.Fail(err)
	limitEnd(h.conn)
	if out := h.engine.Output(); len(out) > 0 {
		if _, werr := h.conn.Write(out); werr == nil {
			linger(h.conn)
		}
	}
	return err
}

// isTransport reports whether err is of the connection and not of the peer.
func isTransport(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) || errors.Is(err, os.ErrDeadlineExceeded) ||
		errors.Is(err, io.ErrUnexpectedEOF)
}

// linger ends our side of conn and reads what the peer still sends, within
// the connection's deadline and a fixed amount.
func linger(conn net.Conn) {
	c, ok := conn.(interface{ CloseWrite() error })
	if !ok || c.CloseWrite() != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, conn, 256<<10) // whatever ends it, the close comes next
}

// readHello reads until the listener can tell who should serve the client. A
// nil Hello with a nil error can't be.
func readHello(ctx context.Context, conn net.Conn, timeout time.Duration) (*tls13.Hello, []byte, error) {
	h := &handshake{conn: conn, began: time.Now()}
	stop := h.limit(ctx, timeout)
	defer stop()
	read := make([]byte, 0, 2<<10)
	for {
		hello, need, err := tls13.SniffHello(read)
		if hello != nil || err != nil {
			return hello, read, err
		}
		for len(read) < need {
			if len(read) == cap(read) { // what was only announced takes no room
				read = slices.Grow(read, len(read))
			}
			n, err := conn.Read(read[len(read):cap(read)])
			read = read[:len(read)+n]
			h.heard = len(read) > 0
			if n > 0 || err == nil {
				continue
			}
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return nil, read, fmt.Errorf("tcpls: no ClientHello: %w", err)
		}
	}
}

package tcpls

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"

	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/internal/tls13"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// Joining in a hurry (protocol 9.9). A session that has lost its last path
// doesn't wait for the handshake of the next: what the client has to say and to
// send again goes with its ClientHello, where a resumption has its early data.
// These are the session's own records: whoever can open them belongs to it, and
// they are numbered, so that a replay of them does nothing.

// A joining is the handshake of a path that is in use already. It belongs to
// who holds the path's pump, and is nil once the handshake is complete.
type joining struct {
	engine *tls13.Conn
	answer *wire.Answer    // a client's
	early  *record.Context // a server's, for EndOfEarlyData
}

// maxJoinEarly is how many bytes may go with a ClientHello as far as TLS is
// concerned; the session has limits of its own.
const maxJoinEarly = 1 << 24

// joinEngine returns the engine of a client's join, which sets answer. early is
// how many bytes of early data it offers.
func (s *Session) joinEngine(conn net.Conn, t token, early uint32, answer *wire.Answer) (*tls13.Conn, error) {
	secret, err := s.tokenSecret(t.bytes)
	if err != nil {
		return nil, err
	}
	return tls13.NewClient(&tls13.Config{
		TLS: s.cfg.TLS, NetConn: conn, Extension: wire.ExtensionType, Offer: wire.AppendOffer(nil),
		Accept: func(b []byte) (err error) {
			*answer, err = wire.ParseAnswer(b)
			return extensionError(err)
		},
		PSK: &tls13.PSK{
			Identity: t.bytes, Secret: secret, Suite: s.engine.Suite(), AgeAdd: rand.Uint32(),
			ALPN: s.ConnectionState().TLS.NegotiatedProtocol, MaxEarlyData: early,
		},
	})
}

// joinEarly opens a path over conn, which it owns, uses it at once, and waits
// until the server has proved that it is ours.
func (s *Session) joinEarly(ctx context.Context, conn net.Conn) error {
	t, err := s.takeToken(ctx)
	if err != nil {
		_ = conn.Close() // never used
		return err
	}
	answer := &wire.Answer{}
	engine, err := s.joinEngine(conn, t, maxJoinEarly, answer)
	if err != nil {
		_ = conn.Close() // never used
		return err
	}
	p := newPath(s, t.path, conn, s.path().sizing.maxContent)
	p.joining.Store(&joining{engine: engine, answer: answer})
	p.io = nil // what is written first may have to open the connection
	p.outMu.Lock()
	p.enqueueRaw(engine.Output())
	p.outMu.Unlock()
	if err := s.addPath(p, nil); err != nil {
		_ = conn.Close() // never used
		return err
	}
	stop := context.AfterFunc(ctx, s.broadcast)
	defer stop()
	s.mu.Lock()
	err = s.await(ctx, func() bool { return p.joining.Load() == nil || p.state == PathClosed })
	closed := p.state == PathClosed
	s.mu.Unlock()
	if p.joining.Load() == nil { // which ends the search, and so ctx
		return nil
	}
	if err != nil && !s.ended() {
		s.pathFailed(p, &PathError{Path: p.ID(), Op: "join", Err: err})
	}
	if err == nil && closed {
		err = &PathError{Path: p.ID(), Op: "join", Err: ErrJoinRefused}
	}
	return err
}

// finishJoin runs a client's handshake to its end, before anything else is
// read.
func (p *Path) finishJoin(j *joining) error {
	r, engine := &p.in, j.engine
	for !engine.HandshakeComplete() {
		if err := p.fill(); err != nil {
			return err
		}
		p.noteArrival()
		n, err := engine.Feed((*r.buf)[r.start:r.have])
		r.start += n
		if err == nil && engine.HandshakeComplete() && (engine.PSKUsed() == nil || !engine.ExtensionAnswered()) {
			err = ErrJoinRefused
		}
		if err == nil && engine.HandshakeComplete() {
			p.sess.keepNext(j.answer.Tokens)
			if !engine.EarlyDataAccepted() {
				err = errEarlyJoin
			}
		}
		if err != nil {
			return fmt.Errorf("tcpls: joining: %w", err)
		}
		p.outMu.Lock()
		p.enqueueRaw(engine.Output()) // in one piece: nothing may come between EndOfEarlyData and Finished
		if engine.HandshakeComplete() {
			p.useIO()
		}
		p.flush()
		p.outMu.Unlock()
	}
	p.joinComplete()
	return nil
}

// errEarlyJoin tells to try again without haste.
var errEarlyJoin = errors.New("the server refused the session's first records")

func (p *Path) joinComplete() {
	s := p.sess
	s.mu.Lock()
	defer s.mu.Unlock()
	p.joining.Store(nil)
	s.recovered()
	s.cond.Broadcast()
}

// passJoin takes what belongs to the handshake out of a server's input. The
// caller holds inMu.
func (p *Path) passJoin() error {
	r := &p.in
	for {
		j := p.joining.Load()
		if j == nil {
			return nil
		}
		b := (*r.buf)[r.start:r.have]
		if len(b) < record.HeaderLen {
			return nil
		}
		if j.engine.EarlyData() && record.ParseHeader(b).Type == record.ApplicationData {
			return nil // a record of the session, or EndOfEarlyData
		}
		n, err := j.engine.Feed(b)
		r.start += n
		if err != nil {
			return engineError(err)
		}
		if j.engine.HandshakeComplete() {
			p.joinComplete()
		} else if n == 0 {
			return nil
		}
	}
}

// tryJoin opens a record as EndOfEarlyData; done tells that it was one.
func (p *Path) tryJoin(rec []byte) (done bool, err error) {
	j := p.joining.Load()
	if j == nil || j.early == nil || !j.engine.EarlyData() {
		return false, nil
	}
	content, t, err := j.early.Open(p.in.scratch(), rec)
	switch {
	case err == record.ErrAuth:
		return false, nil
	case err != nil:
		return true, openError(err)
	case t != record.Handshake:
		return true, misplaced(t, "the early data of a join")
	}
	if err := j.engine.EarlyHandshake(content); err != nil {
		return true, engineError(err)
	}
	return true, nil
}

package lab

import (
	"context"
	"crypto/tls"
	"net"
	"time"
)

// A bench has servers and clients of all transports in this process, which
// talk over loopback.
type bench struct {
	serverTLS, clientTLS *tls.Config
}

func newBench() (*bench, error) {
	server, client, err := newTLS()
	return &bench{server, client}, err
}

func (b *bench) server() endpoint { return endpoint{tls: b.serverTLS.Clone()} }
func (b *bench) client() endpoint { return endpoint{tls: b.clientTLS.Clone()} }

// serve starts the application over a transport on any port of loopback.
func (b *bench) serve(ctx context.Context, t transport, e endpoint) (*server, error) {
	l, err := t.listen(ctx, "127.0.0.1:0", e)
	if err != nil {
		return nil, err
	}
	go serve(l)
	return &server{l}, nil
}

// A server answers requests until it is closed.
type server struct{ net.Listener }

func (s *server) addr() string { return s.Addr().String() }

// A visit is a server, perhaps a box before it, and one client's first stream.
type visit struct {
	session
	stream
	closers closeAll
}

func (v *visit) Close() error { return v.closers.Close() }

// visit opens a session with a new server, by way of whatever box is in between.
func (b *bench) visit(ctx context.Context, t transport, server, client endpoint, between func(target string) (addr string, box closer, err error)) (v *visit, err error) {
	v = new(visit)
	defer func() {
		if err != nil {
			_ = v.Close() // err tells more
		}
	}()
	s, err := b.serve(ctx, t, server)
	if err != nil {
		return v, err
	}
	v.closers.add(s)
	addr := s.addr()
	if between != nil {
		to, box, err := between(addr)
		if err != nil {
			return v, err
		}
		v.closers.add(box)
		addr = to
	}
	if v.session, err = t.dial(ctx, addr, client); err != nil {
		return v, err
	}
	v.closers.add(v.session)
	if v.stream, err = v.session.open(ctx); err != nil {
		return v, err
	}
	return v, v.stream.SetDeadline(deadline(ctx))
}

type closer interface{ Close() error }

// deadline returns the context's.
func deadline(ctx context.Context) time.Time {
	t, _ := ctx.Deadline() // the zero time is none
	return t
}

package lab

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/go-tcpls/tcpls"
)

// A bench has servers and clients of all transports in this process, which
// talk over loopback, or over a network.
type bench struct {
	serverTLS, clientTLS *tls.Config
	net                  *Network // nil: loopback
	congestion           string   // of all TCP sockets; empty: the system's
	lossy                *bench   // the same over a network that loses packets; nil: there is none
}

func newBench() (*bench, error) {
	server, client, err := newTLS()
	return &bench{serverTLS: server, clientTLS: client}, err
}

// newNetBench has clients on the network's host "client" and servers on its
// host "server". All TCP sockets use cubic, the congestion control that peers
// are most likely to have, and learn nothing from those before them. Servers may
// take data with a SYN.
func newNetBench(t *Topology) (*bench, error) {
	b, err := newBench()
	if err != nil {
		return nil, err
	}
	b.congestion = "cubic"
	for _, host := range []string{"client", "server"} {
		t.Hosts = append(t.Hosts, HostSpec{Name: host, Sysctls: map[string]string{
			"net.ipv4.tcp_no_metrics_save": "1", "net.ipv4.tcp_fastopen": "3",
		}})
	}
	b.net, err = New(t)
	return b, err
}

// Close closes the network, if there is one.
func (b *bench) Close() error {
	if b.lossy != nil {
		return b.lossy.Close()
	}
	if b.net != nil {
		return b.net.Close()
	}
	return nil
}

func (b *bench) server() endpoint { return b.endpoint("server", b.serverTLS) }
func (b *bench) client() endpoint { return b.endpoint("client", b.clientTLS) }

func (b *bench) endpoint(host string, cfg *tls.Config) endpoint {
	e := endpoint{tls: cfg.Clone(), congestion: b.congestion}
	if b.net != nil {
		e.host = b.net.Host(host)
	}
	return e
}

// at returns the server's address: on which path, and of which family.
func (b *bench) at(path int, v6 bool) netip.AddrPort {
	return netip.AddrPortFrom(b.net.Links()[path].Addr("server", v6), netPort)
}

// netPort is that of servers in a network.
const netPort = 4433

// serve starts the application over a transport: on all addresses of the
// server's host, or on any port of loopback.
func (b *bench) serve(ctx context.Context, t transport, e endpoint) (*server, error) {
	address := "127.0.0.1:0"
	if b.net != nil {
		address = fmt.Sprintf("[::]:%d", netPort)
	}
	l, err := t.listen(ctx, address, e)
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
	if b.net != nil {
		addr = b.at(0, false).String()
	}
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

// Both ends of a TCPLS session.
type bothEnds struct {
	client, server *tcpls.Session
	listener       *tcpls.Listener
}

// meet opens a session with a new server.
func (b *bench) meet(ctx context.Context, server, client endpoint) (e *bothEnds, err error) {
	e = new(bothEnds)
	defer func() {
		if err != nil {
			e.Close()
		}
	}()
	if e.listener, err = server.listenTCPLS(ctx, fmt.Sprintf("[::]:%d", netPort)); err != nil {
		return e, err
	}
	if e.client, err = client.dialTCPLS(ctx, b.at(0, false).String()); err != nil {
		return e, err
	}
	e.server, err = e.listener.Accept(ctx)
	return e, err
}

// flood uploads on a stream until the session ends, and returns the server's
// end of it.
func (e *bothEnds) flood(ctx context.Context) (from *tcpls.Stream, err error) {
	st, err := e.client.OpenStream(ctx)
	if err != nil {
		return nil, err
	}
	go func() {
		block := make([]byte, 64<<10)
		for {
			if _, err := st.Write(block); err != nil {
				return
			}
		}
	}()
	return e.server.AcceptStream(ctx)
}

// Close ends the session at once: nobody waits for what still flows.
func (e *bothEnds) Close() {
	for _, s := range []*tcpls.Session{e.client, e.server} {
		if s != nil {
			_ = s.CloseWithError(0, "the run is over") // it may have ended before
		}
	}
	if e.listener != nil {
		_ = e.listener.Close() // nothing can be lost by it
	}
}

type closer interface{ Close() error }

// deadline returns the context's.
func deadline(ctx context.Context) time.Time {
	t, _ := ctx.Deadline() // the zero time is none
	return t
}

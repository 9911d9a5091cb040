package memnet

import (
	"context"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

var (
	clientIP = net.IPv4(192, 0, 2, 1)
	serverIP = net.IPv4(198, 51, 100, 1)
)

const (
	serverPort = 443
	firstPort  = 49152 // of clients
	backlog    = 128   // connections that nobody has accepted yet
)

// A Listener accepts the connections that are dialled from it.
type Listener struct {
	addr *net.TCPAddr

	mu      sync.Mutex // guards the rest
	cond    sync.Cond  // pending or closed has changed
	link    Link
	port    int // of the next client
	pending []*Conn
	closed  bool
}

// Listen returns a listener whose connections have the same link in each
// direction.
func Listen(link Link) *Listener {
	l := &Listener{
		addr: &net.TCPAddr{IP: serverIP, Port: serverPort},
		link: link,
		port: firstPort,
	}
	l.cond.L = &l.mu
	return l
}

// Addr returns the *net.TCPAddr of the listener.
func (l *Listener) Addr() net.Addr { return l.addr }

// SetLink changes the link of connections that are dialled from now on.
func (l *Listener) SetLink(link Link) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.link = link
}

// Dial opens a connection to the listener, which takes one round trip. It
// fails with [syscall.ECONNREFUSED] if the listener is closed or has 128
// connections that nobody accepted.
func (l *Listener) Dial(ctx context.Context) (*Conn, error) {
	l.mu.Lock()
	link := l.link
	client := &net.TCPAddr{IP: clientIP, Port: l.port}
	l.port++
	l.mu.Unlock()

	roundTrip := time.NewTimer(2 * link.Delay)
	defer roundTrip.Stop()
	select {
	case <-ctx.Done():
		return nil, l.opError("dial", client, ctx.Err())
	case <-roundTrip.C:
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.pending) == backlog {
		return nil, l.opError("dial", client, os.NewSyscallError("connect", syscall.ECONNREFUSED))
	}
	c, s := newPair(link, client, l.addr)
	l.pending = append(l.pending, s)
	l.cond.Signal()
	return c, nil
}

// Accept waits for the next connection, which is a [*Conn].
func (l *Listener) Accept() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.pending) == 0 && !l.closed {
		l.cond.Wait()
	}
	if l.closed {
		return nil, l.opError("accept", nil, net.ErrClosed)
	}
	c := l.pending[0]
	l.pending = l.pending[1:]
	return c, nil
}

// Close ends the listener and resets the connections that nobody accepted.
func (l *Listener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return l.opError("close", nil, net.ErrClosed)
	}
	l.closed = true
	for _, c := range l.pending {
		c.Reset()
	}
	l.pending = nil
	l.cond.Broadcast()
	return nil
}

func (l *Listener) opError(op string, client *net.TCPAddr, err error) error {
	e := &net.OpError{Op: op, Net: "tcp", Addr: l.addr, Err: err}
	if client != nil {
		e.Source = client
	}
	return e
}

package lab

import (
	"errors"
	"io"
	"net"
	"sync"
)

// A way is one direction of a relay.
type way int

const (
	toServer way = iota
	toClient
)

// A tap sees what passes a relay, may change it in place, and says whether it
// passes. Calls don't overlap.
type tap func(d way, p []byte) (pass bool)

// A tcpRelay is a box between client and server that takes their TCP
// connections apart: all that whoever owns it could do to bytes on their way.
type tcpRelay struct {
	listener net.Listener
	target   string
	running  sync.WaitGroup

	mu      sync.Mutex
	moved   *sync.Cond
	tap     tap
	stalled bool
	conns   map[*net.TCPConn]bool // both ends of all connections
}

func newTCPRelay(target string) (*tcpRelay, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &tcpRelay{listener: l, target: target, conns: make(map[*net.TCPConn]bool)}
	r.moved = sync.NewCond(&r.mu)
	r.running.Go(r.accept)
	return r, nil
}

func (r *tcpRelay) addr() string { return r.listener.Addr().String() }

// watch puts a tap on all connections; nil removes it.
func (r *tcpRelay) watch(t tap) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tap = t
}

// stall holds everything up, or lets it go on.
func (r *tcpRelay) stall(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stalled = on
	r.moved.Broadcast()
}

// reset cuts the present connections by RST, to both ends.
func (r *tcpRelay) reset() {
	r.each(func(c *net.TCPConn) {
		_ = c.SetLinger(0) // fails for what is closed already
		_ = c.Close()
	})
}

// finish ends the present connections by FIN, in both directions.
func (r *tcpRelay) finish() {
	r.each(func(c *net.TCPConn) {
		_ = c.CloseWrite() // as above
		_ = c.CloseRead()
	})
}

func (r *tcpRelay) each(f func(*net.TCPConn)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		f(c)
	}
}

// Close cuts everything and waits for the relay's end.
func (r *tcpRelay) Close() error {
	err := r.listener.Close()
	r.stall(false)
	r.reset()
	r.running.Wait()
	return err
}

func (r *tcpRelay) accept() {
	for {
		near, err := r.listener.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", r.target)
		if err != nil {
			near.Close()
			continue
		}
		a, b := near.(*net.TCPConn), far.(*net.TCPConn)
		r.mu.Lock()
		r.conns[a], r.conns[b] = true, true
		r.mu.Unlock()
		var ends sync.WaitGroup
		ends.Go(func() { r.pump(toServer, a, b) })
		ends.Go(func() { r.pump(toClient, b, a) })
		r.running.Go(func() {
			ends.Wait()
			r.mu.Lock()
			delete(r.conns, a)
			delete(r.conns, b)
			r.mu.Unlock()
			a.Close()
			b.Close()
		})
	}
}

// pump moves bytes of one direction until either end is gone.
func (r *tcpRelay) pump(d way, from, to *net.TCPConn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && r.passes(d, buf[:n]) {
			if _, err := to.Write(buf[:n]); err != nil {
				_ = from.SetLinger(0)
				_ = from.Close()
				return
			}
		}
		if err == io.EOF {
			_ = to.CloseWrite()
			return
		}
		if err != nil { // a reset is passed on
			_ = to.SetLinger(0)
			_ = to.Close()
			return
		}
	}
}

func (r *tcpRelay) passes(d way, p []byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.stalled {
		r.moved.Wait()
	}
	return r.tap == nil || r.tap(d, p)
}

// A udpRelay is a NAT between a client and a server of UDP.
type udpRelay struct {
	near    *net.UDPConn
	target  *net.UDPAddr
	running sync.WaitGroup

	mu     sync.Mutex
	tap    tap
	client *net.UDPAddr
	far    *net.UDPConn
}

func newUDPRelay(target string) (*udpRelay, error) {
	to, err := net.ResolveUDPAddr("udp", target)
	if err != nil {
		return nil, err
	}
	near, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	r := &udpRelay{near: near, target: to}
	if err := r.rebind(); err != nil {
		near.Close()
		return nil, err
	}
	r.running.Go(func() { r.pump(toServer, near) })
	return r, nil
}

func (r *udpRelay) addr() string { return r.near.LocalAddr().String() }

func (r *udpRelay) watch(t tap) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tap = t
}

// rebind gives the client another public address, as a NAT does that has
// forgotten a flow.
func (r *udpRelay) rebind() error {
	far, err := net.DialUDP("udp", nil, r.target)
	if err != nil {
		return err
	}
	r.mu.Lock()
	old := r.far
	r.far = far
	r.mu.Unlock()
	if old != nil {
		old.Close()
	}
	r.running.Go(func() { r.pump(toClient, far) })
	return nil
}

// inject sends a datagram to the client that the server never sent.
func (r *udpRelay) inject(p []byte) error {
	r.mu.Lock()
	client := r.client
	r.mu.Unlock()
	_, err := r.near.WriteToUDP(p, client)
	return err
}

func (r *udpRelay) Close() error {
	r.mu.Lock()
	far := r.far
	r.mu.Unlock()
	err := r.near.Close()
	far.Close()
	r.running.Wait()
	return err
}

func (r *udpRelay) pump(d way, from *net.UDPConn) {
	buf := make([]byte, 64<<10)
	for {
		n, client, err := from.ReadFromUDP(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue // ICMP's word for a port that is gone
		}
		r.mu.Lock()
		if d == toServer {
			r.client = client
		}
		pass := r.tap == nil || r.tap(d, buf[:n])
		far, to := r.far, r.client
		r.mu.Unlock()
		switch {
		case !pass: // lost, as any datagram may be
		case d == toServer:
			_, _ = far.Write(buf[:n])
		case to != nil:
			_, _ = r.near.WriteToUDP(buf[:n], to)
		}
	}
}

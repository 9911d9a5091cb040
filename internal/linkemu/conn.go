package linkemu

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A wire is one direction of a link.
type wire struct {
	Shape
	delivered atomic.Int64
	busy      time.Duration // until when it sends what it was given; guarded by the link's mu
}

// piece is how many bytes are sent at once: what takes a millisecond or so.
func (w *wire) piece() int {
	if w.Rate == 0 {
		return 64 << 10
	}
	return int(min(max(w.Rate/1000, 512), 64<<10))
}

// takes is how long the wire needs for n bytes.
func (w *wire) takes(n int) time.Duration {
	if w.Rate == 0 {
		return 0
	}
	return time.Duration(float64(n) / float64(w.Rate) * float64(time.Second))
}

// capacity bounds what one connection keeps in one direction: the queue, what
// is on its way, and as much again for a reader that is late.
func (w *wire) capacity() int {
	return 2*(w.Queue+int(float64(w.Rate)*w.Delay.Seconds())) + 64<<10
}

// send waits for room in the wire's queue and gives it n bytes; they arrive at
// the time that is returned.
func (l *Link) send(w *wire, n int, done <-chan struct{}) (arrival time.Duration, ok bool) {
	for {
		l.mu.Lock()
		now := l.now()
		if room := w.busy - w.takes(w.Queue); room <= now {
			w.busy = max(w.busy, now) + w.takes(n)
			arrival = w.busy + w.Delay
			l.mu.Unlock()
			return arrival, true
		} else {
			l.mu.Unlock()
			if !l.until(room, done) {
				return 0, false
			}
		}
	}
}

// A conn is a relayed connection: the client's, near, and ours to the server,
// far. A pipe for each direction has two goroutines.
type conn struct {
	link     *Link
	near     *net.TCPConn
	accepted time.Duration
	done     chan struct{} // closed when nothing passes any more

	mu     sync.Mutex
	far    *net.TCPConn
	isDone bool
	ended  bool // by the link, as Closed says
}

// newConn is called with the link's mu held.
func newConn(l *Link, near *net.TCPConn) *conn {
	return &conn{link: l, near: near, accepted: l.now(), done: make(chan struct{})}
}

func (c *conn) run() {
	defer c.link.forget(c)
	defer c.reset()
	// TCP's own handshake crosses the link, which the kernel doesn't know.
	handshake := c.link.up.Delay + c.link.down.Delay
	if !c.link.until(c.accepted+handshake, c.done) || !c.dial() {
		c.drain(c.near)
		return
	}
	up := newPipe(c, &c.link.up, c.near, c.far)
	down := newPipe(c, &c.link.down, c.far, c.near)
	var all sync.WaitGroup
	for _, f := range []func(){up.read, down.read, up.write, down.write} {
		all.Go(f)
	}
	all.Wait()
}

// dial connects to the server.
func (c *conn) dial() bool {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var d net.Dialer
	d.SetMultipathTCP(false)
	far, err := d.DialContext(ctx, "tcp", c.link.target)
	if err != nil {
		c.reset()
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.far = far.(*net.TCPConn)
	if c.isDone {
		abort(c.far)
		return false
	}
	return true
}

// reset ends both connections at once, so that both ends see RST.
func (c *conn) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.finish()
	abort(c.near)
	if c.far != nil {
		abort(c.far)
	}
}

// drainTime is how long what the ends still send is taken, so that their
// kernels see FIN and not RST.
const drainTime = 5 * time.Second

// end sends FIN both ways, and takes what still comes.
func (c *conn) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.finish()
	c.ended = true
	for _, conn := range []*net.TCPConn{c.near, c.far} {
		if conn != nil {
			_ = conn.CloseWrite() // it may be gone already
			_ = conn.SetReadDeadline(time.Now().Add(drainTime))
		}
	}
}

// finish closes done. The caller holds mu.
func (c *conn) finish() {
	if !c.isDone {
		c.isDone = true
		close(c.done)
	}
}

// drain discards what comes until the peer closes, if the link has ended the
// connection in an orderly way.
func (c *conn) drain(from *net.TCPConn) {
	c.mu.Lock()
	ended := c.ended
	c.mu.Unlock()
	if ended {
		_, _ = io.Copy(io.Discard, from) // whatever ends it
	}
}

// abort closes a connection by RST.
func abort(c *net.TCPConn) {
	_ = c.SetLinger(0) // it may be closed already
	_ = c.Close()
}

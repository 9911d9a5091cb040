package linkemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// A Shape is what one direction of a link is like.
type Shape struct {
	// Rate is in bytes per second, of all connections together; 0 means
	// unlimited.
	Rate int64
	// Delay is the time from the end of a piece's sending to its arrival.
	Delay time.Duration
	// Queue is how many bytes may wait to be sent. Default: what passes in
	// 50 ms, at least 32 KiB. It means nothing where the rate is unlimited.
	Queue int
}

// minQueue is the least default of a queue.
const minQueue = 32 << 10

func (s Shape) withDefaults() (Shape, error) {
	if s.Rate < 0 || s.Delay < 0 || s.Queue < 0 {
		return s, errors.New("linkemu: a shape with a negative rate, delay or queue")
	}
	if s.Queue == 0 {
		s.Queue = max(minQueue, int(s.Rate/20))
	}
	return s, nil
}

// A Condition is how a link is at the moment.
type Condition int

const (
	// Up: everything passes.
	Up Condition = iota
	// Blackhole: nothing passes and nobody is told, neither of bytes nor of
	// the end of a connection. New connections are accepted by the kernel and
	// hear nothing. After the link's restoration everything goes on where it
	// was, as TCP would send it again.
	Blackhole
	// Reset: every connection was reset, and so are new ones. What was on its
	// way is lost.
	Reset
	// Closed: every connection was ended in both directions as if by the
	// peer, in the middle of what was on its way. New ones are reset.
	Closed
)

func (c Condition) String() string {
	switch c {
	case Up:
		return "up"
	case Blackhole:
		return "blackhole"
	case Reset:
		return "reset"
	case Closed:
		return "closed"
	}
	return fmt.Sprintf("Condition(%d)", int(c))
}

// maxConns is how many connections a link carries at once; further ones are
// reset.
const maxConns = 64

// A Link relays the connections that its address accepts to a server. Its
// methods may be called from many goroutines at once.
type Link struct {
	target   string
	listener *net.TCPListener
	up, down wire
	wg       sync.WaitGroup

	mu        sync.Mutex
	condition Condition
	changed   chan struct{} // closed and replaced when condition changes
	conns     map[*conn]struct{}
	closed    bool
	began     time.Time
	frozen    time.Time     // since when the link is a blackhole
	lost      time.Duration // how long it was one before
}

// New opens a link to the server at target, such as "127.0.0.1:4433". down is
// the direction from the server to the client. Clients dial Addr.
func New(target string, down, up Shape) (*Link, error) {
	down, err := down.withDefaults()
	if err != nil {
		return nil, err
	}
	if up, err = up.withDefaults(); err != nil {
		return nil, err
	}
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	ln, err := config.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	l := &Link{
		target: target, listener: ln.(*net.TCPListener), began: time.Now(), changed: make(chan struct{}), conns: make(map[*conn]struct{}),
		up: wire{Shape: up}, down: wire{Shape: down},
	}
	l.wg.Go(l.accept)
	return l, nil
}

// Addr is the address that stands for the server's.
func (l *Link) Addr() *net.TCPAddr { return l.listener.Addr().(*net.TCPAddr) }

// Condition returns how the link is.
func (l *Link) Condition() Condition {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.condition
}

// Delivered returns how many bytes have come out at the client's and at the
// server's end.
func (l *Link) Delivered() (down, up int64) {
	return l.down.delivered.Load(), l.up.delivered.Load()
}

// Set cuts the link or restores it. Connections that Reset or Closed has ended
// don't come back.
func (l *Link) Set(to Condition) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if to == l.condition || l.closed {
		return
	}
	now := time.Now()
	if l.condition == Blackhole {
		l.lost += now.Sub(l.frozen)
	}
	if to == Blackhole {
		l.frozen = now
	}
	l.condition = to
	for c := range l.conns {
		switch to {
		case Reset:
			c.reset()
		case Closed:
			c.end()
		}
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

// Close ends the link and resets its connections.
func (l *Link) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	for c := range l.conns {
		c.reset()
	}
	err := l.listener.Close()
	l.mu.Unlock()
	l.wg.Wait()
	return err
}

func (l *Link) accept() {
	for {
		near, err := l.listener.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of file descriptors, say
			continue
		}
		l.mu.Lock()
		if l.closed || l.condition == Reset || l.condition == Closed || len(l.conns) == maxConns {
			l.mu.Unlock()
			abort(near)
			continue
		}
		c := newConn(l, near)
		l.conns[c] = struct{}{}
		l.wg.Go(c.run)
		l.mu.Unlock()
	}
}

func (l *Link) forget(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
}

// now is the link's own time, which stands still while it is a blackhole. The
// caller holds mu.
func (l *Link) now() time.Duration {
	now := time.Now()
	if l.condition == Blackhole {
		now = l.frozen
	}
	return now.Sub(l.began) - l.lost
}

// until waits for a moment of the link's time, and for the end of a blackhole.
// It reports false if done is closed before.
func (l *Link) until(due time.Duration, done <-chan struct{}) bool {
	for {
		l.mu.Lock()
		wait, changed, stuck := due-l.now(), l.changed, l.condition == Blackhole
		l.mu.Unlock()
		var timer <-chan time.Time
		switch {
		case stuck:
		case wait <= 0:
			select {
			case <-done:
				return false
			default:
				return true
			}
		default:
			timer = time.After(wait)
		}
		select {
		case <-timer:
		case <-changed:
		case <-done:
			return false
		}
	}
}

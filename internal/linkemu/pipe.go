package linkemu

import (
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

// A pipe carries one direction of a connection. Its reader gives pieces to the
// wire; its writer delivers them when they are due.
type pipe struct {
	conn     *conn
	wire     *wire
	src, dst *net.TCPConn

	mu     sync.Mutex
	queue  []piece
	bytes  int           // in queue
	filled chan struct{} // the queue isn't empty any more
	room   chan struct{} // the queue has shrunk
}

// A piece is on its way. Without data it is the end of the direction.
type piece struct {
	data    []byte
	arrival time.Duration // in the link's time
	reset   bool          // the end is RST, not FIN
}

// pieceCost is what a piece counts beyond its bytes, so that many small ones
// are bounded too.
const pieceCost = 64

// socketBuffer is what the kernel may keep of either end's bytes in front of
// and behind the link, as far as it is ours to say.
const socketBuffer = 32 << 10

func newPipe(c *conn, w *wire, src, dst *net.TCPConn) *pipe {
	// Both only make the queue longer than it should be if they fail.
	_ = src.SetReadBuffer(socketBuffer)
	_ = dst.SetWriteBuffer(socketBuffer)
	return &pipe{conn: c, wire: w, src: src, dst: dst, filled: make(chan struct{}, 1), room: make(chan struct{}, 1)}
}

// read takes what the source sends, as fast as the wire does.
func (p *pipe) read() {
	defer p.conn.drain(p.src)
	link, done := p.conn.link, p.conn.done
	buf := make([]byte, p.wire.piece())
	for {
		if !link.until(0, done) { // not through a blackhole
			return
		}
		n, err := p.src.Read(buf)
		if n > 0 {
			arrival, ok := link.send(p.wire, n, done)
			if !ok || !p.push(piece{data: slices.Clone(buf[:n]), arrival: arrival}) {
				return
			}
		}
		if err != nil {
			arrival, ok := link.send(p.wire, 0, done)
			if ok {
				p.push(piece{arrival: arrival, reset: !errors.Is(err, io.EOF)})
			}
			return
		}
	}
}

// push waits for room in the queue.
func (p *pipe) push(next piece) bool {
	for {
		p.mu.Lock()
		if p.bytes < p.wire.capacity() {
			p.queue = append(p.queue, next)
			p.bytes += len(next.data) + pieceCost
			p.mu.Unlock()
			signal(p.filled)
			return true
		}
		p.mu.Unlock()
		select {
		case <-p.room:
		case <-p.conn.done:
			return false
		}
	}
}

// write delivers what is due.
func (p *pipe) write() {
	link, done := p.conn.link, p.conn.done
	for {
		next, ok := p.pop()
		if !ok || !link.until(next.arrival, done) {
			return
		}
		switch {
		case next.reset:
			p.conn.reset()
			return
		case next.data == nil:
			_ = p.dst.CloseWrite() // it may be gone already
			return
		}
		n, err := p.dst.Write(next.data)
		p.wire.delivered.Add(int64(n))
		if err != nil {
			if link.until(0, done) { // nobody hears of it through a blackhole
				p.conn.reset()
			}
			return
		}
	}
}

// pop waits for the next piece.
func (p *pipe) pop() (next piece, ok bool) {
	for {
		p.mu.Lock()
		if len(p.queue) > 0 {
			next = p.queue[0]
			p.queue = p.queue[1:]
			p.bytes -= len(next.data) + pieceCost
			p.mu.Unlock()
			signal(p.room)
			return next, true
		}
		p.mu.Unlock()
		select {
		case <-p.filled:
		case <-p.conn.done:
			return next, false
		}
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

package memnet

import (
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"
)

// A Conn is one end of a connection. Its errors are [*net.OpError] values as
// those of a [net.TCPConn], but for [io.EOF].
type Conn struct {
	in, out       *half
	local, remote *net.TCPAddr
	peer          *Conn
	closed        atomic.Bool
}

// Pipe returns both ends of a connection with the same link in each direction.
func Pipe(l Link) (client, server *Conn) {
	return newPair(l, &net.TCPAddr{IP: clientIP, Port: firstPort}, &net.TCPAddr{IP: serverIP, Port: serverPort})
}

func newPair(l Link, client, server *net.TCPAddr) (*Conn, *Conn) {
	up, down := newHalf(l), newHalf(l)
	c := &Conn{in: down, out: up, local: client, remote: server}
	s := &Conn{in: up, out: down, local: server, remote: client, peer: c}
	c.peer = s
	return c, s
}

// Peer returns the other end.
func (c *Conn) Peer() *Conn { return c.peer }

// LocalAddr returns the *net.TCPAddr of this end.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr returns the *net.TCPAddr of the other end.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// Read reads what has arrived, and waits until something has.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.in.read(p)
	return n, c.opError("read", err)
}

func (h *half) read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		now := time.Now()
		h.settle(now)
		switch {
		case h.deserted:
			return 0, net.ErrClosed
		case h.reader.expired(now):
			return 0, os.ErrDeadlineExceeded
		case h.err != nil:
			return 0, os.NewSyscallError("read", h.err)
		case len(p) == 0:
			return 0, nil
		case h.arrived > 0:
			n, _ := h.data.Read(p[:min(len(p), h.arrived)])
			h.arrived -= n
			h.writer.cond.Broadcast()
			return n, nil
		case h.endSeen:
			return 0, io.EOF
		}
		h.reader.wait(h.nextArrival())
	}
}

// Write puts p on its way, and waits for room in the queue. Concurrent calls
// don't mix their bytes.
func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.out.write(p)
	return n, c.opError("write", err)
}

func (h *half) write(p []byte) (total int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	mine := false
	defer func() {
		if mine {
			h.busy = false
			h.writer.cond.Broadcast()
		}
	}()
	for {
		now := time.Now()
		h.settle(now)
		if err := h.writeError(now); err != nil {
			return total, err
		}
		if !mine && !h.busy {
			mine, h.busy = true, true
		}
		if mine {
			if n := min(len(p), h.link.Queue-h.data.Len()); n > 0 {
				h.data.Write(p[:n])
				h.send(now, n, false)
				h.reader.cond.Broadcast()
				total += n
				p = p[n:]
			}
			if len(p) == 0 {
				return total, nil
			}
		}
		h.writer.wait(time.Time{})
	}
}

func (h *half) writeError(now time.Time) error {
	switch {
	case h.closed:
		return net.ErrClosed
	case h.writer.expired(now):
		return os.ErrDeadlineExceeded
	case h.err != nil:
		return os.NewSyscallError("write", h.err)
	case h.ended, h.deserted && !h.stalled:
		return os.NewSyscallError("write", syscall.EPIPE)
	}
	return nil
}

// CloseWrite ends the bytes of this direction: the other end reads what was
// written and then [io.EOF].
func (c *Conn) CloseWrite() error {
	h := c.out
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.closed:
		return c.opError("close", net.ErrClosed)
	case h.err != nil:
		return c.opError("close", os.NewSyscallError("shutdown", syscall.ENOTCONN))
	}
	h.finish(time.Now())
	h.wake()
	return nil
}

// Close closes this end. What was written still arrives, followed by FIN.
// What wasn't read is lost, and the other end can't write any more.
func (c *Conn) Close() error {
	if c.closed.Swap(true) {
		return c.opError("close", net.ErrClosed)
	}
	c.out.mu.Lock()
	c.out.closed = true
	if c.out.err == nil {
		c.out.finish(time.Now())
	}
	c.out.wake()
	c.out.mu.Unlock()

	c.in.mu.Lock()
	c.in.deserted = true
	c.in.drop()
	c.in.wake()
	c.in.mu.Unlock()
	return nil
}

// SetDeadline sets the deadlines of Read and Write.
func (c *Conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// SetReadDeadline sets when Read fails with [os.ErrDeadlineExceeded].
func (c *Conn) SetReadDeadline(t time.Time) error { return c.setDeadline(c.in, &c.in.reader, t) }

// SetWriteDeadline sets when Write fails with [os.ErrDeadlineExceeded]. What
// it has written by then still arrives.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.setDeadline(c.out, &c.out.writer, t) }

func (c *Conn) setDeadline(h *half, w *waiter, t time.Time) error {
	if c.closed.Load() {
		return c.opError("set", net.ErrClosed)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	w.deadline = t
	w.cond.Broadcast()
	return nil
}

// SetLink changes the link from this end to the other. What is on its way
// stays there until its time.
func (c *Conn) SetLink(l Link) {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	c.out.setLink(l)
	c.out.wake()
}

// Stall makes the connection a black hole, or ends that. Meanwhile nothing
// arrives at either end, neither bytes nor FIN, and nobody is told; Write goes
// on until the queue is full. Afterwards all that was held is sent anew.
func (c *Conn) Stall(on bool) {
	c.in.stall(on)
	c.out.stall(on)
}

// StallSend is Stall for what this end sends.
func (c *Conn) StallSend(on bool) { c.out.stall(on) }

// Reset cuts the connection, as a middlebox does that sends RST both ways.
// What isn't read is lost, and Read and Write fail at both ends with
// [syscall.ECONNRESET] at once.
func (c *Conn) Reset() {
	c.in.reset()
	c.out.reset()
}

func (c *Conn) opError(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.local, Addr: c.remote, Err: err}
}

//go:build unix

package osnet

import (
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// An IO reads and writes a connection with one system call at a time, without
// waiting and without allocating, and waits without holding a buffer.
//
// One goroutine at a time may use TryRead, ReadNext and WaitReadable, and one TryWrite,
// TryWritev and WaitWritable. Only ReadNext knows the connection's
// deadlines. Close may be called on the connection at any time;
// what waits then returns an error that matches [net.ErrClosed].
type IO struct {
	conn net.Conn
	raw  syscall.RawConn
	in   direction
	out  direction
	bufs [][]byte // of a TryWritev that is running

	// Method values, bound once, since binding allocates.
	read, readNext, write, writev, readable, writable func(fd uintptr) bool

	buffer func() []byte // of a ReadNext that is running
	idle   func()
}

// A direction holds what a system call takes and returns.
type direction struct {
	buf  []byte
	n    int
	err  error
	poll [1]unix.PollFd
	woke bool // the poller reported an event since the wait began
}

// NewIO returns the IO of a TCP or Unix connection of package net. For any
// other, ok is false, also for one that embeds such a connection: its own Read
// and Write must not be passed by.
func NewIO(c net.Conn) (_ *IO, ok bool) {
	var raw syscall.RawConn
	var err error
	switch c := c.(type) {
	case *net.TCPConn:
		raw, err = c.SyscallConn()
	case *net.UnixConn:
		raw, err = c.SyscallConn()
	default:
		return nil, false
	}
	if err != nil {
		return nil, false
	}
	o := &IO{conn: c, raw: raw}
	o.read, o.readNext, o.readable = o.doRead, o.doReadNext, o.doReadable
	o.write, o.writev, o.writable = o.doWrite, o.doWritev, o.doWritable
	return o, true
}

// TryRead reads what is there into p, which must not be empty. The error is
// [ErrWouldBlock] if nothing is, [io.EOF] at the end, else a [*net.OpError].
func (o *IO) TryRead(p []byte) (int, error) {
	d := &o.in
	d.buf = p
	err := o.raw.Read(o.read)
	d.buf = nil
	if err == nil && d.err == nil && d.n == 0 {
		return 0, io.EOF
	}
	return d.result("read", o.conn, err)
}

func (o *IO) doRead(fd uintptr) bool {
	d := &o.in
	for {
		d.n, d.err = unix.Read(int(fd), d.buf)
		if d.err != unix.EINTR {
			return true
		}
	}
}

// ReadNext waits for bytes and reads them into what buffer returns, which must
// not be empty. Before it waits, it calls idle, after which that memory isn't
// touched any more; buffer is then called again. The error is [io.EOF] at the
// end, else as that of Read; a read deadline of the connection is obeyed.
func (o *IO) ReadNext(buffer func() []byte, idle func()) (int, error) {
	d := &o.in
	o.buffer, o.idle = buffer, idle
	err := o.raw.Read(o.readNext)
	d.buf, o.buffer, o.idle = nil, nil, nil
	if err == nil && d.err == nil && d.n == 0 {
		return 0, io.EOF
	}
	return d.result("read", o.conn, err)
}

func (o *IO) doReadNext(fd uintptr) bool {
	d := &o.in
	d.buf = o.buffer()
	o.doRead(fd)
	if d.err != unix.EAGAIN {
		return true
	}
	o.idle()
	return false
}

// TryWrite writes as much of p as the kernel takes. The error is
// [ErrWouldBlock] if that is nothing, else a [*net.OpError].
func (o *IO) TryWrite(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	d := &o.out
	d.buf = p
	err := o.raw.Write(o.write)
	d.buf = nil
	return d.result("write", o.conn, err)
}

func (o *IO) doWrite(fd uintptr) bool {
	d := &o.out
	for {
		d.n, d.err = unix.Write(int(fd), d.buf)
		if d.err != unix.EINTR {
			return true
		}
	}
}

// TryWritev is TryWrite for several buffers at once. It may stop short even
// where the kernel would take more: only ErrWouldBlock says that it is full.
func (o *IO) TryWritev(bufs [][]byte) (int, error) {
	for len(bufs) > 0 && len(bufs[0]) == 0 {
		bufs = bufs[1:]
	}
	if len(bufs) == 0 {
		return 0, nil
	}
	o.bufs = bufs[:min(len(bufs), maxBuffers)]
	err := o.raw.Write(o.writev)
	o.bufs = nil
	return o.out.result("write", o.conn, err)
}

func (o *IO) doWritev(fd uintptr) bool {
	d := &o.out
	for {
		d.n, d.err = writev(int(fd), o.bufs)
		if d.err != unix.EINTR {
			return true
		}
	}
}

// WaitReadable waits until TryRead has something to say, as a rule; it may be
// [ErrWouldBlock] again.
func (o *IO) WaitReadable() error {
	d := &o.in
	d.err, d.woke = nil, false
	if err := o.raw.Read(o.readable); err != nil {
		return err
	}
	return d.err
}

func (o *IO) doReadable(fd uintptr) bool { return o.in.ready(fd, unix.POLLIN) }

// WaitWritable waits until TryWrite has something to say, as WaitReadable does.
func (o *IO) WaitWritable() error {
	d := &o.out
	d.err, d.woke = nil, false
	if err := o.raw.Write(o.writable); err != nil {
		return err
	}
	return d.err
}

func (o *IO) doWritable(fd uintptr) bool { return o.out.ready(fd, unix.POLLOUT) }

// ready is called before the runtime's poller is waited for, and again when it
// reports an event. The first call must look for itself: the runtime forgets,
// just before it, the events that it has seen.
func (d *direction) ready(fd uintptr, events int16) bool {
	if d.woke {
		return true
	}
	d.woke = true
	d.poll[0] = unix.PollFd{Fd: int32(fd), Events: events}
	for {
		n, err := unix.Poll(d.poll[:], 0)
		switch err {
		case nil:
			return n > 0
		case unix.EINTR:
		default:
			d.err = os.NewSyscallError("poll", err)
			return true
		}
	}
}

// result turns what the system call left behind, or the error that prevented
// it, into what a net.Conn returns.
func (d *direction) result(op string, c net.Conn, err error) (int, error) {
	if err != nil {
		return 0, err
	}
	switch d.err {
	case nil:
		return d.n, nil
	case unix.EAGAIN:
		return 0, ErrWouldBlock
	}
	return 0, &net.OpError{
		Op: op, Net: c.LocalAddr().Network(), Source: c.LocalAddr(), Addr: c.RemoteAddr(),
		Err: os.NewSyscallError(op, d.err),
	}
}

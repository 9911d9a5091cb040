//go:build unix

package osnet

import (
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// An IO reads a connection without holding a buffer while it waits, and writes
// it without waiting, each by one system call and without allocating.
//
// One goroutine at a time may use ReadNext, and one TryWritev. Close may be
// called on the connection at any time; ReadNext then returns an error that
// matches [net.ErrClosed].
type IO struct {
	conn net.Conn
	raw  syscall.RawConn
	in   direction
	out  direction

	buffer func() []byte // of a ReadNext that is running
	idle   func()
	bufs   [][]byte // of a TryWritev that is running

	// Method values, bound once, since binding allocates.
	read, write func(fd uintptr) bool
}

// A direction holds what a system call returned.
type direction struct {
	n   int
	err error
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
	o.read, o.write = o.doRead, o.doWrite
	return o, true
}

// ReadNext waits for bytes and reads them into what buffer returns, which must
// not be empty. Before it waits, it calls idle, after which that memory isn't
// touched any more; buffer is then called again. The error is [io.EOF] at the
// end, else as that of Read; a read deadline of the connection is obeyed.
func (o *IO) ReadNext(buffer func() []byte, idle func()) (int, error) {
	o.buffer, o.idle = buffer, idle
	err := o.raw.Read(o.read)
	o.buffer, o.idle = nil, nil
	if err == nil && o.in.err == nil && o.in.n == 0 {
		return 0, io.EOF
	}
	return o.in.result("read", o.conn, err)
}

func (o *IO) doRead(fd uintptr) bool {
	d := &o.in
	buf := o.buffer()
	for {
		d.n, d.err = unix.Read(int(fd), buf)
		switch d.err {
		case unix.EINTR:
		case unix.EAGAIN:
			o.idle()
			return false
		default:
			return true
		}
	}
}

// TryWritev writes as much of bufs as the kernel takes, without waiting. The
// error is [ErrWouldBlock] if that is nothing, else a [*net.OpError]. It may
// stop short even where the kernel would take more: only ErrWouldBlock says
// that it is full.
func (o *IO) TryWritev(bufs [][]byte) (int, error) {
	for len(bufs) > 0 && len(bufs[0]) == 0 {
		bufs = bufs[1:]
	}
	if len(bufs) == 0 {
		return 0, nil
	}
	o.bufs = bufs[:min(len(bufs), maxBuffers)]
	err := o.raw.Write(o.write)
	o.bufs = nil
	return o.out.result("write", o.conn, err)
}

func (o *IO) doWrite(fd uintptr) bool {
	d := &o.out
	for {
		d.n, d.err = writev(int(fd), o.bufs)
		if d.err != unix.EINTR {
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

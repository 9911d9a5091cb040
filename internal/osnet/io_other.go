//go:build !unix

package osnet

import "net"

// An IO reads and writes without waiting. There is none on this system.
type IO struct{}

// NewIO returns false: the caller uses Read and Write.
func NewIO(net.Conn) (_ *IO, ok bool) { return nil, false }

// TryRead can't be called.
func (*IO) TryRead([]byte) (int, error) { panic("osnet: no IO on this system") }

// TryWrite can't be called.
func (*IO) TryWrite([]byte) (int, error) { panic("osnet: no IO on this system") }

// TryWritev can't be called.
func (*IO) TryWritev([][]byte) (int, error) { panic("osnet: no IO on this system") }

// WaitReadable can't be called.
func (*IO) WaitReadable() error { panic("osnet: no IO on this system") }

// WaitWritable can't be called.
func (*IO) WaitWritable() error { panic("osnet: no IO on this system") }

// ReadNext is never called: there is no IO.
func (*IO) ReadNext(func() []byte, func()) (int, error) { panic("osnet: no IO on this system") }

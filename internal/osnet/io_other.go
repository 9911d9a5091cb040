//go:build !unix

package osnet

import "net"

// An IO reads and writes by single system calls. There is none on this system.
type IO struct{}

// NewIO returns false: the caller uses Read and Write.
func NewIO(net.Conn) (_ *IO, ok bool) { return nil, false }

// ReadNext can't be called.
func (*IO) ReadNext(func() []byte, func()) (int, error) { panic("osnet: no IO on this system") }

// TryWritev can't be called.
func (*IO) TryWritev([][]byte) (int, error) { panic("osnet: no IO on this system") }

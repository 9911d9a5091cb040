//go:build linux || darwin || openbsd

package osnet

import "golang.org/x/sys/unix"

// maxBuffers is how many buffers unix.Writev takes without allocating.
const maxBuffers = 8

func writev(fd int, bufs [][]byte) (int, error) { return unix.Writev(fd, bufs) }

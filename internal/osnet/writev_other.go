//go:build unix && !linux && !darwin && !openbsd

package osnet

import "golang.org/x/sys/unix"

const maxBuffers = 1

func writev(fd int, bufs [][]byte) (int, error) { return unix.Write(fd, bufs[0]) }

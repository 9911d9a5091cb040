package osnet

import "errors"

// ErrWouldBlock says that the kernel has no room for what is written. It is
// returned as it is, for comparison with ==.
var ErrWouldBlock = errors.New("operation would block")

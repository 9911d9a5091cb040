// Package linkemu emulates network links on loopback: a [Link] is a TCP relay
// within the process that has a rate, a delay and a bounded queue in each
// direction, and that can be cut and restored while it is in use. It needs no
// privileges.
//
// It is a relay and not a network: the kernels of both ends talk to it, not to
// each other. What that changes:
//
//   - Nothing is ever lost. A full queue holds the sender back, where a router
//     would drop a segment.
//   - The round trip that the kernel measures is loopback's. That of TCP's own
//     handshake is made up for: the client's first bytes are held back by it.
//   - The rate counts what TCP carries, without headers.
//   - The kernel's buffers at both ends of the relay, some 64 KiB, come on top
//     of the queue.
package linkemu

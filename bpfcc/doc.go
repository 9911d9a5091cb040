// Package bpfcc loads congestion controls that the peer of a session has sent
// into this machine's kernel: eBPF programs that make up one Linux
// tcp_congestion_ops. A [Host] is a tcpls.CCHost; [Bandwidth] and [Scalable] are
// two congestion controls to offer.
//
//	client := &tcpls.Config{TLS: ..., CCHost: new(bpfcc.Host)}          // takes one
//	err := session.OfferCC(ctx, bpfcc.Bandwidth())                      // gives one
//
// # What it needs
//
// Linux 6.4 with BTF, and CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, as root has them;
// [Supported] tells. The session's sockets are in the hands of this process, so
// no other one is needed, and nothing outlives it: the kernel forgets what was
// loaded when the process ends, however it does.
//
// # What is let in
//
// An object is taken only if it is an ELF file of at most 64 KiB for eBPF, all
// its programs are functions of one tcp_congestion_ops, 16 programs of together 4096
// instructions at most, its maps are its own constants and variables, of 4 KiB
// each at most, and it calls nothing but a few functions of the kernel's own congestion
// controls and two clocks, and refers to nothing else of the kernel or this process. The kernel's verifier then makes sure that it ends, and
// writes only its connections' windows and pacing. It is registered under a new
// name, "tcpls_" and 8 digits, as one that only privileged processes can
// choose, and never as a default. Four may be loaded at once.
//
// The verifier doesn't know whether it is any good: it may stall its connections or
// flood the network, and it can read what the kernel keeps of them and whatever
// that leads to. Sessions
// watch what becomes of their connections, and switch back. So take congestion
// controls only from whom you trust with your machine's share of the network;
// tcpls.Config.AcceptCC decides.
package bpfcc

//go:generate sh generate.sh

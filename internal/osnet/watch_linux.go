package osnet

import (
	"bytes"
	"context"
	"encoding/binary"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// A routeSocket hears of changes by rtnetlink(7). While nobody receives events,
// messages wait in its kernel buffer; when that is full, the kernel drops
// further ones and says so.
type routeSocket struct {
	file *os.File
	raw  syscall.RawConn
	net  *network
	buf  []byte
}

// maxMessages is the size of what is read at once: the kernel's own limit for
// dumps. A longer message would be cut, which counts as missed.
const maxMessages = 32 << 10

// newWatch falls back to polling where netlink is forbidden, as on Android.
func newWatch() func(context.Context, func(Event)) {
	s, err := newRouteSocket()
	if err != nil {
		return polling(interfaces, pollEvery)
	}
	return s.watch
}

func newRouteSocket() (*routeSocket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("netlink socket", err)
	}
	s := &routeSocket{file: os.NewFile(uintptr(fd), "netlink"), buf: make([]byte, maxMessages)}
	err = unix.Bind(fd, &unix.SockaddrNetlink{
		Family: unix.AF_NETLINK,
		Groups: unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR,
	})
	if err == nil {
		s.raw, err = s.file.SyscallConn()
	}
	if err == nil {
		s.net, err = dump() // behind Bind, so that nothing falls between
	}
	if err != nil {
		s.file.Close()
		return nil, os.NewSyscallError("netlink", err)
	}
	return s, nil
}

// dump asks for all interfaces and addresses.
func dump() (*network, error) {
	n := newNetwork()
	for _, request := range []int{unix.RTM_GETLINK, unix.RTM_GETADDR} {
		b, err := syscall.NetlinkRIB(request, unix.AF_UNSPEC)
		if err != nil {
			return nil, err
		}
		n.apply(b, func(Event) {})
	}
	return n, nil
}

// snapshot asks package net where netlink is forbidden.
func snapshot() (*network, error) {
	if n, err := dump(); err == nil {
		return n, nil
	}
	return interfaces()
}

func (s *routeSocket) watch(ctx context.Context, tell func(Event)) {
	defer s.file.Close()
	stop := context.AfterFunc(ctx, func() { s.file.Close() }) // ends receive
	defer stop()
	for {
		b, err := s.receive(true)
		switch {
		case err == nil:
			s.net.apply(b, tell)
		case err == unix.ENOBUFS:
			err = s.resync(tell)
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil { // netlink is of no more use
			tell(Event{Kind: Resync})
			polling(interfaces, pollEvery)(ctx, tell)
			return
		}
	}
}

// resync starts anew after a loss. What is still queued is older than the dump
// and incomplete: applied behind it, it could undo what is true.
func (s *routeSocket) resync(tell func(Event)) error {
	for {
		_, err := s.receive(false)
		if err == unix.EAGAIN {
			break
		}
		if err != nil && err != unix.ENOBUFS {
			return err
		}
	}
	n, err := dump()
	if err != nil {
		return err
	}
	s.net = n
	tell(Event{Kind: Resync})
	return nil
}

// receive returns the kernel's next messages, or waits for them. The error is
// ENOBUFS if any were lost.
func (s *routeSocket) receive(wait bool) ([]byte, error) {
	var n int
	var from unix.Sockaddr
	var err error
	rerr := s.raw.Read(func(fd uintptr) bool {
		for {
			n, from, err = unix.Recvfrom(int(fd), s.buf, unix.MSG_TRUNC)
			if err != unix.EINTR {
				return err != unix.EAGAIN || !wait
			}
		}
	})
	switch {
	case rerr != nil:
		return nil, rerr
	case err != nil:
		return nil, err
	case n > len(s.buf):
		return nil, unix.ENOBUFS
	}
	if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != 0 {
		return nil, nil // not the kernel's word
	}
	return s.buf[:n], nil
}

// apply notes what messages say, and tells what that changes. Those that can't
// be read say nothing.
func (n *network) apply(b []byte, tell func(Event)) {
	messages, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return
	}
	for i := range messages {
		switch m := &messages[i]; m.Header.Type {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			n.applyLink(m, tell)
		case unix.RTM_NEWADDR, unix.RTM_DELADDR:
			n.applyAddr(m, tell)
		}
	}
}

// applyLink reads struct ifinfomsg: family, a byte of padding, 2 bytes type,
// and 4 bytes each of index, flags and change.
func (n *network) applyLink(m *syscall.NetlinkMessage, tell func(Event)) {
	// Messages of family AF_BRIDGE are about ports of a bridge.
	if len(m.Data) < unix.SizeofIfInfomsg || m.Data[0] != unix.AF_UNSPEC {
		return
	}
	index := int(int32(binary.NativeEndian.Uint32(m.Data[4:])))
	if m.Header.Type == unix.RTM_DELLINK {
		n.dropLink(index, tell)
		return
	}
	flags := binary.NativeEndian.Uint32(m.Data[8:])
	const up = unix.IFF_UP | unix.IFF_RUNNING
	l := link{n.links[index].name, flags&up == up}
	if name := attribute(m.Data[unix.SizeofIfInfomsg:], unix.IFLA_IFNAME); len(name) > 0 {
		l.name = string(bytes.TrimRight(name, "\x00"))
	}
	n.setLink(index, l, tell)
}

// applyAddr reads struct ifaddrmsg: family, prefix length, flags and scope of
// a byte each, 4 bytes index.
func (n *network) applyAddr(m *syscall.NetlinkMessage, tell func(Event)) {
	if len(m.Data) < unix.SizeofIfAddrmsg {
		return
	}
	attrs := m.Data[unix.SizeofIfAddrmsg:]
	own := attribute(attrs, unix.IFA_LOCAL) // IFA_ADDRESS is the peer's on a point-to-point link
	if own == nil {
		own = attribute(attrs, unix.IFA_ADDRESS)
	}
	addr, ok := netip.AddrFromSlice(own)
	if !ok {
		return
	}
	a := address{int(binary.NativeEndian.Uint32(m.Data[4:])), addr}
	flags := uint32(m.Data[2])
	if b := attribute(attrs, unix.IFA_FLAGS); len(b) >= 4 {
		flags = binary.NativeEndian.Uint32(b)
	}
	// IPv6 addresses can't be used until nobody else is found to have them.
	usable := flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) == 0 || flags&unix.IFA_F_OPTIMISTIC != 0
	if m.Header.Type == unix.RTM_NEWADDR && usable {
		n.addAddr(a, tell)
	} else {
		n.dropAddr(a, tell)
	}
}

// attribute returns the value of the attribute of a type, behind the fixed
// part of a message; nil if there is none.
func attribute(b []byte, kind uint16) []byte {
	for len(b) >= unix.SizeofRtAttr {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofRtAttr || n > len(b) {
			return nil
		}
		if binary.NativeEndian.Uint16(b[2:]) == kind {
			return b[unix.SizeofRtAttr:n]
		}
		b = b[min((n+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1), len(b)):]
	}
	return nil
}

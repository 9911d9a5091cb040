package netns

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// SetLink switches an interface on or off.
func SetLink(name string, up bool) error {
	return configure(name, func(fd int, req *unix.Ifreq) error {
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
			return err
		}
		flags := req.Uint16() &^ unix.IFF_UP
		if up {
			flags |= unix.IFF_UP
		}
		req.SetUint16(flags)
		return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
	})
}

// SetMTU sets how many bytes a packet on an interface may have.
func SetMTU(name string, mtu uint32) error {
	return configure(name, func(fd int, req *unix.Ifreq) error {
		req.SetUint32(mtu)
		return unix.IoctlIfreq(fd, unix.SIOCSIFMTU, req)
	})
}

// AddAddr gives an interface another IPv4 address, under a label of the form
// "lo:1" by which DelAddr finds it.
func AddAddr(label string, addr netip.Addr) error {
	return configure(label, func(fd int, req *unix.Ifreq) error {
		ip := addr.As4()
		if err := req.SetInet4Addr(ip[:]); err != nil {
			return err
		}
		return unix.IoctlIfreq(fd, unix.SIOCSIFADDR, req)
	})
}

// DelAddr takes the address with a label away.
func DelAddr(label string) error { return SetLink(label, false) }

func configure(name string, f func(fd int, req *unix.Ifreq) error) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(name)
	if err == nil {
		err = f(fd, req)
	}
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	return nil
}

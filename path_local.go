package tcpls

import (
	"fmt"
	"net"
	"net/netip"
)

// A scope says where an address means the same host.
type scope int

const (
	global    scope = iota
	private         // of one site: RFC 1918, RFC 4193, and RFC 6598's of one provider
	linkLocal       // of one network
	loopback        // of one host
)

var sharedSpace = netip.MustParsePrefix("100.64.0.0/10")

func scopeOf(ip netip.Addr) scope {
	switch ip = ip.Unmap(); {
	case ip.IsLoopback():
		return loopback
	case ip.IsLinkLocalUnicast():
		return linkLocal
	case ip.IsPrivate() || sharedSpace.Contains(ip):
		return private
	}
	return global
}

// interfaceAddr returns the address of a network interface from which remote is
// to be reached.
func interfaceAddr(name string, remote netip.Addr) (netip.Addr, error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("tcpls: interface %q: %w", name, err)
	}
	addrs, err := i.Addrs()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("tcpls: interface %q: %w", name, err)
	}
	var own []netip.Addr
	for _, a := range addrs {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil {
			own = append(own, prefix.Addr())
		}
	}
	local := localFor(own, remote)
	if !local.IsValid() {
		family := "IPv6"
		if remote.Unmap().Is4() {
			family = "IPv4"
		}
		return local, fmt.Errorf("tcpls: interface %q has no %s address from which %v can be reached", name, family, remote)
	}
	if scopeOf(local) == linkLocal && local.Is6() {
		local = local.WithZone(name)
	}
	return local, nil
}

// localFor chooses among the addresses of an interface: one of remote's own
// scope, or else of any that isn't bound to the link. It is invalid if none will do.
func localFor(own []netip.Addr, remote netip.Addr) (choice netip.Addr) {
	remote = remote.Unmap()
	for _, ip := range own {
		if ip = ip.Unmap(); ip.Is4() != remote.Is4() {
			continue
		}
		if scopeOf(ip) == scopeOf(remote) {
			return ip
		}
		if !choice.IsValid() && scopeOf(ip) != linkLocal && scopeOf(remote) != linkLocal {
			choice = ip
		}
	}
	return choice
}

package wire

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// An Answer is the extension's body in EncryptedExtensions: the server's
// parameters, and what it gives the client for further paths (protocol 2.3).
type Answer struct {
	Parameters
	Tokens    []PathToken // in the order of their paths
	Addresses []Address   // in the order of their ids
}

// A PathToken is good for joining by one path.
type PathToken struct {
	Path  uint32
	Token []byte // 16 to [MaxToken] bytes
}

// An Address is one more address of the server, under a number that is never
// used again.
type Address struct {
	ID uint64
	netip.AddrPort
}

const (
	// MaxAnswerTokens is how many tokens an Answer may hold.
	MaxAnswerTokens = 16
	// MaxAddresses is how many addresses a client keeps at once.
	MaxAddresses = 16
)

// AppendAnswer appends the extension's body in EncryptedExtensions.
func AppendAnswer(b []byte, p *Parameters) []byte {
	return appendParameters(append(b, Version), p)
}

// AppendTokens appends tokens to an Answer.
func AppendTokens(b []byte, tokens []PathToken) []byte {
	if len(tokens) == 0 {
		return b
	}
	var list []byte
	for _, t := range tokens {
		list = AppendVarint(list, uint64(t.Path))
		list = AppendVarint(list, uint64(len(t.Token)))
		list = append(list, t.Token...)
	}
	return appendList(b, idTokens, list)
}

// AppendAddresses appends addresses to an Answer.
func AppendAddresses(b []byte, addresses []Address) []byte {
	if len(addresses) == 0 {
		return b
	}
	var list []byte
	for _, a := range addresses {
		list = AppendVarint(list, a.ID)
		list = append(list, byte(2+a.Addr().BitLen()/8))
		list = appendAddrPort(list, a.AddrPort)
	}
	return appendList(b, idAddresses, list)
}

func appendList(b []byte, id byte, list []byte) []byte {
	return append(AppendVarint(append(b, id), uint64(len(list))), list...)
}

// ParseAnswer reads the extension's body in EncryptedExtensions. The tokens are
// part of b.
func ParseAnswer(b []byte) (Answer, error) {
	var a Answer
	if len(b) == 0 || b[0] != Version {
		return a, &Error{"2.2", "an Answer with a version that wasn't offered"}
	}
	err := a.parse(b[1:], &a)
	return a, err
}

func (a *Answer) parseTokens(r *reader) error {
	last := uint64(0)
	for len(r.b) > 0 {
		path, token := r.varint(), r.prefixed()
		switch {
		case r.short:
			return nil // the caller says so
		case path <= last || path > maxPath || len(token) < minToken || len(token) > MaxToken:
			return &Error{"2.3", fmt.Sprintf("a token of %d bytes for path %d after path %d", len(token), path, last)}
		case len(a.Tokens) == MaxAnswerTokens:
			return &Error{"2.3", fmt.Sprintf("more than %d tokens", MaxAnswerTokens)}
		}
		last = path
		a.Tokens = append(a.Tokens, PathToken{uint32(path), token})
	}
	return nil
}

func (a *Answer) parseAddresses(r *reader) error {
	last := uint64(0)
	for len(r.b) > 0 {
		id, body := r.varint(), r.prefixed()
		address, ok := parseAddrPort(body)
		switch {
		case r.short:
			return nil // the caller says so
		case !ok:
			return &Error{"2.3", fmt.Sprintf("address %d that can't be one", id)}
		case id <= last:
			return &Error{"2.3", fmt.Sprintf("address %d after address %d", id, last)}
		case len(a.Addresses) == MaxAddresses:
			return &Error{"2.3", fmt.Sprintf("more than %d addresses", MaxAddresses)}
		}
		last = id
		a.Addresses = append(a.Addresses, Address{id, address})
	}
	return nil
}

func appendAddrPort(b []byte, a netip.AddrPort) []byte {
	b = binary.BigEndian.AppendUint16(b, a.Port())
	return append(b, a.Addr().AsSlice()...)
}

// parseAddrPort reads all of b, and tells whether a TCP server may listen there.
func parseAddrPort(b []byte) (netip.AddrPort, bool) {
	if len(b) < 2 {
		return netip.AddrPort{}, false
	}
	ip, ok := netip.AddrFromSlice(b[2:])
	a := netip.AddrPortFrom(ip, binary.BigEndian.Uint16(b))
	return a, ok && IsServerAddress(a)
}

// IsServerAddress tells whether an Address may hold a: a unicast one with a port
// and without a zone, IPv4 as such (protocol 5.18).
func IsServerAddress(a netip.AddrPort) bool {
	ip := a.Addr()
	broadcast := netip.AddrFrom4([4]byte{255, 255, 255, 255})
	return ip.IsValid() && a.Port() != 0 && !ip.IsUnspecified() && !ip.IsMulticast() && !ip.Is4In6() && ip.Zone() == "" && ip != broadcast
}

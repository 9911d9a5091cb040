package tcpls

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"

	"github.com/go-tcpls/tcpls/internal/osnet"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// inspections are a session's questions about SYNs; guarded by its mu.
type inspections struct {
	asked   map[uint16]*wire.SYN // a client's; nil: not answered yet
	pending []uint16             // a server's paths that its client asks about
	due     atomic.Bool          // there are some
}

// A synWord is a SYN_REQUEST, or a SYN_REPORT.
type synWord struct {
	path   uint16
	report bool
	syn    wire.SYN
}

// reportsSYNs reports whether a server answers SYN_REQUEST.
func (c *Config) reportsSYNs() bool { return !c.NoSYNReports }

// askSYN returns what the server tells of a path's SYN.
func (s *Session) askSYN(ctx context.Context, p *Path) (wire.SYN, error) {
	s.mu.Lock()
	if !s.peer.SYNReports {
		s.mu.Unlock()
		return wire.SYN{}, fmt.Errorf("tcpls: inspecting path %d: the server doesn't tell how SYNs arrive: %w", p.id, errors.ErrUnsupported)
	}
	_, asked := s.syns.asked[p.id]
	if !asked {
		if s.syns.asked == nil {
			s.syns.asked = make(map[uint16]*wire.SYN)
		}
		s.syns.asked[p.id] = nil
	}
	s.mu.Unlock()
	if !asked {
		s.control.say(func(c *control) { c.syns = append(c.syns, synWord{path: p.id}) })
		s.kick()
	}
	stop := context.AfterFunc(ctx, s.broadcast)
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	answer := func() *wire.SYN { return s.syns.asked[p.id] }
	if err := s.await(ctx, func() bool { return answer() != nil || p.state == PathClosed }); err != nil {
		return wire.SYN{}, err
	}
	if answer() == nil {
		return wire.SYN{}, &PathError{Path: p.ID(), Op: "inspect", Err: errPathGone}
	}
	return *answer(), nil
}

// receiveSYN acts on SYN_REQUEST and SYN_REPORT.
func (s *Session) receiveSYN(f *wire.Frame) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := &s.syns
	id := uint16(f.Path)
	if f.Kind == wire.SYNReport {
		answer, asked := i.asked[id]
		if !s.client || !asked || answer != nil {
			return violation(wire.CodeProtocol, "SYN_REPORT for path %d, which wasn't asked for", id)
		}
		syn := f.SYN
		syn.Options = append([]byte(nil), syn.Options...)
		i.asked[id] = &syn
		s.cond.Broadcast()
		return nil
	}
	switch {
	case s.client:
		return violation(wire.CodeProtocol, "SYN_REQUEST from a server")
	case !s.cfg.reportsSYNs():
		return violation(wire.CodeProtocol, "SYN_REQUEST to a server that hasn't said that it answers (protocol 13.2)")
	case f.Path > s.tickets.given:
		return violation(wire.CodeProtocol, "SYN_REQUEST for path %d, which can't be", id)
	case len(i.pending)+s.control.waitingSYNs() >= s.cfg.MaxPaths:
		return violation(wire.CodeLimit, "more than %d SYN_REQUESTs at once", s.cfg.MaxPaths)
	}
	i.pending = append(i.pending, id)
	i.due.Store(true)
	return nil
}

// tellSYNs answers the client's questions. The caller holds no lock: it asks
// the kernel.
func (s *Session) tellSYNs() {
	s.mu.Lock()
	pending := s.syns.pending
	s.syns.pending = nil
	s.syns.due.Store(false)
	s.mu.Unlock()
	for _, id := range pending {
		word := synWord{path: id, report: true}
		for _, p := range s.livePaths() {
			if p.id == id {
				word.syn = p.savedSYN()
			}
		}
		s.control.say(func(c *control) { c.syns = append(c.syns, word) })
	}
}

// savedSYN is how the path's SYN arrived, without a source if that isn't known.
func (p *Path) savedSYN() wire.SYN {
	if p.raw == nil {
		return wire.SYN{}
	}
	headers, err := osnet.SavedSYN(p.raw)
	if err != nil {
		return wire.SYN{}
	}
	syn, ok := parseSYN(headers)
	if !ok {
		return wire.SYN{}
	}
	if own, err := osnet.SYNOf(p.raw, p.LocalAddr()); err == nil {
		syn.Negotiated, syn.AnswerMSS = own.Negotiated, uint16(own.MSS)
	}
	return syn
}

func (c *control) waitingSYNs() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.syns)
}

// appendSYNs appends SYN_REQUEST and SYN_REPORT frames, up to the length limit.
// The caller holds mu.
func (c *control) appendSYNs(b []byte, limit int) []byte {
	for len(c.syns) > 0 && len(b)+wire.MaxSYNReport <= limit {
		if w := &c.syns[0]; w.report {
			b = wire.AppendSYNReport(b, uint32(w.path), &w.syn)
		} else {
			b = wire.AppendSYNRequest(b, uint32(w.path))
		}
		c.syns = c.syns[1:]
	}
	return b
}

// The kinds of TCP options that are looked at (RFC 9293, 3.2; RFC 7323; RFC 2018).
const (
	optEnd        = 0
	optNothing    = 1
	optMSS        = 2
	optScale      = 3
	optSACK       = 4
	optTimestamps = 8
)

// parseSYN reads the headers of IP and TCP of a SYN. The port is TCP's first
// field, and IPv6 extensions are passed by.
func parseSYN(b []byte) (syn wire.SYN, ok bool) {
	if len(b) < 20 {
		return syn, false
	}
	var source netip.Addr
	switch b[0] >> 4 {
	case 4:
		n := int(b[0]&15) * 4
		if n < 20 || len(b) < n {
			return syn, false
		}
		source, syn.HopLimit, b = netip.AddrFrom4([4]byte(b[12:16])), b[8], b[n:]
	case 6:
		if len(b) < 40 {
			return syn, false
		}
		next := b[6]
		source, syn.HopLimit, b = netip.AddrFrom16([16]byte(b[8:24])).Unmap(), b[7], b[40:]
		if b, ok = skipExtensions(b, next); !ok {
			return syn, false
		}
	default:
		return syn, false
	}
	const offset, flags = 12, 13 // of TCP's header
	if len(b) < 20 {
		return syn, false
	}
	n := int(b[offset]>>4) * 4
	if n < 20 || len(b) < n {
		return syn, false
	}
	syn.Source, syn.Flags = netip.AddrPortFrom(source, binary.BigEndian.Uint16(b)), b[flags]
	return syn, parseOptions(&syn, b[20:n])
}

// skipExtensions passes by the IPv6 extension headers that a SYN may have
// (RFC 8200, 4.1).
func skipExtensions(b []byte, next byte) (tcp []byte, ok bool) {
	for next == 0 || next == 43 || next == 60 { // hop-by-hop, routing, destination
		if len(b) < 8 || len(b) < 8+8*int(b[1]) {
			return nil, false
		}
		next, b = b[0], b[8+8*int(b[1]):]
	}
	return b, next == 6
}

func parseOptions(syn *wire.SYN, b []byte) (ok bool) {
	for len(b) > 0 && b[0] != optEnd {
		if b[0] == optNothing {
			b = b[1:]
			continue
		}
		if len(b) < 2 || b[1] < 2 || len(b) < int(b[1]) {
			return false
		}
		kind, value := b[0], b[2:b[1]]
		b = b[b[1]:]
		switch {
		case kind == optMSS && len(value) == 2:
			syn.MSS = binary.BigEndian.Uint16(value)
		case kind == optScale && len(value) == 1:
			syn.Scale = value[0]
		case kind == optTimestamps && len(value) == 8:
			syn.Timestamp = binary.BigEndian.Uint32(value)
		}
		syn.Options = append(syn.Options, kind)
	}
	return true
}

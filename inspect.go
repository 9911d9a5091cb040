package tcpls

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/go-tcpls/tcpls/internal/osnet"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// What the network does to a path. A SYN travels in the clear and is what
// middleboxes change; only the server sees how it arrived, and only the client
// knows what it sent. So the server tells inside the encryption, and the client
// compares (protocol 13).

// An Inspection says what the network did to the TCP SYN that opened a path, as
// the comparison with what reached the server shows.
type Inspection struct {
	// Local is the path's address at this end, Source the one that the server
	// saw.
	Local, Source netip.AddrPort
	// Hops is how many routers passed the SYN on; -1 if that isn't known, as
	// behind a proxy.
	Hops int
	// Findings are what was changed; none where all arrived as it was sent.
	Findings []Finding
}

// A FindingKind is what may happen to a SYN on its way.
type FindingKind int

const (
	// FindingProxy: the SYN that reached the server isn't ours: somebody ends the
	// TCP connection and opens another one. What else is different says nothing then.
	FindingProxy FindingKind = iota
	// FindingAddress and FindingPort: the source was rewritten, as by a NAT.
	FindingAddress
	FindingPort
	// FindingStripped: an option was taken out.
	FindingStripped
	// FindingAdded: an option came in.
	FindingAdded
	// FindingChanged: an option arrived with another value.
	FindingChanged
)

// A Finding is one change. Its String says it in words.
type Finding struct {
	Kind FindingKind
	// Option names what was stripped, added or changed: "MSS", "window scale",
	// "SACK", "timestamps" or "ECN".
	Option string
	// Answer tells that it isn't about the SYN but about the server's answer.
	Answer bool
	// Sent and Seen are the values of what was changed, for a person.
	Sent, Seen string
}

func (f Finding) String() string {
	where := ""
	if f.Answer {
		where = " of the server's answer"
	}
	switch f.Kind {
	case FindingProxy:
		return "a proxy ends the TCP connection: another SYN than ours reached the server, " + f.Seen
	case FindingAddress:
		return fmt.Sprintf("a NAT rewrote the source address %s to %s", f.Sent, f.Seen)
	case FindingPort:
		return fmt.Sprintf("a NAT rewrote the source port %s to %s", f.Sent, f.Seen)
	case FindingStripped:
		return fmt.Sprintf("option %s%s was stripped", f.Option, where)
	case FindingAdded:
		return fmt.Sprintf("option %s%s was added", f.Option, where)
	}
	return fmt.Sprintf("option %s%s was changed from %s to %s", f.Option, where, f.Sent, f.Seen)
}

// Inspect asks the server how the path's SYN arrived, and compares that with
// what this end sent. The server is asked once for each path. Errors: one that
// matches errors.ErrUnsupported where this end isn't Linux, the path isn't a
// socket of the kernel, or the server doesn't tell or hasn't kept the SYN;
// that the path is closed, the context's, or the reason why the session ended.
func (p *Path) Inspect(ctx context.Context) (*Inspection, error) {
	s := p.sess
	if !s.client {
		return nil, errors.New("tcpls: only a client can inspect its paths: it knows what it sent")
	}
	if p.raw == nil {
		return nil, fmt.Errorf("tcpls: inspecting path %d: it isn't a socket of the kernel: %w", p.id, errors.ErrUnsupported)
	}
	sent, err := osnet.SYNOf(p.raw, p.LocalAddr())
	if err != nil {
		return nil, fmt.Errorf("tcpls: inspecting path %d: %w", p.id, err)
	}
	seen, err := s.askSYN(ctx, p)
	if err != nil {
		return nil, err
	}
	if !seen.Source.IsValid() {
		return nil, fmt.Errorf("tcpls: inspecting path %d: the server has kept no SYN of it: %w", p.id, errors.ErrUnsupported)
	}
	local, _ := addrPort(p.LocalAddr()) // a socket has one
	return compareSYN(&sent, local, &seen, time.Since(s.began)), nil
}

func addrPort(a net.Addr) (netip.AddrPort, bool) {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}, false
	}
	ap := tcp.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port()), true
}

// negotiations are what both ends must ask for, and the option that does it.
var negotiations = [...]struct {
	name string
	kind byte
	bit  uint8
}{
	{"SACK", optSACK, wire.NegotiatedSACK},
	{"timestamps", optTimestamps, wire.NegotiatedTimestamps},
	{"window scale", optScale, wire.NegotiatedScale},
	{"ECN", 0, wire.NegotiatedECN},
}

// clockMargin is how much older than its session a path's SYN may be: it may
// have waited for its answer, and for the handshake.
const clockMargin = 2 * time.Minute

// compareSYN says what became of a SYN that was sent from local in a session
// of that age.
func compareSYN(sent *osnet.SentSYN, local netip.AddrPort, seen *wire.SYN, age time.Duration) *Inspection {
	r := &Inspection{Local: local, Source: seen.Source, Hops: -1}
	if why := foreign(sent, seen, age); why != "" {
		r.add(Finding{Kind: FindingProxy, Seen: why})
		return r
	}
	if hops := sent.HopLimit - int(seen.HopLimit); sent.HopLimit > 0 && hops >= 0 {
		r.Hops = hops
	}
	if a, b := local.Addr(), seen.Source.Addr(); a != b {
		r.add(Finding{Kind: FindingAddress, Sent: a.String(), Seen: b.String()})
	}
	if a, b := local.Port(), seen.Source.Port(); a != b {
		r.add(Finding{Kind: FindingPort, Sent: fmt.Sprint(a), Seen: fmt.Sprint(b)})
	}
	switch {
	case sent.MSS > 0 && seen.MSS == 0:
		r.add(Finding{Kind: FindingStripped, Option: "MSS"})
	case sent.MSS > 0 && int(seen.MSS) != sent.MSS:
		r.changed("MSS", false, sent.MSS, int(seen.MSS))
	}
	if told := int(seen.AnswerMSS); told > 0 && sent.PeerMSS > 0 && sent.PeerMSS < told {
		r.changed("MSS", true, told, sent.PeerMSS)
	}
	for _, n := range negotiations {
		asked, arrived := sent.Asked&n.bit != 0, asks(seen, n.kind)
		answered, taken := seen.Negotiated&n.bit != 0, sent.Negotiated&n.bit != 0
		switch {
		case sent.Known&n.bit == 0:
		case asked && !arrived:
			r.add(Finding{Kind: FindingStripped, Option: n.name})
		case !asked && arrived && n.kind != 0: // a route or a congestion control may ask for ECN
			r.add(Finding{Kind: FindingAdded, Option: n.name})
		case arrived && answered && !taken:
			r.add(Finding{Kind: FindingStripped, Option: n.name, Answer: true})
		}
	}
	if sent.Negotiated&wire.NegotiatedScale != 0 && asks(seen, optScale) && int(seen.Scale) != sent.Scale {
		r.changed("window scale", false, sent.Scale, int(seen.Scale))
	}
	return r
}

// asks reports whether a SYN has an option, or the flags that ask for ECN
// (RFC 3168, 6.1.1).
func asks(s *wire.SYN, kind byte) bool {
	if kind == 0 {
		return s.Flags&0xc0 == 0xc0
	}
	return bytes.IndexByte(s.Options, kind) >= 0
}

// foreign tells by what the SYN that arrived is known not to be ours; "" if it
// may be.
func foreign(sent *osnet.SentSYN, seen *wire.SYN, age time.Duration) string {
	var why []string
	if sent.HasClock && sent.Negotiated&wire.NegotiatedTimestamps != 0 && asks(seen, optTimestamps) {
		if ago := sent.Timestamp - seen.Timestamp; time.Duration(ago)*time.Millisecond > age+clockMargin {
			why = append(why, "with the timestamp of another clock")
		}
	}
	for _, n := range negotiations {
		if n.kind != 0 && sent.Negotiated&n.bit != 0 && !asks(seen, n.kind) {
			why = append(why, "without option "+n.name+", which ours was answered")
		}
	}
	if sent.HopLimit > 0 && int(seen.HopLimit) > sent.HopLimit {
		why = append(why, "with a higher hop limit than it was sent with")
	}
	if len(why) == 0 {
		return ""
	}
	return "from " + seen.Source.String() + ", " + strings.Join(why, ", ")
}

func (r *Inspection) add(f Finding) { r.Findings = append(r.Findings, f) }

func (r *Inspection) changed(option string, answer bool, sent, seen int) {
	r.add(Finding{Kind: FindingChanged, Option: option, Answer: answer, Sent: fmt.Sprint(sent), Seen: fmt.Sprint(seen)})
}

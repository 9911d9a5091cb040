package tcpls

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/go-tcpls/tcpls/internal/wire"
	"github.com/go-tcpls/tcpls/sched"
)

// A FallbackPolicy says what becomes of a peer that doesn't speak TCPLS.
type FallbackPolicy int

const (
	// FallbackAllow goes on with such a peer over plain TLS: the session has
	// exactly one stream, and what needs TCPLS returns ErrNotTCPLS. A client
	// also redials servers that know TLS 1.2 only, by crypto/tls, unless
	// Config.TLS.MinVersion forbids it.
	FallbackAllow FallbackPolicy = iota
	// FallbackRefuse fails with ErrNotTCPLS.
	FallbackRefuse
)

// Config holds the settings of sessions. Zero values mean the defaults named
// below; a negative number or duration means "off" where that is said. A
// Config must not be modified after its first use, and may be shared.
type Config struct {
	// TLS is the configuration of the handshake, in crypto/tls's terms. Every
	// field is honoured, or refused by an error that names it. A server needs
	// a certificate; a client needs ServerName (Dial fills it in) or
	// InsecureSkipVerify. Versions below TLS 1.3 concern the fallback only.
	// Records are short at the beginning of a connection and after it was idle,
	// so that the first bytes can be used when the first segment arrives;
	// DynamicRecordSizingDisabled makes all as long as can be.
	TLS *tls.Config

	// Fallback says what to do with peers that don't speak TCPLS.
	Fallback FallbackPolicy

	// HandshakeTimeout bounds the whole handshake, from the first byte to the
	// last, however the peer spreads its bytes. Default 10 s.
	HandshakeTimeout time.Duration
	// IdleTimeout ends a session on which nothing was received for so long.
	// The shorter one of both ends counts. Default: off.
	IdleTimeout time.Duration
	// KeepAlive is after how much silence the session pings its peer, which
	// keeps NATs from forgetting the path. If nothing at all comes for as long
	// again, at least 5 s and at most 30 s, the session ends with
	// ErrKeepAliveTimeout. Default 30 s, or half the idle timeout where that is
	// shorter; negative: off.
	KeepAlive time.Duration
	// CloseTimeout bounds how long Close waits for the peer to take what was
	// written and to confirm the end. Default 5 s.
	CloseTimeout time.Duration

	// ReconnectFor is how long a session without any path lives on while its
	// client tries to join again; nothing that was written is lost meanwhile.
	// Default 60 s; negative: the session ends with its last path.
	ReconnectFor time.Duration
	// PathTimeout is how long a path from which something is expected may be
	// silent before another one takes over. Default: adaptive, one and a half
	// round trips and 50 ms, at least 150 ms.
	PathTimeout time.Duration
	// MaxPaths is how many paths a client may have open at once in a session.
	// Default 8, at most 65,535; 1: no joins.
	MaxPaths int
	// Addresses are further addresses of a server, besides the one that a client
	// dials: its clients are told, and may open paths there. At most 16;
	// Session.Advertise changes them later. Default: none.
	Addresses []netip.AddrPort

	// NoSYNReports keeps a server from telling its clients, inside the encryption,
	// how the TCP SYN of their paths arrived (docs/protocol.md, 13), by which
	// Path.Inspect finds NATs, proxies and what strips options. Behind a proxy that
	// would tell clients the proxy's own address. A listener on Linux keeps some 100 bytes in
	// the kernel for each connection. Default: it tells.
	NoSYNReports bool

	// PathManager opens further paths for the sessions of a Dialer. Default:
	// NoPaths.
	PathManager PathManager

	// MaxEarlyData is how many bytes of streams a server accepts as early data,
	// and allows in the tickets that it gives. Early data can be replayed by
	// an observer, to this process once at most; Stream.EarlyData tells which
	// streams have some. Default 0: none; at most 1 MiB.
	MaxEarlyData int
	// ReplayStore tells a server's early data from a replay. Default: a
	// register of this process for up to 65,536 uses in 20 seconds.
	ReplayStore ReplayStore

	// Mode says how the paths of a session are used for what this end sends,
	// and what the peer is asked to do. Default: ModePeer. A server whose uplink
	// costs something may want ModeFailover, whatever its clients ask for.
	Mode Mode
	// Scheduler decides which paths carry what is written to the streams that
	// have no path of their own, instead of Mode, for what this end sends; see
	// package sched. Session.SetScheduler changes it later. Default: by Mode.
	Scheduler sched.Scheduler

	// MaxStreams is how many streams the peer may have open at once. Default
	// 1024, at most 2^29-1; negative: none (docs/protocol.md, 5.5).
	MaxStreams int
	// StreamRecvWindow is how many unread bytes a new stream may hold, at least
	// 64 KiB (docs/protocol.md, 6.1). The
	// window grows, up to StreamRecvMax, while the application reads as fast
	// as bytes arrive. Defaults 1 MiB and 8 MiB.
	StreamRecvWindow, StreamRecvMax int
	// SessionRecvWindow and SessionRecvMax are the same for all streams of the
	// session together. Defaults 2 MiB and 16 MiB.
	SessionRecvWindow, SessionRecvMax int
	// SendBuffer bounds the bytes that a session keeps until the peer has
	// acknowledged them; a Write waits while it is full. What they lie in may
	// be twice that and 1 MiB, where a peer acknowledges unevenly. Default
	// 8 MiB, at least 64 KiB, at most 1 GiB.
	SendBuffer int
	// RekeyAfter is how many records are sealed with one key before the session
	// moves to the next one. Default, and most: 2^22, well inside what AES-GCM
	// allows (RFC 8446, section 5.5).
	RekeyAfter int
	// MaxPending is how many connections of a Listener may be in their
	// handshake, or wait for Accept, at once; further ones wait in the kernel.
	// Default 256, at most 2^20.
	MaxPending int
	// MaxPendingPerSource is how many of these may come from one IPv4 address
	// or IPv6 /64 network; further ones are reset. Loopback addresses are not
	// limited. Behind a proxy, where all come from its address, it should be
	// MaxPending. Default half of MaxPending, but at least 16.
	MaxPendingPerSource int
	// MaxSessions is how many sessions of a Listener may be open at once,
	// handshakes included; further connections are reset. Default 65536, at
	// most 2^30.
	MaxSessions int

	// Congestion names a TCP congestion control for the session's sockets, as
	// "cubic". Default: the system's. Linux only; elsewhere, or where the
	// kernel refuses the name, dialing and accepting fail.
	Congestion string

	// CCHost loads congestion controls that the peer offers for what this end
	// sends; package bpfcc has one for Linux. They are programs that run in this
	// machine's kernel: it checks that they end and touch nothing else, but not
	// that they are fair to other traffic. Default nil: none is taken.
	CCHost CCHost
	// AcceptCC decides which offers to take, by their name, size, hash and
	// origin; its error is the reason that the peer is told. It is called
	// before the object has come, with Object nil, and must not close the session.
	// Default: those of peers whose certificate was verified.
	AcceptCC func(s *Session, o CCOffer) error
	// PeerTCPOptions are TCP options that the peer is asked to set on its sockets,
	// on all paths and from the handshake on (docs/protocol.md, section 11); see
	// Session.SetPeerTCPOption. EventPeerTCPOption tells of each what came of it. At
	// most 16. Default: none.
	PeerTCPOptions []TCPOption
	// AcceptTCPOption decides about a TCP option that the peer asks this end to set
	// on its sockets: it returns the option, with the same value or another one, or an
	// error, and then the peer is told that it is refused, or the Reason of a
	// *TCPOptionError. It is called by a goroutine of the session, for one request at a
	// time. Default: LimitTCPOption, which also keeps to Congestion if that is set.
	AcceptTCPOption func(TCPOption) (TCPOption, error)

	// FastOpen uses TCP Fast Open (RFC 7413) for connections of Dial and
	// Listen: from the second connection to an address on, the ClientHello
	// travels in the SYN, which saves a round trip if one segment holds all of
	// it: on Ethernet it does without a post-quantum key share, see
	// tls.Config.CurvePreferences. With Dialer.EarlyData, the first request goes
	// with it as far as there is room. An observer can link connections by the cookie. On Linux,
	// net.ipv4.tcp_fastopen needs the bit 1 for clients (the default) and 2 for
	// servers. Wherever it can't be had, the connection is an ordinary one.
	// Default: off.
	FastOpen bool

	// Hooks are called when something happens to a session. Default: none.
	Hooks *Hooks

	// Logger receives what a person who runs the program would want to know.
	// Secrets and application data are never logged. Default: silence.
	Logger *slog.Logger
}

// Clone returns a copy, sharing what Config's pointers point to.
func (c *Config) Clone() *Config {
	if c == nil {
		return nil
	}
	clone := *c
	return &clone
}

// pingTimeout is how long a keepalive ping may stay unanswered.
func (c *Config) pingTimeout() time.Duration {
	return min(max(c.KeepAlive, 5*time.Second), 30*time.Second)
}

// The smallest buffers with which full records still flow.
const (
	minWindow     = 64 << 10
	minSendBuffer = 64 << 10
)

// withDefaults returns a checked copy in which every zero is replaced.
func (c *Config) withDefaults() (*Config, error) {
	if c == nil || c.TLS == nil {
		return nil, errors.New("tcpls: Config.TLS is nil; it must hold at least a certificate (server) or a server name (client)")
	}
	d := *c
	setDefault(&d.HandshakeTimeout, 10*time.Second)
	setDefault(&d.CloseTimeout, 5*time.Second)
	setDefault(&d.ReconnectFor, time.Minute)
	setDefault(&d.MaxPaths, 8)
	setDefault(&d.MaxStreams, 1024)
	setDefault(&d.StreamRecvWindow, 1<<20)
	setDefault(&d.StreamRecvMax, max(8<<20, d.StreamRecvWindow))
	setDefault(&d.SessionRecvWindow, max(2<<20, d.StreamRecvWindow))
	setDefault(&d.SessionRecvMax, max(16<<20, d.SessionRecvWindow))
	setDefault(&d.SendBuffer, 8<<20)
	setDefault(&d.RekeyAfter, rekeyAfter)
	setDefault(&d.MaxPending, 256)
	setDefault(&d.MaxPendingPerSource, min(max(16, d.MaxPending/2), d.MaxPending))
	setDefault(&d.MaxSessions, 1<<16)
	if d.KeepAlive == 0 {
		d.KeepAlive = 30 * time.Second
		if d.IdleTimeout > 0 {
			d.KeepAlive = min(d.KeepAlive, d.IdleTimeout/2)
		}
	}
	d.MaxStreams = max(d.MaxStreams, 0)
	if d.Logger == nil {
		d.Logger = slog.New(slog.DiscardHandler)
	}
	for _, f := range [...]struct {
		name      string
		value, lo int
		hi        int
	}{
		{"MaxStreams", d.MaxStreams, 0, wire.MaxStreams},
		{"StreamRecvWindow", d.StreamRecvWindow, minWindow, d.StreamRecvMax},
		{"SessionRecvWindow", d.SessionRecvWindow, minWindow, d.SessionRecvMax},
		{"SendBuffer", d.SendBuffer, minSendBuffer, 1 << 30},
		{"MaxEarlyData", d.MaxEarlyData, 0, 1 << 20},
		{"Mode", int(d.Mode), int(ModePeer), int(ModePinned)},
		{"MaxPaths", d.MaxPaths, 1, 1<<16 - 1},
		{"RekeyAfter", d.RekeyAfter, 1, rekeyAfter},
		{"MaxPending", d.MaxPending, 1, 1 << 20},
		{"MaxPendingPerSource", d.MaxPendingPerSource, 1, d.MaxPending},
		{"MaxSessions", d.MaxSessions, 1, 1 << 30},
	} {
		if f.value < f.lo || f.value > f.hi {
			return nil, fmt.Errorf("tcpls: Config.%s is %d; it must be from %d to %d", f.name, f.value, f.lo, f.hi)
		}
	}
	var err error
	if d.Addresses, err = serverAddresses(d.Addresses); err != nil {
		return nil, fmt.Errorf("%w (Config.Addresses)", err)
	}
	if _, err = d.encodeOptions(); err != nil {
		return nil, err
	}
	if len(d.Addresses) > wire.MaxAddresses {
		return nil, fmt.Errorf("tcpls: Config.Addresses has %d; a client holds %d", len(d.Addresses), wire.MaxAddresses)
	}
	if d.HandshakeTimeout < 0 || d.CloseTimeout < 0 || d.IdleTimeout < 0 {
		return nil, errors.New("tcpls: Config has a negative HandshakeTimeout, CloseTimeout or IdleTimeout")
	}
	return &d, nil
}

func setDefault[T ~int | ~int64](field *T, value T) {
	if *field == 0 {
		*field = value
	}
}

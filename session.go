package tcpls

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-tcpls/tcpls/internal/tls13"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// A Session is an association with one peer: streams in both directions over
// one authenticated, encrypted path. Its methods may be called from many
// goroutines at once.
//
// It runs one goroutine for each path, its reader, another one while the path's
// socket is full, and timers; all end with it.
//
// Locks, from the outside in; whoever holds one takes only later ones:
//
//	switchMu        who is the main path
//	inMu            what arrives, on whatever path: its order and meaning
//	mu              the tables of streams and paths, and the session's life
//	Stream.sendMu   one stream's sending side
//	Path.outMu      the order of records on a path
//	control.sealMu  the order of control records
//	leaves          Stream.recvMu, sendGate.mu, words.mu, control.mu, kept.mu, winMu
//
// None is held across a system call, a wait but for its own condition, the
// application's code or a log line.
type Session struct {
	cfg     *Config
	client  bool
	log     *slog.Logger
	state   ConnectionState
	engine  *tls13.Conn
	peer    wire.Parameters // what the peer allows at first; guarded by mu
	keys    keyring
	gate    sendGate
	words   words
	control control

	plain    *Stream // the only stream to a peer that doesn't speak TCPLS
	plainOut bool    // it was handed out; guarded by mu

	opening
	routing
	incoming

	mu        sync.Mutex
	cond      sync.Cond
	table     table
	life      life
	ping      pinger
	tickets   tickets
	addresses addresses
	options   options
	syns      inspections
	rescue    rescue
	departure departure
	offers    ccOffers
	hosted    ccHosted
	running   int // paths whose goroutines haven't ended, and what hosts a congestion control

	watchers observers
	later    later

	spread  atomic.Bool  // joins are possible: the peer may know of more paths than we
	waiters atomic.Int32 // goroutines that wait for something from the peer

	winMu sync.Mutex
	win   window

	draining     atomic.Bool
	began        time.Time
	lastReceived atomic.Int64 // ns since began: the wall clock may jump
	roundTrip    atomic.Int64 // ns; of the handshake or the last ping
	counters     counters
}

// routing is where what this end sends goes.
type routing struct {
	switchMu sync.Mutex // one change of the main path at a time
	main     atomic.Pointer[Path]
	live     atomic.Pointer[[]*Path]
	policy   atomic.Pointer[policy]
	offered  atomic.Uint64 // which paths, and of what weight, the scheduler saw last
	switched atomic.Int64  // lastReceived when the main path was last changed
	handing  handing
	dial     dialPath       // nil: a server, or the application brings connections
	server   netip.AddrPort // that dial leads to; invalid: not known
}

// incoming is what is known of the records that arrive, on whatever path.
type incoming struct {
	inMu         sync.Mutex
	keyed        bool          // the client's PARAMETERS have arrived
	controlNext  uint64        // number of the control context's next record
	controlEpoch uint64        // of that record
	fresh        atomic.Uint64 // records with stream bytes that hadn't arrived before
}

// A ConnectionState tells what was negotiated.
type ConnectionState struct {
	// TLS holds the facts of the handshake. Its ExportKeyingMaterial method
	// can't be used; Session has one.
	TLS tls.ConnectionState
	// TCPLS tells that the peer speaks it. If not, the session has one stream.
	TCPLS bool
	// Fallback tells why the session is plain TLS, for a person.
	Fallback string
}

// newSession starts the session that a handshake has opened. early holds the
// bytes that were read behind the handshake.
func newSession(cfg *Config, conn net.Conn, h *handshake, dial dialPath) *Session {
	s := &Session{
		cfg: cfg, began: now(), client: h.client, log: cfg.Logger, engine: h.engine, peer: h.peer.Parameters,
		state: ConnectionState{TLS: h.engine.ConnectionState(), TCPLS: true},
		win:   newWindow(cfg.SessionRecvWindow, cfg.SessionRecvMax),
	}
	s.dial, s.server = dial, h.server
	s.hosted.most = cfg.programSize()
	s.init()
	s.usePolicy(cfg.Mode, cfg.Scheduler)
	s.takeMode(h.peer.Mode)
	s.holding.Store(h.greeting != nil && h.client) // for newPath
	s.keys.init(h.send, h.receive, cfg.RekeyAfter)
	s.roundTrip.Store(int64(h.roundTrip))
	p := newPath(s, 0, conn, h.engine.SendLimit())
	p.firstPath()
	for _, o := range cfg.PeerTCPOptions {
		s.ask(o, true)
	}
	s.main.Store(p)
	s.setLive([]*Path{p})
	s.running = 1
	s.gate.path, s.gate.limit, s.gate.credit = p, cfg.SendBuffer, h.peer.SessionCredit
	s.control.ctx.Init(s.keys.send.Load(), wire.Control)
	s.table.allowed, s.table.limit = h.peer.StreamLimit, uint64(cfg.MaxStreams)
	s.words.start(s.kick)
	if s.client {
		s.control.params = cfg.parameters()
		s.control.params.SYNReports = false // a server's
		s.control.due.Store(true)
		s.keyed, s.offers.met = true, true
	}
	s.startTimer()
	s.holding.Store(false)
	if h.greeting != nil {
		s.greeted = &h.peer
		s.startGreeting(h.greeting, p)
	} else if !s.client {
		s.giveTickets(p)
	}
	if !s.client {
		s.invite(h)
	}
	switch {
	case s.client && s.greeting != nil:
		time.AfterFunc(earlyPatience, s.kick) // sooner with the first bytes of a stream
	case s.client:
		s.takeAnswer(&h.peer)
		p.kick() // before anything that was received is answered (protocol 2.4)
	}
	go p.readLoop(h.early)
	if s.client && dial != nil && cfg.PathManager != nil {
		go s.manage()
	}
	return s
}

func (s *Session) init() {
	s.cond.L = &s.mu
	s.table.streams = make(map[uint32]*Stream)
	s.life.done = make(chan struct{})
}

// parameters is what a session tells its peer (protocol 2.3).
func (c *Config) parameters() *wire.Parameters {
	options, _ := c.encodeOptions() // checked by withDefaults
	return &wire.Parameters{
		StreamCredit:  uint64(c.StreamRecvWindow),
		SessionCredit: uint64(c.SessionRecvWindow),
		StreamLimit:   uint64(c.MaxStreams),
		IdleTimeout:   c.IdleTimeout,
		Mode:          c.Mode.wish(),
		SYNReports:    c.reportsSYNs(),
		ProgramSize:   c.programSize(),
		TCPOptions:    options,
		TCPKinds:      optionKinds(),
	}
}

// setPeerParameters acts on the client's PARAMETERS.
func (s *Session) setPeerParameters(p *wire.Parameters) error {
	s.mu.Lock()
	s.peer = *p
	s.offers.met = true
	s.table.allowed = max(s.table.allowed, p.StreamLimit)
	s.cond.Broadcast()
	streams := s.streams() // which were faster, on another path
	err := s.takeOptions(p)
	s.mu.Unlock()
	for _, st := range streams {
		st.sendMu.Lock()
		st.allow(p.StreamCredit)
		st.sendMu.Unlock()
	}
	s.gate.allow(p.SessionCredit)
	s.takeMode(p.Mode)
	s.startTimer()
	return err
}

// arrived counts stream bytes against the session's credit and reports whether
// they were allowed.
func (s *Session) arrived(n int) bool {
	s.counters.bytesReceived.Add(uint64(n))
	s.winMu.Lock()
	defer s.winMu.Unlock()
	return s.win.receive(n)
}

// consumed counts stream bytes that were read or dropped, and reports whether
// the peer is to get new credit; telling says that it gets some of a stream.
func (s *Session) consumed(n int, telling bool) (due bool) {
	if n == 0 {
		return false
	}
	s.winMu.Lock()
	if due = s.win.consume(n, telling); due {
		s.win.raise(s.pathRTT(), now())
	}
	limit := s.win.limit
	s.winMu.Unlock()
	if due {
		s.words.giveSessionCredit(limit)
	}
	return due
}

func (s *Session) rtt() time.Duration { return time.Duration(s.roundTrip.Load()) }

// pathRTT is the longest of the paths' own round trips, as far as they are known:
// what is to be read in order may wait for any of them. Where several are in use,
// that is also for what waits on its way there.
func (s *Session) pathRTT() (rtt time.Duration) {
	spreads := s.spreads()
	for _, p := range s.livePaths() {
		own := time.Duration(p.shortest.Load())
		if spreads && own > 0 {
			own = time.Duration(p.roundTrip.Load())
		}
		rtt = max(rtt, own)
	}
	return cmp.Or(rtt, s.rtt())
}

func (s *Session) broadcast() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cond.Broadcast()
}

// ConnectionState returns what was negotiated.
// Before a handshake with early data is complete, it tells what is assumed.
func (s *Session) ConnectionState() ConnectionState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// ExportKeyingMaterial derives a secret that both ends share (RFC 8446, section
// 7.5), length bytes long. It fails for lengths that TLS can't express, and
// where TLS 1.2 was agreed without extended master secrets, and for a client
// whose handshake with early data isn't complete; see Session.Handshake.
func (s *Session) ExportKeyingMaterial(label string, context []byte, length int) ([]byte, error) {
	switch {
	case s.engine == nil:
		return s.state.TLS.ExportKeyingMaterial(label, context, length)
	case s.client && s.EarlyData() == EarlyDataPending: // the engine is the path's own until then
		return nil, errors.New("tcpls: exporting keying material before the handshake is complete")
	}
	s.inMu.Lock() // a server's engine may still be at work
	defer s.inMu.Unlock()
	return s.engine.ExportKeyingMaterial(label, context, length)
}

// recordsSent counts those of all paths.
func (s *Session) recordsSent() uint64 {
	n := s.counters.recordsSent.Load()
	for _, p := range s.livePaths() {
		n += p.sealed.Load()
	}
	return n
}

// LocalAddr returns the local address of the session's main path.
func (s *Session) LocalAddr() net.Addr {
	if s.plain != nil {
		return s.plain.plain.LocalAddr()
	}
	return s.path().conn.LocalAddr()
}

// RemoteAddr returns the remote address of the session's main path.
func (s *Session) RemoteAddr() net.Addr {
	if s.plain != nil {
		return s.plain.plain.RemoteAddr()
	}
	return s.path().conn.RemoteAddr()
}

// Context returns a context that ends with the session; context.Cause tells
// why it ended.
func (s *Session) Context() context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := &s.life
	if l.ctx == nil {
		l.ctx, l.cancel = context.WithCancelCause(context.Background())
		if s.ended() {
			l.cancel(s.cause())
		}
	}
	return l.ctx
}

// counters are the session's statistics.
type counters struct {
	bytesReceived   atomic.Uint64
	recordsReceived atomic.Uint64
	recordsSent     atomic.Uint64 // on paths that were closed
}

// SessionStats counts what a session has done so far.
type SessionStats struct {
	// BytesSent and BytesReceived are bytes of streams; those sent were sealed,
	// and may still wait for the socket.
	BytesSent, BytesReceived uint64
	// RecordsSent and RecordsReceived are TLS records of every sort.
	RecordsSent, RecordsReceived uint64
	// Unacknowledged is how many bytes of records are kept for the peer, which
	// hasn't acknowledged them, of Config.SendBuffer.
	Unacknowledged int
	// Streams is how many streams are open.
	Streams int
	// RoundTrip is the last measured time for a message there and back.
	RoundTrip time.Duration
}

// Stats returns the session's counters. They are zero for a peer that doesn't
// speak TCPLS.
func (s *Session) Stats() SessionStats {
	if s.plain != nil {
		return SessionStats{}
	}
	s.mu.Lock()
	streams := len(s.table.streams)
	s.mu.Unlock()
	return SessionStats{
		BytesSent:       s.gate.sent(),
		BytesReceived:   s.counters.bytesReceived.Load(),
		RecordsSent:     s.recordsSent(),
		RecordsReceived: s.counters.recordsReceived.Load(),
		Unacknowledged:  s.gate.unacknowledged(),
		Streams:         streams,
		RoundTrip:       s.rtt(),
	}
}

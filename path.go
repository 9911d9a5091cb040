package tcpls

import (
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/go-tcpls/tcpls/internal/osnet"
	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// A Path is one TCP connection of a session. Its methods may be called from
// many goroutines at once.
//
//	readLoop    one goroutine: reads large pieces, finds the context of each
//	            record, opens it into its stream's buffer (path_read.go); a
//	            Read that waits may do so in its place (path_pump.go)
//	flush       whoever has sealed records and finds nobody flushing; it never
//	            waits for the socket (path_write.go)
//	drain       a goroutine that lives only while the socket is full
//
// The sending side is guarded by outMu, which ranks below every stream's
// sendMu; the receiving side belongs to who holds the pump, and what concerns
// the session in it is guarded by the session's inMu.
type Path struct {
	sess *Session
	id   uint16
	conn net.Conn
	io   *osnet.IO       // nil: conn isn't a socket of the kernel
	raw  syscall.RawConn // nil likewise

	outMu    sync.Mutex
	sizing   sizing         // of its records; maxContent never changes
	out      record.Context // the path's own
	current  uint32         // context announced last
	queue    []*record.Chunk
	written  int           // bytes of queue[0] that the socket took
	flushing bool          // somebody writes to the socket
	held     bool          // nothing may be sealed
	endDue   bool          // send FIN once all is written
	ended    bool          // FIN was sent, or the connection is gone
	outDone  chan struct{} // closed when ended is set
	iov      [][]byte
	replays  []replay
	pongs    pongs

	unsent                   atomic.Int64  // bytes in queue that the socket didn't take
	sealed                   atomic.Uint64 // records of all contexts on this path
	resent                   atomic.Uint64 // of those, sent on another path before
	bytesSent, bytesReceived atomic.Uint64
	gone                     atomic.Bool // nothing more can be sent
	lost                     atomic.Bool // what was sent on it may not arrive
	leaving                  atomic.Bool // it is about to be closed
	pongDue                  atomic.Bool
	lazy                     atomic.Bool            // the watch has slowed down
	suspected                atomic.Bool            // state is PathSuspect
	ccBefore                 atomic.Pointer[string] // the congestion control that one of the peer's has replaced, and may still hold up

	load
	joining   atomic.Pointer[joining] // the handshake isn't complete
	state     PathState               // guarded by the session's mu
	confirmed bool                    // likewise: the peer has sent something on it
	watch     watch                   // likewise
	rank      rank
	hearing

	pump pump
	in   reading
}

// A load is what a path carries of what this end sends, and how fast.
type load struct {
	rate      atomic.Int64  // bytes per second, 0: not known
	roundTrip atomic.Int64  // ns
	shortest  atomic.Int64  // likewise: the shortest one, by the kernel; 0: not known
	window    atomic.Int64  // TCP's, in bytes; 0: not known
	queued    atomic.Int64  // bytes that the kernel hasn't sent
	onWay     atomic.Int64  // bytes that it has, and that aren't acknowledged
	delivered atomic.Int64  // bytes per second, of a path with enough to do; 0: not known
	handed    atomic.Uint64 // bytes that the kernel had when it was asked; 0: it wasn't
	growth    growth        // of window
	asked     atomic.Int64  // when the kernel was, since the session began
	brought   atomic.Int64  // likewise: stream bytes came on it last
	given     atomic.Uint64 // bytes of streams since the paths last changed
	allotted  atomic.Int32  // streams in ModePinned
	copied    copied
}

// A copied counts the bytes of copies that a path was given.
type copied struct {
	n     atomic.Uint64
	since atomic.Int64 // when n began, since the session did
}

// copiedFor is after how long copies count no more.
const copiedFor = 10 * time.Second

// of is what was given in the copiedFor until now, or a part of them.
func (c *copied) of(now time.Duration) uint64 {
	if since := c.since.Load(); now-time.Duration(since) >= copiedFor && c.since.CompareAndSwap(since, int64(now)) {
		c.n.Store(0)
	}
	return c.n.Load()
}

// A growth tells whether TCP's window grows fast, as in slow start, under whatever
// congestion control.
type growth struct {
	since  atomic.Int64 // when it was compared last, since the session began; 0: never
	before atomic.Int64 // the window then
	fast   atomic.Bool
}

// note takes in a window, and compares it with that of a round trip ago.
func (g *growth) note(window int64, now, rtt time.Duration) {
	since := g.since.Load()
	if now-time.Duration(since) < rtt || !g.since.CompareAndSwap(since, int64(now)) {
		return
	}
	g.fast.Store(2*window > 3*g.before.Swap(window)) // the first time, too
}

// A PathState says what a path is good for.
type PathState int

const (
	// PathActive: the path works as far as is known.
	PathActive PathState = iota
	// PathSuspect: the peer is silent on it though it should have answered.
	// It is used again when something arrives.
	PathSuspect
	// PathDraining: the path is about to be closed; what it carries is still
	// delivered.
	PathDraining
	// PathClosed: the path has failed or was closed.
	PathClosed
)

func (s PathState) String() string {
	switch s {
	case PathActive:
		return "active"
	case PathSuspect:
		return "suspect"
	case PathDraining:
		return "draining"
	}
	return "closed"
}

// A path takes more only while less than this waits for the socket.
const maxUnsent = 2 * record.BatchRecords * record.MaxPlaintext

// mostUnsent is how much of the streams may wait for the socket before writers
// do: what the path takes in 20 ms as far as that is known, so that what is
// urgent needn't queue for long behind what isn't.
func (p *Path) mostUnsent() int64 {
	rate := p.rate.Load()
	if rate == 0 {
		return maxUnsent
	}
	return min(max(rate/50, minUnsent), maxUnsent)
}

// admit is how many of n stream bytes a writer may add to what waits.
func (p *Path) admit(n int) int {
	most := p.mostUnsent()
	if p.unsent.Load() >= most {
		return 0
	}
	return int(min(int64(n), most))
}

// minUnsent is a few full records, for the slowest paths too.
const minUnsent = 4 * record.MaxPlaintext

// lowWater is how much that it hasn't sent the kernel may hold of a path
// (TCP_NOTSENT_LOWAT): on a slow link, acknowledgements, answers and the choice
// of another path would wait for seconds behind what fills its buffer.
const lowWater = 128 << 10

// newPath returns a path over conn, with the session's sending keys of the
// moment.
func newPath(s *Session, id uint16, conn net.Conn, sendLimit int) *Path {
	p := &Path{sess: s, id: id, conn: conn, sizing: sizing{maxContent: sendLimit}, outDone: make(chan struct{})}
	p.useIO()
	if sc, ok := conn.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			p.raw = raw
		}
	}
	if p.raw != nil {
		if n, err := osnet.NotSentLowWater(p.raw); err != nil || n <= 0 || n > lowWater { // or who opened it wants less
			_ = osnet.SetNotSentLowWater(p.raw, lowWater) // without it, what is urgent comes later
		}
	}
	p.out.Init(s.keys.send.Load(), wire.PathContext(id))
	p.current = wire.PathContext(id) // nothing is announced
	p.pump.init()
	p.in.init()
	p.in.fresh, p.in.copies = true, s.fresh.Load()
	p.watch.rtt = s.rtt() // until the path has its own
	p.roundTrip.Store(int64(s.rtt()))
	p.noteStart()
	return p
}

// useIO lets the path read and write its socket by system calls of its own,
// except during a greeting: what is written first may have to open the
// connection, which is the business of package net.
func (p *Path) useIO() {
	if io, ok := osnet.NewIO(p.conn); ok && !p.sess.holding.Load() {
		p.io = io
	}
}

// firstPath makes p the path of the session's handshake, on which the control
// context is attached from the beginning (protocol 2.4, 4.6).
func (p *Path) firstPath() {
	p.current = wire.Control
	p.in.own.Init(p.sess.keys.receive, wire.PathContext(p.id))
	p.in.fresh = false
	p.in.control.Init(p.sess.keys.receive, wire.Control)
	p.in.controlled, p.in.nextCtl = true, true
	p.sess.control.owner.Store(p)
	p.confirmed = true
}

// ID returns the path's number, unique in the session: 0 is the path of the
// session's handshake.
func (p *Path) ID() uint32 { return uint32(p.id) }

// LocalAddr returns the address of our end.
func (p *Path) LocalAddr() net.Addr { return p.conn.LocalAddr() }

// RemoteAddr returns the address of the peer's end.
func (p *Path) RemoteAddr() net.Addr { return p.conn.RemoteAddr() }

// confirm notes that the peer uses the path too.
func (p *Path) confirm() {
	s := p.sess
	s.mu.Lock()
	defer s.mu.Unlock()
	p.confirmed = true
	s.cond.Broadcast()
}

// State returns what the path is good for at the moment.
func (p *Path) State() PathState {
	p.sess.mu.Lock()
	defer p.sess.mu.Unlock()
	return p.state
}

// PathStats tells what a path has done, and what the kernel knows of it.
type PathStats struct {
	// BytesSent and BytesReceived are bytes of TLS records, headers included,
	// that the socket took or gave.
	BytesSent, BytesReceived uint64
	// RecordsSent counts the records sealed for this path or sent again on it,
	// RecordsResent only the latter.
	RecordsSent, RecordsResent uint64
	// Unsent is how many bytes wait for the socket.
	Unsent int
	// RTT is the smoothed round-trip time, MinRTT the shortest one; 0 where the
	// system doesn't tell (as all that follow).
	RTT, MinRTT time.Duration
	// CongestionWindow is in bytes, DeliveryRate in bytes per second.
	CongestionWindow, DeliveryRate int64
	// Retransmits is how many segments TCP has sent again.
	Retransmits int
	// Congestion names the congestion control.
	Congestion string
}

// Stats returns the path's counters.
func (p *Path) Stats() PathStats {
	st := PathStats{
		BytesSent: p.bytesSent.Load(), BytesReceived: p.bytesReceived.Load(),
		RecordsSent: p.sealed.Load(), RecordsResent: p.resent.Load(), Unsent: int(p.unsent.Load()),
	}
	if p.raw == nil {
		return st
	}
	if info, err := osnet.TCPInfo(p.raw); err == nil {
		st.RTT, st.MinRTT = info.RTT, info.MinRTT
		st.CongestionWindow, st.DeliveryRate = int64(info.CWnd)*int64(info.SendMSS), info.DeliveryRate
		st.Retransmits = info.Retrans
	}
	st.Congestion, _ = osnet.Congestion(p.raw) // "" where the system doesn't tell
	return st
}

package tcpls

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-tcpls/tcpls/internal/record"
)

// A Stream is an ordered, reliable, bidirectional byte stream of a session. It
// is a net.Conn: its methods may be called from many goroutines at once, and
// concurrent Writes don't mix their bytes. It is cheap; open one for each
// request or object.
//
// The end of one direction is always the peer's own word: io.EOF is returned
// only after its CloseWrite or Close, never because a connection broke.
type Stream struct {
	id   uint32
	sess *Session
	// plain carries the only stream of a session with a peer that doesn't
	// speak TCPLS; nothing below is then in use.
	plain plainConn

	streamSend
	streamRecv

	word    streamWord  // guarded by the session's words
	control controlWord // guarded by the session's control

	// Life, guarded by the session's mu.
	sendDone, recvDone bool
	handedOut          bool // the application has it
	ctx                context.Context
	cancel             context.CancelCauseFunc
}

// streamSend is the sending side (stream_send.go). sendMu guards it; whoever
// sets sealing owns the context until it clears it.
type streamSend struct {
	sendMu        sync.Mutex
	sendCond      sync.Cond
	writing       bool // a Write is under way
	sealing       bool
	introduced    atomic.Bool // a record was sealed; set by the sealer
	attached      *Path       // the last record's; the sealer's own
	replayOn      *Path       // sends records again: no new ones meanwhile
	introDue      bool
	pin           atomic.Pointer[Path] // the stream's own
	pinCounted    atomic.Bool          // by the gate
	allotted      atomic.Pointer[Path] // the same, if ModePinned chose it
	copied        []*Path              // that get copies of the last batch; the sealer's own
	placed        map[*Path]uint64     // the number behind the last record that a path has of it, where several have it; likewise
	moved         uint64               // records below it were sealed for an earlier path
	hastened      uint64               // records below it were sent again in haste, where they had to be
	finDue        bool
	finSent       bool
	reset         bool // by a RESET of ours
	epochDue      bool
	sendErr       error // why no more can be written
	sent          uint64
	credit        uint64
	flushing      int  // goroutines in Flush
	stuck         bool // a Write waits until blocked isn't true any more
	writeDeadline deadline
	sendCtx       record.Context
	epoch         uint64 // of sendCtx
	epochSeq      uint64 // first record of epoch
	kept          kept
	turn          turn // in the session's gate, guarded by it
}

// streamRecv is the receiving side (stream_recv.go). recvMu guards the buffer;
// the number of the next record, and the counts of what is to be acknowledged,
// are guarded by the session's inMu.
type streamRecv struct {
	recvMu       sync.Mutex
	recvCond     sync.Cond
	head, tail   *block
	opening      bool  // the path's reader writes into tail
	reading      bool  // a Read is copying out of head, or pumps
	pumping      *Path // it pumps this one
	waiting      int   // goroutines that wait to read
	fin          bool  // the peer's end has arrived
	recvErr      error
	readClosed   bool // nobody here will read more
	cameEarly    bool // some of it as early data
	recvEnded    bool // nothing more can arrive; set under inMu too
	win          window
	readDeadline deadline
	recvNext     uint64                // number of the next record
	held         map[uint64]heldRecord // records behind it, which came on another path
	openEpoch    uint64                // of the next record
	keyed        bool                  // openEpoch is known
	past         bool                  // stands for a stream that has ended, while its records come again
	again        uint64                // the number behind those, of a past stream
	newBytes     int
	newRecords   int
	ackSoon      bool
}

var (
	_ net.Conn      = (*Stream)(nil)
	_ io.ReaderFrom = (*Stream)(nil)
	_ io.WriterTo   = (*Stream)(nil)
)

func newStream(s *Session, id uint32, credit uint64) *Stream {
	st := &Stream{id: id, sess: s}
	st.credit = credit
	st.sendCond.L = &st.sendMu
	st.recvCond.L = &st.recvMu
	st.win = newWindow(s.cfg.StreamRecvWindow, s.cfg.StreamRecvMax)
	st.word.credit = st.win.limit
	st.turn.stream, st.turn.index, st.turn.urgency = st, -1, defaultUrgency
	return st
}

// ID returns the stream's number, unique in the session (docs/protocol.md,
// 3.4): odd if the client opened it, even if the server did, and 0 for the
// stream of a peer that doesn't speak TCPLS.
func (s *Stream) ID() uint32 { return s.id }

// Session returns the session that the stream belongs to.
func (s *Stream) Session() *Session { return s.sess }

// ConnectionState returns the TLS facts of the session. It lets net/http fill
// in Request.TLS.
func (s *Stream) ConnectionState() tls.ConnectionState { return s.sess.ConnectionState().TLS }

// LocalAddr returns the local address of the session's path.
func (s *Stream) LocalAddr() net.Addr { return s.sess.LocalAddr() }

// RemoteAddr returns the remote address of the session's path.
func (s *Stream) RemoteAddr() net.Addr { return s.sess.RemoteAddr() }

// Context returns a context that ends when both directions of the stream have
// ended, or the session has; context.Cause tells why.
func (s *Stream) Context() context.Context { return s.sess.streamContext(s) }

// SetDeadline sets both deadlines. A deadline that has passed makes waiting
// and later calls fail with os.ErrDeadlineExceeded until it is moved; the
// stream stays whole and can go on. The zero time means none.
func (s *Stream) SetDeadline(t time.Time) error {
	if err := s.SetReadDeadline(t); err != nil {
		return err
	}
	return s.SetWriteDeadline(t)
}

// SetReadDeadline sets the deadline of Read and WriteTo. It fails with
// ErrStreamClosed after CloseRead.
func (s *Stream) SetReadDeadline(t time.Time) error {
	if s.plain != nil {
		return s.plain.SetReadDeadline(t)
	}
	s.recvMu.Lock()
	defer s.recvMu.Unlock()
	if s.readClosed {
		return ErrStreamClosed
	}
	s.readDeadline.set(&s.recvMu, t, s.wakeReaders)
	return nil
}

// SetWriteDeadline sets the deadline of Write and ReadFrom. A Write that it
// interrupts returns how many bytes were taken; those will be delivered. Once
// writing has ended it fails as Write does.
func (s *Stream) SetWriteDeadline(t time.Time) error {
	if s.plain != nil {
		return s.plain.SetWriteDeadline(t)
	}
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	if s.sendErr != nil {
		return s.sendErr
	}
	s.writeDeadline.set(&s.sendMu, t, s.sendCond.Broadcast)
	return nil
}

// Close ends both directions. What was written is still delivered, as with
// TCP; Flush before Close waits for that. If the peer hasn't ended its
// direction, it is told to stop with StreamCodeClosed. Close doesn't wait.
func (s *Stream) Close() error {
	if s.plain != nil {
		return s.sess.Close()
	}
	werr := s.CloseWrite()
	rerr := s.CloseRead()
	if werr != nil && rerr != nil {
		return ErrStreamClosed
	}
	return nil
}

// SetPriority says which stream goes first when several want to send: lower
// urgencies first, from 0 to 7, 3 being the default (RFC 9218); of the same
// urgency, incremental streams take turns, the others go one after another in
// the order of their ids.
func (s *Stream) SetPriority(urgency int8, incremental bool) {
	if s.plain == nil {
		s.sess.gate.setPriority(&s.turn, max(0, min(urgency, 7)), incremental)
	}
}

const defaultUrgency = 3

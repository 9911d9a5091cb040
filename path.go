package tcpls

import (
	"net"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/go-tcpls/tcpls/internal/osnet"
	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// A path is one TCP connection of a session.
//
//	readLoop    one goroutine: reads large pieces, finds the context of each
//	            record, opens it into its stream's buffer (path_read.go); a
//	            Read that waits may do so in its place (path_pump.go)
//	flush       whoever has sealed records and finds nobody flushing; it never
//	            waits for the socket (path_write.go)
//	drain       a goroutine that lives only while the socket is full
//
// The sending side is guarded by outMu, which ranks below every stream's
// sendMu; the receiving side belongs to who
// holds the pump.
type path struct {
	sess *Session
	id   uint16
	conn net.Conn
	io   *osnet.IO       // nil: conn isn't a socket of the kernel
	raw  syscall.RawConn // nil likewise
	// maxContent is how many stream bytes a record takes, less than TLS
	// allows only if the peer asked for it (RFC 8449).
	maxContent int

	outMu    sync.Mutex
	out      record.Context // the path's own
	current  uint32         // context announced last
	queue    []*record.Chunk
	written  int           // bytes of queue[0] that the socket took
	flushing bool          // somebody writes to the socket
	endDue   bool          // send FIN once all is written
	ended    bool          // FIN was sent, or the connection is gone
	failure  error         // of a write
	outDone  chan struct{} // closed when ended is set
	iov      [][]byte

	unsent atomic.Int64  // bytes in queue that the socket didn't take
	sealed atomic.Uint64 // records of all contexts on this path

	pump pump
	in   reading
}

// A path takes more from writers only while less than this waits for the
// socket, so that what is urgent needn't queue behind what isn't.
const maxUnsent = 2 * record.BatchRecords * record.MaxPlaintext

func newPath(s *Session, conn net.Conn) *path {
	p := &path{sess: s, conn: conn, maxContent: s.engine.SendLimit(), outDone: make(chan struct{})}
	if io, ok := osnet.NewIO(conn); ok {
		p.io = io
	}
	if sc, ok := conn.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			p.raw = raw
		}
	}
	p.out.Init(s.keys.send, wire.PathContext(p.id))
	p.current = wire.Control // attached from the beginning (protocol 2.4, 4.6)
	p.pump.init()
	p.in.init(s.keys.receive, wire.PathContext(p.id))
	return p
}

// fail ends the path, and with it the session, for which it is the only one.
func (p *path) fail(op string, err error) {
	p.sess.end(&PathError{Path: uint32(p.id), Op: op, Err: err})
}

package tcpls

import (
	"context"
	"io"
	"os"
	"sync"

	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// Sending. A Write takes what credit allows, waits for its turn at the
// session's gate, and seals straight into the path's output (path_write.go).
// What it sealed stays on the kept list until the peer acknowledges it.

// A sentRecord is a sealed record where it lies, in the memory that was
// written to the socket.
type sentRecord struct {
	chunk          *record.Chunk
	path           *Path // which has it; nil: perhaps none
	offset, length int32
}

// kept lists the sealed records of one context that the peer hasn't
// acknowledged. Its lock ranks below the path's outMu and is never held with
// another one behind it.
type kept struct {
	mu    sync.Mutex
	acked uint64 // records below it are acknowledged
	ring  []sentRecord
	head  int
	n     int
	bytes int
}

// push adds the context's next record.
func (k *kept) push(r sentRecord) {
	r.chunk.Retain()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.n == len(k.ring) {
		ring := make([]sentRecord, max(8, 2*k.n))
		for i := range k.n {
			ring[i] = k.ring[(k.head+i)%len(k.ring)]
		}
		k.ring, k.head = ring, 0
	}
	k.ring[(k.head+k.n)%len(k.ring)] = r
	k.n++
	k.bytes += int(r.length)
}

// ack drops the records below seq and returns how many bytes that frees and
// whether none are left; ok is false if seq was never sent.
func (k *kept) ack(seq uint64) (freed int, empty, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if seq > k.acked+uint64(k.n) {
		return 0, false, false
	}
	for k.acked < seq {
		r := &k.ring[k.head]
		freed += int(r.length)
		r.chunk.Release()
		*r = sentRecord{}
		k.head = (k.head + 1) % len(k.ring)
		k.n--
		k.acked++
	}
	k.bytes -= freed
	if k.n == 0 && len(k.ring) > 32 {
		k.ring, k.head = nil, 0
	}
	return freed, k.n == 0, true
}

// drop forgets all records, which won't be sent again. Later ones count as
// acknowledged up to seq.
func (k *kept) drop() (freed int) {
	k.mu.Lock()
	seq := k.acked + uint64(k.n)
	k.mu.Unlock()
	freed, _, _ = k.ack(seq)
	return freed
}

func (k *kept) empty() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.n == 0
}

// maxBatch is how much one turn at the gate takes: a chunk of full records.
const maxBatch = record.BatchRecords * record.MaxPlaintext

// Write writes p. It returns once all of p is taken: sealed, and on its way or
// waiting for the socket; Flush waits for the peer. It blocks while the peer's
// credit or the session's send buffer is used up. The error is *StreamError
// after the peer's StopSending or an own Reset, ErrStreamClosed after
// CloseWrite or Close, os.ErrDeadlineExceeded, or the reason why the session
// ended; n bytes were taken all the same.
func (s *Stream) Write(p []byte) (n int, err error) {
	if s.plain != nil {
		return s.plain.Write(p)
	}
	s.sendMu.Lock()
	for s.writing {
		if err := s.writeError(); err != nil {
			s.sendMu.Unlock()
			return 0, err
		}
		s.sendCond.Wait()
	}
	s.writing = true
	defer s.written() // even if a scheduler of the application panics
	return s.write(p)
}

// written ends the turn of a Write.
func (s *Stream) written() {
	s.writing = false
	s.sendCond.Broadcast()
	next := s.sess.gate.leave(&s.turn)
	s.sendMu.Unlock()
	next.wake()
}

// writeError tells why nothing can be written. The caller holds sendMu.
func (s *Stream) writeError() error {
	switch {
	case s.sendErr != nil:
		return s.sendErr
	case s.writeDeadline.expired():
		return os.ErrDeadlineExceeded
	case s.sess.over():
		return s.sess.cause()
	}
	return nil
}

// write is Write for the one goroutine whose turn it is. It holds sendMu but
// for the sealing.
func (s *Stream) write(p []byte) (n int, err error) {
	for {
		if err := s.writeError(); err != nil || len(p) == 0 {
			return n, err
		}
		got, via, next := s.admit(len(p))
		if got == 0 {
			continue
		}
		s.sent += uint64(got)
		data := p[:got]
		err := s.sealed(via, func(path *Path) error {
			next.wake()
			return path.sealStream(s, data)
		})
		if err == errPathGone { // another path, once there is one, takes it
			s.sent -= uint64(got)
			s.sess.gate.refund(got)
			continue
		}
		if err != nil {
			return n, err
		}
		n += got
		if p = p[got:]; len(p) == 0 {
			return n, nil // whatever has ended the stream since
		}
	}
}

// admit passes the gate with up to n bytes for the path via, or for the
// stream's usual one if that is nil. It waits if it has to, and returns 0 when
// it is time to try again. The caller holds sendMu, which is free meanwhile.
func (s *Stream) admit(n int) (got int, via *Path, next *turn) {
	if !s.sealing {
		s.allot()
	}
	room := s.credit - s.sent
	if room == 0 || s.sealing || s.blocked() {
		if next := s.sess.gate.leave(&s.turn); next != nil { // who can't go holds up nobody
			s.sendMu.Unlock()
			next.wake()
			s.sendMu.Lock()
			return 0, nil, nil
		}
		if !s.sealing {
			s.relieve()
		}
		s.stuck = room > 0 || s.sess.shares() // acknowledgements show what relieves
		s.sess.wait(&s.sendCond)
		s.stuck = false
		return 0, nil, nil
	}
	g := &s.sess.gate
	n = int(min(uint64(n), room, maxBatch))
	if s.pinned() == nil && s.sess.shares() {
		n = min(n, spreadBatch)
		changes := g.changes.Load()
		var ok bool
		if via, n, ok = s.choose(n, max(uint64(n), min(room, g.memory()))); !ok {
			return 0, nil, nil
		}
		if via == nil {
			if g.queue(&s.turn); g.changes.Load() == changes {
				s.sess.wait(&s.sendCond)
			}
			return 0, nil, nil
		}
	}
	if got, next = g.enter(&s.turn, n); got == 0 {
		if g.memory() < record.MaxPlaintext+record.Overhead {
			s.relieve()
		}
		s.sess.wait(&s.sendCond)
		return 0, nil, nil
	}
	if via != nil {
		via.given.Add(uint64(got))
	}
	return got, via, next
}

// sealed runs seal with the right to use the send context, on the path via, or
// on the stream's usual one if that is nil, and without sendMu, which the caller
// holds before and after.
func (s *Stream) sealed(via *Path, seal func(*Path) error) error {
	s.sealing = true
	path := via
	if path == nil {
		path = s.usual()
	}
	first := s.sendCtx.Seq()
	s.sendMu.Unlock()
	err := seal(path)
	if err == nil && s.sendCtx.Seq() > first {
		err = s.copyFrom(path, first, via != nil)
	}
	if err != nil && err != errPathGone {
		s.sess.end(err)
		err = s.sess.cause()
	}
	s.sendMu.Lock()
	s.sealing = false
	s.sendCond.Broadcast()
	if err == nil {
		if via != nil && s.sess.scheduler() == nil { // behind the handover, too, none is to overtake many of these
			s.moved = s.sendCtx.Seq()
		}
		s.check(path)
		s.settleSending()
	}
	return err
}

// introduce tells the peer of a stream of ours on which nothing was sent yet, by
// an empty record. The caller holds sendMu.
func (s *Stream) introduce() {
	if wire.ClientOpened(s.id) != s.sess.client || s.introduced.Load() {
		return
	}
	for s.sealing {
		s.sendCond.Wait()
	}
	if s.sess.holding.Load() {
		s.introDue = true
		return
	}
	if !s.introduced.Load() && s.sendErr == nil && !s.sess.ended() {
		err := s.sealed(nil, func(p *Path) error {
			return p.sealTail(s, func(b []byte) []byte { return b })
		})
		s.introDue = err == errPathGone
	}
}

// settleSending seals what had to wait for the context: the end of the stream,
// or the move to the next key epoch. The caller holds sendMu.
func (s *Stream) settleSending() {
	if s.finSent || s.reset {
		s.epochDue = false // no record will follow
	}
	for !s.sealing && s.replayOn == nil && !s.reset && !s.sess.holding.Load() && !s.sess.ended() {
		switch {
		case s.introDue:
			s.introDue = false
			if s.introduce(); s.introDue {
				return
			}
		case s.epochDue && !s.finSent:
			s.epochDue = false
			if s.sealed(nil, func(p *Path) error { return p.sealEpoch(s) }) == errPathGone {
				s.epochDue = true
				return
			}
		case s.finDue:
			s.finDue, s.finSent = false, true // nothing comes behind it
			if s.sealed(nil, func(p *Path) error { return p.sealTail(s, wire.AppendFin) }) == errPathGone {
				s.finDue, s.finSent = true, false
				return
			}
			s.hasten()
			if s.kept.empty() { // acknowledged already
				s.sendMu.Unlock()
				s.sess.finished(s, true, false)
				s.sendMu.Lock()
			}
		default:
			return
		}
	}
}

// ReadFrom writes everything that r has until io.EOF, and allocates nothing
// but a pooled buffer. The error is r's, or one of Write's.
func (s *Stream) ReadFrom(r io.Reader) (total int64, err error) {
	if s.plain != nil {
		return io.Copy(struct{ io.Writer }{s.plain}, r)
	}
	buf := batches.get()
	defer batches.put(buf)
	for {
		n, rerr := r.Read(*buf)
		if n > 0 {
			w, werr := s.Write((*buf)[:n])
			total += int64(w)
			if werr != nil {
				return total, werr
			}
		}
		if rerr == io.EOF {
			return total, nil
		}
		if rerr != nil {
			return total, rerr
		}
	}
}

// CloseWrite ends our direction of the stream: the peer reads io.EOF after
// everything that was written (docs/protocol.md, 5.8). A Write that still waits
// fails. The error is ErrStreamClosed if the direction had ended, *StreamError
// if by Reset or the peer's StopSending, or the reason why the session ended.
func (s *Stream) CloseWrite() error {
	if s.plain != nil {
		return s.plain.CloseWrite()
	}
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	if s.sendErr != nil {
		return s.sendErr
	}
	if s.sess.ended() {
		return s.sess.cause()
	}
	s.sendErr, s.finDue = ErrStreamClosed, true
	s.writeDeadline.stop()
	s.settleSending()
	s.sendCond.Broadcast()
	return nil
}

// Reset ends our direction at once: what the peer hasn't read may be lost, and
// its Reads return *StreamError with the code, which is the application's and
// at most 2^62-1 (docs/protocol.md, 5.11). The error is ErrStreamClosed if the
// peer has everything, end included, or the direction was reset before. The
// stream of a peer that doesn't speak TCPLS ends as by CloseWithError.
func (s *Stream) Reset(code uint64) error {
	if code > wire.MaxVarint {
		return errCode
	}
	if s.plain != nil {
		return s.sess.CloseWithError(code, "")
	}
	if !s.abort(&StreamError{StreamID: s.id, Code: code}, code) {
		return ErrStreamClosed
	}
	s.sess.kick()
	return nil
}

// abort makes err what Writes return and a RESET with code due. It does
// nothing if the stream is already reset or everything is acknowledged.
func (s *Stream) abort(err *StreamError, code uint64) bool {
	s.sendMu.Lock()
	if s.reset || s.finSent && !s.sealing && s.kept.empty() {
		s.sendMu.Unlock()
		return false
	}
	s.introduce() // before reset is set, since it seals
	if s.reset {
		s.sendMu.Unlock()
		return false
	}
	s.reset, s.sendErr, s.epochDue, s.introDue, s.replayOn = true, err, false, false, nil
	s.writeDeadline.stop()
	for s.sealing { // the size is known once the records under way are sealed
		s.sendCond.Wait()
	}
	freed := s.kept.drop()
	s.sess.control.reset(s, code, s.sent)
	s.sendCond.Broadcast()
	s.sendMu.Unlock()
	s.sess.gate.release(freed)
	s.sess.finished(s, true, false)
	return true
}

// acknowledged acts on an ACK of this stream (protocol 5.3).
func (s *Stream) acknowledged(seq, credit uint64) error {
	freed, empty, ok := s.kept.ack(seq)
	if !ok {
		return violation(wire.CodeAck, "ACK of record %d of stream %d, which wasn't sent", seq, s.id)
	}
	s.sess.gate.release(freed)
	s.sendMu.Lock()
	s.allow(credit)
	if s.flushing > 0 || s.stuck {
		s.sendCond.Broadcast()
	}
	// What was sealed since the ACK was taken in isn't acknowledged by it.
	done := empty && s.finSent && !s.sealing && s.kept.empty()
	s.sendMu.Unlock()
	if done {
		s.sess.finished(s, true, false)
	}
	return nil
}

// allow raises how many bytes may be sent. The caller holds sendMu.
func (s *Stream) allow(credit uint64) {
	if credit > s.credit {
		s.credit = credit
		s.sendCond.Broadcast()
	}
}

// Flush waits until the peer has acknowledged everything written so far, the
// end of the stream included if CloseWrite came before (docs/protocol.md, 6.2).
// The error is *StreamError after a reset, the context's, or the reason why the
// session ended. A peer that doesn't speak TCPLS acknowledges nothing: then
// Flush returns nil at once, and proves nothing.
func (s *Stream) Flush(ctx context.Context) error {
	if s.plain != nil {
		return nil
	}
	stop := context.AfterFunc(ctx, func() {
		s.sendMu.Lock()
		defer s.sendMu.Unlock()
		s.sendCond.Broadcast()
	})
	defer stop()
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	s.flushing++
	defer func() { s.flushing-- }()
	target, known := uint64(0), false // records to be acknowledged
	for {
		if !known && !s.sealing {
			target, known = s.sendCtx.Seq(), true
		}
		switch {
		case s.reset:
			return s.sendErr
		case known && s.kept.ackedFrom(target):
			return nil
		case s.sess.ended():
			return s.sess.cause()
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		s.sess.wait(&s.sendCond)
	}
}

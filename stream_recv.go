package tcpls

import (
	"errors"
	"io"
	"os"
	"time"

	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// Receiving. The path's reader opens records into the tail block; Read copies
// out of the head block, without the lock, since the two never touch the same
// bytes.

// When an acknowledgement is due (protocol 6.2).
const (
	ackBytes   = 256 << 10
	ackRecords = 64
	ackDelay   = 10 * time.Millisecond
)

// open opens rec into the stream's buffer, or into scratch if nobody will read
// it. The content counts only once arrived is called.
func (s *Stream) open(rec, scratch []byte) (content []byte, t record.Type, err error) {
	dst := s.reserve(len(rec)-record.HeaderLen-record.TagLen, scratch)
	content, t, err = s.openCtx.Open(dst, rec)
	if err != nil {
		s.unreserve()
	}
	return content, t, err
}

func (s *Stream) reserve(n int, scratch []byte) []byte {
	s.recvMu.Lock()
	defer s.recvMu.Unlock()
	if s.readClosed {
		return scratch
	}
	if s.tail == nil || len(s.tail.free()) < n {
		b := newBlock(n, s.tail != nil)
		if s.tail == nil {
			s.head = b
		} else {
			s.tail.next = b
		}
		s.tail = b
	}
	s.opening = true
	return s.tail.free()
}

// unreserve ends what reserve began. The caller doesn't hold recvMu.
func (s *Stream) unreserve() {
	s.recvMu.Lock()
	defer s.recvMu.Unlock()
	s.opening = false
	if !s.reading {
		s.dropRead()
	}
}

// dropRead releases the blocks at the head that are read to their end.
func (s *Stream) dropRead() {
	for s.head != nil && s.head.r == s.head.w && !(s.head == s.tail && s.opening) {
		b := s.head
		if s.head = b.next; s.head == nil {
			s.tail = nil
		}
		b.release()
	}
}

// arrived counts n bytes that open has brought.
func (s *Stream) arrived(n int) error {
	s.newBytes += n
	s.newRecords++
	if n > 0 && !s.sess.arrived(n) {
		return violation(wire.CodeFlowControl, "more bytes than the session's credit")
	}
	s.recvMu.Lock()
	defer s.recvMu.Unlock()
	if !s.win.receive(n) {
		return violation(wire.CodeFlowControl, "more bytes than the credit of stream %d", s.id)
	}
	if !s.opening || s.readClosed { // into scratch, or nobody reads it any more
		s.opening = false
		if !s.reading {
			s.dropRead()
		}
		s.sess.consumed(n)
		return nil
	}
	s.opening = false
	s.tail.w += n
	if n == 0 && !s.reading {
		s.dropRead()
	}
	return nil
}

// arrivedFin notes the peer's end of the stream.
func (s *Stream) arrivedFin() {
	s.recvMu.Lock()
	s.fin, s.recvEnded = true, true
	s.recvMu.Unlock()
	s.ackSoon = true
}

// recvOpen reports whether more may arrive.
func (s *Stream) recvOpen() bool {
	s.recvMu.Lock()
	defer s.recvMu.Unlock()
	return !s.recvEnded
}

// settleReceived wakes the reader and notes what is to be acknowledged, once
// for all records that came together.
func (s *Stream) settleReceived() {
	s.recvMu.Lock()
	if s.waiting > 0 {
		s.recvCond.Broadcast()
	}
	ended := s.fin
	done := s.fin && s.head == nil || s.readClosed && s.recvEnded
	s.recvMu.Unlock()

	now := ended || s.ackSoon || s.newBytes >= ackBytes || s.newRecords >= ackRecords
	s.sess.words.acknowledge(s, s.openCtx.Seq(), now)
	if now {
		s.newBytes, s.newRecords, s.ackSoon = 0, 0, false
	}
	if done {
		s.sess.finished(s, false, true)
	}
}

// arrivedReset ends the stream by the peer's RESET (protocol 5.11).
func (s *Stream) arrivedReset(code, size uint64) error {
	s.recvMu.Lock()
	received, limit := s.win.received, s.win.limit
	if size < received || s.recvEnded && size != received {
		s.recvMu.Unlock()
		return violation(wire.CodeStreamState, "RESET of stream %d at %d bytes of %d received", s.id, size, received)
	}
	if size > limit {
		s.recvMu.Unlock()
		return violation(wire.CodeFlowControl, "RESET of stream %d at %d bytes with credit for %d", s.id, size, limit)
	}
	if s.recvEnded {
		s.recvMu.Unlock()
		return nil
	}
	missing := int(size - s.win.received)
	s.win.received = size
	s.recvEnded = true
	s.recvErr = &StreamError{StreamID: s.id, Code: code, Remote: true}
	unread := s.discard()
	s.recvCond.Broadcast()
	s.recvMu.Unlock()
	if !s.sess.arrived(missing) {
		return violation(wire.CodeFlowControl, "RESET beyond the session's credit")
	}
	s.sess.consumed(missing + unread)
	s.sess.finished(s, false, true)
	return nil
}

// discard drops what is unread and returns how much it was. The caller holds
// recvMu. Blocks in use by a Read or by the path's reader are left to them.
func (s *Stream) discard() (unread int) {
	for b := s.head; b != nil; b = b.next {
		unread += b.w - b.r
		if !(b == s.head && s.reading) {
			b.r = b.w
		}
	}
	if !s.reading {
		s.dropRead()
	}
	return unread
}

// awaitBytes waits until there are bytes and takes the right to read them, or
// returns why there are none. The caller holds recvMu.
func (s *Stream) awaitBytes() error {
	for {
		switch {
		case s.readDeadline.expired:
			return os.ErrDeadlineExceeded
		case s.readClosed:
			return ErrStreamClosed
		case s.reading:
		case s.head != nil && s.head.r < s.head.w:
			s.reading = true
			return nil
		case s.recvErr != nil:
			return s.recvErr
		case s.fin:
			return io.EOF
		case s.sess.ended():
			return s.sess.cause()
		}
		s.waiting++
		s.recvCond.Wait()
		s.waiting--
	}
}

// take calls use with unread bytes, piece by piece, until it wants no more or
// there are no more. It waits for the first piece only.
func (s *Stream) take(use func(p []byte) (n int, more bool)) error {
	s.recvMu.Lock()
	if err := s.awaitBytes(); err != nil {
		s.recvMu.Unlock()
		return err
	}
	total := 0
	for more := true; more && s.head != nil && s.head.r < s.head.w && !s.readClosed; {
		b := s.head
		p := b.unread()
		s.recvMu.Unlock()
		var n int
		n, more = use(p)
		s.recvMu.Lock()
		if s.recvErr != nil || s.readClosed { // discard has counted these
			break
		}
		b.r += n
		total += n
		s.dropRead()
	}
	s.reading = false
	if s.recvErr != nil || s.readClosed {
		s.discardHead()
	}
	s.recvCond.Broadcast()
	credit := s.consume(total)
	done := s.fin && s.head == nil
	s.recvMu.Unlock()

	if s.sess.consumed(total) || credit {
		s.sess.path.kick()
	}
	if done {
		s.sess.finished(s, false, true)
	}
	return nil
}

// discardHead releases what discard had to leave to a Read.
func (s *Stream) discardHead() {
	for b := s.head; b != nil; b = b.next {
		b.r = b.w
	}
	s.dropRead()
}

// consume gives the sender new credit if it is due. The caller holds recvMu.
func (s *Stream) consume(n int) (due bool) {
	if n == 0 || s.fin || s.recvErr != nil {
		return false
	}
	if due = s.win.consume(n, s.sess.rtt()); due {
		s.sess.words.giveCredit(s, s.win.limit)
	}
	return due
}

// announceReading lets the peer know of a stream that is only read.
func (s *Stream) announceReading() {
	if !s.attached.Load() {
		s.sendMu.Lock()
		s.introduce()
		s.sendMu.Unlock()
	}
}

// Read reads up to len(p) bytes; it waits for the first. The error is io.EOF
// after the peer's end of the stream, *StreamError after its Reset,
// ErrStreamClosed after CloseRead or Close, os.ErrDeadlineExceeded, or the
// reason why the session ended, as *SessionError or *PathError.
func (s *Stream) Read(p []byte) (n int, err error) {
	if s.plain != nil {
		return s.plain.Read(p)
	}
	if len(p) == 0 {
		return 0, nil
	}
	s.announceReading()
	err = s.take(func(b []byte) (int, bool) {
		c := copy(p[n:], b)
		n += c
		return c, n < len(p)
	})
	return n, err
}

// WriteTo writes everything up to the peer's end of the stream to w, straight
// out of the receive buffer.
func (s *Stream) WriteTo(w io.Writer) (total int64, err error) {
	if s.plain != nil {
		return io.Copy(w, struct{ io.Reader }{s.plain})
	}
	s.announceReading()
	for {
		var werr error
		err = s.take(func(b []byte) (int, bool) {
			n, e := w.Write(b)
			if e == nil && n < len(b) {
				e = io.ErrShortWrite
			}
			total += int64(n)
			werr = e
			return n, e == nil
		})
		switch {
		case err == io.EOF:
			return total, nil
		case err != nil:
			return total, err
		case werr != nil:
			return total, werr
		}
	}
}

// CloseRead ends reading: unread and later bytes are dropped, and the peer, if
// it hasn't ended its direction, is told to stop, with StreamCodeClosed.
func (s *Stream) CloseRead() error { return s.closeRead(StreamCodeClosed) }

// StopSending is CloseRead with a code of the application's, at most 2^62-1,
// which the peer's Writes then return as *StreamError.
func (s *Stream) StopSending(code uint64) error {
	if code > wire.MaxVarint {
		return errCode
	}
	return s.closeRead(code)
}

var errCode = errors.New("tcpls: codes have at most 62 bits")

func (s *Stream) closeRead(code uint64) error {
	if s.plain != nil {
		return ErrNotTCPLS
	}
	s.recvMu.Lock()
	if s.readClosed {
		s.recvMu.Unlock()
		return ErrStreamClosed
	}
	s.readClosed = true
	s.readDeadline.stop()
	var unread int
	if s.recvErr == nil {
		unread = s.discard()
	}
	ended := s.recvEnded
	s.recvCond.Broadcast()
	s.recvMu.Unlock()

	kick := s.sess.consumed(unread)
	if ended {
		s.sess.finished(s, false, true)
	} else {
		s.sendMu.Lock()
		s.introduce()
		s.sendMu.Unlock()
		s.sess.control.stop(s, code)
		kick = true
	}
	if kick {
		s.sess.path.kick()
	}
	return nil
}

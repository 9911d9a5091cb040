package tcpls

import (
	"errors"
	"io"
	"os"

	"github.com/go-tcpls/tcpls/internal/wire"
)

// Receiving. The path's reader opens records into the tail block; Read copies
// out of the head block, without the lock, since the two never touch the same
// bytes.

// A destination says where a record was opened to.
type destination uint8

const (
	intoScratch destination = iota
	intoBlock
	intoRead // the buffer of the Read that pumps
)

// reserve returns room for n bytes that path p brings: the stream's next ones.
// They count only once arrived is called.
func (s *Stream) reserve(p *Path, n int) ([]byte, destination) {
	s.recvMu.Lock()
	defer s.recvMu.Unlock()
	if s.readClosed {
		return p.in.scratch(), intoScratch
	}
	if d := &p.in.direct; d.stream == s && s.head == nil && len(d.buf)-d.n >= n {
		return d.buf[d.n : d.n+n : d.n+n], intoRead
	}
	if s.tail == nil || len(s.tail.free()) < n {
		// Large blocks are for streams that fill theirs, not for padding.
		b := newBlock(n, s.tail != nil && 2*s.tail.w >= len(*s.tail.buf))
		if s.tail == nil {
			s.head = b
		} else {
			s.tail.next = b
		}
		s.tail = b
	}
	s.opening = true
	return s.tail.free(), intoBlock
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

// count holds n bytes of a record that is new against the peer's credit.
func (s *Stream) count(n int) error {
	s.newBytes += n
	s.newRecords++
	if g := s.sess.greeting; g != nil {
		if err := g.arrivedEarly(n); err != nil {
			return err
		}
	}
	if n > 0 && !s.sess.arrived(n) {
		return violation(wire.CodeFlowControl, "more bytes than the session's credit")
	}
	s.recvMu.Lock()
	defer s.recvMu.Unlock()
	if !s.win.receive(n) {
		return violation(wire.CodeFlowControl, "more bytes than the credit of stream %d", s.id)
	}
	return nil
}

// arrived makes the n bytes of the stream's next record, which path p has
// brought to where reserve said, readable.
func (s *Stream) arrived(p *Path, into destination, n int) {
	s.recvNext++
	s.recvMu.Lock()
	defer s.recvMu.Unlock()
	s.opening = false
	s.cameEarly = s.cameEarly || s.sess.greeting != nil
	switch {
	case into == intoRead:
		p.in.direct.n += n
	case into == intoScratch || s.readClosed: // nobody reads it any more
		s.sess.consumed(n, false)
	default:
		s.tail.w += n
	}
	if !s.reading && s.head != nil && s.head.r == s.head.w {
		s.dropRead()
	}
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
func (s *Stream) settleReceived(p *Path) {
	s.recvMu.Lock()
	if s.waiting > 0 {
		p.in.woke = true
		s.sess.waiters.Add(-int32(s.waiting))
		s.waiting = 0
	}
	if s.pumping != nil && s.pumping != p {
		s.pumping.interrupt() // its Read waits for bytes that came here
	}
	s.recvCond.Broadcast() // also to those who were woken before and wait again
	ended := s.fin
	done := s.fin && s.head == nil || s.readClosed && s.recvEnded
	s.recvMu.Unlock()

	next := s.recvNext
	if s.past {
		next = s.again
	}
	s.sess.words.acknowledge(s, next, s.newRecords, s.newBytes, ended || s.ackSoon)
	s.newBytes, s.newRecords, s.ackSoon = 0, 0, false
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
	missing, unread := int(size-s.win.received), s.dropHeld()
	s.win.received = size
	s.recvEnded = true
	s.recvErr = &StreamError{StreamID: s.id, Code: code, Remote: true}
	if !s.readClosed { // else CloseRead has counted it
		unread += s.discard()
	}
	s.recvCond.Broadcast()
	s.recvMu.Unlock()
	if !s.sess.arrived(missing) {
		return violation(wire.CodeFlowControl, "RESET beyond the session's credit")
	}
	s.sess.consumed(missing+unread, false)
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
// returns why there are none. Where it reads the socket itself, bytes may come
// straight into p; n is how many. The caller holds recvMu.
func (s *Stream) awaitBytes(p []byte) (n int, err error) {
	for {
		switch {
		case s.readDeadline.expired():
			return 0, os.ErrDeadlineExceeded
		case s.readClosed:
			return 0, ErrStreamClosed
		case s.reading:
		case s.head != nil && s.head.r < s.head.w:
			s.reading = true
			return 0, nil
		case s.recvErr != nil:
			return 0, s.recvErr
		case s.fin:
			return 0, io.EOF
		case s.sess.ended():
			return 0, s.sess.cause()
		default:
			path := s.sess.path()
			if !path.pump.try() {
				break
			}
			if n := s.pump(path, p); n > 0 {
				return n, nil
			}
			continue
		}
		s.waiting++
		s.sess.expect()
		s.recvCond.Wait()
		if s.waiting > 0 {
			s.waiting--
			s.sess.waiters.Add(-1)
		}
	}
}

// pump reads one piece from the socket for this stream and whatever else is in
// it, and returns how many bytes it put into p. It sets reading if there are
// some. The caller holds recvMu, and the path's pump, which it gives back.
func (s *Stream) pump(path *Path, p []byte) int {
	s.reading, s.pumping = true, path
	s.recvMu.Unlock()
	path.in.direct = direct{stream: s, buf: p}
	err := path.readOnce()
	n := path.in.direct.n
	path.in.direct = direct{}
	path.release(err, true)
	s.recvMu.Lock()
	s.pumping = nil
	s.reading = n > 0
	if n == 0 {
		s.recvCond.Broadcast()
		s.settleRead()
	}
	return n
}

// wakeReaders makes every Read look again. The caller holds recvMu.
func (s *Stream) wakeReaders() {
	s.recvCond.Broadcast()
	if s.pumping != nil {
		s.pumping.interrupt()
	}
}

// take calls use with unread bytes, piece by piece, until it wants no more or
// there are no more. It waits for the first piece only, which may come
// straight into p; n is how many did, and then use isn't called.
func (s *Stream) take(p []byte, use func(b []byte) (n int, more bool)) (n int, err error) {
	s.recvMu.Lock()
	if n, err = s.awaitBytes(p); err != nil {
		s.recvMu.Unlock()
		if err == io.EOF { // perhaps it came to this Read's own hands
			s.sess.finished(s, false, true)
		}
		return 0, err
	}
	total := n
	for more := n == 0; more && s.head != nil && s.head.r < s.head.w && !s.readClosed; {
		b := s.head
		unread := b.unread()
		s.recvMu.Unlock()
		var used int
		used, more = use(unread)
		s.recvMu.Lock()
		if s.recvErr != nil || s.readClosed { // discard has counted these
			break
		}
		b.r += used
		total += used
		s.dropRead()
	}
	s.reading = false
	s.settleRead()
	s.recvCond.Broadcast()
	credit := s.consume(total)
	done := s.fin && s.head == nil
	s.recvMu.Unlock()

	if s.sess.consumed(total, credit) || credit {
		s.sess.kick()
	}
	if done {
		s.sess.finished(s, false, true)
	}
	return n, nil
}

// settleRead releases what a Read has read, and what discard had to leave to
// it. The caller holds recvMu.
func (s *Stream) settleRead() {
	if s.recvErr != nil || s.readClosed {
		for b := s.head; b != nil; b = b.next {
			b.r = b.w
		}
	}
	s.dropRead()
}

// consume gives the sender new credit if it is due. The caller holds recvMu.
func (s *Stream) consume(n int) (due bool) {
	if n == 0 || s.fin || s.recvErr != nil {
		return false
	}
	if due = s.win.consume(n, false); due {
		s.win.raise(s.sess.pathRTT(), now())
		s.sess.words.giveCredit(s, s.win.limit)
	}
	return due
}

// announceReading lets the peer know of a stream that is only read.
func (s *Stream) announceReading() {
	if !s.introduced.Load() {
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
	copied := 0
	n, err = s.take(p, func(b []byte) (int, bool) {
		c := copy(p[copied:], b)
		copied += c
		return c, copied < len(p)
	})
	return n + copied, err
}

// WriteTo writes everything up to the peer's end of the stream to w, straight
// out of the receive buffer. The error is w's, or one of Read's, but never
// io.EOF.
func (s *Stream) WriteTo(w io.Writer) (total int64, err error) {
	if s.plain != nil {
		return io.Copy(w, struct{ io.Reader }{s.plain})
	}
	s.announceReading()
	for {
		var werr error
		_, err = s.take(nil, func(b []byte) (int, bool) {
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
// it hasn't ended its direction, is told to stop, with StreamCodeClosed. The
// error is ErrStreamClosed if reading was ended before, or ErrNotTCPLS.
func (s *Stream) CloseRead() error { return s.closeRead(StreamCodeClosed) }

// StopSending is CloseRead with a code of the application's, at most 2^62-1,
// which the peer's Writes then return as *StreamError (docs/protocol.md, 5.12).
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
	s.wakeReaders()
	s.recvMu.Unlock()

	kick := s.sess.consumed(unread, false)
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
		s.sess.kick()
	}
	return nil
}

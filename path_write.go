package tcpls

import (
	"errors"
	"net"
	"time"

	"github.com/go-tcpls/tcpls/internal/osnet"
	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// How bytes leave, on the goroutine of whoever has something to say:
//
//  1. reserve   room in the queue's last chunk
//  2. announce  one record of the path's own context with the words that are
//               due and NEXT or ATTACH, if the context changes
//  3. seal      in place, and note the record on its owner's kept list
//  4. flush     write all chunks by as few system calls as can be
//
// 1 to 3 happen under outMu, which orders the records of the path. 4 drops it
// for each system call, so that others may seal meanwhile; one of them at a
// time flushes. Where the socket is full, drain takes over and the caller
// goes on.

// The most that one record of words holds.
const maxWords = 1024

// reserve returns a chunk with room for n bytes of content in one record.
func (p *Path) reserve(n int, more bool) *record.Chunk {
	if len(p.queue) > 0 {
		if c := p.queue[len(p.queue)-1]; c.Room() >= n+record.Overhead {
			return c
		}
		more = true // the socket is behind: large chunks save system calls
	}
	c := record.NewChunk(n+record.Overhead, more)
	c.Charge(&p.sess.gate.held)
	p.queue = append(p.queue, c)
	return c
}

// reserveApart is reserve for a small record that may stay unacknowledged while
// all around it is: a large chunk would stay with it.
func (p *Path) reserveApart(n int) *record.Chunk {
	if len(p.queue) > 0 {
		c := p.queue[len(p.queue)-1]
		if c.Len()+c.Room() < record.LargeChunk && c.Room() >= n+record.Overhead {
			return c
		}
	}
	c := record.NewChunk(n+record.Overhead, false)
	c.Charge(&p.sess.gate.held)
	p.queue = append(p.queue, c)
	return c
}

// seal protects b, made from c.Next, in ctx and queues it.
func (p *Path) seal(c *record.Chunk, ctx *record.Context, b []byte, t record.Type) (sentRecord, error) {
	rec, err := ctx.Seal(b, t)
	if err != nil {
		return sentRecord{}, err
	}
	return p.enqueue(c, rec), nil
}

// enqueue counts a sealed record, made in c, as part of the queue.
func (p *Path) enqueue(c *record.Chunk, rec []byte) sentRecord {
	p.unsent.Add(int64(len(rec)))
	p.sealed.Add(1)
	if k := &p.sess.keys; k.send.Load().Sealed() >= k.limit {
		k.wanted.Store(true) // whoever reads the path sees to it
	}
	return sentRecord{chunk: c, path: p, offset: int32(c.Commit(rec)), length: int32(len(rec))}
}

// announce seals the words that are due and, if the next record of a stream or
// of the control context isn't of the last one's context, says so. The context
// is attached to the path where attach is set.
func (p *Path) announce(next uint32, attach bool, epoch, seq uint64) error {
	due := p.sess.words.due.Load() && p == p.sess.path()
	if next == p.current && !attach && !due && !p.pongDue.Load() {
		return nil
	}
	for {
		c := p.reserve(maxWords, false)
		b, more := c.Next(maxWords)[:record.HeaderLen], false
		if due { // not on a path that may have failed: these words are said once
			b, more = p.sess.words.append(b, maxWords-wire.TrailerLen-2*wire.MaxFrameLen)
		}
		b = p.appendPings(b)
		if !more {
			switch {
			case attach:
				b = wire.AppendAttach(b, next, seq, epoch)
			case next != p.current:
				b = wire.AppendNext(b, next)
			}
			p.current = next
		}
		if len(b) > record.HeaderLen {
			b = wire.AppendTrailer(b, record.HeaderLen)
			if _, err := p.seal(c, &p.out, b, wire.TypeFrames); err != nil {
				return err
			}
		}
		if !more {
			return nil
		}
	}
}

// compose seals the words and the control frames that are due.
func (p *Path) compose() error {
	s := p.sess
	if err := s.control.repeat(p); err != nil {
		return err
	}
	for s.control.due.Load() && s.control.owner.Load() == p {
		if err := p.announce(wire.Control, false, 0, 0); err != nil {
			return err
		}
		if sealed, err := s.control.seal(p); err != nil || !sealed {
			return err
		}
	}
	return p.announce(p.current, false, 0, 0)
}

// kick composes what is due and flushes it.
func (p *Path) kick() {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	if p.ended || p.endDue || p.held || p.unsent.Load() >= maxUnsent {
		return // drain composes once the socket takes more
	}
	if err := p.compose(); err != nil {
		go p.sess.end(err)
		return
	}
	p.flush()
}

// trim drops the last chunk if all of it is written and acknowledged, so that
// an idle path holds no memory.
func (p *Path) trim() {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	if !p.flushing && !p.ended && len(p.queue) == 1 && p.unsent.Load() == 0 && !p.queue[0].Shared() {
		p.written = 0
		p.queue[0].Release()
		p.queue[0] = nil
		p.queue = p.queue[:0]
	}
}

// sealStream seals data as records of s, which the caller has set sealing,
// and flushes them.
func (p *Path) sealStream(s *Stream, data []byte) error {
	// The AEAD wants content and type in one piece. They meet in memory that
	// is in the cache, since a chunk is not: the last one to use it had to wait
	// for an acknowledgement.
	scratch := smallReads.get()
	defer smallReads.put(scratch)
	p.outMu.Lock()
	defer p.outMu.Unlock()
	if p.ended || p.endDue {
		return errPathGone
	}
	if err := p.composeFor(s); err != nil {
		return err
	}
	p.stir()
	p.size(len(data))
	full, records := (len(data)+p.sizing.maxContent-1)/p.sizing.maxContent, 0
	for ; len(data) > 0; records++ {
		n := copy(*scratch, p.cut(data))
		c := p.reserve(n, len(data) > n)
		rec, err := s.sendCtx.SealTo(c.Next(n), (*scratch)[:n], record.ApplicationData)
		if err != nil {
			return err
		}
		s.kept.push(p.enqueue(c, rec))
		data = data[n:]
	}
	if records > full { // the turn at the gate has counted full ones
		p.sess.gate.keep((records - full) * record.Overhead)
	}
	p.flush()
	return nil
}

// sealTail seals a record of s that has no stream bytes, only the frames that
// add appends.
func (p *Path) sealTail(s *Stream, add func(b []byte) []byte) error {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	if p.ended || p.endDue {
		return errPathGone
	}
	if err := p.composeFor(s); err != nil {
		return err
	}
	c := p.reserve(maxWords, false)
	b := wire.AppendTrailer(add(c.Next(maxWords)[:record.HeaderLen]), record.HeaderLen)
	rec, err := p.seal(c, &s.sendCtx, b, wire.TypeFrames)
	if err != nil {
		return err
	}
	p.sess.gate.keep(int(rec.length))
	s.kept.push(rec)
	p.flush()
	return nil
}

// composeFor composes what is due and announces s.
func (p *Path) composeFor(s *Stream) error {
	if c := &p.sess.control; c.due.Load() || c.moved.Load() {
		if err := p.compose(); err != nil {
			return err
		}
	}
	attach := s.attached != p && !s.continues(p, s.sendCtx.Seq())
	s.attached = p
	s.introduced.Store(true)
	return p.announce(s.id, attach, s.epoch, s.sendCtx.Seq())
}

// sealAlert seals a TLS alert in the path's own context, as its last record,
// behind what is due.
func (p *Path) sealAlert(level, description byte) {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	if p.ended || p.endDue {
		return
	}
	if p.held { // between two keys: the end of the connection must do
		p.endDue = true
		p.gone.Store(true)
		p.flush()
		return
	}
	_ = p.compose() // a key at its limit leaves only the end
	c := p.reserve(2, false)
	b := append(c.Next(2)[:record.HeaderLen], level, description)
	_, _ = p.seal(c, &p.out, b, record.Alert)
	p.endDue = true
	p.gone.Store(true) // writers wait for another path
	p.flush()
}

// flush writes the queue to the socket until it is empty or the socket full.
// The caller holds outMu, which is free during each system call.
func (p *Path) flush() {
	if p.flushing || p.ended {
		return
	}
	p.flushing = true
	for p.pending() {
		if p.io == nil {
			go p.drain()
			return
		}
		p.gather()
		p.outMu.Unlock()
		n, err := p.io.TryWritev(p.iov)
		p.outMu.Lock()
		if p.ended { // abandoned meanwhile
			p.dropQueue()
			p.wakeGate()
			return
		}
		full := p.unsent.Load() >= p.mostUnsent() || p.sess.gate.crowded() || p.sess.shares()
		p.advance(n)
		if err == osnet.ErrWouldBlock {
			go p.drain()
			return
		}
		if err != nil {
			p.writeFailed(err)
			return
		}
		if full {
			p.wakeGate()
		}
	}
	p.flushed()
}

// pending reports whether there is something to write, after it has composed
// what has become due if there wasn't. The caller holds outMu.
func (p *Path) pending() bool {
	if p.unsent.Load() == 0 {
		p.catchUp()
	}
	return p.unsent.Load() > 0 && !p.ended
}

// wakeGate lets a writer go on who found the path full. The caller holds outMu,
// which is free meanwhile.
func (p *Path) wakeGate() {
	if p.unsent.Load() < p.mostUnsent() {
		p.outMu.Unlock()
		p.sess.gate.wake()
		p.outMu.Lock()
	}
}

// catchUp composes what became due while the queue was full.
func (p *Path) catchUp() {
	if p.endDue || p.ended || p.held || p.unsent.Load() >= maxUnsent {
		return
	}
	if err := p.compose(); err != nil {
		go p.sess.end(err)
	}
	p.resend()
}

// drain is flush for a socket that is full: it waits for it.
func (p *Path) drain() {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	for p.pending() {
		n, err := p.writeNext()
		if p.ended {
			p.dropQueue()
			p.wakeGate()
			return
		}
		p.advance(n)
		if err != nil {
			p.writeFailed(err)
			return
		}
		p.wakeGate()
	}
	p.flushed()
}

// writeNext waits until the connection has taken the next piece, or, of what is
// written first, all of it: that may have to open the connection, and then what
// one segment holds travels in the SYN. The caller holds outMu, which is free
// meanwhile.
func (p *Path) writeNext() (int, error) {
	if p.bytesSent.Load() > 0 {
		b := p.unwritten()
		p.outMu.Unlock()
		defer p.outMu.Lock()
		began := time.Now()
		n, err := p.conn.Write(b)
		p.took(n, time.Since(began))
		return n, err
	}
	p.gather()
	b := net.Buffers(p.iov)
	p.outMu.Unlock()
	defer p.outMu.Lock()
	n, err := b.WriteTo(p.conn)
	return int(n), err
}

func (p *Path) flushed() {
	p.flushing = false
	switch {
	case p.ended: // abandoned meanwhile
		p.dropQueue()
	case p.endDue:
		p.ended = true
		p.dropQueue()
		p.closeWrite()
		close(p.outDone)
	}
}

// gather collects what is unwritten, at most a few chunks, into iov.
func (p *Path) gather() {
	p.iov = p.iov[:0]
	from := p.written
	for _, c := range p.queue[:min(len(p.queue), 8)] {
		p.iov = append(p.iov, c.Bytes(from))
		from = 0
	}
}

// unwritten is the first piece that the socket hasn't taken. The caller knows
// that there is one.
func (p *Path) unwritten() []byte {
	if b := p.queue[0].Bytes(p.written); len(b) > 0 {
		return b
	}
	return p.queue[1].Bytes(0)
}

// advance takes n written bytes from the queue. The last chunk stays, while it
// has room and its records are kept anyway, to take the next ones.
func (p *Path) advance(n int) {
	p.unsent.Add(-int64(n))
	p.bytesSent.Add(uint64(n))
	p.written += n
	done := 0
	for done < len(p.queue) && p.written >= p.queue[done].Len() {
		c := p.queue[done]
		if done == len(p.queue)-1 && c.Room() > maxWords && c.Shared() {
			break
		}
		p.written -= c.Len()
		c.Release()
		done++
	}
	if done > 0 {
		rest := copy(p.queue, p.queue[done:])
		clear(p.queue[rest:])
		p.queue = p.queue[:rest]
	}
}

// writeFailed ends the sending side. The caller holds outMu.
func (p *Path) writeFailed(err error) {
	p.flushing = false
	p.discard()
	go p.sess.pathFailed(p, &PathError{Path: uint32(p.id), Op: "write", Err: err})
}

// errPathGone refuses what was to be sealed: the path has failed or was closed
// meanwhile, and another one may take it.
var errPathGone = errors.New("tcpls: path is gone")

// discard drops the queue and refuses more. A system call may still read the
// chunks: then whoever made it drops them. The caller holds outMu.
func (p *Path) discard() {
	p.gone.Store(true)
	if !p.ended {
		p.ended = true
		close(p.outDone)
	}
	p.replays = nil
	p.unsent.Store(0)
	if !p.flushing {
		p.dropQueue()
	}
}

// dropQueue gives back the chunks of a path that has ended, of which nobody is
// writing. The caller holds outMu.
func (p *Path) dropQueue() {
	for _, c := range p.queue {
		c.Release()
	}
	clear(p.queue)
	p.queue, p.written = p.queue[:0], 0
	clear(p.iov)
	p.flushing = false
}

// closeWrite sends TCP's FIN where the connection can.
func (p *Path) closeWrite() {
	if c, ok := p.conn.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite() // a failure shows on the reading side
	}
}

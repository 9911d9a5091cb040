package tcpls

import (
	"net"

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
func (p *path) reserve(n int, more bool) *record.Chunk {
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

// seal protects b, made from c.Next, in ctx and queues it.
func (p *path) seal(c *record.Chunk, ctx *record.Context, b []byte, t record.Type) (sentRecord, error) {
	rec, err := ctx.Seal(b, t)
	if err != nil {
		return sentRecord{}, err
	}
	return p.enqueue(c, rec), nil
}

// enqueue counts a sealed record, made in c, as part of the queue.
func (p *path) enqueue(c *record.Chunk, rec []byte) sentRecord {
	p.unsent.Add(int64(len(rec)))
	p.sealed.Add(1)
	if k := &p.sess.keys; k.send.Sealed() >= k.limit {
		k.wanted.Store(true) // whoever reads the path sees to it
	}
	return sentRecord{chunk: c, offset: int32(c.Commit(rec)), length: int32(len(rec))}
}

// announce seals the words that are due and, if the next record of a stream or
// of the control context isn't of the last one's context, says so. The context
// is attached to the path where attach is set.
func (p *path) announce(next uint32, attach bool, epoch, seq uint64) error {
	w := &p.sess.words
	if next == p.current && !attach && !w.due.Load() {
		return nil
	}
	for {
		c := p.reserve(maxWords, false)
		b, more := w.append(c.Next(maxWords)[:record.HeaderLen], maxWords-wire.TrailerLen-wire.MaxFrameLen)
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
func (p *path) compose() error {
	s := p.sess
	for s.control.due.Load() {
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
func (p *path) kick() {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	if p.ended || p.endDue || p.unsent.Load() >= maxUnsent {
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
func (p *path) trim() {
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
func (p *path) sealStream(s *Stream, data []byte) error {
	// The AEAD wants content and type in one piece. They meet in memory that
	// is in the cache, since a chunk is not: the last one to use it had to wait
	// for an acknowledgement.
	scratch := smallReads.get()
	defer smallReads.put(scratch)
	p.outMu.Lock()
	defer p.outMu.Unlock()
	if p.ended || p.endDue {
		return p.refusal()
	}
	if err := p.composeFor(s); err != nil {
		return err
	}
	for len(data) > 0 {
		n := copy((*scratch)[:p.maxContent], data)
		c := p.reserve(n, len(data) > n)
		rec, err := s.sendCtx.SealTo(c.Next(n), (*scratch)[:n], record.ApplicationData)
		if err != nil {
			return err
		}
		s.kept.push(p.enqueue(c, rec))
		data = data[n:]
	}
	p.flush()
	return nil
}

// sealTail seals a record of s that has no stream bytes, only the frames that
// add appends.
func (p *path) sealTail(s *Stream, add func(b []byte) []byte) error {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	if p.ended || p.endDue {
		return p.refusal()
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
func (p *path) composeFor(s *Stream) error {
	if p.sess.control.due.Load() {
		if err := p.compose(); err != nil {
			return err
		}
	}
	attach := !s.attached.Swap(true)
	return p.announce(s.id, attach, s.epoch, s.sendCtx.Seq())
}

// sealAlert seals a TLS alert in the path's own context, as its last record,
// behind what is due.
func (p *path) sealAlert(level, description byte) {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	if p.ended || p.endDue {
		return
	}
	_ = p.compose() // a key at its limit leaves only the end
	c := p.reserve(2, false)
	b := append(c.Next(2)[:record.HeaderLen], level, description)
	if _, err := p.seal(c, &p.out, b, record.Alert); err == nil {
		p.endDue = true
		p.flush()
	}
}

// flush writes the queue to the socket until it is empty or the socket full.
// The caller holds outMu, which is free during each system call.
func (p *path) flush() {
	if p.flushing || p.ended {
		return
	}
	p.flushing = true
	for p.unsent.Load() > 0 {
		if p.io == nil {
			go p.drain()
			return
		}
		p.gather()
		p.outMu.Unlock()
		n, err := p.io.TryWritev(p.iov)
		p.outMu.Lock()
		if p.ended {
			return // abandoned meanwhile
		}
		full := p.unsent.Load() >= maxUnsent || p.sess.gate.crowded()
		p.advance(n)
		if err == osnet.ErrWouldBlock {
			go p.drain()
			return
		}
		if err != nil {
			p.writeFailed(err)
			return
		}
		if p.unsent.Load() == 0 {
			p.catchUp()
		}
		if full {
			p.wakeGate()
		}
	}
	p.flushed()
}

// wakeGate lets a writer go on who found the path full. The caller holds outMu,
// which is free meanwhile.
func (p *path) wakeGate() {
	if p.unsent.Load() < maxUnsent {
		p.outMu.Unlock()
		p.sess.gate.wake()
		p.outMu.Lock()
	}
}

// catchUp composes what became due while the queue was full.
func (p *path) catchUp() {
	if p.endDue || p.ended || p.unsent.Load() >= maxUnsent {
		return
	}
	if err := p.compose(); err != nil {
		go p.sess.end(err)
	}
}

// drain is flush for a socket that is full: it waits for it.
func (p *path) drain() {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	for p.unsent.Load() > 0 && !p.ended {
		b := p.unwritten()
		p.outMu.Unlock()
		n, err := p.conn.Write(b)
		p.outMu.Lock()
		if p.ended {
			return
		}
		p.advance(n)
		if err != nil {
			p.writeFailed(err)
			return
		}
		p.catchUp()
		p.wakeGate()
	}
	p.flushed()
}

func (p *path) flushed() {
	p.flushing = false
	if p.endDue && !p.ended {
		p.ended = true
		p.closeWrite()
		close(p.outDone)
	}
}

// gather collects what is unwritten, at most a few chunks, into iov.
func (p *path) gather() {
	p.iov = p.iov[:0]
	from := p.written
	for _, c := range p.queue[:min(len(p.queue), 8)] {
		p.iov = append(p.iov, c.Bytes(from))
		from = 0
	}
}

// unwritten is the first piece that the socket hasn't taken. The caller knows
// that there is one.
func (p *path) unwritten() []byte {
	if b := p.queue[0].Bytes(p.written); len(b) > 0 {
		return b
	}
	return p.queue[1].Bytes(0)
}

// advance takes n written bytes from the queue. The last chunk stays, while it
// has room and its records are kept anyway, to take the next ones.
func (p *path) advance(n int) {
	p.unsent.Add(-int64(n))
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
func (p *path) writeFailed(err error) {
	p.flushing = false
	p.discard()
	p.failure = &PathError{Path: uint32(p.id), Op: "write", Err: err}
	go p.sess.end(p.failure)
}

// refusal is why nothing more can be sealed. The caller holds outMu.
func (p *path) refusal() error {
	if p.failure != nil {
		return p.failure
	}
	return net.ErrClosed // the session has ended, and tells why
}

// discard drops the queue and refuses more. The caller holds outMu.
func (p *path) discard() {
	if !p.ended {
		p.ended = true
		close(p.outDone)
	}
	if !p.flushing { // else a system call may still read the chunks: they aren't used again
		for _, c := range p.queue {
			c.Release()
		}
	}
	clear(p.queue)
	p.queue, p.written = p.queue[:0], 0
	p.unsent.Store(0)
}

// closeWrite sends TCP's FIN where the connection can.
func (p *path) closeWrite() {
	if c, ok := p.conn.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite() // a failure shows on the reading side
	}
}

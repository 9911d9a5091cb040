package tcpls

import (
	"slices"

	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// Sending again. When a path has failed, the records that the peer hasn't
// acknowledged go out once more on another one: the same ciphertext, so that
// no nonce protects two plaintexts, and before anything new of their stream.

// A replay is what is left to send again of one stream.
type replay struct {
	stream *Stream
	next   uint64 // record
	begun  bool   // next was announced
}

// maxResend is how many records are sent again in one go.
const maxResend = record.BatchRecords

// moveOff makes the stream go on with its next record on the path to. What
// was sent before is sent there again if the path that has it is lost. The
// caller holds no lock.
func (s *Stream) moveOff(to *Path) {
	s.sendMu.Lock()
	for s.sealing { // it doesn't take long: sealing never waits for a socket
		s.sendCond.Wait()
	}
	if s.replayOn != nil {
		s.replayOn.forget(s)
		s.replayOn = nil
	}
	if pin := s.pinned(); pin != nil {
		to = pin
	}
	switch {
	case s.reset || s.kept.empty():
	case s.kept.misses():
		s.replayOver(to)
	default:
		s.moved = s.sendCtx.Seq()
	}
	again := s.replayOn
	s.settleSending()
	s.sendCond.Broadcast()
	s.sendMu.Unlock()
	if again != nil {
		again.carryOn()
	}
}

// check has what p was just given sent again elsewhere if p was lost meanwhile:
// whoever saw to what it had may have passed by before. A main path's records
// follow its successor. The caller holds sendMu.
func (s *Stream) check(p *Path) {
	if p.lost.Load() && p != s.sess.path() {
		go s.sess.resendLost()
	}
}

// blocked reports whether new records have to wait. Those that could overtake
// older ones on another path are few (protocol 9.6). The caller holds sendMu.
func (s *Stream) blocked() bool {
	switch {
	case s.replayOn != nil || s.sess.holding.Load():
		return true
	case s.sess.scheduler() == nil && (s.moved == 0 || s.kept.ackedFrom(s.moved)):
		return false
	}
	return s.kept.len() >= maxAhead && len(s.sess.livePaths()) > 1
}

// replayOver makes p send the stream's lost records before anything new, which
// may not be behind the last of them and so has to be attached anew. If p is
// about to be closed, the main path does it, or else the next one. The caller
// holds sendMu, and has replayOn carry on when it no longer does.
func (s *Stream) replayOver(p *Path) {
	s.replayOn, s.attached = p, nil
	if main := s.sess.path(); !p.replay(s) && p != main {
		s.replayOn = main
		main.replay(s)
	}
}

// replay has p send the lost records of s, unless it sends nothing more.
func (p *Path) replay(s *Stream) bool {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	if p.ended || p.endDue {
		return false
	}
	p.replays = append(p.replays, replay{stream: s})
	return true
}

// forget takes s off the streams whose records are sent again.
func (p *Path) forget(s *Stream) {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	p.replays = slices.DeleteFunc(p.replays, func(r replay) bool { return r.stream == s })
}

// replaying reports whether records of s are still to be sent again.
func (p *Path) replaying(s *Stream) bool {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	return slices.ContainsFunc(p.replays, func(r replay) bool { return r.stream == s })
}

// resends reports whether p goes on to send records of s again.
func (p *Path) resends(s *Stream) bool {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	return !p.ended && !p.endDue && slices.ContainsFunc(p.replays, func(r replay) bool { return r.stream == s })
}

// stranded reports whether the stream waits for a path to send its records again
// that won't: it has ended, and meanwhile they may all be acknowledged, since they
// were sent again for the sake of speed alone. The caller holds no lock.
func (s *Stream) stranded() bool {
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	return s.replayOn != nil && !s.replayOn.resends(s)
}

// carryOn flushes what became due.
func (p *Path) carryOn() {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	p.flush()
}

// resend queues records that are to be sent again, as far as the path takes
// them. The caller holds outMu, which is free while streams are told that all
// of theirs are queued.
func (p *Path) resend() {
	for len(p.replays) > 0 && p.unsent.Load() < maxUnsent && !p.ended && !p.endDue {
		r := &p.replays[0]
		more, err := p.resendSome(r)
		if err != nil {
			go p.sess.end(err)
			return
		}
		if more {
			continue
		}
		s := r.stream
		p.replays = p.replays[1:]
		p.outMu.Unlock()
		s.replayed(p)
		p.outMu.Lock()
	}
}

// resendSome queues the next records of one stream and reports whether there
// are more.
func (p *Path) resendSome(r *replay) (more bool, err error) {
	s := r.stream
	records, first := s.kept.missing(r.next, p)
	if len(records) == 0 {
		return false, nil
	}
	attach := !r.begun || first != r.next
	if err := p.announce(s.id, attach, s.epochOf(first), first); err != nil {
		return false, err
	}
	r.begun, r.next = true, first+uint64(len(records))
	p.resent.Add(uint64(len(records)))
	for _, rec := range records {
		p.repeat(rec)
	}
	return true, nil
}

// epochOf is the key epoch of a record that isn't acknowledged. The caller owns
// the context, or keeps others from sealing by replayOn.
func (s *Stream) epochOf(seq uint64) uint64 {
	if seq < s.epochSeq {
		return s.epoch - 1
	}
	return s.epoch
}

// repeat queues a sealed record once more, and gives its chunk back.
func (p *Path) repeat(rec sentRecord) {
	n := int(rec.length)
	c := p.reserve(n-record.Overhead, true)
	b := c.Next(n - record.Overhead)[:n]
	copy(b, rec.chunk.Record(int(rec.offset), n))
	rec.chunk.Release()
	c.Commit(b)
	p.unsent.Add(int64(n))
	p.sealed.Add(1)
}

// replayed notes that p has queued all of the stream's records again.
func (s *Stream) replayed(p *Path) {
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	if s.replayOn == p && !p.replaying(s) { // or it was told so anew
		s.replayOn = nil
		s.settleSending()
		s.sendCond.Broadcast()
	}
}

// take moves the control context to p, with what isn't acknowledged, once p has
// room for it: a peer may have us change paths as often as it likes.
func (c *control) take(p *Path) error {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	if p.ended || p.endDue {
		return nil
	}
	c.sealMu.Lock()
	c.owner.Store(p)
	c.moved.Store(true)
	c.sealMu.Unlock()
	if p.unsent.Load() >= maxUnsent {
		return nil // drain composes once the socket takes more
	}
	if err := p.compose(); err != nil {
		return err
	}
	p.flush()
	return nil
}

// repeat attaches the control context to p if it was moved there, and sends its
// records again. The caller holds outMu.
func (c *control) repeat(p *Path) error {
	if !c.moved.Load() {
		return nil
	}
	c.sealMu.Lock()
	if !c.moved.Load() || c.owner.Load() != p {
		c.sealMu.Unlock()
		return nil
	}
	c.moved.Store(false)
	records, first := c.kept.from(0, int(^uint(0)>>1))
	epoch := c.epoch
	if first < c.epochSeq {
		epoch--
	}
	c.sealMu.Unlock()
	if err := p.announce(wire.Control, true, epoch, first); err != nil {
		return err
	}
	for _, rec := range records {
		p.repeat(rec)
	}
	return nil
}

// at returns the i-th kept record, from 0. The caller holds mu.
func (k *kept) at(i int) *sentRecord { return &k.ring[(k.head+i)%len(k.ring)] }

// misses reports whether a record's path is lost.
func (k *kept) misses() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range k.n {
		if k.at(i).lost() {
			return true
		}
	}
	return false
}

// doubt makes every record from number seq on count as lost that isn't on the
// path given, and reports whether there are any.
func (k *kept) doubt(but *Path, seq uint64) (any bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := int(min(max(seq, k.acked)-k.acked, uint64(k.n))); i < k.n; i++ {
		if r := k.at(i); r.path != but || but == nil {
			r.path, any = nil, true
		}
	}
	return any
}

// elsewhere is how long the records from number seq on are that aren't on p.
func (k *kept) elsewhere(p *Path, seq uint64) (n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := int(min(max(seq, k.acked)-k.acked, uint64(k.n))); i < k.n; i++ {
		if r := k.at(i); r.path != p {
			n += int(r.length)
		}
	}
	return n
}

func (r *sentRecord) lost() bool { return r.path == nil || r.path.lost.Load() }

// oldest is the path that has the oldest record, nil if there is none or no path
// has it.
func (k *kept) oldest() *Path {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.n == 0 {
		return nil
	}
	return k.at(0).path
}

// missing returns the next few records from number seq on that are lost, and
// the number of the first; to is the path that takes them.
func (k *kept) missing(seq uint64, to *Path) (records []sentRecord, first uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for at := max(seq, k.acked); at < k.acked+uint64(k.n) && len(records) < maxResend; at++ {
		r := k.at(int(at - k.acked))
		switch {
		case r.lost():
			if len(records) == 0 {
				first = at
			}
			r.path = to
			r.chunk.Retain()
			records = append(records, *r)
		case len(records) > 0:
			return records, first
		}
	}
	return records, first
}

// from returns up to most kept records from number seq on, whose chunks are
// retained for the caller, and the number of the first.
func (k *kept) from(seq uint64, most int) (records []sentRecord, first uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	first = max(seq, k.acked)
	for at := first; at < k.acked+uint64(k.n) && len(records) < most; at++ {
		r := k.at(int(at - k.acked))
		r.chunk.Retain()
		records = append(records, *r)
	}
	return records, first
}

func (k *kept) len() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.n
}

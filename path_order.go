package tcpls

import (
	"bytes"

	"github.com/go-tcpls/tcpls/internal/wire"
)

// Order across paths. The records of a stream are numbered, whatever path they
// come on. When a stream moves to another path, its records there may overtake
// those before them (they are held), and when a path has failed, records come
// again (they are dropped).

// A heldRecord is one that came before its turn.
type heldRecord struct {
	content, frames []byte
}

// maxHeld is how many records of a stream may come before their turn; their
// bytes are bounded by the stream's credit (protocol 9.6).
const maxHeld = 4096

// maxAhead is how many unacknowledged records keep a stream that sends on several
// paths from another turn at the gate: so the records of a whole turn, and a
// KEY_UPDATE and the end of the stream behind them, never are more than maxHeld.
const maxAhead = maxHeld - maxBatch/leastContent - 2

// ahead holds a record of a.stream that came before its turn.
func (p *Path) ahead(a *attachment, seq uint64, content, frames []byte) error {
	s := a.stream
	if _, known := s.held[seq]; known {
		return p.repeated(a, len(content), frames)
	}
	if len(content) == 0 && !p.in.budget.spend(p) {
		return errBudget
	}
	p.progress(len(content))
	if len(s.held) >= maxHeld {
		return violation(wire.CodeLimit, "more than %d records of stream %d before their turn", maxHeld, s.id)
	}
	if err := s.count(len(content)); err != nil {
		return err
	}
	if s.held == nil {
		s.held = make(map[uint64]heldRecord)
	}
	s.held[seq] = heldRecord{bytes.Clone(content), bytes.Clone(frames)}
	return p.moveOn(a, frames)
}

// deliverHeld makes the held records readable whose turn has come.
func (p *Path) deliverHeld(s *Stream) error {
	for len(s.held) > 0 {
		h, ok := s.held[s.recvNext]
		if !ok {
			return nil
		}
		delete(s.held, s.recvNext)
		dst, into := s.reserve(p, len(h.content))
		copy(dst, h.content)
		s.arrived(p, into, len(h.content))
		err := p.eachFrame(h.frames, wire.OnStream, func(f *wire.Frame) error {
			switch f.Kind {
			case wire.Fin:
				s.arrivedFin()
				s.retire(nil) // what came in its place may come on p too
			case wire.KeyUpdate:
				s.ackSoon = true
				s.openEpoch = f.Epoch
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// dropHeld forgets the held records and returns how many bytes they had.
func (s *Stream) dropHeld() (n int) {
	for _, h := range s.held {
		n += len(h.content)
	}
	s.held = nil
	return n
}

// progress counts a record with n stream bytes that hadn't arrived before.
func (p *Path) progress(n int) {
	p.in.brought = true
	if n > 0 {
		p.brought.Store(int64(p.in.now.Sub(p.sess.began)))
		p.in.budget.earn(n)
		p.sess.fresh.Add(1)
	}
}

// repeated drops a record with n stream bytes that has arrived before. Our
// acknowledgement of it may be lost, so it is said again. Where everything is
// sent on all paths, each record comes once more on each, and pays for its
// announcement there too; what is beyond that is work without progress.
func (p *Path) repeated(a *attachment, n int, frames []byte) error {
	r := &p.in
	if n > 0 && r.copies < p.sess.fresh.Load() {
		r.copies++
		r.budget.earn(n)
	} else if r.repeats++; r.repeats%freeTries == 0 && !r.budget.spend(p) {
		return errBudget
	}
	a.stream.again = max(a.stream.again, a.ctx.Seq())
	a.stream.ackSoon = true
	return p.moveOn(a, frames)
}

// moveOn acts on what a record's frames say of its context, whenever its turn
// is.
func (p *Path) moveOn(a *attachment, frames []byte) error {
	return p.eachFrame(frames, wire.OnStream, func(f *wire.Frame) error {
		switch f.Kind {
		case wire.Fin:
			p.in.detach(a.stream.id)
		case wire.KeyUpdate:
			return p.sess.receiveEpoch(p, &a.ctx, &a.epoch, f.Epoch)
		}
		return nil
	})
}

// endedStream stands for a stream that has ended and been forgotten, whose
// records f announces again.
func (r *reading) endedStream(s *Session, f *wire.Frame) *Stream {
	if a := r.attached[f.Context]; a != nil {
		return a.stream // it ended while it was attached here
	}
	st := newStream(s, f.Context, 0)
	// Every record counts as arrived before.
	st.past, st.keyed, st.readClosed, st.recvEnded, st.recvNext = true, true, true, true, ^uint64(0)
	r.retire(f.Context)
	return st
}

// retire notes that a stream has ended whose records may still come on this
// path: it stays attached, as long as there are few of that sort.
func (r *reading) retire(id uint32) {
	r.retired = append(r.retired, id)
	if len(r.retired) <= maxEnded {
		return
	}
	oldest := r.retired[0]
	r.retired = r.retired[1:]
	if a := r.attached[oldest]; a != nil && a.stream.recvEnded {
		r.detach(oldest)
	}
}

// retire ends the stream's attachments, at once to the path that has brought
// its end, behind which nothing comes there. The caller holds inMu.
func (s *Stream) retire(p *Path) {
	if p != nil {
		p.in.detach(s.id)
	}
	for _, other := range s.sess.livePaths() {
		if other.in.attached[s.id] != nil {
			other.in.retire(s.id)
		}
	}
}

// maxEnded is how many streams that have ended may be attached to one path. A
// record of any other ends it (protocol 4.4).
const maxEnded = 1 << 10

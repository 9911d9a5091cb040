package tcpls

import (
	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// Which contexts a path may carry records of, and which record of each is next
// (protocol 4.4, 5.2).

// An attachment says that records of a stream may come on this path, and which
// one is next. The stream may be further than that, when records are sent
// again, or not as far, when those before it are still on their way on another
// path.
type attachment struct {
	stream     *Stream
	ctx        record.Context
	epoch      uint64 // of ctx
	prev, more *attachment
}

// attach notes that record seq of s comes next on this path.
func (r *reading) attach(s *Stream, keys *record.Keys, epoch, seq uint64) *attachment {
	a := r.attached[s.id]
	if a == nil {
		a = &attachment{}
		r.attached[s.id] = a
		r.push(a)
	}
	a.stream, a.epoch = s, epoch
	a.ctx.InitAt(keys, s.id, seq)
	return a
}

func (r *reading) push(a *attachment) {
	a.prev, a.more = &r.recent, r.recent.more
	a.prev.more, a.more.prev = a, a
}

func (r *reading) unlink(a *attachment) {
	a.prev.more, a.more.prev = a.more, a.prev
}

// use makes a the most recent one.
func (r *reading) use(a *attachment) {
	if r.recent.more != a {
		r.unlink(a)
		r.push(a)
	}
	r.next, r.nextCtl = a, false
}

// detach forgets a stream from which nothing more can come.
func (r *reading) detach(id uint32) {
	a := r.attached[id]
	if a == nil {
		return
	}
	delete(r.attached, id)
	r.unlink(a)
	if r.next == a {
		r.next = nil
	}
}

// attachFrame acts on ATTACH.
func (p *Path) attachFrame(f *wire.Frame) error {
	r, s := &p.in, p.sess
	if !s.keyed && !s.client && p.id == 0 { // another path may have been faster
		return violation(wire.CodeProtocol, "ATTACH before PARAMETERS (protocol 2.4)")
	}
	if f.Context == wire.Control {
		keys, err := s.keysToAttach(p, f.Epoch)
		if err != nil {
			return err
		}
		if f.Seq > s.controlNext || f.Seq != s.controlNext && !s.spread.Load() {
			return violation(wire.CodeProtocol, "ATTACH of the control context at record %d, expected %d", f.Seq, s.controlNext)
		}
		r.control.InitAt(keys, wire.Control, f.Seq)
		r.ctlEpoch, r.controlled = f.Epoch, true
		r.next, r.nextCtl = nil, true
		return nil
	}
	st, err := s.peerStream(f.Context)
	if err != nil {
		return err
	}
	if st == nil {
		if !s.spread.Load() {
			return nil
		}
		// All of it has arrived, but our word of that may be lost.
		st = r.endedStream(s, f)
	}
	keys, err := s.keysToAttach(p, f.Epoch)
	if err != nil {
		return err
	}
	if !st.keyed && f.Seq == st.recvNext {
		st.openEpoch, st.keyed = f.Epoch, true
	}
	switch {
	case f.Seq != st.recvNext && !s.spread.Load():
		return violation(wire.CodeStreamState, "ATTACH of stream %d at record %d, expected %d", f.Context, f.Seq, st.recvNext)
	case f.Seq == st.recvNext && f.Epoch != st.openEpoch:
		return violation(wire.CodeStreamState, "ATTACH of stream %d in epoch %d, expected %d", f.Context, f.Epoch, st.openEpoch)
	}
	r.next, r.nextCtl = r.attach(st, keys, f.Epoch, f.Seq), false
	return nil
}

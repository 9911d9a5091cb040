package tcpls

import (
	"sync"
	"time"

	"github.com/go-tcpls/tcpls/sched"
)

// Asking the scheduler. It sees a picture of the paths, which nobody changes,
// and is asked by the goroutine that writes, which holds no lock then. What it
// answers decides on when bytes arrive, and on nothing else.

// A picture is the paths that may take a batch, as a scheduler sees them.
type picture struct {
	paths  []*Path
	views  []sched.Path
	copied []*Path // those that the scheduler has picked for copies
}

var pictures = sync.Pool{New: func() any { return new(picture) }}

// take makes a picture of the session's paths.
func (pic *picture) take(s *Session) {
	pic.clear()
	set := uint64(0)
	for _, p := range s.livePaths() {
		if !p.usable() || len(pic.paths) == sched.MaxPaths {
			continue
		}
		v := p.view()
		pic.paths, pic.views = append(pic.paths, p), append(pic.views, v)
		set = (set*1_000_003+uint64(v.ID))*1_000_003 + uint64(v.Weight)
	}
	if s.offered.Swap(set) != set { // the shares begin anew
		for i, p := range pic.paths {
			p.given.Store(0)
			pic.views[i].Sent = 0
		}
	}
}

// clear forgets the paths, so that the pool holds none.
func (pic *picture) clear() {
	clear(pic.paths)
	clear(pic.copied)
	pic.paths, pic.views, pic.copied = pic.paths[:0], pic.views[:0], pic.copied[:0]
}

// view is what a scheduler gets to know of the path.
func (p *Path) view() sched.Path {
	p.refresh()
	v := sched.Path{
		ID: uint32(p.id), Weight: p.Weight(), Full: p.full(), Queued: int(p.unsent.Load() + p.queued.Load()), Sent: p.given.Load(),
		RTT: time.Duration(p.roundTrip.Load()), MinRTT: time.Duration(p.shortest.Load()), OnWay: int(p.onWay.Load()),
		Copied: p.recentCopies(),
		Rate:   p.rate.Load(), Window: p.window.Load(), SlowStart: p.growth.fast.Load(),
	}
	if v.Window > 0 && v.RTT > 0 {
		v.Rate = int64(float64(v.Window) / v.RTT.Seconds())
	}
	if asked := p.handed.Load(); asked > 0 {
		v.Queued += int(p.bytesSent.Load() - asked)
	}
	if d := p.delivered.Load(); d > 0 && !v.SlowStart {
		v.Rate = min(v.Rate, d)
	}
	return v
}

// pick asks the scheduler and returns the path for the batch, nil if it had
// better wait, and notes those that get copies. It holds no lock.
func (pic *picture) pick(x sched.Scheduler, b sched.Batch) *Path {
	switch {
	case len(pic.paths) == 0:
		return nil
	case len(pic.paths) == 1 && pic.views[0].Full:
		return nil
	case len(pic.paths) == 1:
		return pic.paths[0]
	}
	set := x.Pick(b, pic.views)
	best, anyQueued := -1, false
	for i := range pic.paths {
		anyQueued = anyQueued || pic.paths[i].unsent.Load() > 0 // a scheduler may have written into the views
		if !set.Has(i) || pic.paths[i].full() {
			continue
		}
		if best < 0 || pic.arrival(i, b) < pic.arrival(best, b) {
			best = i
		}
	}
	if best < 0 && anyQueued {
		return nil
	}
	if best < 0 { // nothing would end the waiting
		best, set = 0, 0
		for i := range pic.paths {
			if pic.arrival(i, b) < pic.arrival(best, b) {
				best = i
			}
		}
	}
	for i, p := range pic.paths {
		if i != best && set.Has(i) {
			pic.copied = append(pic.copied, p)
		}
	}
	return pic.paths[best]
}

func (pic *picture) arrival(i int, b sched.Batch) time.Duration { return pic.views[i].Arrival(b.Bytes) }

// choose picks the path for up to n bytes of the stream, of which the peer takes
// credit, and tells how many of them it gets; the path is nil if they had better
// wait for one. ok is false if the stream can do neither any more. The caller is
// the stream's writer and holds sendMu, which is free meanwhile.
func (s *Stream) choose(n int, credit uint64) (via *Path, got int, ok bool) {
	x := s.sess.scheduler()
	if x == nil {
		return s.sess.whileHandingOver(n)
	}
	pic := pictures.Get().(*picture)
	via = s.ask(x, sched.Batch{Stream: s.id, Bytes: n, Credit: credit}, pic)
	if ok = !s.sealing && !s.blocked() && s.pinned() == nil && s.writeError() == nil && (via == nil || via.usable()); ok {
		clear(s.copied) // they may be closed
		s.copied = append(s.copied[:0], pic.copied...)
	}
	pic.clear()
	pictures.Put(pic)
	return via, n, ok
}

// ask frees sendMu for as long as the scheduler thinks, also if it panics.
func (s *Stream) ask(x sched.Scheduler, b sched.Batch, pic *picture) *Path {
	s.sendMu.Unlock()
	defer s.sendMu.Lock()
	pic.take(s.sess)
	return pic.pick(x, b)
}

// usual is the path for what isn't a batch of bytes: the end of a stream, or its
// beginning. The caller has set sealing.
func (s *Stream) usual() *Path {
	if pin := s.pinned(); pin != nil {
		return pin
	}
	if p := s.attached; p != nil && s.sess.shares() && p.usable() {
		return p
	}
	return s.sess.path()
}

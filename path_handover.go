package tcpls

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/sched"
)

// Handing over. TCP of a new path begins with ten segments a round trip (RFC
// 6928), whatever the old one carried. So when an application migrates, the old
// path goes on helping: the new one gets what its window takes at once, and the
// old one the rest, until the new one carries as much alone, or its time is up.
// A session that spreads its streams anyway, by its mode or its own scheduler,
// does that by itself.

const (
	// handoverTrips is how many round trips of the new path a handover takes at
	// most: slow start doubles its window in each.
	handoverTrips = 10
	// handoverMost is the longest handover, whatever the round trip.
	handoverMost = 3 * time.Second
	// handoverBatch is how many stream bytes go on one path before the next
	// choice: less than a new path's first window.
	handoverBatch = 12 << 10
	// proxySlack is how much longer than the kernel's round trip a handshake's may
	// be by what it has to compute.
	proxySlack = 10 * time.Millisecond
)

// handing is a session's handover, if there is one.
type handing struct {
	current atomic.Pointer[handover]
	timer   atomic.Pointer[time.Timer] // armed with switchMu
}

// A handover is the time in which the old main path helps the new one.
type handover struct {
	paths [2]*Path      // the old one and the new one
	rate  int64         // what the old one carried before, in bytes per second; 0: not known
	due   time.Duration // when it ends at the latest, since the session began
}

// handOver makes to the main path, as switchTo does, with the help of the old
// one.
func (s *Session) handOver(to *Path) {
	if s.change(to, false, true) {
		s.hook(Event{Kind: EventMainPath, Path: to})
	}
}

// startHandover has from help its successor, if help is set and it can, and ends
// any other handover. The caller holds switchMu.
func (s *Session) startHandover(from, to *Path, help bool) {
	h := &s.handing
	if !help || s.scheduler() != nil || !from.usable() || to.proxied() {
		h.current.Store(nil)
		return
	}
	most := s.handoverTime(to)
	view := from.view()
	h.current.Store(&handover{[2]*Path{from, to}, view.Rate, time.Since(s.began) + most})
	if t := h.timer.Load(); t != nil {
		t.Reset(most)
	} else {
		h.timer.Store(time.AfterFunc(most, s.handoverDue))
	}
	if s.ended() { // in this moment
		h.stop()
	}
}

// stop is for the end of the session. It takes no lock.
func (h *handing) stop() {
	h.current.Store(nil)
	if t := h.timer.Load(); t != nil {
		t.Stop()
	}
}

// handoverDue is what the timer does.
func (s *Session) handoverDue() {
	if h := s.handing.current.Load(); h != nil && time.Since(s.began) >= h.due {
		s.endHandover(h)
	}
}

// handoverTime is how long a handover to the path may take.
func (s *Session) handoverTime(to *Path) time.Duration {
	return min(handoverTrips*to.trip(), handoverMost)
}

// trip is the path's round trip, with what queues on it, and what proxies do.
func (p *Path) trip() time.Duration {
	p.sess.mu.Lock()
	defer p.sess.mu.Unlock()
	return max(p.watch.rtt, time.Duration(p.roundTrip.Load()))
}

// proxied reports whether the kernel's TCP ends much nearer than the peer is: then
// neither its window nor its rate is the path's, and a proxy takes bytes long
// before they can arrive.
func (p *Path) proxied() bool {
	kernels := time.Duration(p.shortest.Load())
	p.sess.mu.Lock()
	defer p.sess.mu.Unlock()
	return kernels > 0 && p.watch.rtt > 2*kernels+proxySlack
}

// endHandover leaves the new path alone. It takes no lock.
func (s *Session) endHandover(h *handover) {
	if s.handing.current.CompareAndSwap(h, nil) {
		go s.handedOver(h)
	}
}

// handedOver sends again, on the new path, what the old one needs much longer
// for.
func (s *Session) handedOver(h *handover) {
	s.gate.wake()
	old, next := h.paths[0], h.paths[1]
	if !old.works() || !next.works() || s.path() != next {
		return
	}
	late, again := old.view(), next.view()
	for _, st := range s.openStreams() {
		st.sendMu.Lock()
		for st.sealing {
			st.sendCond.Wait()
		}
		waits := !st.reset && st.replayOn == nil && st.pinned() == nil && st.kept.oldest() == old
		if waits && late.Arrival(0) > 2*again.Arrival(st.kept.elsewhere(next, st.hastened)) {
			st.repeatOver(next)
		}
		st.sendMu.Unlock()
	}
}

// whileHandingOver is choose where only a handover spreads the session's streams.
func (s *Session) whileHandingOver(n int) (via *Path, got int, ok bool) {
	h := s.handing.current.Load()
	if h == nil {
		return nil, 0, false
	}
	if via, got, ok = h.pick(min(n, handoverBatch)); !ok {
		s.endHandover(h)
	}
	return via, got, ok
}

// pick chooses the path for the next of n bytes, and how many it gets; nil means
// that they had better wait for room. ok is false if the handover is over.
func (h *handover) pick(n int) (via *Path, got int, ok bool) {
	old, next := h.paths[0], h.paths[1]
	if !old.usable() || !next.usable() {
		return nil, 0, false
	}
	from, to := old.view(), next.view()
	if to.Window > 0 && h.rate > 0 && to.Rate >= h.rate-h.rate/8 { // a socket that takes much says nothing of TCP's window
		return nil, 0, false
	}
	if free := atOnce(&to, n); free > 0 {
		return next, free, true
	}
	via, full := old, from.Full
	if to.Arrival(n) < from.Arrival(n) {
		via, full = next, to.Full
	}
	if full {
		return nil, 0, true
	}
	return via, n, true
}

// atOnce is how many of n stream bytes TCP would send at once on a path, in one
// record.
func atOnce(p *sched.Path, n int) int {
	if p.Window > 0 {
		n = min(n, int(p.Window)-p.OnWay-p.Queued-record.Overhead)
	} else if p.Queued > 0 {
		return 0
	}
	if n < leastContent {
		return 0
	}
	return n
}

// awaitHandover waits while either end goes on sending on old, beside p which
// is the main path now, and for some round trips at most. If it is silence on p
// that makes the peer stop, it is p that is left.
func (s *Session) awaitHandover(ctx context.Context, old, p *Path) {
	quiet := max(old.trip(), p.trip()) + ackDelay
	limit := time.Since(s.began) + 3*s.handoverTime(p)/2 + quiet
	for {
		now, h, last := time.Since(s.began), s.handing.current.Load(), old.brought.Load()
		sends := h != nil && h.paths[0] == old && s.gate.unacknowledged() > 0
		receives := now-time.Duration(last) < quiet || p.heard.Load() < last
		if !sends && !receives || now >= limit || !old.works() || s.path() != p {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-s.life.done:
			return
		case <-time.After(max(quiet/4, time.Millisecond)):
		}
	}
}

package tcpls

import (
	"sync"
	"time"
)

// A deadline wakes those who wait, and does nothing else: it never interrupts
// a write to a socket, so no record is ever cut in two. It is guarded by the
// lock that set is given.
type deadline struct {
	at    time.Time // zero for none
	gen   uint
	timer *time.Timer
}

// expired reports whether the deadline has passed. It asks the clock, since
// the timer's goroutine may be late.
func (d *deadline) expired() bool { return !d.at.IsZero() && time.Until(d.at) <= 0 }

// set moves the deadline to t, zero for none. wake is called with mu held, as
// the caller holds it.
func (d *deadline) set(mu sync.Locker, t time.Time, wake func()) {
	d.stop()
	d.at = t
	if t.IsZero() {
		return
	}
	wait := time.Until(t)
	if wait <= 0 {
		wake()
		return
	}
	gen := d.gen
	d.timer = time.AfterFunc(wait, func() {
		mu.Lock()
		defer mu.Unlock()
		if d.gen == gen {
			wake()
		}
	})
}

// stop forgets the deadline; a timer that is already firing is void.
func (d *deadline) stop() {
	d.at = time.Time{}
	d.gen++
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

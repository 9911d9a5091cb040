package tcpls

import (
	"sync"
	"time"
)

// A deadline wakes those who wait on a condition, and does nothing else: it
// never interrupts a write to a socket, so no record is ever cut in two. It is
// guarded by the condition's lock.
type deadline struct {
	expired bool
	gen     uint
	timer   *time.Timer
}

// set moves the deadline to t, zero for none. The caller holds cond.L.
func (d *deadline) set(cond *sync.Cond, t time.Time) {
	d.gen++ // a timer that is already firing is void
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.expired = false
	if t.IsZero() {
		return
	}
	wait := time.Until(t)
	if wait <= 0 {
		d.expired = true
		cond.Broadcast()
		return
	}
	gen := d.gen
	d.timer = time.AfterFunc(wait, func() {
		cond.L.Lock()
		defer cond.L.Unlock()
		if d.gen == gen {
			d.expired = true
			cond.Broadcast()
		}
	})
}

// stop forgets the deadline and its timer.
func (d *deadline) stop() {
	d.gen++
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

package lab

import (
	"testing"
	"time"
)

// TestMostUnderWay fills a direction with more packets than it may hold.
func TestMostUnderWay(t *testing.T) {
	e := &emulator{start: time.Now()}
	d := &direction{link: new(linkEmulator), shaper: *newTestShaper(Shape{Delay: time.Minute}), size: 100, most: 10}
	for range d.most + 5 {
		buf := d.buffer()
		if !e.take(d, buf, d.size) {
			d.free = append(d.free, buf)
		}
	}
	if d.queue.n != d.most || d.n.Overflown != 5 || len(d.free) != 1 {
		t.Errorf("%d packets are under way, %d were dropped and %d buffers are free; want %d, 5 and 1", d.queue.n, d.n.Overflown, len(d.free), d.most)
	}
}

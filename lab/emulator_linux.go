package lab

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An emulator moves packets between pairs of TUN devices.
//
//	read ─► middleboxes ─► shaper: fate, time of arrival ─► queue ─► write
//
// One thread does it all in one loop, without timers: it waits until a packet comes or
// is due. It makes raw system calls only, so that Go's scheduler
// never takes the processor from it for others: on a loaded machine it would
// get it back as much as 100 ms late.
type emulator struct {
	start time.Time
	links []*linkEmulator
	dirs  []*direction
	poll  []unix.PollFd // the wake-up, and the input of each direction

	wake   int // an event counter, see eventfd(2)
	mu     sync.Mutex
	orders []func() // for the loop
}

// A linkEmulator is a link. Its fields belong to the loop.
type linkEmulator struct {
	tuns  [2]int
	dirs  [2]*direction // from A to B, from B to A
	boxes []box
	rng   *rand.Rand // the boxes'
	send  func(from int, to side, ip []byte, now time.Duration)
	reset *resetter // nil: none is due
}

// A direction is one of the two of a link.
type direction struct {
	link    *linkEmulator
	in, out int
	to      side
	shaper  shaper
	queue   queue
	free    [][]byte // buffers that aren't used
	size    int      // of a buffer
	most    int      // packets under way
	n       Counters
	late    time.Duration // sum
	arrived uint64        // of how many packets
}

const (
	// early is by how much a packet may arrive too soon, so that one turn of
	// the loop moves several.
	early = int64(100 * time.Microsecond)
	// longestWait lets the runtime stop this thread in time, if it must.
	longestWait = int64(50 * time.Millisecond)
	// atOnce is how many packets of a direction are read before the others
	// get their turn.
	atOnce = 64
	// mostQueued and mostBuffered bound the packets under way in a direction, and
	// the bytes of their buffers.
	mostQueued   = 1 << 17
	mostBuffered = 256 << 20
)

func newEmulator(begin *setup) (*emulator, error) {
	e := &emulator{start: time.Now()}
	var err error
	if e.wake, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
		return nil, err
	}
	e.poll = append(e.poll, unix.PollFd{Fd: int32(e.wake), Events: unix.POLLIN})
	fd := firstFile + begin.Hosts
	for i, spec := range begin.Links {
		l := &linkEmulator{tuns: [2]int{fd, fd + 1}, rng: rand.New(rand.NewPCG(begin.Seed, 1<<32+uint64(i)))}
		l.send = l.sendFrom // once, since a packet shouldn't cost memory
		l.install(spec.Boxes)
		fd += 2
		for from := range l.tuns {
			if err := unix.SetNonblock(l.tuns[from], true); err != nil {
				return nil, err
			}
			d := &direction{link: l, in: l.tuns[from], out: l.tuns[1-from], to: side(from).other(), size: spec.MTU, most: min(mostQueued, mostBuffered/spec.MTU)}
			d.shaper = shaper{shape: spec.Shapes[from], rng: rand.New(rand.NewPCG(begin.Seed, uint64(2*i+from)))}
			l.dirs[from] = d
			e.dirs = append(e.dirs, d)
			e.poll = append(e.poll, unix.PollFd{Fd: int32(d.in), Events: unix.POLLIN})
		}
		e.links = append(e.links, l)
	}
	return e, nil
}

func (l *linkEmulator) install(specs []Middlebox) {
	l.boxes = nil
	for _, m := range specs {
		l.boxes = append(l.boxes, m.install(l.rng))
	}
}

// carryOut carries out an order in the loop's turn.
func (e *emulator) carryOut(o order) report {
	done := make(chan report, 1)
	e.mu.Lock()
	e.orders = append(e.orders, func() { done <- e.obey(o) })
	e.mu.Unlock()
	one := [8]byte{1}
	_, _ = unix.Write(e.wake, one[:]) // fails only when full, which wakes too
	return <-done
}

func (e *emulator) obey(o order) (r report) {
	l := e.links[o.Link]
	switch o.Kind {
	case orderShape:
		for i, d := range l.dirs {
			d.shaper.set(o.Shapes[i])
		}
	case orderBoxes:
		l.install(o.Boxes)
	case orderReset:
		l.reset = &resetter{make(table[flow, bool])}
	}
	for i, d := range l.dirs {
		r.Counters[i] = d.counters()
	}
	return r
}

func (d *direction) counters() Counters {
	n := d.n
	if d.arrived > 0 {
		n.Late = d.late / time.Duration(d.arrived)
	}
	return n
}

// run is the loop.
func (e *emulator) run() {
	runtime.LockOSThread()
	urgent()
	for {
		next := e.deliver()
		wait := unix.NsecToTimespec(min(max(next-e.now(), 0), longestWait))
		n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&e.poll[0])), uintptr(len(e.poll)),
			uintptr(unsafe.Pointer(&wait)), 0, 0, 0)
		if errno != 0 || n == 0 {
			continue
		}
		if e.poll[0].Revents != 0 {
			e.takeOrders()
		}
		for i, d := range e.dirs {
			switch events := e.poll[i+1].Revents; {
			case events&unix.POLLIN != 0:
				e.read(d)
			case events != 0: // the device is gone
				e.poll[i+1].Fd = -1
			}
		}
	}
}

// urgent asks for the processor at once when a packet comes or is due. What
// fails makes the emulator less accurate, and Counters.Late tells.
func urgent() {
	const slack = 1 // nanosecond
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, slack, 0, 0, 0)
	fifo := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 5}
	if err := unix.SchedSetAttr(0, &fifo, 0); err != nil {
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, -10)
	}
}

// now returns the loop's time.
func (e *emulator) now() int64 { return int64(time.Since(e.start)) }

func (e *emulator) takeOrders() {
	var count [8]byte
	_, _ = rawRead(e.wake, count[:])
	e.mu.Lock()
	orders := e.orders
	e.orders = nil
	e.mu.Unlock()
	for _, f := range orders {
		f()
	}
}

// deliver writes the packets that are due, and returns when the next one is.
func (e *emulator) deliver() (next int64) {
	now := e.now()
	next = now + longestWait
	for _, d := range e.dirs {
		for {
			p := d.queue.first()
			if p == nil {
				break
			}
			if p.at > now+early {
				next = min(next, p.at)
				break
			}
			d.arrive(p.data, time.Duration(now-p.at))
			d.free = append(d.free, p.data[:cap(p.data)])
			d.queue.pop()
		}
	}
	return next - early
}

func (d *direction) arrive(ip []byte, late time.Duration) {
	if rawWrite(d.out, ip) {
		d.n.Delivered++
	} else {
		d.n.Undelivered++
	}
	late = max(late, 0)
	d.late += late
	d.arrived++
	d.n.LateMost = max(d.n.LateMost, late)
}

// read takes packets from a direction's input.
func (e *emulator) read(d *direction) {
	for range atOnce {
		buf := d.buffer()
		n, ok := rawRead(d.in, buf)
		if !ok || !e.take(d, buf, n) {
			d.free = append(d.free, buf)
		}
		if !ok {
			return
		}
	}
}

func (d *direction) buffer() []byte {
	if n := len(d.free); n > 0 {
		buf := d.free[n-1]
		d.free = d.free[:n-1]
		return buf
	}
	return make([]byte, d.size)
}

// take decides about the packet in buf, and reports whether it keeps buf.
func (e *emulator) take(d *direction, buf []byte, n int) bool {
	d.n.Packets++
	d.n.Bytes += uint64(n)
	now := e.now()
	ip := d.meddle(buf[:n], time.Duration(now))
	if ip == nil {
		d.n.Filtered++
		return false
	}
	at, fate := d.shaper.admit(now, len(ip))
	if fate == delivered && d.queue.n >= d.most {
		fate = overflown
	}
	if fate != delivered {
		d.n.count(fate)
		return false
	}
	d.n.MostQueued = max(d.n.MostQueued, d.shaper.backlog(now))
	if at <= now && d.queue.n == 0 {
		d.arrive(ip, 0)
		return false
	}
	d.queue.push(at, append(buf[:0], ip...))
	return true
}

// meddle lets the middleboxes have the packet.
func (d *direction) meddle(ip []byte, now time.Duration) []byte {
	l := d.link
	p := passage{ip: ip, to: d.to, now: now, send: l.send, at: -1}
	if d.to == sideA {
		p.at = len(l.boxes)
	}
	if l.reset != nil {
		if p.ip = l.reset.pass(p); p.ip == nil {
			return nil
		}
	}
	return l.through(p)
}

// through lets a packet go through the boxes behind that where it is.
func (l *linkEmulator) through(p passage) []byte {
	step := 1
	if p.to == sideA {
		step = -1
	}
	for i := p.at + step; i >= 0 && i < len(l.boxes) && p.ip != nil; i += step {
		p.at = i
		p.ip = l.boxes[i].pass(p)
	}
	return p.ip
}

// sendFrom sends a packet from a box straight to an end.
func (l *linkEmulator) sendFrom(from int, to side, ip []byte, now time.Duration) {
	if ip = l.through(passage{ip: ip, to: to, now: now, send: l.send, at: from}); ip != nil {
		rawWrite(l.tuns[to], ip)
	}
}

func rawRead(fd int, b []byte) (n int, ok bool) {
	r, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return int(r), errno == 0
}

func rawWrite(fd int, b []byte) bool {
	_, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return errno == 0
}

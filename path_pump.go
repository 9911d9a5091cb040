package tcpls

import (
	"errors"
	"os"
	"sync"
	"time"
)

// Who reads the path's socket: one goroutine at a time, which holds the pump.
//
// A Read that finds nothing takes the pump itself, if it is free, and reads
// until something for its stream has come: no other goroutine has to be woken
// for it, and records are opened straight into its buffer. Whenever somebody
// else waits for the peer, or nobody reads for pumpPause, the path's own
// goroutine takes the pump, so that credit, acknowledgements, pings and the
// end of the session are never left lying.
type pump struct {
	mu      sync.Mutex
	cond    sync.Cond // the path's goroutine waits here
	held    bool
	standby bool // the path's goroutine leaves reading to Reads
	armed   bool
	timer   *time.Timer // ends standby
	err     error       // why reading has ended
}

// pumpPause is how long the socket is left to Reads that may come.
const pumpPause = time.Millisecond

// init readies the pump, held by the path's goroutine.
func (u *pump) init() {
	u.cond.L = &u.mu
	u.held = true
}

// try takes the pump for a Read if it is free.
func (u *pump) try() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.held || u.err != nil {
		return false
	}
	u.held = true
	return true
}

// release frees the pump. err ends reading for good. standby allows that
// nobody takes the pump for a while, unless somebody waits for the peer.
func (p *Path) release(err error, standby bool) {
	u := &p.pump
	u.mu.Lock()
	defer u.mu.Unlock()
	u.held, u.err = false, err
	if err != nil || !standby || p.sess.waiters.Load() > 0 || len(p.sess.livePaths()) > 1 {
		u.standby = false
		u.cond.Signal()
		return
	}
	u.standby = true
	if u.armed {
		return
	}
	u.armed = true
	if u.timer == nil {
		u.timer = time.AfterFunc(pumpPause, u.resume)
	} else {
		u.timer.Reset(pumpPause)
	}
}

// resume ends standby.
func (u *pump) resume() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.armed = false
	if u.standby && !u.held {
		u.standby = false
		u.cond.Signal()
	}
}

// await takes the pump for the path's goroutine, or returns why reading has
// ended.
func (u *pump) await() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	for u.err == nil && (u.held || u.standby) {
		u.cond.Wait()
	}
	if u.err != nil {
		if u.timer != nil {
			u.timer.Stop()
		}
		return u.err
	}
	u.held = true
	return nil
}

// rouse ends standby at once.
func (u *pump) rouse() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.standby && !u.held {
		u.standby = false
		u.cond.Signal()
	}
}

// expect says that the caller waits for something from the peer, until it
// takes itself off waiters.
func (s *Session) expect() {
	s.waiters.Add(1)
	for _, p := range s.livePaths() {
		p.pump.rouse()
	}
}

// wait is cond.Wait for something that only the peer can bring.
func (s *Session) wait(cond *sync.Cond) {
	s.expect()
	cond.Wait()
	s.waiters.Add(-1)
}

// interrupt makes the holder of the pump look up from the socket.
func (p *Path) interrupt() {
	_ = p.conn.SetReadDeadline(time.Unix(1, 0)) // a closed connection interrupts by itself
}

// readOnce reads one piece and acts on it. The caller holds the pump. It
// returns nil after an interruption.
func (p *Path) readOnce() error {
	p.in.woke = false
	rec, err := p.in.nextRecord()
	if err != nil {
		return err
	}
	if rec == nil {
		err := p.fill()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return p.conn.SetReadDeadline(time.Time{})
		}
		if err != nil {
			return err
		}
		p.noteArrival()
	}
	return p.process()
}

// fill reads what is there behind the unprocessed bytes, and waits for it.
func (p *Path) fill() error {
	r := &p.in
	if p.io == nil {
		n, err := p.conn.Read(r.room())
		p.bytesReceived.Add(uint64(n))
		if r.have += n; n > 0 {
			return nil
		}
		return err
	}
	n, err := p.io.ReadNext(r.roomFunc, r.idleFunc)
	if err != nil {
		return err
	}
	room := len(*r.buf) - scratchLen - r.have
	r.have += n
	p.bytesReceived.Add(uint64(n))
	r.hungry = n == room // more is waiting: a larger buffer next time
	return nil
}

// room is where the next bytes go.
func (r *reading) room() []byte {
	if r.hungry {
		r.resize(readBuffers)
	}
	if r.buf == nil {
		r.buf = r.from.get()
	}
	r.compact()
	return (*r.buf)[r.have : len(*r.buf)-scratchLen]
}

// idle gives memory back while there is nothing to read: a path that waits
// holds no buffer larger than one record needs, and none if nothing is begun.
func (r *reading) idle() {
	r.hungry = false
	if r.compact(); r.have > 0 {
		r.resize(smallReads)
		return
	}
	if r.buf != nil {
		r.from.put(r.buf)
		r.buf = nil
	}
}

// compact moves the unprocessed bytes to the front of the buffer.
func (r *reading) compact() {
	if r.start > 0 {
		r.have = copy(*r.buf, (*r.buf)[r.start:r.have])
		r.start = 0
	}
}

// resize moves the unprocessed bytes, less than one record, to a buffer of
// another size.
func (r *reading) resize(to *bufPool) {
	if r.from == to {
		return
	}
	if r.buf == nil {
		r.from = to
		return
	}
	r.compact()
	buf := to.get()
	copy(*buf, (*r.buf)[:r.have])
	r.from.put(r.buf)
	r.buf, r.from = buf, to
}

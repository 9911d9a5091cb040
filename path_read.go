package tcpls

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/go-tcpls/tcpls/internal/osnet"
	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/internal/tls13"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// How bytes arrive, on the goroutine that holds the pump (path_pump.go), which
// never waits for a writer or for the application:
//
//  1. read      a large piece, by one system call
//  2. find      the context of each record: the announced one first (protocol 4.4)
//  3. open      out of the piece into the buffer of the record's stream
//  4. dispatch  the frames behind the stream bytes
//  5. settle    once for a piece: wake the stream's reader, note what is to be
//               acknowledged, say what is due

// reading is the receiving side of a path. It belongs to who holds the pump.
type reading struct {
	own        record.Context
	control    record.Context // numbered as ATTACH has said; older than what has arrived where it is sent again
	attached   map[uint32]*attachment
	recent     attachment // head of a ring, most recent first
	next       *attachment
	nextCtl    bool // the announced context is the control context
	controlled bool // the control context is attached
	touched    *Stream
	buf        *[]byte
	from       *bufPool
	start      int // unprocessed bytes are buf[start:have]
	have       int
	hungry     bool // the last read filled buf
	woke       bool // the last read woke a reader
	direct     direct
	roomFunc   func() []byte // bound once, since binding allocates
	idleFunc   func()
	frame      wire.Frame
	epoch      uint64 // of the path's own context
	ctlEpoch   uint64
	budget     budget
	now        time.Time // of the last read
	busy       bool      // the last piece brought more than PINGs and PONGs
	brought    bool      // stream bytes, since the last beat was considered
	beaten     time.Time // when the last beat was due
	partial    time.Time // when the record began that isn't complete
	measured   time.Time // when the kernel was last asked for the round trip
	closed     bool      // the peer sent close_notify
	copies     uint64    // of the session's fresh records, those that have paid for their copies here
	repeats    uint      // records that had arrived before, and more often than that
	retired    []uint32  // streams that have ended and are still attached, oldest first
	reranked   bool      // by PATH_STATUS, since the last settle
	fresh      bool      // nothing was opened in own yet: its epoch is the sender's choice
}

// direct is the buffer of the Read that holds the pump.
type direct struct {
	stream *Stream
	buf    []byte
	n      int // bytes in it
}

// maxDirect is how much one Read takes at once, so that what it takes is still
// in the cache when its caller looks at it.
const maxDirect = 4 * record.MaxPlaintext

// full reports whether a record has to wait for the next Read.
func (d *direct) full(rec int) bool {
	return d.n > 0 && (d.n >= maxDirect || len(d.buf)-d.n < rec-record.HeaderLen-record.TagLen)
}

func (r *reading) init() {
	r.attached = make(map[uint32]*attachment)
	r.recent.prev, r.recent.more = &r.recent, &r.recent
	r.roomFunc, r.idleFunc = r.room, r.idle
	r.from = smallReads
}

func (r *reading) scratch() []byte { return (*r.buf)[len(*r.buf)-scratchLen:] }

// readLoop is the path's goroutine. early holds the bytes that came with the
// end of the handshake.
func (p *Path) readLoop(early []byte) {
	defer p.done()
	r := &p.in
	if len(early) > maxRecord {
		r.from = readBuffers
	}
	r.buf = r.from.get()
	r.have = copy(*r.buf, early)
	p.noteArrival()
	var err error
	if p.sess.client && p.sess.greeting != nil {
		err = p.greet()
	}
	if j := p.joining.Load(); j != nil && p.sess.client {
		if err := p.finishJoin(j); err != nil {
			r.from.put(r.buf)
			r.buf = nil
			p.readFailed(err)
			return
		}
	}
	failed := err != nil
	if !failed {
		err = p.process()
	}
	for {
		// A Read that was woken is likely to come back for more.
		p.release(err, r.woke)
		if err = p.pump.await(); err != nil {
			break
		}
		err = p.readOnce()
	}
	if r.buf != nil {
		r.from.put(r.buf)
		r.buf = nil
	}
	if failed {
		p.fellThrough(err)
		return
	}
	p.readFailed(err)
}

// rttAge is how old the kernel's measurement of the round trip may be.
const rttAge = 50 * time.Millisecond

// infoAge is how old what a scheduler sees of TCP may be.
const infoAge = 2 * time.Millisecond

// refresh asks the kernel anew for what a scheduler sees, if that is old.
func (p *Path) refresh() {
	if p.raw == nil {
		return
	}
	now, last := int64(time.Since(p.sess.began)), p.asked.Load()
	if now-last > int64(infoAge) && p.asked.CompareAndSwap(last, now) {
		p.measure()
	}
}

// recentCopies is how many bytes of copies the path was given not long ago.
func (p *Path) recentCopies() uint64 { return p.copied.of(time.Since(p.sess.began)) }

// measure asks the kernel what it knows of the path: for schedulers, and by the
// shortest round trip windows are tuned.
func (p *Path) measure() {
	if p.raw == nil {
		return
	}
	handed := p.bytesSent.Load()
	info, err := osnet.TCPInfo(p.raw)
	if err != nil || info.MinRTT <= 0 {
		return
	}
	p.handed.Store(handed)
	p.onWay.Store(int64(info.Unacked * info.SendMSS))
	if info.AppLimited {
		p.delivered.Store(0)
	} else {
		p.delivered.Store(info.DeliveryRate)
	}
	p.roundTrip.Store(int64(info.RTT))
	p.shortest.Store(int64(info.MinRTT))
	p.window.Store(int64(min(info.CWnd*info.SendMSS, info.SendWindow)))
	p.queued.Store(int64(info.NotSent))
	p.growth.note(p.window.Load(), time.Since(p.sess.began), info.RTT)
}

// noteArrival is called for every piece that was read.
func (p *Path) noteArrival() {
	r := &p.in
	r.now = time.Now()
	p.sess.lastReceived.Store(int64(r.now.Sub(p.sess.began)))
	if r.partial.IsZero() || r.now.Sub(r.partial) < maxPartial {
		p.noteHeard()
	}
	if r.now.Sub(r.measured) > rttAge {
		r.measured = r.now
		p.measure()
	}
}

// nextRecord returns the next complete record, nil if there is none.
func (r *reading) nextRecord() ([]byte, error) {
	if r.have-r.start < record.HeaderLen {
		return nil, nil
	}
	b := (*r.buf)[r.start:r.have]
	h := record.ParseHeader(b)
	if h.Type != record.ApplicationData {
		return nil, &protocolError{alert: alertUnexpectedMessage, err: fmt.Errorf("record of type %d in the clear", h.Type)}
	}
	if h.Len > record.MaxCiphertext {
		return nil, &protocolError{alert: alertRecordOverflow, err: record.ErrOverflow}
	}
	if h.Len < record.TagLen { // what opens it counts on the tag
		return nil, &protocolError{alert: alertBadRecordMAC, err: record.ErrShort}
	}
	if n := record.HeaderLen + h.Len; len(b) >= n {
		return b[:n:n], nil
	}
	return nil, nil
}

// process takes complete records out of the buffer: all of them, or, for a
// Read that pumps, what its slice takes. The next holder of the pump goes on.
func (p *Path) process() error {
	err := p.takeRecords()
	p.settle()
	return err
}

func (p *Path) takeRecords() error {
	p.sess.inMu.Lock()
	defer p.sess.inMu.Unlock()
	r := &p.in
	for {
		if p.sess.greeting != nil {
			if err := p.greetClient(); err != nil {
				return err
			}
		}
		if err := p.passJoin(); err != nil {
			return err
		}
		rec, err := r.nextRecord()
		if err == nil && rec != nil && !r.direct.full(len(rec)) {
			r.start += len(rec)
			r.partial = time.Time{}
			if err = p.receive(rec); err == nil {
				continue
			}
		}
		if r.have > r.start && r.partial.IsZero() {
			r.partial = r.now
		}
		p.settleStream()
		return err
	}
}

// maxPartial is how long the bytes of one record count as signs of life: else
// somebody on the path could hold up a session by trickling what is no record.
const maxPartial = 5 * time.Second

// receive finds the context of one record, opens it and acts on it.
func (p *Path) receive(rec []byte) error {
	p.sess.counters.recordsReceived.Add(1)
	r := &p.in
	if r.nextCtl {
		if done, err := p.tryControl(rec); done {
			return err
		}
	}
	tried := r.next
	if tried != nil {
		if done, err := p.tryStream(tried, rec); done {
			return err
		}
	}
	if done, err := p.tryOwn(rec); done {
		return err
	}
	if !r.nextCtl && r.controlled {
		if done, err := p.tryControl(rec); done {
			return err
		}
	}
	tries := 0
	for a := r.recent.more; a != &r.recent; a = a.more {
		if a == tried {
			continue
		}
		if tries++; tries%freeTries == 0 && !r.budget.spend(p) {
			return errBudget
		}
		if done, err := p.tryStream(a, rec); done {
			return err
		}
	}
	if done, err := p.tryJoin(rec); done {
		return err
	}
	if r.fresh {
		return &protocolError{alert: alertBadRecordMAC, err: errFirstRecord}
	}
	return &protocolError{alert: alertBadRecordMAC, err: record.ErrAuth}
}

// freeTries is how many streams' contexts may be tried for a record at the cost
// of one without stream bytes: a sender that never announces would make us
// decrypt it once for each of its streams.
const freeTries = 64

// tryOwn opens a record of the path's own context; done tells that it was one.
func (p *Path) tryOwn(rec []byte) (done bool, err error) {
	var content []byte
	var t record.Type
	if p.in.fresh {
		content, t, err = p.openFresh(rec)
	} else {
		content, t, err = p.in.own.Open(p.in.scratch(), rec)
	}
	if err == record.ErrAuth {
		return false, nil
	}
	if p.in.fresh {
		p.in.fresh = false
		p.confirm()
	}
	if err != nil {
		return true, openError(err)
	}
	return true, p.ownRecord(content, t)
}

func (p *Path) tryControl(rec []byte) (done bool, err error) {
	r := &p.in
	content, t, err := r.control.Open(r.scratch(), rec)
	if err == record.ErrAuth {
		return false, nil
	}
	if err != nil {
		return true, openError(err)
	}
	r.next, r.nextCtl, r.busy = nil, true, true
	switch t {
	case wire.TypeFrames:
		var bytes []byte
		if bytes, content, err = wire.SplitTrailer(content); err != nil {
			return true, err
		}
		if len(bytes) > 0 {
			return true, violation(wire.CodeProtocol, "stream bytes in the control context")
		}
	case wire.TypeOption:
	default:
		return true, misplaced(t, "the control context")
	}
	if !r.budget.spend(p) {
		return true, errBudget
	}
	return true, p.sess.controlRecord(p, t, content, r.control.Seq()-1)
}

// tryStream opens a record of a stream, straight into the stream's buffer where
// it is the next one.
func (p *Path) tryStream(a *attachment, rec []byte) (done bool, err error) {
	r, s := &p.in, a.stream
	seq := a.ctx.Seq()
	dst, into := r.scratch(), intoScratch
	if seq == s.recvNext && !s.recvEnded {
		dst, into = s.reserve(p, len(rec)-record.HeaderLen-record.TagLen)
	}
	content, t, err := a.ctx.Open(dst, rec)
	if err != nil {
		s.unreserve()
		if err == record.ErrAuth {
			return false, nil
		}
		return true, openError(err)
	}
	r.use(a)
	r.busy = true
	if r.touched != s {
		p.settleStream()
		r.touched = s
	}
	var frames []byte
	switch t {
	case record.ApplicationData:
	case wire.TypeFrames:
		if content, frames, err = wire.SplitTrailer(content); err != nil {
			return true, err
		}
	default:
		return true, misplaced(t, "a stream's context")
	}
	switch {
	case seq < s.recvNext || s.recvEnded: // sent again, or overtaken by RESET
		return true, p.repeated(a, len(content), frames)
	case seq > s.recvNext: // those before it are still on another path
		return true, p.ahead(a, seq, content, frames)
	}
	if len(content) == 0 && !r.budget.spend(p) {
		return true, errBudget
	}
	p.progress(len(content))
	// Once the bytes have arrived, a Read may take them and give the block back.
	frames = r.scratch()[:copy(r.scratch(), frames)]
	if err := s.count(len(content)); err != nil {
		return true, err
	}
	s.arrived(p, into, len(content))
	if err := p.streamFrames(a, frames); err != nil {
		return true, err
	}
	return true, p.deliverHeld(s)
}

// streamFrames acts on the frames of the stream's next record.
func (p *Path) streamFrames(a *attachment, frames []byte) error {
	s := a.stream
	return p.eachFrame(frames, wire.OnStream, func(f *wire.Frame) error {
		switch f.Kind {
		case wire.Fin:
			s.arrivedFin()
			s.retire(p)
		case wire.KeyUpdate:
			s.ackSoon = true
			s.openEpoch = f.Epoch
			return p.sess.receiveEpoch(p, &a.ctx, &a.epoch, f.Epoch)
		}
		return nil
	})
}

// eachFrame parses frames and calls act for each.
func (p *Path) eachFrame(frames []byte, place wire.Place, act func(f *wire.Frame) error) (err error) {
	f := &p.in.frame
	for len(frames) > 0 {
		if frames, err = f.Parse(frames, place); err != nil {
			return err
		}
		if err := act(f); err != nil {
			return err
		}
	}
	return nil
}

// ownRecord acts on a record of the path's own context.
func (p *Path) ownRecord(content []byte, t record.Type) error {
	if !p.in.budget.spend(p) {
		return errBudget
	}
	if t != record.Handshake && p.sess.engine.MidMessage() {
		return &protocolError{alert: alertUnexpectedMessage, err: errors.New("another record within a TLS message")}
	}
	switch t {
	case wire.TypeFrames:
		bytes, frames, err := wire.SplitTrailer(content)
		if err != nil {
			return err
		}
		if len(bytes) > 0 {
			return violation(wire.CodeProtocol, "stream bytes in a path's context")
		}
		return p.eachFrame(frames, wire.OnPath, p.ownFrame)
	case record.Alert:
		return p.alert(content)
	case record.Handshake:
		if p.sess.greeting != nil {
			if err := p.sess.engine.EarlyHandshake(content); err != nil {
				return engineError(err)
			}
			return nil
		}
		if err := p.sess.engine.PostHandshake(content); err != nil {
			return engineError(err)
		}
		return nil
	}
	return misplaced(t, "a path's context")
}

// ownFrame acts on a frame of the path's own context (protocol 5).
func (p *Path) ownFrame(f *wire.Frame) error {
	r, s := &p.in, p.sess
	r.busy = r.busy || f.Kind != wire.Ping && f.Kind != wire.Pong
	switch f.Kind {
	case wire.Next, wire.Attach:
		if f.Kind == wire.Attach {
			return p.attachFrame(f)
		}
		if f.Context == wire.Control {
			r.next, r.nextCtl = nil, r.controlled
			return nil
		}
		// A hint for a context that isn't attached costs a try (protocol 4.4).
		if a := r.attached[f.Context]; a != nil {
			r.next, r.nextCtl = a, false
		}
	case wire.Ack:
		return s.ackFrame(f)
	case wire.SessionCredit:
		s.gate.allow(f.Credit)
	case wire.StreamLimit:
		s.allowStreams(f.Streams)
	case wire.Ping:
		p.answerPing(f.Data)
	case wire.Pong:
		p.pong(f.Data)
	case wire.PathLeft:
		s.peerLeft(p, f.Path, f.Lost)
	case wire.PathStatus:
		p.ranked(f.Backup, int(f.Weight))
	case wire.KeyUpdate:
		return s.receiveEpoch(p, &r.own, &r.epoch, f.Epoch)
	}
	return nil
}

// misplaced tells a type that TCPLS has no place for here (protocol 4.1) from
// one that nobody may send (RFC 8446, section 5).
func misplaced(t record.Type, where string) error {
	switch t {
	case record.Alert, record.Handshake, record.ApplicationData, wire.TypeFrames, wire.TypeOption:
		return violation(wire.CodeProtocol, "record of type %d in %s", t, where)
	}
	return &protocolError{alert: alertUnexpectedMessage, err: fmt.Errorf("record of unknown type %d in %s", t, where)}
}

// alert acts on a TLS alert (RFC 8446, section 6).
func (p *Path) alert(content []byte) error {
	alert, err := tls13.ParseAlert(content)
	switch {
	case err != nil:
		return engineError(err)
	case alert == tls13.AlertCloseNotify:
		p.in.closed = true
		return io.EOF
	case alert == tls13.AlertUserCanceled:
		return nil
	}
	return &tls13.AlertError{Alert: alert}
}

// settleStream passes on what the records of one stream have brought.
func (p *Path) settleStream() {
	if s := p.in.touched; s != nil {
		p.in.touched = nil
		s.settleReceived(p)
	}
}

// settle ends the work on one piece of input.
func (p *Path) settle() {
	s := p.sess
	if p.in.reranked {
		p.in.reranked = false
		s.rankChanged()
	}
	if p.in.busy {
		p.noteBusy()
	}
	if s.syns.due.Load() {
		s.tellSYNs()
	}
	main := s.path()
	if s.words.due.Load() || s.control.due.Load() || main.pongDue.Load() {
		main.kick()
	}
	if p != main {
		p.beat()
		if p.pongDue.Load() {
			p.kick()
		}
	}
	if s.keys.wanted.Load() {
		s.updateKeysIfDue() // acknowledgements may have ended the last update
	}
}

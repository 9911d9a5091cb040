package tcpls

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-tcpls/tcpls/internal/wire"
)

// Words are what the peer must know and what may be overwritten by a newer
// value before it is told: acknowledgements, credit, limits, pings. They are
// state and no queue, so that nothing grows while the path is blocked and the
// path's reader never waits for a writer. Whoever seals next on the path
// collects what is due.
type words struct {
	due atomic.Bool // something should go out without waiting for ackDelay

	mu            sync.Mutex
	acks          []*Stream // streams whose word is to be said, each once
	spare         []*Stream
	controlSeq    uint64
	controlDue    bool
	sessionCredit uint64
	creditDue     bool
	streamLimit   uint64
	limitDue      bool
	left          []leftPath  // each path once
	timer         *time.Timer // fires ackDelay after the first word that isn't due
	armed         bool
	stopped       bool
}

// A leftPath is one on which this end sends nothing more.
type leftPath struct {
	id   uint32
	lost bool // because it failed
}

// A streamWord is what the peer must know of a stream.
type streamWord struct {
	queued bool
	said   bool   // the peer knows the stream
	seq    uint64 // records received
	credit uint64 // offset up to which the peer may send

	bytes, records int // that have arrived since the word was last said
}

// When an acknowledgement is due (protocol 6.2). Where the reader keeps up and
// the window hasn't grown, new credit is due before, and takes it along.
const (
	ackBytes   = 768 << 10
	ackRecords = 64
	ackDelay   = 10 * time.Millisecond
)

// acknowledge says that all records of s below seq have arrived, of which the
// last ones held bytes; at once or, since more may follow, within ackDelay.
func (w *words) acknowledge(s *Stream, seq uint64, records, bytes int, soon bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s.word.seq = seq
	s.word.bytes += bytes
	s.word.records += records
	w.enqueue(s, soon || s.word.bytes >= ackBytes || s.word.records >= ackRecords)
}

// giveCredit says that the peer may send on s up to an offset.
func (w *words) giveCredit(s *Stream, credit uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s.word.credit = credit
	w.enqueue(s, true)
}

func (w *words) enqueue(s *Stream, now bool) {
	s.word.said = true
	if !s.word.queued {
		s.word.queued = true
		w.acks = append(w.acks, s)
	}
	if now {
		w.due.Store(true)
	} else if !w.armed && !w.stopped {
		w.armed = true
		w.timer.Reset(ackDelay)
	}
}

// acknowledgeControl says that all records of the control context below seq
// have arrived.
func (w *words) acknowledgeControl(seq uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.controlSeq, w.controlDue = seq, true
	w.due.Store(true)
}

func (w *words) giveSessionCredit(credit uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	// Readers raise the window in one order and may come here in another.
	w.sessionCredit, w.creditDue = max(w.sessionCredit, credit), true
	w.due.Store(true)
}

func (w *words) giveStreams(limit uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.streamLimit, w.limitDue = limit, true
	w.due.Store(true)
}

// leave says that this end sends nothing more on a path but answers.
func (w *words) leave(path uint32, lost bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.left = slices.DeleteFunc(w.left, func(l leftPath) bool { return l.id == path })
	w.left = append(w.left, leftPath{path, lost})
	w.due.Store(true)
}

// restate makes everything due once more, since what was said last may be lost
// with a path.
func (w *words) restate(streams []*Stream) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.controlDue = w.controlSeq > 0
	w.creditDue = w.sessionCredit > 0
	w.limitDue = w.streamLimit > 0
	for _, s := range streams {
		if s.word.said {
			w.enqueue(s, true)
		}
	}
	w.due.Store(true)
}

// start readies the timer; kick is called when acknowledgements have waited
// for ackDelay.
func (w *words) start(kick func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer = time.AfterFunc(time.Hour, func() {
		w.mu.Lock()
		w.armed = false
		if len(w.acks) > 0 {
			w.due.Store(true)
		}
		w.mu.Unlock()
		kick()
	})
	w.timer.Stop()
}

func (w *words) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	w.timer.Stop()
	w.acks, w.spare = nil, nil
}

// append appends frames for what is to be said, up to the length limit; more
// tells that something is left.
func (w *words) append(b []byte, limit int) (_ []byte, more bool) {
	if !w.due.Load() {
		return b, false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.controlDue {
		b = wire.AppendAck(b, wire.Control, w.controlSeq, 0)
		w.controlDue = false
	}
	if w.creditDue {
		b = wire.AppendSessionCredit(b, w.sessionCredit)
		w.creditDue = false
	}
	if w.limitDue {
		b = wire.AppendStreamLimit(b, w.streamLimit)
		w.limitDue = false
	}
	for len(w.left) > 0 && len(b) <= limit-wire.MaxFrameLen {
		b = wire.AppendPathLeft(b, w.left[0].id, w.left[0].lost)
		w.left = w.left[1:]
	}
	said := 0
	for _, s := range w.acks {
		if len(b) > limit-wire.MaxFrameLen {
			break
		}
		b = wire.AppendAck(b, s.id, s.word.seq, s.word.credit)
		s.word.queued, s.word.bytes, s.word.records = false, 0, 0
		said++
	}
	if more = said < len(w.acks) || len(w.left) > 0; more {
		w.spare = append(w.spare[:0], w.acks[said:]...)
	} else {
		w.spare = w.spare[:0]
		w.due.Store(false)
	}
	clear(w.acks)
	w.acks, w.spare = w.spare, w.acks[:0]
	return b, more
}

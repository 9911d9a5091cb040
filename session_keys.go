package tcpls

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/go-tcpls/tcpls/internal/record"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// keyring holds the session's keys, one in each direction for all contexts,
// and moves them from epoch to epoch (protocol 3.5).
type keyring struct {
	// Sending. Written under the session's mu.
	send      atomic.Pointer[record.Keys]
	sendEpoch uint64
	limit     uint64      // records after which the next epoch is due
	wanted    atomic.Bool // by the peer, the application, or the limit

	// Receiving; guarded by the session's inMu, but for heard.
	receive, previous *record.Keys
	coming            *record.Keys // those behind receive, once somebody asked
	receiveEpoch      uint64
	heard             atomic.Uint64 // receiveEpoch, for everybody
}

// rekeyAfter is how many records one epoch takes at most: a fifth of what
// AES-GCM may protect, some 70 GB of full records.
const rekeyAfter = 1 << 22

func (k *keyring) init(send, receive *record.Keys, limit int) {
	k.receive, k.limit = receive, uint64(limit)
	k.send.Store(send)
}

// keysFor returns the receiving keys of an epoch, nil if they aren't alive.
func (k *keyring) keysFor(epoch uint64) *record.Keys {
	switch epoch {
	case k.receiveEpoch:
		return k.receive
	case k.receiveEpoch - 1:
		return k.previous
	}
	return nil
}

// after returns the receiving keys behind the current ones, which can be
// derived only once.
func (k *keyring) after() (*record.Keys, error) {
	if k.coming == nil {
		next, err := k.receive.Next()
		if err != nil {
			return nil, err
		}
		k.coming = next
	}
	return k.coming, nil
}

// errEpochOver ends a path whose records come so late that their keys are gone
// (protocol 3.6).
var errEpochOver = errors.New("its keys were forgotten two updates ago")

// errFirstRecord ends a path whose first record fits none of the keys that are
// known: it isn't the peer's, or comes too late as well.
var errFirstRecord = errors.New("its first record fits none of the session's keys")

// receiveEpoch moves a context of path p to the epoch that the peer has
// announced in it. The first context to move there brings the keys.
func (s *Session) receiveEpoch(p *Path, ctx *record.Context, epoch *uint64, to uint64) error {
	if to != *epoch+1 {
		return violation(wire.CodeKeyUpdate, "KEY_UPDATE to epoch %d in a context of epoch %d", to, *epoch)
	}
	if to > s.keys.receiveEpoch {
		if err := s.nextEpoch(p); err != nil {
			return err
		}
	}
	keys := s.keys.keysFor(to)
	if keys == nil { // a path that was silent for two updates
		return &protocolError{alert: alertBadRecordMAC, err: errEpochOver}
	}
	ctx.SetKeys(keys)
	*epoch = to
	return nil
}

// nextEpoch makes the next receiving keys, when all contexts have left those
// before the current ones.
func (s *Session) nextEpoch(p *Path) error {
	k := &s.keys
	if s.greeting != nil {
		return violation(wire.CodeKeyUpdate, "KEY_UPDATE with early data")
	}
	if s.lags(p, k.receiveEpoch) {
		return violation(wire.CodeKeyUpdate, "KEY_UPDATE to epoch %d before all contexts have left epoch %d", k.receiveEpoch+1, k.receiveEpoch-1)
	}
	next, err := k.after()
	if err != nil {
		return err
	}
	k.previous, k.receive, k.coming = k.receive, next, nil
	k.receiveEpoch++
	k.heard.Store(k.receiveEpoch)
	s.log.Debug("peer changed its keys", "epoch", k.receiveEpoch)
	return nil
}

// keysToAttach returns the keys for a context that p brings anew.
func (s *Session) keysToAttach(p *Path, epoch uint64) (*record.Keys, error) {
	if epoch == s.keys.receiveEpoch+1 && s.spread.Load() { // KEY_UPDATE is still on its way on another path
		if err := s.nextEpoch(p); err != nil {
			return nil, err
		}
	}
	keys := s.keys.keysFor(epoch)
	if keys == nil && s.spread.Load() && epoch < s.keys.receiveEpoch { // it was under way for two updates
		return nil, &protocolError{alert: alertBadRecordMAC, err: errEpochOver}
	}
	if keys == nil {
		return nil, violation(wire.CodeKeyUpdate, "ATTACH in epoch %d at epoch %d", epoch, s.keys.receiveEpoch)
	}
	return keys, nil
}

// lags reports whether some context hasn't reached an epoch.
func (s *Session) lags(p *Path, epoch uint64) bool {
	if !s.spread.Load() && p.in.epoch < epoch || s.controlEpoch < epoch {
		return true
	}
	if s.spread.Load() { // a RESET may be under way on another path
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.table.streams {
		if st.keyed && st.openEpoch < epoch && st.recvOpen() {
			return true
		}
	}
	return false
}

// openFresh opens the first record of a later path's own context, whose sender
// may be an epoch behind what we have seen, or ahead (protocol 3.6).
func (p *Path) openFresh(rec []byte) ([]byte, record.Type, error) {
	k := &p.sess.keys
	coming, err := k.after()
	if err != nil {
		return nil, 0, err
	}
	for _, try := range [...]struct {
		keys  *record.Keys
		epoch uint64
	}{{k.receive, k.receiveEpoch}, {k.previous, k.receiveEpoch - 1}, {coming, k.receiveEpoch + 1}} {
		if try.keys == nil {
			continue
		}
		p.in.own.Init(try.keys, wire.PathContext(p.id))
		content, t, err := p.in.own.Open(p.in.scratch(), rec)
		if err == record.ErrAuth {
			continue
		}
		if err == nil && try.epoch > k.receiveEpoch {
			err = p.sess.nextEpoch(p)
		}
		p.in.epoch = try.epoch
		return content, t, err
	}
	return nil, 0, record.ErrAuth
}

// keyRequested acts on KEY_REQUEST (protocol 5.13).
func (s *Session) keyRequested(epoch uint64) error {
	s.mu.Lock()
	current := s.keys.sendEpoch
	s.mu.Unlock()
	if epoch > current+1 {
		return violation(wire.CodeKeyUpdate, "KEY_REQUEST for epoch %d at epoch %d", epoch, current)
	}
	if epoch == current+1 {
		s.keys.wanted.Store(true) // settle sees to it, once for all that came together
	}
	return nil
}

// updateKeysIfDue begins the next sending epoch if it is due and the one
// before has ended. The caller holds no lock.
func (s *Session) updateKeysIfDue() {
	s.mu.Lock()
	if !s.keys.wanted.Load() || s.ended() || s.early == EarlyDataPending || !s.epochSettled() {
		s.mu.Unlock()
		return
	}
	streams, err := s.beginEpoch()
	epoch := s.keys.sendEpoch
	s.cond.Broadcast()
	s.mu.Unlock()
	if err != nil {
		s.end(err)
		return
	}
	s.log.Debug("changed keys", "epoch", epoch)
	for _, st := range streams {
		st.sendMu.Lock()
		st.epochDue = true
		st.settleSending()
		st.sendMu.Unlock()
	}
	s.control.say(func(c *control) { c.epochDue = true })
	s.kick()
}

// epochSettled reports whether the peer has acknowledged every record of older
// epochs than the current one. The caller holds mu.
func (s *Session) epochSettled() bool {
	s.control.sealMu.Lock()
	epoch := s.keys.sendEpoch
	settled := s.control.epoch == epoch && s.control.kept.ackedFrom(s.control.epochSeq)
	s.control.sealMu.Unlock()
	if !settled {
		return false
	}
	for _, st := range s.table.streams {
		if !st.epochSettled(epoch) {
			return false
		}
	}
	// A RESET that is still to be said takes its stream out of the update. It
	// was made due before its stream looked settled.
	return !s.control.due.Load()
}

func (s *Stream) epochSettled(epoch uint64) bool {
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	if s.sealing || s.epochDue {
		return false
	}
	return s.kept.ackedFrom(s.epochSeq) && (s.epoch == epoch || s.kept.empty() && (s.finSent || s.reset))
}

// ackedFrom reports whether all records below seq are acknowledged.
func (k *kept) ackedFrom(seq uint64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.acked >= seq
}

// beginEpoch moves the paths' own contexts to the next keys, and returns the
// streams that have to follow. The caller holds mu.
func (s *Session) beginEpoch() ([]*Stream, error) {
	next, err := s.keys.send.Load().Next()
	if err != nil {
		return nil, err
	}
	for _, p := range s.livePaths() {
		if err := p.sealOwnEpoch(next, s.keys.sendEpoch+1); err != nil {
			return nil, err
		}
	}
	s.keys.send.Store(next)
	s.keys.sendEpoch++
	s.keys.wanted.Store(false)
	streams := make([]*Stream, 0, len(s.table.streams))
	for _, st := range s.table.streams {
		streams = append(streams, st)
	}
	return streams, nil
}

// sealOwnEpoch moves the path's own context to the keys of an epoch.
func (p *Path) sealOwnEpoch(keys *record.Keys, epoch uint64) error {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	if p.ended || p.endDue {
		return nil
	}
	c := p.reserve(wire.MaxFrameLen, false)
	b := wire.AppendKeyUpdate(c.Next(wire.MaxFrameLen)[:record.HeaderLen], epoch)
	_, err := p.seal(c, &p.out, wire.AppendTrailer(b, record.HeaderLen), wire.TypeFrames)
	p.out.SetKeys(keys)
	return err
}

// sealEpoch moves s, which the caller has set sealing, to the current keys. A
// stream on which nothing was sent yet needn't say so: ATTACH will.
func (p *Path) sealEpoch(s *Stream) error {
	epoch := s.epoch + 1
	if s.introduced.Load() {
		if err := p.sealTail(s, func(b []byte) []byte { return wire.AppendKeyUpdate(b, epoch) }); err != nil {
			return err
		}
		s.epochSeq = s.sendCtx.Seq()
	}
	s.sendCtx.SetKeys(p.sess.keys.send.Load())
	s.epoch = epoch
	return nil
}

// UpdateKeys moves both directions to new keys (RFC 8446, section 7.2), ours
// at once and the peer's when it gets the request. The session does so by
// itself long before a key has protected too much. It returns once our new
// keys are in use, which may have to wait for the end of an earlier update
// (docs/protocol.md, 3.5). The error is ErrNotTCPLS, the context's, or the
// reason why the session ended.
func (s *Session) UpdateKeys(ctx context.Context) error {
	if s.plain != nil {
		return ErrNotTCPLS
	}
	if err := s.Handshake(ctx); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, s.broadcast)
	defer stop()
	s.mu.Lock()
	from := s.keys.sendEpoch
	s.mu.Unlock()
	s.keys.wanted.Store(true)
	s.control.say(func(c *control) { c.request = s.keys.heard.Load() + 1 })
	s.kick()
	s.updateKeysIfDue()
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.keys.sendEpoch > from:
			return nil
		case s.ended():
			return s.cause()
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		s.wait(&s.cond)
	}
}

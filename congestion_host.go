package tcpls

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-tcpls/tcpls/internal/osnet"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// The end that takes a congestion control. Frames only change ccHosted; all
// that takes time or asks the application or the kernel is the business of one
// goroutine, hostCC, from the first offer to the end of the session.

// ccHosted is the peer's last offer; guarded by the session's mu.
type ccHosted struct {
	most    uint64        // bytes of the largest object that is taken; 0: none. Never changes
	last    uint64        // number of the last offer
	looked  int           // offers that were looked at
	loading time.Duration // that their loading took
	phase   ccPhase
	offer   CCOffer
	object  []byte        // as far as it has come
	changed chan struct{} // of one, for hostCC; nil: it doesn't run
}

const (
	// maxCCOffers is how many offers are looked at in the life of a session, and
	// maxCCLoading how long they may take to load together: the kernel's verifier
	// may take a second for each program.
	maxCCOffers  = 16
	maxCCLoading = 5 * time.Second
	// ccTick is how often a congestion control of the peer is judged.
	ccTick = 100 * time.Millisecond
)

// programSize is what the peer is told (protocol 2.3).
func (c *Config) programSize() uint64 {
	if c.CCHost == nil {
		return 0
	}
	return uint64(min(max(c.CCHost.MaxSize(), 1), wire.MaxProgram))
}

// receiveOfferCC acts on CC_OFFER.
func (s *Session) receiveOfferCC(f *wire.Frame) error {
	p := &f.Program
	s.mu.Lock()
	defer s.mu.Unlock()
	h := &s.hosted
	if p.ID <= h.last {
		return violation(wire.CodeProtocol, "CC_OFFER %d after %d (protocol 5.22)", p.ID, h.last)
	}
	h.last, h.phase, h.object = p.ID, ccOffered, nil
	h.wake() // the one before is withdrawn
	switch {
	case h.most == 0:
		s.refuseCC(CCNotAllowed, "none is taken here")
	case p.Size > h.most:
		s.refuseCC(CCTooLarge, fmt.Sprintf("it has %d bytes; at most %d are taken", p.Size, h.most))
	case h.looked == maxCCOffers:
		s.refuseCC(CCTooMany, fmt.Sprintf("this was not the first of more than %d offers", maxCCOffers))
	case h.loading > maxCCLoading:
		s.refuseCC(CCTooMany, fmt.Sprintf("loading those before took %v", h.loading.Round(time.Millisecond)))
	case s.ended():
	default:
		h.looked++
		h.offer = CCOffer{Name: string(p.Name), MinKernel: [2]int{int(p.Kernel >> 8), int(p.Kernel & 0xff)}, Size: int(p.Size)}
		copy(h.offer.Hash[:], p.Hash)
		if h.changed == nil {
			h.changed = make(chan struct{}, 1)
			s.running++
			go s.hostCC()
		}
		h.wake()
	}
	return nil
}

// receiveDataCC acts on CC_DATA.
func (s *Session) receiveDataCC(f *wire.Frame) error {
	p := &f.Program
	s.mu.Lock()
	defer s.mu.Unlock()
	h := &s.hosted
	switch {
	case p.ID < h.last, p.ID == h.last && h.phase == ccOver: // on its way before that was heard
		return nil
	case p.ID > h.last || h.phase != ccWanted:
		return violation(wire.CodeProtocol, "CC_DATA that wasn't asked for (protocol 12.2)")
	case p.Offset != uint64(len(h.object)):
		return violation(wire.CodeProtocol, "CC_DATA at %d behind %d bytes (protocol 12.2)", p.Offset, len(h.object))
	case len(h.object)+len(p.Data) > h.offer.Size:
		return violation(wire.CodeProtocol, "CC_DATA beyond the %d bytes that were offered (protocol 12.2)", h.offer.Size)
	}
	h.object = append(h.object, p.Data...)
	if len(h.object) == h.offer.Size {
		h.phase = ccComplete
		h.wake()
	}
	return nil
}

// receiveWithdrawCC acts on CC_WITHDRAW.
func (s *Session) receiveWithdrawCC(f *wire.Frame) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := &s.hosted
	switch id := f.Program.ID; {
	case id > h.last:
		return violation(wire.CodeProtocol, "CC_WITHDRAW of offer %d, which was never made (protocol 12.5)", id)
	case id == h.last && h.phase != ccOver:
		h.phase, h.object = ccWithdrawn, nil
		h.wake()
	}
	return nil
}

// wake makes hostCC look up. The caller holds the session's mu.
func (h *ccHosted) wake() {
	select {
	case h.changed <- struct{}{}:
	default: // it is awake, or doesn't run
	}
}

// signalCC makes hostCC look at the session's paths, one of which is new.
func (s *Session) signalCC() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hosted.wake()
}

// refuseCC ends the last offer before it was in use. The caller holds mu.
func (s *Session) refuseCC(code CCCode, reason string) {
	s.hosted.phase, s.hosted.object = ccOver, nil
	s.control.answerCC(answerCC{id: s.hosted.last, state: wire.ProgramRefused, code: wire.ProgramCode(code), reason: reason})
}

// advance takes offer id from one phase to the next, and says so; it reports
// false if the peer has withdrawn it meanwhile.
func (s *Session) advance(id uint64, from, to ccPhase, a answerCC) bool {
	s.mu.Lock()
	h := &s.hosted
	ok := h.last == id && h.phase == from
	if ok {
		h.phase = to
		if to != ccWanted {
			h.object = nil
		}
		a.id = id
		s.control.answerCC(a)
	}
	s.mu.Unlock()
	s.kick()
	return ok
}

// hostCC does what the peer's offers ask for.
func (s *Session) hostCC() {
	ctx := s.Context()
	u := &ccUse{sess: s}
	defer func() {
		u.end()
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.running--; s.running == 0 && s.ended() {
			s.finish()
		}
	}()
	if s.Handshake(ctx) != nil { // before, who offers isn't known
		return
	}
	ticker := time.NewTicker(ccTick)
	defer ticker.Stop()
	for ticks := true; ; {
		if watch := u.program != nil || len(u.left) > 0; watch != ticks {
			if ticks = watch; ticks {
				ticker.Reset(ccTick)
			} else {
				ticker.Stop()
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-s.hosted.changed:
			s.attend(u, time.Time{})
		case at := <-ticker.C:
			s.attend(u, at)
			u.recover(at)
		}
	}
}

// attend does what is due of the last offer; at is zero if it isn't time to
// judge what is in use.
func (s *Session) attend(u *ccUse, at time.Time) {
	s.mu.Lock()
	id, phase, offer := s.hosted.last, s.hosted.phase, s.hosted.offer
	offer.Object = s.hosted.object
	s.mu.Unlock()
	if u.program != nil && (u.id != id || phase != ccLoaded) {
		u.end()
		s.tellSoon(Event{Kind: EventCCEnded})
	}
	switch phase {
	case ccOffered:
		offer.Object = nil
		s.tellSoon(Event{Kind: EventCCOffered})
		s.considerCC(id, offer)
	case ccComplete:
		s.loadCC(u, id, offer)
	case ccLoaded:
		if err := u.tend(at); err != nil {
			u.end()
			s.endCC(id, err)
		}
	case ccWithdrawn:
		s.advance(id, ccWithdrawn, ccOver, answerCC{state: wire.ProgramEnded})
	}
}

// considerCC asks those who have a say whether an offer is worth its bytes.
func (s *Session) considerCC(id uint64, o CCOffer) {
	err := s.allowCC(o)
	if err == nil {
		err = s.cfg.CCHost.Check(o)
	}
	if err == nil {
		s.advance(id, ccOffered, ccWanted, answerCC{state: wire.ProgramWanted})
		return
	}
	s.log.Info("congestion control of the peer refused", "name", o.Name, "error", err)
	s.advance(id, ccOffered, ccOver, refusal(err, CCUnsupported))
}

// allowCC is the application's policy, or the default one.
func (s *Session) allowCC(o CCOffer) error {
	if s.cfg.AcceptCC == nil {
		if len(s.ConnectionState().TLS.VerifiedChains) == 0 {
			return &CCError{Code: CCNotAllowed, Reason: "its origin has no verified certificate"}
		}
		return nil
	}
	err := s.cfg.AcceptCC(s, o)
	if _, coded := errors.AsType[*CCError](err); err != nil && !coded {
		return &CCError{Code: CCNotAllowed, Reason: err.Error()}
	}
	return err
}

// refusal is the answer that tells an error, which has a code or belongs to this
// end alone.
func refusal(err error, code CCCode) answerCC {
	a := answerCC{state: wire.ProgramRefused, code: wire.ProgramCode(code), reason: "it can't be loaded here"}
	if e, ok := errors.AsType[*CCError](err); ok {
		a.code, a.reason = wire.ProgramCode(e.Code), e.Reason
	}
	return a
}

// loadCC loads an object that has come, sets it on all paths and says so.
func (s *Session) loadCC(u *ccUse, id uint64, o CCOffer) {
	if err := u.begin(id, o); err != nil {
		u.end()
		s.log.Info("congestion control of the peer not loaded", "name", o.Name, "error", err)
		s.advance(id, ccComplete, ccOver, refusal(err, CCUnsupported))
		return
	}
	if s.advance(id, ccComplete, ccLoaded, answerCC{state: wire.ProgramLoaded}) {
		s.log.Info("congestion control of the peer in use", "name", o.Name, "as", u.program.Name(), "sha256", fmt.Sprintf("%x", o.Hash))
		s.tellSoon(Event{Kind: EventCCLoaded})
	} // else it was withdrawn meanwhile, and hostCC was told
}

// endCC says why a congestion control isn't in use any more.
func (s *Session) endCC(id uint64, why error) {
	s.log.Warn("congestion control of the peer switched back", "error", why)
	a := refusal(why, CCUnsupported)
	a.state = wire.ProgramEnded
	if s.advance(id, ccLoaded, ccOver, a) {
		s.tellSoon(Event{Kind: EventCCEnded, Err: why})
	}
}

// ccUse is a congestion control on the paths of a session. It belongs to
// hostCC.
type ccUse struct {
	sess    *Session
	id      uint64
	program CCProgram // nil: none
	paths   []ccPath
	left    []ccPath // those that were switched back lately
}

// A ccPath is a path that uses one.
type ccPath struct {
	path   *Path
	before string // the one that it had
	judge  ccJudge
	since  time.Time // when it was first seen after it was switched back
	acked  int64     // by then
}

// begin loads an object and sets it on all paths.
func (u *ccUse) begin(id uint64, o CCOffer) error {
	if sha256.Sum256(o.Object) != o.Hash {
		return &CCError{Code: CCHash, Reason: "its bytes have another SHA-256 than was offered"}
	}
	began := time.Now()
	program, err := u.sess.cfg.CCHost.Load(o)
	u.sess.mu.Lock()
	u.sess.hosted.loading += time.Since(began)
	u.sess.mu.Unlock()
	if err != nil {
		return err
	}
	u.id, u.program = id, program
	return u.spread()
}

// spread sets it on those paths that don't have it yet.
func (u *ccUse) spread() error {
	live := u.sess.livePaths()
	u.paths = slices.DeleteFunc(u.paths, func(p ccPath) bool { return !slices.Contains(live, p.path) })
	for _, p := range live {
		if u.uses(p) {
			continue
		}
		if err := u.set(p); err != nil && u.sess.lives(p.ID()) {
			return err
		}
	}
	return nil
}

// uses reports whether the path has it.
func (u *ccUse) uses(p *Path) bool {
	return slices.ContainsFunc(u.paths, func(has ccPath) bool { return has.path == p })
}

func (u *ccUse) set(p *Path) error {
	if p.raw == nil {
		return &CCError{Code: CCUnsupported, Reason: fmt.Sprintf("path %d isn't a TCP connection of the kernel", p.id)}
	}
	before, err := osnet.Congestion(p.raw)
	if err == nil {
		err = osnet.SetCongestion(p.raw, u.program.Name())
	}
	if err != nil {
		return &CCError{Code: CCUnsupported, Reason: fmt.Sprintf("path %d: %v", p.id, err)}
	}
	u.paths = append(u.paths, ccPath{path: p, before: before})
	p.ccBefore.Store(&before)
	return nil
}

// again sets it on a path where something else has been set meanwhile, as by a
// TCP option of the peer's (protocol 11), and goes back to that in the end.
func (u *ccUse) again(p *ccPath) error {
	has, err := osnet.Congestion(p.path.raw)
	if err != nil || has == u.program.Name() {
		return nil // an error is that of a path that is about to be closed
	}
	p.before, p.judge = has, ccJudge{}
	p.path.ccBefore.Store(&has)
	if err := osnet.SetCongestion(p.path.raw, u.program.Name()); err != nil && u.sess.lives(p.path.ID()) {
		return &CCError{Code: CCUnsupported, Reason: fmt.Sprintf("path %d: %v", p.path.id, err)}
	}
	return nil
}

// tend sets it on new paths, and judges what it does if it is time to.
func (u *ccUse) tend(at time.Time) error {
	if err := u.spread(); err != nil || at.IsZero() {
		return err
	}
	for i := range u.paths {
		p := &u.paths[i]
		if err := u.again(p); err != nil {
			return err
		}
		info, err := osnet.TCPInfo(p.path.raw)
		if err != nil {
			continue // it is about to be closed
		}
		if why := p.judge.look(at, info); why != "" {
			return &CCError{Code: CCStalled, Reason: fmt.Sprintf("path %d: %s", p.path.id, why)}
		}
	}
	return nil
}

// end switches the paths back, and forgets it.
func (u *ccUse) end() {
	if u.program == nil {
		return
	}
	name := u.program.Name()
	for _, p := range u.paths {
		// What somebody else has chosen meanwhile stays; a closed socket has none.
		if has, err := osnet.Congestion(p.path.raw); err != nil || has != name {
			continue
		}
		if err := osnet.SetCongestion(p.path.raw, p.before); err != nil && u.sess.lives(p.path.ID()) {
			u.sess.log.Warn("switching the congestion control back", "path", p.path.id, "to", p.before, "error", err)
		}
	}
	if err := u.program.Close(); err != nil {
		u.sess.log.Warn("unloading the congestion control", "name", name, "error", err)
	}
	u.left = append(u.left, u.paths...)
	u.program, u.paths = nil, nil
}

// errCCStuck: a congestion control can make the kernel put off the next segment
// for hours, which no other one takes back.
var errCCStuck = errors.New("tcpls: nothing is sent any more after a congestion control of the peer")

// recover looks at the paths that were switched back, and gives those up that
// don't send again: what they had goes out on another path.
func (u *ccUse) recover(at time.Time) {
	waiting := u.left[:0]
	for _, p := range u.left {
		info, err := osnet.TCPInfo(p.path.raw)
		switch {
		case err != nil || info.NotSent == 0 || !p.since.IsZero() && info.BytesAcked != p.acked:
			if !u.uses(p.path) {
				p.path.ccBefore.Store(nil)
			}
		case p.since.IsZero():
			p.since, p.acked = at, info.BytesAcked
			waiting = append(waiting, p)
		case at.Sub(p.since) < ccPatience:
			waiting = append(waiting, p)
		default:
			u.sess.giveUp(p.path, &PathError{Path: p.path.ID(), Op: "write", Err: errCCStuck})
		}
	}
	clear(u.left[len(waiting):])
	u.left = waiting
}

// leaveCC readies the socket of a path that has failed to be closed. What it holds
// is sent elsewhere; with a congestion control of the peer the kernel might keep it
// for hours, and the same of the next path.
func (p *Path) leaveCC() {
	if p.ccBefore.Load() != nil {
		p.resetOnClose()
	}
}

// heldByCC reports whether a congestion control of the peer may hold up what the
// path's socket was given.
func (p *Path) heldByCC() bool {
	if p.ccBefore.Load() == nil {
		return false
	}
	info, err := osnet.TCPInfo(p.raw)
	return err == nil && info.NotSent > 0
}

// endCC leaves what a socket that is about to be closed still holds to its own
// congestion control, unless nothing of it has been sent for long.
func (p *Path) endCC() {
	before := p.ccBefore.Load()
	if before == nil {
		return
	}
	_ = osnet.SetCongestion(p.raw, *before) // the socket may be closed already
	if info, err := osnet.TCPInfo(p.raw); err == nil && info.NotSent > 0 && info.SinceSent > ccPatience {
		p.resetOnClose()
	}
}

package tcpls

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/go-tcpls/tcpls/internal/wire"
)

// Congestion controls that travel to where they are used (paper, section 4.2;
// protocol 12). One end offers the other an eBPF object; who takes it loads it
// into its kernel and sets it on all its sockets of the session. What loads
// it is the application's choice, since it isn't the business of a library of
// TLS: package bpfcc has a CCHost for Linux.
//
//	congestion.go        the offering end
//	congestion_words.go  what the control context says of it, in both directions
//	congestion_host.go   the end that takes it, one goroutine a session
//	congestion_judge.go  whether it does harm

// A CCOffer is a congestion control for Linux that one end of a session offers
// to the other.
type CCOffer struct {
	// Name is for people: 1 to 15 of a to z, 0 to 9, '_', '-' and '.'.
	Name string
	// Object is an ELF file with eBPF programs that make up one
	// tcp_congestion_ops, of at most 64 KiB. It is nil where an offer is
	// considered whose object wasn't sent yet.
	Object []byte
	// MinKernel is the oldest Linux that has what it needs, as {6, 10}; zero:
	// any.
	MinKernel [2]int
	// Size and Hash are the object's, Hash by SHA-256. OfferCC finds them out
	// by itself.
	Size int
	Hash [sha256.Size]byte
}

// A CCHost loads congestion controls into the kernel of this machine. Its
// methods may be called from many goroutines at once, and by many sessions. What
// is wrong with an offer they tell by a *CCError, whose Code and Reason go to
// the peer; any other error stays here.
type CCHost interface {
	// MaxSize is the size in bytes of the largest object that it takes, from 1
	// to 64 KiB. It must not change.
	MaxSize() int
	// Check tells why an offer couldn't be loaded whatever its object is like,
	// which hasn't been sent yet; nil if it is worth sending.
	Check(o CCOffer) error
	// Load checks an object, whose size and hash are right, and makes it known
	// to the kernel.
	Load(o CCOffer) (CCProgram, error)
}

// A CCProgram is a congestion control that the kernel knows.
type CCProgram interface {
	// Name is what sockets choose it by (TCP_CONGESTION).
	Name() string
	// Close makes the kernel forget it, once no socket uses it any more.
	Close() error
}

// A CCCode says why a congestion control isn't in use (docs/protocol.md, 12.6).
type CCCode uint64

// The codes.
const (
	// CCNotAllowed: the receiver takes none, or not this one from this peer.
	CCNotAllowed = CCCode(wire.ProgramNotAllowed)
	// CCUnsupported: the receiver's system, or its privileges, don't allow it.
	CCUnsupported = CCCode(wire.ProgramUnsupported)
	// CCTooLarge: the receiver takes smaller ones only.
	CCTooLarge = CCCode(wire.ProgramTooLarge)
	// CCTooMany: too many were offered in the session, or are in use.
	CCTooMany = CCCode(wire.ProgramTooMany)
	// CCHash: the bytes aren't those that were offered.
	CCHash = CCCode(wire.ProgramHash)
	// CCForm: not an ELF object, or one that is more than a congestion control.
	CCForm = CCCode(wire.ProgramForm)
	// CCVerifier: the kernel has refused it.
	CCVerifier = CCCode(wire.ProgramVerifier)
	// CCStalled: it hurt its connections, and was switched back.
	CCStalled = CCCode(wire.ProgramStalled)
)

func (c CCCode) String() string { return wire.ProgramCode(c).String() }

// A CCError tells why a congestion control was refused, or isn't in use any
// more. It matches another one with the same code.
type CCError struct {
	Code CCCode
	// Reason is for people. A remote one is the peer's text, at most 1024 bytes.
	Reason string
	// Remote tells that the peer has found the reason.
	Remote bool
}

func (e *CCError) Error() string {
	if e.Remote {
		return fmt.Sprintf("tcpls: peer doesn't use the congestion control: %v (%q)", e.Code, e.Reason)
	}
	return fmt.Sprintf("tcpls: the peer's congestion control isn't used: %v: %s", e.Code, e.Reason)
}

// Is reports whether target is a CCError with the same code.
func (e *CCError) Is(target error) bool {
	t, ok := target.(*CCError)
	return ok && t.Code == e.Code
}

var (
	// ErrNoCC: the peer takes no congestion control from this end; its
	// Config.CCHost isn't set.
	ErrNoCC = errors.New("tcpls: peer takes no congestion control")
	// ErrCCReplaced: another offer, or WithdrawCC, came before the answer.
	ErrCCReplaced = errors.New("tcpls: the offer of a congestion control was withdrawn before its answer")
)

// ccPhase is how far the last offer has come, on either end.
type ccPhase int

const (
	ccNone ccPhase = iota
	ccOffered
	ccWanted
	ccComplete // all of the object has arrived
	ccLoaded
	ccWithdrawn // and not confirmed
	ccOver
)

// ccOffers is what the offering end knows of its last offer; guarded by the
// session's mu.
type ccOffers struct {
	met   bool   // the peer's parameters are known
	last  uint64 // number of the last offer
	phase ccPhase
	err   error // why it is over
}

// check tells what is wrong with an offer, and completes it.
func (o *CCOffer) check() error {
	switch {
	case !wire.IsProgramName(o.Name):
		return fmt.Errorf("tcpls: CCOffer.Name %q must be 1 to %d of a to z, 0 to 9, '_', '-' and '.'", o.Name, wire.MaxProgramName)
	case len(o.Object) == 0 || len(o.Object) > wire.MaxProgram:
		return fmt.Errorf("tcpls: CCOffer.Object has %d bytes; it must have 1 to %d", len(o.Object), wire.MaxProgram)
	case o.MinKernel[0]|o.MinKernel[1] < 0 || o.MinKernel[0] > 255 || o.MinKernel[1] > 255:
		return fmt.Errorf("tcpls: CCOffer.MinKernel %v is no version of Linux", o.MinKernel)
	}
	o.Object = slices.Clone(o.Object)
	o.Size, o.Hash = len(o.Object), sha256.Sum256(o.Object)
	return nil
}

// OfferCC offers the peer a congestion control for what the peer sends, in the
// place of one that this end has offered before, and returns once the peer uses it. It
// does so until WithdrawCC, another offer, the end of the session, or until it
// finds that it does harm, of which EventCCEnded tells.
//
// Errors: ErrNotTCPLS; ErrNoCC; a *CCError with the peer's reason, or CCTooLarge; what
// is wrong with the offer itself; ErrCCReplaced; the context's, and then the offer is withdrawn; and
// why the session ended.
func (s *Session) OfferCC(ctx context.Context, o CCOffer) error {
	if s.plain != nil {
		return ErrNotTCPLS
	}
	if err := o.check(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, s.broadcast)
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	own := &s.offers
	if err := s.await(ctx, func() bool { return own.met }); err != nil {
		return err
	}
	if most := s.peer.ProgramSize; most == 0 {
		return ErrNoCC
	} else if uint64(o.Size) > most {
		return &CCError{Code: CCTooLarge, Reason: fmt.Sprintf("it has %d bytes, and the peer takes %d", o.Size, most)}
	}
	id := own.last + 1
	own.last, own.phase, own.err = id, ccOffered, nil
	s.cond.Broadcast() // who waits for the answer to another offer
	s.control.say(func(c *control) { c.cc.program = newOutgoingCC(id, &o) })
	s.mu.Unlock()
	s.kick()
	s.mu.Lock()
	err := s.await(ctx, func() bool { return own.last != id || own.phase >= ccLoaded })
	switch {
	case own.last != id || own.phase == ccWithdrawn:
		return ErrCCReplaced
	case own.phase == ccOver:
		return own.err
	case err != nil && own.phase != ccLoaded:
		s.withdraw()
		return err
	}
	return nil
}

// WithdrawCC makes the peer go back to the congestion control that it had
// before this end's last offer, and waits until it has. Without an offer in force it does
// nothing. Errors: ErrNotTCPLS, the context's, and why the session ended.
func (s *Session) WithdrawCC(ctx context.Context) error {
	if s.plain != nil {
		return ErrNotTCPLS
	}
	stop := context.AfterFunc(ctx, s.broadcast)
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.withdraw()
	id := s.offers.last
	if s.offers.phase != ccWithdrawn {
		return nil
	}
	s.mu.Unlock()
	s.kick()
	s.mu.Lock()
	return s.await(ctx, func() bool { return s.offers.last != id || s.offers.phase != ccWithdrawn })
}

// withdraw says CC_WITHDRAW if there is an offer in force. The caller holds mu,
// and kicks the path if it can.
func (s *Session) withdraw() {
	if own := &s.offers; own.phase > ccNone && own.phase < ccWithdrawn {
		own.phase = ccWithdrawn
		s.control.say(func(c *control) { c.cc.program.withdraw() })
		s.cond.Broadcast()
	}
}

// receiveAnswerCC acts on CC_ANSWER.
func (s *Session) receiveAnswerCC(f *wire.Frame) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	own, id, state := &s.offers, f.Program.ID, f.Program.State
	if id > own.last {
		return violation(wire.CodeProtocol, "CC_ANSWER to offer %d, which was never made (protocol 12.5)", id)
	}
	if id < own.last { // it is withdrawn by the one behind it
		return nil
	}
	if own.phase == ccWithdrawn && state < wire.ProgramRefused { // on its way before that was heard
		return nil
	}
	if !own.mayHear(state, s.control.sentCC()) {
		return violation(wire.CodeProtocol, "CC_ANSWER %v out of turn (protocol 12.5)", state)
	}
	switch state {
	case wire.ProgramWanted:
		own.phase = ccWanted
		s.control.say(func(c *control) { c.cc.program.wanted = true })
	case wire.ProgramLoaded:
		own.phase = ccLoaded
	default:
		own.err = &CCError{Code: CCCode(f.Code), Reason: string(f.Reason), Remote: true}
		if own.phase == ccLoaded {
			s.tellSoon(Event{Kind: EventCCEnded, Err: own.err})
		}
		own.phase = ccOver
		s.control.say(func(c *control) { c.cc.program.object = nil })
	}
	s.cond.Broadcast()
	return nil
}

// mayHear reports whether the peer may say that of the last offer; sent tells
// that all of its object is on its way. An end may overtake loaded: both are
// one word of the peer.
func (o *ccOffers) mayHear(state wire.ProgramState, sent bool) bool {
	switch state {
	case wire.ProgramWanted:
		return o.phase == ccOffered
	case wire.ProgramLoaded:
		return o.phase == ccWanted && sent
	case wire.ProgramRefused:
		return o.phase == ccOffered || o.phase == ccWanted || o.phase == ccWithdrawn
	}
	return o.phase == ccLoaded || o.phase == ccWanted && sent || o.phase == ccWithdrawn
}

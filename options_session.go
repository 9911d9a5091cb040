package tcpls

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/go-tcpls/tcpls/internal/wire"
)

// How a TCP option is asked for and answered (protocol 11):
//
//	asker     SetPeerTCPOption waits for one of 16 places, and queues a record of
//	          the control context; it returns with the answer
//	asked     whoever reads the record queues it for a goroutine that lives while
//	          there is work: it asks the policy, which is the application's code,
//	          sets the sockets' options, and has the answer said
//
// All is guarded by the session's mu, and nothing of it held during the policy
// or a system call. One goroutine at a time sets options, so that they are set
// in the order in which they were asked for.

// options are the TCP options that each end has asked for.
type options struct {
	received uint64 // number of the peer's last request
	todo     []wire.OptionRequest
	standing []TCPOption // for paths that join, one of each kind
	joined   []*Path     // that haven't got them yet
	working  bool        // a goroutine carries them out

	asked   uint64 // number of our last request
	waiting []*optionRequest
}

// An optionRequest is one of ours that isn't answered.
type optionRequest struct {
	number   uint64
	option   TCPOption
	first    bool // of Config.PeerTCPOptions: nobody waits for it
	answered bool
	err      error
}

// SetPeerTCPOption asks the peer to set an option on its socket of a path, or of
// all paths of the session, those included that join later, if p is nil. It
// returns what the peer has really set, which may differ. Errors: a
// *TCPOptionError where the peer hasn't set it, or the option can't be sent;
// ErrNotTCPLS; why the session ended; the context's, after which the peer may
// set it all the same. At most 16 such calls of a session wait for the peer,
// others for them.
func (s *Session) SetPeerTCPOption(ctx context.Context, p *Path, o TCPOption) (TCPOption, error) {
	switch {
	case s.plain != nil:
		return o, ErrNotTCPLS
	case p != nil && p.sess != s:
		return o, errors.New("tcpls: the path belongs to another session")
	}
	encoded, err := o.encode()
	if err != nil {
		return o, err
	}
	request := wire.OptionRequest{Path: wire.AllPaths, TCPOption: encoded}
	if p != nil {
		request.Path = p.ID()
	}
	stop := context.AfterFunc(ctx, s.broadcast)
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	a := &s.options
	ready := func() bool { // a path that has just joined may not be known to the peer yet
		return len(a.waiting) < wire.MaxOptions && (p == nil || p.confirmed || p.state == PathClosed)
	}
	if err := s.await(ctx, ready); err != nil {
		return o, err
	}
	r := s.ask(o, false)
	request.Number = r.number
	s.control.say(func(c *control) {
		c.requests = append(c.requests, wire.AppendOptionRequest(nil, &request))
	})
	s.mu.Unlock()
	s.kick()
	s.mu.Lock()
	if err := s.await(ctx, func() bool { return r.answered }); err != nil {
		return o, err
	}
	return r.option, r.err
}

// PeerTCPOptionKinds returns the TCP options that the peer is able to set, if its
// policy agrees. A server learns it with the client's first record.
func (s *Session) PeerTCPOptionKinds() (kinds []TCPOptionKind) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.peer.ParsedTCPKinds() {
		kinds = append(kinds, TCPOptionKind(k))
	}
	return kinds
}

// ask notes a request. The caller holds mu.
func (s *Session) ask(o TCPOption, first bool) *optionRequest {
	a := &s.options
	a.asked++
	r := &optionRequest{number: a.asked, option: o, first: first}
	a.waiting = append(a.waiting, r)
	return r
}

// optionAnswered acts on TCP_OPTION_ANSWER.
func (s *Session) optionAnswered(f *wire.Frame) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := &s.options
	i := slices.IndexFunc(a.waiting, func(r *optionRequest) bool { return r.number == f.Number })
	if i < 0 {
		return violation(wire.CodeProtocol, "TCP_OPTION_ANSWER %d to no request (protocol 11.4)", f.Number)
	}
	r := a.waiting[i]
	if f.Status == wire.OptionSet {
		inForce, err := decodeOption(wire.TCPOption{Kind: uint64(r.option.Kind), Value: f.Value})
		if err != nil {
			return violation(wire.CodeProtocol, "TCP_OPTION_ANSWER with a value that %v can't have (protocol 11.4)", r.option.Kind)
		}
		r.option = inForce
	} else {
		r.err = &TCPOptionError{Option: r.option, Reason: TCPOptionReason(f.Status), Remote: true}
	}
	a.waiting = slices.Delete(a.waiting, i, i+1)
	r.answered = true
	s.cond.Broadcast()
	if r.first {
		s.tellSoon(Event{Kind: EventPeerTCPOption, Option: r.option, Err: r.err})
	}
	return nil
}

// takeOptions acts on the options among the peer's parameters. The caller holds mu.
func (s *Session) takeOptions(p *wire.Parameters) error {
	for i, o := range p.ParsedTCPOptions() {
		if err := s.optionAsked(wire.OptionRequest{Number: uint64(i + 1), Path: wire.AllPaths, TCPOption: o}); err != nil {
			return err
		}
	}
	return nil
}

// optionRecord acts on a record of type TypeOption.
func (s *Session) optionRecord(content []byte) error {
	r, err := wire.ParseOptionRequest(content)
	if err != nil {
		return err
	}
	r.Value = bytes.Clone(r.Value)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.optionAsked(r)
}

// optionAsked queues a request of the peer's. The caller holds mu.
func (s *Session) optionAsked(r wire.OptionRequest) error {
	a := &s.options
	switch {
	case r.Number != a.received+1:
		return violation(wire.CodeProtocol, "TCP option number %d after %d (protocol 11.2)", r.Number, a.received)
	case a.received-s.control.answered.Load() >= wire.MaxOptions:
		return violation(wire.CodeLimit, "more than %d TCP options without an answer (protocol 11.5)", wire.MaxOptions)
	}
	a.received++
	a.todo = append(a.todo, r)
	s.carryOut()
	return nil
}

// carryOut sees to it that somebody sets what is to be set. The caller holds mu.
func (s *Session) carryOut() {
	if !s.options.working {
		s.options.working = true
		go s.setOptions()
	}
}

// inherit gives a path that joins the options of all paths. The caller holds mu.
func (s *Session) inherit(p *Path) {
	a := &s.options
	if len(a.standing) > 0 {
		a.joined = slices.DeleteFunc(a.joined, func(p *Path) bool { return p.state == PathClosed }) // who carries it out may be held up
		a.joined = append(a.joined, p)
		s.carryOut()
	}
}

// setOptions carries out what the peer has asked for, until nothing is left.
func (s *Session) setOptions() {
	for {
		s.mu.Lock()
		a := &s.options
		switch {
		case s.ended() || len(a.joined)+len(a.todo) == 0:
			a.working = false
			s.mu.Unlock()
			return
		case len(a.joined) > 0:
			p, standing := a.joined[0], slices.Clone(a.standing)
			a.joined = a.joined[1:]
			s.mu.Unlock()
			for _, o := range standing {
				if _, err := p.setOption(o); err != nil {
					s.tellOption(p, o, err)
				}
			}
		default:
			r := a.todo[0]
			a.todo = a.todo[1:]
			s.mu.Unlock()
			s.setOption(&r)
		}
	}
}

// setOption carries out one request, and answers it.
func (s *Session) setOption(r *wire.OptionRequest) {
	var path *Path
	o, err := decodeOption(r.TCPOption)
	if err == nil && r.Path != wire.AllPaths {
		live := s.livePaths()
		if i := slices.IndexFunc(live, func(p *Path) bool { return p.ID() == r.Path }); i >= 0 {
			path = live[i]
		} else {
			err = &TCPOptionError{Option: o, Reason: TCPOptionNoPath}
		}
	}
	if err == nil {
		o, err = s.cfg.decide(o)
	}
	switch {
	case err != nil:
	case path != nil:
		o, err = path.setOption(o)
	default:
		o, err = s.setEverywhere(o)
	}
	s.tellOption(path, o, err)
	s.answerOption(r.Number, o, err)
}

// setEverywhere sets an option on all paths, and on those that will join. The
// value in force is the main path's.
func (s *Session) setEverywhere(o TCPOption) (inForce TCPOption, err error) {
	before := s.stand(o)
	inForce = o
	for _, p := range s.livePaths() {
		set, err := p.setOption(o)
		switch {
		case errors.Is(err, errPathOption):
		case err != nil:
			s.standAgain(before)
			return o, err
		case p == s.path():
			inForce = set
		}
	}
	return inForce, nil
}

// stand makes an option hold for paths that join, and returns those that did
// before.
func (s *Session) stand(o TCPOption) (before []TCPOption) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := &s.options
	before, a.standing = a.standing, slices.Clone(a.standing)
	a.standing = append(slices.DeleteFunc(a.standing, func(old TCPOption) bool { return old.Kind == o.Kind }), o)
	return before
}

// standAgain goes back to the options that held before. Only one goroutine sets
// any.
func (s *Session) standAgain(before []TCPOption) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.options.standing = before
}

// errPathOption matches the error of a path that has ended.
var errPathOption = &TCPOptionError{Reason: TCPOptionNoPath}

// setOption sets an option on the path's socket, and returns the value in force.
func (p *Path) setOption(o TCPOption) (inForce TCPOption, err error) {
	if p.raw == nil {
		return o, &TCPOptionError{Option: o, Reason: TCPOptionUnsupported, Err: fmt.Errorf("path %d isn't a socket of the kernel", p.id)}
	}
	inForce, err = o.Kind.optionType().set(p.raw, o)
	switch {
	case err == nil:
		return inForce, nil
	case errors.Is(err, net.ErrClosed):
		return o, &TCPOptionError{Option: o, Reason: TCPOptionNoPath, Err: err}
	case errors.Is(err, errors.ErrUnsupported):
		return o, &TCPOptionError{Option: o, Reason: TCPOptionUnsupported, Err: err}
	}
	return o, &TCPOptionError{Option: o, Reason: TCPOptionFailed, Err: err}
}

// tellOption tells the application what has become of a request of the peer's; a
// nil path stands for all.
func (s *Session) tellOption(p *Path, o TCPOption, err error) {
	switch {
	case err != nil:
		s.log.Info("TCP option of the peer's is not set", "option", o, "error", err)
	case p == nil:
		s.log.Info("TCP option set for the peer", "option", o)
	default:
		s.log.Info("TCP option set for the peer", "option", o, "path", p.id)
	}
	s.tellSoon(Event{Kind: EventTCPOption, Path: p, Option: o, Err: err})
}

// An optionAnswer is what the control context says of a request.
type optionAnswer struct {
	number uint64
	status wire.OptionStatus
	value  []byte
}

// answerOption has the answer said.
func (s *Session) answerOption(number uint64, o TCPOption, err error) {
	answer := optionAnswer{number: number, status: wire.OptionSet}
	var why *TCPOptionError
	if err == nil {
		var encoded wire.TCPOption
		encoded, err = o.encode() // what the kernel has made of it might have no form
		answer.value = encoded.Value
	}
	if errors.As(err, &why) {
		answer.status = wire.OptionStatus(why.Reason)
	}
	s.control.say(func(c *control) { c.answers = append(c.answers, answer) })
	s.kick()
}

// appendAnswers appends frames up to the length limit. The caller holds mu.
func (c *control) appendAnswers(b []byte, limit int) []byte {
	for len(c.answers) > 0 && len(b)+wire.MaxFrameLen <= limit {
		a := c.answers[0]
		b = wire.AppendOptionAnswer(b, a.number, a.status, a.value)
		c.answers = c.answers[1:]
		c.answered.Add(1)
	}
	return b
}

// appendRequest appends one request, as the content of a record of its own.
func (c *control) appendRequest(b []byte) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.requests) > 0 {
		b = append(b, c.requests[0]...)
		c.requests = c.requests[1:]
	}
	return b
}

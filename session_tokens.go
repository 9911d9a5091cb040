package tcpls

import (
	"bytes"
	"context"
	"sync"

	"github.com/go-tcpls/tcpls/internal/wire"
)

// The first tokens travel in the server's EncryptedExtensions, so that a client
// can join as soon as its handshake is complete. The server may then hear of the
// join before it has heard the Finished that makes the session; such a join
// waits for it.

// firstTokens is how many of maxTokens go with the handshake.
const firstTokens = 2

// An invitation stands for a server's session from its handshake on.
type invitation struct {
	tokens  []token
	settled sync.Once
	done    chan struct{} // closed once session is set
	session *Session      // nil: the handshake has failed
}

func newInvitation() *invitation { return &invitation{done: make(chan struct{})} }

// invite mints tokens for a session that may come about.
func (i *invitation) invite() (given []wire.PathToken) {
	for n := range firstTokens {
		t := token{path: uint16(n + 1), bytes: joins.mint()}
		joins.add(t, i)
		i.tokens = append(i.tokens, t)
		given = append(given, wire.PathToken{Path: uint32(t.path), Token: t.bytes})
	}
	return given
}

// settle lets joins go on that wait: to s, or nowhere if it is nil.
func (i *invitation) settle(s *Session) {
	i.settled.Do(func() {
		i.session = s
		close(i.done)
	})
}

// withdraw forgets an invitation whose handshake has failed.
func (i *invitation) withdraw() {
	for _, t := range i.tokens {
		joins.spend(t.bytes)
	}
	i.settle(nil)
}

// wait returns the session, nil if there is none before ctx ends.
func (i *invitation) wait(ctx context.Context) *Session {
	select {
	case <-i.done:
		return i.session
	case <-ctx.Done():
		return nil
	}
}

// invite makes a session joinable by the tokens that its handshake has given, and
// by more of them.
func (s *Session) invite(h *handshake) {
	s.mu.Lock()
	s.tickets.invitation, s.tickets.unused = h.invitation, h.invitation.tokens
	s.tickets.given = uint32(len(s.tickets.unused))
	s.addresses = s.cfg.advertised()
	s.startWatch(s.path())
	s.mu.Unlock()
	if s.cfg.MaxPaths > 1 {
		s.spread.Store(true)
		s.giveTokens()
	}
	if h.greeting == nil {
		h.invitation.settle(s)
	}
}

// takeAnswer keeps what the server's Answer gives for further paths.
func (s *Session) takeAnswer(a *wire.Answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range a.Tokens {
		s.addToken(t.Path, t.Token)
	}
	if n := len(a.Addresses); n > 0 {
		s.addresses = addresses{a.Addresses, a.Addresses[n-1].ID}
		for _, known := range a.Addresses {
			s.tellSoon(Event{Kind: EventAddressAdded, Address: known.AddrPort})
		}
	}
	_ = s.takeOptions(&a.Parameters) // the first ones, and no more than may be: it can't fail
}

// addToken keeps a token that the server has given. The caller holds mu.
func (s *Session) addToken(path uint32, t []byte) {
	s.spread.Store(true)
	s.tickets.seen.add(path)
	s.tickets.unused = append(s.tickets.unused, token{path: uint16(path), bytes: bytes.Clone(t)})
	if !s.tickets.peer {
		s.tickets.peer = true
		s.startWatch(s.path())
	}
	s.cond.Broadcast()
}

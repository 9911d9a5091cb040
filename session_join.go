package tcpls

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/go-tcpls/tcpls/internal/wire"
)

// Joining (protocol 9). The server gives the client tokens inside the
// encryption. A client opens another path by a TLS handshake whose PSK identity
// is a token, so that an observer sees a resumption; the PSK derives from the
// session's own secret, so that a stolen token is worth nothing. Each token is
// good for one path and gives it its number.

const (
	// maxTokens is how many unused tokens a client holds.
	maxTokens = 8
	// mostTokens is how many there can be with those that go with joins.
	mostTokens = 4 * maxTokens
	tokenLen   = 192
	tokenMAC   = 16
)

// A token as both ends know it.
type token struct {
	path  uint16 // the number of the path that it opens
	bytes []byte
	tried bool   // a client's: it may be spent
	next  uint16 // a server's: the path of the token that goes with its join; 0: none yet
}

// psk derives what proves possession of the session.
func (s *Session) tokenSecret(t []byte) ([]byte, error) {
	return s.engine.ExportKeyingMaterial("EXPORTER-tcpls-join", t, s.engine.Suite().HashLen)
}

// joins are the tokens of all servers of this process, so that a session can
// be joined through any of its listeners.
var joins registry

// A registry finds the session that a token belongs to, and knows its own
// tokens from others.
type registry struct {
	mu     sync.Mutex
	tokens map[string]issued
	key    [32]byte // of the MAC in every token
	ready  sync.Once
}

type issued struct {
	to   *invitation
	path uint16
}

// mint returns a new token: random bytes, of which some are a MAC of the others,
// which only this process can see.
func (r *registry) mint() []byte {
	t := make([]byte, tokenLen)
	_, _ = rand.Read(t)
	copy(t[tokenLen-tokenMAC:], r.mac(t))
	return t
}

func (r *registry) mac(t []byte) []byte {
	r.ready.Do(func() { _, _ = rand.Read(r.key[:]) }) // it never fails
	mac := hmac.New(sha256.New, r.key[:])
	mac.Write(t[:tokenLen-tokenMAC])
	return mac.Sum(nil)[:tokenMAC]
}

// isToken reports whether t was made here, spent or not.
func (r *registry) isToken(t []byte) bool {
	return len(t) == tokenLen && hmac.Equal(r.mac(t), t[tokenLen-tokenMAC:])
}

func (r *registry) add(t token, i *invitation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tokens == nil {
		r.tokens = make(map[string]issued)
	}
	r.tokens[string(t.bytes)] = issued{i, t.path}
}

// find returns the session of a token, without spending it.
func (r *registry) find(t []byte) (issued, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i, ok := r.tokens[string(t)]
	return i, ok
}

// next is a token for who joins with t, whose session is known.
func (r *registry) next(t []byte) []wire.PathToken {
	i, ok := r.find(t)
	if !ok { // spent or forgotten meanwhile
		return nil
	}
	return i.to.session.nextToken(i.path)
}

// spend takes a token out, once.
func (r *registry) spend(t []byte) (issued, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i, ok := r.tokens[string(t)]
	delete(r.tokens, string(t))
	return i, ok
}

// tickets are a session's tokens; guarded by its mu.
type tickets struct {
	given      uint32  // by a server, so far
	seen       pathSet // a client's: those of which a token came
	unused     []token // the client's, or those of the server that weren't spent
	peer       bool    // the client's: the server has given some
	invitation *invitation
}

// mint makes n more tokens. The caller holds mu.
func (s *Session) mint(n int) (fresh []token) {
	for range n {
		if s.tickets.given == 1<<16-1 {
			return fresh
		}
		s.tickets.given++
		t := token{path: uint16(s.tickets.given), bytes: joins.mint()}
		s.tickets.unused = append(s.tickets.unused, t)
		joins.add(t, s.tickets.invitation)
		fresh = append(fresh, t)
	}
	return fresh
}

// forgetTokens takes the session's tokens out of the registry. The caller
// holds mu.
func (s *Session) forgetTokens() {
	if i := s.tickets.invitation; i != nil {
		for _, t := range s.tickets.unused {
			joins.spend(t.bytes)
		}
		i.settle(s)
	}
	s.tickets.unused = nil
}

// giveTokens makes up for spent ones. The caller holds no lock.
func (s *Session) giveTokens() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client || s.ended() {
		return
	}
	fresh := s.mint(maxTokens - len(s.tickets.unused))
	s.control.say(func(c *control) { c.tokens = append(c.tokens, fresh...) })
}

// nextToken is the token for a client that joins with the one of the path now,
// and always the same one, until that is spent too. It makes up for that one, which
// the server spends once the client must have got this.
func (s *Session) nextToken(now uint16) []wire.PathToken {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.token(now)
	if !ok {
		return nil
	}
	next, ok := s.token(t.next)
	if !ok && len(s.tickets.unused) < mostTokens {
		if fresh := s.mint(1); len(fresh) > 0 {
			next, ok = fresh[0], true
			s.tickets.unused[s.indexToken(now)].next = next.path
		}
	}
	if !ok {
		return nil
	}
	return []wire.PathToken{{Path: uint32(next.path), Token: next.bytes}}
}

// token is the unused token of a path. The caller holds mu.
func (s *Session) token(path uint16) (t token, ok bool) {
	i := s.indexToken(path)
	if i < 0 {
		return t, false
	}
	return s.tickets.unused[i], true
}

func (s *Session) indexToken(path uint16) int {
	return slices.IndexFunc(s.tickets.unused, func(t token) bool { return t.path == path })
}

// keepNext keeps the token that a join has brought.
func (s *Session) keepNext(tokens []wire.PathToken) {
	if len(tokens) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := tokens[0]; !s.tickets.seen.has(t.Path) && s.tokenFits() {
		s.addToken(t.Path, t.Token)
	}
}

// receiveToken acts on TOKEN.
func (s *Session) receiveToken(f *wire.Frame) error {
	if !s.client {
		return violation(wire.CodeProtocol, "TOKEN from a client")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tickets.seen.has(f.Path) { // it came with a join
		return nil
	}
	if !s.tokenFits() {
		return violation(wire.CodeLimit, "more than %d unused tokens", mostTokens)
	}
	s.addToken(f.Path, f.Token)
	return nil
}

// tokenFits makes room for one more token, instead of one that may be spent. The
// caller holds mu.
func (s *Session) tokenFits() bool {
	k := &s.tickets
	if len(k.unused) < mostTokens {
		return true
	}
	i := slices.IndexFunc(k.unused, func(t token) bool { return t.tried })
	if i < 0 {
		return false
	}
	k.unused = slices.Delete(k.unused, i, i+1)
	return true
}

// A pathSet is a set of paths' numbers, of at most 8 KiB.
type pathSet []uint64

func (set pathSet) has(path uint32) bool {
	return int(path/64) < len(set) && set[path/64]>>(path%64)&1 == 1
}

func (set *pathSet) add(path uint32) {
	for int(path/64) >= len(*set) {
		*set = append(*set, 0)
	}
	(*set)[path/64] |= 1 << (path % 64)
}

// A PathSpec says between which addresses a path is to run. The zero value
// leaves both to the session: the server's address as it was dialed, and the
// local one to the system.
type PathSpec struct {
	// Local is the local address; its port may be 0.
	Local netip.AddrPort
	// Interface names a network interface, instead of Local: the path starts
	// at its address of the server's family. Packets leave by that interface
	// only where the system routes by source address, as Linux does by rules
	// ("ip rule"). Not with Dialer.DialContext.
	Interface string
	// Remote is the server's address.
	Remote netip.AddrPort
	// Backup makes the path a backup, which both ends use only while there is
	// no other one; see Path.SetBackup.
	Backup bool
	// Weight is the path's share, from 1 to 1000; see Path.SetWeight. 0: no wish.
	Weight int
}

// A dialPath opens a TCP connection for a path.
type dialPath func(ctx context.Context, spec PathSpec) (net.Conn, error)

// canJoin reports whether a client can open paths.
func (s *Session) canJoin() bool { return s.client && s.dial != nil && s.tickets.peer }

// joinable reports whether a server's client could open paths.
func (s *Session) joinable() bool { return !s.client && s.tickets.given > 0 }

// AddPath opens one more path to the server and returns it once both ends have
// proved that they belong to the session. It stands by until it is needed, or
// until Migrate or Path.Use makes it the main path. Errors: ErrNotTCPLS; ErrNoToken
// while the server allows no further path; ErrJoinRefused if whoever answers
// isn't our server; those of the dialer; the context's.
func (s *Session) AddPath(ctx context.Context, spec PathSpec) (*Path, error) {
	switch {
	case s.plain != nil:
		return nil, ErrNotTCPLS
	case !s.client:
		return nil, errors.New("tcpls: only a client can add paths")
	case s.dial == nil:
		return nil, errors.New("tcpls: the session came from Client, not from a Dialer: add its paths by JoinPath")
	}
	return s.join(ctx, spec)
}

// join dials and joins.
func (s *Session) join(ctx context.Context, spec PathSpec) (*Path, error) {
	if err := checkWeight(spec.Weight); err != nil {
		return nil, fmt.Errorf("tcpls: PathSpec.Weight: %w", err)
	}
	conn, err := s.dial(ctx, spec)
	if err != nil {
		return nil, err
	}
	return s.joinAs(ctx, conn, spec)
}

// JoinPath is AddPath over a connection that exists, which it owns from then
// on.
func (s *Session) JoinPath(ctx context.Context, conn net.Conn) (*Path, error) {
	return s.joinAs(ctx, conn, PathSpec{})
}

func (s *Session) joinAs(ctx context.Context, conn net.Conn, spec PathSpec) (*Path, error) {
	p, err := s.joinOver(ctx, conn, spec)
	if err != nil {
		_ = conn.Close() // the error of the join matters more
	}
	return p, err
}

func (s *Session) joinOver(ctx context.Context, conn net.Conn, spec PathSpec) (*Path, error) {
	t, err := s.takeToken(ctx)
	if err != nil {
		return nil, err
	}
	h, err := joinHandshake(ctx, conn, s, t)
	if err == nil {
		t.tried = true
		s.keepNext(h.peer.Tokens)
		if s.fewTokens() {
			err = h.awaitRecord(ctx)
		}
	}
	if err != nil {
		s.returnToken(t)
		return nil, fmt.Errorf("tcpls: joining: %w", err)
	}
	p := newPath(s, t.path, conn, h.engine.SendLimit())
	p.watch.rtt = h.roundTrip
	p.rank.own.Store(spec.Backup)
	p.rank.weight.Store(int32(spec.Weight))
	if err := s.addPath(p, h.early); err != nil {
		return nil, err
	}
	if spec.Backup || spec.Weight > 0 {
		p.sayStatus()
	}
	if !spec.Backup && s.spreads() && s.muchShorter(p, s.path()) {
		_ = p.Use() // it may be gone again
	}
	return p, nil
}

// shorterBy is how much shorter a path is, by more than a quarter, that becomes
// the main one of a session that uses several at once: acknowledgements and
// credit go there, for which the peer waits.
const shorterBy = 10 * time.Millisecond

func (s *Session) muchShorter(p, than *Path) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	short, long := p.watch.rtt, than.watch.rtt
	return short > 0 && 4*short < 3*long && long-short > shorterBy
}

// takeToken waits for an unused token. Nobody else gets it.
func (s *Session) takeToken(ctx context.Context) (t token, err error) {
	stop := context.AfterFunc(ctx, s.broadcast)
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.ended():
			return t, s.cause()
		case len(s.tickets.unused) > 0:
			i := max(0, slices.IndexFunc(s.tickets.unused, func(t token) bool { return !t.tried }))
			t = s.tickets.unused[i]
			s.tickets.unused = slices.Delete(s.tickets.unused, i, i+1)
			return t, nil
		case !s.tickets.peer:
			return t, ErrNoToken
		case ctx.Err() != nil:
			return t, fmt.Errorf("%w: %w", ErrNoToken, context.Cause(ctx))
		}
		s.wait(&s.cond)
	}
}

// returnToken keeps a token whose handshake failed: its path's context has
// sealed nothing, and if the server has taken it, it will refuse it, which is
// tried when there is no better one.
func (s *Session) returnToken(t token) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tickets.unused = append(s.tickets.unused, t)
	s.cond.Broadcast()
}

// fewTokens reports whether the client has to take care of its tokens: until it
// has sealed something on a path, the token can be used again. Paths that fail
// as soon as they are there could cost it all of them, since further ones come
// on paths that work.
func (s *Session) fewTokens() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	fresh := 0
	for _, t := range s.tickets.unused {
		if !t.tried {
			fresh++
		}
	}
	return fresh < maxTokens/2
}

// full reports whether the client has as many paths as it may. Those that are
// silent make room for a new one; whether the others are what they seem will be
// known soon. The caller holds mu.
func (s *Session) full() bool {
	used := 0
	for _, p := range s.livePaths() {
		if p.state != PathSuspect {
			used++
		}
	}
	if used < s.cfg.MaxPaths {
		return false
	}
	for _, p := range s.livePaths() {
		s.startWatch(p)
	}
	return true
}

func (s *Session) errFull() error {
	return fmt.Errorf("tcpls: client opens more than %d paths", s.cfg.MaxPaths)
}

// joined makes a path of a connection whose client has proved that it belongs
// to the session of a token.
func joined(conn net.Conn, h *handshake) error {
	i, ok := joins.spend(h.engine.PSKUsed())
	if !ok {
		return ErrTokenSpent
	}
	s := i.to.session // since the look-up has waited for it
	spent := func(t token) bool { return t.path == i.path }
	s.mu.Lock()
	t, _ := s.token(i.path)
	s.tickets.unused = slices.DeleteFunc(s.tickets.unused, spent)
	next, known := s.token(t.next)
	s.control.say(func(c *control) {
		c.tokens = slices.DeleteFunc(c.tokens, spent) // if it came with a join
		if known && h.joining != nil {                // this one may not have, yet
			c.tokens = append(c.tokens, next)
		}
	})
	s.mu.Unlock()
	p := newPath(s, i.path, conn, h.engine.SendLimit())
	if h.roundTrip > 0 { // a join with early data is no round trip yet
		p.watch.rtt = h.roundTrip
	}
	p.joining.Store(h.joining)
	err := s.addPath(p, h.early)
	s.giveTokens() // also for one that was spent on a path too many
	s.kick()
	return err
}

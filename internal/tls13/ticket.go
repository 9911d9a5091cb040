package tls13

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"io"
	"sync"
	"time"
)

// ticketState is what an end keeps for tickets.
type ticketState struct {
	// useful tells, on a server, that the client can use tickets.
	useful bool
	issued uint32
	due    int       // plain data phase: tickets still to be sent
	since  time.Time // see session.since

	received int // plain data phase of a client: tickets in a row
}

const (
	defaultTickets = 2
	// maxKept is how many tickets a client keeps for a server.
	maxKept = 4
)

// The client's side.

// resumes tells whether a client uses tickets at all.
func (c *Conn) resumes() bool {
	return c.isClient && c.tls.ClientSessionCache != nil && !c.tls.SessionTicketsDisabled && c.cacheKey() != ""
}

// cacheKey is crypto/tls's, so that users find one kind of key in their cache.
func (c *Conn) cacheKey() string {
	if c.tls.ServerName != "" {
		return c.tls.ServerName
	}
	if c.cfg.NetConn != nil {
		if addr := c.cfg.NetConn.RemoteAddr(); addr != nil {
			return addr.String()
		}
	}
	return ""
}

// cacheMu makes taking a ticket out of a cache one step, which the interface
// of caches lacks: two connections must not offer the same one.
var cacheMu sync.Mutex

// takeTicket takes the newest session that may be resumed out of the cache, so
// that no ticket is offered twice (RFC 8446, C.4). Those that may not be are
// dropped. Sessions of crypto/tls are left alone.
func (c *Conn) takeTicket() *session {
	now := timeNow(c.tls)
	for range maxKept {
		entry := takeEntry(c.tls.ClientSessionCache, c.cacheKey())
		if entry == nil {
			return nil
		}
		if s, err := parseSession(entry); err == nil && s.suitsClient(c.tls, now) {
			return s
		}
	}
	return nil
}

// ForgetTickets drops what a client's cache has of this server, for a reason of
// the caller's: it isn't the server any more that it was.
func (c *Conn) ForgetTickets() {
	if !c.resumes() {
		return
	}
	cacheMu.Lock()
	defer cacheMu.Unlock()
	putEntries(c.tls.ClientSessionCache, c.cacheKey(), nil)
}

func takeEntry(cache tls.ClientSessionCache, key string) []byte {
	cacheMu.Lock()
	defer cacheMu.Unlock()
	entries := cachedEntries(cache, key)
	if len(entries) == 0 {
		return nil
	}
	putEntries(cache, key, entries[1:])
	return bytes.Clone(entries[0]) // the cache may still hold the other
}

func storeEntry(cache tls.ClientSessionCache, key string, entry []byte) {
	cacheMu.Lock()
	defer cacheMu.Unlock()
	entries := append([][]byte{entry}, cachedEntries(cache, key)...)
	putEntries(cache, key, entries[:min(len(entries), maxKept)])
}

func cachedEntries(cache tls.ClientSessionCache, key string) [][]byte {
	cached, ok := cache.Get(key)
	if !ok || cached == nil {
		return nil
	}
	_, state, err := cached.ResumptionState()
	if err != nil {
		return nil
	}
	return ownEntries(state)
}

func putEntries(cache tls.ClientSessionCache, key string, entries [][]byte) {
	if len(entries) == 0 {
		cache.Put(key, nil)
		return
	}
	state, err := sealable(entries...)
	if err != nil {
		return
	}
	// What crypto/tls takes for the ticket is only there to be non-empty.
	if cached, err := tls.NewResumptionState([]byte(sessionPrefix), state); err == nil {
		cache.Put(key, cached)
	}
}

// ticket takes a NewSessionTicket. What can't be used is dropped, as a client
// may.
func (c *Conn) ticket(m message) error {
	t, err := parseNewSessionTicket(m.body(), c.cfg.Extension)
	if err != nil {
		return err
	}
	lifetime := time.Duration(t.lifetime) * time.Second
	if !c.resumes() || c.pskIdentity != nil || lifetime == 0 || lifetime > maxLifetime || len(t.ticket) > maxIdentity {
		return nil
	}
	now := timeNow(c.tls)
	s := &session{
		isClient: true, suite: c.suite, secret: c.ticketSecret(t.nonce),
		since: now, created: now, lifetime: lifetime, ageAdd: t.ageAdd,
		protocol: c.protocol, serverName: c.serverName, chain: c.peer.chain, chains: c.peer.chains,
		own: c.answer, ticket: t.ticket, sendLimit: c.sendLimit,
	}
	if body, ok := findExtension(t.extensions, extEarlyData); ok {
		s.maxEarly = binary.BigEndian.Uint32(body)
	}
	if entry := s.encode(); len(entry) <= maxClientState {
		storeEntry(c.tls.ClientSessionCache, c.cacheKey(), entry)
	}
	return nil
}

// ticketSecret is the PSK of a ticket (section 4.6.1).
func (c *Conn) ticketSecret(nonce []byte) []byte {
	return c.suite.ExpandLabel(c.resumption, "resumption", nonce, c.suite.HashLen)
}

// The server's side.

// NewTicket makes a server's NewSessionTicket, the content of a Handshake
// record, for a user who took the keys and seals it in context 0. It is nil
// where no ticket is due: the client can't use one, tickets are disabled, the
// client used a PSK of the user's, its certificates would make the ticket too
// long, or it last proved itself by a certificate 7 days ago. An error comes
// from tls.Config's WrapSession, Rand or ticket keys. It is an error before
// the handshake is complete.
func (c *Conn) NewTicket() ([]byte, error) {
	if c.err != nil {
		return nil, c.err
	}
	if !c.complete {
		return nil, errNotComplete
	}
	now := timeNow(c.tls)
	lifetime := min(maxLifetime, c.tickets.since.Add(maxLifetime).Sub(now)).Truncate(time.Second)
	if c.isClient || !c.tickets.useful || lifetime <= 0 {
		return nil, nil
	}
	var random [5]byte // ageAdd and GREASE
	if _, err := io.ReadFull(randReader(c.tls), random[:]); err != nil {
		return nil, because(AlertInternalError, err, "Config.Rand")
	}
	c.tickets.issued++
	m := &newSessionTicket{
		lifetime: uint32(lifetime / time.Second), ageAdd: binary.BigEndian.Uint32(random[:]),
		nonce:      binary.BigEndian.AppendUint32(nil, c.tickets.issued),
		extensions: []extension{{greaseValue(random[4]), nil}},
	}
	s := &session{
		suite: c.suite, secret: c.ticketSecret(m.nonce),
		since: c.tickets.since, created: now, lifetime: lifetime, ageAdd: m.ageAdd,
		protocol: c.protocol, serverName: c.serverName, chain: c.peer.chain, chains: c.peer.chains,
	}
	if c.cfg.MaxEarlyData > 0 && c.cfg.FirstUse != nil {
		s.maxEarly, s.own = c.cfg.MaxEarlyData, c.cfg.EarlyContext
		m.extensions = append(m.extensions, extension{extEarlyData, binary.BigEndian.AppendUint32(nil, s.maxEarly)})
	}
	var err error
	if m.ticket, err = c.sealTicket(s); err != nil || len(m.ticket) == 0 {
		return nil, err
	}
	return encode(m)
}

// sealTicket makes the ticket, sealed by crypto/tls's keys and their rotation,
// or by what the configuration puts in their place.
func (c *Conn) sealTicket(s *session) ([]byte, error) {
	entry := s.encode()
	clear(s.secret)
	if len(entry) > maxTicketState {
		return nil, nil
	}
	defer clear(entry)
	state, err := sealable(entry)
	if err != nil {
		return nil, because(AlertInternalError, err, "this release of crypto/tls has another form of tls.SessionState")
	}
	seal := c.tls.EncryptTicket
	if c.tls.WrapSession != nil {
		seal = c.tls.WrapSession
	}
	ticket, err := seal(c.ConnectionState(), state)
	if err != nil {
		return nil, refusal(AlertInternalError, err, "sealing a session ticket")
	}
	if len(ticket) > maxIdentity {
		return nil, nil
	}
	return ticket, nil
}

// openTicket is the reverse; nil for what isn't a ticket of ours.
func (c *Conn) openTicket(ticket []byte) (*session, error) {
	if len(ticket) > maxIdentity {
		return nil, nil
	}
	open := c.tls.DecryptTicket
	if c.tls.UnwrapSession != nil {
		open = c.tls.UnwrapSession
	}
	state, err := open(ticket, c.ConnectionState())
	if err != nil {
		return nil, refusal(AlertInternalError, err, "UnwrapSession")
	}
	entries := ownEntries(state)
	if len(entries) != 1 {
		return nil, nil
	}
	s, err := parseSession(entries[0])
	if err != nil {
		return nil, nil
	}
	return s, nil
}

// sendTickets sends those that are due, once the plain data phase begins: a
// user who takes the keys sends none by this.
func (c *Conn) sendTickets() error {
	for ; c.tickets.due > 0; c.tickets.due-- {
		raw, err := c.NewTicket()
		if err != nil {
			return err
		}
		c.queue(raw) // nil where none is due after all
	}
	return c.flush() // in records as small as the client wants them
}

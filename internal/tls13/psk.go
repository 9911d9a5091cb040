package tls13

import (
	"crypto/x509"
	"fmt"
	"time"

	"golang.org/x/crypto/cryptobyte"

	"github.com/go-tcpls/tcpls/internal/record"
)

// A PSK is a pre-shared key that the engine's user supplies. On the wire it
// can't be told from a ticket's: its binder is that of a resumption (RFC 8446,
// section 4.2.11.2), and it has an age.
type PSK struct {
	// Identity is what the client names it by: 1 to 16384 bytes, in the clear.
	// On a server it is that of the look-up.
	Identity []byte
	// Secret is the PSK itself, any number of bytes but none. It is copied
	// into the key schedule and not kept.
	Secret []byte
	// Suite is the one that early data is protected with; the handshake may
	// use another of the same hash.
	Suite *record.Suite
	// AgeAdd and Age make the obfuscated_ticket_age that a client sends.
	// Servers don't look at them.
	AgeAdd uint32
	Age    time.Duration
	// MaxEarlyData is how many bytes of early data go with the PSK: more than
	// 0 makes a client offer it, and a server accept it.
	MaxEarlyData uint32
	// ALPN is the protocol that early data speaks, "" for none.
	ALPN string
}

// check examines a PSK of the user's; where it came from is for the error.
func (p *PSK) check(where string) error {
	switch {
	case len(p.Identity) == 0 || len(p.Identity) > maxIdentity:
		return fmt.Errorf("tls13: %s.Identity: %d bytes, not 1 to %d", where, len(p.Identity), maxIdentity)
	case len(p.Secret) == 0:
		return fmt.Errorf("tls13: %s.Secret: empty", where)
	case p.Suite == nil:
		return fmt.Errorf("tls13: %s.Suite: nil", where)
	}
	return nil
}

const (
	// maxIdentity is the longest identity, and so the longest ticket, that is
	// sent or looked at.
	maxIdentity = 16 << 10
	// maxIdentities is how many of a client's identities are looked at, since
	// each costs the server work.
	maxIdentities = 4
)

// A psk is a pre-shared key in a handshake: a session's, or the user's.
type psk struct {
	identity []byte
	suite    *record.Suite
	early    earlySecret
	ageAdd   uint32
	age      time.Duration // the user's; a session's is counted
	maxEarly uint32
	protocol string
	session  *session // nil: the user's
}

func userPSK(p *PSK) *psk {
	return &psk{
		identity: p.Identity, suite: p.Suite, early: newEarlySecret(p.Suite, p.Secret),
		ageAdd: p.AgeAdd, age: p.Age, maxEarly: p.MaxEarlyData, protocol: p.ALPN,
	}
}

// sessionPSK takes over the session's secret.
func sessionPSK(identity []byte, s *session) *psk {
	p := &psk{
		identity: identity, suite: s.suite, early: newEarlySecret(s.suite, s.secret),
		ageAdd: s.ageAdd, maxEarly: s.maxEarly, protocol: s.protocol, session: s,
	}
	clear(s.secret)
	return p
}

// obfuscatedAge is what a client says of the PSK's age, in milliseconds
// modulo 2^32 (section 4.2.11.1).
func (p *psk) obfuscatedAge(now time.Time) uint32 {
	age := p.age
	if p.session != nil {
		age = now.Sub(p.session.created)
	}
	return uint32(age.Milliseconds()) + p.ageAdd
}

// binder proves that the client has the PSK, over the ClientHellos up to the
// binders, whose hash is sum.
func (p *psk) binder(sum []byte) []byte {
	return finishedMAC(p.suite, p.early.binderKey(), sum)
}

// peer is the evidence of whom the PSK authenticates: the peer of the session
// that it is from, which was judged again when the session was picked. The
// user's PSK stands for itself.
func (p *psk) peer() *verifiedPeer {
	chain, chains := new(peerChain), [][]*x509.Certificate(nil)
	if p.session != nil {
		chain, chains = p.session.chain, p.session.chains
	}
	return &verifiedPeer{chain, chains}
}

// A pskIdentity is one that a client offers (RFC 8446, section 4.2.11).
type pskIdentity struct {
	identity []byte
	age      uint32 // milliseconds, obfuscated
}

// offeredPSKs is pre_shared_key in a ClientHello.
type offeredPSKs struct {
	identities []pskIdentity
	binders    [][]byte
}

// minBinderLen is the size of the shortest hash that a binder may be.
const minBinderLen = 32

func parsePSK(p []byte) (*offeredPSKs, bool) {
	s, o := cryptobyte.String(p), new(offeredPSKs)
	var identities, binders cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&identities) || identities.Empty() ||
		!s.ReadUint16LengthPrefixed(&binders) || binders.Empty() || !s.Empty() {
		return nil, false
	}
	for !identities.Empty() {
		var id pskIdentity
		if !readBytes16(&identities, &id.identity) || len(id.identity) == 0 || !identities.ReadUint32(&id.age) {
			return nil, false
		}
		o.identities = append(o.identities, id)
	}
	for !binders.Empty() {
		var binder []byte
		if !readBytes8(&binders, &binder) || len(binder) < minBinderLen {
			return nil, false
		}
		o.binders = append(o.binders, binder)
	}
	return o, true
}

func pskBody(o *offeredPSKs) []byte {
	return buildBody(func(b *cryptobyte.Builder) {
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			for _, id := range o.identities {
				addBytes16(b, id.identity)
				b.AddUint32(id.age)
			}
		})
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			for _, binder := range o.binders {
				addBytes8(b, binder)
			}
		})
	})
}

// bindersLen is how much of the end of a ClientHello the binders are, which
// don't cover themselves (section 4.2.11.2).
func (o *offeredPSKs) bindersLen() int {
	n := 2
	for _, b := range o.binders {
		n += 1 + len(b)
	}
	return n
}

// pskDHE is psk_dhe_ke, the only mode that gives forward secrecy and so the
// only one in use (section 4.2.9).
const pskDHE = 1

func pskModesBody() []byte { return []byte{1, pskDHE} }

func parsePSKModes(p []byte) (modes []byte, ok bool) {
	s := cryptobyte.String(p)
	ok = readBytes8(&s, &modes) && len(modes) > 0 && s.Empty()
	return modes, ok
}

// checkPSK holds the PSK extensions of a ClientHello against the rules that
// don't depend on any PSK.
func (o *offer) checkPSK(extensions []extension) error {
	if o.psk == nil {
		return nil // early_data alone says nothing, and what follows it is skipped
	}
	if extensions[len(extensions)-1].id != extPreSharedKey {
		return broken(AlertIllegalParameter, "client's pre_shared_key is not the last extension")
	}
	if o.pskModes == nil {
		return broken(AlertMissingExtension, "client sends pre_shared_key without psk_key_exchange_modes")
	}
	if len(o.psk.binders) != len(o.psk.identities) {
		return broken(AlertIllegalParameter, "client sends %d PSK identities and %d binders", len(o.psk.identities), len(o.psk.binders))
	}
	return nil
}

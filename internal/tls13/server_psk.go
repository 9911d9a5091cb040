package tls13

import (
	"bytes"
	"crypto/hmac"
	"slices"

	"github.com/go-tcpls/tcpls/internal/record"
)

// choosePSK picks, in the client's order, the first PSK that can be used: one
// of the user's, or a ticket's. The suite may follow it.
func (h *serverHandshake) choosePSK(m message) error {
	offered := h.offer.psk
	if offered == nil || !slices.Contains(h.offer.pskModes, pskDHE) {
		return nil
	}
	for i, id := range offered.identities[:min(len(offered.identities), maxIdentities)] {
		p, err := h.lookup(id.identity)
		if err != nil {
			return err
		}
		if p == nil {
			continue
		}
		suite := h.suiteFor(p)
		if suite == nil {
			continue
		}
		h.suite, h.psk, h.selected = suite, p, i
		h.c.input.earlySkip = max(h.c.input.earlySkip, int(p.maxEarly))
		h.c.resumed = true
		if p.session == nil {
			h.c.pskIdentity = p.identity
		}
		return h.checkBinder(digest(suite, h.covered(m)))
	}
	return nil
}

// confirmPSK sees to it that a client whose PSK was picked offers it again
// after the HelloRetryRequest, with a new binder (RFC 8446, section 4.1.2).
func (h *serverHandshake) confirmPSK(m message) error {
	if h.psk == nil {
		return nil
	}
	if h.offer.psk == nil {
		return broken(AlertMissingExtension, "client's second ClientHello has no pre_shared_key any more")
	}
	h.selected = slices.IndexFunc(h.offer.psk.identities, func(id pskIdentity) bool {
		return bytes.Equal(id.identity, h.psk.identity)
	})
	if h.selected < 0 {
		return broken(AlertIllegalParameter, "client's second ClientHello lacks the PSK of the first")
	}
	sum, err := h.transcript.sumWith(h.covered(m))
	if err != nil {
		return err
	}
	return h.checkBinder(sum)
}

// covered is the part of a ClientHello that its binders cover; pre_shared_key
// was found to be its end.
func (h *serverHandshake) covered(m message) []byte {
	return m.raw[:len(m.raw)-h.offer.psk.bindersLen()]
}

func (h *serverHandshake) checkBinder(sum []byte) error {
	if !hmac.Equal(h.offer.psk.binders[h.selected], h.psk.binder(sum)) {
		return broken(AlertDecryptError, "client's PSK binder is wrong")
	}
	return nil
}

// lookup finds the PSK of an identity, nil if it is nobody's or can't be used.
func (h *serverHandshake) lookup(identity []byte) (*psk, error) {
	c := h.c
	if c.cfg.LookupPSK != nil {
		own, err := c.cfg.LookupPSK(bytes.Clone(identity))
		if err != nil {
			return nil, refusal(AlertHandshakeFailure, err, "client's PSK is refused")
		}
		if own != nil {
			offered := *own
			offered.Identity = bytes.Clone(identity)
			if err := offered.check("PSK"); err != nil {
				return nil, because(AlertInternalError, err, "LookupPSK")
			}
			return userPSK(&offered), nil
		}
	}
	if c.tls.SessionTicketsDisabled {
		return nil, nil
	}
	s, err := c.openTicket(identity)
	if s == nil || err != nil || !s.suitsServer(c.tls, h.offer.serverName, timeNow(c.tls)) {
		return nil, err
	}
	return sessionPSK(identity, s), nil
}

// suiteFor is the suite to use with a PSK: its own if the client still offers
// that, or else the one chosen, if it has the PSK's hash.
func (h *serverHandshake) suiteFor(p *psk) *record.Suite {
	switch {
	case slices.Contains(h.hello.suites, p.suite.ID):
		return p.suite
	case h.suite.HashLen == p.suite.HashLen:
		return h.suite
	}
	return nil
}

// prepareTickets decides whether the client gets tickets, and how many without
// being asked for.
func (h *serverHandshake) prepareTickets() {
	c, t := h.c, &h.c.tickets
	t.useful = !c.tls.SessionTicketsDisabled && c.pskIdentity == nil && slices.Contains(h.offer.pskModes, pskDHE)
	t.since = timeNow(c.tls)
	if h.psk != nil && h.psk.session != nil {
		t.since = h.psk.session.since
	}
	if t.due = c.cfg.TicketCount; t.due == 0 {
		t.due = defaultTickets
	}
}

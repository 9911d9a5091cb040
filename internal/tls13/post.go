package tls13

import "github.com/go-tcpls/tcpls/internal/record"

// maxTickets bounds the post-handshake messages of a session whose keys were
// taken, and where no data is seen that would tell them from a flood.
const maxTickets = 256

// postHandshake takes the content of a Handshake record of the plain data
// phase.
func (c *Conn) postHandshake(content []byte) error {
	if len(content) == 0 {
		return broken(AlertUnexpectedMessage, "peer sends an empty Handshake record")
	}
	c.hand = append(c.hand, content...)
	want, or := typeKeyUpdate, messageType(0)
	if c.isClient {
		or = typeNewSessionTicket
	}
	for len(c.hand) > 0 {
		m, ok, err := c.nextMessage(want, or)
		if err != nil || !ok {
			return err
		}
		if m.typ == typeNewSessionTicket {
			err = c.plainTicket(m)
		} else if err = c.countIdle(); err == nil {
			err = c.keyUpdate(m)
		}
		if err != nil {
			return err
		}
	}
	c.hand = nil // an idle connection keeps no buffer
	return nil
}

// plainTicket counts tickets apart from what says nothing, and both until data
// comes.
func (c *Conn) plainTicket(m message) error {
	if c.tickets.received++; c.tickets.received > maxIdle {
		return broken(AlertUnexpectedMessage, "server sends more than %d tickets in a row", maxIdle)
	}
	return c.ticket(m)
}

// PostHandshake takes the content of a Handshake record that the user of the
// taken keys opened in context 0. Messages may be cut anywhere between calls.
// Only a client's NewSessionTicket is allowed: KeyUpdate is not, since the
// user has its own. An error is final; its alert is Error.Alert, for the user
// to send. It panics unless TakeKeys was called.
func (c *Conn) PostHandshake(content []byte) error {
	if !c.taken {
		panic("tls13: PostHandshake without TakeKeys")
	}
	if c.err != nil {
		return c.err
	}
	if err := c.takenHandshake(content); err != nil {
		return c.abort(err)
	}
	return nil
}

// MidMessage tells whether the last PostHandshake ended within a message: then
// the next record of context 0 must bring more of it (section 5.1).
func (c *Conn) MidMessage() bool { return len(c.hand) > 0 }

func (c *Conn) takenHandshake(content []byte) error {
	switch {
	case len(content) == 0:
		return broken(AlertUnexpectedMessage, "peer sends an empty Handshake record")
	case !c.isClient:
		return broken(AlertUnexpectedMessage, "client sends a message after the handshake")
	}
	c.hand = append(c.hand, content...)
	for len(c.hand) > 0 {
		m, ok, err := c.nextMessage(typeNewSessionTicket, 0)
		if err != nil || !ok {
			return err
		}
		if c.idle++; c.idle > maxTickets {
			return broken(AlertUnexpectedMessage, "server sends more than %d tickets", maxTickets)
		}
		if err := c.ticket(m); err != nil {
			return err
		}
	}
	c.hand = nil
	return nil
}

// keyUpdate moves reading to the next keys (RFC 8446, section 4.6.3). An
// answer is only noted: however often the peer asks before we send again, one
// answer will do.
func (c *Conn) keyUpdate(m message) error {
	update, err := parseKeyUpdate(m.body())
	if err != nil {
		return err
	}
	if _, err := c.align(); err != nil {
		return err
	}
	keys, err := c.read.Keys().Next()
	if err != nil {
		return err
	}
	c.read.Restart(keys)
	c.data.updateDue = c.data.updateDue || update.requested
	return nil
}

// UpdateKeys moves this end's sending to new keys, by a KeyUpdate in Output,
// and can ask the peer to do the same.
func (c *Conn) UpdateKeys(requestPeer bool) error {
	if err := c.usable(); err != nil {
		return err
	}
	if c.data.closeSent {
		return errWriteClosed
	}
	if err := c.updateKeys(requestPeer); err != nil {
		return c.abort(err)
	}
	return nil
}

func (c *Conn) updateKeys(requestPeer bool) error {
	raw, err := encode(&keyUpdate{requested: requestPeer})
	if err != nil {
		return err
	}
	if err := c.appendRecord(record.Handshake, raw); err != nil {
		return err
	}
	keys, err := c.write.Keys().Next()
	if err != nil {
		return err
	}
	c.write.Restart(keys)
	c.data.updateDue = false
	return nil
}

// answerKeyUpdate sends the KeyUpdate that the peer asked for, if it did.
func (c *Conn) answerKeyUpdate() error {
	if !c.data.updateDue || c.data.closeSent {
		return nil
	}
	return c.updateKeys(false)
}

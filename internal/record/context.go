package record

import (
	"encoding/binary"
)

// A Context is one nonce space of a direction: the records that it protects
// are numbered from 0, and the nonce of record seq is the IV with the id
// xor-ed into its first four bytes and seq into its last eight.
type Context struct {
	keys  *Keys
	id    uint32
	seq   uint64
	base  [nonceLen]byte // IV with the id applied
	nonce [nonceLen]byte // scratch; a field, since the AEAD interface makes it escape
}

// NewContext returns the context id under keys, at sequence number 0.
func NewContext(keys *Keys, id uint32) *Context {
	c := new(Context)
	c.Init(keys, id)
	return c
}

// Init makes c the context id under keys, at sequence number 0.
func (c *Context) Init(keys *Keys, id uint32) {
	c.id, c.seq = id, 0
	c.SetKeys(keys)
}

// InitAt makes c the context id under keys, whose next record is number seq:
// for a receiver that was told where a sender goes on.
func (c *Context) InitAt(keys *Keys, id uint32, seq uint64) {
	c.Init(keys, id)
	c.seq = seq
}

// SetKeys moves the context to other keys. The sequence number goes on: the
// numbers of a context never repeat, whatever the epoch.
func (c *Context) SetKeys(keys *Keys) {
	c.keys = keys
	c.base = keys.iv
	binary.BigEndian.PutUint32(c.base[:4], binary.BigEndian.Uint32(c.base[:4])^c.id)
}

// Restart moves the context to other keys and to sequence number 0, as TLS's
// own KeyUpdate asks (RFC 8446, section 5.3).
func (c *Context) Restart(keys *Keys) {
	c.SetKeys(keys)
	c.seq = 0
}

// ID returns the context's id.
func (c *Context) ID() uint32 { return c.id }

// Seq returns the number of the next record.
func (c *Context) Seq() uint64 { return c.seq }

// Keys returns the keys in use.
func (c *Context) Keys() *Keys { return c.keys }

func (c *Context) setNonce() []byte {
	c.nonce = c.base
	tail := c.nonce[4:]
	binary.BigEndian.PutUint64(tail, binary.BigEndian.Uint64(tail)^c.seq)
	return c.nonce[:]
}

// Seal protects a record in place. b holds HeaderLen spare bytes and then at
// most MaxPlaintext bytes of content; room for one byte of type and the tag
// behind it saves an allocation. The returned slice is the whole record.
func (c *Context) Seal(b []byte, t Type) ([]byte, error) {
	return c.SealTo(b, b[HeaderLen:], t)
}

// SealTo is Seal for content that lies elsewhere: it writes the record to the
// front of dst, of whose memory Overhead bytes more than the content are used.
// The byte behind the content, if there is room, is overwritten.
func (c *Context) SealTo(dst, content []byte, t Type) ([]byte, error) {
	if len(content) > MaxPlaintext {
		return nil, ErrPlaintext
	}
	if c.keys.sealed.Add(1) > c.keys.suite.MaxRecords {
		return nil, ErrKeyLimit
	}
	content = append(content, byte(t))
	head := dst[:HeaderLen]
	putHeader(head, len(content)+TagLen)
	body := c.keys.aead.Seal(dst[HeaderLen:HeaderLen], c.setNonce(), content, head)
	c.seq++
	if n := HeaderLen + len(body); n <= cap(dst) {
		return dst[:n], nil
	}
	return append(head[:HeaderLen:HeaderLen], body...), nil // Seal had to allocate
}

// Open authenticates the record rec, header included, and writes its content
// to dst, which must not overlap rec. In a dst with room for the plaintext,
// len(rec)-HeaderLen-TagLen bytes, nothing is written beyond those; a smaller
// one is replaced. What is returned is the content, without padding and type.
//
// ErrAuth leaves rec and the sequence number as they were, so that another
// context may try; dst then holds zeros or what it held.
func (c *Context) Open(dst, rec []byte) ([]byte, Type, error) {
	body := rec[HeaderLen:]
	switch {
	case len(body) > MaxCiphertext:
		return nil, 0, ErrOverflow
	case len(body) < TagLen:
		return nil, 0, ErrShort
	}
	plain, err := c.keys.aead.Open(dst[:0], c.setNonce(), body, rec[:HeaderLen])
	if err != nil {
		return nil, 0, ErrAuth
	}
	c.seq++
	if len(plain) > MaxPlaintext+1 {
		return nil, 0, ErrOverflow
	}
	end := len(plain)
	for end > 0 && plain[end-1] == 0 {
		end--
	}
	if end == 0 {
		return nil, 0, ErrNoType
	}
	return plain[:end-1], Type(plain[end-1]), nil
}

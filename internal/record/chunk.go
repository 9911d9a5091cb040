package record

import (
	"sync"
	"sync/atomic"
)

// A Chunk is pooled memory in which records are sealed one behind the other,
// written to a connection from, and kept in until they are acknowledged. Each
// of these uses holds a reference; the last Release returns it to the pool.
//
// The bytes up to Len never change while the chunk lives, so that they may be
// read (written to a socket) while more records are appended behind them.
type Chunk struct {
	refs    atomic.Int32
	n       int
	buf     []byte
	class   *sync.Pool
	account *atomic.Int64 // see Charge
}

// A large chunk holds a batch of full records: sixteen of them in one write
// halve what TLS costs, and more than that outgrows the caches.
const (
	BatchRecords = 16
	LargeChunk   = BatchRecords * (MaxPlaintext + Overhead)
	smallChunk   = 4 << 10
)

var (
	smallChunks = sync.Pool{New: func() any { return &Chunk{buf: make([]byte, smallChunk)} }}
	largeChunks = sync.Pool{New: func() any { return &Chunk{buf: make([]byte, LargeChunk)} }}
)

// NewChunk returns an empty chunk with one reference and room for a record of
// want bytes, Overhead included. It is a large one if more is expected.
func NewChunk(want int, more bool) *Chunk {
	pool := &smallChunks
	if more || want > smallChunk {
		pool = &largeChunks
	}
	c := warm.take(pool)
	if c == nil {
		c = pool.Get().(*Chunk)
	}
	c.class, c.n = pool, 0
	c.refs.Store(1)
	return c
}

// Charge adds the chunk's whole size to account until the last Release: one
// record that is kept holds all of the chunk's memory. It may be called once,
// before the chunk is shared.
func (c *Chunk) Charge(account *atomic.Int64) {
	c.account = account
	account.Add(int64(len(c.buf)))
}

// Len is how many bytes of records the chunk holds.
func (c *Chunk) Len() int { return c.n }

// Room is how many more bytes fit.
func (c *Chunk) Room() int { return len(c.buf) - c.n }

// Bytes returns the records from offset from on.
func (c *Chunk) Bytes(from int) []byte { return c.buf[from:c.n] }

// Next returns the buffer for a record with n bytes of content, to be filled
// and given to Context.Seal. Nothing is taken until Commit.
func (c *Chunk) Next(n int) []byte {
	return c.buf[c.n : c.n+HeaderLen+n : c.n+n+Overhead]
}

// Commit takes the sealed record rec, made from Next's buffer, into the chunk
// and returns its offset. It panics if rec lies elsewhere, since what would be
// sent is whatever the pooled memory holds.
func (c *Chunk) Commit(rec []byte) (offset int) {
	offset = c.n
	if len(rec) == 0 || len(rec) > c.Room() || &rec[0] != &c.buf[offset] {
		panic("record: commit of a record that was not sealed in the chunk")
	}
	c.n += len(rec)
	return offset
}

// Record returns the n bytes at an offset that Commit returned.
func (c *Chunk) Record(offset, n int) []byte { return c.buf[offset : offset+n] }

// Retain adds a reference. The caller holds one, or somebody for it.
func (c *Chunk) Retain() {
	if c.refs.Add(1) <= 1 {
		panic("record: chunk retained after its release")
	}
}

// Shared reports whether others than the caller hold a reference.
func (c *Chunk) Shared() bool { return c.refs.Load() > 1 }

// Release drops a reference; after the last one the chunk is used again.
func (c *Chunk) Release() {
	switch n := c.refs.Add(-1); {
	case n == 0:
		if c.account != nil {
			c.account.Add(-int64(len(c.buf)))
			c.account = nil
		}
		if !warm.keep(c) {
			c.class.Put(c)
		}
	case n < 0:
		panic("record: chunk released twice")
	}
}

// warm keeps the large chunks that were released last, the latest on top, so
// that what is still in a cache is used first: a sync.Pool hands the oldest
// ones to another processor. It holds at most 1 MiB for the whole process.
var warm stack

type stack struct {
	mu     sync.Mutex
	chunks [4]*Chunk
	n      int
}

func (s *stack) take(pool *sync.Pool) *Chunk {
	if pool != &largeChunks {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n == 0 {
		return nil
	}
	s.n--
	return s.chunks[s.n]
}

// keep reports whether there was room for c.
func (s *stack) keep(c *Chunk) bool {
	if c.class != &largeChunks {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n == len(s.chunks) {
		return false
	}
	s.chunks[s.n] = c
	s.n++
	return true
}

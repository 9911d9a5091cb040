package tcpls

import (
	"sync"

	"github.com/go-tcpls/tcpls/internal/record"
)

// Pooled memory for received bytes. It is held only while bytes are there: an
// idle path or stream has none of it.
//
// A block must take the whole inner plaintext of a record while it is opened:
// content, type and padding.
const (
	smallBlock  = 4 << 10
	recordBlock = 20 << 10 // one full record
	largeBlock  = 8*record.MaxPlaintext + 1
	// A read buffer takes several records by one system call, and stays in the
	// cache with what they are opened into; behind it is scratch room to open a
	// record of a path's own context.
	maxRecord  = record.HeaderLen + record.MaxCiphertext
	readBuffer = 4*(record.MaxPlaintext+record.Overhead) + maxRecord
	scratchLen = maxRecord
)

// A bufPool hands out buffers of one size, as pointers so that putting them
// back allocates nothing.
type bufPool struct {
	size int
	pool sync.Pool
}

func (b *bufPool) get() *[]byte {
	if v := b.pool.Get(); v != nil {
		return v.(*[]byte)
	}
	buf := make([]byte, b.size)
	return &buf
}

func (b *bufPool) put(buf *[]byte) { b.pool.Put(buf) }

var (
	smallBlocks  = &bufPool{size: smallBlock}
	recordBlocks = &bufPool{size: recordBlock}
	largeBlocks  = &bufPool{size: largeBlock}
	readBuffers  = &bufPool{size: readBuffer + scratchLen}
	batches      = &bufPool{size: maxBatch}
	smallReads   = &bufPool{size: maxRecord + scratchLen}
)

// A block is a piece of a stream's receive buffer: bytes [r:w) of buf are
// unread. Only the goroutine that reads the path writes behind w, and only the
// one that reads the stream reads before it.
type block struct {
	next *block
	r, w int
	buf  *[]byte
	from *bufPool
}

var blocks = sync.Pool{New: func() any { return new(block) }}

// newBlock returns a block that can take n bytes; more tells that others are
// likely to follow.
func newBlock(n int, more bool) *block {
	from := largeBlocks
	switch {
	case n <= smallBlock && !more:
		from = smallBlocks
	case n <= recordBlock && !more:
		from = recordBlocks
	}
	b := blocks.Get().(*block)
	*b = block{buf: from.get(), from: from}
	return b
}

func (b *block) free() []byte   { return (*b.buf)[b.w:] }
func (b *block) unread() []byte { return (*b.buf)[b.r:b.w] }

func (b *block) release() {
	b.from.put(b.buf)
	*b = block{}
	blocks.Put(b)
}

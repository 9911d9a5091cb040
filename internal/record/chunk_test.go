package record

import (
	"bytes"
	"crypto/tls"
	"sync"
	"sync/atomic"
	"testing"
)

func TestChunkSizes(t *testing.T) {
	for _, v := range []struct {
		want, room int
		more       bool
	}{
		{1, smallChunk, false},
		{smallChunk, smallChunk, false},
		{smallChunk + 1, LargeChunk, false},
		{1, LargeChunk, true},
		{MaxPlaintext + Overhead, LargeChunk, false},
	} {
		c := NewChunk(v.want, v.more)
		if c.Room() != v.room || c.Len() != 0 || c.Shared() {
			t.Errorf("NewChunk(%d, %v): %d bytes, room for %d, shared %v", v.want, v.more, c.Len(), c.Room(), c.Shared())
		}
		c.Release()
	}
}

// TestChunkRecords fills a chunk to the last byte.
func TestChunkRecords(t *testing.T) {
	send, receive := newPair(t, SuiteByID(tls.TLS_AES_128_GCM_SHA256), 1)
	c := NewChunk(LargeChunk, true)
	defer c.Release()
	for i := range BatchRecords {
		n := MaxPlaintext
		b := c.Next(n)
		if len(b) != HeaderLen+n || cap(b) != n+Overhead {
			t.Fatalf("Next(%d) has %d bytes and room for %d", n, len(b), cap(b))
		}
		before := c.Len()
		clear(b)
		b[HeaderLen] = byte(i)
		rec, err := send.Seal(b, ApplicationData)
		if err != nil {
			t.Fatal(err)
		}
		if c.Len() != before {
			t.Fatal("a record was taken before Commit")
		}
		if offset := c.Commit(rec); offset != before || c.Len() != before+len(rec) || c.Room() != LargeChunk-c.Len() {
			t.Fatalf("Commit at %d: offset %d, then %d bytes, room for %d", before, offset, c.Len(), c.Room())
		}
		if got := c.Bytes(before); !bytes.Equal(got, rec) {
			t.Fatal("Bytes are not the record")
		}
		got, _, err := receive.Open(make([]byte, len(rec)), c.Record(before, len(rec)))
		if err != nil || len(got) != n || got[0] != byte(i) {
			t.Fatalf("record %d: %v", i, err)
		}
	}
	if c.Room() != 0 {
		t.Errorf("room for %d bytes behind %d full records", c.Room(), BatchRecords)
	}
	wantPanic(t, "Next without room", func() { c.Next(0) })
}

// TestCommitForeign: committing what was not sealed here would send whatever
// the pooled memory holds.
func TestCommitForeign(t *testing.T) {
	c := NewChunk(100, false)
	defer c.Release()
	send, _ := newPair(t, SuiteByID(tls.TLS_AES_128_GCM_SHA256), 1)
	b := c.Next(2)
	rec, err := send.Seal(append(b, "more than was asked for"...), ApplicationData)
	if err != nil {
		t.Fatal(err)
	}
	wantPanic(t, "Commit of a record made elsewhere", func() { c.Commit(rec) })
	wantPanic(t, "Commit of nothing", func() { c.Commit(nil) })
	rec, err = send.Seal(c.Next(2), ApplicationData)
	if err != nil {
		t.Fatal(err)
	}
	c.Commit(rec)
	wantPanic(t, "Commit twice", func() { c.Commit(rec) })
}

func TestChunkReferences(t *testing.T) {
	c := NewChunk(1, false)
	c.Retain()
	if !c.Shared() {
		t.Error("a chunk with two references is not shared")
	}
	c.Release()
	if c.Shared() {
		t.Error("a chunk with one reference is shared")
	}
	c.Release()
	wantPanic(t, "Release twice", c.Release)

	c = &Chunk{class: &sync.Pool{}}
	c.refs.Store(1)
	c.Release()
	wantPanic(t, "Retain after Release", c.Retain)
}

// TestChunkReader writes a chunk's bytes out while more records are sealed
// behind them, as a path does; the race detector judges.
func TestChunkReader(t *testing.T) {
	send, receive := newPair(t, SuiteByID(tls.TLS_CHACHA20_POLY1305_SHA256), 1)
	c := NewChunk(1, true)
	written := make(chan []byte, 100)
	done := make(chan error, 1)
	go func() {
		defer c.Release()
		var first error
		for b := range written {
			_, _, err := receive.Open(make([]byte, len(b)), b)
			if first == nil {
				first = err
			}
		}
		done <- first
	}()
	c.Retain()
	for i := range cap(written) {
		from := c.Len()
		b := c.Next(i)
		rec, err := send.SealTo(b, make([]byte, i, i+1), ApplicationData)
		if err != nil {
			t.Fatal(err)
		}
		c.Commit(rec)
		written <- c.Bytes(from)
	}
	close(written)
	c.Release()
	if err := <-done; err != nil {
		t.Errorf("a record changed while it was written: %v", err)
	}
}

func TestChunkAllocations(t *testing.T) {
	send, _ := newPair(t, SuiteByID(tls.TLS_AES_128_GCM_SHA256), 1)
	c := NewChunk(1, true)
	defer c.Release()
	n := testing.AllocsPerRun(100, func() {
		c.n = 0
		rec, err := send.Seal(c.Next(1000), ApplicationData)
		if err != nil {
			t.Fatal(err)
		}
		c.Commit(rec)
		c.Retain()
		c.Release()
	})
	if n != 0 {
		t.Errorf("%v allocations to fill a chunk", n)
	}
}

// TestChunkCharge: an account holds a chunk's size from Charge to the last
// Release, and never that of its next use.
func TestChunkCharge(t *testing.T) {
	var account atomic.Int64
	want := func(why string, n int64) {
		t.Helper()
		if got := account.Load(); got != n {
			t.Errorf("%s: the account holds %d bytes, want %d", why, got, n)
		}
	}
	c := NewChunk(1, true)
	c.Charge(&account)
	c.Retain()
	want("a charged chunk", LargeChunk)
	c.Release()
	want("a chunk still kept", LargeChunk)
	c.Release()
	want("a released chunk", 0)
	NewChunk(1, true).Release() // likely the same memory
	want("a chunk that wasn't charged", 0)
}

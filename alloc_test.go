package tcpls

import (
	"context"
	"io"
	"runtime"
	"testing"
)

// A steady bulk transfer allocates nothing for a record, on either side: what
// little there is doesn't grow with the bytes.
func TestNoAllocationPerRecord(t *testing.T) {
	client, server := newTestConfigs()
	c, s := newTCPPair(t, client, server)
	out, err := c.OpenStream(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	const total, size = 64 << 20, 256 << 10
	buf, in := make([]byte, size), make([]byte, size)
	transfer := func(accept func() *Stream) (mallocs uint64) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		done := make(chan error, 1)
		go func() {
			st := accept()
			var err error
			for left := total; left > 0 && err == nil; {
				var n int
				n, err = st.Read(in)
				left -= n
			}
			done <- err
		}()
		for range total / size {
			if _, err := out.Write(buf); err != nil {
				t.Fatal(err)
			}
		}
		if err := <-done; err != nil && err != io.EOF {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		return after.Mallocs - before.Mallocs
	}
	var st *Stream
	transfer(func() *Stream {
		st, err = s.AcceptStream(context.Background())
		if err != nil {
			t.Error(err)
		}
		return st
	})
	mallocs := transfer(func() *Stream { return st })
	if records := total / (16 << 10); mallocs > uint64(records)/2 {
		t.Errorf("%d allocations for %d records and both ends", mallocs, records)
	} else {
		t.Logf("%d allocations for %d records and both ends", mallocs, records)
	}
}

package tcpls

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
)

func TestStreamIDs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMemPair(t, memnet.Link{}, nil)
		for i := range uint32(3) {
			if c, _ := openStream(t, p.client, p.server); c.ID() != 2*i+1 {
				t.Errorf("stream %d of the client has id %d, want %d", i, c.ID(), 2*i+1)
			}
			if s, _ := openStream(t, p.server, p.client); s.ID() != 2*i+2 {
				t.Errorf("stream %d of the server has id %d, want %d", i, s.ID(), 2*i+2)
			}
		}
	})
}

// A stream with a higher id opens the ones below, on which nothing was sent.
func TestStreamOpensLower(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMemPair(t, memnet.Link{}, nil)
		silent, err := p.client.OpenStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		c, err := p.client.OpenStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		mustWrite(t, c, []byte("second"))
		for _, want := range []*Stream{silent, c} {
			s, err := p.server.AcceptStream(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if s.ID() != want.ID() {
				t.Errorf("accepted stream %d, want %d: streams come in the order of their ids", s.ID(), want.ID())
			}
			mustWrite(t, s, []byte("answer"))
			wantRead(t, "the answer of the server", want, []byte("answer"))
		}
	})
}

func TestHalfClose(t *testing.T) {
	for _, name := range []string{"client", "server"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newMemPair(t, memnet.Link{}, nil)
				a, b := p.open(t)
				if name == "server" {
					a, b = b, a
				}
				data := testBytes(1, 100_000)
				mustWrite(t, a, data)
				if err := a.CloseWrite(); err != nil {
					t.Fatalf("CloseWrite: %v", err)
				}
				_, err := a.Write([]byte("more"))
				wantErrorIs(t, "Write after CloseWrite", err, ErrStreamClosed)
				wantErrorIs(t, "a second CloseWrite", a.CloseWrite(), ErrStreamClosed)
				wantRead(t, "what was written before CloseWrite", b, data)
				wantEOF(t, "the end after CloseWrite", b)
				wantEOF(t, "the end, once more", b)
				mustWrite(t, b, data)
				wantRead(t, "the direction that is still open", a, data)
				if err := b.CloseWrite(); err != nil {
					t.Fatalf("CloseWrite of the other end: %v", err)
				}
				wantEOF(t, "the end of the other direction", a)
				time.Sleep(time.Second)
				if n := p.client.Stats().Streams + p.server.Stats().Streams; n != 0 {
					t.Errorf("%d ends of streams are left after both directions have ended", n)
				}
			})
		})
	}
}

func TestReset(t *testing.T) {
	const code = 1<<62 - 1 // the largest
	for _, test := range []struct {
		name  string
		start func(t *testing.T, p *memPair) (a, b *Stream)
	}{
		{"by the opener", func(t *testing.T, p *memPair) (a, b *Stream) { return p.open(t) }},
		{"by the accepter", func(t *testing.T, p *memPair) (a, b *Stream) {
			b, a = p.open(t)
			return a, b
		}},
		{"before anything was sent", func(t *testing.T, p *memPair) (a, b *Stream) {
			a, err := p.client.OpenStream(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return a, nil
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newMemPair(t, memnet.Link{}, nil)
				a, b := test.start(t, p)
				if b != nil {
					mustWrite(t, a, []byte("unread"))
				}
				if err := a.Reset(code); err != nil {
					t.Fatalf("Reset: %v", err)
				}
				_, err := a.Write([]byte("more"))
				wantStreamError(t, "Write after Reset", err, code, false)
				wantErrorIs(t, "a second Reset", a.Reset(1), ErrStreamClosed)
				wantStreamError(t, "Flush after Reset", a.Flush(t.Context()), code, false)
				if b == nil {
					if b, err = p.server.AcceptStream(t.Context()); err != nil {
						t.Fatalf("the peer of a stream that was reset at once: %v", err)
					}
				}
				synctest.Wait()
				_, err = b.Read(make([]byte, 10))
				wantStreamError(t, "Read after the peer's Reset", err, code, true)
				mustWrite(t, b, []byte("back"))
				wantRead(t, "the other direction", a, []byte("back"))
				if err := b.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
				wantEOF(t, "the end of the other direction", a)
				time.Sleep(time.Second)
				if n := p.client.Stats().Streams + p.server.Stats().Streams; n != 0 {
					t.Errorf("%d ends of streams are left", n)
				}
			})
		})
	}
}

func TestStopSending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMemPair(t, memnet.Link{}, nil)
		c, s := p.open(t)
		// The writer waits for credit when the peer stops it.
		write := begun(func() error {
			_, err := c.Write(make([]byte, 3<<20))
			return err
		})
		synctest.Wait()
		wantBlocked(t, "a Write of more than the window", write)
		if err := s.StopSending(77); err != nil {
			t.Fatalf("StopSending: %v", err)
		}
		wantStreamError(t, "the Write that the peer stopped", <-write, 77, true)
		_, err := c.Write([]byte("more"))
		wantStreamError(t, "Write after the peer's StopSending", err, 77, true)
		wantStreamError(t, "CloseWrite after the peer's StopSending", c.CloseWrite(), 77, true)
		_, err = s.Read(make([]byte, 1))
		wantErrorIs(t, "Read after StopSending", err, ErrStreamClosed)
		wantErrorIs(t, "a second StopSending", s.StopSending(1), ErrStreamClosed)
		mustWrite(t, s, []byte("back"))
		wantRead(t, "the other direction", c, []byte("back"))
		wantErrorIs(t, "too large a code", c.StopSending(1<<62), errCode)
		wantErrorIs(t, "too large a code", c.Reset(1<<62), errCode)
	})
}

// Before anything else was said on a stream, its opener can stop the peer.
func TestStopSendingFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMemPair(t, memnet.Link{}, nil)
		c, err := p.client.OpenStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := c.CloseRead(); err != nil {
			t.Fatalf("CloseRead: %v", err)
		}
		s, err := p.server.AcceptStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		_, err = s.Write([]byte("back"))
		wantStreamError(t, "Write to a peer that doesn't read", err, StreamCodeClosed, true)
	})
}

// wantConsumed checks that every byte that came was given back to the session's
// window, once.
func wantConsumed(t testing.TB, s *Session, n uint64) {
	t.Helper()
	s.winMu.Lock()
	defer s.winMu.Unlock()
	if w := &s.win; w.consumed != n || w.received != n {
		t.Errorf("%d bytes received and %d given back to the window, want %d of both", w.received, w.consumed, n)
	}
}

// Close with unread data tells the peer that nobody will read the rest, and
// still delivers what was written.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMemPair(t, memnet.Link{Delay: 10 * time.Millisecond}, nil)
		c, s := p.open(t)
		data := testBytes(2, 500_000)
		mustWrite(t, s, []byte("never read"))
		time.Sleep(time.Second)
		mustWrite(t, c, data)
		if err := c.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
		wantErrorIs(t, "a second Close", c.Close(), ErrStreamClosed)
		wantErrorIs(t, "a second Close", c.Close(), net.ErrClosed)
		wantRead(t, "what was written before Close", s, data)
		wantEOF(t, "the end after Close", s)
		time.Sleep(time.Second)
		_, err := s.Write([]byte("more"))
		wantStreamError(t, "Write to a stream that the peer closed", err, StreamCodeClosed, true)
		_ = s.Close() // its own direction was ended by the peer
		time.Sleep(time.Second)
		if n := p.client.Stats().Streams + p.server.Stats().Streams; n != 0 {
			t.Errorf("%d ends of streams are left", n)
		}
		// The bytes that nobody read were given back to the session's window.
		wantConsumed(t, p.client, 10)
	})
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMemPair(t, memnet.Link{}, nil)
		c, s := p.open(t)
		began := time.Now()
		if err := c.SetDeadline(began.Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		_, err := c.Read(make([]byte, 1))
		wantErrorIs(t, "Read at its deadline", err, os.ErrDeadlineExceeded)
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("%v isn't a timeout for package net", err)
		}
		if took := time.Since(began); took != time.Second {
			t.Errorf("Read waited %v for a deadline of 1s", took)
		}
		_, err = c.Write([]byte("x"))
		wantErrorIs(t, "Write after its deadline", err, os.ErrDeadlineExceeded)

		// What a Write has taken by its deadline is delivered, and a later one
		// goes on there.
		data := testBytes(3, 3<<20)
		if err := c.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Write(data)
		wantErrorIs(t, "a Write longer than the window", err, os.ErrDeadlineExceeded)
		if n == 0 || n >= len(data) {
			t.Fatalf("Write took %d bytes with a window of 1 MiB", n)
		}
		read := start(func() []byte {
			got := make([]byte, len(data))
			n, _ := io.ReadFull(s, got) // the comparison shows what is missing
			return got[:n]
		})
		if err := c.SetWriteDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		mustWrite(t, c, data[n:])
		if !bytes.Equal(read(), data) {
			t.Error("what was written around a deadline isn't what was read")
		}

		// A deadline that is moved while a call waits counts for it.
		_ = c.SetReadDeadline(time.Time{})
		late := begun(func() error {
			_, err := c.Read(make([]byte, 1))
			return err
		})
		synctest.Wait()
		_ = c.SetReadDeadline(time.Now().Add(time.Hour))
		time.Sleep(time.Minute)
		wantBlocked(t, "Read before its deadline", late)
		_ = c.SetReadDeadline(time.Now().Add(-1))
		wantErrorIs(t, "Read whose deadline was moved into the past", <-late, os.ErrDeadlineExceeded)
	})
}

// The deadline of one call that waits ends all calls that wait.
func TestDeadlineConcurrent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMemPair(t, memnet.Link{}, nil)
		c, _ := p.open(t)
		var reads, writes []<-chan error
		for range 5 {
			reads = append(reads, begun(func() error {
				_, err := c.Read(make([]byte, 1))
				return err
			}))
			writes = append(writes, begun(func() error {
				_, err := c.Write(make([]byte, 2<<20))
				return err
			}))
		}
		synctest.Wait()
		_ = c.SetDeadline(time.Now().Add(time.Second))
		for i := range reads {
			wantErrorIs(t, "one of five Reads", <-reads[i], os.ErrDeadlineExceeded)
			wantErrorIs(t, "one of five Writes", <-writes[i], os.ErrDeadlineExceeded)
		}
	})
}

func TestConcurrentWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMemPair(t, memnet.Link{Rate: 10 << 20}, nil)
		c, s := p.open(t)
		const writers, size = 8, 300_000 // several turns at the gate each
		done := make([]<-chan error, writers)
		for i := range done {
			done[i] = begun(func() error {
				_, err := c.Write(bytes.Repeat([]byte{byte('a' + i)}, size))
				return err
			})
		}
		seen := make(map[byte]bool)
		for range writers {
			got := make([]byte, size)
			if _, err := io.ReadFull(s, got); err != nil {
				t.Fatal(err)
			}
			if seen[got[0]] || !bytes.Equal(got, bytes.Repeat(got[:1], size)) {
				t.Fatal("concurrent Writes have mixed their bytes")
			}
			seen[got[0]] = true
		}
		for _, d := range done {
			if err := <-d; err != nil {
				t.Error(err)
			}
		}
	})
}

func TestReadFromWriteTo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMemPair(t, memnet.Link{}, nil)
		c, s := p.open(t)
		data := testBytes(4, 2_345_678)
		var got bytes.Buffer
		read := begun(func() error {
			n, err := s.WriteTo(&got)
			if n != int64(len(data)) {
				t.Errorf("WriteTo = %d, want %d", n, len(data))
			}
			return err
		})
		if n, err := c.ReadFrom(bytes.NewReader(data)); n != int64(len(data)) || err != nil {
			t.Errorf("ReadFrom = %d, %v, want %d", n, err, len(data))
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if err := <-read; err != nil {
			t.Errorf("WriteTo: %v; the end of the stream isn't an error of io.Copy", err)
		}
		if !bytes.Equal(got.Bytes(), data) {
			t.Error("other bytes came out of WriteTo than went into ReadFrom")
		}
	})
}

// A writer that fails keeps what it didn't take in the stream.
func TestWriteToFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMemPair(t, memnet.Link{}, nil)
		c, s := p.open(t)
		mustWrite(t, c, []byte("0123456789"))
		failure := errors.New("disk full")
		n, err := s.WriteTo(writerFunc(func(p []byte) (int, error) { return 4, failure }))
		wantErrorIs(t, "WriteTo", err, failure)
		if n != 4 {
			t.Errorf("WriteTo = %d, want 4", n)
		}
		wantRead(t, "what the writer didn't take", s, []byte("456789"))
	})
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// CloseRead ends a WriteTo that is busy elsewhere, and counts every byte once.
func TestCloseReadDuringWriteTo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMemPair(t, memnet.Link{}, nil)
		c, s := p.open(t)
		mustWrite(t, c, testBytes(5, 100_000))
		synctest.Wait()
		gate := make(chan struct{})
		done := begun(func() error {
			_, err := s.WriteTo(writerFunc(func(p []byte) (int, error) {
				<-gate
				return len(p), nil
			}))
			return err
		})
		synctest.Wait()
		if err := s.CloseRead(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // for the peer's RESET, which finds the block in use too
		close(gate)
		wantErrorIs(t, "WriteTo after CloseRead", <-done, ErrStreamClosed)
		synctest.Wait()
		wantConsumed(t, p.server, 100_000)
		if s.head != nil {
			t.Error("a closed stream still holds a block")
		}
	})
}

func TestFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const delay = 20 * time.Millisecond
		p := newMemPair(t, memnet.Link{Delay: delay}, nil)
		c, s := p.open(t)
		time.Sleep(time.Second)
		began := time.Now()
		mustWrite(t, c, []byte("hello"))
		if err := c.Flush(t.Context()); err != nil {
			t.Fatalf("Flush: %v", err)
		}
		if took, want := time.Since(began), 2*delay+ackDelay; took < want || took > want+2*pumpPause {
			t.Errorf("Flush took %v, want a round trip and the delay of acknowledgements, %v", took, want)
		}
		wantRead(t, "what was flushed", s, []byte("hello"))

		ctx, cancel := context.WithCancelCause(t.Context())
		mustWrite(t, c, []byte("hello"))
		flush := begun(func() error { return c.Flush(ctx) })
		synctest.Wait()
		wantBlocked(t, "Flush before the acknowledgement", flush)
		why := errors.New("changed my mind")
		cancel(why)
		wantErrorIs(t, "Flush with a context that ended", <-flush, why)

		// What is written later isn't waited for.
		mustWrite(t, c, []byte("first"))
		flush = begun(func() error { return c.Flush(t.Context()) })
		for range 100 {
			time.Sleep(time.Millisecond)
			mustWrite(t, c, []byte("later"))
		}
		select {
		case err := <-flush:
			if err != nil {
				t.Errorf("Flush beside a busy writer: %v", err)
			}
		default:
			t.Error("Flush waits for what was written after its begin")
		}
	})
}

func TestStreamContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMemPair(t, memnet.Link{}, nil)
		c, s := p.open(t)
		ctx := c.Context()
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if ctx.Err() != nil {
			t.Error("the context of a half open stream has ended")
		}
		_ = s.Close() // the peer has ended its direction already
		<-ctx.Done()
		wantErrorIs(t, "the cause of a stream's end", context.Cause(ctx), ErrStreamClosed)
		wantErrorIs(t, "a context that is made too late", context.Cause(c.Context()), ErrStreamClosed)

		d, _ := p.open(t)
		ctx = d.Context()
		_ = p.server.CloseWithError(9, "bye") // its own end is judged elsewhere
		<-ctx.Done()
		wantErrorIs(t, "the cause of a session's end", context.Cause(ctx), &SessionError{Code: 9, Application: true})
		wantErrorIs(t, "the session's context", context.Cause(p.client.Context()), &SessionError{Code: 9, Application: true})
	})
}

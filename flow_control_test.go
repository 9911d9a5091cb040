package tcpls

import (
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
)

// A stream that nobody reads stops its writer, and nobody else.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMemPair(t, memnet.Link{}, nil)
		slow, slowEnd := p.open(t)
		data := testBytes(1, 5<<20)
		blocked := begun(func() error {
			_, err := slow.Write(data)
			return err
		})
		synctest.Wait()
		time.Sleep(time.Second)
		wantBlocked(t, "a Write of more than the stream's window", blocked)
		if n := p.server.Stats().BytesReceived; n != 1<<20 {
			t.Errorf("%d bytes were sent, want the stream's window of 1 MiB", n)
		}
		for range 20 {
			c, s := p.open(t)
			write := begun(func() error {
				_, err := c.Write(data)
				return err
			})
			wantRead(t, "a stream beside the slow one", s, data)
			if err := <-write; err != nil {
				t.Fatal(err)
			}
			_, _ = c.Close(), s.Close() // both ends; the order doesn't matter
		}
		wantBlocked(t, "the slow stream", blocked)
		wantRead(t, "the slow stream once it is read", slowEnd, data)
		if err := <-blocked; err != nil {
			t.Errorf("the Write that waited: %v", err)
		}
	})
}

// The windows of all streams together are bounded by the session's.
func TestSessionWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMemPair(t, memnet.Link{}, nil)
		const streams = 5
		var ends []*Stream
		var writes []<-chan error
		for range streams {
			c, s := p.open(t)
			ends = append(ends, s)
			writes = append(writes, begun(func() error {
				_, err := c.Write(testBytes(2, 1<<20))
				return err
			}))
		}
		time.Sleep(time.Second)
		if n := p.server.Stats().BytesReceived; n != 2<<20 {
			t.Errorf("%d bytes were sent, want the session's window of 2 MiB", n)
		}
		var reads sync.WaitGroup
		for _, s := range ends {
			reads.Go(func() { wantRead(t, "each stream", s, testBytes(2, 1<<20)) })
		}
		reads.Wait()
		for _, w := range writes {
			if err := <-w; err != nil {
				t.Error(err)
			}
		}
	})
}

// Over a long link, the window grows until it no longer holds the sender back.
func TestWindowGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, delay = 1 << 20, 400 * time.Millisecond // 800 KiB on the way and back
		p := newMemPair(t, memnet.Link{Rate: rate, Delay: delay, Queue: 64 << 20}, func(client, server *Config) {
			for _, c := range []*Config{client, server} {
				c.StreamRecvWindow, c.SessionRecvWindow = 64<<10, 64<<10
			}
		})
		c, s := p.open(t)
		go func() {
			_, _ = io.Copy(c, zeros{}) // ends with the session
		}()
		measure := func() float64 {
			began := time.Now()
			if _, err := io.CopyN(io.Discard, s, 3<<19); err != nil {
				t.Fatal(err)
			}
			return (3 << 19) / time.Since(began).Seconds()
		}
		first, later := measure(), measure()
		if later < 0.7*rate || later < first {
			t.Errorf("%.1f MB/s at first and %.1f later over a link of %.1f", first/1e6, later/1e6, float64(rate)/1e6)
		}
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// A Write waits while the send buffer is full, and acknowledgements make room.
func TestSendBuffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 128 << 10
		p := newMemPair(t, memnet.Link{}, func(client, _ *Config) { client.SendBuffer = limit })
		c, s := p.open(t)
		time.Sleep(time.Second)
		p.serverConn.StallSend(true) // its acknowledgements
		write := begun(func() error {
			_, err := c.Write(make([]byte, 900_000))
			return err
		})
		time.Sleep(time.Second)
		wantBlocked(t, "a Write of more than the send buffer", write)
		if n := p.client.Stats().Unacknowledged; n > limit || n < limit/2 {
			t.Errorf("%d bytes are kept, of a send buffer of %d", n, limit)
		}
		p.serverConn.StallSend(false)
		if _, err := io.CopyN(io.Discard, s, 900_000); err != nil {
			t.Fatal(err)
		}
		if err := <-write; err != nil {
			t.Errorf("the Write that waited: %v", err)
		}
	})
}

// At rest, nothing is kept: the acknowledgement comes after ackDelay at the
// latest.
func TestNothingKeptAtRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMemPair(t, memnet.Link{Delay: time.Millisecond}, nil)
		for i := range 10 {
			c, s := p.open(t)
			data := testBytes(uint64(i), 1+i*50_000)
			mustWrite(t, c, data)
			wantRead(t, "some bytes", s, data)
			mustWrite(t, s, []byte("answer"))
			wantRead(t, "an answer", c, []byte("answer"))
			time.Sleep(ackDelay + 10*time.Millisecond)
			for _, end := range []*Session{p.client, p.server} {
				if n := end.Stats().Unacknowledged; n != 0 {
					t.Errorf("%d bytes are kept at rest", n)
				}
				end.path().outMu.Lock()
				if n := len(end.path().queue); n != 0 {
					t.Errorf("%d chunks of output are held at rest", n)
				}
				end.path().outMu.Unlock()
			}
			if c.head != nil || s.head != nil {
				t.Error("a stream at rest holds a block")
			}
		}
	})
}

// Of the streams that wait for the path, the urgent go first; then those of
// one urgency in the order of their ids, or by turns if they are incremental.
func TestPriorities(t *testing.T) {
	type priority struct {
		urgency     int8
		incremental bool
	}
	for _, test := range []struct {
		name    string
		streams []priority
		check   func(ended []int) error
	}{
		{"urgency", []priority{{7, false}, {5, false}, {0, false}, {3, false}}, wantOrder(2, 3, 1, 0)},
		{"ids", []priority{{3, false}, {3, false}, {3, false}}, wantOrder(0, 1, 2)},
		{"the rest before incremental", []priority{{3, true}, {3, false}}, wantOrder(1, 0)},
		{"out of range", []priority{{100, false}, {-100, false}}, wantOrder(1, 0)},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, streams := newSlowPair(t, len(test.streams)+1)
				const size = 1 << 20
				// The first stream fills the path, so that the others have to wait.
				go func() { _, _ = streams[0].Write(make([]byte, size)) }()
				synctest.Wait()
				ended := make(chan int, len(test.streams))
				for i, st := range streams[1:] {
					st.SetPriority(test.streams[i].urgency, test.streams[i].incremental)
					go func() {
						_, _ = st.Write(make([]byte, size)) // judged by who is first
						ended <- i
					}()
				}
				var order []int
				for range test.streams {
					order = append(order, <-ended)
				}
				if err := test.check(order); err != nil {
					t.Error(err)
				}
				_ = p.client.CloseWithError(0, "done") // with bytes on the way
			})
		})
	}
}

func wantOrder(want ...int) func(ended []int) error {
	return func(ended []int) error {
		if !slices.Equal(ended, want) {
			return fmt.Errorf("the streams ended in the order %v, want %v", ended, want)
		}
		return nil
	}
}

// newSlowPair returns streams over a slow link whose other ends are read.
func newSlowPair(t *testing.T, n int) (*memPair, []*Stream) {
	p := newMemPair(t, memnet.Link{Rate: 4 << 20, Queue: 64 << 10}, func(client, server *Config) {
		server.SessionRecvWindow = 16 << 20
		client.SendBuffer = 16 << 20
	})
	streams := make([]*Stream, n)
	for i := range streams {
		c, s := p.open(t)
		go func() { _, _ = io.Copy(io.Discard, s) }()
		streams[i] = c
	}
	return p, streams
}

// Incremental streams share the path evenly.
func TestPrioritiesShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, streams := newSlowPair(t, 4)
		for _, st := range streams {
			st.SetPriority(3, true)
			go func() { _, _ = io.Copy(st, zeros{}) }()
		}
		time.Sleep(4 * time.Second)
		var sent []uint64
		for _, st := range streams {
			st.sendMu.Lock()
			sent = append(sent, st.sent)
			st.sendMu.Unlock()
		}
		if least, most := slices.Min(sent), slices.Max(sent); 2*least < most { // a writer that isn't scheduled misses turns
			t.Errorf("four incremental streams have sent %v bytes, want equal shares", sent)
		}
		_ = p.client.CloseWithError(0, "done") // with bytes on the way
	})
}

// OpenStream waits at the peer's limit, and an end of a stream lets it go on.
func TestMaxStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 4
		p := newMemPair(t, memnet.Link{}, func(client, server *Config) { server.MaxStreams, client.MaxStreams = limit, -1 })
		var open []*Stream
		for range limit {
			c, s := p.open(t)
			open = append(open, c)
			go func() {
				_, _ = io.Copy(io.Discard, s)
				_ = s.Close()
			}()
		}
		openNext := func(next chan<- *Stream) {
			st, err := p.client.OpenStream(t.Context())
			if err != nil {
				t.Error(err)
			}
			next <- st
		}
		for range 20 {
			next := make(chan *Stream)
			go openNext(next)
			synctest.Wait()
			select {
			case <-next:
				t.Fatalf("more than %d streams are open", limit)
			default:
			}
			for _, st := range open {
				if err := st.Close(); err != nil {
					t.Fatal(err)
				}
			}
			open = open[:0]
			for st := range limit {
				c := <-next
				mustWrite(t, c, []byte("x"))
				open = append(open, c)
				s, err := p.server.AcceptStream(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				go func() {
					_, _ = io.Copy(io.Discard, s)
					_ = s.Close()
				}()
				if st < limit-1 {
					go openNext(next)
				}
			}
		}
		none := begun(func() error {
			_, err := p.server.OpenStream(t.Context())
			return err
		})
		time.Sleep(time.Second)
		wantBlocked(t, "OpenStream to a peer that allows none", none)
		_ = p.server.Close() // first, so that its own end is the reason
		wantErrorIs(t, "OpenStream at the end", <-none, ErrSessionClosed)
	})
}

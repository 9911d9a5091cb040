package tcpls

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
)

var (
	seeds    = flag.Int("seeds", 4, "how many random sessions TestReliability runs")
	fromSeed = flag.Uint64("seed", 1, "the first seed of TestReliability")
)

// Random sessions over random links: every byte that was written arrives once,
// in order, and is followed by the end that its sender gave the stream.
func TestReliability(t *testing.T) {
	for i := range *seeds {
		seed := *fromSeed + uint64(i)
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testReliability(t, seed) })
		})
	}
}

func testReliability(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 0))
	p := newMemPair(t, randomLink(r), func(client, server *Config) {
		for _, c := range []*Config{client, server} {
			c.RekeyAfter = 20 + r.IntN(400)
			c.StreamRecvWindow = 64<<10 + r.IntN(1<<20)
			c.SessionRecvWindow = c.StreamRecvWindow + r.IntN(1<<20)
			c.SendBuffer = 64<<10 + r.IntN(1<<20)
			c.MaxStreams = 1 + r.IntN(20)
			c.CloseTimeout = time.Hour // links are slow, and stall
		}
	})
	trouble, calm := context.WithCancel(t.Context())
	var weather sync.WaitGroup
	weather.Go(func() { randomWeather(trouble, rand.New(rand.NewPCG(seed, 1)), p) })

	randomStreams(t, seed, r, p.client, p.server)
	calm()
	weather.Wait()
	p.clientConn.Stall(false)
	var both sync.WaitGroup
	for _, s := range []*Session{p.client, p.server} {
		both.Go(func() {
			if err := s.Close(); err != nil {
				var closed *SessionError
				if !errors.As(err, &closed) { // by the other end, which may come first
					t.Errorf("Close: %v", err)
				}
			}
		})
	}
	both.Wait()
	for _, s := range []*Session{p.client, p.server} {
		s.winMu.Lock()
		if s.win.consumed != s.win.received {
			t.Errorf("%d bytes received, %d given back", s.win.received, s.win.consumed)
		}
		s.winMu.Unlock()
	}
}

// randomStreams opens streams from both ends and waits for them.
func randomStreams(t *testing.T, seed uint64, r *rand.Rand, client, server *Session) {
	var all sync.WaitGroup
	for n, ends := range [][2]*Session{{client, server}, {server, client}} {
		streams := 5 + r.IntN(25)
		all.Go(func() { acceptRandom(t, seed, ends[1], streams) })
		all.Go(func() {
			for i := range streams {
				st, err := ends[0].OpenStream(t.Context())
				if err != nil {
					t.Errorf("OpenStream: %v", err)
					return
				}
				plan := rand.New(rand.NewPCG(seed, uint64(100+2*i+n)))
				st.SetPriority(int8(plan.IntN(8)), plan.IntN(2) == 0)
				all.Go(func() { randomEnd(t, seed, st, plan) })
			}
		})
	}
	all.Wait()
}

// The same over a socket of the kernel, whose timing is a weather of its own.
func TestReliabilityTCP(t *testing.T) {
	r := rand.New(rand.NewPCG(*fromSeed, 0))
	client, server := newTestConfigs()
	client.RekeyAfter, server.RekeyAfter = 100, 150
	client.SendBuffer, server.StreamRecvWindow = 256<<10, 128<<10
	client.MaxStreams, server.MaxStreams = 6, 9
	c, s := newTCPPair(t, client, server)
	randomStreams(t, *fromSeed, r, c, s)
	for _, end := range []*Session{c, s} {
		if end.ended() {
			t.Errorf("the session ended: %v", end.cause())
		}
	}
}

func randomLink(r *rand.Rand) memnet.Link {
	return memnet.Link{
		Rate:  int64(1<<20 + r.IntN(20<<20)),
		Delay: time.Duration(r.IntN(50)) * time.Millisecond,
		Queue: 8<<10 + r.IntN(512<<10),
	}
}

// randomWeather changes the links, stalls them, and changes keys.
func randomWeather(ctx context.Context, r *rand.Rand, p *memPair) {
	for ctx.Err() == nil {
		time.Sleep(time.Duration(r.IntN(100)) * time.Millisecond)
		switch r.IntN(4) {
		case 0:
			p.clientConn.SetLink(randomLink(r))
		case 1:
			p.serverConn.SetLink(randomLink(r))
		case 2:
			conn := []*memnet.Conn{p.clientConn, p.serverConn}[r.IntN(2)]
			conn.StallSend(true)
			time.Sleep(time.Duration(r.IntN(500)) * time.Millisecond)
			conn.StallSend(false)
		case 3:
			s := []*Session{p.client, p.server}[r.IntN(2)]
			_ = s.UpdateKeys(ctx) // a context that has ended is all that can be wrong
		}
	}
}

func acceptRandom(t *testing.T, seed uint64, s *Session, n int) {
	var all sync.WaitGroup
	defer all.Wait()
	for range n {
		st, err := s.AcceptStream(t.Context())
		if err != nil {
			t.Errorf("AcceptStream: %v", err)
			return
		}
		all.Go(func() { randomEnd(t, seed, st, rand.New(rand.NewPCG(seed, uint64(1000+st.ID())))) })
	}
}

// payload is what one end of a stream writes; both ends know it. Most payloads
// are short, so that what there is time for is many of them.
func payload(seed uint64, st *Stream, byClient bool) []byte {
	n := uint64(st.ID()) * 2
	if byClient {
		n++
	}
	r := rand.New(rand.NewPCG(seed, 5000+n))
	most := 300_000 >> (4 * r.IntN(3))
	from := r.IntN(len(payloads()) - most)
	return payloads()[from : from+r.IntN(most)]
}

// payloads is what they are pieces of: no two places look alike.
var payloads = sync.OnceValue(func() []byte { return testBytes(1, 1<<20) })

// randomEnd is one end of a stream: it writes its bytes in random pieces and
// ends them, or gives up at random, and reads what comes.
func randomEnd(t *testing.T, seed uint64, st *Stream, r *rand.Rand) {
	ours, theirs := payload(seed, st, st.sess.client), payload(seed, st, !st.sess.client)
	var both sync.WaitGroup
	reader := rand.New(rand.NewPCG(r.Uint64(), 0))
	both.Go(func() { randomRead(t, st, theirs, reader) })
	randomWrite(t, st, ours, r)
	both.Wait()
	if err := st.Close(); err != nil && !errors.Is(err, ErrStreamClosed) {
		t.Errorf("stream %d: Close: %v", st.ID(), err)
	}
}

const randomCode = 7 // of every reset and stop in these tests

func randomWrite(t *testing.T, st *Stream, data []byte, r *rand.Rand) {
	reset := r.IntN(8) == 0
	for len(data) > 0 {
		n := min(1+r.IntN(1+r.IntN(100_000)), len(data))
		m, err := st.Write(data[:n])
		var stopped *StreamError
		if errors.As(err, &stopped) && stopped.Remote && stopped.Code == randomCode {
			return // the reader gave up
		}
		if err != nil || m != n {
			t.Errorf("stream %d: Write of %d bytes = %d, %v", st.ID(), n, m, err)
			return
		}
		data = data[n:]
		if reset && r.IntN(4) == 0 {
			break
		}
		if r.IntN(10) == 0 {
			time.Sleep(time.Duration(r.IntN(50)) * time.Millisecond)
		}
	}
	var err error
	if reset {
		err = st.Reset(randomCode)
	} else {
		err = st.CloseWrite()
	}
	var stopped *StreamError
	if err != nil && !errors.As(err, &stopped) && !errors.Is(err, ErrStreamClosed) {
		t.Errorf("stream %d: its end: %v", st.ID(), err)
	}
}

func randomRead(t *testing.T, st *Stream, want []byte, r *rand.Rand) {
	stop := r.IntN(8) == 0
	buf := make([]byte, 1+r.IntN(100_000))
	for {
		n, err := st.Read(buf)
		if n > len(want) || !bytes.Equal(buf[:n], want[:min(n, len(want))]) {
			t.Errorf("stream %d: Read returned other bytes than were written", st.ID())
			return
		}
		want = want[n:]
		var reset *StreamError
		switch {
		case err == io.EOF:
			if len(want) > 0 {
				t.Errorf("stream %d: the end came %d bytes too early", st.ID(), len(want))
			}
			return
		case errors.As(err, &reset) && reset.Remote && reset.Code == randomCode:
			return
		case err != nil:
			t.Errorf("stream %d: Read: %v", st.ID(), err)
			return
		}
		if stop && r.IntN(3) == 0 {
			if err := st.StopSending(randomCode); err != nil {
				t.Errorf("stream %d: StopSending: %v", st.ID(), err)
			}
			return
		}
		if r.IntN(5) == 0 && len(buf) > 1000 { // byte by byte it is slow enough
			time.Sleep(time.Duration(r.IntN(30)) * time.Millisecond)
		}
	}
}

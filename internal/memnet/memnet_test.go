package memnet

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/nettest"
)

func TestConn(t *testing.T) {
	for _, test := range []struct {
		name string
		link Link
	}{
		{"plain", Link{}},
		{"limited", Link{Rate: 100 << 20, Delay: 100 * time.Microsecond, Queue: 64 << 10}},
	} {
		t.Run(test.name, func(t *testing.T) {
			nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
				a, b := Pipe(test.link)
				return a, b, func() { a.Close(); b.Close() }, nil
			})
		})
	}
}

// read wants exactly these bytes.
func read(t *testing.T, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v; want %q", got, err, want)
	}
}

func write(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if n, err := c.Write([]byte(s)); n != len(s) || err != nil {
		t.Fatalf("wrote %d of %d bytes: %v", n, len(s), err)
	}
}

// wantNothing wants that a Read would block, without letting time pass.
func wantNothing(t *testing.T, c net.Conn) {
	t.Helper()
	var n int
	var err error
	returned := make(chan struct{})
	go func() {
		n, err = c.Read(make([]byte, 1))
		close(returned)
	}()
	synctest.Wait()
	select {
	case <-returned:
		t.Fatalf("read %d bytes, %v; want none yet", n, err)
	default:
	}
	c.SetReadDeadline(time.Unix(1, 0))
	<-returned
	c.SetReadDeadline(time.Time{})
}

func wantError(t *testing.T, c net.Conn, readErr, writeErr error) {
	t.Helper()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, readErr) {
		t.Errorf("read: got %v, want %v", err, readErr)
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, writeErr) {
		t.Errorf("write: got %v, want %v", err, writeErr)
	}
}

func wantSince(t *testing.T, start time.Time, want time.Duration) {
	t.Helper()
	if d := time.Since(start); d != want {
		t.Errorf("it took %v, want %v", d, want)
	}
}

func TestRateAndDelay(t *testing.T) { synctest.Test(t, testRateAndDelay) }
func testRateAndDelay(t *testing.T) {
	const seconds = 10
	l := Link{Rate: 1_000_000, Delay: 50 * time.Millisecond, Queue: 1 << 20}
	a, b := Pipe(l)
	start := time.Now()
	go func() {
		a.Write(make([]byte, seconds*int(l.Rate)))
		a.CloseWrite()
	}()

	if _, err := b.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	wantSince(t, start, segmentLen*time.Microsecond+l.Delay)
	if n, err := io.Copy(io.Discard, b); n != seconds*l.Rate-1 || err != nil {
		t.Fatalf("got %d bytes, %v", n, err)
	}
	wantSince(t, start, seconds*time.Second+l.Delay)
}

func TestDirectionsAreIndependent(t *testing.T) { synctest.Test(t, testDirectionsAreIndependent) }
func testDirectionsAreIndependent(t *testing.T) {
	a, b := Pipe(Link{Delay: time.Second})
	b.SetLink(Link{})
	start := time.Now()
	write(t, b, "fast")
	read(t, a, "fast")
	wantSince(t, start, 0)
	write(t, a, "slow")
	read(t, b, "slow")
	wantSince(t, start, time.Second)
}

func TestQueueBlocksWrite(t *testing.T) { synctest.Test(t, testQueueBlocksWrite) }
func testQueueBlocksWrite(t *testing.T) {
	for _, queue := range []int{0, 1000} {
		a, b := Pipe(Link{Queue: queue})
		if queue == 0 {
			queue = DefaultQueue
		}
		a.SetWriteDeadline(time.Now().Add(time.Minute))
		n, err := a.Write(make([]byte, queue+500))
		if n != queue || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("wrote %d bytes, %v; the queue has room for %d", n, err, queue)
		}
		a.SetWriteDeadline(time.Time{})
		done := make(chan int)
		go func() {
			n, _ := a.Write(make([]byte, 100))
			done <- n
		}()
		if _, err := io.ReadFull(b, make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		if n := <-done; n != 100 {
			t.Errorf("reading 100 bytes made room for %d", n)
		}
	}
}

func TestFasterLinkDoesNotOvertake(t *testing.T) { synctest.Test(t, testFasterLinkDoesNotOvertake) }
func testFasterLinkDoesNotOvertake(t *testing.T) {
	a, b := Pipe(Link{Delay: time.Second})
	start := time.Now()
	write(t, a, "first ")
	a.SetLink(Link{})
	write(t, a, "second")
	read(t, b, "first second")
	wantSince(t, start, time.Second)
}

func TestStall(t *testing.T) { synctest.Test(t, testStall) }
func testStall(t *testing.T) {
	a, b := Pipe(Link{Delay: 10 * time.Millisecond})
	write(t, a, "arrived")
	time.Sleep(10 * time.Millisecond)
	write(t, a, "under way")
	a.Stall(true)
	a.Stall(true) // as well as once
	write(t, a, " and later")
	write(t, b, "back")
	a.CloseWrite()

	read(t, b, "arrived")
	time.Sleep(time.Hour)
	wantNothing(t, a)
	wantNothing(t, b)

	a.Stall(false)
	start := time.Now()
	wantNothing(t, a)
	read(t, b, "under way and later")
	wantSince(t, start, 10*time.Millisecond)
	if _, err := b.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("got %v, want EOF", err)
	}
	read(t, a, "back")
}

func TestStallSend(t *testing.T) { synctest.Test(t, testStallSend) }
func testStallSend(t *testing.T) {
	a, b := Pipe(Link{})
	a.StallSend(true)
	write(t, a, "held")
	write(t, b, "passes")
	read(t, a, "passes")
	wantNothing(t, b)
	a.StallSend(false)
	read(t, b, "held")
}

func TestStallHidesClose(t *testing.T) { synctest.Test(t, testStallHidesClose) }
func testStallHidesClose(t *testing.T) {
	a, b := Pipe(Link{})
	a.Stall(true)
	a.Close()
	write(t, b, "into the void")
	wantNothing(t, b)
	a.Stall(false)
	wantError(t, b, io.EOF, syscall.EPIPE)
}

func TestReset(t *testing.T) { synctest.Test(t, testReset) }
func testReset(t *testing.T) {
	a, b := Pipe(Link{})
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a Read that waited: %v", err)
		}
	})
	wg.Go(func() {
		if _, err := b.Write(make([]byte, 2*DefaultQueue)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a Write that waited: %v", err)
		}
	})
	synctest.Wait()
	b.Reset()
	wg.Wait()
	// What b has written is lost, too.
	wantError(t, a, syscall.ECONNRESET, syscall.ECONNRESET)
	wantError(t, b, syscall.ECONNRESET, syscall.ECONNRESET)
	if err := a.Close(); err != nil {
		t.Errorf("Close of a reset connection: %v", err)
	}
	wantError(t, a, net.ErrClosed, net.ErrClosed)
}

func TestHalfClose(t *testing.T) { synctest.Test(t, testHalfClose) }
func testHalfClose(t *testing.T) {
	a, b := Pipe(Link{Delay: time.Millisecond})
	write(t, a, "last words")
	for range 2 {
		if err := a.CloseWrite(); err != nil {
			t.Fatal(err)
		}
	}
	read(t, b, "last words")
	for range 2 {
		if n, err := b.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("behind FIN: %d, %v", n, err)
		}
	}
	if _, err := a.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("a Write behind CloseWrite: %v", err)
	}
	write(t, b, "answer")
	read(t, a, "answer")
}

func TestClose(t *testing.T) { synctest.Test(t, testClose) }
func testClose(t *testing.T) {
	a, b := Pipe(Link{Delay: time.Millisecond})
	write(t, a, "last words")
	write(t, b, "unread")
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the second Close: %v", err)
	}
	for name, err := range map[string]error{
		"CloseWrite":  a.CloseWrite(),
		"SetDeadline": a.SetDeadline(time.Time{}),
	} {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s of a closed connection: %v", name, err)
		}
	}
	wantError(t, a, net.ErrClosed, net.ErrClosed)
	read(t, b, "last words")
	wantError(t, b, io.EOF, syscall.EPIPE)
}

func TestWritesDoNotMix(t *testing.T) { synctest.Test(t, testWritesDoNotMix) }
func testWritesDoNotMix(t *testing.T) {
	const size, writers = 1000, 10
	a, b := Pipe(Link{Queue: 64})
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() { a.Write(bytes.Repeat([]byte{byte(i)}, size)) })
	}
	p := make([]byte, size)
	for range writers {
		if _, err := io.ReadFull(b, p); err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(p, p[:1]); n != size {
			t.Fatalf("of %d bytes of one Write only %d are together", size, n)
		}
	}
	wg.Wait()
}

// TestDeadlineOfTwoReaders has two readers wait for one deadline, of which the
// first is woken by data.
func TestDeadlineOfTwoReaders(t *testing.T) { synctest.Test(t, testDeadlineOfTwoReaders) }
func testDeadlineOfTwoReaders(t *testing.T) {
	a, b := Pipe(Link{})
	start := time.Now()
	b.SetReadDeadline(start.Add(time.Second))
	errs := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := b.Read(make([]byte, 1))
			errs <- err
		}()
	}
	synctest.Wait()
	write(t, a, "x")
	if err := <-errs; err != nil {
		t.Errorf("the one that got the byte: %v", err)
	}
	if err := <-errs; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the one that got none: %v", err)
	}
	wantSince(t, start, time.Second)
}

// TestIntegrity changes links, stalls them and ends stalls at random while
// bytes flow: all arrive, in order.
func TestIntegrity(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) { testIntegrity(t, seed) })
	}
}

func testIntegrity(t *testing.T, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 0))
	sent := make([]byte, 1<<20)
	for i := range sent {
		sent[i] = byte(random.Uint32())
	}
	a, b := Pipe(Link{Rate: 1 << 20, Delay: time.Millisecond})
	go func() {
		random := rand.New(rand.NewPCG(seed, 1))
		for p := sent; len(p) > 0; {
			n := min(len(p), 1+random.IntN(5000))
			a.Write(p[:n])
			p = p[n:]
		}
		a.Close()
	}()
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		defer a.Peer().StallSend(false)
		defer a.StallSend(false)
		for {
			select {
			case <-done:
				return
			case <-time.After(time.Duration(random.IntN(20)) * time.Millisecond):
			}
			a.SetLink(Link{
				Rate:  int64(random.IntN(4)) << 20,
				Delay: time.Duration(random.IntN(50)) * time.Millisecond,
				Queue: random.IntN(1 << 16),
			})
			a.Stall(random.IntN(3) == 0)
		}
	})
	got, err := io.ReadAll(b)
	close(done)
	wg.Wait()
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("seed %d: %d of %d bytes arrived, or others, %v", seed, len(got), len(sent), err)
	}
}

func TestListener(t *testing.T) { synctest.Test(t, testListener) }
func testListener(t *testing.T) {
	l := Listen(Link{Delay: 20 * time.Millisecond})
	type result struct {
		c   net.Conn
		err error
	}
	accepted := make(chan result)
	go func() {
		c, err := l.Accept()
		accepted <- result{c, err}
	}()
	start := time.Now()
	c, err := l.Dial(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	wantSince(t, start, 40*time.Millisecond)
	r := <-accepted
	if r.err != nil {
		t.Fatal(r.err)
	}
	write(t, c, "hello")
	read(t, r.c, "hello")

	addr := c.LocalAddr().(*net.TCPAddr)
	if r.c.RemoteAddr().String() != addr.String() || c.RemoteAddr().String() != l.Addr().String() ||
		r.c.LocalAddr().String() != l.Addr().String() || l.Addr().Network() != "tcp" {
		t.Errorf("addresses: %v-%v and %v-%v of %v",
			c.LocalAddr(), c.RemoteAddr(), r.c.LocalAddr(), r.c.RemoteAddr(), l.Addr())
	}
	l.SetLink(Link{})
	start = time.Now()
	second, err := l.Dial(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	wantSince(t, start, 0)
	if second.LocalAddr().String() == addr.String() {
		t.Errorf("two connections from %v", addr)
	}

	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	wantError(t, second, syscall.ECONNRESET, syscall.ECONNRESET) // nobody accepted it
	write(t, c, "unhurt")
	read(t, r.c, "unhurt")
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
	if err := l.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the second Close: %v", err)
	}
	if _, err := l.Dial(context.Background()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("Dial after Close: %v", err)
	}
}

func TestListenerLimits(t *testing.T) { synctest.Test(t, testListenerLimits) }
func testListenerLimits(t *testing.T) {
	l := Listen(Link{})
	for range backlog {
		if _, err := l.Dial(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Dial(context.Background()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("with a full backlog: %v", err)
	}
	l.SetLink(Link{Delay: time.Second})
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	start := time.Now()
	if _, err := l.Dial(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a context that ends before the round trip: %v", err)
	}
	wantSince(t, start, time.Second)
}

func TestCloseWakesAccept(t *testing.T) { synctest.Test(t, testCloseWakesAccept) }
func testCloseWakesAccept(t *testing.T) {
	l := Listen(Link{})
	done := make(chan error)
	go func() {
		_, err := l.Accept()
		done <- err
	}()
	synctest.Wait()
	l.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

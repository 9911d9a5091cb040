//go:build unix

package osnet

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// newTestPair returns both ends of a plain TCP connection over loopback.
func newTestPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

func newTestIO(t testing.TB, c net.Conn) *IO {
	t.Helper()
	o, ok := NewIO(c)
	if !ok {
		t.Fatalf("no IO for %T", c)
	}
	return o
}

// readInto waits for bytes and reads them into p.
func readInto(o *IO, p []byte) (int, error) {
	return o.ReadNext(func() []byte { return p }, func() {})
}

func TestNewIORefusesWrappers(t *testing.T) {
	c, _ := newTestPair(t)
	if _, ok := NewIO(struct{ *net.TCPConn }{c}); ok {
		t.Error("a wrapper of a connection got an IO, which passes its Read and Write by")
	}
	p, q := net.Pipe()
	defer p.Close()
	defer q.Close()
	if _, ok := NewIO(p); ok {
		t.Error("a connection without a descriptor got an IO")
	}
}

func TestUnixSocket(t *testing.T) {
	name := filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if n, err := newTestIO(t, c).TryWritev([][]byte{[]byte("hello")}); n != 5 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
}

func TestReadNext(t *testing.T) {
	a, b := newTestPair(t)
	o := newTestIO(t, a)
	waits := make(chan struct{}, 1)
	var held []byte
	asked := 0
	buffer := func() []byte {
		asked++
		held = make([]byte, 16)
		return held
	}
	idle := func() {
		held = nil
		waits <- struct{}{}
	}
	go func() {
		<-waits // nothing was there: the buffer is given back before the wait
		b.Write([]byte("hello"))
	}()
	n, err := o.ReadNext(buffer, idle)
	if err != nil || string(held[:n]) != "hello" || asked != 2 {
		t.Fatalf("got %q, %v, and asked for %d buffers", held[:n], err, asked)
	}
	if err := b.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if n, err := readInto(o, make([]byte, 1)); n != 0 || err != io.EOF {
			t.Fatalf("after FIN: got %d, %v", n, err)
		}
	}
}

func TestReadDeadline(t *testing.T) {
	a, b := newTestPair(t)
	o := newTestIO(t, a)
	if err := a.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := readInto(o, make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("with a deadline in the past: got %v", err)
	}
	if err := a.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if n, err := readInto(o, make([]byte, 1)); n != 1 || err != nil {
		t.Fatalf("without it: got %d, %v", n, err)
	}
}

// fill writes until the kernel takes no more, and returns what it took.
func fill(t *testing.T, try func() (int, error)) (total int) {
	t.Helper()
	for {
		n, err := try()
		switch {
		case err == ErrWouldBlock && n == 0:
			return total
		case err != nil || n == 0:
			t.Fatalf("got %d, %v", n, err)
		}
		total += n
	}
}

func TestTryWritev(t *testing.T) {
	piece := bytes.Repeat([]byte("x"), 1<<16)
	many := make([][]byte, 20)
	for i := range many {
		many[i] = piece[:100*i]
	}
	for name, bufs := range map[string][][]byte{"one buffer": {piece}, "many buffers": many} {
		t.Run(name, func(t *testing.T) {
			a, b := newTestPair(t)
			o := newTestIO(t, a)
			try := func() (int, error) { return o.TryWritev(bufs) }
			total := fill(t, try)

			received := make(chan int64)
			go func() {
				n, _ := io.Copy(io.Discard, b)
				received <- n
			}()
			for range 3 { // the reader makes room
				n, err := a.Write(piece)
				if err != nil {
					t.Fatal(err)
				}
				total += n + fill(t, try)
			}
			a.Close()
			if n := <-received; n != int64(total) {
				t.Errorf("the peer got %d bytes of %d", n, total)
			}
		})
	}
}

func TestTryWritevOrder(t *testing.T) {
	a, b := newTestPair(t)
	o := newTestIO(t, a)
	bufs := [][]byte{nil, []byte("ab"), {}, []byte("c"), []byte("def")}
	if n, err := o.TryWritev(bufs); n != 6 && maxBuffers > 1 || err != nil {
		t.Fatalf("got %d, %v", n, err)
	}
	a.Close()
	got, err := io.ReadAll(b)
	if err != nil || maxBuffers > 1 && string(got) != "abcdef" {
		t.Fatalf("the peer got %q, %v", got, err)
	}
}

func TestEmptyWrite(t *testing.T) {
	a, _ := newTestPair(t)
	if n, err := newTestIO(t, a).TryWritev([][]byte{nil, {}}); n != 0 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
}

func TestReset(t *testing.T) {
	a, b := newTestPair(t)
	o := newTestIO(t, a)
	if err := b.SetLinger(0); err != nil { // Close sends RST
		t.Fatal(err)
	}
	b.Close()
	_, err := readInto(o, make([]byte, 1))
	var op *net.OpError
	if !errors.Is(err, syscall.ECONNRESET) || !errors.As(err, &op) || op.Op != "read" {
		t.Errorf("ReadNext after RST: got %v", err)
	}
	if _, err := o.TryWritev([][]byte{{1}}); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("TryWritev after RST: got %v", err)
	}
}

func TestCloseWakes(t *testing.T) {
	a, _ := newTestPair(t)
	o := newTestIO(t, a)
	waits, done := make(chan struct{}, 1), make(chan error)
	go func() {
		_, err := o.ReadNext(func() []byte { return make([]byte, 1) }, func() { waits <- struct{}{} })
		done <- err
	}()
	<-waits
	a.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
	if _, err := readInto(o, make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("ReadNext after Close: got %v", err)
	}
	if _, err := o.TryWritev([][]byte{{1}}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("TryWritev after Close: got %v", err)
	}
}

// TestCloseRaces closes a connection that is in full use.
func TestCloseRaces(t *testing.T) {
	for range 50 {
		a, b := newTestPair(t)
		var wg sync.WaitGroup
		started := make(chan struct{}, 2)
		run := func(try func() (int, error)) {
			_, err := try()
			started <- struct{}{}
			for err == nil || err == ErrWouldBlock {
				_, err = try()
			}
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("got %v", err)
			}
		}
		wg.Go(func() { io.Copy(b, b) }) // an echo
		o := newTestIO(t, a)
		in, out := make([]byte, 1<<12), [][]byte{make([]byte, 1<<12)}
		wg.Go(func() { run(func() (int, error) { return readInto(o, in) }) })
		wg.Go(func() { run(func() (int, error) { return o.TryWritev(out) }) })
		<-started
		<-started
		a.Close()
		wg.Wait()
	}
}

// TestNoLostWakeup plays ping-pong, where a lost wakeup hangs, and both
// directions run at once.
func TestNoLostWakeup(t *testing.T) {
	a, b := newTestPair(t)
	const rounds = 20_000
	var wg sync.WaitGroup
	for _, c := range []net.Conn{a, b} {
		o := newTestIO(t, c)
		wg.Go(func() {
			buf := make([]byte, 1)
			for range rounds {
				if _, err := o.TryWritev([][]byte{buf}); err != nil {
					t.Errorf("write: %v", err)
					return
				}
				if n, err := readInto(o, buf); n != 1 || err != nil {
					t.Errorf("read: got %d, %v", n, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestNoAllocations(t *testing.T) {
	a, b := newTestPair(t)
	o, peer := newTestIO(t, a), newTestIO(t, b)
	buf := make([]byte, 64)
	bufs := [][]byte{buf[:16], buf[16:32], buf[32:]}
	left := 0
	buffer, idle := func() []byte { return buf[:left] }, func() {}
	allocs := testing.AllocsPerRun(1000, func() {
		var err error
		if left, err = o.TryWritev(bufs); err != nil {
			t.Fatal(err)
		}
		for left > 0 {
			n, err := peer.ReadNext(buffer, idle)
			if err != nil {
				t.Fatal(err)
			}
			left -= n
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations in a round, want none", allocs)
	}
}

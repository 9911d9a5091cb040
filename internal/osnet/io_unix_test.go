//go:build unix

package osnet

import (
	"bytes"
	"errors"
	"io"
	"net"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
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

// readSome waits for bytes and reads them.
func readSome(o *IO, p []byte) (int, error) {
	for {
		n, err := o.TryRead(p)
		if err != ErrWouldBlock {
			return n, err
		}
		if err := o.WaitReadable(); err != nil {
			return 0, err
		}
	}
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
	if n, err := newTestIO(t, c).TryWrite([]byte("hello")); n != 5 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
}

func TestTryRead(t *testing.T) {
	a, b := newTestPair(t)
	o := newTestIO(t, a)
	buf := make([]byte, 16)
	if n, err := o.TryRead(buf); n != 0 || err != ErrWouldBlock {
		t.Fatalf("nothing to read: got %d, %v", n, err)
	}
	if _, err := b.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	n, err := readSome(o, buf)
	if err != nil || string(buf[:n]) != "hello" {
		t.Fatalf("got %q, %v", buf[:n], err)
	}
	if err := b.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if n, err := readSome(o, buf); n != 0 || err != io.EOF {
			t.Fatalf("after FIN: got %d, %v", n, err)
		}
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

func TestTryWrite(t *testing.T) {
	piece := bytes.Repeat([]byte("x"), 1<<16)
	many := make([][]byte, 20)
	for i := range many {
		many[i] = piece[:100*i]
	}
	for _, test := range []struct {
		name string
		try  func(o *IO) (int, error)
	}{
		{"one buffer", func(o *IO) (int, error) { return o.TryWrite(piece) }},
		{"many buffers", func(o *IO) (int, error) { return o.TryWritev(many) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			a, b := newTestPair(t)
			o := newTestIO(t, a)
			try := func() (int, error) { return test.try(o) }
			total := fill(t, try)

			received := make(chan int64)
			go func() {
				n, _ := io.Copy(io.Discard, b)
				received <- n
			}()
			for range 3 { // the reader makes room
				if err := o.WaitWritable(); err != nil {
					t.Fatal(err)
				}
				total += fill(t, try)
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
	o := newTestIO(t, a)
	if n, err := o.TryWrite(nil); n != 0 || err != nil {
		t.Errorf("TryWrite: got %d, %v", n, err)
	}
	if n, err := o.TryWritev([][]byte{nil, {}}); n != 0 || err != nil {
		t.Errorf("TryWritev: got %d, %v", n, err)
	}
}

func TestReset(t *testing.T) {
	a, b := newTestPair(t)
	o := newTestIO(t, a)
	if err := b.SetLinger(0); err != nil { // Close sends RST
		t.Fatal(err)
	}
	b.Close()
	if err := o.WaitReadable(); err != nil {
		t.Fatal(err)
	}
	_, err := o.TryRead(make([]byte, 1))
	var op *net.OpError
	if !errors.Is(err, syscall.ECONNRESET) || !errors.As(err, &op) || op.Op != "read" {
		t.Errorf("TryRead after RST: got %v", err)
	}
	if _, err := o.TryWrite([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("TryWrite after RST: got %v", err)
	}
}

func TestCloseWakes(t *testing.T) {
	for _, test := range []struct {
		name string
		wait func(*IO) error
	}{
		{"reader", (*IO).WaitReadable},
		{"writer", (*IO).WaitWritable},
	} {
		t.Run(test.name, func(t *testing.T) {
			a, _ := newTestPair(t)
			o := newTestIO(t, a)
			fill(t, func() (int, error) { return o.TryWrite(make([]byte, 1<<16)) })
			done := make(chan error)
			go func() { done <- test.wait(o) }()
			a.Close()
			if err := <-done; err != nil && !errors.Is(err, net.ErrClosed) {
				t.Errorf("got %v", err)
			}
			if err := test.wait(o); !errors.Is(err, net.ErrClosed) {
				t.Errorf("after Close: got %v", err)
			}
			if _, err := o.TryRead(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("TryRead after Close: got %v", err)
			}
			if _, err := o.TryWrite(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("TryWrite after Close: got %v", err)
			}
			if _, err := o.TryWritev([][]byte{{1}}); !errors.Is(err, net.ErrClosed) {
				t.Errorf("TryWritev after Close: got %v", err)
			}
		})
	}
}

// TestCloseRaces closes a connection that is in full use.
func TestCloseRaces(t *testing.T) {
	for range 50 {
		a, b := newTestPair(t)
		var wg sync.WaitGroup
		started := make(chan struct{}, 2)
		run := func(try func([]byte) (int, error), wait func() error) {
			p := make([]byte, 1<<12)
			_, err := try(p)
			started <- struct{}{}
			for err == nil || err == ErrWouldBlock {
				if err == ErrWouldBlock {
					err = wait()
				}
				if err == nil {
					_, err = try(p)
				}
			}
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("got %v", err)
			}
		}
		wg.Go(func() { io.Copy(b, b) }) // an echo
		o := newTestIO(t, a)
		wg.Go(func() { run(o.TryRead, o.WaitReadable) })
		wg.Go(func() { run(o.TryWrite, o.WaitWritable) })
		<-started
		<-started
		a.Close()
		wg.Wait()
	}
}

// TestNoLostWakeup plays ping-pong, where a wakeup lost between TryRead and
// WaitReadable hangs, and both directions run at once.
func TestNoLostWakeup(t *testing.T) {
	a, b := newTestPair(t)
	const rounds = 20_000
	var wg sync.WaitGroup
	for _, c := range []net.Conn{a, b} {
		o := newTestIO(t, c)
		wg.Go(func() {
			buf := make([]byte, 4)
			for range rounds {
				if _, err := o.TryWrite(buf[:1]); err != nil {
					t.Errorf("write: %v", err)
					return
				}
				if n, err := readSome(o, buf[:1]); n != 1 || err != nil {
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
	allocs := testing.AllocsPerRun(1000, func() {
		for _, err := range []error{peer.WaitWritable(), o.WaitWritable()} {
			if err != nil {
				t.Fatal(err)
			}
		}
		if n, err := peer.TryWrite(buf); n != len(buf) || err != nil {
			t.Fatal(n, err)
		}
		if n, err := readSome(o, buf); n != len(buf) || err != nil {
			t.Fatal(n, err)
		}
		if _, err := o.TryRead(buf); err != ErrWouldBlock {
			t.Fatal(err)
		}
		n, err := o.TryWritev(bufs)
		if err != nil {
			t.Fatal(err)
		}
		for n > 0 {
			m, err := readSome(peer, buf[:n])
			if err != nil {
				t.Fatal(err)
			}
			n -= m
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations in a round, want none", allocs)
	}
}

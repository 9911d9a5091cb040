package linkemu

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A rig is a server behind a link.
type rig struct {
	*Link
	server *net.TCPListener
}

func newRig(t *testing.T, down, up Shape) *rig {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	l, err := New(ln.Addr().String(), down, up)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(l.Close(), ln.Close()); err != nil {
			t.Error(err)
		}
	})
	return &rig{l, ln}
}

func (r *rig) dial(t *testing.T) *net.TCPConn {
	t.Helper()
	c, err := net.DialTCP("tcp", nil, r.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// pair connects both ends.
func (r *rig) pair(t *testing.T) (client, server *net.TCPConn) {
	t.Helper()
	client = r.dial(t)
	server, err := r.server.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
}

// wantBytes reads exactly what is expected.
func wantBytes(t *testing.T, why string, c net.Conn, want string) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatalf("%s: %v", why, err)
	}
	if string(got) != want {
		t.Fatalf("%s: got %q, want %q", why, got, want)
	}
}

// wantSilence expects nothing for a while, neither bytes nor an end.
func wantSilence(t *testing.T, why string, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := c.Read(make([]byte, 1)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%s: read %d, %v", why, n, err)
	}
}

// wantEnd expects that error after any bytes.
func wantEnd(t *testing.T, why string, c net.Conn, want error) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, err := io.Copy(io.Discard, c)
	if !errors.Is(err, want) {
		t.Fatalf("%s: the end is %v, want %v", why, err, want)
	}
}

// wantRefused expects that a new connection is reset, before or after the
// client sees it established.
func wantRefused(t *testing.T, why string, r *rig) {
	t.Helper()
	c, err := net.DialTCP("tcp", nil, r.Addr())
	if err == nil {
		defer c.Close()
		wantEnd(t, why, c, syscall.ECONNRESET)
	} else if !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("%s: %v", why, err)
	}
}

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

// What one end sends arrives at the other one whole, in both directions at
// once, with the end of each direction by itself.
func TestRelay(t *testing.T) {
	r := newRig(t, Shape{}, Shape{})
	client, server := r.pair(t)
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	for _, c := range []*net.TCPConn{client, server} {
		go func() {
			c.Write(content)
			c.CloseWrite()
		}()
	}
	for _, c := range []*net.TCPConn{client, server} {
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, content) {
			t.Fatalf("read %d bytes of %d, %v", len(got), len(content), err)
		}
	}
	if down, up := r.Delivered(); down != int64(len(content)) || up != int64(len(content)) {
		t.Errorf("delivered %d and %d bytes of %d", down, up, len(content))
	}
}

// The rate is that of all connections together. It is never exceeded; that it
// is reached can be said only roughly on a busy machine.
func TestRate(t *testing.T) {
	const rate, each, conns = 4 << 20, 1 << 20, 2
	r := newRig(t, Shape{Rate: rate}, Shape{})
	began := time.Now()
	ends := make(chan error, conns)
	for range conns {
		client, server := r.pair(t)
		go func() {
			server.Write(make([]byte, each))
			server.CloseWrite()
		}()
		go func() {
			n, err := io.Copy(io.Discard, client)
			if err == nil && n != each {
				err = io.ErrUnexpectedEOF
			}
			ends <- err
		}()
	}
	for range conns {
		if err := <-ends; err != nil {
			t.Fatal(err)
		}
	}
	took, ideal := time.Since(began), time.Duration(conns*each)*time.Second/rate
	t.Logf("%v for %d bytes, ideally %v", took, conns*each, ideal)
	if took < ideal*98/100 || took > ideal*3 {
		t.Errorf("%d bytes took %v, want about %v", conns*each, took, ideal)
	}
}

// A byte needs the delay of its direction, and the first one also the round
// trip of TCP's handshake.
func TestDelay(t *testing.T) {
	const down, up = 60 * time.Millisecond, 30 * time.Millisecond
	r := newRig(t, Shape{Delay: down}, Shape{Delay: up})
	began := time.Now()
	client := r.dial(t)
	send(t, client, "ping")
	server, err := r.server.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	for _, step := range []struct {
		why      string
		from, to net.Conn
		least    time.Duration
	}{
		{"the first bytes", nil, server, down + 2*up},
		{"the answer", server, client, down},
		{"the next ones", client, server, up},
	} {
		if step.from != nil {
			began = time.Now()
			send(t, step.from, "ping")
		}
		wantBytes(t, step.why, step.to, "ping")
		took := time.Since(began)
		t.Logf("%s: %v, ideally %v", step.why, took, step.least)
		if took < step.least || took > 5*step.least {
			t.Errorf("%s took %v, want about %v", step.why, took, step.least)
		}
	}
}

// A receiver that doesn't read, and a blackhole, stop the sender after a
// bounded number of bytes, however small its writes are.
func TestBounded(t *testing.T) {
	for name, stop := range map[string]func(*rig){
		"slow reader": func(*rig) {},
		"blackhole":   func(r *rig) { r.Set(Blackhole) },
	} {
		for _, size := range []int{16, 64 << 10} {
			t.Run(name, func(t *testing.T) {
				shape := Shape{Rate: 10 << 20, Delay: 5 * time.Millisecond, Queue: 64 << 10}
				r := newRig(t, shape, shape)
				_, server := r.pair(t)
				stop(r)
				server.SetNoDelay(true)
				server.SetWriteBuffer(32 << 10)
				data := make([]byte, size)
				written := 0
				for {
					server.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
					n, err := server.Write(data)
					written += n
					if errors.Is(err, os.ErrDeadlineExceeded) {
						break
					} else if err != nil {
						t.Fatal(err)
					}
					if written > 4<<20 {
						t.Fatalf("the link took %d bytes that nobody reads", written)
					}
				}
				t.Logf("wrote %d bytes", written)
			})
		}
	}
}

// In a blackhole everything stands still, also ends, and goes on after it.
func TestBlackhole(t *testing.T) {
	r := newRig(t, Shape{Delay: 20 * time.Millisecond}, Shape{Delay: 20 * time.Millisecond})
	client, server := r.pair(t)
	ending, ended := r.pair(t)
	reset, wasReset := r.pair(t)
	send(t, server, "on its way")
	r.Set(Blackhole)
	send(t, server, ", swallowed")
	ending.CloseWrite()
	reset.SetLinger(0)
	reset.Close()
	newcomer := r.dial(t)
	send(t, newcomer, "anybody?")
	wantSilence(t, "bytes in a blackhole", client)
	wantSilence(t, "a FIN in a blackhole", ended)
	wantSilence(t, "an RST in a blackhole", wasReset)
	wantSilence(t, "a new connection in a blackhole", newcomer)
	if c := r.Condition(); c != Blackhole {
		t.Errorf("the link is %v", c)
	}
	r.Set(Up)
	wantBytes(t, "after the blackhole", client, "on its way, swallowed")
	wantEnd(t, "the FIN after the blackhole", ended, nil)
	wantEnd(t, "the RST after the blackhole", wasReset, syscall.ECONNRESET)
	late, err := r.server.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	wantBytes(t, "the new connection after the blackhole", late, "anybody?")
}

// A cut ends what there is and refuses what is new, until the link is restored.
func TestCut(t *testing.T) {
	for _, test := range []struct {
		cut Condition
		end error
	}{
		{Reset, syscall.ECONNRESET},
		{Closed, nil},
	} {
		t.Run(test.cut.String(), func(t *testing.T) {
			r := newRig(t, Shape{Rate: 1 << 20}, Shape{Rate: 1 << 20})
			client, server := r.pair(t)
			wrote := make(chan error, 1)
			go func() {
				_, err := server.Write(make([]byte, 8<<20)) // it fails in the middle
				wrote <- err
			}()
			wantBytes(t, "before the cut", client, strings.Repeat("\x00", 1000))
			r.Set(test.cut)
			wantEnd(t, "the client", client, test.end)
			if test.end == nil || !errors.Is(<-wrote, test.end) { // the kernel tells of a reset once
				wantEnd(t, "the server", server, test.end)
			}
			wantRefused(t, "a new connection", r)
			r.Set(Up)
			client, server = r.pair(t)
			send(t, server, "again")
			wantBytes(t, "after the restoration", client, "again")
		})
	}
}

// More connections than a link carries are reset.
func TestTooManyConnections(t *testing.T) {
	r := newRig(t, Shape{}, Shape{})
	for range maxConns {
		r.pair(t)
	}
	wantRefused(t, "one too many", r)
}

// Where no server listens, the client's connection is reset.
func TestNoServer(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	l, err := New(ln.Addr().String(), Shape{}, Shape{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	wantRefused(t, "without a server", &rig{Link: l})
}

func TestBadShape(t *testing.T) {
	for _, s := range []Shape{{Rate: -1}, {Delay: -1}, {Queue: -1}} {
		for _, pair := range [][2]Shape{{s, {}}, {{}, s}} {
			if _, err := New("127.0.0.1:1", pair[0], pair[1]); err == nil {
				t.Errorf("the shapes %+v were taken", pair)
			}
		}
	}
}

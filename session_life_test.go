package tcpls

import (
	"context"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
)

// blockedCalls begins every call of a session that can wait, on c, whose peer
// does nothing.
func blockedCalls(t *testing.T, c *Session, st, full *Stream) map[string]<-chan error {
	t.Helper()
	calls := map[string]<-chan error{
		"AcceptStream": begun(func() error {
			_, err := c.AcceptStream(t.Context())
			return err
		}),
		"Stream.Read": begun(func() error {
			_, err := st.Read(make([]byte, 1))
			return err
		}),
		"Stream.WriteTo": begun(func() error {
			_, err := full.WriteTo(io.Discard)
			return err
		}),
		"Stream.Write": begun(func() error {
			_, err := full.Write(make([]byte, 4<<20))
			return err
		}),
	}
	synctest.Wait()
	for name, done := range calls {
		wantBlocked(t, name, done)
	}
	return calls
}

// Whatever ends a session without its peer's word is an error of every call,
// and never the end of a stream.
func TestTruncation(t *testing.T) {
	for _, test := range []struct {
		name string
		cut  func(p *memPair)
		want []error
	}{
		{"FIN", func(p *memPair) { _ = p.serverConn.CloseWrite() }, []error{ErrTruncated}},
		{"RST", func(p *memPair) { p.serverConn.Reset() }, []error{syscall.ECONNRESET}},
		{"FIN in the middle of a record", func(p *memPair) {
			_, _ = p.serverConn.Write([]byte{23, 3, 3, 1, 0, 1, 2, 3})
			_ = p.serverConn.CloseWrite()
		}, []error{ErrTruncated}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newMemPair(t, memnet.Link{}, nil)
				c, _ := p.open(t)
				d, _ := p.open(t)
				calls := blockedCalls(t, p.client, c, d)
				calls["Flush"] = begun(func() error { return d.Flush(t.Context()) })
				delete(calls, "Flush") // everything sent was acknowledged by now, or not
				test.cut(p)
				for name, done := range calls {
					err := <-done
					for _, want := range test.want {
						wantErrorIs(t, name, err, want)
					}
					var failed *PathError
					if !errors.As(err, &failed) || failed.Path != 0 {
						t.Errorf("%s: error %v (%T) isn't a PathError of path 0", name, err, err)
					}
					if errors.Is(err, io.EOF) {
						t.Errorf("%s: a cut connection looks like the end of a stream", name)
					}
				}
				_, err := p.client.OpenStream(t.Context())
				wantErrorIs(t, "OpenStream on a dead session", err, test.want[0])
				_, err = p.client.Ping(t.Context())
				wantErrorIs(t, "Ping on a dead session", err, test.want[0])
				wantErrorIs(t, "UpdateKeys on a dead session", p.client.UpdateKeys(t.Context()), test.want[0])
				wantErrorIs(t, "the cause of the session's context", context.Cause(p.client.Context()), test.want[0])
			})
		})
	}
}

// What arrived before the connection broke can still be read.
func TestTruncationKeepsArrived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMemPair(t, memnet.Link{}, nil)
		c, s := p.open(t)
		mustWrite(t, s, []byte("arrived"))
		synctest.Wait()
		time.Sleep(time.Second)
		_ = p.serverConn.CloseWrite() // fails if it is closed, which the test would notice
		synctest.Wait()
		wantRead(t, "what arrived before the end", c, []byte("arrived"))
		_, err := c.Read(make([]byte, 1))
		wantErrorIs(t, "Read behind it", err, ErrTruncated)
	})
}

func TestContexts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMemPair(t, memnet.Link{}, func(client, server *Config) { server.MaxStreams = 1 })
		c, _ := p.open(t)
		p.clientConn.Stall(true)
		mustWrite(t, c, []byte("x"))
		why := errors.New("enough")
		for name, call := range map[string]func(context.Context) error{
			"OpenStream": func(ctx context.Context) error {
				_, err := p.client.OpenStream(ctx)
				return err
			},
			"AcceptStream": func(ctx context.Context) error {
				_, err := p.client.AcceptStream(ctx)
				return err
			},
			"Ping": func(ctx context.Context) error {
				_, err := p.client.Ping(ctx)
				return err
			},
			"Flush": c.Flush,
		} {
			ctx, cancel := context.WithCancelCause(t.Context())
			done := begun(func() error { return call(ctx) })
			synctest.Wait()
			wantBlocked(t, name, done)
			cancel(why)
			wantErrorIs(t, name, <-done, why)
			done = begun(func() error { return call(ctx) })
			wantErrorIs(t, name+" with a context that has ended", <-done, why)
		}

		// The second update has to wait for the end of the first, which the
		// stalled path can't bring.
		if err := p.client.UpdateKeys(t.Context()); err != nil && !errors.Is(err, why) {
			ctx, cancel := context.WithCancelCause(t.Context())
			cancel(why)
			wantErrorIs(t, "UpdateKeys", p.client.UpdateKeys(ctx), why)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		done := begun(func() error { return p.client.Shutdown(ctx) })
		synctest.Wait()
		wantBlocked(t, "Shutdown with an open stream", done)
		cancel(why)
		wantErrorIs(t, "Shutdown", <-done, why)
	})
}

func TestSessionCloseFlushes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMemPair(t, memnet.Link{Rate: 1 << 20, Delay: 50 * time.Millisecond}, nil)
		c, s := p.open(t)
		half, other := p.open(t)
		data := testBytes(1, 900_000) // most of a second at this rate
		mustWrite(t, c, data)
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		mustWrite(t, half, []byte("not ended"))
		closed := begun(p.client.Close)
		synctest.Wait()
		_, err := p.client.OpenStream(t.Context())
		wantErrorIs(t, "OpenStream while the session closes", err, ErrSessionClosed)
		_, err = half.Write([]byte("more"))
		wantErrorIs(t, "Write while the session closes", err, ErrSessionClosed)
		if err := <-closed; err != nil {
			t.Errorf("Close: %v", err)
		}
		wantRead(t, "what was written before Close", s, data)
		wantEOF(t, "the end of a stream that was closed", s)
		wantRead(t, "what was written before Close", other, []byte("not ended"))
		_, err = other.Read(make([]byte, 1))
		wantErrorIs(t, "the end of a stream that wasn't closed", err, &SessionError{})
		var e *SessionError
		if !errors.As(err, &e) || !e.Remote || e.Application {
			t.Errorf("the peer's Close is %#v", err)
		}
		wantErrorIs(t, "a closed session", err, net.ErrClosed)
		if err := p.client.Close(); err != nil {
			t.Errorf("a second Close: %v", err)
		}
		if err := p.server.Close(); err != nil {
			t.Errorf("Close of the other end: %v", err)
		}
	})
}

func TestCloseWithError(t *testing.T) {
	for _, test := range []struct {
		name   string
		code   uint64
		reason string
		got    string
	}{
		{"plain", 42, "no more", "no more"},
		{"largest", 1<<62 - 1, "", ""},
		{"long reason", 0, string(make([]byte, 5000)), string(make([]byte, 1024))},
		{"no UTF-8", 1, "a\xffb", "a\uFFFDb"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newMemPair(t, memnet.Link{}, nil)
				c, s := p.open(t)
				read := begun(func() error {
					_, err := s.Read(make([]byte, 1))
					return err
				})
				if err := p.client.CloseWithError(test.code, test.reason); err != nil {
					t.Fatalf("CloseWithError: %v", err)
				}
				var e *SessionError
				if err := <-read; !errors.As(err, &e) || *e != (SessionError{Code: test.code, Application: true, Remote: true, Reason: test.got}) {
					t.Errorf("the peer's Read returned %#v", err)
				}
				_, err := c.Write([]byte("x"))
				if !errors.As(err, &e) || e.Code != test.code || !e.Application || e.Remote {
					t.Errorf("Write after CloseWithError: %#v", err)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		p := newMemPair(t, memnet.Link{}, nil)
		wantErrorIs(t, "a code of 63 bits", p.client.CloseWithError(math.MaxInt64, ""), errCode)
	})
}

// The code reaches the peer even from behind a socket that is full.
func TestCloseWithErrorBehindData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMemPair(t, memnet.Link{Rate: 1 << 20, Queue: 16 << 10}, func(client, server *Config) {
			server.StreamRecvWindow, server.SessionRecvWindow = 8<<20, 8<<20
		})
		c, s := p.open(t)
		go func() {
			_, _ = c.Write(make([]byte, 8<<20)) // ends with the session
		}()
		synctest.Wait()
		go func() {
			_, _ = io.Copy(io.Discard, s)
		}()
		if err := p.client.CloseWithError(42, "in a hurry"); err != nil {
			t.Fatal(err)
		}
		<-p.server.Context().Done()
		wantErrorIs(t, "what the peer learns", context.Cause(p.server.Context()), &SessionError{Code: 42, Application: true})
	})
}

func TestCloseBothAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMemPair(t, memnet.Link{Delay: 10 * time.Millisecond}, nil)
		began := time.Now()
		client, server := begun(p.client.Close), begun(p.server.Close)
		if err := <-client; err != nil {
			t.Errorf("Close of the client: %v", err)
		}
		if err := <-server; err != nil {
			t.Errorf("Close of the server: %v", err)
		}
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("two Closes that cross took %v", took)
		}
	})
}

// A peer that has vanished doesn't hold Close up for longer than CloseTimeout.
func TestCloseStalled(t *testing.T) {
	for _, written := range []int{0, 1000, 400_000} {
		synctest.Test(t, func(t *testing.T) {
			p := newMemPair(t, memnet.Link{}, func(client, _ *Config) { client.CloseTimeout = 3 * time.Second })
			c, _ := p.open(t)
			time.Sleep(time.Second)
			p.clientConn.Stall(true)
			mustWrite(t, c, make([]byte, written))
			began := time.Now()
			err := p.client.Close()
			if took := time.Since(began); took > 3*time.Second {
				t.Errorf("Close took %v with a CloseTimeout of 3s", took)
			}
			if written > 0 {
				wantErrorIs(t, "Close with lost bytes", err, os.ErrDeadlineExceeded)
			}
			p.serverConn.Reset()
		})
	}
}

func TestShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMemPair(t, memnet.Link{Delay: time.Millisecond}, nil)
		c, s := p.open(t)
		late, err := p.client.OpenStream(t.Context()) // the peer doesn't know of it yet
		if err != nil {
			t.Fatal(err)
		}
		done := begun(func() error { return p.server.Shutdown(t.Context()) })
		synctest.Wait()
		mustWrite(t, late, []byte("too late"))
		_, err = late.Read(make([]byte, 1))
		wantStreamError(t, "a stream that crossed GOING_AWAY", err, StreamCodeRefused, true)
		_, err = late.Write([]byte("x"))
		wantStreamError(t, "a stream that crossed GOING_AWAY", err, StreamCodeRefused, true)
		_, err = p.client.OpenStream(t.Context())
		wantErrorIs(t, "OpenStream to a peer that goes away", err, ErrGoingAway)

		mustWrite(t, c, []byte("request"))
		wantRead(t, "a stream of before", s, []byte("request"))
		mustWrite(t, s, []byte("answer"))
		time.Sleep(time.Second)
		wantBlocked(t, "Shutdown with an open stream", done)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		wantRead(t, "a stream of before", c, []byte("answer"))
		wantEOF(t, "a stream of before", c)
		if err := c.Close(); err != nil && !errors.Is(err, ErrStreamClosed) {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		<-p.client.Context().Done()
		wantErrorIs(t, "the client after Shutdown", context.Cause(p.client.Context()), &SessionError{})
	})
}

func TestListenerShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := newTestConfigs()
		inner := memnet.Listen(memnet.Link{Delay: time.Millisecond})
		l, err := NewListener(inner, server)
		if err != nil {
			t.Fatal(err)
		}
		var sessions []*Session
		var streams []*Stream
		for range 3 {
			conn, err := inner.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			c, err := Client(t.Context(), conn, client)
			if err != nil {
				t.Fatal(err)
			}
			s, err := l.Accept(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			st, _ := openStream(t, c, s)
			sessions, streams = append(sessions, c), append(streams, st)
			go echo(s)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		done := begun(func() error { return l.Shutdown(ctx) })
		synctest.Wait()
		wantBlocked(t, "Shutdown with open streams", done)
		for _, st := range streams[:2] {
			if err := st.Reset(1); err != nil {
				t.Error(err)
			}
			_ = st.CloseRead() // a stream that both ends reset needn't be read
		}
		// The third one doesn't go until the context ends.
		wantErrorIs(t, "Shutdown", <-done, context.DeadlineExceeded)
		_, err = l.Accept(t.Context())
		wantErrorIs(t, "Accept after Shutdown", err, ErrListenerClosed)
		for _, c := range sessions {
			<-c.Context().Done()
			_ = c.Close() // has ended
		}
	})
}

// Once Listener.Streams is closed, its sessions take no more streams, and those
// that were accepted go on.
func TestListenerStreamsClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := newTestConfigs()
		inner := memnet.Listen(memnet.Link{Delay: time.Millisecond})
		l, err := NewListener(inner, server)
		if err != nil {
			t.Fatal(err)
		}
		streams := l.Streams()
		conn, err := inner.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		c, err := Client(t.Context(), conn, client)
		if err != nil {
			t.Fatal(err)
		}
		var open []*Stream
		for range 3 {
			st, err := c.OpenStream(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			mustWrite(t, st, []byte("request"))
			open = append(open, st)
		}
		served, err := streams.Accept()
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if err := streams.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
		for _, st := range open[1:] {
			_, err := st.Read(make([]byte, 1))
			wantStreamError(t, "a stream that nobody accepted", err, StreamCodeRefused, true)
		}
		synctest.Wait() // GOAWAY may come behind the refusals
		_, err = c.OpenStream(t.Context())
		wantErrorIs(t, "OpenStream after the listener's end", err, ErrGoingAway)
		wantRead(t, "a stream that was accepted", served, []byte("request"))
		mustWrite(t, served, []byte("answer"))
		wantRead(t, "a stream that was accepted", open[0], []byte("answer"))
		if err := served.Close(); err != nil {
			t.Error(err)
		}
		_ = open[0].Close() // its peer has ended one direction
		if err := l.Shutdown(t.Context()); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		<-c.Context().Done()
		_ = c.Close() // has ended
	})
}

// A reset that the kernel reports is what the calls return.
func TestResetTCP(t *testing.T) {
	client, server := newTestConfigs()
	c, s := newTCPPair(t, client, server)
	a, _ := openStream(t, c, s)
	read := begun(func() error {
		_, err := a.Read(make([]byte, 1))
		return err
	})
	conn := s.path().conn.(*net.TCPConn)
	if err := conn.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	err := <-read
	var failed *PathError
	if !errors.As(err, &failed) {
		t.Errorf("Read: %v isn't a PathError", err)
	}
	wantErrorIs(t, "Read", err, syscall.ECONNRESET)
}

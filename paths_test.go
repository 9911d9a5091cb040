package tcpls

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
	"github.com/go-tcpls/tcpls/internal/record"
)

// A world is a client and a server with as many connections as they like, in
// memory.
type world struct {
	listener       *Listener
	inner          *memnet.Listener
	client, server *Session

	mu    sync.Mutex
	conns []*memnet.Conn // the client's ends, in the order of their dialing
	down  bool           // nobody answers
	// refused is when somebody dialed while nobody answered.
	refused []time.Time
}

// newWorld opens a session over a link; further paths have the same.
func newWorld(t testing.TB, link memnet.Link, change func(client, server *Config)) *world {
	t.Helper()
	client, server := newTestConfigs()
	smallWindows(client, server)
	for _, c := range []*Config{client, server} {
		c.ReconnectFor, c.MaxPaths = 0, 0
	}
	if change != nil {
		change(client, server)
	}
	inner := memnet.Listen(link)
	w := &world{inner: inner}
	var err error
	if w.listener, err = NewListener(inner, server); err != nil {
		t.Fatal(err)
	}
	d := &Dialer{Config: client, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, err := inner.Dial(ctx)
		if w.isDown() {
			err = errors.New("network is unreachable")
			w.mu.Lock()
			w.refused = append(w.refused, time.Now())
			w.mu.Unlock()
		}
		if err != nil {
			return nil, err
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.conns = append(w.conns, conn)
		return conn, nil
	}}
	if w.client, err = d.Dial(context.Background(), "tcp", "localhost:443"); err != nil {
		t.Fatal(err)
	}
	if w.server, err = w.listener.Accept(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var both sync.WaitGroup
		both.Go(func() { _ = w.client.Close() }) // the test has judged what it wanted to
		both.Go(func() { _ = w.server.Close() })
		both.Wait()
		_ = w.listener.Close()
	})
	return w
}

func (w *world) conn(i int) *memnet.Conn {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.conns[i]
}

// dialed is how many connections there were.
func (w *world) dialed() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.conns)
}

// setDown makes further connections impossible, or ends that.
func (w *world) setDown(down bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = down
}

func (w *world) isDown() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.down
}

func (w *world) addPath(t testing.TB) *Path {
	t.Helper()
	p, err := w.client.AddPath(context.Background(), PathSpec{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// startTransfer begins to send want from one end to the other, and the end of
// the stream behind it.
func startTransfer(t testing.TB, from, to *Session, want []byte) (st, peer *Stream, sent <-chan error) {
	t.Helper()
	st, err := from.OpenStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sent = begun(func() error {
		_, err := st.Write(want)
		return errors.Join(err, st.CloseWrite())
	})
	if peer, err = to.AcceptStream(t.Context()); err != nil {
		t.Fatal(err)
	}
	return st, peer, sent
}

// wideLink is a path of 40 ms there and back and 80 Mbit/s.
var wideLink = memnet.Link{Rate: 10 << 20, Delay: 20 * time.Millisecond}

// segmentTime is more than a TLS record needs on wideLink.
const segmentTime = 5 * time.Millisecond

// What breaks a path, seen from the client's end of the connection.
var breaks = map[string]func(c *memnet.Conn){
	"RST":       func(c *memnet.Conn) { c.Reset() },
	"FIN":       func(c *memnet.Conn) { _ = c.CloseWrite() },
	"closed":    func(c *memnet.Conn) { _ = c.Close() },
	"blackhole": func(c *memnet.Conn) { c.Stall(true) },
	"one way":   func(c *memnet.Conn) { c.StallSend(true) },
}

// A transfer in either direction goes on, whatever breaks its path, with a path
// that stands by and without.
func TestFailover(t *testing.T) {
	for name, cut := range breaks {
		for _, standby := range []bool{true, false} {
			for _, upload := range []bool{true, false} {
				test := name
				if standby {
					test += ", standby"
				}
				if upload {
					test += ", upload"
				}
				t.Run(test, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { testFailover(t, cut, standby, upload) })
				})
			}
		}
	}
}

func testFailover(t *testing.T, cut func(*memnet.Conn), standby, upload bool) {
	w := newWorld(t, wideLink, nil)
	if standby {
		w.addPath(t)
	}
	from, to := w.server, w.client
	if upload {
		from, to = to, from
	}
	want := testBytes(1, 20<<20)
	st, peer, sent := startTransfer(t, from, to, want)
	wantRead(t, "before the cut", peer, want[:5<<20])
	cut(w.conn(0))
	began := time.Now()
	var gap time.Duration
	last := began
	rest := want[5<<20:]
	for len(rest) > 0 {
		n := min(len(rest), 16<<10)
		wantRead(t, "after the cut", peer, rest[:n])
		rest = rest[n:]
		gap = max(gap, time.Since(last))
		last = time.Now()
	}
	wantEOF(t, "after all", peer)
	if err := <-sent; err != nil {
		t.Error(err)
	}
	t.Logf("longest gap %v", gap)
	if gap > time.Second {
		t.Errorf("nothing arrived for %v", gap)
	}
	if err := st.Flush(t.Context()); err != nil {
		t.Error(err)
	}
}

// A migration in mid-transfer delivers everything, without a gap, and closes
// the old path (paper, section 4.3).
func TestMigrate(t *testing.T) {
	for _, upload := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, wideLink, nil)
			from, to := w.server, w.client
			if upload {
				from, to = to, from
			}
			want := testBytes(1, 20<<20)
			_, peer, sent := startTransfer(t, from, to, want)
			wantRead(t, "before the migration", peer, want[:5<<20])
			moved := begun(func() error {
				_, err := w.client.Migrate(t.Context(), PathSpec{})
				return err
			})
			var gap time.Duration
			last := time.Now()
			for rest := want[5<<20:]; len(rest) > 0; {
				n := min(len(rest), 16<<10)
				wantRead(t, "during the migration", peer, rest[:n])
				rest = rest[n:]
				gap = max(gap, time.Since(last))
				last = time.Now()
			}
			wantEOF(t, "after all", peer)
			if err := errors.Join(<-sent, <-moved); err != nil {
				t.Error(err)
			}
			t.Logf("upload %v: longest gap %v", upload, gap)
			if gap > 2*wideLink.Delay+segmentTime {
				t.Errorf("nothing arrived for %v, longer than a round trip", gap)
			}
			for _, s := range []*Session{w.client, w.server} {
				paths := s.Paths()
				if len(paths) != 1 || paths[0].ID() != 1 {
					t.Errorf("paths after the migration: %v", paths)
				}
				if p := paths[0]; p.Stats().RecordsResent != 0 {
					t.Errorf("%d records were sent twice", p.Stats().RecordsResent)
				}
			}
		})
	}
}

// Events tell what a failover does, in order.
func TestEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, wideLink, nil)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var got []EventKind
		all := begun(func() error {
			for e := range w.client.Events(ctx) {
				got = append(got, e.Kind)
			}
			return nil
		})
		synctest.Wait()
		first := w.client.Paths()[0]
		p := w.addPath(t)
		w.conn(0).Reset()
		time.Sleep(time.Second)
		if err := w.client.Paths()[0].Close(ctx); err != ErrLastPath {
			t.Errorf("Close of the last path: %v", err)
		}
		if err := first.Close(ctx); err != nil {
			t.Errorf("Close of a path that has failed: %v", err)
		}
		if s := p.State(); s != PathActive {
			t.Errorf("state %v", s)
		}
		st, peer := openStream(t, w.client, w.server)
		for _, to := range []*Path{p, p, nil} {
			if err := st.SetPath(to); err != nil {
				t.Error(err)
			}
		}
		if err := errors.Join(st.Close(), peer.Close()); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		cancel()
		<-all
		want := []EventKind{EventPathJoined, EventPathFailed, EventMainPath,
			EventStreamOpened, EventStreamAttached, EventStreamAttached, EventStreamClosed}
		if !slices.Equal(got, want) {
			t.Errorf("events %v, want %v", got, want)
		}
	})
}

// Failed paths leave nothing behind of what they still had to write, however
// full their sockets were: it would count against the memory of the next ones.
func TestFailoverHoldsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, wideLink, nil)
		st, err := w.client.OpenStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		const paths, piece = 5, 3 << 20
		want := testBytes(1, paths*piece)
		sent := begun(func() error {
			_, err := st.Write(want)
			return errors.Join(err, st.Flush(t.Context()))
		})
		peer, err := w.server.AcceptStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for i := range paths {
			wantRead(t, "from one path after the other", peer, want[:piece])
			want = want[piece:]
			if i < paths-1 {
				w.addPath(t)
				w.conn(i).Reset()
			}
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if held := w.client.gate.held.Load(); held > 2*record.LargeChunk {
			t.Errorf("%d bytes of chunks are held, though all is acknowledged", held)
		}
	})
}

// Of too many events those of streams are missed first.
func TestEventsMissed(t *testing.T) {
	var w observers
	o := w.add()
	w.tell(Event{Kind: EventPathFailed})
	for range 2 * maxEvents {
		w.tell(Event{Kind: EventStreamOpened, Stream: new(Stream)})
	}
	w.tell(Event{Kind: EventPathJoined})
	got := w.take(o)
	if n := len(got); n != maxEvents+1 || got[0].Kind != EventMissed || got[1].Kind != EventPathFailed || got[n-1].Kind != EventPathJoined {
		t.Errorf("%d events: %v", n, got)
	}
	for range maxEvents + 1 {
		w.tell(Event{Kind: EventNetwork})
	}
	if got = w.take(o); len(got) != maxEvents+1 || got[0].Kind != EventMissed {
		t.Errorf("%d events: %v", len(got), got)
	}
}

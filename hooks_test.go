package tcpls

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/wire"
)

// A diary notes which hooks of a session were called.
type diary struct {
	mu    sync.Mutex
	notes []string
}

func (d *diary) note(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.notes = append(d.notes, fmt.Sprintf(format, args...))
}

func (d *diary) has(note string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Contains(d.notes, note)
}

func (d *diary) count(note string) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, other := range d.notes {
		if other == note {
			n++
		}
	}
	return n
}

// hooks note all calls, and take every lock of the session that a caller could
// hold.
func (d *diary) hooks() *Hooks {
	lock := func(mu sync.Locker) {
		mu.Lock()
		defer mu.Unlock()
	}
	free := func(s *Session, p *Path) {
		lock(&s.switchMu)
		lock(&s.inMu)
		lock(&s.mu)
		if p != nil {
			lock(&p.outMu)
		}
	}
	path := func(what string) func(*Session, *Path) {
		return func(s *Session, p *Path) {
			free(s, p)
			d.note("%s %d", what, p.ID())
		}
	}
	return &Hooks{
		PathJoined: path("joined"), PathSuspect: path("suspect"), PathRecovered: path("recovered"),
		PathClosed: path("closed"), MainPath: path("main"),
		PathFailed: func(s *Session, p *Path, err error) {
			free(s, p)
			d.note("failed %d: %v", p.ID(), err != nil)
		},
		NoPath: func(s *Session, err error) {
			free(s, nil)
			d.note("no path: %v", err != nil)
		},
		StreamOpened: func(st *Stream) {
			free(st.sess, nil)
			d.note("opened %d", st.ID())
		},
		StreamClosed: func(st *Stream) {
			free(st.sess, nil)
			d.note("ended %d", st.ID())
		},
		Event: func(s *Session, e Event) {
			free(s, e.Path)
			d.note("event: %v", e.Kind)
		},
	}
}

func TestHooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d, peers diary
		w := newWorld(t, wideLink, func(client, server *Config) {
			client.Hooks, server.Hooks = d.hooks(), peers.hooks()
		})
		want := func(why string, d *diary, notes ...string) {
			t.Helper()
			synctest.Wait()
			for _, note := range notes {
				if !d.has(note) {
					t.Errorf("%s: no hook said %q, but %q", why, note, d.notes)
				}
			}
		}
		second := w.addPath(t)
		want("a second path", &d, "joined 1", "event: path joined")
		st, peer := openStream(t, w.client, w.server)
		want("a stream", &d, fmt.Sprint("opened ", st.ID()))
		want("a stream", &peers, fmt.Sprint("opened ", st.ID()))

		w.conn(0).Stall(true)
		mustWrite(t, st, testBytes(1, 1<<10))
		wantRead(t, "over another path", peer, testBytes(1, 1<<10))
		want("silence", &d, "suspect 0", "main 1", "event: path suspect", "event: main path")
		w.conn(0).Stall(false)
		time.Sleep(2 * time.Second)
		want("an answer", &d, "recovered 0", "event: path recovered")
		if err := second.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		want("a path that was closed", &d, "closed 1", "main 0", "event: path closed")
		want("a path that was closed", &peers, "closed 1")

		w.setDown(true)
		w.conn(0).Reset()
		time.Sleep(time.Second)
		want("the last path", &d, "failed 0: true", "no path: true", "event: path failed", "event: no path")
		w.setDown(false)
		time.Sleep(5 * time.Second)
		want("a new one", &d, "joined 2", "main 2")

		if err := w.server.Advertise(addrPorts("203.0.113.7:443"), nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		want("an address", &d, "event: address added")
		for _, end := range []*Stream{st, peer} {
			if err := end.Close(); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(time.Second)
		want("both ends closed", &d, fmt.Sprint("ended ", st.ID()))
		want("both ends closed", &peers, fmt.Sprint("ended ", st.ID()))
		for _, once := range []string{"joined 1", "suspect 0", "closed 1", "no path: true", fmt.Sprint("opened ", st.ID())} {
			if n := d.count(once); n != 1 {
				t.Errorf("a hook said %q %d times", once, n)
			}
		}
	})
}

// A session's end ends its streams for the hooks too.
func TestHookOfSessionEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d diary
		w := newWorld(t, wideLink, func(client, _ *Config) { client.Hooks = d.hooks() })
		st, err := w.client.OpenStream(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if err := w.client.CloseWithError(1, "test"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !d.has(fmt.Sprint("ended ", st.ID())) {
			t.Errorf("no hook told of the stream's end: %q", d.notes)
		}
	})
}

// What a peer says makes events only where it changes something, and hooks that
// are slow are called one behind the other; few events wait for them.
func TestSlowHooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d diary
		var at atomic.Int32
		proceed := make(chan struct{})
		p := newTestPeer(t, false, func(c *Config) {
			c.Hooks = &Hooks{Event: func(_ *Session, e Event) {
				if at.Add(1) > 1 {
					t.Error("two hooks are called at the same time")
				}
				<-proceed
				d.note("%v", e.Kind)
				at.Add(-1)
			}}
		})
		p.writeControl(wire.AppendAddAddress(nil, anAddress(1)))
		synctest.Wait()
		for range 1000 {
			p.writeControl(wire.AppendRemoveAddress(nil, 1))
		}
		synctest.Wait()
		s := p.sess
		if n := len(s.later.waiting.waiting); n != 1 { // the first one's hook is being called
			t.Errorf("%d events wait after an address that came and went, want 1", n)
		}
		for range 2 * maxLater {
			s.tellSoon(Event{Kind: EventNetwork})
		}
		if n := len(s.later.waiting.waiting); n != maxLater {
			t.Errorf("%d events wait for slow hooks, want %d", n, maxLater)
		}
		close(proceed)
		synctest.Wait()
		if n := d.count(EventNetwork.String()); n != maxLater {
			t.Errorf("%d of the network's events were told, want the last %d", n, maxLater)
		}
		if !d.has(EventMissed.String()) {
			t.Error("nobody told that events were missed")
		}
		s.tellSoon(Event{Kind: EventCCEnded})
		synctest.Wait()
		if !d.has(EventCCEnded.String()) {
			t.Error("nothing is told any more")
		}
	})
}

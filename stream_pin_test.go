package tcpls

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// In ModePinned the streams share the paths by number and weight, also when a
// path comes or goes while they run.
func TestModePinned(t *testing.T) {
	const each = 4 << 20
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, mbit(20, 10*time.Millisecond), func(client, server *Config) {
			client.Mode = ModePinned // the server follows
			client.SessionRecvWindow = 16 << 20
		})
		if _, err := w.client.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		var done []<-chan error
		var streams []*Stream
		for i := range 8 {
			want := testBytes(uint64(i), each)
			st, peer := openStream(t, w.server, w.client)
			st.SetPriority(3, true)
			streams = append(streams, st)
			done = append(done, begun(func() error {
				_, err := st.Write(want)
				return errors.Join(err, st.CloseWrite())
			}), begun(func() error {
				wantRead(t, "a stream of its own", peer, want)
				wantEOF(t, "a stream of its own", peer)
				return nil
			}))
		}
		counts := func() map[*Path]int {
			n := make(map[*Path]int)
			for _, st := range streams {
				n[st.Path()]++
			}
			return n
		}
		time.Sleep(500 * time.Millisecond)
		first := w.server.Paths()[0]
		if n := counts(); n[first] != 8 {
			t.Errorf("with one path: %v", n)
		}
		second := w.addPath(t)
		time.Sleep(500 * time.Millisecond)
		if n := counts(); n[first] != 4 {
			t.Errorf("of 8 streams %d are on the first of two paths", n[first])
		}
		if err := second.SetWeight(3); err != nil {
			t.Fatal(err)
		}
		time.Sleep(500 * time.Millisecond)
		if n := counts(); n[first] != 2 {
			t.Errorf("of 8 streams %d are on the first path, where the second one has weight 3", n[first])
		}
		w.conn(0).Reset()
		time.Sleep(500 * time.Millisecond)
		if n := counts(); n[first] != 0 {
			t.Errorf("%d streams are on a path that is gone", n[first])
		}
		for _, d := range done {
			if err := <-d; err != nil {
				t.Error(err)
			}
		}
		for _, st := range streams {
			if err := st.Flush(t.Context()); err != nil {
				t.Error(err)
			}
		}
		for _, p := range w.server.Paths() {
			if n := p.allotted.Load(); n != 0 {
				t.Errorf("path %d still counts %d streams", p.ID(), n)
			}
		}
	})
}

// A stream on a path of its own isn't held up by a stalled one that carries
// another stream, even before anybody suspects it.
func TestPinnedWithoutBlocking(t *testing.T) {
	for mode, want := range map[Mode]int32{ModePinned: 1, ModeFailover: 0} {
		t.Run(mode.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, wideLink, func(client, server *Config) { client.Mode, server.Mode = mode, mode })
				w.addPath(t)
				var arrived atomic.Int32
				var both sync.WaitGroup
				ready := make(chan struct{})
				for range 2 {
					st, peer := openStream(t, w.client, w.server)
					mustWrite(t, st, []byte{1})
					wantRead(t, "before the stall", peer, []byte{1})
					both.Go(func() {
						<-ready
						mustWrite(t, st, testBytes(2, 64<<10))
					})
					both.Go(func() {
						wantRead(t, "during the stall", peer, testBytes(2, 64<<10))
						arrived.Add(1)
					})
				}
				time.Sleep(time.Second)
				w.conn(0).Stall(true)
				close(ready)
				time.Sleep(minPatience / 2)
				if n := arrived.Load(); n != want {
					t.Errorf("%d of two streams got past a stalled path, want %d", n, want)
				}
				both.Wait() // another path takes over
			})
		})
	}
}

// What the application has chosen stays, and SetPath(nil) leaves the choice to
// the mode again.
func TestPinnedAndSetPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, wideLink, func(client, _ *Config) { client.Mode = ModePinned })
		own := w.addPath(t)
		var ends []*Stream
		for range 4 {
			st, peer := openStream(t, w.client, w.server)
			if err := st.SetPath(own); err != nil {
				t.Fatal(err)
			}
			mustWrite(t, st, []byte{1})
			wantRead(t, "on a chosen path", peer, []byte{1})
			ends = append(ends, st)
		}
		for _, st := range ends {
			if st.Path() != own {
				t.Error("the mode has moved a stream off the path that the application chose")
			}
			if err := st.SetPath(nil); err != nil {
				t.Fatal(err)
			}
			mustWrite(t, st, []byte{1})
		}
		if n := own.allotted.Load(); n != 2 {
			t.Errorf("%d of 4 streams are on one of two paths", n)
		}
	})
}

// Streams that are on a path of their own no more, or have ended, cost the gate
// nothing.
func TestPinsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, wideLink, nil)
		p := w.addPath(t)
		pins := func(why string, want int32) {
			t.Helper()
			if n := w.client.gate.pins.Load(); n != want {
				t.Errorf("%s: %d streams have a path of their own, want %d", why, n, want)
			}
		}
		first, _ := openStream(t, w.client, w.server)
		second, _ := openStream(t, w.client, w.server)
		for _, st := range []*Stream{first, second, first} {
			if err := st.SetPath(p); err != nil {
				t.Fatal(err)
			}
		}
		pins("after SetPath", 2)
		if err := first.SetPath(nil); err != nil {
			t.Fatal(err)
		}
		pins("after SetPath(nil)", 1)
		mustWrite(t, second, []byte("x"))
		if err := errors.Join(second.CloseWrite(), second.Flush(t.Context())); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		pins("after the end", 0)
	})
}

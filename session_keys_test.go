package tcpls

import (
	"bytes"
	"context"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
)

func (s *Session) sendingEpoch() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys.sendEpoch
}

// exchange sends data both ways on a stream and checks it.
func exchange(t testing.TB, a, b *Stream, data []byte) {
	var wg sync.WaitGroup
	for _, st := range []*Stream{a, b} {
		wg.Go(func() {
			if n, err := st.Write(data); err != nil {
				t.Errorf("Write on stream %d = %d, %v", st.ID(), n, err)
			}
			if err := st.CloseWrite(); err != nil {
				t.Errorf("CloseWrite: %v", err)
			}
		})
		wg.Go(func() {
			got, err := io.ReadAll(st)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("stream %d: read %d of %d bytes, equal %v: %v", st.ID(), len(got), len(data), bytes.Equal(got, data), err)
			}
		})
	}
	wg.Wait()
}

// Long transfers on many streams cross many epochs, in both directions at
// once, beside streams that are idle, half closed, reset, and new.
func TestRekeyUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMemPair(t, memnet.Link{Rate: 50 << 20, Delay: 2 * time.Millisecond}, func(client, server *Config) {
			client.RekeyAfter, server.RekeyAfter = 20, 20
		})
		idle, idleEnd := p.open(t)
		half, halfEnd := p.open(t)
		if err := half.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		reset, resetEnd := p.open(t)
		if err := reset.Reset(1); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 8 {
			a, b := openStream(t, p.client, p.server)
			wg.Go(func() { exchange(t, a, b, testBytes(1, 3<<20)) })
		}
		untold, err := p.client.OpenStream(t.Context()) // opened now, used at the end
		if err != nil {
			t.Fatal(err)
		}
		for range 50 {
			time.Sleep(10 * time.Millisecond)
			a, err := p.client.OpenStream(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			mustWrite(t, a, []byte("x"))
			if a.ID()%3 == 0 {
				_ = a.Reset(2) // peers of the others read to the end
				continue
			}
			_ = a.CloseWrite()
		}
		go echo(p.server)
		wg.Wait()
		for name, s := range map[string]*Session{"client": p.client, "server": p.server} {
			if n := s.sendingEpoch(); n < 10 {
				t.Errorf("the %s has reached epoch %d, want at least 10", name, n)
			}
		}
		wantEOF(t, "a half closed stream", halfEnd)
		mustWrite(t, halfEnd, []byte("half"))
		wantRead(t, "a half closed stream", half, []byte("half"))
		mustWrite(t, resetEnd, []byte("reset"))
		wantRead(t, "a stream with one direction reset", reset, []byte("reset"))
		exchange(t, idle, idleEnd, []byte("idle"))
		mustWrite(t, untold, []byte("untold"))
		wantRead(t, "the echo of a stream that wasn't told of before", untold, []byte("untold"))
	})
}

// Streams whose one direction has ended don't hold updates up.
func TestRekeyWithEndedDirections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMemPair(t, memnet.Link{Delay: time.Millisecond}, nil)
		half, _ := p.open(t)
		mustWrite(t, half, []byte("x"))
		if err := half.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		reset, _ := p.open(t)
		if err := reset.Reset(1); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for i := range uint64(10) {
			if err := p.client.UpdateKeys(ctx); err != nil {
				t.Fatalf("update %d: %v", i+1, err)
			}
			if n := p.client.sendingEpoch(); n != i+1 {
				t.Fatalf("epoch %d after %d updates", n, i+1)
			}
		}
	})
}

// UpdateKeys moves the peer's keys too, also when the epochs of the directions
// differ.
func TestUpdateKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMemPair(t, memnet.Link{Delay: time.Millisecond}, func(client, _ *Config) { client.RekeyAfter = 10 })
		c, s := p.open(t)
		var wg sync.WaitGroup
		wg.Go(func() { wantRead(t, "much in one direction", s, testBytes(1, 10<<20)) })
		mustWrite(t, c, testBytes(1, 10<<20))
		wg.Wait()
		client, server := p.client.sendingEpoch(), p.server.sendingEpoch()
		if client < server+3 {
			t.Fatalf("epochs %d and %d, which this test wants to differ more", client, server)
		}
		for _, end := range []*Session{p.client, p.server} {
			if err := end.UpdateKeys(t.Context()); err != nil {
				t.Fatalf("UpdateKeys: %v", err)
			}
			time.Sleep(time.Second)
			c, s := p.client.sendingEpoch(), p.server.sendingEpoch()
			if c <= client || s <= server {
				t.Errorf("UpdateKeys of one end moved the client from epoch %d to %d and the server from %d to %d", client, c, server, s)
			}
			client, server = c, s
		}
		exchange(t, c, s, testBytes(2, 100_000))
	})
}

// Both ends ask for updates at any time, beside traffic.
func TestUpdateKeysConcurrent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMemPair(t, memnet.Link{Rate: 20 << 20, Delay: 3 * time.Millisecond}, nil)
		var traffic, updates sync.WaitGroup
		for range 4 {
			a, b := p.open(t)
			traffic.Go(func() { exchange(t, a, b, testBytes(3, 2<<20)) })
		}
		for _, s := range []*Session{p.client, p.client, p.server} {
			updates.Go(func() {
				for range 20 {
					if err := s.UpdateKeys(t.Context()); err != nil {
						t.Errorf("UpdateKeys: %v", err)
						return
					}
					time.Sleep(5 * time.Millisecond)
				}
			})
		}
		updates.Wait()
		traffic.Wait()
	})
}

// A receiver that sends nothing but acknowledgements changes its keys as well.
func TestRekeyOfReceiver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMemPair(t, memnet.Link{}, func(_, server *Config) { server.RekeyAfter = 10 })
		c, s := p.open(t)
		go func() { _, _ = io.Copy(c, zeros{}) }() // ends with the session
		if _, err := io.CopyN(io.Discard, s, 64<<20); err != nil {
			t.Fatal(err)
		}
		if p.server.sendingEpoch() < 2 {
			t.Errorf("the receiver is in epoch %d after %d records", p.server.sendingEpoch(), p.server.Stats().RecordsSent)
		}
		_ = p.client.CloseWithError(0, "done") // with bytes on the way
	})
}

package tcpls

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
)

func TestPing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const delay = 35 * time.Millisecond
		p := newMemPair(t, memnet.Link{Delay: delay}, nil)
		for _, s := range []*Session{p.client, p.server} {
			if rtt, err := s.Ping(t.Context()); err != nil || rtt != 2*delay {
				t.Errorf("Ping = %v, %v over a link of %v each way", rtt, err, delay)
			}
			if got := s.Stats().RoundTrip; got != 2*delay {
				t.Errorf("Stats().RoundTrip = %v, want %v", got, 2*delay)
			}
		}
		done := make([]<-chan error, 10)
		for i := range done {
			done[i] = begun(func() error {
				_, err := p.client.Ping(t.Context())
				return err
			})
		}
		for _, d := range done {
			if err := <-d; err != nil {
				t.Errorf("one of several Pings: %v", err)
			}
		}
	})
}

func TestKeepAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMemPair(t, memnet.Link{}, func(client, server *Config) {
			client.KeepAlive, client.IdleTimeout = 10*time.Second, 15*time.Second
			server.KeepAlive = -1
		})
		before := p.client.Stats().RecordsSent
		time.Sleep(10 * time.Minute)
		if err := context.Cause(p.client.Context()); err != nil {
			t.Fatalf("an idle session with keepalive ended: %v", err)
		}
		pings := p.client.Stats().RecordsSent - before
		if pings < 50 || pings > 65 {
			t.Errorf("%d records in 10 minutes, want a ping every 10 seconds", pings)
		}
		// A peer that no longer answers is given up after the idle timeout, if
		// that is shorter than what a ping is waited for.
		p.clientConn.Stall(true)
		began := time.Now()
		<-p.client.Context().Done()
		wantErrorIs(t, "a session whose peer has vanished", context.Cause(p.client.Context()), ErrIdleTimeout)
		if took := time.Since(began); took < 5*time.Second || took > 15*time.Second {
			t.Errorf("the peer was given up %v after the stall, want at most the idle timeout of 15s", took)
		}
	})
}

// A peer that vanishes while the session is idle is given up, by each end,
// KeepAlive and the time for an answer after its last word.
func TestKeepAliveVerdict(t *testing.T) {
	for _, test := range []struct{ alive, want time.Duration }{
		{0, time.Minute}, // the default
		{time.Second, 6 * time.Second},
		{10 * time.Second, 20 * time.Second},
		{2 * time.Hour, 2*time.Hour + 30*time.Second},
	} {
		t.Run(test.alive.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newMemPair(t, memnet.Link{}, func(client, server *Config) {
					client.KeepAlive, server.KeepAlive = test.alive, test.alive
				})
				synctest.Wait()
				p.clientConn.Stall(true)
				began := time.Now()
				for _, s := range []*Session{p.client, p.server} {
					<-s.Context().Done()
					cause := context.Cause(s.Context())
					wantErrorIs(t, "a session whose peer has vanished", cause, ErrKeepAliveTimeout)
					var timeout net.Error
					var failed *PathError
					if !errors.As(cause, &timeout) || !timeout.Timeout() || !errors.As(cause, &failed) || failed.Op != "keepalive" {
						t.Errorf("%v isn't the failure of a path by a timeout", cause)
					}
				}
				if took := time.Since(began); took != test.want {
					t.Errorf("the peer was given up after %v, want %v", took, test.want)
				}
			})
		})
	}
}

// A peer that answers no ping but says something else lives.
func TestKeepAliveWithoutPongs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPeer(t, true, func(c *Config) { c.KeepAlive = 10 * time.Second })
		p.attach(1)
		for range 20 {
			time.Sleep(15 * time.Second)
			p.writeStream(1, []byte("x"))
		}
		synctest.Wait()
		if err := context.Cause(p.sess.Context()); err != nil {
			t.Fatalf("a session whose peer sends bytes: %v", err)
		}
		began := time.Now()
		<-p.sess.Context().Done()
		wantErrorIs(t, "a peer that fell silent", context.Cause(p.sess.Context()), ErrKeepAliveTimeout)
		if took := time.Since(began); took != 20*time.Second {
			t.Errorf("it was given up after %v, want 20s", took)
		}
	})
}

// A timer that fires late, since the process was stopped, is no proof against
// the peer, whose answer nobody could read.
func TestKeepAliveAfterSleep(t *testing.T) {
	const alive = 10 * time.Second
	s := &Session{cfg: &Config{KeepAlive: alive}}
	at := time.Unix(1000, 0)
	s.ping = pinger{await: true, asked: at, due: at.Add(alive)}
	if late := at.Add(time.Hour); s.silentFor(time.Hour, late) {
		t.Error("given up by a timer that was an hour late")
	} else if wait := s.nextTick(time.Hour, late); wait != alive {
		t.Errorf("the next look is in %v, want %v", wait, alive)
	} else {
		s.ping.due = late.Add(wait)
		if !s.silentFor(time.Hour+wait, late.Add(wait)) {
			t.Error("not given up though a second chance has passed")
		}
	}
}

// The shorter one of both ends' timeouts counts, at both ends.
func TestIdleTimeout(t *testing.T) {
	for name, of := range map[string]func(client, server *Config) *Config{
		"client": func(client, _ *Config) *Config { return client },
		"server": func(_, server *Config) *Config { return server },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newMemPair(t, memnet.Link{}, func(client, server *Config) {
					client.KeepAlive, server.KeepAlive = -1, -1
					of(client, server).IdleTimeout = time.Minute
				})
				synctest.Wait() // until the server has the client's parameters
				p.clientConn.Stall(true)
				began := time.Now()
				for _, s := range []*Session{p.client, p.server} {
					<-s.Context().Done()
					cause := context.Cause(s.Context())
					wantErrorIs(t, "the end of an idle session", cause, ErrIdleTimeout)
					var timeout net.Error
					if !errors.As(cause, &timeout) || !timeout.Timeout() {
						t.Errorf("%v isn't a timeout for package net", cause)
					}
				}
				if took := time.Since(began).Round(time.Second); took != time.Minute {
					t.Errorf("the session ended after %v, want a minute", took)
				}
			})
		})
	}
}

// A Ping whose path fails is answered on the next one, and the keepalive of
// the session goes on there.
func TestPingFailsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, memnet.Link{Delay: 10 * time.Millisecond}, nil)
		w.addPath(t)
		time.Sleep(time.Second)
		w.conn(0).Stall(true)
		if _, err := w.client.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		if err := context.Cause(w.client.Context()); err != nil {
			t.Errorf("an idle session on its second path ended: %v", err)
		}
		if _, err := w.client.Ping(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// While a session waits for its peer to come back, its idle timeout holds.
func TestIdleWithoutPaths(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const idle = 2 * time.Minute
		w := newWorld(t, memnet.Link{}, func(_, server *Config) {
			server.KeepAlive, server.IdleTimeout, server.ReconnectFor = 10*time.Second, idle, 10*time.Minute
		})
		time.Sleep(time.Second)
		w.conn(0).Stall(true)
		_ = w.client.CloseWithError(1, "gone") // which doesn't arrive
		began := time.Now()
		<-w.server.Context().Done()
		wantErrorIs(t, "a session whose peer has vanished", context.Cause(w.server.Context()), ErrIdleTimeout)
		if took := time.Since(began); took > idle {
			t.Errorf("it ended after %v, want %v", took, idle)
		}
	})
}

package tcpls

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
	"github.com/go-tcpls/tcpls/sched"
)

var verboseStorm = flag.Bool("storm", false, "log what TestReliabilityPaths does to its paths")

// Random sessions over paths that come, break by every cause, all at once too,
// and are taken back or not: every byte that was written arrives once, in
// order, and nothing is left behind. A failing seed is replayed by -seed.
func TestReliabilityPaths(t *testing.T) {
	for i := range *seeds {
		seed := *fromSeed + uint64(i)
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testReliabilityPaths(t, seed) })
		})
	}
}

// blameless is the logger of sessions whose paths may break, but not because an
// end broke a rule: a session that survives hides that.
type blameless struct{ t *testing.T }

func (h blameless) Enabled(context.Context, slog.Level) bool { return true }
func (h blameless) WithAttrs([]slog.Attr) slog.Handler       { return h }
func (h blameless) WithGroup(string) slog.Handler            { return h }

func (h blameless) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		err, ok := a.Value.Any().(error)
		var rule *protocolError
		if ok && errors.As(err, &rule) && !errors.Is(err, errEpochOver) && !errors.Is(err, errFirstRecord) {
			h.t.Errorf("%s: %v", r.Message, err)
		}
		return true
	})
	return nil
}

func testReliabilityPaths(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 0))
	w := newWorld(t, randomLink(r), func(client, server *Config) {
		client.Logger, server.Logger = slog.New(blameless{t}), slog.New(blameless{t})
		if *verboseStorm {
			log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
			client.Logger, server.Logger = log.With("end", "client"), log.With("end", "server")
		}
		for _, c := range []*Config{client, server} {
			c.Mode, c.Scheduler = Mode(r.IntN(int(ModePinned)+1)), randomScheduler(r)
			if r.IntN(2) == 0 {
				c.Hooks = new(diary).hooks()
			}
			c.RekeyAfter = 20 + r.IntN(400)
			c.StreamRecvWindow = 64<<10 + r.IntN(1<<20)
			c.SessionRecvWindow = c.StreamRecvWindow + r.IntN(1<<20)
			c.SendBuffer = 64<<10 + r.IntN(1<<20)
			c.MaxStreams = 1 + r.IntN(20)
			c.MaxPaths = 2 + r.IntN(6)
			c.ReconnectFor = 10 * time.Minute
			c.CloseTimeout = time.Minute
			c.KeepAlive = time.Duration(r.IntN(20)) * time.Second
			if r.IntN(4) == 0 { // healthy paths are suspected too
				c.PathTimeout = time.Duration(20+r.IntN(500)) * time.Millisecond
			}
		}
		if r.IntN(3) == 0 {
			client.PathManager = StandbyPaths(r.IntN(3))
		}
	})
	s := &storm{t: t, world: w, random: rand.New(rand.NewPCG(seed, 1)), began: time.Now(), pace: 4 << r.IntN(8)}
	trouble, calm := context.WithTimeout(t.Context(), time.Duration(r.IntN(30))*time.Second)
	var weather sync.WaitGroup
	weather.Go(func() { s.rage(trouble) })
	patience := time.AfterFunc(10*time.Minute, func() {
		t.Errorf("the streams have not ended after ten minutes\n%s%s", describe(w.client), describe(w.server))
		go func() { _ = w.client.CloseWithError(1, "test") }()
		_ = w.server.CloseWithError(1, "test")
	})
	randomStreams(t, seed, r, w.client, w.server)
	patience.Stop()
	calm()
	weather.Wait()
	s.settle()
	w.checkClosed(t)
}

// randomScheduler is none, one that the library has, or one that picks anything.
func randomScheduler(r *rand.Rand) sched.Scheduler {
	all := []sched.Scheduler{nil, nil, nil, sched.LowestRTT(), sched.RoundRobin(), sched.Weighted(), sched.Redundant(), sched.Earliest()}
	if i := r.IntN(len(all) + 1); i < len(all) {
		return all[i]
	}
	var mu sync.Mutex
	own := rand.New(rand.NewPCG(r.Uint64(), 0))
	return sched.Func(func(sched.Batch, []sched.Path) sched.Set {
		mu.Lock()
		defer mu.Unlock()
		return sched.Set(own.Uint64N(1 << 9))
	})
}

// describe is what a person who looks for a fault asks first.
func describe(s *Session) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "%s: main path %d, epochs %d and %d, %d bytes kept, %d in the control context, rescue %v, %d tokens, ended by %v\n", role(s), s.path().id,
		s.keys.sendEpoch, s.keys.heard.Load(), s.gate.unacknowledged(), s.control.keptBytes(), s.rescue.cancel != nil, len(s.tickets.unused), s.life.cause.Load())
	fmt.Fprintf(&b, "  control on path %d, acked %d, %d kept, due %v; words due %v\n", s.control.owner.Load().id, s.control.kept.acked, s.control.kept.len(), s.control.due.Load(), s.words.due.Load())
	for _, p := range s.livePaths() {
		fmt.Fprintf(&b, "  path %d (%v) %v: unsent %d, flushing %v, ended %v, %d replays, heard %v ago, asked %v\n", p.id, p.conn.LocalAddr(), p.state, p.unsent.Load(), p.flushing, p.ended,
			len(p.replays), time.Since(s.began)-time.Duration(p.heard.Load()), p.watch.asked)
	}
	for _, st := range s.streams() {
		fmt.Fprintf(&b, "  stream %d: sent %d of %d credited, next %d, acked %d, %d kept, epoch %d, moved %d, replaying %v, writing %v, sealing %v, fin %v/%v, reset %v; received %d of %d, consumed %d, next %d, held %d, ended %v, send/recv done %v/%v\n",
			st.id, st.sent, st.credit, st.sendCtx.Seq(), st.kept.acked, st.kept.len(), st.epoch, st.moved, st.replayOn != nil, st.writing, st.sealing, st.finDue, st.finSent, st.reset,
			st.win.received, st.win.limit, st.win.consumed, st.recvNext, len(st.held), st.recvEnded, st.sendDone, st.recvDone)
	}
	return b.String()
}

// A storm breaks the paths of a world.
type storm struct {
	*world
	t      *testing.T
	random *rand.Rand
	began  time.Time
	pace   int // most milliseconds between two blows
	joins  sync.WaitGroup
}

func (s *storm) log(format string, args ...any) {
	if *verboseStorm {
		s.t.Logf("%8v "+format, append([]any{time.Since(s.began).Round(time.Millisecond)}, args...)...)
	}
}

// rage goes on until ctx ends, and leaves some paths broken.
func (s *storm) rage(ctx context.Context) {
	r := s.random
	for !s.hasTokens() && ctx.Err() == nil { // else the session can't outlive its first path
		pause(ctx, time.Millisecond)
	}
	for ctx.Err() == nil {
		pause(ctx, time.Duration(r.IntN(s.pace))*time.Millisecond)
		end := []*Session{s.client, s.server}[r.IntN(2)]
		switch r.IntN(17) {
		case 0, 1, 2:
			s.join(ctx)
		case 3, 4, 5:
			s.cut(ctx, s.pick())
		case 6:
			s.log("every path breaks")
			s.setDown(r.IntN(2) == 0)
			for i := range s.dialed() {
				s.cut(ctx, s.conn(i))
			}
			pause(ctx, time.Duration(r.IntN(4000))*time.Millisecond)
			s.setDown(false)
		case 7:
			link := randomLink(r)
			s.pick().SetLink(link)
			s.pick().Peer().SetLink(randomLink(r))
		case 8:
			s.log("a join meets a failure")
			s.join(ctx)
			pause(ctx, time.Duration(r.IntN(200))*time.Millisecond)
			s.cut(ctx, s.conn(s.dialed()-1))
		case 9:
			s.joins.Go(func() { _ = end.UpdateKeys(ctx) }) // a context that has ended is all that can be wrong
		case 10, 11, 12:
			s.move(ctx, end)
		case 13, 14:
			s.choose(end)
		case 15:
			s.joins.Go(func() { _, _ = end.Ping(ctx) }) // likewise
		case 16:
			if !end.client {
				addr := []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(r.IntN(4))}), 443)}
				_ = end.Advertise(addr[:r.IntN(2)], addr[r.IntN(2):]) // it may be known, or not
			}
		}
	}
	s.joins.Wait()
}

// choose has an end prefer a path, or not, for the session or for one stream.
func (s *storm) choose(end *Session) {
	r, paths, streams := s.random, end.Paths(), end.openStreams()
	if len(paths) == 0 {
		return
	}
	p := paths[r.IntN(len(paths))]
	if r.IntN(2) == 0 {
		s.log("%s: path %d is a backup, or not any more", role(end), p.ID())
		p.SetBackup(r.IntN(2) == 0)
		return
	}
	for _, st := range streams {
		switch r.IntN(3) {
		case 0:
			_ = st.SetPath(nil) // it can't fail
		case 1:
			s.log("%s: stream %d keeps to path %d: %v", role(end), st.ID(), p.ID(), st.SetPath(p))
		}
	}
}

func (s *storm) hasTokens() bool {
	s.client.mu.Lock()
	defer s.client.mu.Unlock()
	return s.client.tickets.peer
}

// pause is a sleep that ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (s *storm) join(ctx context.Context) {
	s.joins.Go(func() {
		p, err := s.client.AddPath(ctx, PathSpec{})
		if err != nil {
			s.log("join: %v", err)
		} else {
			s.log("path %d joined", p.ID())
		}
	})
}

// move changes paths in peace, or tries to.
func (s *storm) move(ctx context.Context, end *Session) {
	paths := end.Paths()
	if len(paths) == 0 {
		return
	}
	p, how, weight := paths[s.random.IntN(len(paths))], s.random.IntN(6), s.random.IntN(10)
	scheduler := randomScheduler(s.random)
	s.joins.Go(func() {
		var err error
		switch {
		case how == 0 && end.client:
			_, err = end.Migrate(ctx, PathSpec{})
		case how == 1:
			err = p.Close(ctx)
		case how == 2:
			err = p.SetWeight(weight)
		case how == 3:
			p.SetBackup(weight < 5)
		case how == 4:
			end.SetScheduler(scheduler)
		default:
			err = p.Use()
		}
		s.log("%s: move %d of path %d: %v", role(end), how, p.ID(), err)
	})
}

func (s *storm) pick() *memnet.Conn { return s.conn(s.random.IntN(s.dialed())) }

// cut breaks a connection by a random cause, for ever or for a while.
func (s *storm) cut(ctx context.Context, c *memnet.Conn) {
	r := s.random
	end := []*memnet.Conn{c, c.Peer()}[r.IntN(2)]
	cause, while := r.IntN(6), time.Duration(r.IntN(3000))*time.Millisecond
	s.log("cut of %v by cause %d for %v", c.LocalAddr(), cause, while)
	back := func(undo func(on bool)) {
		if r.IntN(3) > 0 {
			s.joins.Go(func() {
				pause(ctx, while)
				undo(false)
			})
		}
	}
	switch cause {
	case 0:
		end.Reset()
	case 1:
		_ = end.CloseWrite() // it may be closed
	case 2:
		_ = end.Close() // likewise
	case 3:
		end.Stall(true)
		back(end.Stall)
	case 4:
		end.StallSend(true)
		back(end.StallSend)
	case 5: // slow
		end.SetLink(memnet.Link{Rate: 32 << 10, Delay: time.Second, Queue: 64 << 10})
	}
}

// settle checks what is left once all streams have ended: nothing.
func (s *storm) settle() {
	said := [2]uint64{s.client.control.sealed(), s.server.control.sealed()}
	settled := func(end *Session, said uint64) bool { // keys go on being changed
		return end.unacknowledged() == 0 && end.control.kept.ackedFrom(said)
	}
	for range 120 { // the last acknowledgements, resets and joins
		time.Sleep(time.Second)
		if settled(s.client, said[0]) && settled(s.server, said[1]) {
			break
		}
	}
	for n, end := range []*Session{s.client, s.server} {
		if end.ended() {
			s.t.Errorf("%s: the session ended: %v", role(end), end.cause())
			continue
		}
		if !settled(end, said[n]) {
			s.t.Errorf("%s: %d bytes are still kept, and control records from %d\n%s", role(end), end.unacknowledged(), said[n], describe(end))
		}
		if n := end.Stats().Streams; n != 0 {
			s.t.Errorf("%s: %d streams are left", role(end), n)
		}
	}
	for _, ends := range [][2]*Session{{s.client, s.server}, {s.server, s.client}} {
		w := &ends[1].win
		ends[1].winMu.Lock()
		if sent := ends[0].gate.sent(); sent != w.received || w.consumed != w.received {
			s.t.Errorf("%s: %d bytes sent, %d received, %d given back", role(ends[0]), sent, w.received, w.consumed)
		}
		ends[1].winMu.Unlock()
	}
}

// sealed is how many records of the control context there were.
func (c *control) sealed() uint64 {
	c.sealMu.Lock()
	defer c.sealMu.Unlock()
	return c.ctx.Seq()
}

func role(s *Session) string {
	if s.client {
		return "client"
	}
	return "server"
}

// checkClosed closes both sessions and checks that they leave nothing.
func (w *world) checkClosed(t *testing.T) {
	var both sync.WaitGroup
	for _, s := range []*Session{w.client, w.server} {
		both.Go(func() {
			var closed *SessionError
			if err := s.Close(); err != nil && !errors.As(err, &closed) { // by the other end, which may come first
				t.Errorf("%s: Close: %v", role(s), err)
			}
		})
	}
	both.Wait()
	synctest.Wait()
	for _, s := range []*Session{w.client, w.server} {
		s.control.kept.drop() // its last words needn't be acknowledged
		if n := s.gate.held.Load(); n != 0 {
			t.Errorf("%s: chunks of %d bytes are held by nobody", role(s), n)
		}
		if n := len(s.livePaths()); s.running != 0 {
			t.Errorf("%s: %d paths run, of %d", role(s), s.running, n)
		}
	}
	joins.mu.Lock()
	defer joins.mu.Unlock()
	for _, i := range joins.tokens {
		if i.to.session == w.server {
			t.Errorf("the token for path %d is still known", i.path)
		}
	}
}

package tcpls

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/memnet"
	"github.com/go-tcpls/tcpls/internal/osnet"
	"github.com/go-tcpls/tcpls/internal/wire"
)

// needOptions skips a test where the system can't set options.
func needOptions(t *testing.T) {
	t.Helper()
	if !osnet.HasOptions {
		t.Skip("TCP options can be set on Linux only")
	}
}

// wantOption checks what SetPeerTCPOption has returned.
func wantOption(t *testing.T, s *Session, p *Path, ask, want TCPOption) {
	t.Helper()
	got, err := s.SetPeerTCPOption(t.Context(), p, ask)
	if got != want || err != nil {
		t.Errorf("%v: the peer has set %v, %v; want %v", ask, got, err, want)
	}
}

// wantInForce checks what the kernel has on a path's socket.
func wantInForce(t *testing.T, why string, p *Path, want TCPOption) {
	t.Helper()
	if p.raw == nil {
		t.Fatalf("path %d isn't a socket", p.id)
	}
	got := want
	var err error
	switch want.Kind {
	case KindUserTimeout:
		var d time.Duration
		d, err = osnet.UserTimeout(p.raw)
		got = TCPUserTimeout(d)
	case KindKeepAlive:
		var d time.Duration
		d, err = osnet.KeepAlive(p.raw)
		got = TCPKeepAlive(d)
	case KindCongestion:
		got.Name, err = osnet.Congestion(p.raw)
	case KindNotSentLowWater:
		var n int
		n, err = osnet.NotSentLowWater(p.raw)
		got.Value = int64(n)
	case KindMaxPacingRate:
		var n uint64
		n, err = osnet.MaxPacingRate(p.raw)
		got.Value = int64(n)
	case KindWindowClamp:
		var n int
		n, err = osnet.WindowClamp(p.raw)
		got.Value = int64(n)
	case KindDSCP:
		var n int
		n, err = osnet.DSCP(p.raw)
		got.Value = int64(n)
	}
	if got != want || err != nil {
		t.Errorf("%s: path %d has %v, %v; want %v", why, p.id, got, err, want)
	}
}

// Either end sets every option of the other's sockets, by the default policy.
func TestSetPeerTCPOption(t *testing.T) {
	needOptions(t)
	client, server := tcpPair(t, nil)
	for _, test := range []struct{ ask, want TCPOption }{
		{TCPUserTimeout(30 * time.Second), TCPUserTimeout(30 * time.Second)},
		{TCPUserTimeout(24 * time.Hour), TCPUserTimeout(15 * time.Minute)},
		{TCPKeepAlive(time.Minute), TCPKeepAlive(time.Minute)},
		{TCPKeepAlive(time.Second), TCPKeepAlive(10 * time.Second)},
		{TCPKeepAlive(0), TCPKeepAlive(0)},
		{TCPCongestion("reno"), TCPCongestion("reno")},
		{TCPNotSentLowWater(1), TCPNotSentLowWater(16 << 10)},
		{TCPMaxPacingRate(10 << 20), TCPMaxPacingRate(10 << 20)},
		{TCPMaxPacingRate(1 << 40), TCPMaxPacingRate(1 << 40)},
		{TCPMaxPacingRate(0), TCPMaxPacingRate(0)},
		{TCPWindowClamp(100_000), TCPWindowClamp(100_000)},
		{TCPDSCP(8), TCPDSCP(8)},
		{TCPDSCP(0), TCPDSCP(0)},
	} {
		for _, end := range []struct{ from, to *Session }{{client, server}, {server, client}} {
			wantOption(t, end.from, nil, test.ask, test.want)
			wantInForce(t, test.ask.String(), end.to.path(), test.want)
			wantOption(t, end.from, end.from.path(), test.ask, test.want)
		}
	}
	want := []TCPOptionKind{KindUserTimeout, KindKeepAlive, KindCongestion, KindNotSentLowWater, KindMaxPacingRate, KindWindowClamp, KindDSCP}
	for _, s := range []*Session{client, server} {
		if got := s.PeerTCPOptionKinds(); !slices.Equal(got, want) {
			t.Errorf("the peer can set %v, want %v", got, want)
		}
	}
}

// What the peer refuses is said with the reason, and the session goes on.
func TestRefusedTCPOptions(t *testing.T) {
	needOptions(t)
	client, server := tcpPair(t, func(_, server *Config) {
		server.Congestion = "reno"
	})
	o := server.watchers.add()
	defer server.watchers.remove(o)
	for _, test := range []struct {
		name   string
		option TCPOption
		reason TCPOptionReason
	}{
		{"a code point for better service", TCPDSCP(46), TCPOptionRefused},
		{"a congestion control that isn't there", TCPCongestion("nonesuch"), TCPOptionRefused},
		{"another congestion control than the server has chosen", TCPCongestion("cubic"), TCPOptionRefused},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := client.SetPeerTCPOption(t.Context(), nil, test.option)
			wantErrorIs(t, test.name, err, &TCPOptionError{Reason: test.reason})
			for _, e := range server.watchers.take(o) {
				if e.Kind == EventTCPOption {
					wantErrorIs(t, "the server's event", e.Err, &TCPOptionError{Reason: test.reason})
				}
			}
		})
	}
	for _, bad := range []TCPOption{{}, {Kind: 5}, TCPUserTimeout(0), TCPUserTimeout(-time.Second), TCPKeepAlive(10 * time.Hour), TCPDSCP(64), TCPCongestion("")} {
		if _, err := client.SetPeerTCPOption(t.Context(), nil, bad); !errors.As(err, new(*TCPOptionError)) {
			t.Errorf("%v: error %v, want a *TCPOptionError", bad, err)
		}
	}
	opened, accepted := openStream(t, client, server)
	mustWrite(t, opened, []byte("the session goes on"))
	wantRead(t, "after the refusals", accepted, []byte("the session goes on"))
}

// The application's policy decides, about the value too.
func TestAcceptTCPOption(t *testing.T) {
	needOptions(t)
	client, server := tcpPair(t, func(_, server *Config) {
		server.AcceptTCPOption = func(o TCPOption) (TCPOption, error) {
			switch o.Kind {
			case KindDSCP:
				return TCPDSCP(10), nil
			case KindKeepAlive:
				return o, errors.New("not here")
			case KindWindowClamp:
				return o, &TCPOptionError{Option: o, Reason: TCPOptionRange}
			case KindNotSentLowWater:
				return TCPDSCP(1), nil // not what was asked
			case KindCongestion:
				return TCPCongestion("no such name at all"), nil
			}
			return o, nil
		}
	})
	wantOption(t, client, nil, TCPUserTimeout(24*time.Hour), TCPUserTimeout(24*time.Hour))
	wantOption(t, client, nil, TCPDSCP(46), TCPDSCP(10))
	wantInForce(t, "what the policy says", server.path(), TCPDSCP(10))
	for _, test := range []struct {
		option TCPOption
		reason TCPOptionReason
	}{
		{TCPKeepAlive(time.Minute), TCPOptionRefused},
		{TCPWindowClamp(1 << 20), TCPOptionRange},
		{TCPNotSentLowWater(1 << 20), TCPOptionRefused},
		{TCPCongestion("reno"), TCPOptionRange},
	} {
		_, err := client.SetPeerTCPOption(t.Context(), nil, test.option)
		wantErrorIs(t, test.option.String(), err, &TCPOptionError{Reason: test.reason})
	}
}

// Options of the handshake are set from the start, in both directions and on
// paths that join; those of one path stay there.
func TestTCPOptionsOfHandshake(t *testing.T) {
	needOptions(t)
	client, server := tcpPair(t, func(client, server *Config) {
		client.PeerTCPOptions = []TCPOption{TCPUserTimeout(40 * time.Second), TCPDSCP(46), TCPMaxPacingRate(1 << 30)}
		server.PeerTCPOptions = []TCPOption{TCPUserTimeout(50 * time.Second), TCPWindowClamp(1 << 20)}
	})
	// Numbers go on behind those of the handshake, and so do answers.
	wantOption(t, client, nil, TCPKeepAlive(time.Minute), TCPKeepAlive(time.Minute))
	wantOption(t, server, nil, TCPKeepAlive(time.Minute), TCPKeepAlive(time.Minute))
	wantInForce(t, "asked by the client", server.path(), TCPUserTimeout(40*time.Second))
	wantInForce(t, "asked by the client", server.path(), TCPMaxPacingRate(1<<30))
	wantInForce(t, "refused", server.path(), TCPDSCP(0))
	wantInForce(t, "asked by the server", client.path(), TCPUserTimeout(50*time.Second))
	wantInForce(t, "asked by the server", client.path(), TCPWindowClamp(1<<20))

	wantOption(t, client, client.path(), TCPUserTimeout(10*time.Second), TCPUserTimeout(10*time.Second))
	p, err := client.AddPath(t.Context(), PathSpec{})
	if err != nil {
		t.Fatal(err)
	}
	// Behind what the join has begun.
	wantOption(t, client, p, TCPKeepAlive(2*time.Minute), TCPKeepAlive(2*time.Minute))
	wantOption(t, server, server.path(), TCPKeepAlive(3*time.Minute), TCPKeepAlive(3*time.Minute))
	for _, joined := range server.livePaths() {
		if joined.id == p.id {
			wantInForce(t, "asked for all paths", joined, TCPUserTimeout(40*time.Second))
			wantInForce(t, "asked for this path", joined, TCPKeepAlive(2*time.Minute))
		} else {
			wantInForce(t, "asked for the first path", joined, TCPUserTimeout(10*time.Second))
			wantInForce(t, "asked for all paths", joined, TCPKeepAlive(time.Minute))
		}
	}
	wantInForce(t, "asked for all paths", p, TCPUserTimeout(50*time.Second))
	wantInForce(t, "asked for all paths", p, TCPKeepAlive(time.Minute))
}

// What came of the options of the handshake is told by events.
func TestPeerTCPOptionEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startTestPeer(t, false, func(c *Config) {
			c.PeerTCPOptions = []TCPOption{TCPUserTimeout(time.Minute), TCPDSCP(1)}
		})
		o := p.sess.watchers.add()
		defer p.sess.watchers.remove(o)
		f := p.wantFrame("the client's parameters", wire.Params)
		asked := f.Params.ParsedTCPOptions()
		if len(asked) != 2 || asked[0].Kind != uint64(KindUserTimeout) || string(asked[0].Value) != "\x00\x3c" || asked[1].Kind != uint64(KindDSCP) {
			t.Fatalf("the client asks for %v", asked)
		}
		p.writeControl(
			wire.AppendOptionAnswer(nil, 2, wire.OptionRefused, nil),
			wire.AppendOptionAnswer(nil, 1, wire.OptionSet, []byte{0, 30}),
		)
		synctest.Wait()
		events := p.sess.watchers.take(o)
		if len(events) != 2 || events[0].Kind != EventPeerTCPOption || events[1] != (Event{Kind: EventPeerTCPOption, Option: TCPUserTimeout(30 * time.Second)}) {
			t.Fatalf("events %v", events)
		}
		wantErrorIs(t, "the second option", events[0].Err, &TCPOptionError{Reason: TCPOptionRefused})
	})
}

// A connection that isn't the kernel's has no options; asking does no harm.
func TestTCPOptionsWithoutSocket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newMemPair(t, memnet.Link{}, nil)
		_, err := p.client.SetPeerTCPOption(t.Context(), nil, TCPUserTimeout(time.Minute))
		wantErrorIs(t, "over a connection in memory", err, errors.ErrUnsupported)
		wantErrorIs(t, "over a connection in memory", err, &TCPOptionError{Reason: TCPOptionUnsupported})
		if _, err := p.client.SetPeerTCPOption(t.Context(), p.server.path(), TCPUserTimeout(time.Minute)); err == nil {
			t.Error("a path of another session was taken")
		}
	})
}

// 16 requests wait for a peer that doesn't answer, and no more; each ends with
// its context, and its place comes free with the answer.
func TestUnansweredTCPOptions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPeer(t, true, nil)
		ctx, cancel := context.WithCancel(t.Context())
		var calls []<-chan error
		for range wire.MaxOptions + 2 {
			calls = append(calls, begun(func() error {
				_, err := p.sess.SetPeerTCPOption(ctx, nil, TCPDSCP(1))
				return err
			}))
		}
		p.wantIdle("requests without answers")
		if len(p.options) != wire.MaxOptions {
			t.Fatalf("the session asks for %d options, want %d", len(p.options), wire.MaxOptions)
		}
		for i, r := range p.options {
			if r.Number != uint64(i+1) || r.Path != wire.AllPaths || r.Kind != uint64(KindDSCP) || string(r.Value) != "\x01" {
				t.Errorf("request %d is %+v", i+1, r)
			}
		}
		p.writeFrames(wire.AppendAck(nil, wire.Control, wire.MaxOptions, 0))
		p.writeControl(wire.AppendOptionAnswer(nil, 3, 99, nil)) // a status of a later version
		p.wantIdle("an answer")
		if len(p.options) != wire.MaxOptions+1 {
			t.Fatalf("the session asks for %d options after an answer, want %d", len(p.options), wire.MaxOptions+1)
		}
		cancel()
		refused, canceled := 0, 0
		for _, call := range calls {
			switch err := <-call; {
			case errors.Is(err, context.Canceled):
				canceled++
			case errors.As(err, new(*TCPOptionError)):
				refused++
			default:
				t.Errorf("SetPeerTCPOption: %v", err)
			}
		}
		if refused != 1 || canceled != wire.MaxOptions+1 {
			t.Errorf("%d refused and %d canceled, want 1 and %d", refused, canceled, wire.MaxOptions+1)
		}
		if n := len(p.sess.options.waiting); n != wire.MaxOptions {
			t.Errorf("%d requests wait, want %d", n, wire.MaxOptions)
		}
	})
}

// Options of the handshake go with early data too, and are answered once, whether
// the server accepts it or not.
func TestTCPOptionsWithEarlyData(t *testing.T) {
	for _, accepts := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			var asked atomic.Int32
			w := newEarlyWorld(t, func(client, server *Config) {
				client.PeerTCPOptions = []TCPOption{TCPUserTimeout(time.Minute), TCPDSCP(1)}
				server.PeerTCPOptions = []TCPOption{TCPKeepAlive(time.Minute)}
				server.AcceptTCPOption = func(o TCPOption) (TCPOption, error) {
					asked.Add(1)
					return o, nil
				}
			})
			w.visit(t)
			if !accepts {
				w.listener.cfg.PeerTCPOptions = []TCPOption{TCPDSCP(8), TCPDSCP(1)} // so the parameters are others
			}
			asked.Store(0)
			c := w.dial(t)
			st, err := c.OpenStream(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			mustWrite(t, st, []byte("early"))
			s := w.accept(t)
			accepted, err := s.AcceptStream(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			wantRead(t, "early", accepted, []byte("early"))
			if _, err := c.SetPeerTCPOption(t.Context(), nil, TCPDSCP(0)); !errors.Is(err, errors.ErrUnsupported) { // a connection in memory has none
				t.Errorf("one more option: %v", err)
			}
			if _, err := c.Ping(t.Context()); err != nil { // by then the client's answers have arrived
				t.Fatal(err)
			}
			want := EarlyDataRefused
			if accepts {
				want = EarlyDataAccepted
			}
			if c.EarlyData() != want {
				t.Errorf("early data: %v, want %v", c.EarlyData(), want)
			}
			if n := asked.Load(); n != 3 {
				t.Errorf("the server's policy was asked %d times, want 3", n)
			}
			for name, s := range map[string]*Session{"client": c, "server": s} {
				s.mu.Lock()
				if n := len(s.options.waiting) + len(s.options.todo); n != 0 {
					t.Errorf("%s: %d requests are unanswered", name, n)
				}
				s.mu.Unlock()
			}
			closeBoth(t, c, s)
		})
	}
}

// A request for all paths that one of them refuses leaves the one before it in
// force for those that join.
func TestRefusedEverywhere(t *testing.T) {
	client := newMemPair(t, memnet.Link{}, nil).client
	before := TCPUserTimeout(5 * time.Second)
	client.stand(before)
	if _, err := client.setEverywhere(TCPUserTimeout(7 * time.Second)); err == nil {
		t.Fatal("a path that isn't a socket has set an option")
	}
	if got := client.options.standing; len(got) != 1 || got[0] != before {
		t.Errorf("%v holds for paths that join, want %v", got, before)
	}
}

package tcpls

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-tcpls/tcpls/internal/osnet"
)

// A congestion control is set on all sockets of the session, also on those that
// join later, and taken back from all of them. The host gives one that every
// kernel has; package bpfcc has tests with programs.
func TestCCOnSockets(t *testing.T) {
	clientConfig, serverConfig := newTestConfigs()
	for _, c := range []*Config{clientConfig, serverConfig} {
		c.MaxPaths, c.ReconnectFor = 4, time.Minute
	}
	host := &testCCHost{max: 1 << 16, name: "reno"}
	clientConfig.CCHost = host // the server's certificate is verified
	c, s := newTCPPair(t, clientConfig, serverConfig)
	before := c.Paths()[0].Stats().Congestion
	if before == "" || before == "reno" {
		t.Skipf("the system's congestion control is %q: one that isn't reno is needed", before)
	}
	all := func(name string, paths int) bool {
		for _, p := range c.Paths() {
			if p.Stats().Congestion != name {
				return false
			}
		}
		return len(c.Paths()) == paths
	}
	if err := s.OfferCC(t.Context(), CCOffer{Name: "test", Object: testBytes(1, 20000)}); err != nil {
		t.Fatal(err)
	}
	if !all("reno", 1) {
		t.Errorf("the client's path uses %s", c.Paths()[0].Stats().Congestion)
	}
	if object := *host.object.Load(); string(object) != string(testBytes(1, 20000)) {
		t.Errorf("%d other bytes have come", len(object))
	}
	if name := s.Paths()[0].Stats().Congestion; name != before {
		t.Errorf("the server's path uses %s", name)
	}
	if err := c.OfferCC(t.Context(), CCOffer{Name: "test", Object: []byte("x")}); !errors.Is(err, ErrNoCC) {
		t.Errorf("a server without a host: %v", err)
	}
	if err := s.WithdrawCC(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !all(before, 1) || host.closed.Load() != 1 {
		t.Errorf("after the withdrawal: %s; %d unloaded", c.Paths()[0].Stats().Congestion, host.closed.Load())
	}
	host.name = "no-such-control"
	if err := s.OfferCC(t.Context(), CCOffer{Name: "test", Object: []byte("x")}); !errors.Is(err, &CCError{Code: CCUnsupported}) {
		t.Errorf("one that the kernel doesn't have: %v", err)
	}
	if !all(before, 1) || host.closed.Load() != 2 {
		t.Errorf("after a failure: %s; %d unloaded", c.Paths()[0].Stats().Congestion, host.closed.Load())
	}
}

// A path that joins gets it, and a session that ends gives it back.
func TestCCOnJoinedPaths(t *testing.T) {
	clientConfig, serverConfig := newTestConfigs()
	for _, c := range []*Config{clientConfig, serverConfig} {
		c.MaxPaths, c.ReconnectFor = 4, time.Minute
	}
	host := &testCCHost{max: 1 << 16, name: "reno"}
	clientConfig.CCHost = host
	l, err := Listen("tcp", "127.0.0.1:0", serverConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := Dial(t.Context(), "tcp", l.Addr().String(), clientConfig)
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	go echo(s)
	if err := s.OfferCC(t.Context(), CCOffer{Name: "test", Object: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	p, err := c.AddPath(t.Context(), PathSpec{})
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; p.Stats().Congestion != "reno"; n++ { // it is set on a goroutine of its own
		if _, err := c.Ping(t.Context()); err != nil || n == 10_000 {
			t.Fatalf("the joined path uses %s, %v", p.Stats().Congestion, err)
		}
	}
	if err := c.Paths()[0].Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if host.loads.Load() != 1 || host.closed.Load() != 1 {
		t.Errorf("%d loaded, %d unloaded when Close had returned", host.loads.Load(), host.closed.Load())
	}
}

// A TCP option that names a congestion control doesn't take the place of one that
// the peer has sent, neither on the paths that are there nor on those that join; it
// says to which one they go back.
func TestCCAndOption(t *testing.T) {
	client, server := tcpPair(t, func(client, _ *Config) {
		client.CCHost = &testCCHost{max: 1 << 16, name: "reno"}
	})
	usual := client.Paths()[0].Stats().Congestion
	if usual == "" || usual == "reno" {
		t.Skipf("the system's congestion control is %q: one that isn't reno is needed", usual)
	}
	if err := server.OfferCC(t.Context(), CCOffer{Name: "test", Object: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	wantOption(t, server, nil, TCPCongestion(usual), TCPCongestion(usual))
	if _, err := client.AddPath(t.Context(), PathSpec{}); err != nil {
		t.Fatal(err)
	}
	for _, p := range client.Paths() {
		for n := 0; p.Stats().Congestion != "reno"; n++ { // it is looked at every 100 ms
			if _, err := client.Ping(t.Context()); err != nil || n == 10_000 {
				t.Fatalf("path %d uses %s, %v", p.ID(), p.Stats().Congestion, err)
			}
		}
	}
	if err := server.WithdrawCC(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, p := range client.Paths() {
		wantInForce(t, "when it is withdrawn", p, TCPCongestion(usual))
	}
}

// What a path does, by what the kernel measures every 100 ms, and whether it is
// the congestion control's fault.
func TestCCJudge(t *testing.T) {
	busy := osnet.Info{CWnd: 10, SendMSS: 1448, SendWindow: 1 << 16, RTO: 200 * time.Millisecond, NotSent: 1 << 20, Unacked: 1}
	for _, test := range []struct {
		name string
		step func(n int, info *osnet.Info) // of 100 ms
		bad  int                           // the step that finds it; 0: nothing is wrong
	}{
		{"window 0", func(n int, i *osnet.Info) { i.CWnd = 0 }, 1},
		{"window of 100 MB", func(n int, i *osnet.Info) { i.CWnd = 70000 }, 1},
		{"nothing is sent", func(n int, i *osnet.Info) { i.Unacked = 0 }, 17},
		{"a segment in 500 ms", func(n int, i *osnet.Info) { i.BytesAcked = int64(n / 5 * 1448) }, 17},
		{"a slow path, long", func(n int, i *osnet.Info) { i.RTO = time.Second }, 41},
		{"a segment in 100 ms", func(n int, i *osnet.Info) { i.BytesAcked = int64(n * 1448) }, 0},
		{"a slow link with a queue", func(n int, i *osnet.Info) { i.Unacked = 10 }, 0},
		{"nothing to send", func(n int, i *osnet.Info) { i.NotSent = 0 }, 0},
		{"a peer that doesn't read", func(n int, i *osnet.Info) { i.SendWindow = 0 }, 0},
		{"a dead link", func(n int, i *osnet.Info) { i.Timeouts = 1 + n/10 }, 0},
		{"losses", func(n int, i *osnet.Info) { i.Retrans = n / 5 }, 0},
		{"half is lost", func(n int, i *osnet.Info) { i.Unacked, i.Sent, i.Retrans = 50, 100*n, 50*n }, 6},
		{"a third is lost", func(n int, i *osnet.Info) { i.Unacked, i.Sent, i.Retrans = 50, 100*n, 33*n }, 0},
		{"half of little is lost", func(n int, i *osnet.Info) { i.Unacked, i.Sent, i.Retrans = 50, 2*n, n }, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // for the time alone
				var j ccJudge
				for n := 1; n <= 60; n++ {
					info := busy
					test.step(n, &info)
					if why := j.look(time.Now(), info); why != "" {
						if n != test.bad {
							t.Errorf("step %d finds %q, want step %d to", n, why, test.bad)
						}
						return
					}
					time.Sleep(ccTick)
				}
				if test.bad != 0 {
					t.Error("it wasn't found")
				}
			})
		})
	}
}

package tcpls

import (
	"context"
	"testing"
	"time"

	"github.com/go-tcpls/tcpls/internal/linkemu"
)

// The same over sockets of the kernel, where both of two links carry their part.
// That it takes half the time is for machines with nothing else to do.
func TestAggregateTCP(t *testing.T) {
	if testing.Short() {
		t.Skip("a transfer of some seconds")
	}
	shape := linkemu.Shape{Rate: 40e6 / 8, Delay: 10 * time.Millisecond}
	run := func(mode Mode, paths int) time.Duration {
		client, server := newTestConfigs()
		client.MaxPaths, server.MaxPaths = 0, 0
		client.Mode, server.Mode = mode, mode
		l, err := Listen("tcp", "127.0.0.1:0", server)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		var links []*linkemu.Link
		for range paths {
			link, err := linkemu.New(l.Addr().String(), shape, shape)
			if err != nil {
				t.Fatal(err)
			}
			defer link.Close()
			links = append(links, link)
		}
		c, err := Dial(context.Background(), "tcp", links[0].Addr().String(), client)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		s, err := l.Accept(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := c.Ping(t.Context()); err != nil { // the tokens were sent before
			t.Fatal(err)
		}
		for _, link := range links[1:] {
			if _, err := c.AddPath(t.Context(), PathSpec{Remote: link.Addr().AddrPort()}); err != nil {
				t.Fatal(err)
			}
		}
		want := testBytes(3, 12<<20)
		began := time.Now()
		_, peer, sent := startTransfer(t, s, c, want)
		wantRead(t, mode.String(), peer, want)
		took := time.Since(began)
		if err := <-sent; err != nil {
			t.Error(err)
		}
		for _, p := range s.Paths() {
			if n := p.Stats().BytesSent; n < uint64(len(want)/paths/3) {
				t.Errorf("%v: path %d carried %d of %d bytes", mode, p.ID(), n, len(want))
			}
		}
		return took
	}
	alone, both := run(ModeFailover, 1), run(ModeAggregate, 2)
	t.Logf("alone %v, together %v: %.3f", alone, both, both.Seconds()/alone.Seconds())
}

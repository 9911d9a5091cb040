package lab

import (
	"context"
	"fmt"
	"net/netip"
	"time"
)

var eyeballRace = Experiment{
	Name:   "eyeballs",
	Source: "paper §4.1: happy eyeballs",
	Claim:  "a client reaches a name with a broken or slow address family nearly as fast as one with two good ones",
	Root:   true,
	Run:    runEyeballs,
}

// A handicap is what is wrong with the IPv6 path.
type handicap struct {
	name  string
	apply func(b *bench, on bool) error
}

const v6Link = 1 // the other one carries IPv4

var handicaps = []handicap{
	{"both good", func(*bench, bool) error { return nil }},
	{"IPv6 loses everything", func(b *bench, on bool) error { return b.net.Links()[v6Link].SetBlackhole(on) }},
	{"IPv6 loses large packets", func(b *bench, on bool) error {
		largest := 0
		if on {
			largest = 600 // a TCP handshake passes, a ClientHello doesn't
		}
		return b.net.Links()[v6Link].Change(func(s *Shape) { s.MaxPacket = largest })
	}},
	// The last one, since what it has delayed would still be under way.
	{"IPv6 is slow, 1 s", func(b *bench, on bool) error {
		delay := 20 * time.Millisecond
		if on {
			delay = 500 * time.Millisecond
		}
		return b.net.Links()[v6Link].Change(func(s *Shape) { s.Delay = delay })
	}},
}

// patience bounds a visit.
const patience = 10 * time.Second

func runEyeballs(ctx context.Context, o Options) (*Result, error) {
	topology := TwoHosts(Shape{Delay: 20 * time.Millisecond}, Shape{Delay: 20 * time.Millisecond})
	// Global addresses, which RFC 6724 prefers to IPv4, unlike unique local ones.
	v6 := &topology.Links[v6Link]
	v6.A.Addrs, v6.B.Addrs = []netip.Prefix{netip.MustParsePrefix("2001:db8::1/64")}, []netip.Prefix{netip.MustParsePrefix("2001:db8::2/64")}
	b, err := newNetBench(topology)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	t := Table{Name: "first-byte", Title: fmt.Sprintf("A name with an IPv6 and an IPv4 address: ms from the dial to the first byte of an answer; at most %v", patience),
		Header: []string{"IPv6", "TLS/TCP", "TCPLS"}}
	r := new(Result)
	ours := make(map[string]float64)
	for _, h := range handicaps {
		row := []any{h.name}
		for _, tr := range []transport{overTLS, overTCPLS} {
			var times []float64
			failed := 0
			for i := range o.reps(7, 1) {
				o.step("%s: %s: visit %d", h.name, tr.name, i+1)
				took, err := b.race46(ctx, tr, h)
				if ctx.Err() != nil {
					return nil, ctx.Err()
				}
				if err != nil {
					failed++
					continue
				}
				times = append(times, ms(took))
			}
			m := measure(h.name+": "+tr.name, "ms", times)
			r.Measures = append(r.Measures, m)
			text := m.String()
			if failed > 0 {
				text += fmt.Sprintf(", %d failed", failed)
			}
			row = append(row, text)
			if tr.name == overTCPLS.name && failed == 0 {
				ours[h.name] = m.Median
			}
		}
		t.add(row...)
	}
	r.Tables = []Table{t}
	good := ours[handicaps[0].name]
	r.Verdict = Verdict{Holds, fmt.Sprintf("TCPLS got its answer after %s ms with both families good, after %s ms where IPv6 loses everything.", round(good), round(ours[handicaps[1].name]))}
	switch {
	case len(ours) < len(handicaps):
		r.Verdict = Verdict{Fails, "TCPLS didn't get an answer each time."}
	case ours[handicaps[1].name] > good+1000:
		r.Verdict.Outcome = HoldsPartly
	}
	return r, nil
}

// race46 returns how long a client needs for its first byte.
func (b *bench) race46(ctx context.Context, t transport, h handicap) (took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	s, err := b.serve(ctx, t, b.server())
	if err != nil {
		return 0, err
	}
	defer s.Close()
	if err := h.apply(b, true); err != nil {
		return 0, err
	}
	defer func() {
		if e := h.apply(b, false); err == nil {
			err = e
		}
	}()
	r, err := b.startRemote(ctx, remoteOrder{
		Transport: t.name, Address: fmt.Sprintf("%s:%d", serverName, netPort), Congestion: b.congestion, Size: 1,
		Resolve: []netip.Addr{b.at(v6Link, true).Addr(), b.at(0, false).Addr()},
	})
	if err != nil {
		return 0, err
	}
	if err := r.finish(); err != nil {
		return 0, err
	}
	return r.reached(1) - r.dialed, nil
}

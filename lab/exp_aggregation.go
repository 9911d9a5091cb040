package lab

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/go-tcpls/tcpls"
)

var aggregation = Experiment{
	Name:   "aggregation",
	Source: "paper §5.5, Figure 4",
	Claim:  "a stream over two paths gets the sum of both, at once when the second one comes, as Multipath TCP does; and never less than over the best path alone",
	Root:   true,
	Run:    runAggregation,
}

// A pairOfLinks is what is aggregated.
type pairOfLinks struct {
	name  string
	links [2]Shape
}

// The first pair is the paper's: 50 packets of queue, 15 ms in each direction.
var linkPairs = []pairOfLinks{
	{"30+30 Mbit/s, 15 ms", [2]Shape{paperLink(30, 15), paperLink(30, 15)}},
	{"30+10 Mbit/s, 15 ms", [2]Shape{paperLink(30, 15), paperLink(10, 15)}},
	{"30+30 Mbit/s, 15 and 60 ms", [2]Shape{paperLink(30, 15), paperLink(30, 60)}},
	{"30+2 Mbit/s, 15 and 150 ms", [2]Shape{paperLink(30, 15), paperLink(2, 150)}},
}

// paperLink has the 50 packets of queue of the paper's networks.
func paperLink(mbits, delay int) Shape {
	return Shape{Rate: Rate(mbits) * Mbit, Delay: time.Duration(delay) * time.Millisecond, Queue: 50 * 1500}
}

// carries is what TCP can bring over links together, in Mbit/s.
func carries(links ...Shape) (sum float64) {
	for _, l := range links {
		sum += goodputShare * float64(l.Rate/Mbit)
	}
	return sum
}

func runAggregation(ctx context.Context, o Options) (*Result, error) {
	r := &Result{Tables: []Table{{
		Name: "goodput", Title: "Downloads of one stream, both paths from the start; Mbit/s from the dial to the last byte: median (least to greatest)",
		Header: []string{"links", "both carry", "TCPLS, one path", "TCPLS, both", "TLS/MPTCP, both", "TCPLS both to one", "TCPLS to MPTCP"},
	}}}
	holds, least := true, math.Inf(1)
	for i, p := range linkPairs {
		if o.Quick && i%2 == 1 {
			continue
		}
		gain, err := aggregatePair(ctx, o, p, r)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
		if i == 0 {
			holds = gain > 1.6
			continue
		}
		least = min(least, gain)
	}
	if err := aggregateLater(ctx, o, r); err != nil {
		return nil, err
	}
	first := r.Tables[0].Rows[0]
	r.Verdict = Verdict{Holds, fmt.Sprintf("Over two equal paths TCPLS had %s times the goodput of one, and %s times that of TLS over Multipath TCP. Over unequal ones the least median was %s of the best path alone.", first[5], first[6], round(least))}
	if !holds || least < 0.9 {
		r.Verdict.Outcome = HoldsPartly
	}
	return r, nil
}

// aggregatePair measures one pair of links, in turns, and returns the median of
// what both bring against one.
func aggregatePair(ctx context.Context, o Options, p pairOfLinks, r *Result) (gain float64, err error) {
	b, err := newNetBench(TwoHosts(p.links[:]...))
	if err != nil {
		return 0, err
	}
	defer b.Close()
	if err := b.allowMPTCP(ctx, "signal"); err != nil {
		return 0, err
	}
	size := pick(o, int64(20e6), 6e6)
	var one, both, mptcp []float64
	for i := range o.reps(5, 1) {
		o.step("%s: run %d", p.name, i+1)
		for _, m := range []struct {
			to  *[]float64
			get func() (*arrivals, error)
		}{
			{&one, func() (*arrivals, error) { return b.aggregate(ctx, size, 0, 1) }},
			{&both, func() (*arrivals, error) { return b.aggregate(ctx, size, 0, 2) }},
			{&mptcp, func() (*arrivals, error) { return b.fetch(ctx, overMPTCP, size) }},
		} {
			a, err := m.get()
			if err != nil {
				return 0, err
			}
			*m.to = append(*m.to, mbits(size, a.took()))
		}
	}
	gains, against := ratios(both, one), ratios(both, mptcp)
	r.Tables[0].add(p.name, carries(p.links[:]...), measure("", "", one), measure("", "", both), measure("", "", mptcp),
		measure("", "", gains), measure("", "", against))
	r.Measures = append(r.Measures, measure(p.name+": TCPLS, both paths to one", "", gains), measure(p.name+": TCPLS to TLS/MPTCP", "", against))
	return median(gains), nil
}

// allowMPTCP lets the kernel's Multipath TCP use the second path, with an
// endpoint of the server that is signalled to clients; more words may follow
// for it, as "backup". It replaces the one of before.
func (b *bench) allowMPTCP(ctx context.Context, words ...string) error {
	for _, host := range []string{"client", "server"} {
		if err := b.ip(ctx, host, "mptcp", "limits", "set", "subflow", "4", "add_addr_accepted", "4"); err != nil {
			return err
		}
	}
	if len(words) == 0 {
		return nil
	}
	if err := b.ip(ctx, "server", "mptcp", "endpoint", "flush"); err != nil {
		return err
	}
	args := []string{"mptcp", "endpoint", "add", b.at(1, false).Addr().String(), "dev", b.net.Links()[1].Name()}
	return b.ip(ctx, "server", append(args, words...)...)
}

// ip runs the ip command on a host.
func (b *bench) ip(ctx context.Context, host string, args ...string) error {
	out, err := b.net.Host(host).Command(ctx, "ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %v on %s: %w: %s", args, host, err, out)
	}
	return nil
}

// fetch downloads over a transport, with what comes from the dial on.
func (b *bench) fetch(ctx context.Context, t transport, size int64) (*arrivals, error) {
	a := newArrivals()
	v, err := b.visit(ctx, t, b.server(), b.client(), nil)
	if err != nil {
		return nil, err
	}
	defer v.Close()
	return a, download(v.stream, size, a.add)
}

// aggregate downloads over TCPLS. The second of two paths comes when after bytes have
// arrived.
func (b *bench) aggregate(ctx context.Context, size, after int64, paths int) (*arrivals, error) {
	server, client := b.server(), b.client()
	server.tcpls.Mode, client.tcpls.Mode = tcpls.ModeAggregate, tcpls.ModeAggregate
	s, err := b.serve(ctx, overTCPLS, server)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	a := newArrivals()
	sess, err := client.dialTCPLS(ctx, b.at(0, false).String())
	if err != nil {
		return nil, err
	}
	defer sess.Close()
	st, err := sess.OpenStream(ctx)
	if err != nil {
		return nil, err
	}
	joined := make(chan error, 1)
	if paths < 2 {
		joined <- nil
	} else {
		go func() {
			a.wait(ctx, after)
			_, err := sess.AddPath(ctx, tcpls.PathSpec{Remote: b.at(1, false)})
			joined <- err
		}()
	}
	err = download(st, size, a.add)
	a.end()
	if joinErr := <-joined; err == nil {
		err = joinErr
	}
	return a, err
}

// aggregateLater lets the second path come in mid-transfer, as in Figure 4.
func aggregateLater(ctx context.Context, o Options, r *Result) error {
	links := linkPairs[0].links
	size := pick(o, int64(60<<20), 12<<20)
	after := size / 4
	later := Table{Name: "later", Title: fmt.Sprintf("%s; the second path comes after %s", mb(size), mb(after)),
		Header: []string{"transport", "before Mbit/s", "after Mbit/s", "ms until 90 % of that", "whole s", "IP bytes for each byte"}}
	plot := Plot{Name: "goodput", Title: "A second path of 30 Mbit/s comes in mid-transfer", X: "seconds", Y: "goodput, Mbit/s"}
	for _, t := range []transport{overTCPLS, overMPTCP} {
		var before, then, rise, whole, wire []float64
		for i := range o.reps(3, 1) {
			o.step("the second path comes after %s: %s: run %d", mb(after), t.name, i+1)
			a, onWire, err := downloadWidened(ctx, t, links, size, after)
			if err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
			at := a.reached(after)
			before, then = append(before, a.rate(at/4, at)), append(then, a.rate(at+time.Second/2, a.took()))
			whole, wire = append(whole, a.took().Seconds()), append(wire, float64(onWire)/float64(size))
			rise = append(rise, ms(a.rises(at, 0.9*then[i])-at))
			if i > 0 {
				continue
			}
			plot.Lines = append(plot.Lines, a.goodput(t.name, 200*time.Millisecond))
			if len(plot.Marks) == 0 {
				plot.Marks = []Mark{{at.Seconds(), "second path"}}
			}
		}
		later.add(t.name, measure("", "", before), measure("", "", then), measure("", "", rise), measure("", "", whole), measure("", "", wire))
		r.Measures = append(r.Measures, measure(t.name+": after the second path came", "Mbit/s", then),
			measure(t.name+": until 90 % of that", "ms", rise), measure(t.name+": IP bytes for each byte", "", wire))
	}
	r.Tables, r.Plots = append(r.Tables, later), append(r.Plots, plot)
	return nil
}

// downloadWidened gives a download a second path when after bytes have come. It
// also returns how many bytes of IP packets both ends sent.
func downloadWidened(ctx context.Context, t transport, links [2]Shape, size, after int64) (a *arrivals, onWire uint64, err error) {
	b, err := newNetBench(TwoHosts(links[:]...)) // a new one, whose kernel has learnt nothing
	if err != nil {
		return nil, 0, err
	}
	defer b.Close()
	if t.name == overTCPLS.name {
		a, err = b.aggregate(ctx, size, after, 2)
	} else {
		a, err = b.widenMPTCP(ctx, t, size, after)
	}
	if err != nil {
		return nil, 0, err
	}
	onWire, err = b.allBytes()
	return a, onWire, err
}

// widenMPTCP lets the kernel know of the second path when after bytes have come.
func (b *bench) widenMPTCP(ctx context.Context, t transport, size, after int64) (*arrivals, error) {
	if err := b.allowMPTCP(ctx); err != nil {
		return nil, err
	}
	v, err := b.visit(ctx, t, b.server(), b.client(), nil)
	if err != nil {
		return nil, err
	}
	defer v.Close()
	a := newArrivals()
	announced := make(chan error, 1)
	go func() {
		a.wait(ctx, after)
		announced <- b.allowMPTCP(ctx, "signal")
	}()
	err = download(v.stream, size, a.add)
	a.end()
	return a, errors.Join(err, <-announced)
}

// allBytes is how many bytes of IP packets all links were given.
func (b *bench) allBytes() (sum uint64, err error) {
	for _, l := range b.net.Links() {
		for _, host := range []string{"client", "server"} {
			c, err := l.Counters(host)
			if err != nil {
				return 0, err
			}
			sum += c.Bytes
		}
	}
	return sum, nil
}

package lab

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"sync"
	"time"
)

var failover = Experiment{
	Name:   "failover",
	Source: "paper §5.7, Figures 6 and 7",
	Claim:  "a transfer survives whatever breaks its connection, and goes on in about a second or sooner; the path manager matters",
	Root:   true,
	Run:    runFailover,
}

// A breakage is a way in which a path ends.
type breakage struct {
	name       string
	cause, end func(b *bench, conns *connections) error
	notMPTCP   bool // it can't be done to a subflow
}

const firstPath = "path0"

func toClient0() netip.Prefix { return netip.MustParsePrefix("10.0.0.1/24") }

var breakages = []breakage{
	{name: "RST",
		cause: func(b *bench, _ *connections) error { return b.net.Link(firstPath).Reset() }},
	{name: "FIN", notMPTCP: true,
		cause: func(_ *bench, c *connections) error { return c.finish() }},
	{name: "blackhole",
		cause: func(b *bench, _ *connections) error { return b.net.Link(firstPath).SetBlackhole(true) },
		end:   func(b *bench, _ *connections) error { return b.net.Link(firstPath).SetBlackhole(false) }},
	{name: "link down",
		cause: func(b *bench, _ *connections) error { return b.net.Host("client").SetUp(firstPath, false) },
		end:   func(b *bench, _ *connections) error { return b.net.Host("client").SetUp(firstPath, true) }},
	{name: "address removed",
		cause: func(b *bench, _ *connections) error { return b.net.Host("client").RemoveAddr(firstPath, toClient0()) },
		end:   func(b *bench, _ *connections) error { return b.net.Host("client").AddAddr(firstPath, toClient0()) }},
}

// A contestant is what has to survive.
type contestant struct {
	name       string
	transport  transport
	congestion string
	standby    bool          // a second path from the start
	retry      time.Duration // of the application, for those that don't survive
}

// retryAfter is how long the application without TCPLS waits before it begins
// anew: less than most would.
const retryAfter = time.Second

var contestants = []contestant{
	{name: "TCPLS, standby path", transport: overTCPLS, congestion: "cubic", standby: true},
	{name: "TCPLS, standby path, bbr", transport: overTCPLS, congestion: "bbr", standby: true},
	{name: "TCPLS, joins anew", transport: overTCPLS, congestion: "cubic"},
	{name: "TLS/MPTCP, backup path", transport: overMPTCP, congestion: "cubic", standby: true},
	{name: "TLS/MPTCP, backup path, bbr", transport: overMPTCP, congestion: "bbr", standby: true},
	{name: "TLS, application retries", transport: overTLS, congestion: "cubic", retry: retryAfter},
}

// quick says whether a short run shows the contestant with a breakage.
func (c *contestant) quick(how breakage) bool {
	switch {
	case c.congestion != "cubic":
		return false
	case c.transport.name == overTCPLS.name && c.standby:
		return true
	case c.transport.name == overTCPLS.name:
		return how.name == "RST" || how.name == "blackhole"
	}
	return how.name == "blackhole"
}

// connections are those that a server has accepted.
type connections struct {
	mu  sync.Mutex
	all []net.Conn
}

func (c *connections) add(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, conn)
}

// finish ends the first one by FIN, as a proxy does that shuts down.
func (c *connections) finish() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.all) == 0 {
		return errors.New("there is no connection to end")
	}
	return c.all[0].(*net.TCPConn).CloseWrite()
}

// survivalTime bounds a transfer that takes 2 s without a breakage.
const survivalTime = 15 * time.Second

func runFailover(ctx context.Context, o Options) (*Result, error) {
	b, err := newNetBench(TwoHosts(paperLink(25, 15), paperLink(25, 15)))
	if err != nil {
		return nil, err
	}
	defer b.Close()
	if err := b.allowMPTCP(ctx, "signal", "backup"); err != nil {
		return nil, err
	}
	gaps := Table{Name: "gaps", Title: "How long nothing arrived, in ms: median (least to greatest); 25 Mbit/s, 30 ms there and back",
		Header: []string{"what breaks the path in use"}}
	raw := Table{Name: "runs", Title: "All runs", Header: []string{"breakage", "contestant", "run", "gap ms", "whole s"}, DataOnly: true}
	for _, c := range contestants {
		gaps.Header = append(gaps.Header, c.name)
	}
	r := new(Result)
	lost := 0
	for _, how := range breakages {
		row := []any{how.name}
		plot := Plot{Name: file(how.name), Title: "Gaps after: " + how.name, X: "ms without a byte", Y: "share of the runs"}
		for _, c := range contestants {
			if o.Quick && !c.quick(how) || how.notMPTCP && c.transport.name == overMPTCP.name {
				row = append(row, "-")
				continue
			}
			var values []float64
			for i := range o.reps(7, 1) {
				o.step("%s: %s: run %d", how.name, c.name, i+1)
				gap, took, err := b.survive(ctx, o, c, how)
				if err != nil {
					return nil, fmt.Errorf("%s, %s: %w", how.name, c.name, err)
				}
				if math.IsInf(gap, 1) && c.transport.name == overTCPLS.name {
					lost++
				}
				values = append(values, gap)
				raw.add(how.name, c.name, i+1, gap, took)
			}
			m := measure(how.name+": "+c.name, "ms", finite(values))
			r.Measures = append(r.Measures, m)
			text := m.String()
			if n := len(values) - m.Count; n > 0 {
				text += fmt.Sprintf(", never in %d of %d", n, len(values))
			}
			row = append(row, text)
			plot.Lines = append(plot.Lines, distribution(c.name, finite(values)))
		}
		gaps.add(row...)
		r.Plots = append(r.Plots, plot)
	}
	r.Tables = []Table{gaps, raw}
	if err := failoverRotating(ctx, o, b, r); err != nil {
		return nil, err
	}
	r.judgeFailover(lost)
	return r, nil
}

func file(name string) string {
	out := []byte(name)
	for i, c := range out {
		if c == ' ' || c == '/' {
			out[i] = '-'
		}
	}
	return string(out)
}

func finite(values []float64) []float64 {
	var out []float64
	for _, v := range values {
		if !math.IsInf(v, 0) {
			out = append(out, v)
		}
	}
	return out
}

func (r *Result) judgeFailover(lost int) {
	var worst, best Measure
	for _, m := range r.Measures {
		if m.Name == "blackhole: TCPLS, standby path" {
			worst = m
		}
		if m.Name == "RST: TCPLS, standby path" {
			best = m
		}
	}
	r.Verdict = Verdict{Holds, fmt.Sprintf("Every TCPLS transfer arrived whole, by its SHA-256. With a path that stands by, the gap was %s ms after a blackhole and %s ms after a reset.", worst, best)}
	switch {
	case lost > 0:
		r.Verdict = Verdict{Fails, fmt.Sprintf("%d TCPLS transfers didn't end.", lost)}
	case worst.Median > 1000:
		r.Verdict.Outcome = HoldsPartly
	}
}

// order is what the client of a contestant does.
func (c *contestant) order(b *bench, size int64) remoteOrder {
	order := remoteOrder{
		Transport: c.transport.name, Address: b.at(0, false).String(), Congestion: c.congestion, Size: size,
		Retry: c.retry, Addresses: []string{b.at(0, false).String(), b.at(1, false).String()},
	}
	if c.standby {
		order.Standby = b.at(1, false)
	}
	return order
}

// start begins a download of a contestant. The caller closes what it gets.
func (b *bench) start(ctx context.Context, c contestant, size int64) (r *remote, conns *connections, s *server, err error) {
	conns = new(connections)
	e := b.server()
	e.congestion, e.accepted = c.congestion, conns.add
	e.tcpls.Addresses = []netip.AddrPort{b.at(1, false)}
	if s, err = b.serve(ctx, c.transport, e); err != nil {
		return nil, nil, nil, err
	}
	if r, err = b.startRemote(ctx, c.order(b, size)); err != nil {
		return nil, nil, nil, errors.Join(err, s.Close())
	}
	return r, conns, s, nil
}

// survive breaks the path in use in the middle of a download, and returns how
// many ms nothing came, +Inf if the download never ended, and how many seconds it took.
func (b *bench) survive(ctx context.Context, o Options, c contestant, how breakage) (gap, took float64, err error) {
	size := pick(o, int64(6e6), 4e6)
	limited, cancel := context.WithTimeout(ctx, survivalTime)
	defer cancel()
	r, conns, s, err := b.start(limited, c, size)
	if err != nil {
		return 0, 0, err
	}
	defer s.Close()
	if !r.wait(limited, size/3) {
		return 0, 0, fmt.Errorf("before the breakage: %w", r.finish())
	}
	at := r.now()
	if err := how.cause(b, conns); err != nil {
		return 0, 0, err
	}
	ended := r.finish()
	if how.end != nil {
		if err := how.end(b, conns); err != nil {
			return 0, 0, err
		}
	}
	switch {
	case ctx.Err() != nil:
		return 0, 0, ctx.Err()
	case errors.Is(ended, errDamaged):
		return 0, 0, ended
	case ended != nil:
		return math.Inf(1), math.Inf(1), nil
	}
	return ms(r.gap(at)), r.took().Seconds(), nil
}

// failoverRotating moves a blackhole from one path to the other, again and
// again, as in Figure 7.
func failoverRotating(ctx context.Context, o Options, b *bench, r *Result) error {
	size := pick(o, int64(60<<20), 8e6)
	every := pick(o, 5*time.Second, 1500*time.Millisecond)
	t := Table{Name: "rotating", Title: fmt.Sprintf("%s while a blackhole moves from one path to the other every %v", mb(size), every),
		Header: []string{"contestant", "whole s", "longest gap ms", "moves"}}
	plot := Plot{Name: "rotating", Title: "A blackhole moves to the other path every " + every.String(), X: "seconds", Y: "goodput, Mbit/s"}
	for _, c := range []contestant{contestants[0], contestants[3]} {
		if o.Quick && c.transport.name != overTCPLS.name {
			continue
		}
		o.step("a moving blackhole: %s", c.name)
		row, line, err := b.rotate(ctx, c, size, every)
		if err != nil {
			return err
		}
		t.Rows = append(t.Rows, row)
		plot.Lines = append(plot.Lines, line)
	}
	r.Tables, r.Plots = append(r.Tables, t), append(r.Plots, plot)
	return nil
}

func (b *bench) rotate(ctx context.Context, c contestant, size int64, every time.Duration) ([]string, Line, error) {
	limited, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	r, _, s, err := b.start(limited, c, size)
	if err != nil {
		return nil, Line{}, err
	}
	defer s.Close()
	moves := 0
	tick := time.NewTicker(every)
	defer tick.Stop()
	for running := true; running; {
		select {
		case <-r.done:
			running = false
		case <-tick.C:
			dead, alive := moves%2, 1-moves%2
			if err := errors.Join(b.net.Links()[alive].SetBlackhole(false), b.net.Links()[dead].SetBlackhole(true)); err != nil {
				return nil, Line{}, err
			}
			moves++
		}
	}
	for _, l := range b.net.Links() {
		if err := l.SetBlackhole(false); err != nil {
			return nil, Line{}, err
		}
	}
	t := Table{}
	if err := r.finish(); err != nil {
		if c.transport.name == overTCPLS.name || ctx.Err() != nil {
			return nil, Line{}, err
		}
		t.add(c.name, "never", "-", moves)
	} else {
		t.add(c.name, r.took().Seconds(), ms(r.gap(every)), moves)
	}
	return t.Rows[0], r.goodput(c.name, every/10), nil
}

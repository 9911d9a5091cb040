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

	"github.com/go-tcpls/tcpls"
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
	keep       string        // which paths there are besides the one in use
	retry      time.Duration // of the application, for those that don't survive
}

// retryAfter is how long the application without TCPLS waits before it begins
// anew: less than most would.
const retryAfter = time.Second

var contestants = []contestant{
	{name: "TCPLS, standby path", transport: overTCPLS, congestion: "cubic", keep: keepStandby},
	{name: "TCPLS, standby path, bbr", transport: overTCPLS, congestion: "bbr", keep: keepStandby},
	{name: "TCPLS, both in use", transport: overTCPLS, congestion: "cubic", keep: keepBoth},
	{name: "TCPLS, joins anew", transport: overTCPLS, congestion: "cubic"},
	{name: "TLS/MPTCP, backup path", transport: overMPTCP, congestion: "cubic", keep: keepStandby},
	{name: "TLS/MPTCP, backup path, bbr", transport: overMPTCP, congestion: "bbr", keep: keepStandby},
	{name: "TLS/MPTCP, both in use", transport: overMPTCP, congestion: "cubic", keep: keepBoth},
	{name: "TLS, application retries", transport: overTLS, congestion: "cubic", retry: retryAfter},
}

// quick says whether a short run shows the contestant with a breakage.
func (c *contestant) quick(how breakage) bool {
	switch {
	case c.congestion != "cubic" || c.keep == keepBoth:
		return false
	case c.transport.name == overTCPLS.name && c.keep == keepStandby:
		return true
	case c.transport.name == overTCPLS.name:
		return how.name == "RST" || how.name == "blackhole"
	}
	return how.name == "blackhole"
}

// meets says whether the breakage is tried with the contestant.
func (c *contestant) meets(o Options, how breakage) bool {
	return (!o.Quick || c.quick(how)) && !(how.notMPTCP && c.transport.name == overMPTCP.name)
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
	// Each repetition goes through everything, so that what changes on the
	// machine meanwhile concerns all alike.
	var trials []*trial
	for i := range o.reps(15, 1) {
		for _, how := range breakages {
			for _, c := range contestants {
				if c.meets(o, how) {
					trials = append(trials, &trial{how: how, contestant: c, run: i + 1})
				}
			}
		}
	}
	jobs := make([]job, len(trials))
	for i, t := range trials {
		jobs[i] = job{
			step: fmt.Sprintf("%d of %d: %s: %s", i+1, len(trials), t.how.name, t.name),
			do:   func(ctx context.Context, b *bench) error { return b.survive(ctx, o, t) },
		}
	}
	r := new(Result)
	if err := inLanes(ctx, o, newFailoverBench, jobs); err != nil {
		return nil, err
	}
	lost := r.addTrials(trials)
	if err := failoverRotating(ctx, o, r); err != nil {
		return nil, err
	}
	r.judgeFailover(lost)
	return r, nil
}

func newFailoverBench() (*bench, error) {
	return newNetBench(TwoHosts(paperLink(25, 15), paperLink(25, 15)))
}

// A trial is one run of a contestant with a breakage.
type trial struct {
	contestant
	how breakage
	run int

	gap, took float64 // ms and s; +Inf if the transfer never ended
}

// addTrials makes tables and pictures of the trials, and counts those of TCPLS
// that were lost.
func (r *Result) addTrials(trials []*trial) (lost int) {
	gaps := Table{Name: "gaps", Title: "How long nothing arrived after the path in use broke, in ms: median (least to greatest); 25 Mbit/s, 30 ms there and back",
		Header: []string{"contestant"}}
	raw := Table{Name: "runs", Title: "All runs", Header: []string{"breakage", "contestant", "run", "gap ms", "whole s"}, DataOnly: true}
	for _, how := range breakages {
		gaps.Header = append(gaps.Header, how.name)
		r.Plots = append(r.Plots, Plot{Name: file(how.name), Title: "Gaps after: " + how.name, X: "ms without a byte", Y: "share of the runs"})
	}
	for _, c := range contestants {
		row, tried := []any{c.name}, false
		for i, how := range breakages {
			var values []float64
			for _, t := range trials {
				if t.how.name != how.name || t.name != c.name {
					continue
				}
				if math.IsInf(t.gap, 1) && c.transport.name == overTCPLS.name {
					lost++
				}
				values = append(values, t.gap)
				raw.add(how.name, c.name, t.run, t.gap, t.took)
			}
			if len(values) == 0 {
				row = append(row, "-")
				continue
			}
			tried = true
			m := measure(how.name+": "+c.name, "ms", finite(values))
			r.Measures = append(r.Measures, m)
			text := m.String()
			if n := len(values) - m.Count; n > 0 {
				text += fmt.Sprintf(", never in %d of %d", n, len(values))
			}
			row = append(row, text)
			r.Plots[i].Lines = append(r.Plots[i].Lines, distribution(c.name, finite(values)))
		}
		if tried { // not all contestants are in a short run
			gaps.add(row...)
		}
	}
	r.Tables = []Table{gaps, raw}
	return lost
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
	return remoteOrder{
		Transport: c.transport.name, Address: b.at(0, false).String(), Congestion: c.congestion, Size: size,
		Keep: c.keep, Second: b.at(1, false),
		Retry: c.retry, Addresses: []string{b.at(0, false).String(), b.at(1, false).String()},
	}
}

// start begins a download of a contestant. The caller closes what it gets.
func (b *bench) start(ctx context.Context, c contestant, size int64) (r *remote, conns *connections, s *server, err error) {
	if c.transport.name == overMPTCP.name {
		words := []string{"signal"}
		if c.keep == keepStandby {
			words = append(words, "backup")
		}
		if err := b.allowMPTCP(ctx, words...); err != nil {
			return nil, nil, nil, err
		}
	}
	conns = new(connections)
	e := b.server()
	e.congestion, e.accepted = c.congestion, conns.add
	e.tcpls.Addresses = []netip.AddrPort{b.at(1, false)}
	if c.keep == keepBoth {
		e.tcpls.Mode = tcpls.ModeAggregate
	}
	if s, err = b.serve(ctx, c.transport, e); err != nil {
		return nil, nil, nil, err
	}
	if r, err = b.startRemote(ctx, c.order(b, size)); err != nil {
		return nil, nil, nil, errors.Join(err, s.Close())
	}
	return r, conns, s, nil
}

// survive breaks the path in use in the middle of a download.
func (b *bench) survive(ctx context.Context, o Options, t *trial) error {
	size := pick(o, int64(4e6), 3e6)
	limited, cancel := context.WithTimeout(ctx, survivalTime)
	defer cancel()
	r, conns, s, err := b.start(limited, t.contestant, size)
	if err != nil {
		return err
	}
	defer s.Close()
	if !r.wait(limited, size/3) {
		return fmt.Errorf("%s: before the breakage: %w", t.name, r.finish())
	}
	at := r.now()
	if err := t.how.cause(b, conns); err != nil {
		return err
	}
	ended := r.finish()
	if t.how.end != nil {
		if err := t.how.end(b, conns); err != nil {
			return err
		}
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(ended, errDamaged):
		return fmt.Errorf("%s, %s: %w", t.how.name, t.name, ended)
	case ended != nil:
		t.gap, t.took = math.Inf(1), math.Inf(1)
	default:
		t.gap, t.took = ms(r.gap(at)), r.took().Seconds()
	}
	return nil
}

// A rotation is a transfer while a blackhole moves from one path to the other,
// again and again, as in Figure 7.
type rotation struct {
	contestant
	size  int64
	every time.Duration

	*arrivals
	moves  int
	onWire float64 // bytes of IP packets for each byte
	err    error   // of the transfer
}

func failoverRotating(ctx context.Context, o Options, r *Result) error {
	size := pick(o, int64(60<<20), 8e6)
	every := pick(o, 5*time.Second, 1500*time.Millisecond)
	var rotations []*rotation
	var jobs []job
	for _, c := range contestants {
		if c.congestion != "cubic" || o.Quick && (c.transport.name != overTCPLS.name || c.keep != keepStandby) {
			continue
		}
		run := &rotation{contestant: c, size: size, every: every}
		rotations = append(rotations, run)
		jobs = append(jobs, job{"a moving blackhole: " + c.name, func(ctx context.Context, b *bench) error { return b.rotate(ctx, run) }})
	}
	if err := inLanes(ctx, o, newFailoverBench, jobs); err != nil {
		return err
	}
	t := Table{Name: "rotating", Title: fmt.Sprintf("%s while a blackhole moves from one path to the other every %v", mb(size), every),
		Header: []string{"contestant", "whole s", "longest gap ms", "moves", "IP bytes for each byte"}}
	plot := Plot{Name: "rotating", Title: "A blackhole moves to the other path every " + every.String(), X: "seconds", Y: "goodput, Mbit/s"}
	for _, run := range rotations {
		if run.err != nil {
			t.add(run.name, "never", "-", run.moves, "-")
		} else {
			t.add(run.name, run.took().Seconds(), ms(run.gap(every)), run.moves, run.onWire)
			r.Measures = append(r.Measures, measure("moving blackhole: "+run.name, "s", []float64{run.took().Seconds()}),
				measure("moving blackhole, IP bytes for each byte: "+run.name, "", []float64{run.onWire}))
		}
		plot.Lines = append(plot.Lines, run.goodput(run.name, every/10))
	}
	r.Tables, r.Plots = append(r.Tables, t), append(r.Plots, plot)
	return nil
}

func (b *bench) rotate(ctx context.Context, run *rotation) error {
	limited, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	before, err := b.allBytes()
	if err != nil {
		return err
	}
	r, _, s, err := b.start(limited, run.contestant, run.size)
	if err != nil {
		return err
	}
	defer s.Close()
	run.arrivals = r.arrivals
	tick := time.NewTicker(run.every)
	defer tick.Stop()
	for running := true; running; {
		select {
		case <-r.done:
			running = false
		case <-tick.C:
			dead, alive := run.moves%2, 1-run.moves%2
			if err := errors.Join(b.net.Links()[alive].SetBlackhole(false), b.net.Links()[dead].SetBlackhole(true)); err != nil {
				return err
			}
			run.moves++
		}
	}
	for _, l := range b.net.Links() {
		if err := l.SetBlackhole(false); err != nil {
			return err
		}
	}
	after, err := b.allBytes()
	if err != nil {
		return err
	}
	run.onWire = float64(after-before) / float64(run.size)
	if run.err = r.finish(); run.err != nil && (run.transport.name == overTCPLS.name || ctx.Err() != nil) {
		return fmt.Errorf("%s: %w", run.name, run.err)
	}
	return nil
}

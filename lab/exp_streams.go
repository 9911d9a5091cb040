package lab

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/go-tcpls/tcpls"
)

var streamBlocking = Experiment{
	Name:   "streams",
	Source: "paper §3.3, §5.2: resilience to head-of-line blocking",
	Claim:  "under loss, objects on streams with paths of their own wait less for each other than on one TCP connection",
	Root:   true,
	Run:    runStreams,
}

// An arrangement is how the objects' streams travel.
type arrangement struct {
	name      string
	transport transport
	mode      tcpls.Mode
	paths     int // of TCPLS; those beyond the links go over them again
}

var arrangements = []arrangement{
	{"TCPLS, one path", overTCPLS, tcpls.ModeFailover, 1},
	{"TCPLS, a path for each stream, one link", overTCPLS, tcpls.ModePinned, 8},
	{"TCPLS, two links, a path for each stream", overTCPLS, tcpls.ModePinned, 2},
	{"TCPLS, two links, aggregated", overTCPLS, tcpls.ModeAggregate, 2},
	{"QUIC", overQUIC, 0, 0},
}

// What is moved: objects on workers streams at a time.
const (
	objectSize = 100 << 10
	workers    = 8
)

func runStreams(ctx context.Context, o Options) (*Result, error) {
	lossy := Shape{Rate: 20 * Mbit, Delay: 20 * time.Millisecond, Loss: 0.01}
	b, err := newNetBench(TwoHosts(lossy, lossy))
	if err != nil {
		return nil, err
	}
	defer b.Close()
	objects := pick(o, 100, 24)
	t := Table{Name: "objects", Title: fmt.Sprintf("%d objects of %d KiB, %d at a time, over links of 20 Mbit/s, 40 ms there and back, 1%% loss: ms for each", objects, objectSize>>10, workers),
		Header: []string{"how", "median", "90 %", "99 %", "all together s"}}
	raw := Table{Name: "times", Title: "All objects", Header: []string{"how", "run", "ms"}, DataOnly: true}
	plot := Plot{Name: "distribution", Title: "When an object is complete", X: "ms", Y: "share of the objects"}
	tails := make(map[string]float64)
	r := new(Result)
	for i, a := range arrangements {
		if o.Quick && i > 1 && a.transport.name == overTCPLS.name {
			continue
		}
		var times, wholes []float64
		for i := range o.reps(3, 1) {
			o.step("%s: run %d", a.name, i+1)
			some, whole, err := b.moveObjects(ctx, a, objects)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", a.name, err)
			}
			times, wholes = append(times, some...), append(wholes, whole)
			for _, v := range some {
				raw.add(a.name, i+1, v)
			}
		}
		tails[a.name] = quantile(times, 0.99)
		t.add(a.name, median(times), quantile(times, 0.9), tails[a.name], measure("", "", wholes))
		r.Measures = append(r.Measures, measure("an object: "+a.name, "ms", times), measure("99th percentile: "+a.name, "ms", []float64{tails[a.name]}))
		plot.Lines = append(plot.Lines, distribution(a.name, times))
	}
	r.Tables, r.Plots = []Table{t, raw}, []Plot{plot}
	one, own := tails[arrangements[0].name], tails[arrangements[1].name]
	r.Verdict = Verdict{Holds, fmt.Sprintf("Over one link, the 99th percentile of an object was %s ms on one path and %s ms with a path for each stream; over QUIC it was %s ms.", round(one), round(own), round(tails["QUIC"]))}
	if own > one {
		r.Verdict.Outcome = HoldsPartly
	}
	return r, nil
}

// moveObjects returns how many ms each object took, and how many seconds all
// took together.
func (b *bench) moveObjects(ctx context.Context, a arrangement, objects int) (times []float64, whole float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	server, client := b.server(), b.client()
	server.tcpls.Mode, client.tcpls.Mode = a.mode, a.mode
	client.quic = quic.Config{MaxIdleTimeout: time.Minute}
	s, err := b.serve(ctx, a.transport, server)
	if err != nil {
		return nil, 0, err
	}
	defer s.Close()
	sess, err := a.transport.dial(ctx, b.at(0, false).String(), client)
	if err != nil {
		return nil, 0, err
	}
	defer sess.Close()
	for i := 1; i < a.paths; i++ {
		link := 0
		if a.paths == 2 {
			link = i
		}
		if _, err := sess.(tcplsSession).AddPath(ctx, tcpls.PathSpec{Remote: b.at(link, false)}); err != nil {
			return nil, 0, err
		}
	}
	var (
		g    sync.WaitGroup
		mu   sync.Mutex
		errs []error
		left = objects
	)
	next := func() bool {
		mu.Lock()
		defer mu.Unlock()
		left--
		return left >= 0 && len(errs) == 0
	}
	began := time.Now()
	for range workers {
		g.Go(func() {
			for next() {
				from := time.Now()
				err := moveObject(ctx, sess)
				mu.Lock()
				times = append(times, ms(time.Since(from)))
				if err != nil {
					errs = append(errs, err)
				}
				mu.Unlock()
			}
		})
	}
	g.Wait()
	return times, time.Since(began).Seconds(), errors.Join(errs...)
}

func moveObject(ctx context.Context, sess session) error {
	st, err := sess.open(ctx)
	if err != nil {
		return err
	}
	if err := st.SetDeadline(deadline(ctx)); err != nil {
		return err
	}
	return download(st, objectSize, nil)
}

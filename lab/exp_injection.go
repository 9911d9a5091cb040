package lab

import (
	"context"
	"fmt"
	"time"

	"github.com/go-tcpls/tcpls/bpfcc"
)

var injection = Experiment{
	Name:   "injection",
	Source: "paper §5.8",
	Claim:  "a congestion control that the server ships to its client in mid-transfer improves the goodput of a lossy link at least tenfold",
	Root:   true,
	Run:    runInjection,
}

func runInjection(ctx context.Context, o Options) (*Result, error) {
	if err := bpfcc.Supported(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	// Random loss, which cubic takes for congestion.
	lossy := Shape{Rate: 100 * Mbit, Delay: 20 * time.Millisecond, Loss: 0.01, Queue: 500_000}
	b, err := newNetBench(TwoHosts(lossy))
	if err != nil {
		return nil, err
	}
	defer b.Close()
	half := pick(o, 5*time.Second, 2*time.Second)
	t := Table{Name: "goodput", Title: "An upload over 100 Mbit/s, 40 ms there and back, 1 % random loss; Mbit/s",
		Header: []string{"run", "cubic", "the server's, from 0.5 s on", "times", "offer to loaded ms"}}
	r := new(Result)
	var before, after, times, loading []float64
	for i := range o.reps(5, 1) {
		o.step("run %d", i+1)
		u, err := b.inject(ctx, half)
		if err != nil {
			return nil, err
		}
		slow, fast := u.rate(u.loaded.from-half*4/5, u.loaded.from), u.rate(u.loaded.to+half/10, u.took())
		took := ms(u.loaded.to - u.loaded.from)
		t.add(i+1, slow, fast, fast/slow, took)
		before, after, times, loading = append(before, slow), append(after, fast), append(times, fast/slow), append(loading, took)
		if i == 0 {
			r.Plots = []Plot{{Name: "goodput", Title: "A congestion control comes from the server in mid-transfer", X: "seconds", Y: "goodput, Mbit/s",
				Lines: []Line{u.goodput("upload", 200*time.Millisecond)}, Marks: []Mark{{u.loaded.to.Seconds(), "loaded"}}}}
		}
	}
	r.Tables = []Table{t}
	r.Measures = []Measure{
		measure("goodput with cubic", "Mbit/s", before), measure("goodput with the server's", "Mbit/s", after),
		measure("the server's to cubic", "", times), measure("offer to loaded", "ms", loading),
	}
	gain := r.Measures[2]
	r.Verdict = Verdict{Holds, fmt.Sprintf("The goodput was %s times that with cubic, %s ms after the offer.", gain, r.Measures[3])}
	if gain.Median < 10 {
		r.Verdict.Outcome = Fails
	}
	return r, nil
}

// An injected upload, and when the congestion control was offered and loaded.
type injected struct {
	*arrivals
	loaded span
}

// inject uploads, offers the client a congestion control after some time, and
// goes on for as long again.
func (b *bench) inject(ctx context.Context, half time.Duration) (*injected, error) {
	server, client := b.server(), b.client()
	client.tcpls.CCHost = new(bpfcc.Host)
	ends, err := b.meet(ctx, server, client)
	if err != nil {
		return nil, err
	}
	defer ends.Close()
	sess, peer := ends.client, ends.server
	from, err := ends.flood(ctx)
	if err != nil {
		return nil, err
	}
	u := &injected{arrivals: newArrivals()}
	go func() {
		buf := make([]byte, 256<<10)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			u.add(n)
		}
	}()
	for i := range 2 {
		select {
		case <-time.After(half):
		case <-sess.Context().Done():
			return nil, context.Cause(sess.Context())
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if i == 0 {
			u.loaded.from = u.now()
			if err := peer.OfferCC(ctx, bpfcc.Bandwidth()); err != nil {
				return nil, err
			}
			u.loaded.to = u.now()
		}
	}
	return u, nil
}

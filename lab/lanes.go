package lab

import (
	"context"
	"errors"
	"sync"
)

// lanes is how many networks an experiment uses at once, where its transfers
// leave the machine idle most of the time.
const lanes = 2

// A job is a part of an experiment that needs a network of its own meanwhile.
type job struct {
	step string
	do   func(ctx context.Context, b *bench) error
}

// inLanes does jobs on benches that make makes, each of which does one at a
// time. The first error ends all.
func inLanes(ctx context.Context, o Options, newBench func() (*bench, error), jobs []job) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var mu sync.Mutex
	next := func() (j job, ok bool) {
		mu.Lock()
		defer mu.Unlock()
		if len(jobs) == 0 || ctx.Err() != nil {
			return job{}, false
		}
		j, jobs = jobs[0], jobs[1:]
		o.step("%s", j.step)
		return j, true
	}
	lane := func() (err error) {
		b, err := newBench()
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, b.Close()) }()
		for j, ok := next(); ok; j, ok = next() {
			if err := j.do(ctx, b); err != nil {
				return err
			}
		}
		return nil
	}
	var running sync.WaitGroup
	for range min(lanes, len(jobs)) {
		running.Go(func() {
			if err := lane(); err != nil {
				cancel(err)
			}
		})
	}
	running.Wait()
	return context.Cause(ctx)
}

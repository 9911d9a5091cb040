package tcpls

import (
	"context"
	"errors"
	"slices"
	"time"
)

// A keeper holds the paths of a session to a plan: what is missing is opened,
// again and again. It belongs to one goroutine.
type keeper struct {
	s *Session
	// missing says what the plan lacks beside the paths that work.
	missing func(k *keeper, have []*Path) []PathSpec
	tries   map[PathSpec]*try
	ended   chan tried
	running int
}

// A try is what is known of one way to open a path.
type try struct {
	running bool
	worked  bool          // once, at least
	path    *Path         // that it brought last
	began   time.Time     // the last attempt, or its success
	pause   time.Duration // from then to the next
}

type tried struct {
	spec PathSpec
	path *Path
	err  error
}

const (
	firstPause  = 50 * time.Millisecond
	longPause   = time.Second      // between attempts where it has worked before
	longestWait = 30 * time.Second // where it never has
)

func newKeeper(s *Session, missing func(*keeper, []*Path) []PathSpec) *keeper {
	return &keeper{s: s, missing: missing, tries: make(map[PathSpec]*try), ended: make(chan tried)}
}

// run keeps to the plan until ctx ends. Attempts that run then end with it.
func (k *keeper) run(ctx context.Context) error {
	if k.s.plain != nil {
		return ErrNotTCPLS
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	o := k.s.watchers.add()
	defer k.s.watchers.remove(o)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-k.s.Context().Done():
			return context.Cause(k.s.Context())
		case <-o.signal:
			if slices.ContainsFunc(k.s.watchers.take(o), func(e Event) bool { return e.Kind == EventNetwork }) {
				k.hope()
			}
		case out := <-k.ended:
			k.note(ctx, out, time.Now())
		case <-timer.C:
		}
		if next := k.act(ctx, time.Now()); next > 0 {
			timer.Reset(next)
		} else {
			timer.Stop()
		}
	}
}

// working are the paths that carry data or could.
func (k *keeper) working() []*Path {
	return slices.DeleteFunc(k.s.Paths(), func(p *Path) bool { return p.State() != PathActive })
}

// has reports whether the plan's path is there: one between these addresses, or
// one that came of trying, wherever a Dialer.DialContext has led it.
func (k *keeper) has(spec PathSpec, have []*Path) bool {
	t := k.tries[spec]
	return slices.ContainsFunc(have, func(p *Path) bool {
		return t != nil && t.path == p || spec == PathSpec{} || p.route() == spec
	})
}

// act starts the attempts that are due, and returns when the next one is, 0 for
// never.
func (k *keeper) act(ctx context.Context, now time.Time) (next time.Duration) {
	have := k.working()
	k.adopt(have, now)
	missing := k.missing(k, have)
	for spec, t := range k.tries {
		if !t.running && !slices.Contains(missing, spec) && !slices.Contains(have, t.path) {
			delete(k.tries, spec)
		}
	}
	for _, spec := range missing {
		t := k.tries[spec]
		if t == nil {
			t = &try{worked: spec == PathSpec{}} // as the session was dialed
			k.tries[spec] = t
		}
		if t.running || len(have)+k.running >= k.s.cfg.MaxPaths {
			continue
		}
		if t.path != nil { // it has succeeded, and another is wanted
			if slices.Contains(have, t.path) || now.Sub(t.began) >= longPause {
				t.pause = 0
			} else { // what is lost as soon as it is there is no success
				t.pause = min(max(2*t.pause, firstPause), longPause)
			}
			t.path = nil
		}
		if wait := t.began.Add(t.pause).Sub(now); wait <= 0 {
			k.start(ctx, spec, t, now)
		} else if next == 0 || wait < next {
			next = wait
		}
	}
	return next
}

// adopt takes paths that others opened for successes.
func (k *keeper) adopt(have []*Path, now time.Time) {
	for _, p := range have {
		if spec := p.route(); k.tries[spec] == nil {
			k.tries[spec] = &try{worked: true, path: p, began: now}
		}
	}
}

func (k *keeper) start(ctx context.Context, spec PathSpec, t *try, now time.Time) {
	t.running, t.began = true, now
	k.running++
	go func() {
		attempt, cancel := context.WithTimeout(ctx, max(time.Second, 6*k.s.pathRTT()))
		defer cancel()
		p, err := k.s.AddPath(attempt, spec)
		select {
		case k.ended <- tried{spec, p, err}:
		case <-ctx.Done():
		}
	}()
}

// note takes in how an attempt has ended. A path that isn't needed any more,
// since the one that it was to replace has come back, is closed.
func (k *keeper) note(ctx context.Context, out tried, now time.Time) {
	t := k.tries[out.spec]
	t.running = false
	k.running--
	if out.err != nil {
		most := longestWait
		if t.worked && !errors.Is(out.err, ErrNoToken) {
			most = longPause
		}
		t.pause = min(max(2*t.pause, firstPause), most)
		k.s.log.Debug("no path", "spec", out.spec, "error", out.err, "retry", t.pause)
		return
	}
	others := slices.DeleteFunc(k.working(), func(p *Path) bool { return p == out.path })
	if !slices.Contains(k.missing(k, others), out.spec) {
		go func() { _ = out.path.Close(ctx) }() // it closes, or fails
		return
	}
	t.worked, t.path, t.began = true, out.path, now
}

// hope has ways tried at once that never worked: the network has changed.
func (k *keeper) hope() {
	for _, t := range k.tries {
		if !t.worked {
			t.pause = 0
		}
	}
}

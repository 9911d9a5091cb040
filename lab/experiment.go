package lab

import (
	"cmp"
	"context"
	"fmt"
	"slices"
)

// An Experiment puts one claim about TCPLS to the test.
type Experiment struct {
	// Name is what it is called by, as "aggregation".
	Name string
	// Source is where the claim stands, as "paper §5.5, Figure 4".
	Source string
	// Claim is what is tested, in one sentence.
	Claim string
	// Root tells that it needs an emulated network, and so Linux and root.
	Root bool
	// Run measures. The error is one of the set-up, or the context's; that the
	// claim doesn't hold is a verdict.
	Run func(ctx context.Context, o Options) (*Result, error)
}

// Options are those of one run.
type Options struct {
	// Quick makes the run as short as its verdict allows.
	Quick bool
	// Reps is how often each measurement is repeated. 0: as often as the
	// experiment thinks right.
	Reps int
	// Progress, if it isn't nil, gets a line for each step. It is called by one
	// goroutine at a time.
	Progress func(step string)
}

// reps returns the number of repetitions: as asked for, else one of the defaults.
func (o Options) reps(full, quick int) int {
	switch {
	case o.Reps > 0:
		return o.Reps
	case o.Quick:
		return quick
	}
	return full
}

func (o Options) step(format string, args ...any) {
	if o.Progress != nil {
		o.Progress(fmt.Sprintf(format, args...))
	}
}

// pick returns what suits a full or a quick run.
func pick[T any](o Options, full, quick T) T {
	if o.Quick {
		return quick
	}
	return full
}

// A Result is what a run has shown.
type Result struct {
	Verdict  Verdict
	Measures []Measure
	Tables   []Table
	Plots    []Plot
}

// A Verdict says what became of the claim.
type Verdict struct {
	Outcome Outcome `json:"outcome"`
	// Why is for a person: the figures that decide, and what is different from
	// the claim.
	Why string `json:"why"`
}

// An Outcome is a verdict in a word.
type Outcome string

// The outcomes.
const (
	Holds       Outcome = "holds"
	HoldsPartly Outcome = "holds in part"
	Fails       Outcome = "doesn't hold"
)

// A Measure is one quantity and how it spread.
type Measure struct {
	Name     string  `json:"name"`
	Unit     string  `json:"unit"`
	Median   float64 `json:"median"`
	Least    float64 `json:"least"`
	Greatest float64 `json:"greatest"`
	Count    int     `json:"count"`
}

// measure sums values up.
func measure(name, unit string, values []float64) Measure {
	m := Measure{Name: name, Unit: unit, Count: len(values)}
	if len(values) > 0 {
		m.Median, m.Least, m.Greatest = median(values), slices.Min(values), slices.Max(values)
	}
	return m
}

// String gives the median, and the spread where there is one.
func (m Measure) String() string {
	switch m.Count {
	case 0:
		return "none"
	case 1:
		return round(m.Median)
	}
	return fmt.Sprintf("%s (%s to %s)", round(m.Median), round(m.Least), round(m.Greatest))
}

// round writes a figure with as many digits as anyone may trust.
func round(v float64) string {
	switch abs := max(v, -v); {
	case abs >= 100:
		return fmt.Sprintf("%.0f", v)
	case abs >= 10:
		return fmt.Sprintf("%.1f", v)
	case abs >= 1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

// median returns the middle one of values, which mustn't be empty.
func median(values []float64) float64 { return quantile(values, 0.5) }

// quantile returns the value that the share q of values doesn't exceed.
func quantile(values []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// ratios divides the values of two series that were measured in turns.
func ratios(ours, base []float64) []float64 {
	out := make([]float64, min(len(ours), len(base)))
	for i := range out {
		out[i] = ours[i] / base[i]
	}
	return out
}

// Experiments returns all experiments by name.
func Experiments() []Experiment {
	all := []Experiment{
		features,
		migrating,
		userTimeout,
		injection,
		streamBlocking,
		eyeballRace,
		trialDecryption,
		throughput,
		latency,
		failover,
		aggregation,
		middleboxExperiment,
	}
	slices.SortFunc(all, func(a, b Experiment) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

package lab

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

var features = Experiment{
	Name:   "features",
	Source: "paper §5.2, Table 1",
	Claim:  "TCPLS gives applications what TCP, TLS over TCP and QUIC give them together, and multipath, migration and happy eyeballs in their own hands",
	Run:    runFeatures,
}

// A mark is a cell of Table 1.
type mark string

const (
	has    mark = "yes"
	partly mark = "(yes)" // with a restriction
	hard   mark = "(no)"  // there, but not straightforward to use
	lacks  mark = "no"
)

// A cell says how a protocol's feature is found out.
type cell struct {
	paper mark // in Table 1
	// exercise uses the feature; what it returns is the evidence. An error that
	// isn't a lackError is a fault of the experiment.
	exercise func(ctx context.Context, b *bench) (evidence string, err error)
	// restriction makes partly of a success.
	restriction string
	// absent says why there is nothing to exercise.
	absent string
	mark   mark // with absent: lacks or hard
}

// A lackError says what was seen instead of the feature.
type lackError struct{ what string }

func (e *lackError) Error() string { return e.what }

func lack(format string, args ...any) error {
	return &lackError{fmt.Sprintf(format, args...)}
}

// A feature is a row of Table 1.
type feature struct {
	name  string
	cells [4]cell // of featureColumns
}

var featureColumns = [4]string{"TCP", "TLS/TCP", "QUIC", "TCPLS"}

// The rows in the paper's order.
func featureRows() []feature {
	return []feature{
		reliability, confidentiality, connectionReliability, earlyData, resumption, migration,
		streams, happyEyeballs, explicitMultipath, appMigration, pluginization, headOfLine, secureClose,
	}
}

const (
	exerciseTime = 20 * time.Second
	featureSize  = 8 << 20
)

func runFeatures(ctx context.Context, o Options) (*Result, error) {
	b, err := newFeatureBench()
	if err != nil {
		return nil, err
	}
	defer b.Close()
	table := Table{
		Name: "table1", Title: "Features, by exercises; the paper's marks in brackets where they differ",
		Header: append([]string{"feature"}, featureColumns[:]...),
	}
	proof := Table{
		Name: "evidence", Title: "What the exercises showed",
		Header: []string{"feature", "protocol", "found", "paper", "evidence"},
	}
	ticks, differ := 0, 0
	var missing []string
	for _, row := range featureRows() {
		cells := []any{row.name}
		for i, c := range row.cells {
			o.step("%s: %s", row.name, featureColumns[i])
			found, evidence, err := c.find(ctx, b)
			if err != nil {
				return nil, fmt.Errorf("%s, %s: %w", row.name, featureColumns[i], err)
			}
			text := string(found)
			if found != c.paper {
				text += fmt.Sprintf(" [%s]", c.paper)
				differ++
			}
			if i == len(row.cells)-1 {
				if found == has || found == partly {
					ticks++
				} else {
					missing = append(missing, row.name)
				}
			}
			cells = append(cells, text)
			proof.add(row.name, featureColumns[i], found, c.paper, evidence)
		}
		table.add(cells...)
	}
	r := &Result{
		Tables:   []Table{table, proof},
		Measures: []Measure{measure("features of TCPLS", "", []float64{float64(ticks)}), measure("cells that differ from the paper", "", []float64{float64(differ)})},
		Verdict:  Verdict{Holds, fmt.Sprintf("TCPLS has all %d features; %d cells of the table differ from the paper's, see the evidence.", ticks, differ)},
	}
	if len(missing) > 0 {
		r.Verdict = Verdict{HoldsPartly, fmt.Sprintf("TCPLS lacks: %s.", strings.Join(missing, ", "))}
	}
	return r, nil
}

// newFeatureBench is over loopback, and where it can be, also over a network of
// two links: the first one loses packets, the second one takes its time.
func newFeatureBench() (*bench, error) {
	b, err := newBench()
	if err != nil {
		return nil, err
	}
	if Supported() == nil {
		b.lossy, err = newNetBench(TwoHosts(Shape{Delay: time.Millisecond, Loss: 0.02}, Shape{Delay: latencyRTT / 2}))
	}
	return b, err
}

// find exercises the cell.
func (c *cell) find(ctx context.Context, b *bench) (mark, string, error) {
	if c.exercise == nil {
		return c.mark, c.absent, nil
	}
	ctx, cancel := context.WithTimeout(ctx, exerciseTime)
	defer cancel()
	evidence, err := c.exercise(ctx, b)
	var lacking *lackError
	switch {
	case errors.As(err, &lacking):
		return lacks, lacking.what, nil
	case err != nil:
		return "", "", err
	case c.restriction != "":
		return partly, evidence + "; " + c.restriction, nil
	}
	return has, evidence, nil
}

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/go-tcpls/tcpls/lab"
)

type labFlags struct {
	out  string
	opts lab.Options
	json bool
}

func (t *tool) labCommand() *cobra.Command {
	f := new(labFlags)
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "Measure what the protocol promises, against other protocols",
		Long: `Run experiments: each measures one claim about TCPLS, beside plain TLS, Multipath TCP or
QUIC, prints tables and a verdict, and writes its data and pictures to a folder.

Most need Linux and root, since they make hosts and links of their own: network
namespaces with emulated links between them. Nothing of the machine's own network is
touched. docs/evaluation.md holds the results of full runs.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return &usageError{fmt.Sprintf("lab has no command %q", args[0]), "there are list, run and up"}
			}
			return &usageError{"lab needs to be told what to do", "run 'tcpls lab list', 'tcpls lab run NAME' or 'tcpls lab up FILE'"}
		},
	}
	list := &cobra.Command{
		Use:   "list",
		Short: "List the experiments",
		Args:  atMost(0),
		RunE:  func(*cobra.Command, []string) error { return t.labList(f) },
	}
	run := &cobra.Command{
		Use:     "run NAME...|all",
		Short:   "Run experiments",
		Example: "  tcpls lab run features\n  tcpls lab run failover aggregation --quick --out results\n  tcpls lab run all --reps 20 --json",
		Args:    atLeast(1, "the name of an experiment, or all, is needed"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.opts.Reps <= 0 && cmd.Flags().Changed("reps") {
				return &usageError{"--reps must be positive", ""}
			}
			return t.labRun(cmd.Context(), f, args)
		},
	}
	list.Flags().BoolVar(&f.json, "json", false, "print a JSON list")
	flags := run.Flags()
	flags.StringVarP(&f.out, "out", "o", "", "write tables (CSV), plots (SVG, PNG) and the text to this `folder`")
	flags.BoolVar(&f.opts.Quick, "quick", false, "as short as the verdict allows")
	flags.IntVar(&f.opts.Reps, "reps", 0, "repeat each measurement `N` times; default: the experiment's own number")
	flags.BoolVar(&f.json, "json", false, "print a JSON list of verdicts and figures instead of text")
	cmd.AddCommand(list, run, t.labUpCommand())
	return cmd
}

func (t *tool) labList(f *labFlags) error {
	type entry struct {
		Name   string `json:"name"`
		Source string `json:"source"`
		Claim  string `json:"claim"`
		Root   bool   `json:"root"`
	}
	var entries []entry
	for _, e := range lab.Experiments() {
		entries = append(entries, entry{e.Name, e.Source, e.Claim, e.Root})
	}
	if f.json {
		return t.labJSON(entries)
	}
	width := 0
	for _, e := range entries {
		width = max(width, len(e.Name))
	}
	for _, e := range entries {
		needs := ""
		if e.Root {
			needs = "root"
		}
		if _, err := fmt.Fprintf(t.out, "%-*s  %-4s  %s\n    %s\n", width, e.Name, needs, e.Source, e.Claim); err != nil {
			return &localError{err}
		}
	}
	return nil
}

func (t *tool) labJSON(v any) error {
	enc := json.NewEncoder(t.out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// choose returns the experiments of that name, or all.
func (f *labFlags) choose(names []string) ([]lab.Experiment, error) {
	var chosen []lab.Experiment
	all := lab.Experiments()
	for _, name := range names {
		before := len(chosen)
		for _, e := range all {
			if e.Name == name || name == "all" {
				chosen = append(chosen, e)
			}
		}
		if len(chosen) == before {
			var there []string
			for _, e := range all {
				there = append(there, e.Name)
			}
			return nil, &usageError{fmt.Sprintf("there is no experiment %q", name), "there are " + strings.Join(there, ", ") + ", and all of them with 'all'"}
		}
	}
	return chosen, nil
}

func (t *tool) labRun(ctx context.Context, f *labFlags, names []string) error {
	chosen, err := f.choose(names)
	if err != nil {
		return err
	}
	if f.out != "" { // so that no results are lost for want of a folder
		if err := os.MkdirAll(f.out, 0o755); err != nil {
			return &localError{err}
		}
	}
	reports := []*lab.Report{} // a list in JSON too, if there are none
	var failed []string
	for i, e := range chosen {
		r := t.experiment(ctx, f, e, fmt.Sprintf("%d/%d %s", i+1, len(chosen), e.Name))
		if ctx.Err() != nil {
			break // what was measured before is told
		}
		reports = append(reports, r)
		if r.Err != nil && len(chosen) == 1 {
			return &localError{r.Err}
		}
		if r.Err != nil || r.Result.Verdict.Outcome == lab.Fails {
			failed = append(failed, e.Name)
		}
		if !f.json {
			if i > 0 {
				fmt.Fprintln(t.out)
			}
			if err := r.WriteText(t.out); err != nil {
				return err
			}
		}
		if f.out == "" {
			continue
		}
		if err := r.Save(f.out); err != nil {
			return &localError{err}
		}
	}
	if f.json {
		if err := t.labJSON(reports); err != nil {
			return err
		}
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case len(failed) > 0:
		return &labError{failed}
	}
	return nil
}

// experiment runs one, with its steps on the screen.
func (t *tool) experiment(ctx context.Context, f *labFlags, e lab.Experiment, title string) *lab.Report {
	began := time.Now()
	opts := f.opts
	opts.Progress = func(step string) {
		line := fmt.Sprintf("%s (%v): %s", title, time.Since(began).Round(time.Second), step)
		if t.width == nil {
			t.say("%s", line)
			return
		}
		t.draw(string([]rune(line)[:min(len([]rune(line)), t.width()-1)]))
	}
	result, err := e.Run(ctx, opts)
	if t.width != nil {
		t.draw("")
	}
	return &lab.Report{Experiment: e, Options: f.opts, Result: result, Err: err}
}

// A labError names the experiments whose claim doesn't hold, or that couldn't
// be run.
type labError struct{ names []string }

func (e *labError) Error() string {
	return "the claim doesn't hold, or wasn't measured: " + strings.Join(e.names, ", ")
}

package lab

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"
)

// A Table is rows under a header.
type Table struct {
	// Name is that of its file, as "ratios".
	Name string
	// Title says what the rows are of, and their units.
	Title  string
	Header []string
	Rows   [][]string
	// DataOnly keeps a long table out of the text.
	DataOnly bool
}

func (t *Table) add(cells ...any) {
	row := make([]string, len(cells))
	for i, c := range cells {
		switch c := c.(type) {
		case float64:
			row[i] = round(c)
		default:
			row[i] = fmt.Sprint(c)
		}
	}
	t.Rows = append(t.Rows, row)
}

// WriteText writes the table in columns.
func (t *Table) WriteText(w io.Writer) error {
	widths := make([]int, len(t.Header))
	rows := append([][]string{t.Header}, t.Rows...)
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n", t.Title)
	for _, row := range rows {
		line := ""
		for i, cell := range row {
			line += fmt.Sprintf("  %-*s", widths[i], cell)
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// WriteCSV writes the table as RFC 4180 says.
func (t *Table) WriteCSV(w io.Writer) error {
	c := csv.NewWriter(w)
	if err := c.Write(t.Header); err != nil {
		return err
	}
	return c.WriteAll(t.Rows)
}

// A Report is the outcome of one experiment's run, as it is written.
type Report struct {
	Experiment Experiment
	Options    Options
	Result     *Result
	// Err tells why there is no result.
	Err error
}

// WriteText writes what a person wants to read.
func (r *Report) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\nClaim: %s\n\n", r.Experiment.Name, r.Experiment.Source, r.Experiment.Claim)
	if r.Result == nil {
		fmt.Fprintf(&b, "Not measured: %v\n", r.Err)
		_, err := io.WriteString(w, b.String())
		return err
	}
	for _, t := range r.Result.Tables {
		if t.DataOnly {
			continue
		}
		if err := t.WriteText(&b); err != nil {
			return err
		}
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, "Verdict: the claim %s. %s\n", r.Result.Verdict.Outcome, r.Result.Verdict.Why)
	_, err := io.WriteString(w, b.String())
	return err
}

// MarshalJSON gives the verdict and the figures.
func (r *Report) MarshalJSON() ([]byte, error) {
	out := struct {
		Name     string    `json:"name"`
		Source   string    `json:"source"`
		Claim    string    `json:"claim"`
		Quick    bool      `json:"quick"`
		Verdict  *Verdict  `json:"verdict,omitempty"`
		Measures []Measure `json:"measures,omitempty"`
		Error    string    `json:"error,omitempty"`
	}{Name: r.Experiment.Name, Source: r.Experiment.Source, Claim: r.Experiment.Claim, Quick: r.Options.Quick}
	if r.Result != nil {
		out.Verdict, out.Measures = &r.Result.Verdict, r.Result.Measures
	}
	if r.Err != nil {
		out.Error = r.Err.Error()
	}
	return json.Marshal(out)
}

// Save writes the text, each table as CSV and each plot as SVG and PNG into a
// folder, which it makes; the names of all begin with the experiment's.
func (r *Report) Save(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	name := func(part, ext string) string {
		if part != "" {
			part = "-" + part
		}
		return filepath.Join(dir, r.Experiment.Name+part+ext)
	}
	if err := writeFile(name("", ".txt"), r.WriteText); err != nil || r.Result == nil {
		return err
	}
	for _, t := range r.Result.Tables {
		if err := writeFile(name(t.Name, ".csv"), t.WriteCSV); err != nil {
			return err
		}
	}
	for _, p := range r.Result.Plots {
		for _, ext := range []string{".svg", ".png"} {
			write := func(w io.Writer) error { return p.Write(w, strings.TrimPrefix(ext, ".")) }
			if err := writeFile(name(p.Name, ext), write); err != nil {
				return err
			}
		}
	}
	return nil
}

func writeFile(name string, write func(io.Writer) error) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"
)

// An outcome is what a demo found. Times are in seconds since the transfers
// began, rates in bits per second.
type outcome struct {
	What       string          `json:"what"`
	Size       int64           `json:"size"`
	Mode       string          `json:"mode"`
	Cut        string          `json:"cut"`
	Links      []linkOutcome   `json:"links"`
	TCPLS      transferOutcome `json:"tcpls"`
	TLS        transferOutcome `json:"tls"`
	Events     []eventOutcome  `json:"events"`
	MigratedAt float64         `json:"migrated_at,omitempty"`
	MaxGap     float64         `json:"gap_limit"` // 0: none, since somebody cut links by hand
	Pass       bool            `json:"pass"`
	Verdict    string          `json:"verdict"`
}

type linkOutcome struct {
	Name    string          `json:"name"`
	Rate    float64         `json:"rate"`
	Delay   float64         `json:"delay"`
	Changes []changeOutcome `json:"changes"`

	samples []int64
}

type changeOutcome struct {
	At float64 `json:"at"`
	To string  `json:"to"`
}

type eventOutcome struct {
	At   float64 `json:"at"`
	Text string  `json:"text"`
}

type transferOutcome struct {
	Name     string  `json:"name"`
	Received int64   `json:"received"`
	Seconds  float64 `json:"seconds"`
	Goodput  float64 `json:"goodput"`
	Gap      float64 `json:"longest_gap"`
	SHA256   string  `json:"sha256,omitempty"`
	OK       bool    `json:"sha256_ok"`
	Error    string  `json:"error,omitempty"`

	bins []int64
}

// outcome judges the run.
func (d *demo) outcome() *outcome {
	now := time.Since(d.began)
	r := &outcome{
		What: d.content.what, Size: d.content.size, Mode: d.flags.mode, Cut: d.flags.cut,
		TCPLS: d.tcpls.outcome(now), TLS: d.tls.outcome(now), MigratedAt: d.migrated.Seconds(),
	}
	if r.Mode == modeMigrate {
		r.Cut = "none"
	}
	for _, l := range d.links {
		o := linkOutcome{Name: l.name, Rate: float64(l.shape.Rate) * 8, Delay: l.shape.Delay.Seconds(), Changes: []changeOutcome{}, samples: l.samples}
		for _, c := range l.changes {
			o.Changes = append(o.Changes, changeOutcome{c.at.Seconds(), c.to.String()})
		}
		r.Links = append(r.Links, o)
	}
	for _, n := range d.notesFrom(0) {
		r.Events = append(r.Events, eventOutcome{n.at.Seconds(), n.text})
	}
	if !d.touched {
		r.MaxGap = d.flags.maxGap.Seconds()
	}
	r.judge()
	return r
}

func (t *transfer) outcome(now time.Duration) transferOutcome {
	t.mu.Lock()
	defer t.mu.Unlock()
	took, gap := t.finished, t.gap
	o := transferOutcome{Name: t.name, Received: t.received, bins: t.bins}
	switch {
	case t.finished == 0:
		took, gap = now, max(gap, now-t.last)
		o.Error = "stalled until the end"
	case t.err != nil:
		o.Error = cause(t.err)
	default:
		o.SHA256 = t.arrived.String()
		o.OK = t.whole && t.arrived == t.sent
	}
	o.Seconds, o.Gap = took.Seconds(), gap.Seconds()
	o.Goodput = float64(t.received) * 8 / took.Seconds()
	return o
}

// judge words the verdict.
func (r *outcome) judge() {
	t := &r.TCPLS
	switch {
	case t.Error != "":
		r.Verdict = fmt.Sprintf("TCPLS broke after %v: %s", size(t.Received), t.Error)
	case !t.OK:
		r.Verdict = "what arrived over TCPLS isn't what was sent"
	case r.MaxGap > 0 && t.Gap > r.MaxGap:
		r.Verdict = fmt.Sprintf("TCPLS stood still for %s, which is more than %s", secs(t.Gap), secs(r.MaxGap))
	default:
		r.Pass = true
		r.Verdict = fmt.Sprintf("%v arrived whole over TCPLS, sha256 verified, longest gap %s; plain TLS %s", size(r.Size), secs(t.Gap), r.TLS.fate())
	}
}

// fate says in words what became of plain TLS.
func (t *transferOutcome) fate() string {
	switch {
	case t.Error != "":
		return fmt.Sprintf("broke after %v: %s", size(t.Received), t.Error)
	case !t.OK:
		return "delivered something else"
	case t.Gap > stallAfter.Seconds():
		return "stood still for " + secs(t.Gap)
	}
	return "arrived too, longest gap " + secs(t.Gap)
}

func secs(s float64) string { return threeDigits(s) + " s" }

func (r *outcome) print(w io.Writer, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintf(table, "%s, %v, mode %s\n\n", r.What, size(r.Size), r.Mode)
	for _, row := range r.rows() {
		for i, cell := range row {
			if i > 0 {
				fmt.Fprint(table, "\t")
			}
			fmt.Fprint(table, cell)
		}
		fmt.Fprintln(table)
	}
	word := "PASS"
	if !r.Pass {
		word = "FAIL"
	}
	fmt.Fprintf(table, "\n%s  %s\n", word, r.Verdict)
	return table.Flush()
}

// rows is the table for a person.
func (r *outcome) rows() [][]string {
	rows := [][]string{{"", r.TCPLS.Name, r.TLS.Name}}
	row := func(name string, cell func(*transferOutcome) string) {
		rows = append(rows, []string{name, cell(&r.TCPLS), cell(&r.TLS)})
	}
	row("links", func(t *transferOutcome) string {
		text := r.Links[0].describe()
		if t == &r.TCPLS {
			text += " and " + r.Links[1].describe()
		}
		return text
	})
	row("arrived", func(t *transferOutcome) string { return size(t.Received).String() })
	row("sha256", func(t *transferOutcome) string {
		switch {
		case t.OK:
			return "ok"
		case t.Error != "":
			return "-"
		}
		return "WRONG"
	})
	row("time", func(t *transferOutcome) string { return secs(t.Seconds) })
	row("goodput", func(t *transferOutcome) string { return bitrate(t.Goodput / 8) })
	row("longest gap", func(t *transferOutcome) string { return secs(t.Gap) })
	row("end", func(t *transferOutcome) string {
		if t.Error != "" {
			return t.Error
		}
		return "whole"
	})
	return rows
}

func (l linkOutcome) describe() string {
	return fmt.Sprintf("%s %v", bitrate(l.Rate/8), time.Duration(l.Delay*float64(time.Second)))
}

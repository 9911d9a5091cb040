package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/go-tcpls/tcpls/internal/linkemu"
)

// demoFlags say what the demonstration moves, and what happens meanwhile.
type demoFlags struct {
	mode   string
	links  linkShapes
	file   string
	size   size
	cut    string
	cutAt  time.Duration
	cutFor time.Duration
	maxGap time.Duration
	report string
	noTUI  bool
	json   bool
}

func (t *tool) demoCommand() *cobra.Command {
	f := &demoFlags{size: 60e6}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Download over TCPLS and over TLS while a link is cut",
		Long: `Run servers and clients in this process, with two emulated links between them, and
download a file over TCPLS and over plain TLS (Go's crypto/tls) at the same time. Both
use link 1; TCPLS may use link 2 too. In the middle link 1 is cut, and later restored:

    failover   TCPLS has a path that stands by over link 2
    aggregate  TCPLS uses both links together
    migrate    nothing is cut; the application moves TCPLS from link 1 to link 2

Each transfer has a link 1 of its own of the same kind, so that neither slows the other
down. What arrived is compared with the file by SHA-256. The verdict, and the exit
status, depend on that and on how long TCPLS stood still. It needs neither a network
nor root.`,
		Example: "  tcpls demo\n  tcpls demo --cut rst --report demo.html\n  tcpls demo --mode aggregate --cut none\n  tcpls demo --mode migrate --paths 50mbit/10ms,20mbit/40ms",
		Args:    atMost(0),
		RunE:    func(cmd *cobra.Command, _ []string) error { return t.demo(cmd.Context(), f) },
	}
	if err := f.links.Set("30mbit/20ms,30mbit/60ms"); err != nil {
		panic("BUG: " + err.Error())
	}
	flags := cmd.Flags()
	flags.StringVar(&f.mode, "mode", modeFailover, "failover, aggregate or migrate")
	flags.Var(&f.links, "paths", "rate and one-way delay of link 1 and link 2")
	flags.StringVar(&f.file, "file", "", "move this `file`; default: made data")
	flags.Var(&f.size, "size", "how much data to make")
	flags.StringVar(&f.cut, "cut", "blackhole", "how link 1 is cut: blackhole (silence), rst, close or none")
	flags.DurationVar(&f.cutAt, "cut-at", 0, "when it is cut, or TCPLS migrates; default: a third of the time that the file needs")
	flags.DurationVar(&f.cutFor, "cut-for", 0, "how long it stays cut; default: as long again, at least 2s")
	flags.DurationVar(&f.maxGap, "max-gap", 2*time.Second, "how long TCPLS may stand still for the verdict to be good")
	flags.StringVar(&f.report, "report", "", "write a page about the run to `file`, or, if it ends in .svg, the plot alone")
	flags.BoolVar(&f.noTUI, "no-tui", false, "write lines, also on a terminal")
	flags.BoolVar(&f.json, "json", false, "print one JSON object")
	return cmd
}

const (
	modeFailover  = "failover"
	modeAggregate = "aggregate"
	modeMigrate   = "migrate"
)

// cuts are the ways to cut a link by their names.
var cuts = map[string]linkemu.Condition{
	"none": linkemu.Up, "blackhole": linkemu.Blackhole, "rst": linkemu.Reset, "close": linkemu.Closed,
}

// check refuses what makes no sense and fills in the times.
func (f *demoFlags) check(n int64) error {
	_, known := cuts[f.cut]
	switch {
	case f.mode != modeFailover && f.mode != modeAggregate && f.mode != modeMigrate:
		return &usageError{fmt.Sprintf("--mode %q isn't failover, aggregate or migrate", f.mode), ""}
	case !known:
		return &usageError{fmt.Sprintf("--cut %q isn't blackhole, rst, close or none", f.cut), ""}
	case f.cutAt < 0 || f.cutFor < 0 || f.maxGap <= 0:
		return &usageError{"--cut-at, --cut-for and --max-gap must be positive", ""}
	}
	third := time.Duration(float64(n) / float64(f.links[0].Rate) / 3 * float64(time.Second)).Round(time.Millisecond)
	if f.cutAt == 0 {
		f.cutAt = third
	}
	if f.cutFor == 0 {
		f.cutFor = max(third, 2*time.Second)
	}
	if f.report != "" {
		if info, err := os.Stat(filepath.Dir(f.report)); err != nil || !info.IsDir() {
			return &usageError{fmt.Sprintf("--report: %s isn't a folder", filepath.Dir(f.report)), ""}
		}
	}
	return nil
}

// A content is what is moved. It can be opened more than once.
type content struct {
	what string
	size int64
	open func() (io.ReadCloser, error)
}

func (f *demoFlags) content() (*content, error) {
	if f.file == "" {
		if f.size <= 0 {
			return nil, &usageError{"--size must be positive", ""}
		}
		return &content{"made data", int64(f.size), func() (io.ReadCloser, error) {
			return io.NopCloser(madeData(int64(f.size))), nil
		}}, nil
	}
	info, err := os.Stat(f.file)
	if err == nil && (!info.Mode().IsRegular() || info.Size() == 0) {
		err = fmt.Errorf("%s is empty or isn't a file", f.file)
	}
	if err != nil {
		return nil, &localError{err}
	}
	return &content{f.file, info.Size(), func() (io.ReadCloser, error) { return os.Open(f.file) }}, nil
}

// madeData returns n bytes that no one can compress, the same at each run.
func madeData(n int64) io.Reader {
	var seed [32]byte
	binary.BigEndian.PutUint64(seed[:], uint64(n))
	return io.LimitReader(rand.NewChaCha8(seed), n)
}

func (t *tool) demo(ctx context.Context, f *demoFlags) error {
	c, err := f.content()
	if err != nil {
		return err
	}
	if err := f.check(c.size); err != nil {
		return err
	}
	d := &demo{tool: t, flags: f, content: c}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer d.close()
	if err := d.open(ctx); err != nil {
		return fmt.Errorf("setting up: %w", err)
	}
	v := d.startView()
	err = d.run(ctx, v)
	v.stop()
	if err != nil {
		return err
	}
	r := d.outcome()
	if err := r.print(t.out, f.json); err != nil {
		return &localError{err}
	}
	if f.report != "" {
		if err := r.save(f.report); err != nil {
			return &localError{err}
		}
		t.say("the report is %s", f.report)
	}
	if !r.Pass {
		return &verdictError{r.Verdict}
	}
	return nil
}

// A verdictError is a demonstration that didn't go as it should.
type verdictError struct{ text string }

func (e *verdictError) Error() string { return e.text }

var errQuit = errors.New("interrupted")

// run moves the content over both transfers and lets happen what is planned.
func (d *demo) run(ctx context.Context, v *view) error {
	d.start(ctx)
	defer context.AfterFunc(ctx, d.close)() // frees who reads and writes
	plan := d.plan()
	ticker := time.NewTicker(sampleInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case key := <-v.keys:
			if key == 'q' || key == interruptKey {
				return errQuit
			}
			d.press(ctx, key)
		case <-ticker.C:
		}
		now := time.Since(d.began)
		for len(plan) > 0 && now >= plan[0].at {
			plan[0].act(ctx)
			plan = plan[1:]
		}
		d.sample(now)
		v.show(now)
		if d.over(now, len(plan) > 0) {
			return nil
		}
	}
}

// A step is something that happens at a time.
type step struct {
	at  time.Duration
	act func(context.Context)
}

func (d *demo) plan() []step {
	f := d.flags
	if f.mode == modeMigrate {
		return []step{{f.cutAt, d.migrate}}
	}
	how := cuts[f.cut]
	if how == linkemu.Up {
		return nil
	}
	return []step{
		{f.cutAt, func(ctx context.Context) { d.setLink(ctx, 0, how) }},
		{f.cutAt + f.cutFor, func(ctx context.Context) { d.setLink(ctx, 0, linkemu.Up) }},
	}
}

// press acts on a key.
func (d *demo) press(ctx context.Context, key byte) {
	i := int(key - '1')
	if i < 0 || i >= len(d.links) {
		return
	}
	d.touched = true
	to := linkemu.Up
	if d.links[i].condition() == linkemu.Up {
		to = cuts[d.flags.cut]
		if to == linkemu.Up {
			to = linkemu.Blackhole
		}
	}
	d.setLink(ctx, i, to)
}

// lingering is how long plain TLS may be silent once TCPLS is through, if
// nothing is planned that would help it.
const lingering = 5 * time.Second

// over reports whether there is nothing to wait for any more.
func (d *demo) over(now time.Duration, planned bool) bool {
	if !d.tcpls.ended() {
		return false
	}
	if d.tls.ended() {
		return true
	}
	if !planned && d.tls.silence(now) > lingering {
		d.note(now, "plain TLS is given up")
		return true
	}
	return false
}

// linkShapes are the two links as a flag: 30mbit/20ms,30mbit/60ms.
type linkShapes [2]linkemu.Shape

var bitUnits = map[string]float64{"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}

// Set parses two links.
func (l *linkShapes) Set(text string) error {
	parts := strings.Split(text, ",")
	if len(parts) != len(l) {
		return fmt.Errorf("%q isn't two links such as 30mbit/20ms,30mbit/60ms", text)
	}
	for i, part := range parts {
		shape, err := parseLink(part)
		if err != nil {
			return err
		}
		l[i] = shape
	}
	return nil
}

func parseLink(text string) (shape linkemu.Shape, err error) {
	bad := fmt.Errorf("%q isn't a rate and a delay such as 30mbit/20ms", text)
	rate, delay, _ := strings.Cut(strings.ToLower(strings.TrimSpace(text)), "/")
	digits := strings.TrimRight(rate, "kmgbit")
	bits, ok := bitUnits[rate[len(digits):]]
	value, err := strconv.ParseFloat(digits, 64)
	if !ok || err != nil || strings.Trim(digits, "0123456789.") != "" {
		return shape, bad
	}
	shape.Rate = int64(value * bits / 8)
	if shape.Delay, err = time.ParseDuration(delay); err != nil {
		return shape, bad
	}
	if bits := shape.Rate * 8; bits < 1e5 || bits > 1e10 || shape.Delay < 0 || shape.Delay > 5*time.Second {
		return shape, fmt.Errorf("%q is out of bounds: 100kbit to 10gbit, 0s to 5s", text)
	}
	return shape, nil
}

// String is what Set takes.
func (l *linkShapes) String() string {
	var parts []string
	for _, s := range l {
		parts = append(parts, fmt.Sprintf("%gmbit/%v", float64(s.Rate)*8/1e6, s.Delay))
	}
	return strings.Join(parts, ",")
}

// Type names the flag's value in help texts.
func (l *linkShapes) Type() string { return "links" }

package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// demoFlags say what the demonstration moves.
type demoFlags struct {
	file string
	size size
	json bool
}

func (t *tool) demoCommand() *cobra.Command {
	f := &demoFlags{size: 60e6}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Move a file over TCPLS and over TLS, side by side",
		Long: `Run a server and a client in this process, and move a file over loopback: over TCPLS,
and over plain TLS as Go's crypto/tls does it. Both take turns with pieces of 16 MiB,
under the same congestion control where the system lets one choose. Only the moving is
timed. What arrived is compared with the file by SHA-256: the verdict depends on that,
not on speed.`,
		Example: "  tcpls demo\n  tcpls demo --file ubuntu.iso",
		Args:    atMost(0),
		RunE:    func(cmd *cobra.Command, _ []string) error { return t.demo(cmd.Context(), f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.file, "file", "", "move this `file`; default: made data")
	flags.Var(&f.size, "size", "how much data to make")
	flags.BoolVar(&f.json, "json", false, "print one JSON object")
	return cmd
}

// pieceSize is how much one transport moves before it is the other's turn.
const pieceSize = 16 << 20

// A contest is what a demo found.
type contest struct {
	What    string   `json:"what"`
	Size    int64    `json:"size"`
	SHA256  string   `json:"sha256"`
	Control string   `json:"congestion_control,omitempty"` // "": the system's default
	Racers  []*racer `json:"transports"`
	Pass    bool     `json:"pass"`
	Verdict string   `json:"verdict"`
}

// A racer is one transport in the demo: a connected pair of ends.
type racer struct {
	Name      string  `json:"name"`
	Facts     string  `json:"facts"`
	Handshake float64 `json:"handshake_ms"`
	Seconds   float64 `json:"seconds"`
	CPU       float64 `json:"cpu_seconds,omitempty"` // of both ends; 0 where the system doesn't tell
	SHA256    string  `json:"sha256"`

	from io.Writer // the server's end
	to   io.Reader // the client's
	hash hash.Hash
}

func (t *tool) demo(ctx context.Context, f *demoFlags) error {
	src, what, n, err := f.open()
	if err != nil {
		return err
	}
	defer src.Close()
	cert, err := selfSigned([]string{"127.0.0.1"})
	if err != nil {
		return err
	}
	c := &contest{What: what, Size: n, Control: demoCongestion()}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	setup := &arena{tool: t, cert: cert, control: c.Control}
	defer setup.close()
	for _, enter := range []func(context.Context) (*racer, error){setup.tcpls, setup.tls} {
		r, err := enter(ctx)
		if err != nil {
			return fmt.Errorf("setting up: %w", err)
		}
		r.hash = sha256.New()
		c.Racers = append(c.Racers, r)
	}
	// A reader or writer that waits is freed by the end of its connection.
	defer context.AfterFunc(ctx, setup.close)()
	if err := t.race(ctx, c, src); err != nil {
		return err
	}
	c.judge()
	if err := c.print(t.out, f.json); err != nil {
		return &localError{err}
	}
	if !c.Pass {
		return &digestError{"what arrived", c.SHA256, c.wrong()}
	}
	return nil
}

// open returns what is moved.
func (f *demoFlags) open() (src io.ReadCloser, what string, n int64, err error) {
	if f.file == "" {
		if f.size <= 0 {
			return nil, "", 0, &usageError{"--size must be positive", ""}
		}
		return io.NopCloser(madeData(int64(f.size))), "made data", int64(f.size), nil
	}
	file, err := os.Open(f.file)
	if err != nil {
		return nil, "", 0, &localError{err}
	}
	info, err := file.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Size() == 0) {
		err = fmt.Errorf("%s is empty or isn't a file", f.file)
	}
	if err != nil {
		return nil, "", 0, &localError{errors.Join(err, file.Close())}
	}
	return file, f.file, info.Size(), nil
}

// madeData returns n bytes that no one can compress, the same at each run.
func madeData(n int64) io.Reader {
	var seed [32]byte
	binary.BigEndian.PutUint64(seed[:], uint64(n))
	return io.LimitReader(rand.NewChaCha8(seed), n)
}

// race moves src piece by piece over each racer. Reading and hashing are done
// between the timed moves, when nothing is on the way.
func (t *tool) race(ctx context.Context, c *contest, src io.Reader) error {
	p := startProgress(t.ui, 1)
	defer p.stop()
	p.total.Store(c.Size * int64(len(c.Racers)))
	piece := make([]byte, min(pieceSize, c.Size))
	arrived := make([]byte, len(piece))
	whole := sha256.New()
	var moved int64
	for turn := 0; moved < c.Size; turn++ {
		n, err := io.ReadFull(src, piece[:min(int64(len(piece)), c.Size-moved)])
		if err != nil {
			return &localError{fmt.Errorf("reading %s: %w", c.What, err)}
		}
		moved += int64(n)
		whole.Write(piece[:n])
		for i := range c.Racers {
			r := c.Racers[(turn+i)%len(c.Racers)] // who begins alternates
			if err := r.move(arrived[:n], piece[:n]); err != nil {
				if ctx.Err() != nil {
					err = ctx.Err()
				}
				return fmt.Errorf("%s: %w", r.Name, err)
			}
			r.hash.Write(arrived[:n])
			p.done.Add(int64(n))
		}
	}
	c.SHA256 = digest(whole.Sum(nil)).String()
	for _, r := range c.Racers {
		r.SHA256 = digest(r.hash.Sum(nil)).String()
	}
	return nil
}

// move sends a piece and waits until it has arrived.
func (r *racer) move(arrived, piece []byte) error {
	clear(arrived)
	sent := make(chan error, 1)
	started, cpu := time.Now(), cpuTime()
	go func() {
		_, err := r.from.Write(piece)
		sent <- err
	}()
	_, err := io.ReadFull(r.to, arrived)
	r.Seconds += time.Since(started).Seconds()
	r.CPU += (cpuTime() - cpu).Seconds()
	if err != nil {
		return err
	}
	return <-sent
}

// judge compares the digests and words the verdict.
func (c *contest) judge() {
	first, second := c.Racers[0], c.Racers[1]
	c.Pass = c.wrong() == ""
	if !c.Pass {
		c.Verdict = "what arrived isn't what was sent"
		return
	}
	c.Verdict = fmt.Sprintf("%v arrived whole over both, sha256 verified; %s moved it %.2f times as fast as %s",
		size(c.Size), first.Name, second.Seconds/first.Seconds, second.Name)
	if first.CPU > 0 && second.CPU > 0 {
		c.Verdict += fmt.Sprintf(", with %.2f times its CPU time", first.CPU/second.CPU)
	}
}

// wrong returns a digest that isn't the file's, or "".
func (c *contest) wrong() string {
	for _, r := range c.Racers {
		if r.SHA256 != c.SHA256 {
			return r.SHA256
		}
	}
	return ""
}

func (c *contest) print(w io.Writer, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(c)
	}
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintf(table, "%s, %v, over loopback, congestion control %s\n\n", c.What, size(c.Size), cmp.Or(c.Control, "as the system has it"))
	row := func(name string, cell func(*racer) string) {
		fmt.Fprint(table, name)
		for _, r := range c.Racers {
			fmt.Fprint(table, "\t", cell(r))
		}
		fmt.Fprintln(table)
	}
	row("", func(r *racer) string { return r.Name })
	row("handshake", func(r *racer) string { return r.Facts })
	row("handshake time", func(r *racer) string { return threeDigits(r.Handshake) + " ms" })
	row("time", func(r *racer) string { return brief(seconds(r.Seconds)) })
	row("rate", func(r *racer) string { return rate(c.Size, seconds(r.Seconds)) })
	row("CPU for 1 GiB", func(r *racer) string {
		if r.CPU == 0 {
			return "unknown"
		}
		return threeDigits(r.CPU*(1<<30)/float64(c.Size)) + " s"
	})
	row("sha256", func(r *racer) string {
		if r.SHA256 == c.SHA256 {
			return "ok"
		}
		return "WRONG"
	})
	word := "PASS"
	if !c.Pass {
		word = "FAIL"
	}
	fmt.Fprintf(table, "\n%s  %s\n", word, c.Verdict)
	return table.Flush()
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

package main

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Intervals of the progress display: a bar on a terminal, lines elsewhere.
const (
	barInterval  = 200 * time.Millisecond
	lineInterval = 10 * time.Second
)

// A progress shows how far the transfers of a command are.
type progress struct {
	u       *ui
	started time.Time
	done    atomic.Int64 // bytes of all transfers
	skipped atomic.Int64 // of those, the ones that needn't travel
	total   atomic.Int64 // bytes of the transfers whose size is known
	files   int
	paths   func() []pathRow
	ended   atomic.Int64 // files

	stopc chan struct{}
	wg    sync.WaitGroup
}

func startProgress(u *ui, files int, paths func() []pathRow) *progress {
	p := &progress{u: u, started: time.Now(), files: files, paths: paths, stopc: make(chan struct{})}
	interval := lineInterval
	if u.width != nil {
		interval = barInterval
	}
	p.wg.Go(func() {
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				p.show()
			case <-p.stopc:
				return
			}
		}
	})
	return p
}

// stop ends the display and removes the bar.
func (p *progress) stop() {
	close(p.stopc)
	p.wg.Wait()
	p.u.draw("")
}

func (p *progress) show() {
	state := progressState{
		done: p.done.Load(), total: p.total.Load(), skipped: p.skipped.Load(),
		files: p.files, ended: int(p.ended.Load()), elapsed: time.Since(p.started),
		paths: p.paths(),
	}
	if p.u.width != nil {
		p.u.draw(state.picture(p.u.width()))
	} else {
		p.u.say("%s", strings.Join(append([]string{state.line()}, state.rows()...), "\n"))
	}
}

// A progressState is a moment of the transfers.
type progressState struct {
	done, total, skipped int64
	files, ended         int
	elapsed              time.Duration
	paths                []pathRow
}

// line says in words where the transfers are.
func (s progressState) line() string {
	text := size(s.done).String()
	if s.total >= s.done && s.total > 0 {
		text += fmt.Sprintf(" of %v  %d%%", size(s.total), s.done*100/s.total)
	}
	moved := s.done - s.skipped
	text += "  " + rate(moved, s.elapsed)
	if moved > 0 && s.total > s.done {
		left := time.Duration(float64(s.elapsed) * float64(s.total-s.done) / float64(moved))
		text += "  " + left.Round(time.Second).String() + " left"
	}
	if s.files > 1 {
		text = fmt.Sprintf("%d/%d files  %s", s.ended, s.files, text)
	}
	return text
}

// rows are lines below, one for each path.
func (s progressState) rows() (rows []string) {
	for _, p := range s.paths {
		rows = append(rows, "  "+p.String())
	}
	return rows
}

// picture draws the bar, and the paths below it, within a width of columns.
func (s progressState) picture(width int) string {
	lines := []string{s.bar(width)}
	for _, row := range s.rows() {
		lines = append(lines, row[:max(0, min(len(row), width-1))])
	}
	return strings.Join(lines, "\n")
}

// bar draws the state within a width of columns.
func (s progressState) bar(width int) string {
	text := s.line()
	// The last column stays free: terminals wrap when it is written.
	room := width - 1 - len(text) - len("[]  ")
	if s.total > 0 && room >= 10 {
		room = min(room, 30)
		full := int(int64(room) * min(s.done, s.total) / s.total)
		text = "[" + strings.Repeat("=", full) + strings.Repeat(" ", room-full) + "]  " + text
	}
	return text[:max(0, min(len(text), width-1))]
}

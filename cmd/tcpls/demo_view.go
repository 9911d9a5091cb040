package main

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-tcpls/tcpls"
	"github.com/go-tcpls/tcpls/internal/linkemu"
)

// Intervals of the demo's display: a picture on a terminal, lines elsewhere.
const (
	pictureInterval = 200 * time.Millisecond
	demoLine        = 2 * time.Second
)

// A view shows a demo while it runs. What happens is written once, as a line of
// its own; on a terminal a picture of the state stays below these lines.
type view struct {
	demo    *demo
	keys    <-chan byte
	restore func()
	live    bool
	due     time.Duration // the next picture, or line
	written int           // notes
}

func (d *demo) startView() *view {
	v := &view{demo: d, live: d.width != nil && !d.flags.noTUI, restore: func() {}}
	if v.live {
		v.keys, v.restore = d.readKeys()
	}
	return v
}

// stop writes what is still to be said and removes the picture.
func (v *view) stop() {
	v.notes()
	if v.live {
		v.demo.draw("")
	}
	v.restore()
}

// show is called in each interval.
func (v *view) show(now time.Duration) {
	v.notes()
	if now < v.due {
		return
	}
	if v.live {
		v.due = now + pictureInterval
		v.demo.draw(v.picture(now, v.demo.width()))
		return
	}
	if v.due > 0 {
		v.demo.say("%s", v.line(now))
	}
	v.due = now + demoLine
}

// notes writes what has happened.
func (v *view) notes() {
	for _, n := range v.demo.notesFrom(v.written) {
		v.demo.say("%6.2f s  %s", n.at.Seconds(), n.text)
		v.written++
	}
}

// line says in words where both transfers are.
func (v *view) line(now time.Duration) string {
	text := fmt.Sprintf("%6.2f s", now.Seconds())
	for _, t := range []*transfer{v.demo.tcpls, v.demo.tls} {
		s := t.state(now)
		text += fmt.Sprintf("  %s %v %.0f%% %s", s.name, size(s.received), s.share*100, s.words())
	}
	return text
}

// picture draws the links and the transfers, at most width columns wide.
func (v *view) picture(now time.Duration, width int) string {
	d := v.demo
	lines := []string{"", fmt.Sprintf("tcpls demo  %v, %s, %.1f s%s", size(d.content.size), d.flags.mode, now.Seconds(), v.help())}
	for i, l := range d.links {
		lines = append(lines, fmt.Sprintf("%-9s  %-22s %-10s %14s  %s", l.name, l.describe(), state(l), bitrate(recent(l.samples, now)), v.paths(i)))
	}
	for _, t := range []*transfer{d.tcpls, d.tls} {
		s := t.state(now)
		const room = 30
		full := int(room * s.share)
		lines = append(lines, fmt.Sprintf("%-9s  [%s%s] %3.0f%%  %s",
			s.name, strings.Repeat("=", full), strings.Repeat(" ", room-full), s.share*100, s.words()))
		t.mu.Lock()
		lines = append(lines, fmt.Sprintf("%-9s  %s", "", sparkline(t.bins, now, d.flags.links[0].Rate, max(0, width-13))))
		t.mu.Unlock()
	}
	for i, text := range lines {
		lines[i] = clip(text, width-1)
	}
	return strings.Join(lines, "\n")
}

func (v *view) help() string {
	if v.keys == nil {
		return ""
	}
	return "     keys: 1, 2 cut or restore a link, q quits"
}

// paths lists the client's paths over a link.
func (v *view) paths(link int) string {
	var texts []string
	for _, p := range v.demo.client.Paths() {
		if v.demo.linkOf(p) != link {
			continue
		}
		text := fmt.Sprintf("path %d", p.ID())
		if s := p.State(); s != tcpls.PathActive {
			text += " " + s.String()
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, ", ")
}

// describe gives the rate and the delay.
func (l *demoLink) describe() string {
	return fmt.Sprintf("%s, %v", bitrate(float64(l.shape.Rate)), l.shape.Delay)
}

func state(l *demoLink) string {
	if c := l.condition(); c != linkemu.Up {
		return strings.ToUpper(c.String())
	}
	return "up"
}

var sparks = []rune(" ▁▂▃▄▅▆▇█")

// sparkline draws the last bins, each as high as its rate is of most.
func sparkline(bins []int64, now time.Duration, most int64, width int) string {
	end := int(now / sampleInterval)
	var line strings.Builder
	for i := max(0, end-width); i < end; i++ {
		height := 0
		if i < len(bins) && bins[i] > 0 {
			share := float64(bins[i]) / (float64(most) * sampleInterval.Seconds())
			height = min(max(1, int(share*float64(len(sparks)-1)+0.5)), len(sparks)-1)
		}
		line.WriteRune(sparks[height])
	}
	return line.String()
}

// clip cuts text to a width in columns: terminals wrap what is longer.
func clip(text string, width int) string {
	if utf8.RuneCountInString(text) <= width {
		return text
	}
	return string([]rune(text)[:max(0, width)])
}

package main

import (
	"cmp"
	"fmt"
	"html"
	"math"
	"strings"

	"github.com/go-tcpls/tcpls/internal/linkemu"
)

// A plot is goodput over time as an SVG, on a ground of its own so that it can
// be read on any page.
type plot struct {
	strings.Builder
	seconds float64 // on the x axis
	top     float64 // of the y axis, in Mbit/s
}

// The plot's measures, in pixels.
const (
	plotWidth  = 860
	plotHeight = 420
	plotLeft   = 64
	plotRight  = plotWidth - 20
	plotTop    = 78
	plotBottom = plotHeight - 112
	laneTop    = plotBottom + 44
)

// Colours that are told apart by their lightness too.
const (
	inkColour   = "#1a202c"
	faintColour = "#4a5568"
	gridColour  = "#e2e8f0"
	tcplsColour = "#2b6cb0"
	otherColour = "#63b3ed" // TCPLS's second link
	tlsColour   = "#dd6b20"
	cutColour   = "#fed7d7"
)

// markStyle is that of what happened.
const markStyle = `font-size="12" fill="#9b2c2c"`

// plotBins is how many sample intervals a point of a curve stands for.
const plotBins = 3

func (r *outcome) plot() string {
	p := &plot{}
	bins := max(len(r.TCPLS.bins), len(r.TLS.bins), 1)
	p.seconds = float64(bins+1) * sampleInterval.Seconds()
	for _, l := range r.Links {
		if r.Mode == modeAggregate {
			p.top += l.Rate / 1e6
		} else {
			p.top = max(p.top, l.Rate/1e6)
		}
	}
	p.top *= 1.25 // room for the marks
	fmt.Fprintf(p, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="sans-serif" font-size="13" fill="%s">`+"\n",
		plotWidth, plotHeight, plotWidth, plotHeight, inkColour)
	fmt.Fprintf(p, `<rect width="%d" height="%d" rx="6" fill="#ffffff"/>`+"\n", plotWidth, plotHeight)
	p.text(plotLeft, 26, `font-size="16" font-weight="bold"`, r.title())
	p.text(plotLeft, 46, `fill="`+faintColour+`"`, r.subtitle())
	p.cuts(r)
	p.axes()
	if r.MigratedAt > 0 {
		fmt.Fprintf(p, `<path d="M%.1f %dV%d" stroke="#9b2c2c" stroke-dasharray="5 4"/>`+"\n", p.x(r.MigratedAt), plotTop, plotBottom)
		p.text(p.x(r.MigratedAt)+6, plotTop+14, markStyle, fmt.Sprintf("migration begins at %s", secs(r.MigratedAt)))
	}
	p.curve(&r.TLS, tlsColour, 2)
	p.curve(&r.TCPLS, tcplsColour, 3)
	p.legend(r)
	p.lane(r)
	p.WriteString("</svg>\n")
	return p.String()
}

func (r *outcome) title() string {
	if r.Mode == modeMigrate {
		return fmt.Sprintf("%v while the application migrates from link 1 to link 2", size(r.Size))
	}
	if r.Cut == "none" {
		return fmt.Sprintf("%v over two links", size(r.Size))
	}
	return fmt.Sprintf("%v while link 1 is cut and restored", size(r.Size))
}

func (r *outcome) subtitle() string {
	how := map[string]string{"blackhole": "a silent blackhole", "rst": "connections are reset", "close": "connections are closed"}[r.Cut]
	text := fmt.Sprintf("link 1: %s, link 2: %s (one way)", r.Links[0].describe(), r.Links[1].describe())
	if how != "" {
		text += "; the cut: " + how
	}
	return text
}

func (p *plot) text(x, y float64, attributes, text string) {
	fmt.Fprintf(p, `<text x="%.1f" y="%.1f" %s>%s</text>`+"\n", x, y, attributes, html.EscapeString(text))
}

func (p *plot) x(seconds float64) float64 {
	return plotLeft + (plotRight-plotLeft)*min(max(seconds/p.seconds, 0), 1)
}

func (p *plot) y(mbits float64) float64 {
	return plotBottom - (plotBottom-plotTop)*min(mbits/p.top, 1)
}

// axes draws both, with their grid.
func (p *plot) axes() {
	step := tick(p.top, 5)
	for v := 0.0; v < p.top; v += step {
		fmt.Fprintf(p, `<path d="M%d %.1fH%d" stroke="%s"/>`+"\n", plotLeft, p.y(v), plotRight, gridColour)
		p.text(plotLeft-8, p.y(v)+4, `text-anchor="end"`, fmt.Sprintf("%g", v))
	}
	p.text(16, (plotTop+plotBottom)/2, fmt.Sprintf(`text-anchor="middle" transform="rotate(-90 16 %d)"`, (plotTop+plotBottom)/2), "goodput, Mbit/s")
	step = tick(p.seconds, 10)
	for v := 0.0; v < p.seconds; v += step {
		fmt.Fprintf(p, `<path d="M%.1f %dv5" stroke="%s"/>`+"\n", p.x(v), plotBottom, faintColour)
		p.text(p.x(v), plotBottom+19, `text-anchor="middle"`, fmt.Sprintf("%.3g", v))
	}
	p.text(plotRight, plotBottom+34, `text-anchor="end"`, "seconds")
	fmt.Fprintf(p, `<path d="M%d %dV%dH%d" fill="none" stroke="%s"/>`+"\n", plotLeft, plotTop, plotBottom, plotRight, faintColour)
}

// tick returns a round step so that there are at most n to a length.
func tick(length float64, n int) float64 {
	step := math.Pow(10, math.Floor(math.Log10(length/float64(n))))
	for _, factor := range []float64{1, 2, 5, 10} {
		if length/(step*factor) <= float64(n) {
			return step * factor
		}
	}
	return step * 10
}

// cuts marks when link 1 was cut and restored.
func (p *plot) cuts(r *outcome) {
	from := -1.0
	mark := func(until float64) {
		if from < 0 {
			return
		}
		fmt.Fprintf(p, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n",
			p.x(from), plotTop, p.x(until)-p.x(from), plotBottom-plotTop, cutColour)
		p.text(p.x(from)+4, plotTop+14, markStyle, fmt.Sprintf("link 1 cut at %s", secs(from)))
		from = -1
	}
	for _, c := range r.Links[0].Changes {
		mark(c.At)
		if c.To != linkemu.Up.String() {
			from = c.At
			continue
		}
		p.text(p.x(c.At)+4, plotTop+14, markStyle, fmt.Sprintf("restored at %s", secs(c.At)))
	}
	mark(p.seconds)
}

// curve draws rates; each point is the mean of some intervals.
func (p *plot) curve(t *transferOutcome, colour string, width float64) {
	var points strings.Builder
	for i := 0; i < len(t.bins); i += plotBins {
		some := t.bins[i:min(i+plotBins, len(t.bins))]
		var sum int64
		for _, b := range some {
			sum += b
		}
		at := float64(i) * sampleInterval.Seconds()
		span := min(plotBins*sampleInterval.Seconds(), t.Seconds-at)
		if i > 0 && span < 2*sampleInterval.Seconds() {
			break // too short to say anything
		}
		fmt.Fprintf(&points, "%.1f,%.1f ", p.x(at+span/2), p.y(float64(sum)*8/1e6/span))
	}
	fmt.Fprintf(p, `<polyline points="%s" fill="none" stroke="%s" stroke-width="%g" stroke-linejoin="round"/>`+"\n",
		strings.TrimSpace(points.String()), colour, width)
}

func (p *plot) legend(r *outcome) {
	x := float64(plotLeft)
	for _, entry := range []struct{ colour, text string }{
		{tcplsColour, fmt.Sprintf("TCPLS: %s, longest gap %s", cmp.Or(r.TCPLS.Error, "whole in "+secs(r.TCPLS.Seconds)), secs(r.TCPLS.Gap))},
		{tlsColour, fmt.Sprintf("plain TLS: %s, longest gap %s", cmp.Or(r.TLS.Error, "whole in "+secs(r.TLS.Seconds)), secs(r.TLS.Gap))},
	} {
		fmt.Fprintf(p, `<path d="M%.1f 62h24" stroke="%s" stroke-width="3"/>`+"\n", x, entry.colour)
		p.text(x+30, 66, "", entry.text)
		x += 370
	}
}

// lane shows below the time axis over which link TCPLS's bytes came.
func (p *plot) lane(r *outcome) {
	p.text(plotLeft-8, laneTop+11, `text-anchor="end" font-size="12"`, "link 1")
	p.text(plotLeft-8, laneTop+31, `text-anchor="end" font-size="12"`, "link 2")
	for i, l := range r.Links {
		y := laneTop + 20*i
		fmt.Fprintf(p, `<rect x="%d" y="%d" width="%d" height="14" fill="%s"/>`+"\n", plotLeft, y, plotRight-plotLeft, gridColour)
		full := l.Rate / 8 * sampleInterval.Seconds()
		for bin, n := range l.samples {
			share := min(float64(n)/full, 1)
			if share < 0.05 {
				continue
			}
			at := float64(bin) * sampleInterval.Seconds()
			fmt.Fprintf(p, `<rect x="%.1f" y="%d" width="%.1f" height="14" fill="%s" fill-opacity="%.2f"/>`+"\n",
				p.x(at), y, p.x(at+sampleInterval.Seconds())-p.x(at)+0.3, []string{tcplsColour, otherColour}[i], max(share, 0.3))
		}
	}
	p.text(plotLeft, plotHeight-16, `font-size="12" fill="`+faintColour+`"`, "what TCPLS used of each link")
}

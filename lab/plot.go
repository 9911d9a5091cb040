package lab

import (
	"bytes"
	"fmt"
	"image/color"
	"io"
	"math"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// A Plot is a picture of lines over an axis, or of bars with their spread.
type Plot struct {
	// Name is that of its file, as "goodput".
	Name        string
	Title, X, Y string
	Lines       []Line
	Bars        []Bar
	// Marks are moments when something happened.
	Marks []Mark
	// Log makes both axes logarithmic. No value may be 0 then.
	Log bool
}

// A Line is a named curve.
type Line struct {
	Name   string
	Points []Point
	// Steps draws it as steps, as distributions are.
	Steps bool
}

// A Point lies on a curve.
type Point struct{ X, Y float64 }

// A Bar is a measure beside others.
type Bar struct {
	Name    string
	Measure Measure
}

// A Mark is a moment on the axis X.
type Mark struct {
	X    float64
	Text string
}

// Colours that are told apart by their lightness too; TCPLS's comes first.
var plotColours = []color.Color{
	color.RGBA{0x2b, 0x6c, 0xb0, 0xff},
	color.RGBA{0xdd, 0x6b, 0x20, 0xff},
	color.RGBA{0x2f, 0x85, 0x5a, 0xff},
	color.RGBA{0x80, 0x5a, 0xd5, 0xff},
	color.RGBA{0x9b, 0x2c, 0x2c, 0xff},
	color.RGBA{0x63, 0xb3, 0xed, 0xff},
	color.RGBA{0x4a, 0x55, 0x68, 0xff},
	color.RGBA{0xd6, 0x9e, 0x2e, 0xff},
}

const (
	plotWidth, plotHeight, plotMargin = 20 * vg.Centimeter, 11 * vg.Centimeter, 12
	plotStroke                        = 1.6
	plotFont                          = "Sans"
)

// Write draws the plot in a format of gonum.org/v1/plot, as "svg" or "png".
func (p *Plot) Write(w io.Writer, format string) error {
	g := plot.New()
	g.Title.Text = p.Title
	g.X.Label.Text, g.Y.Label.Text = p.X, p.Y
	g.X.Tick.Marker, g.Y.Tick.Marker = ticks{}, ticks{}
	if !p.Log {
		g.Y.Min = 0
	}
	for _, style := range []*text.Style{
		&g.Title.TextStyle, &g.X.Label.TextStyle, &g.Y.Label.TextStyle, &g.X.Tick.Label, &g.Y.Tick.Label,
	} {
		style.Font.Variant = plotFont
	}
	g.Add(plotter.NewGrid())
	for _, draw := range []func(*plot.Plot) error{p.drawLines, p.drawBars, p.drawMarks} {
		if err := draw(g); err != nil {
			return fmt.Errorf("plot %s: %w", p.Name, err)
		}
	}
	if p.Log {
		g.X.Scale, g.Y.Scale = plot.LogScale{}, plot.LogScale{}
		g.X.Tick.Marker, g.Y.Tick.Marker = plot.LogTicks{Prec: 6}, plot.LogTicks{Prec: 6}
	} else {
		g.Y.Max *= 1.15 // room for the marks
	}
	to, err := draw.NewFormattedCanvas(plotWidth, plotHeight, format)
	if err != nil {
		return fmt.Errorf("plot %s: %w", p.Name, err)
	}
	canvas := draw.New(to)
	canvas.FillPolygon(color.White, []vg.Point{{}, {X: plotWidth}, {X: plotWidth, Y: plotHeight}, {Y: plotHeight}})
	canvas = draw.Crop(canvas, plotMargin, -plotMargin, plotMargin, -plotMargin)
	below, err := p.drawLegend(canvas)
	if err != nil {
		return fmt.Errorf("plot %s: %w", p.Name, err)
	}
	g.Draw(draw.Crop(canvas, 0, 0, below, 0))
	var picture bytes.Buffer
	if _, err := to.WriteTo(&picture); err != nil {
		return err
	}
	// An SVG's font is the reader's: where the named one isn't there, another of
	// the same widths.
	_, err = w.Write(bytes.ReplaceAll(picture.Bytes(), []byte("Liberation Sans;"), []byte("Liberation Sans,Arial,Helvetica,sans-serif;")))
	return err
}

// drawLegend names the lines below the plot, where they cover none, in two
// columns, and returns how high that is.
func (p *Plot) drawLegend(canvas draw.Canvas) (height vg.Length, err error) {
	half := (len(p.Lines) + 1) / 2
	for column, lines := range [][]Line{p.Lines[:half], p.Lines[half:]} {
		legend := plot.NewLegend()
		legend.Top, legend.Left, legend.Padding = true, true, vg.Points(2)
		legend.TextStyle.Font.Variant = plotFont
		for i, line := range lines {
			l, err := plotter.NewLine(plotter.XYs{{}})
			if err != nil {
				return 0, err
			}
			l.Color, l.Width = plotColours[(column*half+i)%len(plotColours)], plotStroke
			legend.Add(line.Name, l)
		}
		if column == 0 && half > 0 {
			height = legend.Rectangle(canvas).Size().Y + vg.Points(8)
		}
		from := canvas.Size().X / 2 * vg.Length(column)
		legend.Draw(draw.Crop(canvas, from, 0, 0, height-vg.Points(8)-canvas.Size().Y))
	}
	return height, nil
}

// ticks are at multiples of 1, 2 or 5 times a power of ten, some six of them.
type ticks struct{}

func (ticks) Ticks(least, most float64) (out []plot.Tick) {
	if !(most > least) {
		return nil
	}
	step := math.Pow(10, math.Floor(math.Log10((most-least)/4)))
	for _, times := range []float64{5, 2} {
		if (most-least)/(step*times) >= 4 {
			step *= times
			break
		}
	}
	for i := math.Ceil(least / step); i*step <= most; i++ {
		out = append(out, plot.Tick{Value: i * step, Label: strconv.FormatFloat(i*step, 'g', 6, 64)})
	}
	return out
}

func (p *Plot) drawLines(g *plot.Plot) error {
	for i, line := range p.Lines {
		if len(line.Points) == 0 {
			continue
		}
		xys := make(plotter.XYs, len(line.Points))
		for j, point := range line.Points {
			xys[j] = plotter.XY(point)
		}
		l, err := plotter.NewLine(xys)
		if err != nil {
			return err
		}
		l.Color = plotColours[i%len(plotColours)]
		l.Width = plotStroke
		if line.Steps {
			l.StepStyle = plotter.PostStep
		}
		g.Add(l)
	}
	return nil
}

// drawBars draws medians with whiskers from the least to the greatest.
func (p *Plot) drawBars(g *plot.Plot) error {
	if len(p.Bars) == 0 {
		return nil
	}
	var heights plotter.Values
	var names []string
	var spread whiskers
	for i, b := range p.Bars {
		heights = append(heights, b.Measure.Median)
		names = append(names, b.Name)
		spread.XYs = append(spread.XYs, plotter.XY{X: float64(i), Y: b.Measure.Median})
		spread.YErrors = append(spread.YErrors, struct{ Low, High float64 }{
			b.Measure.Median - b.Measure.Least, b.Measure.Greatest - b.Measure.Median,
		})
	}
	bars, err := plotter.NewBarChart(heights, vg.Points(min(40, 380/float64(len(heights)))))
	if err != nil {
		return err
	}
	bars.Color, bars.LineStyle.Width = plotColours[0], 0
	errs, err := plotter.NewYErrorBars(spread)
	if err != nil {
		return err
	}
	above := plotter.XYLabels{XYs: spread.XYs}
	for _, b := range p.Bars {
		above.Labels = append(above.Labels, round(b.Measure.Median))
	}
	values, err := plotter.NewLabels(above)
	if err != nil {
		return err
	}
	for i := range values.TextStyle {
		values.TextStyle[i].Font.Variant = plotFont
	}
	values.Offset = vg.Point{X: 4, Y: 3} // beside the whisker
	g.Add(bars, errs, values)
	g.NominalX(names...)
	if len(names) > 4 {
		g.X.Tick.Label.Rotation, g.X.Tick.Label.XAlign, g.X.Tick.Label.YAlign = math.Pi/9, draw.XRight, draw.YTop
	}
	return nil
}

type whiskers struct {
	plotter.XYs
	plotter.YErrors
}

func (p *Plot) drawMarks(g *plot.Plot) error {
	for _, m := range p.Marks {
		top := g.Y.Max * 1.08
		l, err := plotter.NewLine(plotter.XYs{{X: m.X, Y: 0}, {X: m.X, Y: top}})
		if err != nil {
			return err
		}
		l.Color, l.Dashes = plotColours[4], []vg.Length{vg.Points(4), vg.Points(3)}
		label, err := plotter.NewLabels(plotter.XYLabels{XYs: plotter.XYs{{X: m.X, Y: top}}, Labels: []string{" " + m.Text}})
		if err != nil {
			return err
		}
		label.TextStyle[0].YAlign, label.TextStyle[0].Font.Variant = draw.YTop, plotFont
		g.Add(l, label)
	}
	return nil
}

// distribution is the share of values up to each one.
func distribution(name string, values []float64) Line {
	l := Line{Name: name, Steps: true, Points: []Point{{}}}
	for i := range values {
		q := float64(i) / float64(len(values))
		l.Points = append(l.Points, Point{quantile(values, q), float64(i+1) / float64(len(values))})
	}
	return l
}

package overload

import (
	"fmt"
	"html"
	"io"
	"strings"
)

// drawing is an SVG that can be read on light and on dark paper.
type drawing struct {
	w, h int
	b    strings.Builder
}

// style: colours by the Okabe-Ito palette, which colour-blind readers can tell apart.
const style = `<style>
text{font:12px system-ui,sans-serif;fill:#24292f}.title{font-size:14px;font-weight:600}.small{font-size:11px}
.grid{stroke:#8888;stroke-width:.5}.axis{stroke:#57606a;stroke-width:1}
.line{fill:none;stroke-width:2;stroke-linejoin:round}.dash{stroke-dasharray:5 4}.thin{stroke-width:1.2}
.s0{stroke:#0072b2}.s1{stroke:#d55e00}.s2{stroke:#009e73}.s3{stroke:#cc79a7}.band{fill:#0072b2;opacity:.16;stroke:none}
.paper{fill:#ffffff}
@media (prefers-color-scheme:dark){text{fill:#e6edf3}.axis{stroke:#9198a1}.s0{stroke:#56b4e9}.s1{stroke:#e69f00}.s2{stroke:#2bcf9f}.s3{stroke:#f0a6cf}.band{fill:#56b4e9;opacity:.22}.paper{fill:#0d1117}}
</style>`

func newDrawing(w, h int, title string) *drawing {
	d := &drawing{w: w, h: h}
	fmt.Fprintf(&d.b, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" role=\"img\" aria-label=\"%s\">\n%s\n", w, h, w, html.EscapeString(title), style)
	fmt.Fprintf(&d.b, "<rect class=\"paper\" width=\"%d\" height=\"%d\"/>\n", w, h)
	return d
}

func (d *drawing) text(x, y float64, class, anchor, s string) {
	fmt.Fprintf(&d.b, "<text x=\"%.1f\" y=\"%.1f\" class=\"%s\" text-anchor=\"%s\">%s</text>\n", x, y, class, anchor, html.EscapeString(s))
}

func (d *drawing) segment(class string, x1, y1, x2, y2 float64) {
	fmt.Fprintf(&d.b, "<line class=\"%s\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", class, x1, y1, x2, y2)
}

func (d *drawing) write(w io.Writer) error {
	_, err := io.WriteString(w, d.b.String()+"</svg>\n")
	return err
}

// marginLeft is the left edge of plots and legends.
const marginLeft = 70

// legend puts names beside samples of their lines.
func (d *drawing) legend(y float64, entries [][2]string) {
	x := float64(marginLeft)
	for _, e := range entries {
		d.segment("line "+e[0], x, y-4, x+24, y-4)
		d.text(x+30, y, "small", "start", e[1])
		x += 52 + 6.2*float64(len(e[1]))
	}
}

// plot is a pair of axes in a drawing.
type plot struct {
	d              *drawing
	x, y, w, h     float64 // of the area, from the top left
	xmin, xmax     float64
	ymin, ymax     float64
	xtitle, ytitle string
}

func (p *plot) point(x, y float64) (float64, float64) {
	return p.x + p.w*(x-p.xmin)/(p.xmax-p.xmin), p.y + p.h*(1-(y-p.ymin)/(p.ymax-p.ymin))
}

// tick is a mark on an axis.
type tick struct {
	value float64
	text  string
}

// every returns ticks at 0 and the multiples of step.
func every(end, step float64, format string) []tick {
	var ticks []tick
	for v := 0.0; v <= end+step/1000; v += step {
		ticks = append(ticks, tick{v, fmt.Sprintf(format, v)})
	}
	return ticks
}

// axes draws the grid; right are ticks of a second scale on the right, whose values
// are the left one's.
func (p *plot) axes(title string, xs, ys, right []tick) {
	d := p.d
	d.text(p.x, p.y-10, "title", "start", title)
	for _, t := range xs {
		x, _ := p.point(t.value, 0)
		d.segment("grid", x, p.y, x, p.y+p.h)
		d.text(x, p.y+p.h+16, "small", "middle", t.text)
	}
	for _, t := range ys {
		_, y := p.point(0, t.value)
		d.segment("grid", p.x, y, p.x+p.w, y)
		d.text(p.x-6, y+4, "small", "end", t.text)
	}
	for _, t := range right {
		_, y := p.point(0, t.value)
		d.text(p.x+p.w+6, y+4, "small", "start", t.text)
	}
	d.segment("axis", p.x, p.y+p.h, p.x+p.w, p.y+p.h)
	d.text(p.x+p.w/2, p.y+p.h+33, "small", "middle", p.xtitle)
	fmt.Fprintf(&d.b, "<text transform=\"translate(%.1f %.1f) rotate(-90)\" class=\"small\" text-anchor=\"middle\">%s</text>\n",
		p.x-42, p.y+p.h/2, html.EscapeString(p.ytitle))
}

// line joins points; dots marks them.
func (p *plot) line(class string, points [][2]float64, dots bool) {
	var path strings.Builder
	for i, q := range points {
		x, y := p.point(q[0], q[1])
		fmt.Fprintf(&path, "%c%.1f %.1f", "ML"[min(i, 1)], x, y)
	}
	if dots {
		for _, q := range points {
			x, y := p.point(q[0], q[1])
			fmt.Fprintf(&p.d.b, "<circle class=\"line %s\" cx=\"%.1f\" cy=\"%.1f\" r=\"2.5\"/>\n", class, x, y)
		}
	}
	fmt.Fprintf(&p.d.b, "<path class=\"line %s\" d=\"%s\"/>\n", class, path.String())
}

// steps draws a value that holds until the next point, as an area from the bottom.
func (p *plot) steps(class string, points [][2]float64, end float64) {
	if len(points) == 0 {
		return
	}
	var path strings.Builder
	x0, y0 := p.point(points[0][0], p.ymin)
	fmt.Fprintf(&path, "M%.1f %.1f", x0, y0)
	for i, q := range points {
		x, y := p.point(q[0], q[1])
		fmt.Fprintf(&path, "H%.1fV%.1f", x, y)
		if i == len(points)-1 {
			x1, _ := p.point(end, q[1])
			fmt.Fprintf(&path, "H%.1fV%.1fZ", x1, y0)
		}
	}
	fmt.Fprintf(&p.d.b, "<path class=\"%s\" d=\"%s\"/>\n", class, path.String())
}

package overload

import (
	"fmt"
	"io"
	"slices"
	"time"
)

// Draw renders the report's drawing: goodput by load, and for the given loads how
// level and goodput went over time.
func (r *Report) Draw(w io.Writer, timelines []float64) error {
	var shown []float64
	for _, load := range timelines {
		if slices.ContainsFunc(r.Runs, func(run *Run) bool { return run.Load == load }) {
			shown = append(shown, load)
		}
	}
	d := newDrawing(860, 350+230*len(shown), "Goodput under overload")
	r.byLoad(d)
	for i, load := range shown {
		r.timeline(d, load, float64(390+230*i))
	}
	return d.write(w)
}

func (r *Report) byLoad(d *drawing) {
	loads := map[float64]float64{}
	var ticks []tick
	for _, run := range r.sorted() {
		if _, ok := loads[run.Load]; !ok {
			loads[run.Load] = float64(len(loads))
			ticks = append(ticks, tick{loads[run.Load], fmt.Sprintf("%gx", run.Load)})
		}
	}
	p := plot{d: d, x: marginLeft, y: 50, w: 740, h: 230, xmin: -.3, xmax: float64(len(loads)) - .7, ymax: 100,
		xtitle: "load, in capacities of the model asked for", ytitle: "% of all requests sent"}
	p.axes(fmt.Sprintf("Real answers whose first token came within %v", r.Objective), ticks, every(100, 20, "%.0f"), nil)
	for i, mode := range []string{ModeOn, ModeOff} {
		class := []string{"s0", "s1"}[i]
		var strict, engine [][2]float64
		for _, run := range r.sorted() {
			if run.Mode == mode {
				t := Count(run.Outcomes, r.Objective)
				share := func(n int) float64 { return 100 * float64(n) / float64(max(t.Sent, 1)) }
				strict = append(strict, [2]float64{loads[run.Load], share(t.Strict)})
				engine = append(engine, [2]float64{loads[run.Load], share(t.Engine)})
			}
		}
		p.line(class+" dash", engine, false)
		p.line(class, strict, true)
	}
	d.legend(335, [][2]string{{"s0", "on, strict"}, {"s0 dash", "on, engine"}, {"s1", "off, strict"}, {"s1 dash", "off, engine"}})
}

// perBin is the time that a point of a timeline stands for.
const perBin = 2 * time.Second

func (r *Report) timeline(d *drawing, load, top float64) {
	end := 0.0
	for _, run := range r.Runs {
		if run.Load == load && len(run.Moments) > 0 {
			end = max(end, run.Moments[len(run.Moments)-1].Elapsed.Seconds())
		}
	}
	p := plot{d: d, x: marginLeft, y: top, w: 740, h: 130, xmax: max(end, 1), ymax: 100, xtitle: "seconds", ytitle: "% good, by time sent"}
	step := 10.0
	if end > 120 {
		step = 20
	}
	levels := []tick{{0, "L0"}, {25, "L1"}, {50, "L2"}, {75, "L3"}, {100, "L4"}}
	p.axes(fmt.Sprintf("%gx: goodput (strict) and level over time", load), every(end, step, "%.0f"), every(100, 25, "%.0f"), levels)
	for _, run := range r.Runs {
		if run.Load != load {
			continue
		}
		class := "s1"
		if run.Mode == ModeOn {
			class = "s0"
			p.steps("band", run.levels(), end)
		}
		p.line(class+" thin", run.goodput(r.Objective), false)
		x, _ := p.point(run.Window.Length.Seconds(), 0)
		d.segment("axis", x, p.y, x, p.y+p.h)
	}
	d.legend(top+p.h+55, [][2]string{{"s0", "goodput, on"}, {"s1", "goodput, off"}})
	d.text(320, top+p.h+55, "small", "start", "shaded: level, on (right scale); upright line: the load falls to 0.3x")
}

// levels returns the changes of the level, on a scale on which L4 is 100.
func (r *Run) levels() (points [][2]float64) {
	last := -1
	for _, m := range r.Moments {
		if m.Level >= 0 && m.Level != last {
			last = m.Level
			points = append(points, [2]float64{m.Elapsed.Seconds(), 25 * float64(m.Level)})
		}
	}
	return points
}

// goodput returns the share of good answers in percent by the time of sending.
func (r *Run) goodput(objective time.Duration) (points [][2]float64) {
	if len(r.Outcomes) == 0 {
		return nil
	}
	outcomes := append(append([]*Outcome(nil), r.Outcomes...), r.LightOutcomes...)
	begin := slices.MinFunc(outcomes, func(a, b *Outcome) int { return a.Sent.Compare(b.Sent) }).Sent
	bins := map[int][]*Outcome{}
	last := 0
	for _, o := range outcomes {
		n := int(o.Sent.Sub(begin) / perBin)
		bins[n] = append(bins[n], o)
		last = max(last, n)
	}
	for n := range last + 1 {
		if t := Count(bins[n], objective); t.Sent > 0 {
			moment := time.Duration(n)*perBin + perBin/2
			points = append(points, [2]float64{moment.Seconds(), 100 * float64(t.Strict) / float64(t.Sent)})
		}
	}
	return points
}

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// dashboardDir is where Grafana reads the dashboards.
const dashboardDir = "../dashboards"

// TestDashboards compares the files with what `make dashboards` writes.
func TestDashboards(t *testing.T) {
	made := t.TempDir()
	if err := write(made); err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, b := range boards() {
		want = append(want, b.path(dashboardDir))
		kept, err := os.ReadFile(b.path(dashboardDir))
		written, _ := os.ReadFile(b.path(made))
		if err != nil || len(written) == 0 || !bytes.Equal(kept, written) {
			t.Errorf("%s is not what boards.go says (%v): run make dashboards", b.path(dashboardDir), err)
		}
	}
	slices.Sort(want)
	if have, _ := filepath.Glob(filepath.Join(dashboardDir, "*")); !slices.Equal(have, want) {
		t.Errorf("there are %v; expected %v", have, want)
	}
}

// dashboard is what Grafana reads of a file, as far as this house uses it. Unknown
// fields are refused, so that a misspelt one is found here and not ignored there.
type dashboard struct {
	ID                                 *int
	UID, Title, Description            string
	Tags                               []string
	SchemaVersion, Version             int
	Editable, LiveNow                  bool
	GraphTooltip, FiscalYearStartMonth int
	Timezone, WeekStart, Refresh       string
	Time                               struct{ From, To string }
	Timepicker, Annotations            map[string]any
	Links                              []map[string]any
	Templating                         struct{ List []variable }
	Panels                             []grafanaPanel
}

type variable struct {
	Type, Name, Label, Definition, Regex, AllValue string
	Query                                          any // a string, or an object where it is Prometheus's
	Datasource                                     *dataSource
	Hide, Refresh, Sort                            int
	IncludeAll, Multi, SkipURLSync                 bool
	Options                                        []any
	Current                                        map[string]any
}

type dataSource struct{ Type, UID string }

type grafanaPanel struct {
	ID                       int
	Type, Title, Description string
	Collapsed                bool
	Panels                   []any
	GridPos                  position
	Datasource               dataSource
	Targets                  []target
	Options                  panelOptions
	FieldConfig              struct {
		Defaults  fieldDefaults
		Overrides []any
	}
}

type target struct {
	RefID                                  string
	Datasource                             dataSource
	EditorMode, Expr, LegendFormat, Format string
	Instant, Range, Exemplar               bool
}

type fieldDefaults struct {
	Unit, NoValue string
	Min, Max      *float64
	Mappings      []any
	Thresholds    struct {
		Mode  string
		Steps []struct {
			Color string
			Value *float64
		}
	}
	Color  struct{ Mode string }
	Custom customField
}

// panelOptions are the options of the four types of panels that are used, after
// Grafana's panelcfg.cue of each.
type panelOptions struct {
	Legend *struct {
		DisplayMode, Placement string
		ShowLegend             bool
		Calcs                  []string
	}
	Tooltip       *struct{ Mode, Sort string }
	ReduceOptions *struct {
		Calcs  []string
		Fields string
		Values bool
	}
	ColorMode, GraphMode, JustifyMode, Orientation, TextMode string // stat
	DisplayMode, ValueMode                                   string // bargauge
	ShowUnfilled                                             bool
	MinVizWidth, MinVizHeight                                int
	MergeValues                                              bool // state-timeline
	ShowValue, AlignValue                                    string
	RowHeight                                                float64
}

// customField is GraphFieldConfig, and its part in a state-timeline.
type customField struct {
	DrawStyle, LineInterpolation, ShowPoints, AxisPlacement, AxisLabel string
	LineWidth, FillOpacity                                             int
	SpanNulls                                                          bool
	Stacking                                                           struct{ Mode, Group string }
	ThresholdsStyle                                                    struct{ Mode string }
	ScaleDistribution                                                  struct{ Type string }
	HideFrom                                                           struct{ Legend, Tooltip, Viz bool }
}

// wrong is what Grafana does not know of these, by name.
func (p *grafanaPanel) wrong() (out []string) {
	known := func(name, value string, of ...string) {
		if value != "" && !slices.Contains(of, value) {
			out = append(out, name+" "+value)
		}
	}
	o, c := &p.Options, &p.FieldConfig.Defaults.Custom
	if o.Legend != nil {
		known("legend", o.Legend.DisplayMode, "list", "table", "hidden")
		known("legend", o.Legend.Placement, "bottom", "right")
		for _, calc := range o.Legend.Calcs {
			known("calc", calc, "lastNotNull", "mean", "max", "min")
		}
	}
	if o.Tooltip != nil {
		known("tooltip", o.Tooltip.Mode, "single", "multi", "none")
		known("tooltip", o.Tooltip.Sort, "asc", "desc", "none")
	}
	known("colorMode", o.ColorMode, "value", "background", "none")
	known("graphMode", o.GraphMode, "none", "line", "area")
	known("justifyMode", o.JustifyMode, "auto", "center")
	known("orientation", o.Orientation, "auto", "vertical", "horizontal")
	known("textMode", o.TextMode, "auto", "value", "value_and_name", "name", "none")
	known("displayMode", o.DisplayMode, "basic", "lcd", "gradient")
	known("valueMode", o.ValueMode, "color", "text", "hidden")
	known("showValue", o.ShowValue, "auto", "never", "always")
	known("alignValue", o.AlignValue, "center", "left", "right")
	known("drawStyle", c.DrawStyle, "line", "bars", "points")
	known("lineInterpolation", c.LineInterpolation, "linear", "smooth", "stepBefore", "stepAfter")
	known("showPoints", c.ShowPoints, "auto", "never", "always")
	known("axisPlacement", c.AxisPlacement, "auto", "left", "right", "hidden")
	known("stacking", c.Stacking.Mode, "none", "normal", "percent")
	known("thresholdsStyle", c.ThresholdsStyle.Mode, "off", "line", "dashed", "area", "line+area", "dashed+area", "series")
	known("scale", c.ScaleDistribution.Type, "linear", "log", "ordinal", "symlog")
	known("color", p.FieldConfig.Defaults.Color.Mode, "thresholds", "palette-classic", "fixed")
	single := p.Type == "stat" || p.Type == "bargauge"
	if single != (o.ReduceOptions != nil) || single == (o.Legend != nil) || o.RowHeight > 1 {
		out = append(out, "options of another type of panel")
	}
	return out
}

func readDashboards(t *testing.T) (all []dashboard) {
	t.Helper()
	for _, b := range boards() {
		raw, err := os.ReadFile(b.path(dashboardDir))
		if err != nil {
			t.Fatal(err)
		}
		var d dashboard
		in := json.NewDecoder(bytes.NewReader(raw))
		in.DisallowUnknownFields()
		if err := in.Decode(&d); err != nil {
			t.Fatalf("%s: %v", b.path(dashboardDir), err)
		}
		all = append(all, d)
	}
	return all
}

// TestDashboardsHold looks at all that Grafana does not say aloud when it is wrong.
func TestDashboardsHold(t *testing.T) {
	uids := map[string]bool{}
	for _, d := range readDashboards(t) {
		if uids[d.UID] || len(d.UID) > 40 || d.ID != nil || d.SchemaVersion != 39 || d.Description == "" {
			t.Errorf("%s: its uid is not its own, or too long, or it has an id, another schema or no description", d.UID)
		}
		uids[d.UID] = true
		if len(d.Links) != 1 || !slices.Equal(d.Tags, []string{"tidegate"}) {
			t.Errorf("%s: it is not linked with the others", d.UID)
		}
		holdVariables(t, &d)
		holdLayout(t, &d)
		ids, titles, shelf := map[int]bool{}, map[string]bool{}, ""
		for _, p := range d.Panels {
			if p.Type == "row" {
				shelf = p.Title
			}
			if ids[p.ID] || p.ID < 1 || titles[shelf+"/"+p.Title] || p.Title == "" {
				t.Errorf("%s: panel %d, %q: its id or title is not its own", d.UID, p.ID, p.Title)
			}
			ids[p.ID], titles[shelf+"/"+p.Title] = true, true
			if p.Type != "row" {
				holdPanel(t, d.UID, &p)
			}
		}
	}
}

// holdVariables: those that are used are there, and the other way round.
func holdVariables(t *testing.T, d *dashboard) {
	t.Helper()
	raw, _ := json.Marshal(d.Panels)
	defined := []string{}
	for _, v := range d.Templating.List {
		name := v.Name
		defined = append(defined, name)
		if v.Type == "query" && (v.Definition == "" || v.AllValue == "" || !v.IncludeAll || !v.Multi || v.Label == "") {
			t.Errorf("%s: the variable %s is not whole", d.UID, name)
		}
		if !bytes.Contains(raw, []byte("$"+name)) && !bytes.Contains(raw, []byte("${"+name+"}")) {
			t.Errorf("%s: nothing uses the variable %s", d.UID, name)
		}
		for _, m := range regexp.MustCompile(`\$(\w+)`).FindAllStringSubmatch(v.Definition, -1) {
			if !slices.Contains(defined, m[1]) {
				t.Errorf("%s: the variable %s asks for %s before there is any", d.UID, name, m[1])
			}
		}
	}
	for _, m := range regexp.MustCompile(`\$\{?(\w+)`).FindAllStringSubmatch(string(raw), -1) {
		if !strings.HasPrefix(m[1], "__") && !slices.Contains(defined, m[1]) {
			t.Errorf("%s: there is no variable %s", d.UID, m[1])
		}
	}
}

// holdLayout: panels stay within 24 columns, cover all of each line and never lie on
// each other.
func holdLayout(t *testing.T, d *dashboard) {
	t.Helper()
	taken := map[[2]int]int{}
	bottom := 0
	for _, p := range d.Panels {
		g := p.GridPos
		if g.X < 0 || g.W < 1 || g.H < 1 || g.X+g.W > 24 {
			t.Errorf("%s: %q lies outside of the grid: %+v", d.UID, p.Title, g)
		}
		for x := g.X; x < g.X+g.W; x++ {
			for y := g.Y; y < g.Y+g.H; y++ {
				if other, is := taken[[2]int{x, y}]; is {
					t.Fatalf("%s: %q lies on panel %d", d.UID, p.Title, other)
				}
				taken[[2]int{x, y}] = p.ID
			}
		}
		bottom = max(bottom, g.Y+g.H)
	}
	if len(taken) != 24*bottom {
		t.Errorf("%s: %d of %d cells are covered: some row has a gap", d.UID, len(taken), 24*bottom)
	}
}

// units are those of Grafana's that are used.
func units() []string {
	return []string{"short", "reqps", "s", "percentunit", "bytes", "celsius", "watt", "dateTimeFromNow"}
}

func holdPanel(t *testing.T, uid string, p *grafanaPanel) {
	t.Helper()
	d := p.FieldConfig.Defaults
	bad := func(what string) { t.Errorf("%s: %q: %s", uid, p.Title, what) }
	if !slices.Contains([]string{"timeseries", "stat", "bargauge", "state-timeline"}, p.Type) {
		bad("a type that not every Grafana has: " + p.Type)
	}
	if len(p.Description) < 10 || !strings.HasSuffix(p.Description, ".") {
		bad("its description says nothing")
	}
	if d.NoValue == "" || !slices.Contains(units(), d.Unit) {
		bad("it does not say that there is nothing, or has an unknown unit " + d.Unit)
	}
	if wrong := p.wrong(); len(wrong) > 0 {
		bad("Grafana does not know " + strings.Join(wrong, ", "))
	}
	source := dataSource{"prometheus", "${datasource}"}
	if p.Datasource != source || len(p.Targets) == 0 {
		bad("it asks another data source, or nothing")
	}
	for i, q := range p.Targets {
		if q.RefID != string(rune('A'+i)) || q.Datasource != source || q.Instant == q.Range || q.Expr == "" {
			bad("query " + q.RefID + " is not whole")
		}
		if q.LegendFormat == "" && p.Type != "stat" {
			bad("query " + q.RefID + " has no legend")
		}
		if p.Type == "stat" && !q.Instant {
			bad("a figure of a range, which outlives what it is about")
		}
		if strings.Contains(q.Expr, "$__range") && !q.Instant {
			bad("a query about the whole range is asked for each point of it")
		}
	}
	steps := d.Thresholds.Steps
	if d.Thresholds.Mode != "absolute" || len(steps) == 0 || steps[0].Value != nil {
		bad("its thresholds have no beginning")
		return
	}
	for i, s := range steps[1:] {
		if s.Value == nil || i > 0 && *s.Value <= *steps[i].Value {
			bad("its thresholds do not rise")
		}
	}
	if (p.Type == "state-timeline") != (len(d.Mappings) > 0) && p.Type != "stat" {
		bad("states without words")
	}
}

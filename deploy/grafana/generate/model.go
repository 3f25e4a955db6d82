package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// board is one dashboard.
type board struct {
	uid, title, description string
	picks                   []pick
	rows                    []shelf
}

// pick is a variable: the values that a label has.
type pick struct {
	name, label, query string
	allValue           string // the expression that stands for all of them
}

// shelf is a row of panels, laid from left to right.
type shelf struct {
	title  string
	panels []panel
}

// kind is a type of panel, of those that every Grafana has.
type kind string

const (
	lines    kind = "timeseries"
	number   kind = "stat"
	bars     kind = "bargauge"
	timeline kind = "state-timeline"
)

// query is one expression; legend names its series by their labels.
type query struct{ expr, legend string }

// step is a threshold: the colour holds from this value on.
type step struct {
	value float64
	color string
}

// word is the text of a value, and its colour.
type word struct {
	value       float64
	text, color string
}

// panel is one panel.
type panel struct {
	kind        kind
	title       string
	description string
	width       int // of 24
	height      int
	unit        string
	empty       string // what is shown where there is no data
	queries     []query
	steps       []step // the first one's value is the lowest; drawn as lines in a chart
	words       []word
	limit       float64 // of the axis; 0: what fits
	stack       bool
}

// Grafana's dashboard model, as far as it is used here.
type (
	object = map[string]any
	list   = []any
)

// position is the place of a panel, in 24 columns and rows of 30 pixels.
type position struct {
	H int `json:"h"`
	W int `json:"w"`
	X int `json:"x"`
	Y int `json:"y"`
}

func prometheusSource() object { return object{"type": "prometheus", "uid": "${datasource}"} }

// render returns the dashboard as Grafana reads it.
func (b *board) render() []byte {
	panels, id, y := list{}, 0, 0
	for _, row := range b.rows {
		id++
		panels = append(panels, object{"id": id, "type": "row", "title": row.title, "collapsed": false, "panels": list{}, "gridPos": position{1, 24, 0, y}})
		y++
		x, height := 0, 0
		for _, p := range row.panels {
			if x+p.width > 24 {
				x, y, height = 0, y+height, 0
			}
			id++
			panels = append(panels, p.render(id, position{p.height, p.width, x, y}))
			x, height = x+p.width, max(height, p.height)
		}
		y += height
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	// Maps are written in the order of their keys, so that a change is a small difference.
	if err := e.Encode(object{
		"id": nil, "uid": b.uid, "title": b.title, "description": b.description, "tags": list{"tidegate"},
		"schemaVersion": 39, "version": 1, "editable": true, "graphTooltip": 1, "timezone": "browser", "weekStart": "", "fiscalYearStartMonth": 0, "liveNow": false,
		"refresh": "30s", "time": object{"from": "now-1h", "to": "now"}, "timepicker": object{},
		"annotations": object{"list": list{object{
			"builtIn": 1, "datasource": object{"type": "grafana", "uid": "-- Grafana --"}, "enable": true, "hide": true,
			"iconColor": "rgba(0, 211, 255, 1)", "name": "Annotations & Alerts", "type": "dashboard",
		}}},
		"links": list{object{
			"type": "dashboards", "title": "Tidegate", "tags": list{"tidegate"}, "asDropdown": false, "includeVars": true, "keepTime": true,
			"targetBlank": false, "icon": "external link", "tooltip": "", "url": "",
		}},
		"templating": object{"list": b.templating()},
		"panels":     panels,
	}); err != nil {
		panic(err) // it is made of strings and numbers
	}
	return out.Bytes()
}

func (b *board) templating() list {
	out := list{object{
		"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus", "regex": "", "hide": 0, "refresh": 1,
		"includeAll": false, "multi": false, "options": list{}, "current": object{}, "skipUrlSync": false,
	}}
	for _, p := range b.picks {
		out = append(out, object{
			"type": "query", "name": p.name, "label": p.label, "datasource": prometheusSource(), "definition": p.query, "hide": 0, "refresh": 2, "regex": "", "sort": 1,
			"query":      object{"qryType": 1, "query": p.query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
			"includeAll": true, "allValue": p.allValue, "multi": true, "options": list{}, "skipUrlSync": false,
			"current": object{"selected": true, "text": list{"All"}, "value": list{"$__all"}},
		})
	}
	return out
}

func (p *panel) render(id int, place position) object {
	targets := list{}
	for i, q := range p.queries {
		target := object{
			"refId": string(rune('A' + i)), "datasource": prometheusSource(), "editorMode": "code", "expr": q.expr, "legendFormat": q.legend,
			"instant": p.instant(), "range": !p.instant(), "exemplar": p.kind == lines && strings.HasPrefix(q.expr, "histogram_quantile"),
		}
		if p.instant() {
			target["format"] = "time_series"
		}
		targets = append(targets, target)
	}
	defaults := object{
		"unit": p.unit, "noValue": p.empty, "mappings": p.mappings(), "thresholds": object{"mode": "absolute", "steps": p.thresholds()},
		"color": object{"mode": p.color()}, "custom": p.custom(),
	}
	if p.unit != "celsius" { // a margin may be below zero
		defaults["min"] = 0
	}
	if p.limit > 0 {
		defaults["max"] = p.limit
	}
	return object{
		"id": id, "type": string(p.kind), "title": p.title, "description": p.description, "datasource": prometheusSource(), "gridPos": place,
		"targets": targets, "options": p.options(), "fieldConfig": object{"defaults": defaults, "overrides": list{}},
	}
}

// instant reports whether a panel shows the present. Of a range Grafana would show the
// last value, although its series may have ended long before.
func (p *panel) instant() bool { return p.kind == bars || p.kind == number }

func (p *panel) color() string {
	if len(p.steps) > 0 && p.kind != lines || len(p.words) > 0 || p.kind == number {
		return "thresholds"
	}
	return "palette-classic"
}

// thresholds returns the thresholds, the colour below all of them first.
func (p *panel) thresholds() list {
	steps, first := p.steps, "green"
	switch {
	case len(p.words) > 0:
		steps = nil
		for _, w := range p.words {
			steps = append(steps, step{w.value, w.color})
		}
		first, steps = steps[0].color, steps[1:]
	case p.kind == number && len(steps) == 0:
		first = "blue" // a figure that is neither good nor bad
	case len(steps) > 0:
		first, steps = steps[0].color, steps[1:]
	}
	out := list{object{"color": first, "value": nil}}
	for _, s := range steps {
		out = append(out, object{"color": s.color, "value": s.value})
	}
	return out
}

func (p *panel) mappings() list {
	if len(p.words) == 0 {
		return list{}
	}
	options := object{}
	for i, w := range p.words {
		options[fmt.Sprint(w.value)] = object{"text": w.text, "color": w.color, "index": i}
	}
	return list{object{"type": "value", "options": options}}
}

func (p *panel) custom() object {
	switch p.kind {
	case lines:
		stacking, fill, style := "none", 0, "off"
		if p.stack {
			stacking, fill = "normal", 40
		}
		if len(p.steps) > 0 {
			style = "dashed"
		}
		return object{
			"drawStyle": "line", "lineInterpolation": "linear", "lineWidth": 1, "fillOpacity": fill, "showPoints": "never", "spanNulls": false,
			"stacking": object{"mode": stacking, "group": "A"}, "thresholdsStyle": object{"mode": style}, "axisPlacement": "auto", "axisLabel": "",
			"scaleDistribution": object{"type": "linear"}, "hideFrom": object{"legend": false, "tooltip": false, "viz": false},
		}
	case timeline:
		return object{"fillOpacity": 70, "lineWidth": 0, "hideFrom": object{"legend": false, "tooltip": false, "viz": false}}
	}
	return object{}
}

func (p *panel) options() object {
	reduce := object{"calcs": list{"lastNotNull"}, "fields": "", "values": false}
	legend := object{"displayMode": "list", "placement": "bottom", "showLegend": true, "calcs": list{}}
	switch p.kind {
	case number:
		return object{"reduceOptions": reduce, "colorMode": "value", "graphMode": "none", "justifyMode": "auto", "orientation": "auto", "textMode": "auto"}
	case bars:
		return object{
			"reduceOptions": reduce, "displayMode": "basic", "orientation": "horizontal", "showUnfilled": true, "valueMode": "color",
			"minVizWidth": 8, "minVizHeight": 16,
		}
	case timeline:
		return object{
			"mergeValues": true, "showValue": "auto", "alignValue": "left", "rowHeight": 0.9, "legend": legend,
			"tooltip": object{"mode": "single", "sort": "none"},
		}
	}
	legend["displayMode"], legend["calcs"] = "table", list{"lastNotNull", "mean", "max"}
	return object{"legend": legend, "tooltip": object{"mode": "multi", "sort": "desc"}}
}

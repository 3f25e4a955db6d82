package degrade

import (
	"math"
	"time"
)

// pool is what is remembered of one model.
type pool struct {
	tracks [sides]track
}

// track is where a model stands on one side.
type track struct {
	rung     rung
	pressure float64
	top      cause     // that asks for most; at L0 none
	why      cause     // of its last change: that asked for it, or that let go
	usable   time.Time // when it last had a backend that may be used
}

// cause is a signal of a backend.
type cause struct {
	by        signal
	backend   string
	value     float64 // as read
	threshold float64 // that it has passed; NaN: the signal has none, or it has passed none
}

// mark is the most that a backend has asked for since its model's last change.
type mark struct {
	pressure float64
	by       signal
	ask      ask
}

func newTrack() track { return track{top: cause{by: noSignal}, why: cause{by: noSignal}} }

func newPool() pool { return pool{[sides]track{newTrack(), newTrack()}} }

// step is one look at a model: a function of its backends, what is remembered of it,
// and the time.
func (p *pool) step(backends []*watched, k *book, now time.Time) {
	for _, w := range backends {
		for side, why := range [sides]string{w.out, w.why} {
			if w.member[side] = w.up && why == "" && !w.blind[side]; w.member[side] {
				w.ghosts[side], w.ghost[side] = true, w.stand[side].pressure
			}
		}
	}
	for side := range sides {
		p.tracks[side].step(backends, side, k, now)
	}
}

// mean is the pressure of the backends that count, by weight; weight 0: none does.
//
// One that leaves, as with a lost GPU, would raise the mean of the rest if it was a
// calm one; but fewer cards are less availability, and no pressure on those that
// stay. So those that left count as they were last where that makes the mean smaller,
// which is the least mean over any of them: those below it, found in a few rounds,
// each of which is smaller. A request has the level of the backend that it lands on
// in any case.
func mean(backends []*watched, side int) (pressure, weight float64) {
	sum := 0.0
	for _, w := range backends {
		if w.member[side] {
			sum, weight = sum+float64(w.gauge.Weight())*w.stand[side].pressure, weight+float64(w.gauge.Weight())
		}
	}
	if weight == 0 {
		return 0, 0
	}
	pressure = sum / weight
	for {
		all, of := sum, weight
		for _, w := range backends {
			if !w.member[side] && w.ghosts[side] && w.ghost[side] < pressure {
				all, of = all+float64(w.gauge.Weight())*w.ghost[side], of+float64(w.gauge.Weight())
			}
		}
		if all/of >= pressure {
			return pressure, weight
		}
		pressure = all / of
	}
}

func (t *track) step(backends []*watched, side int, k *book, now time.Time) {
	pressure, weight := mean(backends, side)
	old, most := 0.0, 0.0
	var top ask
	for _, w := range backends {
		if !w.member[side] {
			continue
		}
		if w.hold[side] {
			old += float64(w.gauge.Weight())
		}
		st := &w.stand[side]
		if st.by == noSignal {
			continue
		}
		if st.pressure > most {
			most, top = st.pressure, w.asks[st.by]
			t.top = cause{st.by, w.gauge.Name, top.value, math.NaN()}
		}
		if st.pressure >= w.mark[side].pressure {
			w.mark[side] = mark{st.pressure, st.by, w.asks[st.by]}
		}
	}
	if weight > 0 {
		t.usable = now
	}
	l := levelAt(pressure)
	// Nothing is relaxed while half of what is known is held; one of many that come and
	// go, as with sources that are slow, would hold it for good. For a moment without
	// any backend nothing changes either; then there is nothing to hold the level.
	held := weight > 0 && 2*old >= weight || weight == 0 && now.Sub(t.usable) <= clearFor
	was, fell := t.rung.level, t.rung.changed.Equal(t.rung.lowered)
	t.rung.step(l, l, held, &k.config.Dwell, now)
	t.pressure = within(pressure, t.rung.level)
	switch {
	case t.rung.level > was:
		t.why = t.top
		t.why.threshold = top.scale.entry(t.rung.level)
	case t.rung.level < was:
		if why := released(backends, side); why.by != noSignal || !fell {
			t.why = why // else it goes on down for what let go before
		}
	}
	if t.rung.level != was {
		for _, w := range backends {
			w.mark[side] = mark{}
			if st := &w.stand[side]; w.member[side] && st.by != noSignal {
				w.mark[side] = mark{st.pressure, st.by, w.asks[st.by]}
			}
		}
	}
	if t.rung.level == Full {
		t.top = cause{by: noSignal}
	}
}

// released is what has let go: of the backends that count, the one that asks for
// most less than it did, by weight. The reading is of now; of a signal that has gone
// silent it is the last.
func released(backends []*watched, side int) cause {
	why, most := cause{by: noSignal, threshold: math.NaN()}, 0.0
	for _, w := range backends {
		m, now := &w.mark[side], w.stand[side].pressure
		less := float64(w.gauge.Weight()) * (m.pressure - now)
		if !w.member[side] || less <= most {
			continue
		}
		a := w.asks[m.by]
		if !a.known {
			a = m.ask
		}
		most, why = less, cause{m.by, w.gauge.Name, a.value, math.NaN()}
		if l := levelAt(m.pressure); levelAt(now) < l {
			why.threshold = a.scale.exit(l)
		}
	}
	return why
}

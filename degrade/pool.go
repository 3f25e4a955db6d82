package degrade

import "time"

// pool is what is remembered of one model.
type pool struct {
	tracks [sides]track
}

// track is where a model stands on one side.
type track struct {
	rung     rung
	pressure float64
	by       signal
	backend  string    // that asks for most
	value    ask       // what its signal asks
	usable   time.Time // when it last had a backend that may be used
}

func newPool() pool { return pool{[sides]track{{by: noSignal}, {by: noSignal}}} }

// step is one look at a model: a function of its backends, what is remembered of it,
// and the time.
func (p *pool) step(backends []*watched, k *book, now time.Time) {
	for _, w := range backends {
		if w.member = w.up && w.out == "" && !w.blind(); w.member {
			w.ghosts, w.ghost = true, [sides]float64{w.stand[acting].pressure, w.stand[wouldBe].pressure}
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
		if w.member {
			sum, weight = sum+float64(w.gauge.Weight)*w.stand[side].pressure, weight+float64(w.gauge.Weight)
		}
	}
	if weight == 0 {
		return 0, 0
	}
	pressure = sum / weight
	for {
		all, of := sum, weight
		for _, w := range backends {
			if !w.member && w.ghosts && w.ghost[side] < pressure {
				all, of = all+float64(w.gauge.Weight)*w.ghost[side], of+float64(w.gauge.Weight)
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
	for _, w := range backends {
		if !w.member {
			continue
		}
		if w.hold[side] {
			old += float64(w.gauge.Weight)
		}
		if st := &w.stand[side]; st.by != noSignal && st.pressure > most {
			most = st.pressure
			t.by, t.backend, t.value = st.by, w.gauge.Name, w.asks[st.by]
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
	t.rung.step(ask{known: true, enter: l, keep: l}, true, held, none, &k.config.Dwell, now)
	t.pressure = within(pressure, t.rung.level)
	if t.rung.level == Full {
		t.by, t.backend = noSignal, ""
	}
}

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
	by       signal
	backend  string    // that asks for most
	value    ask       // what its signal asks
	usable   time.Time // when it last had a backend that may be used
}

// step is one look at a model: a function of its backends, what is remembered of it,
// and the time.
//
// Its pressure is the mean of the usable backends', by weight. A backend that leaves,
// as with a lost GPU, would raise the mean of the rest if it was a calm one; but
// fewer cards are less availability, and no pressure on those that stay. So the mean
// is also taken with those that left, as they were last, and the smaller one counts.
// A request that lands on a backend has that one's level in any case.
func (p *pool) step(backends []*watched, k *book, now time.Time) {
	some := false // whether any usable backend is not blind
	for _, w := range backends {
		w.member = w.up && w.out == ""
		some = some || w.member && !w.blind()
	}
	for _, w := range backends {
		w.member = w.member && (!some || !w.blind())
	}
	for side := range sides {
		p.tracks[side].step(backends, side, k, now)
	}
	for _, w := range backends {
		if w.member {
			w.ghosts, w.ghost = true, [sides]float64{w.stand[acting].pressure, w.stand[wouldBe].pressure}
		}
	}
}

func (t *track) step(backends []*watched, side int, k *book, now time.Time) {
	var sum, weight, withGone, weightGone, most float64
	for _, w := range backends {
		share := float64(w.gauge.Weight)
		switch {
		case w.member:
			st := &w.stand[side]
			sum, weight = sum+share*st.pressure, weight+share
			if st.by != noSignal && st.pressure > most {
				most = st.pressure
				t.by, t.backend, t.value = st.by, w.gauge.Name, w.asks[st.by]
			}
		case w.ghosts:
			withGone, weightGone = withGone+share*w.ghost[side], weightGone+share
		}
	}
	mean := 0.0
	if weight > 0 {
		t.usable = now
		mean = math.Min(sum/weight, (sum+withGone)/(weight+weightGone))
	}
	l := levelAt(mean)
	// For a moment without any backend nothing changes; then there is nothing to
	// hold the level.
	held := weight == 0 && now.Sub(t.usable) <= clearFor
	t.rung.step(ask{known: true, enter: l, keep: l}, true, held, none, &k.config.Dwell, now)
	t.pressure = within(mean, t.rung.level)
	if t.rung.level == Full {
		t.by, t.backend = noSignal, ""
	}
}

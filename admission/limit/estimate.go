package limit

import (
	"cmp"
	"math"
	"slices"
	"sync"
	"time"
)

const (
	recentOutputs = 64     // outputs per key, model and thinking
	enoughOutputs = 8      // outputs of a key that show that more is to be expected
	coldOutput    = 2048   // tokens, where nothing is known
	maxEstimated  = 20_000 // keys
	maxPaces      = 1_000  // models
)

// outputKey identifies the callers and models whose outputs are alike.
type outputKey struct {
	caller, model string // caller: key, user or address
	thinking      bool
}

// outputs holds the last answers for one outputKey, in tokens, and their durations from
// admission to end, in milliseconds.
type outputs struct {
	output, reasoning, took recent
	mean                    time.Duration // moving average of took
}

func (o *outputs) add(output, reasoning int64, took time.Duration) {
	o.output.add(int32(output))
	o.reasoning.add(int32(reasoning))
	o.took.add(int32(min(took.Milliseconds(), math.MaxInt32)))
	o.mean = averaged(o.mean, took)
}

// estimate returns the tokens that nine of ten answers did not pass.
func (o *outputs) estimate() Estimate {
	return Estimate{Output: o.output.p90(), Reasoning: o.reasoning.p90()}
}

// recent holds the last values of a series, in their order in time and by size. An answer
// costs a search and two short moves, where sorting would cost microseconds.
type recent struct {
	inTime, bySize []int32
	next           int // index in inTime that is replaced next
}

func (r *recent) add(value int32) {
	if len(r.inTime) < recentOutputs {
		r.inTime = append(r.inTime, value)
	} else {
		old, _ := slices.BinarySearch(r.bySize, r.inTime[r.next])
		r.bySize = slices.Delete(r.bySize, old, old+1)
		r.inTime[r.next] = value
		r.next = (r.next + 1) % recentOutputs
	}
	place, _ := slices.BinarySearch(r.bySize, value)
	r.bySize = slices.Insert(r.bySize, place, value)
}

func (r *recent) count() int { return len(r.inTime) }

// p90 returns the least value that nine of ten do not pass. There must be one.
func (r *recent) p90() int64 { return r.part(9, 10) }

// part returns the least value that a fraction of them does not pass. There must be one.
func (r *recent) part(numerator, denominator int) int64 {
	return int64(r.bySize[(len(r.bySize)*numerator+denominator-1)/denominator-1])
}

// estimator expects of a request what its key's recent answers of the model had, else what the
// model's answers had, else a constant.
type estimator struct {
	mu    sync.Mutex
	byKey map[outputKey]*outputs
	paces map[string]*paces // by the model that answers
}

func newEstimator() *estimator {
	return &estimator{byKey: map[outputKey]*outputs{}, paces: map[string]*paces{}}
}

func outputKeyOf(r *Request) outputKey {
	s := outputKey{caller: r.Key, model: r.Model, thinking: r.Thinking}
	if s.caller == "" {
		s.caller = r.User
	}
	if s.caller == "" {
		s.caller = network(r.IP)
	}
	return s
}

func (e *estimator) estimate(r *Request) Estimate {
	key := outputKeyOf(r)
	e.mu.Lock()
	defer e.mu.Unlock()
	out := e.expected(key)
	model := e.paces[cmp.Or(r.Served, r.Model)]
	out.Pace, out.MeanDuration = model.fastest(), model.meanDuration()
	out.CallerDuration = out.MeanDuration
	if o := e.byKey[key]; o != nil {
		out.CallerDuration = o.mean
		if o.output.count() >= enoughOutputs {
			out.LikelyUsage = Usage{Output: o.output.part(3, 4), Reasoning: o.reasoning.part(3, 4)}
			out.MedianDuration = time.Duration(o.took.part(1, 2)) * time.Millisecond
		}
	}
	return out
}

// averaged adds a duration to a moving average; a mean of 0 means that there was none.
func averaged(mean, took time.Duration) time.Duration {
	if mean == 0 {
		return took
	}
	return mean + (took-mean)/meanWeight
}

// expected returns the tokens that the next answer is expected to have. The lock is held.
func (e *estimator) expected(key outputKey) Estimate {
	if o := e.byKey[key]; o != nil && o.output.count() == recentOutputs {
		return o.estimate()
	}
	cold := Estimate{Output: coldOutput, Reasoning: coldOutput, Cold: true}
	if o := e.byKey[outputKey{model: key.model, thinking: key.thinking}]; o != nil && o.output.count() == recentOutputs {
		cold.Output, cold.Reasoning = o.output.p90(), o.reasoning.p90()
	}
	// The first answers to end are the short ones, so a few say too little.
	if o := e.byKey[key]; o != nil && o.output.count() >= enoughOutputs {
		cold.Output, cold.Reasoning = max(cold.Output, o.output.p90()), max(cold.Reasoning, o.reasoning.p90())
	}
	return cold
}

func (e *estimator) learn(r *Request, u Usage, served string, took time.Duration) {
	u = u.sane()
	if u.Output == 0 {
		return
	}
	key := outputKeyOf(r)
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.paces[served]
	if p == nil && len(e.paces) < maxPaces {
		p = &paces{}
		e.paces[served] = p
	}
	if p != nil {
		p.add(u.Output, cmp.Or(u.Sequences, r.sequences()), took)
	}
	e.outputsOf(key).add(u.Output, u.Reasoning, took)
	if key.caller != "" {
		key.caller = ""
		e.outputsOf(key).add(u.Output, u.Reasoning, took)
	}
}

// outputsOf returns the outputs of a key, and makes them where there are none. Where there are
// too many, an arbitrary one makes room: it will be cold again when it comes back.
func (e *estimator) outputsOf(s outputKey) *outputs {
	o := e.byKey[s]
	if o == nil {
		for victim := range e.byKey {
			if len(e.byKey) < maxEstimated {
				break
			}
			if victim.caller != "" {
				delete(e.byKey, victim)
			}
		}
		o = &outputs{}
		e.byKey[s] = o
	}
	return o
}

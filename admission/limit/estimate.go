package limit

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

const (
	recentOutputs = 64     // per key, model and thinking
	ownEnough     = 8      // outputs of a key that say that more is to be expected
	coldOutput    = 2048   // tokens, where nothing is known
	maxEstimated  = 20_000 // keys
	maxPaces      = 1_000  // models
)

// speaker is whose outputs are alike.
type speaker struct {
	key, model string
	thinking   bool
}

// outputs are the last answers of a speaker, in tokens, and their p90.
type outputs struct {
	output, reasoning       []int32
	next                    int
	p90Output, p90Reasoning int64
}

func (o *outputs) add(output, reasoning int64) {
	if len(o.output) < recentOutputs {
		o.output, o.reasoning = append(o.output, int32(output)), append(o.reasoning, int32(reasoning))
	} else {
		o.output[o.next], o.reasoning[o.next] = int32(output), int32(reasoning)
		o.next = (o.next + 1) % recentOutputs
	}
	o.p90Output, o.p90Reasoning = p90(o.output), p90(o.reasoning)
}

// p90 is the least value that nine of ten do not pass.
func p90(values []int32) int64 {
	var room [recentOutputs]int32
	sorted := room[:copy(room[:], values)]
	slices.Sort(sorted)
	return int64(sorted[(len(sorted)*9+9)/10-1])
}

// estimator expects of a request what its key's recent answers of the model had,
// else what the model's had, else a constant.
type estimator struct {
	mu     sync.Mutex
	spoken map[speaker]*outputs
	paces  map[string]*paces // by the model that answers
}

func newEstimator() *estimator {
	return &estimator{spoken: map[speaker]*outputs{}, paces: map[string]*paces{}}
}

func speakerOf(r *Request) speaker {
	s := speaker{key: r.Key, model: r.Model, thinking: r.Thinking}
	if s.key == "" {
		s.key = r.User
	}
	if s.key == "" {
		s.key = network(r.IP)
	}
	return s
}

func (e *estimator) estimate(r *Request) Estimate {
	own := speakerOf(r)
	e.mu.Lock()
	defer e.mu.Unlock()
	out := e.expected(own)
	model := e.paces[cmp.Or(r.Served, r.Model)]
	out.Pace, out.Lasting = model.fastest(), model.lasting()
	return out
}

// expected is what a speaker's next answer is expected to have. The lock is held.
func (e *estimator) expected(own speaker) Estimate {
	if o := e.spoken[own]; o != nil && len(o.output) == recentOutputs {
		return Estimate{Output: o.p90Output, Reasoning: o.p90Reasoning}
	}
	cold := Estimate{Output: coldOutput, Reasoning: coldOutput, Cold: true}
	if o := e.spoken[speaker{model: own.model, thinking: own.thinking}]; o != nil && len(o.output) == recentOutputs {
		cold.Output, cold.Reasoning = o.p90Output, o.p90Reasoning
	}
	// The first answers to end are the short ones, so a few say too little.
	if o := e.spoken[own]; o != nil && len(o.output) >= ownEnough {
		cold.Output, cold.Reasoning = max(cold.Output, o.p90Output), max(cold.Reasoning, o.p90Reasoning)
	}
	return cold
}

func (e *estimator) learn(r *Request, u Usage, served string, took time.Duration) {
	u = u.sane()
	if u.Output == 0 {
		return
	}
	own := speakerOf(r)
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
	e.of(own).add(u.Output, u.Reasoning)
	if own.key != "" {
		own.key = ""
		e.of(own).add(u.Output, u.Reasoning)
	}
}

// of finds the outputs of a speaker. Where there are too many, some other makes
// room: it will be cold again when it comes back.
func (e *estimator) of(s speaker) *outputs {
	o := e.spoken[s]
	if o == nil {
		for other := range e.spoken {
			if len(e.spoken) < maxEstimated {
				break
			}
			if other.key != "" {
				delete(e.spoken, other)
			}
		}
		o = &outputs{}
		e.spoken[s] = o
	}
	return o
}

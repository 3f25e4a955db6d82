package overload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"
)

// Kind is the final result of a request.
type Kind int

// The kinds.
const (
	Real    Kind = iota // a whole answer by one of the models, with content
	Canned              // the canned reply of L4
	Refused             // 429 or 503: told to come later
	Failed              // anything else
)

// Kind judges an outcome.
func (o *Outcome) Kind() Kind {
	switch {
	case o.Status == http.StatusTooManyRequests || o.Status == http.StatusServiceUnavailable:
		return Refused
	case o.Status != http.StatusOK || o.Err != nil || o.Code != "" || !o.Whole:
		return Failed
	case o.Level == "L4" || o.Model != LargeModel && o.Model != SmallModel:
		return Canned
	case !o.Text:
		return Failed // all its tokens went into the thinking
	}
	return Real
}

// FailureReason returns a few words on why there was no real answer.
func (o *Outcome) FailureReason() string {
	switch {
	case errors.Is(o.Err, context.DeadlineExceeded):
		return "timeout"
	case errors.Is(o.Err, io.ErrUnexpectedEOF):
		return "stream cut"
	case o.Err != nil:
		return "connection broken"
	case o.Status != http.StatusOK || o.Code != "":
		return fmt.Sprintf("%d %s", o.Status, o.Code)
	case !o.Whole:
		return "stream not whole"
	case !o.Text:
		return "no content, only thinking"
	}
	return o.Level
}

// Wait returns the time to the first content or reasoning at the caller.
func (o *Outcome) Wait() time.Duration { return o.First.Sub(o.Sent) }

// EngineWait returns the time to the engine's first token.
func (o *Outcome) EngineWait() time.Duration { return o.Engine.Sub(o.Sent) }

// strictWait returns the time that the strict objective bounds; see the package comment.
func (o *Outcome) strictWait() time.Duration {
	if o.Stream {
		return o.Wait()
	}
	return o.EngineWait()
}

// Tally counts outcomes.
type Tally struct {
	Sent           int
	Kinds          [Failed + 1]int
	Strict, Engine int // real answers within the objective, see the package comment
	Cut            int // real answers that ended at max_tokens
	Tokens         int // of real answers
	Reasons        map[string]int
	waits, engines []time.Duration // of real answers, in order
}

// Count counts outcomes against an objective.
func Count(outcomes []*Outcome, objective time.Duration) *Tally {
	t := &Tally{Sent: len(outcomes), Reasons: map[string]int{}}
	for _, o := range outcomes {
		kind := o.Kind()
		t.Kinds[kind]++
		if kind != Real {
			t.Reasons[o.FailureReason()]++
			continue
		}
		t.Tokens += o.Tokens
		if o.Finish == "length" {
			t.Cut++
		}
		if o.Stream {
			t.waits = append(t.waits, o.Wait())
		}
		if o.strictWait() <= objective && !o.Engine.IsZero() {
			t.Strict++
		}
		if !o.Engine.IsZero() {
			t.engines = append(t.engines, o.EngineWait())
			if o.EngineWait() <= objective {
				t.Engine++
			}
		}
	}
	slices.Sort(t.waits)
	slices.Sort(t.engines)
	return t
}

// quantile of sorted times; 0 if there are none.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// GroupBy groups outcomes by a name.
func GroupBy(outcomes []*Outcome, name func(*Outcome) string) map[string][]*Outcome {
	parts := map[string][]*Outcome{}
	for _, o := range outcomes {
		parts[name(o)] = append(parts[name(o)], o)
	}
	return parts
}

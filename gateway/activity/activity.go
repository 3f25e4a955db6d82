// Package activity counts who used what in the last minute. The path of a request writes
// it, and the operators' page GET /top reads it.
package activity

import (
	"sync"
	"time"

	"tidegate/gateway/account"
	"tidegate/gateway/backend"
)

// Bounds of what is remembered.
const (
	numBuckets    = 13          // the bucket that is being filled and a minute before it
	recentBuckets = 3           // buckets of the tokens per second: the one that is being filled and 10 s before it
	maxLines      = 4096        // keys and models; about 5 MB
	sweepInterval = time.Second // shortest time between two sweeps
)

// other stands for all subjects beyond maxLines.
const other = "other"

// Tracker holds a line for each key and model that was used in the last minute. It is safe
// for concurrent use; the zero value is ready. A request costs a look-up and two or three
// additions, and no allocation once its caller is known. Beyond maxLines all others share
// one line.
type Tracker struct {
	mu       sync.Mutex
	byName   map[subject]*Line
	overflow *Line // line of all others; nil while each has a line of its own
	swept    time.Time
}

// subject names a line: a key, a model, and where the key's user then belonged. The empty
// subject is that of callers who showed no good key.
type subject struct{ department, project, user, key, model string }

// Line counts the recent use of one model by one key.
type Line struct {
	subject

	mu               sync.Mutex
	waiting, running int
	last             time.Time
	clock            backend.Buckets
	buckets          [numBuckets]counts
}

// counts holds the use in one bucket of time.
type counts struct{ requests, refused, input, output int64 }

// Find returns the line of a caller and a model, which it begins where there is none.
func (t *Tracker) Find(caller *account.Identity, model string, now time.Time) *Line {
	name := subject{caller.Department, caller.Project, caller.User, caller.Key, model}
	t.mu.Lock()
	defer t.mu.Unlock()
	if line := t.byName[name]; line != nil {
		line.touch(now)
		return line
	}
	if t.byName == nil {
		t.byName = map[subject]*Line{}
	}
	if len(t.byName) >= maxLines {
		t.sweep(now)
	}
	if len(t.byName) >= maxLines {
		if t.overflow == nil {
			t.overflow = &Line{subject: subject{user: other, key: other, model: other}}
		}
		return t.overflow
	}
	line := &Line{subject: name, last: now}
	t.byName[name] = line
	return line
}

// sweep forgets who has used nothing for a minute, at most once a second. The lock is held.
func (t *Tracker) sweep(now time.Time) {
	if now.Sub(t.swept) < sweepInterval {
		return
	}
	t.swept = now
	for name, line := range t.byName {
		if line.idle(now) {
			delete(t.byName, name)
		}
	}
}

// touch keeps the line from being swept before its finder has counted.
func (l *Line) touch(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = now
}

// idle reports whether the line holds nothing of the last minute and nothing under way.
func (l *Line) idle(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.waiting == 0 && l.running == 0 && now.Sub(l.last) > numBuckets*backend.BucketTime
}

// add counts into the bucket of now, and changes how many requests wait and run. A nil
// line counts nothing.
func (l *Line) add(now time.Time, n counts, waiting, running int) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	b := &l.buckets[l.roll(now)]
	b.requests += n.requests
	b.refused += n.refused
	b.input += n.input
	b.output += n.output
	l.waiting += waiting
	l.running += running
	l.last = now
}

// roll empties the buckets whose time is over, and returns the place of the newest. The
// lock is held.
func (l *Line) roll(now time.Time) (newest int64) {
	return l.clock.Roll(now, numBuckets, func(place int64) { l.buckets[place] = counts{} })
}

// Top is the answer of GET /top on the ops listener: the current use by key and model.
type Top struct {
	Time time.Time `json:"at"`
	Rows []Row     `json:"rows"`
}

// Row is the current use of one model by one key. Without a user it is that of callers
// who showed no good key. The user other stands for all beyond the 4096 lines.
type Row struct {
	Department string  `json:"department,omitempty"`
	Project    string  `json:"project,omitempty"`
	User       string  `json:"user"`
	Key        string  `json:"key"`
	Model      string  `json:"model"`
	Running    int     `json:"running"`                  // requests that hold a place on a backend
	Waiting    int     `json:"waiting"`                  // requests that wait for one
	Requests   int64   `json:"requests"`                 // begun in the last minute
	Refused    int64   `json:"refused"`                  // of the last minute, without asking a backend
	Input      float64 `json:"input_tokens_per_second"`  // of the last 10 to 15 seconds
	Output     float64 `json:"output_tokens_per_second"` // likewise, as they pass
}

// row returns the line as the page shows it.
func (l *Line) row(now time.Time) Row {
	l.mu.Lock()
	defer l.mu.Unlock()
	newest := l.roll(now)
	r := Row{
		Department: l.department, Project: l.project, User: l.user, Key: l.key, Model: l.model,
		Running: l.running, Waiting: l.waiting,
	}
	var input, output int64
	for i := range int64(numBuckets) {
		b := &l.buckets[(newest-i+numBuckets)%numBuckets]
		r.Requests += b.requests
		r.Refused += b.refused
		if i < recentBuckets {
			input += b.input
			output += b.output
		}
	}
	r.Input, r.Output = l.clock.PerSecond(input, now, recentBuckets), l.clock.PerSecond(output, now, recentBuckets)
	return r
}

// Top returns the current use, in no order. Keys that use nothing are left out.
func (t *Tracker) Top(now time.Time) Top {
	t.mu.Lock()
	t.sweep(now)
	listed := make([]*Line, 0, len(t.byName)+1)
	for _, line := range t.byName {
		listed = append(listed, line)
	}
	if t.overflow != nil {
		listed = append(listed, t.overflow)
	}
	t.mu.Unlock()
	top := Top{Time: now, Rows: []Row{}}
	for _, line := range listed {
		if r := line.row(now); r.Running+r.Waiting > 0 || r.Requests+r.Refused > 0 || r.Input+r.Output > 0 {
			top.Rows = append(top.Rows, r)
		}
	}
	return top
}

// Refuse counts a request that was refused without asking a backend.
func (l *Line) Refuse(now time.Time) { l.add(now, counts{refused: 1}, 0, 0) }

// Use is the part of one request in its caller's line. One goroutine may use it. The zero
// value counts nothing.
type Use struct {
	line  *Line // nil before the request is to be admitted
	phase phase
}

// phase is the state in which a request is counted.
type phase uint8

const (
	phaseNone phase = iota
	phaseWaiting
	phaseRunning
)

// Line returns the line of the request; nil before Begin.
func (u *Use) Line() *Line { return u.line }

// Begin counts a request that is to be admitted.
func (u *Use) Begin(l *Line, now time.Time) {
	u.line, u.phase = l, phaseWaiting
	l.add(now, counts{requests: 1}, 1, 0)
}

// Run counts a request that was admitted, and the tokens of its prompt.
func (u *Use) Run(now time.Time, prompt int) {
	u.line.add(now, counts{input: int64(prompt)}, -1, 1)
	u.phase = phaseRunning
}

// Output counts tokens of the answer.
func (u *Use) Output(now time.Time, tokens int) {
	u.line.add(now, counts{output: int64(tokens)}, 0, 0)
}

// End counts that the request neither waits nor runs any more.
func (u *Use) End(now time.Time) {
	switch u.phase {
	case phaseWaiting:
		u.line.add(now, counts{}, -1, 0)
	case phaseRunning:
		u.line.add(now, counts{}, 0, -1)
	}
	u.phase = phaseNone
}

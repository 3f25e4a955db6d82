package gateway

import (
	"sync"
	"time"

	"tidegate/gateway/account"
	"tidegate/gateway/backend"
)

// Bounds of what is remembered of who uses what.
const (
	activityBuckets = 13   // the one that is being filled and a minute before
	recentBuckets   = 3    // of which tokens a second are told: the one that is being filled and 10 s before
	maxActivities   = 4096 // users' keys and models; about 5 MB
	sweepActivities = time.Second
)

// activities remember who used what in the last minute, for the operators' page GET /top.
// It is safe for concurrent use; the zero value is ready. What a request costs of it is a
// look-up and two or three additions, and no allocation once its caller is known. Beyond
// maxActivities all others share one line.
type activities struct {
	mu       sync.Mutex
	byName   map[activityName]*activity
	overflow *activity // nil: all had a line of their own
	swept    time.Time
}

// activityName names a use: a key, a model, and where the key's user then
// belonged. All empty is the use of those who have shown no good key.
type activityName struct{ department, project, user, key, model string }

// activity counts the recent use of one model by one key.
type activity struct {
	activityName

	mu               sync.Mutex
	waiting, running int
	last             time.Time
	clock            backend.Buckets
	buckets          [activityBuckets]useCount
}

// useCount is the use in one bucket of time.
type useCount struct{ requests, refused, input, output int64 }

// find returns the line of a caller and a model, which it may begin.
func (a *activities) find(caller *account.Identity, model string, now time.Time) *activity {
	name := activityName{caller.Department, caller.Project, caller.User, caller.Key, model}
	a.mu.Lock()
	defer a.mu.Unlock()
	if one := a.byName[name]; one != nil {
		one.touch(now)
		return one
	}
	if a.byName == nil {
		a.byName = map[activityName]*activity{}
	}
	if len(a.byName) >= maxActivities {
		a.sweep(now)
	}
	if len(a.byName) >= maxActivities {
		if a.overflow == nil {
			a.overflow = &activity{activityName: activityName{user: labelOther, key: labelOther, model: labelOther}}
		}
		return a.overflow
	}
	one := &activity{activityName: name, last: now}
	a.byName[name] = one
	return one
}

// sweep forgets who has used nothing for a minute, at most once a second. The lock is held.
func (a *activities) sweep(now time.Time) {
	if now.Sub(a.swept) < sweepActivities {
		return
	}
	a.swept = now
	for name, one := range a.byName {
		if one.idle(now) {
			delete(a.byName, name)
		}
	}
}

// touch keeps the line from being forgotten before whoever found it has counted.
func (a *activity) touch(now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last = now
}

// idle reports whether nothing of the last minute is in it, and nothing under way.
func (a *activity) idle(now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.waiting == 0 && a.running == 0 && now.Sub(a.last) > activityBuckets*backend.BucketTime
}

// add counts into the bucket of now, and changes how many wait and run. A nil activity
// counts nothing.
func (a *activity) add(now time.Time, n useCount, waiting, running int) {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	b := &a.buckets[a.roll(now)]
	b.requests += n.requests
	b.refused += n.refused
	b.input += n.input
	b.output += n.output
	a.waiting += waiting
	a.running += running
	a.last = now
}

// roll empties the buckets that time has passed by, and returns the place of the newest.
// The lock is held.
func (a *activity) roll(now time.Time) (newest int64) {
	return a.clock.Roll(now, activityBuckets, func(place int64) { a.buckets[place] = useCount{} })
}

// Top is the answer of GET /top on the ops listener: the current use by key and model.
type Top struct {
	Time time.Time `json:"at"`
	Rows []TopRow  `json:"rows"`
}

// TopRow is the current use of one model by one key. Without a user it is that of callers who showed no
// good key; other stands for those beyond the 4096 that are told apart.
type TopRow struct {
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

// row returns what is to be told of it now.
func (a *activity) row(now time.Time) TopRow {
	a.mu.Lock()
	defer a.mu.Unlock()
	newest := a.roll(now)
	r := TopRow{
		Department: a.department, Project: a.project, User: a.user, Key: a.key, Model: a.model,
		Running: a.running, Waiting: a.waiting,
	}
	var input, output int64
	for i := range int64(activityBuckets) {
		b := &a.buckets[(newest-i+activityBuckets)%activityBuckets]
		r.Requests += b.requests
		r.Refused += b.refused
		if i < recentBuckets {
			input += b.input
			output += b.output
		}
	}
	r.Input, r.Output = a.clock.PerSecond(input, now, recentBuckets), a.clock.PerSecond(output, now, recentBuckets)
	return r
}

// top returns the current use, in no order; keys that use nothing are left out.
func (a *activities) top(now time.Time) Top {
	a.mu.Lock()
	a.sweep(now)
	listed := make([]*activity, 0, len(a.byName)+1)
	for _, one := range a.byName {
		listed = append(listed, one)
	}
	if a.overflow != nil {
		listed = append(listed, a.overflow)
	}
	a.mu.Unlock()
	t := Top{Time: now, Rows: []TopRow{}}
	for _, one := range listed {
		if r := one.row(now); r.Running+r.Waiting > 0 || r.Requests+r.Refused > 0 || r.Input+r.Output > 0 {
			t.Rows = append(t.Rows, r)
		}
	}
	return t
}

// use is the part of one request in its caller's activity. One goroutine may use it. The
// zero value counts nothing.
type use struct {
	activity *activity // nil before the request is to be admitted
	phase    phase
}

// phase is the state in which a request is counted.
type phase uint8

const (
	phaseNone phase = iota
	phaseWaiting
	phaseRunning
)

// begin counts a request that is to be admitted.
func (u *use) begin(a *activity, now time.Time) {
	u.activity, u.phase = a, phaseWaiting
	a.add(now, useCount{requests: 1}, 1, 0)
}

// run counts a request that has its place, and its prompt.
func (u *use) run(now time.Time, prompt int) {
	u.activity.add(now, useCount{input: int64(prompt)}, -1, 1)
	u.phase = phaseRunning
}

// output counts tokens of the answer.
func (u *use) output(now time.Time, tokens int) {
	u.activity.add(now, useCount{output: int64(tokens)}, 0, 0)
}

// end counts that a request neither waits nor runs any more.
func (u *use) end(now time.Time) {
	switch u.phase {
	case phaseWaiting:
		u.activity.add(now, useCount{}, -1, 0)
	case phaseRunning:
		u.activity.add(now, useCount{}, 0, -1)
	}
	u.phase = phaseNone
}

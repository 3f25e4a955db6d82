package admission

import (
	"errors"
	"maps"
	"reflect"
	"testing"
	"time"

	"tidegate/admission/limit"
	"tidegate/degrade"
)

// scene is a request and what it meets, for one row of TestDecide. Where a row says
// nothing, an interactive request that accepts every level meets a calm model with a free
// place and a calm smaller model.
type scene struct {
	tier     string
	maxLevel degrade.Level
	ttft     time.Duration
	thinking bool
	crowding bool // queue.degrade
	past     progress
	situation
}

// calm returns the scene of a request that meets no pressure; change changes it.
func calm(large, small *Pool, change func(*scene)) *scene {
	s := &scene{
		tier: "standard", maxLevel: degrade.Canned, ttft: time.Second, thinking: true, crowding: true,
		situation: situation{verdict: &degrade.Verdict{}, whole: outlook{up: true}, reduced: outlook{up: true}, smaller: small, keeps: true},
	}
	change(s)
	return s
}

// model sets the model's own verdict.
func (s *scene) model(level degrade.Level, reason string) {
	s.verdict = &degrade.Verdict{Level: level, Reason: reason}
}

// backends changes what the request meets at its model's backends.
func (s *scene) backends(change func(*outlook)) {
	change(&s.whole)
	change(&s.reduced)
}

// rule is one row of TestDecide: what becomes of a request in a scene.
type rule struct {
	change func(*scene)
	verb   verb
	pool   *Pool
	level  degrade.Level
	reason string
	cause  error
}

// noPlace makes all backends full.
func noPlace(o *outlook) { o.full = true }

// noBackend takes all backends out of rotation.
func noBackend(o *outlook) { *o = outlook{} }

// levelRows are the rules about the level of a request, its tier and what its caller accepts.
func levelRows(large, small *Pool) map[string]rule {
	return map[string]rule{
		// The level of a request is that of its model, or of the best backend that it can get.
		"nothing presses":                     {func(*scene) {}, goes, large, 0, "", nil},
		"the model is at L1":                  {func(s *scene) { s.model(1, "kv_cache") }, goes, large, 1, "kv_cache", nil},
		"the best backend is higher":          {func(s *scene) { s.backends(func(o *outlook) { o.level, o.reason = 2, "gpu_memory" }) }, goes, large, 2, "gpu_memory", nil},
		"the model is higher than its best":   {func(s *scene) { s.model(2, "kv_cache"); s.backends(func(o *outlook) { o.level = 1 }) }, goes, large, 2, "kv_cache", nil},
		"L3 goes to the smaller model":        {func(s *scene) { s.model(3, "gpu_temperature") }, goes, small, 3, "gpu_temperature", nil},
		"L3 without a smaller model is L2":    {func(s *scene) { s.model(3, "gpu_temperature"); s.smaller = nil }, goes, large, 2, "gpu_temperature", nil},
		"L4 is canned":                        {func(s *scene) { s.model(4, "gpu_temperature") }, cans, nil, 4, "gpu_temperature", nil},
		"L4 comes before a model that is off": {func(s *scene) { s.model(4, "pin"); s.backends(noBackend) }, cans, nil, 4, "pin", nil},

		// The tier shifts it by one, but none from L0 and none to L4.
		"a batch at L0":              {func(s *scene) { s.tier = "batch" }, goes, large, 0, "", nil},
		"a batch at L1 gets L2":      {func(s *scene) { s.tier = "batch"; s.model(1, "queue") }, goes, large, 2, "queue", nil},
		"a batch at L3 stays at L3":  {func(s *scene) { s.tier = "batch"; s.model(3, "kv_cache") }, goes, small, 3, "kv_cache", nil},
		"a critical one at L3 is L2": {func(s *scene) { s.tier = "critical"; s.model(3, "kv_cache") }, goes, large, 2, "kv_cache", nil},
		"a critical one at L1 is L0": {func(s *scene) { s.tier = "critical"; s.model(1, "kv_cache") }, goes, large, 0, "kv_cache", nil},
		"a pin is exact for a batch": {func(s *scene) { s.tier = "batch"; s.model(1, "pin"); s.verdict.Pinned = true }, goes, large, 1, "pin", nil},
		"a pin outdoes its backends": {func(s *scene) {
			s.model(0, "")
			s.verdict.Pinned = true
			s.backends(func(o *outlook) { o.level, o.reason = 3, "kv_cache" })
		}, goes, large, 0, "", nil},
		"a pin is not for a crowd":    {func(s *scene) { s.model(0, ""); s.verdict.Pinned = true; s.backends(noPlace); s.wait = time.Hour }, goes, large, 0, "", nil},
		"a pin at L3 and a hot model": {func(s *scene) { s.model(3, "pin"); s.verdict.Pinned = true }, goes, small, 3, "pin", nil},

		// A caller gets no smaller answer than it accepts.
		"L2 where L2 is accepted":       {func(s *scene) { s.model(2, "kv_cache"); s.maxLevel = 2 }, goes, large, 2, "kv_cache", nil},
		"L2 where L1 is accepted":       {func(s *scene) { s.model(2, "kv_cache"); s.maxLevel = 1 }, refuses, large, 2, "kv_cache", nil},
		"L4 where L3 is accepted":       {func(s *scene) { s.model(4, "kv_cache"); s.maxLevel = 3 }, refuses, nil, 4, "kv_cache", nil},
		"a hot backend and a low bound": {func(s *scene) { s.backends(func(o *outlook) { o.level, o.reason = 1, "kv_cache" }); s.maxLevel = 0 }, refuses, large, 1, "kv_cache", nil},
	}
}

// loadRows are the rules about backends that are away, and levels that come from load.
func loadRows(large, small *Pool, unfit error) map[string]rule {
	return map[string]rule{
		// A model without a backend in rotation sends its requests to the smaller one.
		"no backend":                        {func(s *scene) { s.backends(noBackend) }, goes, small, 3, "no_backend", nil},
		"no backend, and none of a smaller": {func(s *scene) { s.backends(noBackend); s.smaller = nil }, refuses, large, 0, "", ErrNoBackend},
		"no backend, and L2 is accepted":    {func(s *scene) { s.backends(noBackend); s.maxLevel = 2 }, refuses, large, 0, "", ErrNoBackend},
		"no backend can hold it":            {func(s *scene) { s.backends(noBackend); s.whole.unfit = unfit; s.smaller = nil }, refuses, large, 0, "", unfit},
		"fewer sequences fit at L1":         {func(s *scene) { s.model(1, "kv_cache"); s.whole = outlook{unfit: unfit} }, goes, large, 1, "kv_cache", nil},

		// Levels that come from load leave no backend idle.
		"L3 from the queue, and its own model is free":    {func(s *scene) { s.model(3, "queue") }, goes, large, 2, "queue", nil},
		"L3 from ttft, and only the smaller is free":      {func(s *scene) { s.model(3, "ttft"); s.backends(noPlace) }, goes, small, 3, "ttft", nil},
		"L3 from the queue, and both are full":            {func(s *scene) { s.model(3, "queue"); s.backends(noPlace); s.smallerFull = true }, goes, large, 2, "queue", nil},
		"L4 from the queue, and its own model is free":    {func(s *scene) { s.model(4, "queue") }, goes, large, 2, "queue", nil},
		"L4 from the queue, and only the smaller is free": {func(s *scene) { s.model(4, "queue"); s.backends(noPlace) }, goes, small, 3, "queue", nil},
		"L4 from the queue, and both are full":            {func(s *scene) { s.model(4, "queue"); s.backends(noPlace); s.smallerFull = true }, cans, nil, 4, "queue", nil},
		"L3 from the queue spares backends that are hot":  {func(s *scene) { s.model(3, "queue"); s.backends(func(o *outlook) { o.firm = 3 }) }, goes, small, 3, "queue", nil},
		"L3 from memory does not look for a free place":   {func(s *scene) { s.model(3, "gpu_memory") }, goes, small, 3, "gpu_memory", nil},
		"L4 from the queue does not end who waits already": {func(s *scene) {
			s.model(4, "queue")
			s.backends(noPlace)
			s.smallerFull = true
			s.past.least = choice{pool: large, level: 1}
		}, waits, large, 2, "queue", nil},
		"but for one that no backend can hold any more": {func(s *scene) {
			s.model(4, "queue")
			s.backends(noPlace)
			s.smallerFull, s.keeps = true, false
			s.past.least = choice{pool: large}
		}, cans, nil, 4, "queue", nil},
	}
}

// waitRows are the rules about requests that wait, and rate rules.
func waitRows(large, small *Pool, overLimit *limit.Denied) map[string]rule {
	return map[string]rule{
		// Waiting makes answers smaller at once, where the configuration lets it.
		"all are full":                         {func(s *scene) { s.backends(noPlace) }, goes, large, 2, "queue", nil},
		"all are full, and it would wait long": {func(s *scene) { s.backends(noPlace); s.wait = 501 * time.Millisecond }, goes, small, 3, "queue", nil},
		"it has waited long": {func(s *scene) {
			s.backends(noPlace)
			s.past = progress{least: choice{pool: large, level: 2}, waited: time.Second}
		}, moves, small, 3, "queue", nil},
		"it would wait for just half of ttft":    {func(s *scene) { s.backends(noPlace); s.wait = 500 * time.Millisecond }, goes, large, 2, "queue", nil},
		"it would wait long, as would the other": {func(s *scene) { s.backends(noPlace); s.wait, s.smallerFull = time.Hour, true }, goes, large, 2, "queue", nil},
		"a batch goes to the smaller at once":    {func(s *scene) { s.backends(noPlace); s.tier = "batch" }, goes, small, 3, "queue", nil},
		"a critical one waits for its place":     {func(s *scene) { s.backends(noPlace); s.tier = "critical" }, goes, large, 0, "", nil},
		"a critical one that would wait long":    {func(s *scene) { s.backends(noPlace); s.tier, s.wait = "critical", time.Hour }, goes, large, 2, "queue", nil},
		"nobody is refused for it":               {func(s *scene) { s.backends(noPlace); s.wait, s.maxLevel = time.Hour, 0 }, goes, large, 0, "", nil},
		"no thinking can be saved":               {func(s *scene) { s.backends(noPlace); s.thinking = false }, goes, large, 0, "", nil},
		"no first token is promised":             {func(s *scene) { s.backends(noPlace); s.ttft, s.wait = 0, time.Hour }, goes, large, 0, "", nil},
		"queue.degrade is off":                   {func(s *scene) { s.backends(noPlace); s.wait, s.crowding = time.Hour, false }, goes, large, 0, "", nil},

		// The level does not fall while a request waits, and it moves where it belongs.
		"the level fell meanwhile":        {func(s *scene) { s.past.least = choice{pool: large, level: 2, reason: "kv_cache"} }, waits, large, 2, "kv_cache", nil},
		"the level rose meanwhile":        {func(s *scene) { s.model(3, "kv_cache"); s.past.least = choice{pool: large, level: 1} }, moves, small, 3, "kv_cache", nil},
		"its own model is back":           {func(s *scene) { s.model(1, "queue"); s.past.least = choice{pool: small, level: 3, reason: "queue"} }, moves, large, 2, "queue", nil},
		"all its backends went meanwhile": {func(s *scene) { s.backends(noBackend); s.past.least = choice{pool: large} }, moves, small, 3, "no_backend", nil},

		// A rate rule with exceed: degrade asks for the smaller model.
		"over a rate rule": {func(s *scene) { s.past = progress{least: choice{level: 3, reason: "limit"}, over: overLimit} }, goes, small, 3, "limit", nil},
		"over a rate rule, and there is no smaller": {func(s *scene) {
			s.past = progress{least: choice{level: 3, reason: "limit"}, over: overLimit}
			s.smaller = nil
		}, refuses, large, 2, "limit", overLimit},
		"over a rate rule, and L2 is accepted": {func(s *scene) {
			s.past = progress{least: choice{level: 3, reason: "limit"}, over: overLimit}
			s.maxLevel = 2
		}, refuses, small, 3, "limit", overLimit},
		"over a rate rule, and a free place is no help": {func(s *scene) {
			s.model(3, "queue")
			s.past = progress{least: choice{level: 3, reason: "limit"}, over: overLimit}
		}, goes, small, 3, "queue", nil},
	}
}

// TestDecide is the table of docs/pressure.md: what becomes of a request, by what it meets.
func TestDecide(t *testing.T) {
	large, small := NewPool("large", nil), NewPool("small", nil)
	rows := levelRows(large, small)
	maps.Copy(rows, loadRows(large, small, errors.New("too many sequences")))
	maps.Copy(rows, waitRows(large, small, &limit.Denied{Rule: "burst"}))
	for name, c := range rows {
		t.Run(name, func(t *testing.T) {
			s := calm(large, small, c.change)
			d := &Demand{Pool: large, MaxLevel: s.maxLevel, TTFT: s.ttft, Prompts: 1, Request: limit.Request{Tier: s.tier, Thinking: s.thinking, Sequences: 4}}
			before := *d
			got := decide(&QueueConfig{Degrade: s.crowding}, d, &s.past, &s.situation)
			if got.verb != c.verb || got.pool != c.pool || got.level != c.level || got.reason != c.reason || !errors.Is(got.cause, c.cause) {
				t.Errorf("%d in %s at %v for %q, %v; want %d in %s at %v for %q, %v",
					got.verb, poolName(got.pool), got.level, got.reason, got.cause, c.verb, poolName(c.pool), c.level, c.reason, c.cause)
			}
			if !reflect.DeepEqual(before, *d) {
				t.Errorf("the demand was changed: %+v, and it was %+v", *d, before)
			}
		})
	}
}

// poolName returns the name of a pool; nobody stands for none.
func poolName(p *Pool) string {
	if p == nil {
		return "nobody"
	}
	return p.Name
}

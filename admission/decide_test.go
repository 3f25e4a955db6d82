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
	situation
}

// calm returns the scene of a request that meets no pressure; change changes it.
func calm(large, small *Pool, change func(*scene)) *scene {
	s := &scene{
		tier: "standard", maxLevel: degrade.Canned, ttft: time.Second, thinking: true, crowding: true,
		situation: situation{
			now: time.Unix(1e9, 0), verdict: &degrade.Verdict{}, full: outlook{available: true}, reduced: outlook{available: true},
			fallback: candidate{pool: small, available: true, answers: true}, targetFits: true,
		},
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
	change(&s.full)
	change(&s.reduced)
}

// rule is one row of TestDecide: a scene and the decision in it.
type rule struct {
	change func(*scene)
	kind   kind
	pool   *Pool
	level  degrade.Level
	reason string
	cause  error
}

// noPlace makes all backends full.
func noPlace(o *outlook) { o.full = true }

// noBackend takes all backends out of rotation.
func noBackend(o *outlook) { *o = outlook{unfit: ErrNoBackend} }

// levelRows returns the rules about the level of a request, its tier and what its caller accepts.
func levelRows(large, small *Pool) map[string]rule {
	return map[string]rule{
		// The level of a request is that of its model, or of the best backend that it can get.
		"nothing presses":                      {func(*scene) {}, kindGo, large, 0, "", nil},
		"the model is at L1":                   {func(s *scene) { s.model(1, "kv_cache") }, kindGo, large, 1, "kv_cache", nil},
		"the best backend is higher":           {func(s *scene) { s.backends(func(o *outlook) { o.level, o.reason = 2, "gpu_memory" }) }, kindGo, large, 2, "gpu_memory", nil},
		"the model is higher than its best":    {func(s *scene) { s.model(2, "kv_cache"); s.backends(func(o *outlook) { o.level = 1 }) }, kindGo, large, 2, "kv_cache", nil},
		"L3 goes to the smaller model":         {func(s *scene) { s.model(3, "gpu_temperature") }, kindGo, small, 3, "gpu_temperature", nil},
		"L3 without a smaller model is L2":     {func(s *scene) { s.model(3, "gpu_temperature"); s.fallback = candidate{} }, kindGo, large, 2, "gpu_temperature", nil},
		"a smaller model that cannot answer":   {func(s *scene) { s.model(3, "gpu_temperature"); s.fallback.answers = false }, kindGo, large, 2, "gpu_temperature", nil},
		"a smaller model that is at L3 itself": {func(s *scene) { s.model(3, "gpu_temperature"); s.fallback.level = 3 }, kindGo, large, 2, "gpu_temperature", nil},
		"a smaller model that is at L2":        {func(s *scene) { s.model(3, "gpu_temperature"); s.fallback.level = 2 }, kindGo, small, 3, "gpu_temperature", nil},
		"a smaller model that is down":         {func(s *scene) { s.model(3, "gpu_temperature"); s.fallback.available = false }, kindGo, large, 2, "gpu_temperature", nil},
		"a smaller model that is full":         {func(s *scene) { s.model(3, "gpu_temperature"); s.fallback.full = true }, kindGo, small, 3, "gpu_temperature", nil},
		"L4 is canned":                         {func(s *scene) { s.model(4, "gpu_temperature") }, kindCanned, nil, 4, "gpu_temperature", nil},
		"L4 comes before a model that is off":  {func(s *scene) { s.model(4, "pin"); s.backends(noBackend) }, kindCanned, nil, 4, "pin", nil},

		// The tier shifts it by one, but none from L0 and none to L4.
		"a batch at L0":              {func(s *scene) { s.tier = "batch" }, kindGo, large, 0, "", nil},
		"a batch at L1 gets L2":      {func(s *scene) { s.tier = "batch"; s.model(1, "queue") }, kindGo, large, 2, "queue", nil},
		"a batch at L2 gets L3":      {func(s *scene) { s.tier = "batch"; s.model(2, "kv_cache") }, kindGo, small, 3, "kv_cache", nil},
		"a batch at L4":              {func(s *scene) { s.tier = "batch"; s.model(4, "kv_cache") }, kindCanned, nil, 4, "kv_cache", nil},
		"a critical one at L2 is L1": {func(s *scene) { s.tier = "critical"; s.model(2, "kv_cache") }, kindGo, large, 1, "kv_cache", nil},
		"a critical one at L4 is L3": {func(s *scene) { s.tier = "critical"; s.model(4, "kv_cache") }, kindGo, small, 3, "kv_cache", nil},
		"a batch at L3 stays at L3":  {func(s *scene) { s.tier = "batch"; s.model(3, "kv_cache") }, kindGo, small, 3, "kv_cache", nil},
		"a critical one at L3 is L2": {func(s *scene) { s.tier = "critical"; s.model(3, "kv_cache") }, kindGo, large, 2, "kv_cache", nil},
		"a critical one at L1 is L0": {func(s *scene) { s.tier = "critical"; s.model(1, "kv_cache") }, kindGo, large, 0, "kv_cache", nil},
		"a pin is exact for a batch": {func(s *scene) { s.tier = "batch"; s.model(1, "pin"); s.verdict.Pinned = true }, kindGo, large, 1, "pin", nil},
		"a pin outdoes its backends": {func(s *scene) {
			s.model(0, "")
			s.verdict.Pinned = true
			s.backends(func(o *outlook) { o.level, o.reason = 3, "kv_cache" })
		}, kindGo, large, 0, "", nil},
		"a pin is not for a crowd":    {func(s *scene) { s.model(0, ""); s.verdict.Pinned = true; s.backends(noPlace); s.wait = time.Hour }, kindGo, large, 0, "", nil},
		"a pin at L3 and a hot model": {func(s *scene) { s.model(3, "pin"); s.verdict.Pinned = true }, kindGo, small, 3, "pin", nil},

		// A caller gets no smaller answer than it accepts.
		"L2 where L2 is accepted":       {func(s *scene) { s.model(2, "kv_cache"); s.maxLevel = 2 }, kindGo, large, 2, "kv_cache", nil},
		"L2 where L1 is accepted":       {func(s *scene) { s.model(2, "kv_cache"); s.maxLevel = 1 }, kindRefuse, large, 2, "kv_cache", nil},
		"L3 where L3 is accepted":       {func(s *scene) { s.model(3, "kv_cache"); s.maxLevel = 3 }, kindGo, small, 3, "kv_cache", nil},
		"L3 where L2 is accepted":       {func(s *scene) { s.model(3, "kv_cache"); s.maxLevel = 2 }, kindRefuse, small, 3, "kv_cache", nil},
		"L1 where L0 is accepted":       {func(s *scene) { s.model(1, "kv_cache"); s.maxLevel = 0 }, kindRefuse, large, 1, "kv_cache", nil},
		"L4 where L3 is accepted":       {func(s *scene) { s.model(4, "kv_cache"); s.maxLevel = 3 }, kindRefuse, nil, 4, "kv_cache", nil},
		"a hot backend and a low bound": {func(s *scene) { s.backends(func(o *outlook) { o.level, o.reason = 1, "kv_cache" }); s.maxLevel = 0 }, kindRefuse, large, 1, "kv_cache", nil},
	}
}

// loadRows returns the rules about backends that are away, and levels that come from load.
func loadRows(large, small *Pool, unfit error) map[string]rule {
	return map[string]rule{
		// A model without a backend in rotation sends its requests to the smaller one.
		"no backend":                                   {func(s *scene) { s.backends(noBackend) }, kindGo, small, 3, "no_backend", nil},
		"no backend, and none of a smaller":            {func(s *scene) { s.backends(noBackend); s.fallback = candidate{} }, kindRefuse, large, 0, "", ErrNoBackend},
		"no backend, and L2 is accepted":               {func(s *scene) { s.backends(noBackend); s.maxLevel = 2 }, kindRefuse, large, 0, "", ErrNoBackend},
		"no backend, and a smaller that cannot answer": {func(s *scene) { s.backends(noBackend); s.fallback.answers = false }, kindRefuse, large, 0, "", ErrNoBackend},
		"no backend, at L1":                            {func(s *scene) { s.model(1, "kv_cache"); s.backends(noBackend) }, kindGo, small, 3, "no_backend", nil},
		"no backend, and a full smaller":               {func(s *scene) { s.backends(noBackend); s.fallback.full = true }, kindGo, small, 3, "no_backend", nil},
		"no backend can hold it":                       {func(s *scene) { s.backends(noBackend); s.full.unfit = unfit; s.fallback = candidate{} }, kindRefuse, large, 0, "", unfit},
		"fewer sequences fit at L1":                    {func(s *scene) { s.model(1, "kv_cache"); s.full = outlook{unfit: unfit} }, kindGo, large, 1, "kv_cache", nil},

		// Levels that come from load leave no backend idle.
		"L3 from the queue, and its own model is free":    {func(s *scene) { s.model(3, "queue") }, kindGo, large, 2, "queue", nil},
		"L3 from ttft, and only the smaller is free":      {func(s *scene) { s.model(3, "ttft"); s.backends(noPlace) }, kindGo, small, 3, "ttft", nil},
		"L3 from the queue, and both are full":            {func(s *scene) { s.model(3, "queue"); s.backends(noPlace); s.fallback.full = true }, kindGo, large, 2, "queue", nil},
		"L4 from the queue, and its own model is free":    {func(s *scene) { s.model(4, "queue") }, kindGo, large, 2, "queue", nil},
		"L4 from the queue, and only the smaller is free": {func(s *scene) { s.model(4, "queue"); s.backends(noPlace) }, kindGo, small, 3, "queue", nil},
		"L4 from the queue, and both are full":            {func(s *scene) { s.model(4, "queue"); s.backends(noPlace); s.fallback.full = true }, kindCanned, nil, 4, "queue", nil},
		"L3 from the queue spares backends that are hot":  {func(s *scene) { s.model(3, "queue"); s.backends(func(o *outlook) { o.firm = 3 }) }, kindGo, small, 3, "queue", nil},
		"L3 from memory does not look for a free place":   {func(s *scene) { s.model(3, "gpu_memory") }, kindGo, small, 3, "gpu_memory", nil},
		"L4 from the queue does not end who waits already": {func(s *scene) {
			s.model(4, "queue")
			s.backends(noPlace)
			s.fallback.full = true
			s.past.target = target{pool: large, level: 1}
		}, kindStay, large, 2, "queue", nil},
		"but for one that no backend can hold any more": {func(s *scene) {
			s.model(4, "queue")
			s.backends(noPlace)
			s.fallback.full, s.targetFits = true, false
			s.past.target = target{pool: large}
		}, kindCanned, nil, 4, "queue", nil},
	}
}

// waitRows returns the rules about requests that wait, and rate rules.
func waitRows(large, small *Pool, overLimit *limit.Rejection) map[string]rule {
	return map[string]rule{
		// Waiting makes answers smaller at once, where the configuration lets it.
		"all are full":                         {func(s *scene) { s.backends(noPlace) }, kindGo, large, 2, "queue", nil},
		"all are full, and it would wait long": {func(s *scene) { s.backends(noPlace); s.wait = 501 * time.Millisecond }, kindGo, small, 3, "queue", nil},
		"it has waited long": {func(s *scene) {
			s.backends(noPlace)
			s.past = progress{target: target{pool: large, level: 2}, waited: time.Second}
		}, kindMove, small, 3, "queue", nil},
		"it would wait long, and the other cannot answer": {func(s *scene) { s.backends(noPlace); s.wait, s.fallback.answers = time.Hour, false }, kindGo, large, 2, "queue", nil},
		"it waits where it did":                           {func(s *scene) { s.backends(noPlace); s.past.target = target{pool: large, level: 2, reason: "queue"} }, kindStay, large, 2, "queue", nil},
		"it waits at L3 for a level it refuses":           {func(s *scene) { s.model(3, "kv_cache"); s.past.target = target{pool: large, level: 1}; s.maxLevel = 2 }, kindRefuse, small, 3, "kv_cache", nil},
		"its model got canned meanwhile":                  {func(s *scene) { s.model(4, "gpu_temperature"); s.past.target = target{pool: large, level: 1} }, kindCanned, nil, 4, "gpu_temperature", nil},
		"it would wait for just half of ttft":             {func(s *scene) { s.backends(noPlace); s.wait = 500 * time.Millisecond }, kindGo, large, 2, "queue", nil},
		"it would wait long, as would the other":          {func(s *scene) { s.backends(noPlace); s.wait, s.fallback.full = time.Hour, true }, kindGo, large, 2, "queue", nil},
		"a batch goes to the smaller at once":             {func(s *scene) { s.backends(noPlace); s.tier = "batch" }, kindGo, small, 3, "queue", nil},
		"a critical one waits for its place":              {func(s *scene) { s.backends(noPlace); s.tier = "critical" }, kindGo, large, 0, "", nil},
		"a critical one that would wait long":             {func(s *scene) { s.backends(noPlace); s.tier, s.wait = "critical", time.Hour }, kindGo, large, 2, "queue", nil},
		"nobody is refused for it":                        {func(s *scene) { s.backends(noPlace); s.wait, s.maxLevel = time.Hour, 0 }, kindGo, large, 0, "", nil},
		"no thinking can be saved":                        {func(s *scene) { s.backends(noPlace); s.thinking = false }, kindGo, large, 0, "", nil},
		"no thinking can be saved, and the other is full": {func(s *scene) {
			s.backends(noPlace)
			s.thinking, s.wait, s.fallback.full = false, time.Hour, true
		}, kindGo, large, 0, "", nil},
		"no first token is promised": {func(s *scene) { s.backends(noPlace); s.ttft, s.wait = 0, time.Hour }, kindGo, large, 0, "", nil},
		"queue.degrade is off":       {func(s *scene) { s.backends(noPlace); s.wait, s.crowding = time.Hour, false }, kindGo, large, 0, "", nil},

		// The level does not fall while a request waits, and it moves where it belongs.
		"the level fell meanwhile":        {func(s *scene) { s.past.target = target{pool: large, level: 2, reason: "kv_cache"} }, kindStay, large, 2, "kv_cache", nil},
		"the level rose meanwhile":        {func(s *scene) { s.model(3, "kv_cache"); s.past.target = target{pool: large, level: 1} }, kindMove, small, 3, "kv_cache", nil},
		"its own model is back":           {func(s *scene) { s.model(1, "queue"); s.past.target = target{pool: small, level: 3, reason: "queue"} }, kindMove, large, 2, "queue", nil},
		"all its backends went meanwhile": {func(s *scene) { s.backends(noBackend); s.past.target = target{pool: large} }, kindMove, small, 3, "no_backend", nil},

		// A rate rule with exceed: degrade asks for the smaller model.
		"over a rate rule": {func(s *scene) { s.past = progress{target: target{level: 3, reason: "limit"}, rejection: overLimit} }, kindGo, small, 3, "limit", nil},
		"over a rate rule, and there is no smaller": {func(s *scene) {
			s.past = progress{target: target{level: 3, reason: "limit"}, rejection: overLimit}
			s.fallback = candidate{}
		}, kindRefuse, large, 2, "limit", overLimit},
		"over a rate rule, and L2 is accepted": {func(s *scene) {
			s.past = progress{target: target{level: 3, reason: "limit"}, rejection: overLimit}
			s.maxLevel = 2
		}, kindRefuse, small, 3, "limit", overLimit},
		"over a rate rule, and a free place is no help": {func(s *scene) {
			s.model(3, "queue")
			s.past = progress{target: target{level: 3, reason: "limit"}, rejection: overLimit}
		}, kindGo, small, 3, "queue", nil},
	}
}

// TestDecide is the table of docs/pressure.md: what becomes of a request, by what it meets.
func TestDecide(t *testing.T) {
	large, small := NewPool("large", nil), NewPool("small", nil)
	rows := levelRows(large, small)
	maps.Copy(rows, loadRows(large, small, errors.New("too many sequences")))
	maps.Copy(rows, waitRows(large, small, &limit.Rejection{ExceededLimit: limit.ExceededLimit{Rule: "burst"}}))
	for name, c := range rows {
		t.Run(name, func(t *testing.T) {
			s := calm(large, small, c.change)
			d := &Demand{Pool: large, MaxLevel: s.maxLevel, TTFT: s.ttft, Prompts: 1, Request: limit.Request{Tier: s.tier, Thinking: s.thinking, Sequences: 4}}
			before := *d
			got := decide(&QueueConfig{Degrade: s.crowding}, d, &s.situation)
			if got.kind != c.kind || got.pool != c.pool || got.level != c.level || got.reason != c.reason || !errors.Is(got.cause, c.cause) {
				t.Errorf("%d in %s at %v for %q, %v; want %d in %s at %v for %q, %v",
					got.kind, poolName(got.pool), got.level, got.reason, got.cause, c.kind, poolName(c.pool), c.level, c.reason, c.cause)
			}
			if !reflect.DeepEqual(before, *d) {
				t.Errorf("the demand was changed: %+v, and it was %+v", *d, before)
			}
		})
	}
}

// TestDecideRetryAfter holds a refusal for the level to the time at which that may fall.
func TestDecideRetryAfter(t *testing.T) {
	large, small := NewPool("large", nil), NewPool("small", nil)
	for name, c := range map[string]struct {
		stays time.Duration // of the level
		level degrade.Level
		want  time.Duration
	}{
		"the level lasts 20 s":        {20 * time.Second, 2, 20 * time.Second},
		"the level may fall now":      {0, 2, time.Second},
		"the level could have fallen": {-time.Minute, 2, time.Second},
		"canned for 45 s":             {45 * time.Second, 4, 45 * time.Second},
		"the caller accepts it":       {20 * time.Second, 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := calm(large, small, func(s *scene) {
				s.model(c.level, "kv_cache")
				s.verdict.Retry = s.now.Add(c.stays)
			})
			d := &Demand{Pool: large, MaxLevel: degrade.StreamingOff}
			if got := decide(&QueueConfig{}, d, &s.situation); got.refusedFor != c.want || (got.kind == kindRefuse) != (c.want > 0) {
				t.Errorf("kind %d after %v, want %v", got.kind, got.refusedFor, c.want)
			}
		})
	}
}

// TestDecideOnSeat holds the level of a request to that of the backend on which it has a
// place.
func TestDecideOnSeat(t *testing.T) {
	large, small := NewPool("large", nil), NewPool("small", nil)
	for name, c := range map[string]struct {
		backend degrade.Level
		change  func(*scene)
		kind    kind
		level   degrade.Level
		reason  string
	}{
		"a calm backend":                   {0, func(*scene) {}, kindStay, 0, ""},
		"a backend at L1":                  {1, func(*scene) {}, kindStay, 1, "kv_cache"},
		"a backend at L3 is L2":            {3, func(*scene) {}, kindStay, 2, "kv_cache"},
		"a backend below the request":      {1, func(s *scene) { s.past.target.level = 2 }, kindStay, 2, ""},
		"a batch on a backend at L1":       {1, func(s *scene) { s.tier = "batch" }, kindStay, 2, "kv_cache"},
		"a critical one on one at L1":      {1, func(s *scene) { s.tier = "critical" }, kindStay, 0, ""},
		"a pin is exact":                   {2, func(s *scene) { s.verdict.Pinned = true }, kindStay, 0, ""},
		"a smaller model keeps its level":  {2, func(s *scene) { s.past.target = target{pool: small, level: 3} }, kindStay, 3, ""},
		"a level that the caller refuses":  {2, func(s *scene) { s.maxLevel = 1 }, kindRefuse, 2, "kv_cache"},
		"a level that the caller accepts":  {2, func(s *scene) { s.maxLevel = 2 }, kindStay, 2, "kv_cache"},
		"and a rate rule over which it is": {2, func(s *scene) { s.maxLevel = 1; s.past.rejection = &limit.Rejection{} }, kindRefuse, 2, "kv_cache"},
	} {
		t.Run(name, func(t *testing.T) {
			s := calm(large, small, func(s *scene) { s.past.target.pool = large; c.change(s) })
			d := &Demand{Pool: large, MaxLevel: s.maxLevel, Request: limit.Request{Tier: s.tier}}
			got := decideOnSeat(d, &s.situation, &degrade.Verdict{Level: c.backend, Reason: "kv_cache"})
			if got.kind != c.kind || got.level != c.level || got.reason != c.reason || (got.cause != nil) != (s.past.rejection != nil) {
				t.Errorf("%d at %v for %q, %v; want %d at %v for %q", got.kind, got.level, got.reason, got.cause, c.kind, c.level, c.reason)
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

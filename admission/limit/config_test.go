package limit

import (
	"strings"
	"testing"
	"time"
)

// valid is a rule with everything.
func valid() Rule {
	return Rule{
		Name: "user-rate", Scope: "user", Bounds: Bounds{
			Requests: Rate{50, time.Minute}, Tokens: Rate{100_000, time.Minute}, Concurrency: 8, Burst: 20,
		},
		Schedule:      []Schedule{{Hours: "22:00-08:00 Asia/Shanghai", Bounds: Bounds{Requests: Rate{200, time.Minute}}}},
		UnderPressure: Pressure{Levels: Levels{L2: 500, L3: 250}, Batch: Levels{L1: 100}},
		Reserve:       ReserveP90, Exceed: ExceedReject, OnStoreFailure: FailLocal,
	}
}

func validQuota() QuotaRule {
	return QuotaRule{Name: "daily", Scope: "user", Units: 1_000_000, Every: "day", Zone: "Asia/Shanghai", AlertAt: []int{80, 95, 100}}
}

func TestValid(t *testing.T) {
	if err := Validate([]Rule{valid()}, []QuotaRule{validQuota()}); err != nil {
		t.Fatal(err)
	}
}

// text sets a value as the configuration's reader does.
func text[T interface{ UnmarshalText([]byte) error }](t *testing.T, into T, written string) {
	t.Helper()
	if err := into.UnmarshalText([]byte(written)); err != nil {
		t.Fatalf("%q: %v: the reader would not say where", written, err)
	}
}

func TestFaults(t *testing.T) {
	for _, c := range []struct {
		name string
		bad  func(*Rule)
		want string // the path and the beginning of the message
	}{
		{"no name", func(r *Rule) { r.Name = "" }, "limits[0].name: must be"},
		{"name with a space", func(r *Rule) { r.Name = "a b" }, "limits[0].name: must be"},
		{"no subject", func(r *Rule) { r.Scope = "" }, "limits[0].per: is missing"},
		{"unknown subject", func(r *Rule) { r.Scope = "org" }, "limits[0].per: must be key, user"},
		{"three subjects", func(r *Rule) { r.Scope = "user,model,ip" }, "limits[0].per: must be"},
		{"the same twice", func(r *Rule) { r.Scope = "user,user" }, "limits[0].per: must be"},
		{"all and one", func(r *Rule) { r.Scope = "global,model" }, "limits[0].per: must be"},
		{"nothing limited", func(r *Rule) { r.Bounds, r.Schedule = Bounds{}, nil }, "limits[0].requests: is missing, and so is every other"},
		{"not a rate", func(r *Rule) { text(t, &r.Tokens, "many") }, "limits[0].tokens: must be a count and a window"},
		{"count overflows", func(r *Rule) { text(t, &r.Tokens, "99999999999999999999/1m") }, "limits[0].tokens: must be a count"},
		{"too many", func(r *Rule) { text(t, &r.Tokens, "1000000000001/1m") }, "limits[0].tokens: must be at most"},
		{"negative", func(r *Rule) { text(t, &r.Tokens, "-5/1m") }, "limits[0].tokens: must not be negative"},
		{"nothing passes", func(r *Rule) { text(t, &r.Tokens, "0/1m") }, "limits[0].tokens: is 0"},
		{"window too long", func(r *Rule) { text(t, &r.InputTokens, "5/24h") }, "limits[0].input_tokens: the window must"},
		{"window too short", func(r *Rule) { text(t, &r.OutputTokens, "5/100ms") }, "limits[0].output_tokens: the window must"},
		{"unknown window", func(r *Rule) { text(t, &r.ReasoningTokens, "5/day") }, "limits[0].reasoning_tokens: must be a count and a window"},
		{"no slots", func(r *Rule) { text(t, &r.Concurrency, "0") }, "limits[0].concurrency: is 0"},
		{"negative slots", func(r *Rule) { text(t, &r.Concurrency, "-1") }, "limits[0].concurrency: must not be negative"},
		{"half a slot", func(r *Rule) { text(t, &r.Concurrency, "1.5") }, "limits[0].concurrency: must be a whole number"},
		{"burst above the limit", func(r *Rule) { r.Burst = 51 }, "limits[0].burst: is more than the 50 requests"},
		{"burst of nothing", func(r *Rule) { r.Bounds, r.Schedule = Bounds{Concurrency: 1, Burst: 1}, nil }, "limits[0].burst: needs requests"},
		{"burst of what", func(r *Rule) {
			r.Schedule, r.Bounds = nil, Bounds{Tokens: Rate{5, time.Minute}, InputTokens: Rate{5, time.Minute}, Burst: 1}
		}, "limits[0].burst: needs requests"},
		{"burst too large to count", func(r *Rule) {
			r.Schedule, r.Bounds = nil, Bounds{Tokens: Rate{maxCount, time.Hour}, Burst: 1 << 40}
		}, "limits[0].burst: must be at most"},
		{"too many buckets", func(r *Rule) { r.Buckets = 61 }, "limits[0].buckets: must be from 1 to 60"},
		{"unknown policy", func(r *Rule) { r.Reserve = "p99" }, "limits[0].reserve: must be one of p90, max, prompt"},
		{"unknown answer", func(r *Rule) { r.Exceed = "queue" }, "limits[0].exceed: must be one of reject, degrade"},
		{"unknown failure", func(r *Rule) { r.OnStoreFailure = "panic" }, "limits[0].on_store_failure: must be one of"},
		{"growing factor", func(r *Rule) { r.UnderPressure.L3 = 600 }, "limits[0].under_pressure.L3: must not be more than at a lower level"},
		{"factor 0", func(r *Rule) { text(t, &r.UnderPressure.L4, "0") }, "limits[0].under_pressure.L4: must be more than 0"},
		{"factor above 1", func(r *Rule) { text(t, &r.UnderPressure.Batch.L1, "1.5") }, "limits[0].under_pressure.batch.L1: must be more than 0"},
		{"no such hours", func(r *Rule) { r.Schedule[0].Hours = "22-8 UTC" }, "limits[0].schedule[0].when: must be hours and a zone"},
		{"no such zone", func(r *Rule) { r.Schedule[0].Hours = "22:00-08:00 Mars/Olympus" }, "limits[0].schedule[0].when: there is no time zone"},
		{"the machine's zone", func(r *Rule) { r.Schedule[0].Hours = "22:00-08:00 Local" }, "limits[0].schedule[0].when: there is no time zone"},
		{"no hours at all", func(r *Rule) { r.Schedule[0].Hours = "22:00-22:00 UTC" }, "limits[0].schedule[0].when: begins when it ends"},
		{"schedule says nothing", func(r *Rule) { r.Schedule[0].Bounds = Bounds{} }, "limits[0].schedule[0].requests: is missing"},
		{"schedule of what the rule has not", func(r *Rule) { r.Schedule[0].InputTokens = Rate{5, time.Minute} }, "limits[0].schedule[0].input_tokens: the rule itself has none"},
		{"schedule with another window", func(r *Rule) { r.Schedule[0].Tokens = Rate{5, time.Second} }, "limits[0].schedule[0].tokens: must have the rule's own window of 1m"},
		{"schedule burst", func(r *Rule) { r.Schedule[0].Burst = 201 }, "limits[0].schedule[0].burst: is more than the 200"},
		{"schedules overlap", func(r *Rule) {
			r.Schedule = append(r.Schedule, Schedule{Hours: "Mon 07:00-09:00 Asia/Shanghai", Bounds: Bounds{Concurrency: 2}})
		}, "limits[0].schedule[1].when: overlaps"},
		{"schedules of two zones", func(r *Rule) {
			r.Schedule = append(r.Schedule, Schedule{Hours: "09:00-10:00 UTC", Bounds: Bounds{Concurrency: 2}})
		}, "limits[0].schedule[1].when: must be in the zone"},
	} {
		r := valid()
		c.bad(&r)
		wantFault(t, c.name, Validate([]Rule{r}, nil), c.want)
	}
}

func TestQuotaFaults(t *testing.T) {
	for _, c := range []struct {
		name string
		bad  func(*QuotaRule)
		want string
	}{
		{"units and tokens", func(q *QuotaRule) { q.Tokens = 5 }, "quotas[0].tokens: stands beside units"},
		{"neither", func(q *QuotaRule) { q.Units = 0 }, "quotas[0].units: is missing"},
		{"negative", func(q *QuotaRule) { text(t, &q.Units, "-1") }, "quotas[0].units: must not be negative"},
		{"nothing passes", func(q *QuotaRule) { text(t, &q.Units, "0") }, "quotas[0].units: is 0"},
		{"overflows", func(q *QuotaRule) { text(t, &q.Units, "9223372036854775807") }, "quotas[0].units: must be at most"},
		{"unknown period", func(q *QuotaRule) { q.Every = "fortnight" }, "quotas[0].every: must be hour, day, week or month"},
		{"unknown zone", func(q *QuotaRule) { q.Zone = "Mars/Olympus" }, "quotas[0].zone: there is no time zone"},
		{"alert at nothing", func(q *QuotaRule) { q.AlertAt = []int{0} }, "quotas[0].alert_at[0]: must be a percentage"},
		{"alerts out of order", func(q *QuotaRule) { q.AlertAt = []int{90, 80} }, "quotas[0].alert_at[1]: must be more"},
		{"unknown failure", func(q *QuotaRule) { q.OnStoreFailure = "shrug" }, "quotas[0].on_store_failure: must be one of"},
	} {
		q := validQuota()
		c.bad(&q)
		wantFault(t, c.name, Validate(nil, []QuotaRule{q}), c.want)
	}
}

// wantFault checks that there is one fault, and that it begins with its path.
func wantFault(t *testing.T, name string, err error, want string) {
	t.Helper()
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || len(joined.Unwrap()) != 1 || !strings.HasPrefix(joined.Unwrap()[0].Error(), want) {
		t.Errorf("%s: got %v, want %s", name, err, want)
	}
}

// TestAllFaultsAtOnce: every fault is told, each as an error of its own with its
// path first, in whichever rule it stands.
func TestAllFaultsAtOnce(t *testing.T) {
	bad := valid()
	bad.Name, bad.Scope, bad.Buckets = "", "org", 99
	twice := valid()
	quota := validQuota()
	quota.Name, quota.Every = "user-rate", ""
	err := Validate([]Rule{valid(), bad, twice}, []QuotaRule{quota})
	var got []string
	for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
		path, _, _ := strings.Cut(e.Error(), ": ")
		got = append(got, path)
	}
	want := "limits[1].name limits[1].per limits[1].buckets limits[2].name quotas[0].every quotas[0].name"
	if strings.Join(got, " ") != want {
		t.Errorf("faults at %v, want %s", got, want)
	}
}

func TestWeights(t *testing.T) {
	for written, want := range map[string]Milli{"1": 1000, "0.1": 100, "4": 4000, "0": 0, "0.125": 125, "1000": 1_000_000, "2.5": 2500} {
		var m Milli
		text(t, &m, written)
		if back, _ := m.MarshalText(); m != want || string(back) != written {
			t.Errorf("%s: %d, written back %s", written, m, back)
		}
	}
	for _, written := range []string{"0.1234", "-1", "x", "", "1e3", ".5", "5.", "1001", "99999999999999999999", "+1", "0x1"} {
		w := DefaultWeights()
		text(t, &w.Cached, written)
		wantFault(t, written, w.Validate(), "cached: must be from 0 to 1000 with at most three decimals")
	}
	if _, err := Compile(nil, nil, map[string]Weights{"m": {Input: -1}}); err == nil || !strings.HasPrefix(err.Error(), `weights["m"].input: `) {
		t.Errorf("compile: %v", err)
	}
}

func TestRates(t *testing.T) {
	for written, want := range map[string]Rate{
		"50/1m": {50, time.Minute}, "200/1s": {200, time.Second}, "5/m": {5, time.Minute}, "7/90s": {7, 90 * time.Second}, "1 / 1h": {1, time.Hour},
	} {
		if got, ok := ParseRate(written); !ok || got != want {
			t.Errorf("%s: %v, %v", written, got, ok)
		}
	}
	if got := (Rate{100_000, time.Minute}).String(); got != "100000/1m" {
		t.Error(got)
	}
}

func FuzzRate(f *testing.F) {
	for _, seed := range []string{"50/1m", "", "/", "5/", "/1m", "-1/1h", "5/m", "99999999999999999999/1s", "1/1m/1m", "1/1e9s", "1/0s"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, written string) {
		var r Rate
		if err := r.UnmarshalText([]byte(written)); err != nil {
			t.Fatal(err)
		}
		if r.fault() != "" {
			return
		}
		if again, ok := ParseRate(r.String()); !ok || again != r {
			t.Fatalf("%q is %+v, written %s, read %+v", written, r, r, again)
		}
	})
}

func FuzzHours(f *testing.F) {
	for _, seed := range []string{
		"22:00-08:00 Asia/Shanghai", "Mon-Fri 08:00-22:00 Asia/Shanghai", "Sat,Sun 00:00-24:00 UTC", "Fri-Mon 23:59-00:00 America/New_York",
		"", "x", "24:00-08:00 UTC", "8:00-9:00 UTC", "08:60-09:00 UTC", "08:00-09:00", "Mon 08:00-09:00", "Mon-Foo 08:00-09:00 UTC",
	} {
		f.Add(seed, int64(1_774_746_000))
	}
	f.Fuzz(func(t *testing.T, written string, unix int64) {
		h, err := parseHours(written)
		if err != nil {
			return
		}
		var week weekMinutes
		if !week.add(h) || week.add(h) {
			t.Fatalf("%q: does not take its own hours once", written)
		}
		at := time.Unix(unix%(1<<33), 0)
		table := timetable{h}
		next, ok := table.next(at)
		if !ok {
			return
		}
		if !next.After(at) || table.active(next) == table.active(at) || table.active(next.Add(-time.Second)) != table.active(at) && next.Sub(at) > time.Second {
			t.Fatalf("%q: after %s comes %s", written, at, next)
		}
	})
}

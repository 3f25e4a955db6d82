package limit

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestDims: addresses first, then tenants, then models and all, each in one slot.
func TestDims(t *testing.T) {
	set := compile(t, []Rule{
		{Name: "all", Scope: "global", Bounds: Bounds{Concurrency: 9}},
		{Name: "model", Scope: "model", Bounds: Bounds{Tokens: perMinute(9)}},
		{Name: "pair", Scope: "model,user", Bounds: Bounds{Requests: perMinute(9)}},
		{Name: "ip", Scope: "ip", Bounds: Bounds{Requests: perMinute(30)}},
		{Name: "key", Scope: "key", Bounds: Bounds{Requests: perMinute(9), Concurrency: 2}},
	}, []QuotaRule{{Name: "month", Scope: "project", Tokens: 5, Every: "month", Zone: "Asia/Shanghai"}}, nil)
	var got []string
	for _, d := range set.Dims(alice(), Estimate{}, time.Unix(1_800_000_000, 0)) {
		got = append(got, d.Key)
	}
	want := []string{
		"tg:{i:10.0.0.1}:r:ip:requests:ip=10.0.0.1",
		"tg:{t:department=d}:r:pair:requests:user=alice,model=qwen",
		"tg:{t:department=d}:r:key:requests:key=k1",
		"tg:{t:department=d}:r:key:concurrency:key=k1",
		"tg:{t:department=d}:q:month:tokens:month@Asia/Shanghai:project=p",
		"tg:{m:qwen}:r:model:tokens:model=qwen",
		"tg:{m:qwen}:r:model:tokens:model=qwen:most",
		"tg:{g}:r:all:concurrency:global=all",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	// Whom a request lacks, no rule counts by.
	if dims := set.Dims(Request{Subjects: Subjects{Key: "k1"}}, Estimate{}, time.Unix(1_800_000_000, 0)); len(dims) != 3 || dims[0].Key != "tg:{t:key=k1}:r:key:requests:key=k1" {
		t.Errorf("%+v", dims)
	}
}

// TestKeysDiffer: no two callers share a counter because of how they are called.
func TestKeysDiffer(t *testing.T) {
	seen := map[string]string{}
	odd := []string{"a", "a}", "{a", "a,model=b", "a:b", "a%3ab", "%61", "A", "a ", "ä", "a\n", strings.Repeat("x", 96), strings.Repeat("x", 97), strings.Repeat("x", 98)}
	for _, user := range odd {
		for _, model := range odd {
			s := Subjects{User: user, Model: model}
			n := s.names([subjectCount]bool{byModel: true}, [ofAll + 1]bool{ofTenant: true})
			key := n.key(ofTenant, "r:x:", subjectKinds{byUser, byModel}, "")
			if strings.Count(key, "{") != 1 || strings.Count(key, "}") != 1 {
				t.Errorf("%q: more than one home", key)
			}
			who := fmt.Sprintf("%q %q", user, model)
			if seen[key] != "" {
				t.Errorf("%s and %s share %q", who, seen[key], key)
			}
			seen[key] = who
		}
	}
	for written, want := range map[string]string{"10.0.0.1": "10.0.0.1", "::ffff:10.0.0.1": "10.0.0.1", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64", "fe80::1%eth0": "fe80::/64"} {
		if got := network(netip.MustParseAddr(written)); got != want {
			t.Errorf("%s: %s", written, got)
		}
	}
}

func TestCosts(t *testing.T) {
	w := map[string]Weights{"qwen": {Input: 1000, Cached: 100, Output: 4000, Reasoning: 2000}}
	set := func(p Policy) *Set {
		return compile(t, []Rule{{Name: "u", Scope: "user", Reserve: p, Bounds: Bounds{
			Requests: perMinute(10), Tokens: perMinute(10_000), InputTokens: perMinute(10_000), OutputTokens: perMinute(10_000),
			ReasoningTokens: perMinute(10_000), Concurrency: 5,
		}}}, []QuotaRule{{Name: "q", Scope: "user", Units: 100_000, Every: "day"}}, w)
	}
	q := alice()
	q.Prompt, q.MaxTokens = 100, 1000
	e := Estimate{Output: 300, Reasoning: 200}
	for _, c := range []struct {
		policy   Policy
		thinking bool
		want     []int64 // requests, tokens, input, output, reasoning, concurrency, units
	}{
		{ReserveP90, true, []int64{1, 400, 100, 300, 200, 1, 100_000 + 400_000 + 400_000}},
		{ReserveP90, false, []int64{1, 400, 100, 300, 0, 1, 100_000 + 1_200_000}},
		{ReserveMax, true, []int64{1, 1100, 100, 1000, 1000, 1, 900_000}},
		{ReservePrompt, true, []int64{1, 100, 100, 1, 1, 1, 900_000}},
	} {
		q.Thinking = c.thinking
		dims := own(set(c.policy).plan(&q, e, time.Unix(1_800_000_000, 0)))
		for i, want := range c.want {
			if dims[i].Cost != want {
				t.Errorf("%s, thinking %v: %s costs %d, want %d", c.policy, c.thinking, dims[i].Metric, dims[i].Cost, want)
			}
			if dims[i].Floor > dims[i].Cost {
				t.Errorf("%s: floor %d above %d", dims[i].Metric, dims[i].Floor, dims[i].Cost)
			}
		}
	}
	// What an engine reports cannot be more or less than anything.
	if got := charge(Units, Usage{Input: -5, Cached: 99, Output: 1 << 62, Reasoning: -1}, w["qwen"]); got != maxTokens*4000 {
		t.Errorf("odd usage is charged %d", got)
	}
}

func TestEstimates(t *testing.T) {
	e := newEstimator()
	q := alice()
	if got := e.estimate(&q); got != (Estimate{Output: coldOutput, Reasoning: coldOutput, Cold: true, Pace: paceUnknown}) {
		t.Errorf("cold: %+v", got)
	}
	for i := range 200 {
		e.learn(&q, Usage{Output: int64(i%10+1) * 10, Reasoning: int64(i%10 + 1)}, q.Model, time.Minute)
	}
	if got := e.estimate(&q); got != (Estimate{Output: 90, Reasoning: 9, Pace: 25, MeanDuration: time.Minute, CallerDuration: time.Minute, MedianDuration: time.Minute, LikelyUsage: Usage{Output: 80, Reasoning: 8}}) && got != (Estimate{Output: 100, Reasoning: 10, Pace: 25, MeanDuration: time.Minute, CallerDuration: time.Minute, MedianDuration: time.Minute, LikelyUsage: Usage{Output: 80, Reasoning: 8}}) {
		t.Errorf("%+v", got)
	}
	thinks := q
	thinks.Thinking = true
	if got := e.estimate(&thinks); !got.Cold || got.Output != coldOutput {
		t.Errorf("thinking is not apart: %+v", got)
	}
	other := q
	other.Key = "k2"
	if got := e.estimate(&other); !got.Cold || got.Output > 100 {
		t.Errorf("a new key does not learn of its model: %+v", got)
	}
	r := rand.New(rand.NewPCG(1, 1))
	for range 3 * maxEstimated {
		q.Key = fmt.Sprint(r.Int64())
		e.learn(&q, Usage{Output: 5}, q.Model, time.Minute)
	}
	if len(e.byKey) > maxEstimated+1 {
		t.Errorf("%d speakers are kept", len(e.byKey))
	}
}

// TestOverrides: one owner's own numbers hold for it, the smallest owner's go
// first, and what cannot be used is named and left out.
func TestOverrides(t *testing.T) {
	set, err := Compile([]Rule{
		{Name: "rpm", Scope: "user", Bounds: Bounds{Requests: Rate{10, time.Minute}, Concurrency: 4}, Schedule: []Schedule{{Hours: "00:00-24:00 UTC", Bounds: Bounds{Requests: Rate{99, time.Minute}}}}},
		{Name: "ips", Scope: "ip", Bounds: Bounds{Requests: Rate{10, time.Minute}}},
	}, []QuotaRule{{Name: "daily", Scope: "project", Units: 100, Every: "day"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	numbers := func(pairs ...string) map[string]string {
		out := map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			out[pairs[i]] = pairs[i+1]
		}
		return out
	}
	with, err := set.WithOverrides([]Override{
		{"rpm", "department", "lab", numbers("requests", "50/1m")},
		{"rpm", "user", "ann", numbers("requests", "7/2m", "concurrency", "1", "burst", "3")},
		{"daily", "department", "lab", numbers("units", "5000")},
		{"gone", "user", "ann", numbers("requests", "7/1m")},
		{"ips", "user", "ann", numbers("requests", "7/1m")},
		{"daily", "user", "ann", numbers("units", "1")}, // a user does not own a project
		{"rpm", "user", "", numbers("requests", "7/1m")},
		{"rpm", "user", "eve", numbers("requests", "0/1m")},
		{"rpm", "user", "eve", numbers("tokens", "5/1m")},
		{"rpm", "user", "eve", nil},
		{"rpm", "user", "eve", numbers("requests", "7/1m", "burst", "8")},
		{"daily", "project", "p", numbers("burst", "8")},
		{"rpm", "ip", "10.0.0.1", numbers("requests", "7/1m")},
	})
	if err == nil || strings.Count(err.Error(), "override of ") != 10 {
		t.Errorf("%v", err)
	}
	limits := func(s *Set, r Subjects) (out []string) {
		for _, d := range s.Dims(Request{Subjects: r}, Estimate{}, time.Unix(0, 0)) {
			out = append(out, fmt.Sprint(d.Rule, " ", d.Metric, " ", d.Limit, "/", d.WindowMs, " ", d.Burst))
		}
		return out
	}
	for _, c := range []struct {
		who  Subjects
		want []string
	}{
		{Subjects{Department: "lab", Project: "p", User: "ann"}, []string{"rpm requests 7/120000 3", "rpm concurrency 1/0 0", "daily units 5000000/0 0"}},
		{Subjects{Department: "lab", Project: "p", User: "bob"}, []string{"rpm requests 50/60000 0", "rpm concurrency 4/0 0", "daily units 5000000/0 0"}},
		{Subjects{Department: "hall", Project: "p", User: "eve"}, []string{"rpm requests 99/60000 0", "rpm concurrency 4/0 0", "daily units 100000/0 0"}},
	} {
		if got := limits(with, c.who); !slices.Equal(got, c.want) {
			t.Errorf("%+v: %q, want %q", c.who, got, c.want)
		}
	}
	plain := []string{"rpm requests 99/60000 0", "rpm concurrency 4/0 0"}
	if got := limits(set, Subjects{User: "ann"}); !slices.Equal(got, plain) {
		t.Errorf("the set itself has changed: %q", got)
	}
	if again, err := with.WithOverrides(nil); err != nil || !slices.Equal(limits(again, Subjects{User: "ann"}), plain) {
		t.Errorf("without overrides: %v", err)
	}
}

// TestAux: rules of auxiliary requests count those, and no other rule does.
func TestAux(t *testing.T) {
	set := compile(t, []Rule{
		{Name: "all", Scope: "global", Bounds: Bounds{Requests: perMinute(9), Concurrency: 9}},
		{Name: "aux", Scope: "key", Bounds: Bounds{Requests: perMinute(2)}, Aux: true},
	}, []QuotaRule{{Name: "month", Scope: "user", Tokens: 5, Every: "month"}}, nil)
	l := New(set, Options{Store: NewMemory(time.Now)})
	admit := func(id string, aux bool) error {
		r := alice()
		r.ID, r.Aux = id, aux
		grant, err := l.Admit(t.Context(), r)
		if err == nil {
			err = grant.Settle(Usage{}, "")
		}
		return err
	}
	for i := range 9 {
		if err := admit(fmt.Sprint("generation ", i), false); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 2 {
		if err := admit(fmt.Sprint("aux ", i), true); err != nil {
			t.Fatal(err)
		}
	}
	for aux, rule := range map[bool]string{false: "all", true: "aux"} {
		var denied *Rejection
		if err := admit("one more", aux); !errors.As(err, &denied) || denied.Rule != rule {
			t.Errorf("got %v, expected a refusal by %s", err, rule)
		}
	}
	if l.Running() != 0 {
		t.Errorf("%d are running", l.Running())
	}
}

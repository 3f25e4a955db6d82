//go:build linux

package overload

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"tidegate/gateway/qwen"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func allRows(t *testing.T) []Row {
	t.Helper()
	rows, err := Traces(TraceNames())
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

func TestTraces(t *testing.T) {
	rows := allRows(t)
	counts, first := map[string]int{}, map[string]Row{}
	for i, r := range rows {
		if counts[r.Trace]++; counts[r.Trace] == 1 {
			first[r.Trace] = r
		}
		if i > 0 && r.Offset < rows[i-1].Offset || r.Output < 1 || r.Input < 0 {
			t.Fatalf("row %d: %+v after %+v", i, r, rows[max(i-1, 0)])
		}
	}
	for name, want := range map[string]int{"azure-conv": 4424, "azure-code": 2598, "mooncake-conversation": 2728} {
		if counts[name] != want || first[name].Offset != 0 {
			t.Errorf("%s: %d rows from %v, want %d from 0", name, counts[name], first[name].Offset, want)
		}
	}
	if r := first["azure-conv"]; r.Input != 374 || r.Output != 44 {
		t.Errorf("the first of azure-conv: %+v", r)
	}
	if _, err := Traces([]string{"gone"}); err == nil || !strings.Contains(err.Error(), "azure-conv") {
		t.Errorf("a trace that is not there: %v", err)
	}
}

func TestFitLeavesRoom(t *testing.T) {
	rows := allRows(t)
	const context = 8192
	if Fit(rows, context) == 0 {
		t.Fatal("nothing was cut")
	}
	for _, r := range rows {
		if r.Input+3*r.Output > context {
			t.Fatalf("%+v does not fit", r)
		}
	}
	if n := Fit(rows, context); n != 0 {
		t.Errorf("a second time %d were cut", n)
	}
}

// TestCutAsksForTheLoad: whatever the load, the window asks for that much, takes as
// long as it shall, and keeps order and bursts.
func TestCutAsksForTheLoad(t *testing.T) {
	rows := allRows(t)
	f := DefaultFleet(1)
	Fit(rows, f.Context)
	rapid.Check(t, func(t *rapid.T) {
		load, first := rapid.Float64Range(.2, 4).Draw(t, "load"), rapid.IntRange(0, 2000).Draw(t, "first")
		length := time.Duration(rapid.IntRange(20, 60).Draw(t, "seconds")) * time.Second
		w, err := Cut(rows, first, f, load, length)
		if err != nil {
			t.Fatal(err)
		}
		var asked time.Duration
		for i, r := range w.Rows {
			asked += f.Large.Holds(r.Input, r.Output)
			if r.Offset < 0 || r.Offset > length || i > 0 && r.Offset < w.Rows[i-1].Offset {
				t.Fatalf("row %d at %v of %v", i, r.Offset, length)
			}
			if o := rows[first+i]; o.Input != r.Input || o.Output != r.Output {
				t.Fatalf("row %d is not that of the trace", i)
			}
		}
		want := load * float64(f.Slots()) * length.Seconds()
		longest := f.Large.Holds(f.Context, 2000)
		if got := asked.Seconds(); got < want || got > want+longest.Seconds() {
			t.Fatalf("%g slot-seconds, want %g", got, want)
		}
		if w.Next != first+len(w.Rows) {
			t.Fatalf("next is %d", w.Next)
		}
	})
	if _, err := Cut(rows, len(rows)-10, f, 4, time.Minute); err == nil {
		t.Error("the traces did not end")
	}
}

func TestCapacity(t *testing.T) {
	f := Fleet{Large: Speed{TTFT: time.Second, Prefill: time.Millisecond, ITL: 10 * time.Millisecond, Slots: 5}, Larges: 2}
	// 1 s + 1000 * 1 ms + (300 - 1) * 10 ms
	rows := []Row{{Input: 1000, Output: 100}}
	if got := f.Large.Holds(1000, 100); got != 4990*time.Millisecond {
		t.Errorf("holds %v", got)
	}
	if got := f.Capacity(rows); got < 2.003 || got > 2.005 {
		t.Errorf("capacity %g, want 10 / 4.99", got)
	}
}

func TestPromptHasItsTokens(t *testing.T) {
	tokenizer, err := qwen.New()
	if err != nil {
		t.Fatal(err)
	}
	counter := qwen.NewCounter(tokenizer, 0)
	for _, tokens := range []int{frameTokens, frameTokens + 1, 100, 5000} {
		for number := range 3 {
			text := prompt(tokens, number)
			n, err := counter.Chat(qwen.Chat{Messages: []byte(`[{"role":"user","content":"` + text + `"}]`)})
			if err != nil || n != tokens {
				t.Errorf("prompt %d of %d tokens has %d, %v", number, tokens, n, err)
			}
		}
	}
}

// outcome is a good answer, changed by edit.
func outcome(edit func(*Outcome)) *Outcome {
	at := time.Unix(1000, 0)
	o := &Outcome{
		Request: &Request{Row: Row{Trace: "azure-conv"}, Tenant: &Tenant{Name: "ann", Tier: "batch"}, Stream: true},
		Sent:    at, First: at.Add(time.Second), Engine: at.Add(500 * time.Millisecond), Ended: at.Add(3 * time.Second),
		Status: 200, Level: "L0", Model: LargeModel, Finish: "stop", Text: true, Whole: true, Tokens: 10,
	}
	if edit != nil {
		edit(o)
	}
	return o
}

func TestWhatCounts(t *testing.T) {
	late := func(d *time.Time) { *d = time.Unix(1003, 0) }
	for name, c := range map[string]struct {
		edit           func(*Outcome)
		kind           Kind
		strict, engine int
	}{
		"good":                      {nil, Real, 1, 1},
		"smaller model":             {func(o *Outcome) { o.Model, o.Level = SmallModel, "L3" }, Real, 1, 1},
		"whole at once, late":       {func(o *Outcome) { o.Level = "L1"; late(&o.First) }, Real, 0, 1},
		"late":                      {func(o *Outcome) { late(&o.First); late(&o.Engine) }, Real, 0, 0},
		"no stream by own wish":     {func(o *Outcome) { o.Stream = false; late(&o.First) }, Real, 1, 1},
		"no stream, late":           {func(o *Outcome) { o.Stream = false; late(&o.First); late(&o.Engine) }, Real, 0, 0},
		"unknown to the engines":    {func(o *Outcome) { o.Stream, o.Engine = false, time.Time{} }, Real, 0, 0},
		"canned by level":           {func(o *Outcome) { o.Level = "L4" }, Canned, 0, 0},
		"canned by model":           {func(o *Outcome) { o.Model = "tidegate-canned" }, Canned, 0, 0},
		"429":                       {func(o *Outcome) { o.Status, o.Whole = 429, false }, Refused, 0, 0},
		"503":                       {func(o *Outcome) { o.Status, o.Whole = 503, false }, Refused, 0, 0},
		"504":                       {func(o *Outcome) { o.Status, o.Whole = 504, false }, Failed, 0, 0},
		"error in the stream":       {func(o *Outcome) { o.Code = "timeout" }, Failed, 0, 0},
		"cut":                       {func(o *Outcome) { o.Whole = false }, Failed, 0, 0},
		"broken":                    {func(o *Outcome) { o.Err = errors.New("reset") }, Failed, 0, 0},
		"nothing but thinking":      {func(o *Outcome) { o.Text = false }, Failed, 0, 0},
		"thinking off, same answer": {func(o *Outcome) { o.Level, o.Reason = "L2", "queue" }, Real, 1, 1},
	} {
		o := outcome(c.edit)
		n := Count([]*Outcome{o}, 2*time.Second)
		if o.Kind() != c.kind || n.Strict != c.strict || n.Engine != c.engine {
			t.Errorf("%s: kind %d, strict %d, engine %d", name, o.Kind(), n.Strict, n.Engine)
		}
		if (len(n.Reasons) == 0) != (c.kind == Real) {
			t.Errorf("%s: why %v", name, n.Reasons)
		}
	}
}

func TestLevelIn(t *testing.T) {
	metrics := `# TYPE tidegate_level gauge
tidegate_level{model="Qwen3-0.6B"} 4
tidegate_level{model="Qwen3-1.7B",backend="a"} 3
tidegate_level{model="Qwen3-1.7B"} 2
`
	if got := levelIn(strings.NewReader(metrics)); got != 2 {
		t.Errorf("level %d", got)
	}
	if got := levelIn(strings.NewReader("go_goroutines 1\n")); got != -1 {
		t.Errorf("level %d where there is none", got)
	}
}

func TestRecovery(t *testing.T) {
	moments := func(levels ...int) (all []Moment) {
		for i, l := range levels {
			all = append(all, Moment{Elapsed: time.Duration(i) * time.Second, Level: l})
		}
		return all
	}
	for name, c := range map[string]struct {
		moments []Moment
		after   time.Duration
		ok      bool
	}{
		"comes back":     {moments(0, 2, 2, 1, 0, 0), time.Second + watching, true},
		"never left":     {moments(0, 0, 0, 0), 0, true},
		"not back yet":   {moments(0, 2, 2, 1, 0, 1), 3*time.Second + watching, false},
		"does not tell":  {moments(-1, -1, -1), 0, false},
		"back in time":   {moments(0, 2, 0, 0), 0, true},
		"nothing at all": {nil, 0, false},
	} {
		r := &Run{Window: Window{Length: 2 * time.Second}, Moments: c.moments}
		if after, ok := r.Recovery(); after != c.after || ok != c.ok {
			t.Errorf("%s: %v, %t", name, after, ok)
		}
	}
}

func TestFragment(t *testing.T) {
	for text, want := range map[string]Fragment{
		"a: 1\n":                                {"a: 1\n", "", "", ""},
		"a: 1\n---\nb: 2\n":                     {"a: 1", "b: 2\n", "", ""},
		"# what\n---\nb: 2\n---\nc: 3\nd: 4":    {"# what", "b: 2", "c: 3\nd: 4", ""},
		"a: 1\n---\nb: 2\n---\n# no\n---\nd: 4": {"a: 1", "b: 2", "# no", "d: 4"},
		"---\na: 1\n":                           {"a: 1\n", "", "", ""},
	} {
		file := filepath.Join(t.TempDir(), "f.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := ReadFragment(file)
		for _, p := range []*string{&got.Top, &got.Large, &got.Small, &got.Backends, &want.Top, &want.Large, &want.Small, &want.Backends} {
			*p = strings.Trim(*p, "\n")
		}
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	s := &Servers{Larges: []string{"http://a"}, Smalls: []string{"http://b"}}
	got := config("l", "o", "/d", s, Fragment{Top: "degrade: {enabled: true}", Large: "fallback: " + SmallModel, Small: "x: 1\ny: 2"})
	for _, want := range []string{"\ndegrade: {enabled: true}\n", "\n    fallback: Qwen3-0.6B\n    backends:\n      - url: http://a\n", "\n    x: 1\n    y: 2\n    backends:\n      - url: http://b\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
}

// TestPerform plays a small window against the stand-ins, which stand for the gateway
// too.
func TestPerform(t *testing.T) {
	tokenizer, err := vocabulary()
	if err != nil {
		t.Fatal(err)
	}
	f := Fleet{Large: Speed{TTFT: time.Millisecond, ITL: 100 * time.Microsecond, Slots: 64}, Larges: 1, Context: 40960}
	servers, err := StartServers(f, tokenizer)
	if err != nil {
		t.Fatal(err)
	}
	defer servers.Close()
	s := &Stage{Client: NewClient(servers.Larges[0], time.Minute), Ops: servers.Larges[0], Servers: servers, Tenants: callers()}
	defer s.Client.Close()
	window := func(n int) Window {
		w := Window{Length: 200 * time.Millisecond}
		for i := range n {
			w.Rows = append(w.Rows, Row{Offset: time.Duration(i) * time.Millisecond, Input: 50, Output: 10 + i})
		}
		return w
	}
	r := s.Perform(t.Context(), 1, ModeOff, window(40), window(5))
	if len(r.Outcomes) != 40 {
		t.Fatalf("%d outcomes", len(r.Outcomes))
	}
	streams := 0
	for _, o := range r.Outcomes {
		if o.Kind() != Real || o.Tokens != 3*o.Output || o.Finish != "stop" {
			t.Errorf("%s, %d tokens, asked for %d: %v", o.FailureReason(), o.Tokens, o.Output, o.Err)
		}
		if o.Engine.Before(o.Sent) || o.Engine.After(o.Ended) || o.First.Before(o.Sent) {
			t.Errorf("sent %v, engine %v, first %v", o.Sent, o.Engine, o.First)
		}
		if o.Stream {
			streams++
		}
	}
	if streams == 0 || streams == 40 {
		t.Errorf("%d of 40 are streams", streams)
	}
	if len(r.Moments) == 0 || r.Moments[0].Level != -1 {
		t.Errorf("moments: %+v", r.Moments)
	}
}

// TestReportsAreWellFormed renders both reports and drawings.
func TestReportsAreWellFormed(t *testing.T) {
	r := &Report{Fleet: DefaultFleet(1), Rows: allRows(t), Objective: 2 * time.Second, Plot: "x.svg"}
	for _, mode := range []string{ModeOff, ModeOn} {
		r.Runs = append(r.Runs, &Run{Load: 2, Mode: mode, Window: Window{Length: 2 * time.Second},
			Outcomes: []*Outcome{outcome(nil), outcome(func(o *Outcome) { o.Status, o.Code, o.Level = 429, "queue_full", "L3" })},
			Moments:  []Moment{{0, 0, 1, 0}, {time.Second, 3, 1, 5}, {3 * time.Second, 0, 0, 0}, {4 * time.Second, 0, 0, 0}}})
	}
	var b strings.Builder
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| 2x | on | 2 | 1.0 | 50.0 % | 50.0 % | 50.0 % | 0.0 % | 50.0 % | 0.0 % | 0.0 % |", "| 2x | off | 429 queue_full | 1 | 50.0 % |", "| 2x | on | L3 | 1 |", "| 2x | on | ann (batch) | 2 |"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is missing in\n%s", want, b.String())
		}
	}
	if slices.IndexFunc(r.sorted(), func(run *Run) bool { return run.Mode == ModeOn }) != 0 {
		t.Error("on does not come first")
	}
	wellFormed(t, func(w io.Writer) error { return r.Draw(w, []float64{2, 4}) })

	fair := &FairReport{Fleet: FairFleet()}
	run := &FairRun{Scenario: BothFlood, Mode: ModeOn, Length: 2 * fairBin, bins: map[string][]float64{SmallTenant: {100, 300}, BigTenant: {300, 300}}}
	fair.Runs = append(fair.Runs, run)
	b.Reset()
	if err := fair.Write(&b); err != nil {
		t.Fatal(err)
	}
	if want := "| on | 40.0 % | 60.0 % | 0.962 | 200 | true |"; !strings.Contains(b.String(), want) {
		t.Errorf("%q is missing in\n%s", want, b.String())
	}
	wellFormed(t, fair.Draw)
}

func wellFormed(t *testing.T, draw func(io.Writer) error) {
	t.Helper()
	var b strings.Builder
	if err := draw(&b); err != nil {
		t.Fatal(err)
	}
	for d := xml.NewDecoder(strings.NewReader(b.String())); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%v in\n%s", err, b.String())
		}
	}
	if strings.Contains(b.String(), "NaN") || strings.Contains(b.String(), "Inf") {
		t.Error("a place in the drawing is no number")
	}
}

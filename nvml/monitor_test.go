package nvml

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func newMonitor() *Monitor { return New(quiet()) }

func of[T any](v T) *T { return &v }

// scripted is a source that says what it is told to.
type scripted struct {
	mu   sync.Mutex
	gpus []Reading
	err  error
	wait time.Duration
	n    int // times asked
}

func (s *scripted) close() {}

// set changes what it says.
func (s *scripted) set(gpus []Reading, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gpus, s.err = gpus, err
}

// asked is how often it was asked.
func (s *scripted) asked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

func (s *scripted) read(ctx context.Context, until time.Time) (*sample, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	if s.wait > 0 {
		ctx, cancel := context.WithDeadline(ctx, until)
		defer cancel()
		select {
		case <-ctx.Done():
			return nil, explain(ctx.Err())
		case <-time.After(s.wait):
		}
	}
	if s.err != nil {
		return nil, s.err
	}
	out := &sample{node: "n"}
	for _, r := range s.gpus {
		out.gpus = append(out.gpus, &GPU{Reading: r, MeasuredAt: ago(time.Now(), r.AgeMs)})
	}
	return out, nil
}

// watching is a monitor of scripted sources that runs until stop.
func watching(t *testing.T, sources ...*scripted) (m *Monitor, stop func()) {
	t.Helper()
	m = newMonitor()
	var configs []Config
	for i := range sources {
		configs = append(configs, Config{Name: fmt.Sprintf("s%d", i), Agent: "http://127.0.0.1:1", Every: time.Second})
	}
	m.Replace(configs)
	for i, s := range sources {
		m.feeds[i].source = s
	}
	return m, start(t, m)
}

func start(t *testing.T, m *Monitor) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

// TestStaleness: what a source said grows old while it says nothing, and is fresh
// again as soon as it speaks.
func TestStaleness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{gpus: []Reading{{UUID: "GPU-a", Index: 0, Margin: of(20)}}}
		m, stop := watching(t, s)
		defer stop()
		byIndex, byUUID := m.Watch("s0/0"), m.Watch("GPU-a")
		if byIndex.Load() != nil || m.Watch("s0/0") != byIndex {
			t.Error("there before it was reported, or a second window")
		}
		time.Sleep(1100 * time.Millisecond)
		g := byIndex.Load()
		if g == nil || g != byUUID.Load() || *g.Margin != 20 || g.Freshness(time.Now()) != Fresh || g.Source != "s0" || g.Ref() != "s0/0" {
			t.Fatalf("%+v, %+v", g, byUUID.Load())
		}
		synctest.Wait()
		s.set(s.gpus, errors.New("gone"))
		last := byIndex.Load().MeasuredAt
		for _, c := range []struct {
			age  time.Duration
			want Freshness
		}{{3 * time.Second, Fresh}, {3*time.Second + 1, Held}, {10 * time.Second, Held}, {10*time.Second + 1, Dropped}, {time.Hour, Dropped}} {
			time.Sleep(time.Until(last.Add(c.age)))
			if got := byIndex.Load().Freshness(time.Now()); got != c.want {
				t.Errorf("after %v: %v, want %v", c.age, got, c.want)
			}
		}
		sources, gpus := m.Status()
		if sources[0].OK || sources[0].Error != "gone" || sources[0].Failures < 10 || gpus[0].Freshness != "dropped" || gpus[0].AgeMs != time.Hour.Milliseconds() {
			t.Errorf("%+v, %+v", sources, gpus)
		}
		s.set(s.gpus, nil)
		time.Sleep(6 * time.Second) // it is asked seldom by now
		if got := byUUID.Load().Freshness(time.Now()); got != Fresh {
			t.Errorf("it speaks again, and is %v", got)
		}
	})
}

// TestAgeIsOfTheAgent: a fresh answer about an old reading is old.
func TestAgeIsOfTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{gpus: []Reading{
			{UUID: "GPU-a", AgeMs: 4000, State: StateWedged}, {UUID: "GPU-b", AgeMs: -5}, {UUID: "GPU-c", AgeMs: 1 << 60}, {UUID: "GPU-d"},
		}}
		m, stop := watching(t, s)
		defer stop()
		time.Sleep(1100 * time.Millisecond)
		for uuid, want := range map[string]Freshness{"GPU-a": Held, "GPU-b": Dropped, "GPU-c": Dropped, "GPU-d": Fresh} {
			if g := m.Watch(uuid).Load(); g == nil || g.Freshness(time.Now()) != want {
				t.Errorf("%s: %+v, want %v", uuid, g, want)
			}
		}
	})
}

// TestSlowSourceDelaysNobody: one that never answers in time is asked on, and the
// other is asked every second as if alone.
func TestSlowSourceDelaysNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow, quick := &scripted{wait: time.Hour}, &scripted{gpus: []Reading{{UUID: "GPU-a"}}}
		m, stop := watching(t, slow, quick)
		v := m.Watch("s1/0")
		time.Sleep(1500 * time.Millisecond)
		for range 100 {
			time.Sleep(time.Second)
			if age := v.Load().Age(time.Now()); age > 1200*time.Millisecond {
				t.Fatalf("aged %v", age)
			}
		}
		sources, _ := m.Status()
		stop()
		if quick.n < 90 || quick.n > 115 {
			t.Errorf("asked %d times in 100 s", quick.n)
		}
		if slow.n < 18 || slow.n > 40 { // every second for 10 s, then every five
			t.Errorf("the slow one asked %d times", slow.n)
		}
		if sources[0].Error != "no whole answer in time" || sources[0].HeardMs != nil || !sources[1].OK {
			t.Errorf("%+v", sources)
		}
	})
}

// TestReplace: sources that stay go on, and what only removed ones said is gone.
func TestReplace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := &scripted{gpus: []Reading{{UUID: "GPU-a"}}}, &scripted{gpus: []Reading{{UUID: "GPU-b"}}}
		m, stop := watching(t, a, b)
		defer stop()
		va, vb := m.Watch("s0/0"), m.Watch("GPU-b")
		time.Sleep(1100 * time.Millisecond)
		kept, keep := m.feeds[0], m.feeds[0].config
		m.Replace([]Config{keep})
		if vb.Load() != nil || va.Load() == nil || m.feeds[0] != kept {
			t.Errorf("%+v, %+v", va.Load(), vb.Load())
		}
		asked := b.asked()
		time.Sleep(5 * time.Second)
		if b.asked() != asked || va.Load().Freshness(time.Now()) != Fresh {
			t.Errorf("the removed one was asked %d times more, or the other no more", b.asked()-asked)
		}
		keep.Every = 2 * time.Second
		m.Replace([]Config{keep})
		if va.Load() != nil || m.feeds[0] == kept {
			t.Error("another source of the same name is taken for the old one")
		}
		m.publish(kept, &sample{gpus: []*GPU{{Reading: Reading{UUID: "GPU-a"}, Source: "s0", MeasuredAt: time.Now()}}})
		if va.Load() != nil {
			t.Error("a removed source still speaks")
		}
	})
}

// TestSameGPUTwice: of two sources that report the same GPU the second is used
// only when the first is silent.
func TestSameGPUTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := &scripted{gpus: []Reading{{UUID: "GPU-a"}}}, &scripted{err: errors.New("not yet")}
		m, stop := watching(t, a, b)
		defer stop()
		v := m.Watch("GPU-a")
		time.Sleep(1100 * time.Millisecond)
		b.set([]Reading{{UUID: "GPU-a", Index: 5}}, nil)
		for range 50 {
			time.Sleep(100 * time.Millisecond)
			if v.Load().Source != "s0" {
				t.Fatalf("%+v", v.Load())
			}
		}
		if m.Watch("s1/5").Load().Source != "s1" {
			t.Error("the second one's index is not its own")
		}
		a.set(a.gpus, errors.New("gone"))
		time.Sleep(5 * time.Second)
		if g := v.Load(); g.Source != "s1" || g.Freshness(time.Now()) != Fresh {
			t.Errorf("%+v", g)
		}
	})
}

// TestClean: what comes from outside is made fit for use.
func TestClean(t *testing.T) {
	long := strings.Repeat("é", 100)
	in := []*GPU{
		{Reading: Reading{UUID: "GPU-b", Index: 1, Margin: of(300), Temperature: of(-60), Utilisation: of(101), Memory: Memory{MemoryTotal: of(uint64(1 << 60))}, State: "melting"}},
		{Reading: Reading{UUID: ""}},
		{Reading: Reading{UUID: "GPU-a", Margin: of(-3), XIDs: make([]XID, 40), Reasons: make([]string, 40), ThrottleNs: map[string]uint64{"\xff": 1}}},
		{Reading: Reading{UUID: "GPU-a", Margin: of(50)}},
		{Reading: Reading{UUID: long, Index: 2, Name: "\xff\xfe" + long, State: StateLost}},
		{Reading: Reading{UUID: "MIG-a", Index: 0, Parent: "GPU-a"}},
		{Reading: Reading{UUID: "GPU-c\x1b[2J\u009b\u202e", Index: 3, Name: "H200\r\n\x7f ok"}},
	}
	out, doubts := clean(in, "s")
	if doubts != "values that no GPU can have are left out: GPU-b (margin, temperature, utilisation, memory)" {
		t.Error(doubts)
	}
	var got []string
	for _, g := range out {
		got = append(got, g.Ref())
	}
	if !slices.Equal(got, []string{"s/0", "MIG-a", "s/1", "s/2", "s/3"}) {
		t.Fatalf("%q", got)
	}
	if a := out[0]; *a.Margin != -3 || len(a.XIDs) != MaxXIDs || len(a.Reasons) != 32 || a.ThrottleNs != nil {
		t.Errorf("%+v", a)
	}
	if b := out[2]; b.Margin != nil || b.Temperature != nil || b.Utilisation != nil || b.MemoryTotal != nil || b.State != StateOK {
		t.Errorf("%+v", b)
	}
	if c := out[3]; len(c.UUID) > maxText || len(c.Name) > maxText || c.State != StateLost || strings.ContainsRune(c.Name, 0xfffd) {
		t.Errorf("%+v", c)
	}
	if d := out[4]; d.UUID != "GPU-c[2J" || d.Name != "H200 ok" {
		t.Errorf("%+v", d)
	}
	many := make([]*GPU, 2*maxGPUs)
	for i := range many {
		many[i] = &GPU{Reading: Reading{UUID: fmt.Sprint(i)}}
	}
	if out, _ := clean(many, "s"); len(out) != maxGPUs {
		t.Errorf("%d GPUs", len(out))
	}
	if out, _ := clean(append(make([]*GPU, 0, 1<<16), &GPU{Reading: Reading{UUID: "a"}}), "s"); cap(out) > 8 {
		t.Errorf("one GPU keeps room for %d", cap(out))
	}
}

// TestIndexes: a lost GPU that has kept its index hides no other, and an index that
// comes to name another GPU is told.
func TestIndexes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := Reading{UUID: "GPU-a"}, Reading{UUID: "GPU-b", Index: 1}
		s := &scripted{gpus: []Reading{a, b}}
		m, stop := watching(t, s)
		defer stop()
		var logs strings.Builder
		m.log = slog.New(slog.NewTextHandler(&logs, nil))
		first, byUUID := m.Watch("s0/0"), m.Watch("GPU-a")
		want := func(uuid string, warnings int) {
			t.Helper()
			time.Sleep(2500 * time.Millisecond)
			synctest.Wait()
			if got := first.Load().UUID; got != uuid || m.Watch("s0/0").Load().UUID != uuid || byUUID.Load().UUID != "GPU-a" {
				t.Errorf("s0/0 is %s, want %s", got, uuid)
			}
			if n := strings.Count(logs.String(), "names another GPU"); n != warnings {
				t.Errorf("%d warnings, want %d: %s", n, warnings, logs.String())
			}
		}
		want("GPU-a", 0)
		a.State, b.Index = StateLost, 0
		s.set([]Reading{b, a}, nil)
		want("GPU-b", 1)
		s.set([]Reading{a, b}, nil)
		want("GPU-b", 1)
		if _, gpus := m.Status(); gpus[0].GPU != "s0/0" || gpus[1].GPU != "GPU-a" {
			t.Errorf("%+v", gpus)
		}
	})
}

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{gpus: []Reading{{
			UUID: "GPU-a", Name: "H200", State: StateWedged, Margin: of(30), Temperature: of(50), Memory: Memory{MemoryUsed: of(uint64(5))}, Power: of(uint64(1500)), Utilisation: of(50),
			ThrottleNs: map[string]uint64{"sw_thermal": 2_500_000_000},
		}}}
		m, stop := watching(t, s)
		defer stop()
		time.Sleep(1100 * time.Millisecond)
		synctest.Wait()
		for name, want := range map[string]string{
			"margin_celsius": "s0/0 H200 GPU-a 30", "power_watts": "s0/0 H200 GPU-a 1.5", "throttle_seconds_total": "s0/0 H200 sw_thermal GPU-a 2.5",
			"utilization_ratio": "s0/0 H200 GPU-a 0.5", "wedged": "s0/0 H200 GPU-a 1", "source_up": "s0 1", "memory_total_bytes": "", "memory_used_bytes": "s0/0 H200 GPU-a 5",
		} {
			if got := series(t, m, "tidegate_gpu_"+name); got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		s.set(s.gpus, errors.New("gone"))
		time.Sleep(20 * time.Second)
		if got := series(t, m, "tidegate_gpu_margin_celsius"); got != "" {
			t.Errorf("a value that is too old is still told: %s", got)
		}
		if got := series(t, m, "tidegate_gpu_throttle_seconds_total"); got != "" {
			t.Errorf("a counter that is too old is still told: %s", got)
		}
		if got := series(t, m, "tidegate_gpu_reading_age_seconds"); got == "" {
			t.Error("the age of one that is too old is not told")
		}
	})
}

// TestMetricsOfTwoSources: the same MIG device from two sources spoils no page.
func TestMetricsOfTwoSources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gpus := []Reading{{UUID: "GPU-a", Margin: of(30)}, {UUID: "MIG-a", Parent: "GPU-a", Margin: of(30)}}
		m, stop := watching(t, &scripted{gpus: gpus}, &scripted{gpus: gpus})
		defer stop()
		time.Sleep(2500 * time.Millisecond)
		if got, want := series(t, m, "tidegate_gpu_margin_celsius"), "s0/0  GPU-a 30 s0/MIG-a  MIG-a 30 s1/0  GPU-a 30 s1/MIG-a  MIG-a 30"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	})
}

// series is one metric as a text: its labels, by name, and its value.
func series(t *testing.T, m *Monitor, name string) string {
	t.Helper()
	families, err := prometheus.Gatherers{m}.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, x := range f.GetMetric() {
			for _, l := range x.GetLabel() {
				out = append(out, l.GetValue())
			}
			out = append(out, fmt.Sprint(x.GetGauge().GetValue()+x.GetCounter().GetValue()))
		}
	}
	return strings.Join(out, " ")
}

package nvml

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// TestTrace reads a piece of a real form of trace: 40 s, a gap, and 20 s of heat.
func TestTrace(t *testing.T) {
	f, err := os.Open("testdata/heat.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tr, err := readTrace(f)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for _, c := range []struct {
		ran    time.Duration
		margin int
		age    time.Duration
		hot    bool
	}{
		{0, 60, 0, false},
		{time.Second, 61, 0, false},
		{1900 * time.Millisecond, 61, 900 * time.Millisecond, false},
		{60 * time.Second, 0, 21 * time.Second, false}, // in the gap
		{719 * time.Second, -1, 0, true},
		{tr.period, 60, 0, false}, // again from the beginning
	} {
		gpus := tr.readings(c.ran, now)
		if len(gpus) != 1 {
			t.Fatalf("%v: %d GPUs", c.ran, len(gpus))
		}
		g := gpus[0]
		if c.age < 2*time.Second && *g.Margin != c.margin || g.Age(now) != c.age || c.hot != (fmt.Sprint(g.Reasons) == "[sw_thermal]") {
			t.Errorf("%v: margin %d, age %v, reasons %v", c.ran, *g.Margin, g.Age(now), g.Reasons)
		}
	}
	if g := tr.readings(0, now)[0]; *g.MemoryUsed != 132270<<20 || *g.Power != 115_000 || *g.Temperature != 27 || *g.HBM != 23 || g.MemoryTotal != nil || g.UUID != "GPU-sim-0" || fmt.Sprint(g.Reasons) != "[gpu_idle]" {
		t.Errorf("%+v", g.Reading)
	}
}

func TestTraceForms(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"names of reasons", `{"t_ms":5,"uuid":"a","reasons":["hw_thermal"],"total":2}` + "\n\n", ""},
		{"nothing known", `{"t_ms":0,"uuid":"a"}`, ""},
		{"two at once, out of order", `{"t_ms":10,"uuid":"a"}` + "\n" + `{"t_ms":9,"uuid":"b"}` + "\n", ""},
		{"appended to", `{"t_ms":90000,"uuid":"a"}` + "\n" + `{"t_ms":3,"uuid":"a","margin":7}` + "\n", ""},
		{"empty", "\n", "has no lines"},
		{"no JSON", `{"t_ms":0,"uuid":"a"}` + "\nx\n", "line 2: "},
		{"no uuid", `{"t_ms":0}`, "line 1: has no uuid"},
		{"before the beginning", `{"t_ms":-1,"uuid":"a"}`, "line 1: t_ms is out of range"},
		{"for ever", `{"t_ms":99999999999999,"uuid":"a"}`, "line 1: t_ms is out of range"},
		{"a long line", `{"t_ms":0,"uuid":"` + strings.Repeat("x", maxTraceLine) + `"}`, "line 1: "},
	} {
		tr, err := readTrace(strings.NewReader(c.text))
		if (err == nil) != (c.want == "") || err != nil && !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", c.name, err, c.want)
		}
		if c.name == "appended to" {
			if g := tr.readings(time.Second, time.Now())[0]; g.Margin == nil || *g.Margin != 7 || tr.period != 2*time.Second {
				t.Errorf("%s: %+v, %v", c.name, g, tr.period)
			}
		}
	}
}

// TestAnyTrace: at any time each GPU reads what its last line up to then says.
func TestAnyTrace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var text strings.Builder
		ms, last := int64(rapid.IntRange(0, 5000).Draw(t, "begin")), map[string][]int64{}
		first := ms
		for i := range rapid.IntRange(1, 50).Draw(t, "lines") {
			if i > 0 {
				ms += int64(rapid.IntRange(0, 3000).Draw(t, "step"))
			}
			uuid := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "uuid")
			fmt.Fprintf(&text, "{\"t_ms\":%d,\"uuid\":%q,\"power\":%d}\n", ms, uuid, ms-first)
			last[uuid] = append(last[uuid], ms-first)
		}
		tr, err := readTrace(strings.NewReader(text.String()))
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		ran := time.Duration(rapid.Int64Range(0, (ms-first)*3).Draw(t, "ran")) * time.Millisecond
		in := (ran % tr.period).Milliseconds()
		got := map[string]*GPU{}
		for _, g := range tr.readings(ran, now) {
			got[g.UUID] = g
		}
		for uuid, times := range last {
			want := int64(-1)
			for _, at := range times {
				if at <= in {
					want = at
				}
			}
			g := got[uuid]
			if (g == nil) != (want < 0) {
				t.Fatalf("%s at %d: %+v", uuid, in, g)
			}
			if g != nil && (*g.Power != uint64(want*1000) || g.Age(now).Milliseconds() != in-want) {
				t.Fatalf("%s at %d: %d, age %v; want %d", uuid, in, *g.Power, g.Age(now), want)
			}
		}
	})
}

// TestReplay plays a trace in the monitor.
func TestReplay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMonitor()
		m.Replace([]Config{{Name: "rec", Replay: "testdata/heat.jsonl", Every: time.Second}, {Name: "gone", Replay: "testdata/none", Every: time.Second}})
		v := m.Watch("rec/0")
		stop := start(t, m)
		defer stop()
		time.Sleep(20 * time.Second)
		if g := v.Load(); g == nil || g.Freshness(time.Now()) != Fresh || g.UUID != "GPU-sim-0" {
			t.Fatalf("%+v", g)
		}
		time.Sleep(40 * time.Second)
		if got := v.Load().Freshness(time.Now()); got != Dropped {
			t.Errorf("%v in the gap of the trace", got)
		}
		time.Sleep(650 * time.Second)
		if g := v.Load(); g.Freshness(time.Now()) != Fresh || *g.Temperature < 80 {
			t.Errorf("%+v after the gap", g)
		}
		if s, _ := m.Status(); !s[0].OK || s[1].OK || !strings.Contains(s[1].Error, "no such file") {
			t.Errorf("%+v", s)
		}
	})
}

func FuzzTrace(f *testing.F) {
	raw, err := os.ReadFile("testdata/heat.jsonl")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw, int64(17_000))
	f.Add([]byte(`{"t_ms":0,"uuid":"a","reasons":["x"],"power":1e300,"used":18446744073709551615}`+"\n"+`{"t_ms":68719476736,"uuid":"b","power":-1}`), int64(1<<40))
	f.Fuzz(func(t *testing.T, text []byte, ms int64) {
		tr, err := readTrace(bytes.NewReader(text))
		if err != nil {
			return
		}
		if ms < 0 || ms > 1<<40 {
			ms = 0
		}
		checkSample(t, &sample{gpus: tr.readings(time.Duration(ms)*time.Millisecond, time.Now())})
	})
}

package nvml

import (
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestNoReadings: a GPU of which all is 0 has no reading, a single value that is
// not there is unknown, and numbers that no GPU can have are left out and told.
func TestNoReadings(t *testing.T) {
	const gib = uint64(1 << 30)
	none, zero := of(uint64(0)), of(0)
	for name, c := range map[string]struct {
		in     Reading
		out    string // what is left; empty: no reading
		doubts string
	}{
		"all 0":              {Reading{Temperature: zero, HBM: zero, Margin: zero, Power: none, Memory: Memory{MemoryUsed: none, MemoryFree: none}, Utilisation: zero, Reasons: []string{}}, "", "so these GPUs have none: GPU-a;"},
		"no memory told":     {Reading{Temperature: zero, Power: none}, "", "so these GPUs have none: GPU-a;"},
		"a part of all 0":    {Reading{Parent: "GPU-b", Temperature: zero, Memory: Memory{MemoryTotal: none}}, "", "so these GPUs have none: GPU-a;"},
		"no sensor":          {Reading{Temperature: zero, Margin: zero, Power: of(uint64(90000))}, `"power_mw":90000,`, ""},
		"margin of its own":  {Reading{Temperature: zero, Margin: of(30), Power: of(uint64(90000))}, `"margin":30,"power_mw":90000,`, ""},
		"at its threshold":   {Reading{Temperature: of(87), Margin: zero, Power: of(uint64(700000))}, `"margin":0,"temperature":87,"power_mw":700000,`, ""},
		"no power":           {Reading{Temperature: of(40), Power: none}, `"temperature":40,`, ""},
		"total 0":            {Reading{Temperature: of(40), Memory: Memory{MemoryTotal: none, MemoryUsed: of(gib)}}, `"temperature":40,"memory_used":1073741824,`, ""},
		"no memory":          {Reading{Temperature: of(40), Memory: Memory{MemoryFree: none, MemoryUsed: none}}, `"temperature":40,`, ""},
		"full":               {Reading{Temperature: of(40), Memory: Memory{MemoryFree: none, MemoryUsed: of(gib)}}, `"temperature":40,"memory_used":1073741824,"memory_free":0,`, ""},
		"more used than all": {Reading{Memory: Memory{MemoryTotal: of(gib), MemoryUsed: of(2 * gib), MemoryFree: of(gib)}}, `"memory_total":1073741824,"memory_free":1073741824,`, "left out: GPU-a (memory above its total)"},
		"a million degrees":  {Reading{Temperature: of(1000000), Margin: of(-1000000), HBM: of(999)}, ``, "left out: GPU-a (margin, temperature, memory temperature)"},
		"a terawatt":         {Reading{Temperature: of(40), Power: of(uint64(1e15))}, `"temperature":40,`, "left out: GPU-a (power)"},
	} {
		t.Run(name, func(t *testing.T) {
			c.in.UUID, c.in.State = "GPU-a", StateOK
			other := &GPU{Reading: Reading{UUID: "GPU-z", Index: 1, Temperature: of(40)}}
			out, doubts := clean([]*GPU{{Reading: c.in}, other}, "s")
			if !strings.Contains(doubts, c.doubts) || (doubts == "") != (c.doubts == "") {
				t.Errorf("doubts %q, want %q", doubts, c.doubts)
			}
			if strings.Contains(c.doubts, "have none") {
				if len(out) != 1 || out[0] != other {
					t.Errorf("%+v", out)
				}
				return
			}
			if len(out) != 2 {
				t.Fatalf("%d GPUs", len(out))
			}
			got := asJSON(t, out[0])
			if got = got[strings.Index(got, `"age_ms":0,`)+len(`"age_ms":0,`):]; !strings.HasPrefix(got, c.out) {
				t.Errorf("%s, want %s", got, c.out)
			}
		})
	}
}

// TestZeroPage: an exporter that has lost the driver serves 0 for everything.
func TestZeroPage(t *testing.T) {
	const page = `DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-a"} 0
DCGM_FI_DEV_MEMORY_TEMP{gpu="0",UUID="GPU-a"} 0
DCGM_FI_DEV_POWER_USAGE{gpu="0",UUID="GPU-a"} 0
DCGM_FI_DEV_FB_FREE{gpu="0",UUID="GPU-a"} 0
DCGM_FI_DEV_FB_USED{gpu="0",UUID="GPU-a"} 0
DCGM_FI_DEV_GPU_TEMP_LIMIT{gpu="0",UUID="GPU-a"} 0
DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-a"} 0
`
	for _, energy := range []string{"", "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu=\"0\",UUID=\"GPU-a\"} 0\n"} {
		s, err := exporter().parse(strings.NewReader(page+energy), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if out, doubts := clean(s.gpus, "s"); len(out) != 0 || !strings.Contains(doubts, "these GPUs have none: GPU-a;") {
			t.Errorf("%+v, %q", out, doubts)
		}
	}
	// A counter that stays at 0 dates nothing: the values beside it are of now.
	d, began := exporter(), time.Now()
	for i := range 30 {
		at := began.Add(time.Duration(i) * time.Second)
		s, err := d.parse(strings.NewReader("DCGM_FI_DEV_GPU_TEMP{UUID=\"GPU-a\"} 45\nDCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{UUID=\"GPU-a\"} 0\n"), at)
		if err != nil || s.gpus[0].Age(at) != 0 || !strings.Contains(s.warning, "frozen values would not be noticed") {
			t.Fatalf("%d: %v, %v, %q", i, err, s.gpus[0].Age(at), s.warning)
		}
	}
}

// TestDroppedIsSaid: a GPU whose values stay old, or that its source has no more, is
// said once in the log and as long as it lasts in the status; so is a warning.
func TestDroppedIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{gpus: []Reading{{UUID: "GPU-a", Margin: of(30)}, {UUID: "GPU-b", Index: 1, Margin: of(30)}}}
		j := &journal{}
		m := New(slog.New(slog.NewTextHandler(j, nil)))
		m.Replace([]Config{{Name: "s0", Agent: "http://127.0.0.1:1", Every: time.Second}})
		m.feeds[0].source = s
		stop := start(t, m)
		defer stop()
		check := func(warning string, lines map[string]int) {
			t.Helper()
			time.Sleep(time.Minute)
			synctest.Wait()
			sources, _ := m.Status()
			if !sources[0].OK || sources[0].Warning != warning {
				t.Errorf("%+v, want %q", sources[0], warning)
			}
			for line, want := range lines {
				if n := strings.Count(j.String(), line); n != want {
					t.Errorf("%d lines with %q, want %d:\n%s", n, line, want, j)
				}
			}
		}
		const old, gone, back = "the source repeats old values", "the source has it no more", "count again"
		check("", map[string]int{old: 0, gone: 0})
		s.set([]Reading{{UUID: "GPU-a", AgeMs: 30000}, {UUID: "GPU-b", Index: 1, Margin: of(30)}}, nil)
		check("values older than 10s are not used: s0/0", map[string]int{old: 1, gone: 0, back: 0})
		s.set([]Reading{{UUID: "GPU-a"}}, nil)
		check("", map[string]int{old: 1, gone: 1, back: 1})
		s.set([]Reading{{UUID: "GPU-a"}, {UUID: "GPU-b", Temperature: of(0), Power: of(uint64(0))}}, nil)
		check("0 C, 0 W and 0 bytes are no reading, so these GPUs have none: GPU-b; does the source reach the driver?", map[string]int{"are no reading": 1, back: 1})
		s.set([]Reading{{UUID: "GPU-a"}, {UUID: "GPU-b"}}, nil)
		check("", map[string]int{old: 1, gone: 1, back: 2, "not as they should be": 1})
	})
}

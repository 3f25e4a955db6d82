package nvml

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
)

func exporter() *dcgm { return &dcgm{page: &page{limit: maxPage}, seen: map[string]*history{}} }

// asJSON is a reading without what every page has.
func asJSON(t *testing.T, g *GPU) string {
	t.Helper()
	raw, err := json.Marshal(g.Reading)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// TestPages: all generations of names and labels; what is absent, or 0 in place of a
// sensor, is not known.
func TestPages(t *testing.T) {
	for _, c := range []struct {
		file    string
		want    []string
		warning string
	}{
		{"dcgm-old.txt", []string{
			`{"index":0,"uuid":"GPU-aaaa","name":"NVIDIA H200","state":"ok","age_ms":0,"margin":35,"temperature":52,"hbm":41,"memory_used":138695147520,"memory_free":11415846912,"memory_reserved":643825664,"power_mw":627312,"utilisation":100,"reasons":["sw_power_cap","sw_thermal"],"latency_us":0}`,
			`{"index":1,"uuid":"GPU-bbbb","name":"NVIDIA H200","state":"ok","age_ms":0,"temperature":28,"power_mw":78100,"latency_us":0}`,
		}, ""},
		{"dcgm-1x.txt", []string{
			`{"index":0,"uuid":"GPU-aaaa","name":"NVIDIA A100-SXM4-80GB","state":"ok","age_ms":0,"margin":22,"temperature":61,"hbm":70,"memory_used":83886080000,"memory_free":1073741824,"power_mw":312500,"utilisation":97,"reasons":[],"latency_us":0}`,
		}, ""},
		{"dcgm-new.txt", []string{
			`{"index":0,"uuid":"GPU-aaaa","name":"NVIDIA H200","state":"ok","age_ms":0,"margin":35,"temperature":52,"hbm":41,"memory_total":150754820096,"memory_used":138695147520,"power_mw":627312,"power_limit_mw":700000,"reasons":["sw_power_cap","sw_thermal"],"xids":[{"code":31,"age_ms":0,"fatal":false}],"ecc_uncorrected":3,"rows_pending":true,"latency_us":0}`,
		}, ""},
	} {
		t.Run(c.file, func(t *testing.T) {
			page, err := os.ReadFile("testdata/" + c.file)
			if err != nil {
				t.Fatal(err)
			}
			s, err := exporter().parse(bytes.NewReader(page), time.Now())
			if err != nil || len(s.gpus) != len(c.want) || s.warning != c.warning {
				t.Fatalf("%v, %+v", err, s)
			}
			for i, g := range s.gpus {
				if got := asJSON(t, g); got != c.want[i] {
					t.Errorf("got  %s\nwant %s", got, c.want[i])
				}
			}
		})
	}
}

func TestOddPages(t *testing.T) {
	const labels = `{gpu="0",UUID="GPU-a",modelName="A100"}`
	for _, c := range []struct{ name, page, want string }{
		{"margin of an older card", "DCGM_FI_DEV_GPU_TEMP" + labels + " 60\nDCGM_FI_DEV_MEMORY_TEMP" + labels + " 80\nDCGM_FI_DEV_GPU_MAX_OP_TEMP" + labels + " 85\nDCGM_FI_DEV_MEM_MAX_OP_TEMP" + labels + " 95\n", `"margin":15,`},
		{"without its memory's limit", "DCGM_FI_DEV_GPU_TEMP" + labels + " 60\nDCGM_FI_DEV_MEMORY_TEMP" + labels + " 80\nDCGM_FI_DEV_GPU_MAX_OP_TEMP" + labels + " 85\n", `"margin":25,`},
		{"told beats reckoned", "DCGM_FI_DEV_GPU_TEMP" + labels + " 60\nDCGM_FI_DEV_GPU_TEMP_LIMIT" + labels + " 3\nDCGM_FI_DEV_GPU_MAX_OP_TEMP" + labels + " 85\n", `"margin":3,`},
		{"blank values", "DCGM_FI_DEV_GPU_TEMP" + labels + " 2147483632\nDCGM_FI_DEV_FB_USED" + labels + " 9223372036854775792\nDCGM_FI_DEV_POWER_USAGE" + labels + " NaN\n", `"name":"A100","state":"ok","age_ms":0,"latency_us":0}`},
		{"a GPU in parts", `DCGM_FI_DEV_GPU_TEMP{gpu="3",UUID="GPU-a",GPU_I_PROFILE="1g.18gb",GPU_I_ID="7"} 50` + "\n" + `DCGM_FI_DEV_FB_USED{gpu="3",UUID="GPU-a",GPU_I_PROFILE="1g.18gb",GPU_I_ID="7"} 5` + "\n",
			`{"index":3,"uuid":"GPU-a","name":"","state":"ok","age_ms":0,"temperature":50,"latency_us":0} {"index":3,"uuid":"GPU-a/7","name":"","parent":"GPU-a","state":"ok","age_ms":0,"temperature":50,"memory_used":5242880,"latency_us":0}`},
		{"power of a GPU in parts", `DCGM_FI_DEV_POWER_USAGE{gpu="3",UUID="GPU-a",GPU_I_ID="7"} 50` + "\n" + `DCGM_FI_DEV_ENFORCED_POWER_LIMIT{gpu="3",UUID="GPU-a",GPU_I_ID="7"} 60` + "\n" + `DCGM_FI_DEV_GPU_UTIL{gpu="3",UUID="GPU-a",GPU_I_ID="7"} 5` + "\n",
			`"power_mw":50000,"power_limit_mw":60000,"utilisation":5,"latency_us":0} {"index":3,"uuid":"GPU-a/7","name":"","parent":"GPU-a","state":"ok","age_ms":0,"latency_us":0}`},
		{"no reason in force", "DCGM_FI_DEV_CLOCKS_EVENT_REASONS" + labels + " 0\n", `"reasons":[],`},
		{"rows that could not be remapped", "DCGM_FI_DEV_ROW_REMAP_FAILURE" + labels + " 1\nDCGM_FI_DEV_ROW_REMAP_PENDING" + labels + " 0\n", `"rows_pending":true,`},
		{"blank rows", "DCGM_FI_DEV_ROW_REMAP_PENDING" + labels + " 2147483632\n", `"age_ms":0,"latency_us":0}`},
		{"another page", "vllm:num_requests_running 1\n", "is this a dcgm-exporter?"},
		{"no UUID", "DCGM_FI_DEV_GPU_TEMP{gpu=\"0\"} 50\n", "is this a dcgm-exporter?"},
		{"empty", "", "is this a dcgm-exporter?"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := exporter().parse(strings.NewReader(c.page), time.Now())
			got := fmt.Sprint(err)
			if err == nil {
				var all []string
				for _, g := range s.gpus {
					all = append(all, asJSON(t, g))
				}
				got = strings.Join(all, " ")
			}
			if !strings.Contains(got, c.want) {
				t.Errorf("%s\nwant %s", got, c.want)
			}
			if err == nil && !strings.Contains(s.warning, "1 GPUs have no DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION") {
				t.Errorf("warning %q", s.warning)
			}
		})
	}
}

// TestFrozen: values whose energy does not rise grow old, each GPU's by itself.
func TestFrozen(t *testing.T) {
	page := func(a, b int) string {
		return "DCGM_FI_DEV_GPU_TEMP_LIMIT{gpu=\"0\",UUID=\"GPU-a\"} 35\n" + fmt.Sprintf("DCGM_FI_DEV_CLOCKS_EVENT_REASONS{gpu=\"0\",UUID=\"GPU-a\"} 0\nDCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu=\"0\",UUID=\"GPU-a\"} %d\nDCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu=\"1\",UUID=\"GPU-b\"} %d\n", a, b)
	}
	d, began := exporter(), time.Now()
	for i, c := range []struct {
		a, b       int
		ageA, ageB time.Duration
	}{
		{100, 100, 0, 0},
		{200, 100, 0, time.Second},
		{300, 100, 0, 2 * time.Second},
		{300, 100, time.Second, 3 * time.Second},
		{300, 110, 2 * time.Second, 0},
		{5, 120, 0, 0}, // its driver was reloaded
		{5, 130, time.Second, 0},
	} {
		at := began.Add(time.Duration(i) * time.Second)
		s, err := d.parse(strings.NewReader(page(c.a, c.b)), at)
		if err != nil || s.gpus[0].Age(at) != c.ageA || s.gpus[1].Age(at) != c.ageB || s.warning != "" {
			t.Errorf("%d: %v, ages %v and %v", i, err, s.gpus[0].Age(at), s.gpus[1].Age(at))
		}
	}
}

// TestXIDs: only an error that came while we looked condemns a GPU.
func TestXIDs(t *testing.T) {
	d, began := exporter(), time.Now()
	for i, c := range []struct {
		code int
		want []XID
	}{
		{79, []XID{{79, 0, false}}}, // of last month, maybe
		{79, []XID{{79, 1000, false}}},
		{0, nil},
		{79, []XID{{79, 0, true}}},
		{79, []XID{{79, 1000, true}}},
		{31, []XID{{31, 0, false}}},
	} {
		s, err := d.parse(strings.NewReader(fmt.Sprintf("DCGM_FI_DEV_XID_ERRORS{UUID=\"GPU-a\"} %d\n", c.code)), began.Add(time.Duration(i)*time.Second))
		if err != nil || fmt.Sprint(s.gpus[0].XIDs) != fmt.Sprint(c.want) {
			t.Errorf("%d: %v, %v; want %v", i, err, s.gpus[0].XIDs, c.want)
		}
		if !strings.HasPrefix(s.warning, "1 GPUs have no DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION: ") || !strings.Contains(s.warning, "; no GPU has a temperature margin: ") || !strings.Contains(s.warning, "; no GPU has its clocks' reasons: ") {
			t.Error(s.warning)
		}
	}
}

func TestExporterOverTheWire(t *testing.T) {
	page, err := os.ReadFile("testdata/dcgm-old.txt")
	if err != nil {
		t.Fatal(err)
	}
	endless := false
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for endless {
			if _, err := w.Write(page); err != nil {
				return
			}
		}
		w.Write(page)
	}))
	defer server.Close()
	d := newDCGM(&Config{DCGM: server.URL + "/metrics"})
	defer d.close()
	if s, err := d.read(t.Context(), time.Now().Add(patience)); err != nil || len(s.gpus) != 2 {
		t.Errorf("%v, %+v", err, s)
	}
	endless = true
	if _, err := d.read(t.Context(), time.Now().Add(patience)); err == nil || !strings.Contains(err.Error(), "long") {
		t.Errorf("%v", err)
	}
}

func FuzzDCGM(f *testing.F) {
	for _, file := range []string{"testdata/dcgm-old.txt", "testdata/dcgm-new.txt", "testdata/dcgm-1x.txt"} {
		page, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(page)
	}
	f.Add([]byte("DCGM_FI_DEV_XID_ERRORS{UUID=\"\xff\",gpu=\"99999999999999999999\",GPU_I_ID=\"x\"} -1\n"))
	f.Fuzz(func(t *testing.T, page []byte) {
		d := exporter()
		for range 2 {
			if s, err := d.parse(bytes.NewReader(page), time.Now()); err == nil {
				checkSample(t, s)
			}
		}
	})
}

package nvml

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// fill draws any value of a type of the wire, by reflection, so that a member that
// is added to it is not forgotten here.
func fill(t *rapid.T, v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i))
		}
	case reflect.Pointer:
		if rapid.Bool().Draw(t, "known") {
			v.Set(reflect.New(v.Type().Elem()))
			fill(t, v.Elem())
		}
	case reflect.Slice:
		if n := rapid.IntRange(-1, 3).Draw(t, "length"); n >= 0 {
			v.Set(reflect.MakeSlice(v.Type(), n, n))
			for i := range n {
				fill(t, v.Index(i))
			}
		}
	case reflect.Map:
		if n := rapid.IntRange(0, 3).Draw(t, "length"); n > 0 {
			v.Set(reflect.MakeMap(v.Type()))
			for range n {
				v.SetMapIndex(reflect.ValueOf(rapid.String().Draw(t, "key")), reflect.ValueOf(rapid.Uint64().Draw(t, "value")))
			}
		}
	case reflect.String:
		v.SetString(rapid.String().Draw(t, "text"))
	case reflect.Int, reflect.Int64:
		v.SetInt(rapid.Int64().Draw(t, "number"))
	case reflect.Uint64:
		v.SetUint(rapid.Uint64().Draw(t, "amount"))
	case reflect.Bool:
		v.SetBool(rapid.Bool().Draw(t, "flag"))
	default:
		t.Fatalf("the wire has a %v", v.Type())
	}
}

// TestAnyReport: a report is read as encoding/json reads it.
func TestAnyReport(t *testing.T) {
	before := texts{}
	rapid.Check(t, func(t *rapid.T) {
		var in, want Report
		fill(t, reflect.ValueOf(&in).Elem())
		raw, err := json.Marshal(&in)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(raw, &want); err != nil {
			t.Fatal(err)
		}
		got, err := readReport(raw, before)
		if err != nil {
			t.Fatal(err)
		}
		if len(got.GPUs) == 0 {
			got.GPUs, want.GPUs = nil, nil
		}
		if !reflect.DeepEqual(got, &want) {
			t.Fatalf("%s\ngot  %+v\nwant %+v", raw, got, want)
		}
	})
}

// TestOddReports: what is of another kind than it should be is not known.
func TestOddReports(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{`{"boot_id":"x","gpus":[{"uuid":"a","margin":"hot","memory_used":-1,"rows_pending":1,"reasons":"all","xids":{},"throttle_ns":[]}]}`, `{"node":"","boot_id":"x","seq":0,"gpus":[{"index":0,"uuid":"a","name":"","state":"","age_ms":0,"latency_us":0}]}`},
		{`{"boot_id":7,"gpus":[null,3,"x",[]]}`, `{"node":"","boot_id":"","seq":0,"gpus":[{"index":0,"uuid":"","name":"","state":"","age_ms":0,"latency_us":0},{"index":0,"uuid":"","name":"","state":"","age_ms":0,"latency_us":0},{"index":0,"uuid":"","name":"","state":"","age_ms":0,"latency_us":0},{"index":0,"uuid":"","name":"","state":"","age_ms":0,"latency_us":0}]}`},
		{`{"gpus":{}}`, ""}, {`[]`, ""}, {`null`, ""}, {``, ""}, {`{"node":"x"`, ""}, {`{"node":"x"} x`, ""}, {`{"seq":01}`, ""}, {`{"seq":1,}`, ""}, {`{"x":nul}`, ""}, {`{"node":"\x"}`, ""},
	} {
		r, err := readReport([]byte(c.text), nil)
		if c.want == "" {
			if err == nil {
				t.Errorf("%s: taken", c.text)
			}
			continue
		}
		raw, _ := json.Marshal(r)
		if err != nil || string(raw) != c.want {
			t.Errorf("%s: %v, %s", c.text, err, raw)
		}
	}
}

// TestDeepReport: no depth harms the reader.
func TestDeepReport(t *testing.T) {
	if _, err := readReport([]byte(`{"x":`+strings.Repeat(`[`, 500_000)), nil); err == nil {
		t.Error("taken")
	}
}

// TestLongReport: what a report may have is bounded while it is read.
func TestLongReport(t *testing.T) {
	list := func(n int, item string) string { return "[" + strings.Repeat(item+",", n) + item + "]" }
	var throttle strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&throttle, "\"r%d\":1,", i)
	}
	r, err := readReport([]byte(`{"boot_id":"x","gpus":[{"reasons":`+list(5000, `"r"`)+`,"throttle_ns":{`+throttle.String()+`"x":1},"xids":`+list(5000, `{"code":1}`)[:1]+strings.Repeat(`{"code":1},`, 5000)+`{"code":79}]},`+list(400_000, "0")[1:]+`}`), nil)
	if err != nil {
		t.Fatal(err)
	}
	g := r.GPUs[0]
	if len(r.GPUs) != maxGPUs || cap(r.GPUs) > 2*maxGPUs || len(g.Reasons) != maxReasons || len(g.ThrottleNs) != maxReasons+1 || len(g.XIDs) != MaxXIDs || g.XIDs[MaxXIDs-1].Code != 79 {
		t.Errorf("%d GPUs, %d reasons, %d counters, %d XIDs", len(r.GPUs), len(g.Reasons), len(g.ThrottleNs), len(g.XIDs))
	}
}

// TestReasonsNotKnown: none in force is not the same as none known.
func TestReasonsNotKnown(t *testing.T) {
	r, err := readReport([]byte(`{"boot_id":"x","gpus":[{"uuid":"a","reasons":[]},{"uuid":"b"},{"uuid":"c","reasons":null},{"uuid":"d","reasons":"all"}]}`), nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range r.GPUs {
		raw, _ := json.Marshal(r.GPUs[i])
		if known := strings.Contains(string(raw), `"reasons":[]`); known != (i == 0) || known != (r.GPUs[i].Reasons != nil) {
			t.Errorf("%s", raw)
		}
	}
	tr, err := readTrace(strings.NewReader(`{"t_ms":0,"uuid":"a","reasons":0}` + "\n" + `{"t_ms":0,"uuid":"b"}` + "\n" + `{"t_ms":0,"uuid":"c","reasons":null}`))
	if err != nil {
		t.Fatal(err)
	}
	gpus, _ := clean(tr.readings(0, time.Now()), "s")
	for i, g := range gpus {
		if (g.Reasons != nil) != (i == 0) {
			t.Errorf("%s: %#v", g.UUID, g.Reasons)
		}
	}
}

func BenchmarkReport(b *testing.B) {
	raw, err := json.Marshal((&fakeAgent{boot: "x", gpus: 8}).report())
	if err != nil {
		b.Fatal(err)
	}
	before := texts{}
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := readReport(raw, before); err != nil {
			b.Fatal(err)
		}
	}
}

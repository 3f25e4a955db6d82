package nvml

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

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
		// An empty list that the wire leaves out comes back as none.
		if n := rapid.IntRange(0, 3).Draw(t, "length"); n > 0 {
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

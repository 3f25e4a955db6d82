package nvml

import (
	"encoding/json"
	"testing"
)

// TestReadingJSON holds the order and the names of a reading's members, which agents and
// gateways of other versions read.
func TestReadingJSON(t *testing.T) {
	raw := `{"index":1,"uuid":"GPU-a","name":"H200","parent":"GPU-b","state":"ok","age_ms":2,"sweep":3,"margin":4,"temperature":5,"hbm":6,` +
		`"memory_total":7,"memory_used":8,"memory_free":9,"memory_reserved":10,"power_mw":11,"power_limit_mw":12,"utilisation":13,"reasons":["hw_thermal"],` +
		`"throttle_ns":{"hw_thermal":14},"xids":[{"code":79,"age_ms":15,"fatal":true}],"ecc_uncorrected":16,"rows_pending":true,"latency_us":17}`
	for _, want := range []string{raw, `{"index":0,"uuid":"","name":"","state":"","age_ms":0,"latency_us":0}`} {
		var r Reading
		if err := json.Unmarshal([]byte(want), &r); err != nil {
			t.Fatal(err)
		}
		if got, err := json.Marshal(r); err != nil || string(got) != want {
			t.Errorf("%v\n%s, want\n%s", err, got, want)
		}
	}
}

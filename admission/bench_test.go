package admission

import (
	"testing"
	"time"

	"tidegate/admission/limit"
	"tidegate/degrade"
)

// BenchmarkAdmit admits and settles one request that no limit counts and that need not wait.
func BenchmarkAdmit(b *testing.B) {
	p := poolOf(1, 1)
	c := unlimited()
	d := &Demand{Pool: p, TTFT: time.Second, MaxLevel: degrade.Canned, Request: limit.Request{Tier: "batch", Sequences: 1}}
	b.ReportAllocs()
	for b.Loop() {
		permit, err := c.Admit(b.Context(), d)
		if err != nil {
			b.Fatal(err)
		}
		_ = permit.Settle(limit.Usage{}, "")
	}
}

//go:build linux

package overload

import (
	"fmt"
	"io"
	"os"
	"testing"
	"time"
)

// BenchmarkFair lets tenants flood the gateway with the fair queue on and off; see
// the package comment. It writes a report and never fails for what it measured.
func BenchmarkFair(b *testing.B) {
	k := newBench(b, "fair", "30")
	report := &FairReport{Fleet: FairFleet()}
	for _, scenario := range []string{BothFlood, LightAlone, LightBeside} {
		for _, mode := range k.modes {
			tenants := []*Tenant{{Name: SmallTenant, Tier: "standard"}, {Name: BigTenant, Tier: "standard"}, {Name: LightTenant, Tier: "standard"}}
			stage, stop := k.stage(b, report.Fleet, mode, 2*time.Minute, tenants)
			run := stage.PerformFair(b.Context(), scenario, mode, k.length)
			stop()
			fmt.Fprintf(os.Stderr, "%6.1fs %s, queue %s: service %v, slots busy %.0f %%, %v\n",
				time.Since(k.began).Seconds(), scenario, mode, run.Served(), 100*run.Busy, Count(run.Outcomes, time.Hour).Reasons)
			report.Runs = append(report.Runs, run)
		}
	}
	report.Facts = k.facts(b)
	if err := write(report.Write, func(w io.Writer) error { return report.Draw(w) }, &report.Plot); err != nil {
		b.Fatal(err)
	}
}

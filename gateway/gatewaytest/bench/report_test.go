package bench

import (
	"strings"
	"testing"
	"time"
)

// round makes the records of a scenario in one round: CPU time of 100 requests.
func round(n int, scenario string, bare, gateway time.Duration) (out []Record) {
	for target, cpu := range map[string]time.Duration{Direct: 0, Bare: bare, Gateway: gateway} {
		out = append(out, Record{Scenario: scenario, Target: target, Round: n, Finished: 100, Run: &Result{
			Elapsed: time.Second, Sent: 100, OK: 100, Events: 100, Target: Usage{CPU: cpu},
		}})
	}
	return out
}

func written(t *testing.T, r Report) string {
	t.Helper()
	var b strings.Builder
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func wantLine(t *testing.T, text, line string) {
	t.Helper()
	if !strings.Contains("\n"+text, "\n"+line+"\n") {
		t.Errorf("there is no line\n%s\nin\n%s", line, text)
	}
}

// The second round was three times as slow for both: its ratio is as good as any.
func TestRatiosAreTakenWithinARound(t *testing.T) {
	var r Report
	r.Facts = [][2]string{{"machine", "2 cores"}}
	r.Records = append(r.Records, round(0, Small, 10*time.Millisecond, 12*time.Millisecond)...)
	r.Records = append(r.Records, round(1, Small, 30*time.Millisecond, 33*time.Millisecond)...)
	r.Records = append(r.Records, round(2, Small, 10*time.Millisecond, 14*time.Millisecond)...)
	r.Records = append(r.Records, round(0, Stream, 10*time.Millisecond, 12*time.Millisecond)...)
	text := written(t, r)
	wantLine(t, text, "- machine: 2 cores")
	wantLine(t, text, "| CPU per request of 500 B ÷ bare | small | 1.20 (1.10–1.40) | 1.25 | met |")
	wantLine(t, text, "| CPU per streamed event ÷ bare, no delay | stream | 1.20 | 1.10 | **not met** |")
	wantLine(t, text, "| RSS per open stream above idle | slow | – | 60 KiB | not measured |")
	wantLine(t, text, "Processes that are no part of it used 0 cores meanwhile; in 0 of 12 runs more than 0.10, which makes")
	wantLine(t, text, "| direct | 3 | 100 | – | 0 | 0 | – | 0 | 0 |")
	wantLine(t, text, "| tidegate | 3 | 100 | 140 (120–330) | 0 | 0 | 0 | 0 | 0 |")
}

func TestLostStreamsAddUp(t *testing.T) {
	var r Report
	for i := range 3 {
		r.Records = append(r.Records, round(i, Lost, time.Second, time.Second)...)
	}
	wantLine(t, written(t, r), "| lost streams | lost | 0 | 0 | met |")
	for i := range r.Records {
		if r.Records[i].Target == Gateway && r.Records[i].Round == 1 {
			r.Records[i].Run.OK, r.Records[i].Run.Failed, r.Records[i].Run.Problems = 98, 2, map[string]int{"timeout": 2}
		}
	}
	text := written(t, r)
	wantLine(t, text, "| lost streams | lost | 2 | 0 | **not met** |")
	wantLine(t, text, `- lost, tidegate, round 2: 2 failed: map[timeout:2] ""`)
}

func TestWhatWasNotMeasuredIsSaid(t *testing.T) {
	r := Report{Records: []Record{{Scenario: AbortWait, Target: Gateway, Err: "it broke"}}}
	r.Records = append(r.Records, round(0, Large, 0, time.Second)...) // too short for a tick
	for _, target := range []string{Direct, Bare, Gateway} {
		r.Records = append(r.Records, Record{Scenario: AbortStream, Target: target, Abort: &AbortResult{Failed: 50}})
	}
	text := written(t, r)
	wantLine(t, text, "| CPU per request of 32 KiB ÷ bare | large | – | 1.25 | not measured |")
	wantLine(t, text, "| last of 50 aborts seen, streams | abort-stream | – | 100 ms | not measured |")
	wantLine(t, text, "| last of 50 aborts seen, unanswered requests | abort-wait | – | 100 ms | not measured |")
	wantLine(t, text, "| tidegate | 0 | – | – | – | – | – |")
	wantLine(t, text, "- abort-wait, tidegate, round 1: not measured: it broke")
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   string
	}{
		{nil, "–"},
		{[]float64{3}, "3"},
		{[]float64{3, 1, 2}, "2 (1–3)"},
		{[]float64{0.5, 0.25}, "0.38 (0.25–0.50)"},
		{[]float64{250.4, 250.4}, "250"},
	} {
		if got := cell(c.values); got != c.want {
			t.Errorf("%v: got %s, want %s", c.values, got, c.want)
		}
	}
}

package admission

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"tidegate/admission/limit"
)

// TestShare: whatever comes and goes, each request has k/n of each instant of its
// life, and all together have exactly the time in which the GPUs were used.
func TestShare(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		gpus := rapid.IntRange(1, 8).Draw(t, "gpus")
		s := share{gpus: gpus}
		now := time.Now()
		type request struct {
			entered time.Duration
			want    float64 // nanoseconds, added up instant by instant
		}
		var here []*request
		busy, given, wanted, steps := time.Duration(0), time.Duration(0), 0.0, 0
		leave := func(i int) {
			r := here[i]
			got := s.change(-1, now) - r.entered
			if math.Abs(float64(got)-r.want) > float64(steps) {
				t.Fatalf("a request had %v; want %v", got, time.Duration(r.want))
			}
			given += got
			wanted += r.want
			here = append(here[:i], here[i+1:]...)
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			steps++
			d := time.Duration(rapid.Int64Range(0, int64(10*time.Second)).Draw(t, "pause"))
			now = now.Add(d)
			if n := len(here); n > 0 {
				busy += d
				for _, r := range here {
					r.want += float64(d) * float64(gpus) / float64(n)
				}
			}
			if len(here) > 0 && rapid.Bool().Draw(t, "one leaves") {
				leave(rapid.IntRange(0, len(here)-1).Draw(t, "which"))
			} else {
				here = append(here, &request{entered: s.change(1, now)})
			}
		}
		for len(here) > 0 {
			leave(0)
		}
		if off := given - busy*time.Duration(gpus); off > 0 || off < -time.Duration(60*61) {
			t.Fatalf("%v were given, %d GPUs were busy for %v", given, gpus, busy)
		}
	})
}

// TestPermitGPU: a permit tells the time on all backends it was given; waiting for
// nothing costs nothing.
func TestPermitGPU(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := weightedSeat(1), weightedSeat(1)
		a.SetGPUs(2)
		b.SetGPUs(1)
		a.SetRotation(true)
		c := New(limit.New(&limit.Set{}, limit.Options{Store: limit.NewMemory(time.Now)}), DefaultQueue())
		pool := newTestPool(a, b)
		admit := func(id string) *Permit {
			p, err := c.Admit(t.Context(), &Demand{Pool: pool, Request: limit.Request{ID: id}})
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		want := func(p *Permit, d time.Duration) {
			t.Helper()
			if p.GPU() != d {
				t.Errorf("%v; want %v", p.GPU(), d)
			}
		}
		time.Sleep(time.Hour) // idle
		p := admit("1")
		time.Sleep(3 * time.Second)
		want(p, 6*time.Second)
		q := admit("2")
		time.Sleep(2 * time.Second)
		want(p, 8*time.Second)
		want(q, 2*time.Second)
		b.SetRotation(true)
		if !p.SwitchBackend() || p.index() != 1 {
			t.Fatal("not on the other")
		}
		time.Sleep(time.Second)
		want(p, 9*time.Second)
		a.SetGPUs(0) // forgotten in a reload
		time.Sleep(time.Second)
		if err := p.Settle(limit.Usage{}, "m"); err != nil {
			t.Fatal(err)
		}
		if err := q.Settle(limit.Usage{}, "m"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		want(p, 10*time.Second)
		want(q, 4*time.Second)
	})
}

func BenchmarkShare(b *testing.B) {
	backend := weightedSeat(1)
	backend.SetGPUs(1)
	b.ReportAllocs()
	for b.Loop() {
		backend.acquire(1)
		backend.release(1)
	}
}

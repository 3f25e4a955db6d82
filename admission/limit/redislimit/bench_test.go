package redislimit

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"tidegate/admission/limit"
	"tidegate/admission/limit/redislimit/redistest"
)

// mixed are so many dimensions of one tenant: two windows, a lease and a quota, and
// the same again.
func mixed(n int) []limit.Dim {
	now := time.Now().UnixMilli()
	var out []limit.Dim
	for i := range n {
		d := limit.Dim{Key: fmt.Sprintf("tg:{t:bench}:%d:%d", n, i), Limit: 1 << 40, Cost: 1, Failure: limit.FailLocal}
		switch i % 4 {
		case 0, 1:
			d.Kind, d.WindowMs, d.BucketMs = limit.Window, 60_000, 5_000
			if i%8 == 1 {
				d.Burst = 1 << 30
			}
		case 2:
			d.Kind = limit.Lease
		case 3:
			d.Kind, d.BeginMs, d.EndMs = limit.Quota, now/86_400_000*86_400_000, (now/86_400_000+1)*86_400_000
		}
		out = append(out, d)
	}
	return out
}

// BenchmarkReserve compares decisions with a PING of the same client, call by call
// in turn, so that what else the machine does meets all alike. Every reservation is
// settled, outside of what is measured.
func BenchmarkReserve(b *testing.B) {
	server := redistest.Single(b)
	c := DefaultConfig()
	c.Addrs = []string{server.Addr}
	client := Dial(c)
	defer client.Close()
	s := New(client, Options{})
	ctx := context.Background()
	var ping, four, twenty []time.Duration
	took := func(into *[]time.Duration, do func() error) {
		began := time.Now()
		err := do()
		*into = append(*into, time.Since(began))
		if err != nil {
			b.Fatal(err)
		}
	}
	reserve := func(into *[]time.Duration, id string, dims []limit.Dim) {
		took(into, func() error {
			out, err := s.Reserve(ctx, limit.Reservation{ID: id, Dims: dims})
			if err == nil && !out.Allowed {
				b.Fatalf("refused: %+v", out)
			}
			return err
		})
		if _, err := s.Settle(ctx, limit.Settlement{ID: id, Dims: dims, Charges: make([]int64, len(dims))}); err != nil {
			b.Fatal(err)
		}
	}
	dims4, dims20 := mixed(4), mixed(20)
	for ago := time.Minute; ago > 0; ago -= 5 * time.Second { // windows are as full as they are in the middle of a day
		past := New(client, Options{Now: func() time.Time { return time.Now().Add(-ago) }})
		for i, dims := range [][]limit.Dim{dims4, dims20} {
			id := fmt.Sprint("past", i, ago)
			if _, err := past.Reserve(ctx, limit.Reservation{ID: id, Dims: dims}); err != nil {
				b.Fatal(err)
			}
			charges := make([]int64, len(dims))
			for j := range charges {
				charges[j] = 1
			}
			if _, err := past.Settle(ctx, limit.Settlement{ID: id, Dims: dims, Charges: charges}); err != nil {
				b.Fatal(err)
			}
		}
	}
	for i := 0; b.Loop(); i++ {
		took(&ping, func() error { return client.Ping(ctx).Err() })
		reserve(&four, fmt.Sprint("f", i), dims4)
		took(&ping, func() error { return client.Ping(ctx).Err() })
		reserve(&twenty, fmt.Sprint("t", i), dims20)
	}
	median := func(all []time.Duration) float64 {
		slices.Sort(all)
		return float64(all[len(all)/2].Nanoseconds()) / 1000
	}
	if stats, err := server.Client().Info(ctx, "commandstats").Result(); err == nil {
		for line := range strings.SplitSeq(stats, "\r\n") {
			if strings.HasPrefix(line, "cmdstat_evalsha:") || strings.HasPrefix(line, "cmdstat_ping:") {
				b.Log(line)
			}
		}
	}
	b.ReportMetric(median(ping), "ping-µs")
	b.ReportMetric(median(four), "4rules-µs")
	b.ReportMetric(median(twenty), "20rules-µs")
	b.ReportMetric(median(four)/median(ping), "4rules/ping")
	b.ReportMetric(median(twenty)/median(ping), "20rules/ping")
}

// BenchmarkPaused shows what a request waits when Redis stops answering: the first
// ones, for the budget, and those after the breaker has opened.
func BenchmarkPaused(b *testing.B) {
	server := redistest.Single(b)
	c := DefaultConfig()
	c.Addrs = []string{server.Addr}
	client := Dial(c)
	defer client.Close()
	dims := mixed(4)
	var first, open []time.Duration
	for round := 0; b.Loop(); round++ {
		g := Guard(New(client, Options{}), GuardOptions{Replica: "one", Timeout: c.Timeout})
		if err := g.heartbeat(b.Context()); err != nil {
			b.Fatal(err)
		}
		reserve := func(id string) time.Duration {
			began := time.Now()
			if _, err := g.Reserve(b.Context(), limit.Reservation{ID: id, Dims: dims}); err != nil {
				b.Fatal(err)
			}
			return time.Since(began)
		}
		reserve(fmt.Sprint("warm", round))
		server.Pause()
		for i := range 2000 {
			into := &open
			if !g.State().Alone {
				into = &first
			}
			*into = append(*into, reserve(fmt.Sprint(round, "/", i)))
		}
		server.Resume()
	}
	report := func(name string, all []time.Duration) {
		slices.Sort(all)
		b.ReportMetric(float64(all[len(all)/2].Microseconds()), name+"-p50-µs")
		b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), name+"-p99-µs")
		b.ReportMetric(float64(all[len(all)-1].Microseconds()), name+"-max-µs")
	}
	report("first", first)
	report("open", open)
}

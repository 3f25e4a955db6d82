package redislimit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"tidegate/admission/limit"
	"tidegate/admission/limit/redislimit/redistest"
	"tidegate/degrade"
)

// outageRig is some replicas on one Redis, on a clock that the test moves. What they
// let in is written down.
type outageRig struct {
	t       *testing.T
	server  *redistest.Server
	direct  *redis.Client
	ms      int64
	fleet   []*Guarded
	away    atomic.Bool
	conns   sync.Map // net.Conn of the replicas
	next    int
	running []*asked
	passed  map[string][]taken // by counter
	quota   limit.Dim
	used    int64              // of the quota, settled: the ledger
	refused map[string][]int64 // by counter, seconds since the start
	start   int64
}

// asked is a request that was let in.
type asked struct {
	g      *Guarded
	id     string
	dims   []limit.Dim
	endsMs int64
}

// taken is what one request took of a counter.
type taken struct{ ms, cost, endsMs int64 }

func newOutageRig(t *testing.T, replicas int) *outageRig {
	t.Helper()
	const start = 1_772_362_680_000
	o := &outageRig{t: t, server: redistest.Single(t), ms: start, start: start, passed: map[string][]taken{}, refused: map[string][]int64{}}
	o.direct = o.server.Client()
	for range replicas {
		o.add()
	}
	return o
}

// add starts one more replica.
func (o *outageRig) add() {
	client := redis.NewClient(&redis.Options{
		Addr: o.server.Addr, MaxRetries: -1, ContextTimeoutEnabled: true, DialerRetries: 1, Protocol: 2, DisableIdentity: true,
		PoolSize: 10_000, // so many failures to connect, until the client itself waits for a second
		Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if o.away.Load() {
				return nil, syscall.ECONNREFUSED
			}
			conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
			if err == nil {
				o.conns.Store(conn, nil)
			}
			return conn, err
		},
	})
	o.t.Cleanup(func() { _ = client.Close() })
	g := Guard(New(client, Options{Now: o.now}), GuardOptions{
		Replica: fmt.Sprint("r", len(o.fleet)), Now: o.now, Timeout: 5 * time.Second,
		Breaker: degrade.BreakerConfig{Open: time.Nanosecond}, // it looks again whenever the test says so
	})
	o.fleet = append(o.fleet, g)
	_ = g.heartbeat(o.t.Context()) // as Run begins
}

func (o *outageRig) now() time.Time { return time.UnixMilli(o.ms) }

// leave takes Redis away, with all that it holds if it is to come back empty.
func (o *outageRig) leave(empty bool) {
	o.t.Helper()
	o.away.Store(true)
	o.conns.Range(func(conn, _ any) bool {
		o.conns.Delete(conn)
		return conn.(net.Conn).Close() == nil
	})
	if empty {
		o.flush()
	}
}

// comeBack brings Redis back; it returns when every replica asks it.
func (o *outageRig) comeBack() {
	o.t.Helper()
	o.away.Store(false)
	for i, g := range o.fleet {
		until(o.t, fmt.Sprintf("replica %d asks Redis again", i), func() bool {
			g.check(o.t.Context())
			return !g.State().Alone
		})
	}
}

// flush empties Redis, of scripts too.
func (o *outageRig) flush() {
	o.t.Helper()
	if err := errors.Join(o.direct.FlushAll(o.t.Context()).Err(), o.direct.ScriptFlush(o.t.Context()).Err()); err != nil {
		o.t.Fatal(err)
	}
}

func (o *outageRig) second() int { return int((o.ms - o.start) / 1000) }

// pass lets a second pass.
func (o *outageRig) pass() {
	o.ms += 1000
	var left []*asked
	for _, r := range o.running {
		if r.endsMs > o.ms {
			left = append(left, r)
			continue
		}
		charges := make([]int64, len(r.dims))
		for i := range r.dims {
			charges[i] = r.dims[i].Cost
			if r.dims[i].Ceiling {
				charges[i] = charges[i-1]
			}
		}
		o.used += charges[len(charges)-1]
		if _, err := r.g.Settle(o.t.Context(), limit.Settlement{ID: r.id, Dims: r.dims, Charges: charges}); err != nil {
			o.t.Fatal(err)
		}
	}
	o.running = left
	for i, g := range o.fleet {
		if o.second()%10 == 0 {
			var renewals []limit.Renewal
			for _, r := range o.running {
				if r.g == g {
					renewals = append(renewals, limit.Renewal{ID: r.id, Dims: r.dims})
				}
			}
			_, _ = g.Renew(o.t.Context(), renewals)
		}
		g.check(o.t.Context())
		if state := g.State(); state.Alone && o.now().Sub(state.Recalled) >= 10*time.Second {
			g.Recall([]string{o.quota.Rule}, []limit.Recorded{{Dim: o.quota, Used: o.used}})
		}
		if g.State().Alone && !o.away.Load() {
			o.t.Fatalf("replica %d, second %d: alone %v", i, o.second(), g.State().Alone)
		}
	}
}

// ask sends a request to a replica. It lasts for some seconds.
func (o *outageRig) ask(replica int, dims []limit.Dim, seconds int64) bool {
	o.t.Helper()
	o.next++
	r := &asked{g: o.fleet[replica], id: fmt.Sprint(o.next), dims: dims, endsMs: o.ms + seconds*1000}
	out, err := r.g.Reserve(o.t.Context(), limit.Reservation{ID: r.id, Dims: dims})
	if err != nil {
		o.t.Fatal(err)
	}
	if !out.Allowed {
		key := dims[out.Binding].Key
		o.refused[key] = append(o.refused[key], int64(o.second()))
		return false
	}
	o.running = append(o.running, r)
	for i := range dims {
		o.passed[dims[i].Key] = append(o.passed[dims[i].Key], taken{o.ms, dims[i].Cost, r.endsMs})
	}
	return true
}

// most is the most that passed of a counter in any window, or was held at any time.
func (o *outageRig) most(d *limit.Dim) (most int64) {
	all := o.passed[d.Key]
	for i := range all {
		var sum int64
		for j := range all[:i+1] {
			p := &all[j]
			if d.Kind == limit.Lease && p.endsMs > all[i].ms || d.Kind == limit.Window && p.ms > all[i].ms-d.WindowMs {
				sum += p.cost
			}
		}
		most = max(most, sum)
	}
	return most
}

// callerDims are the four kinds of rules: of requests, tokens, slots and a quota.
func callerDims(requests, tokens, slots, quota, cost int64) []limit.Dim {
	const day, begin = 86_400_000, 1_772_323_200_000
	return []limit.Dim{
		{Key: "tg:{t}:requests", Rule: "requests", Kind: limit.Window, Limit: requests, Cost: 1, Floor: 1, WindowMs: 60_000, BucketMs: 5_000, Failure: limit.FailLocal},
		{Key: "tg:{t}:tokens", Rule: "tokens", Kind: limit.Window, Limit: tokens, Burst: tokens, Cost: cost, Floor: cost / 2, WindowMs: 60_000, BucketMs: 5_000, Failure: limit.FailLocal},
		{Key: "tg:{t}:tokens:most", Rule: "tokens", Kind: limit.Window, Limit: tokens * 5 / 4, Cost: 10 * cost, Floor: cost / 2, WindowMs: 60_000, BucketMs: 5_000, Failure: limit.FailLocal, Ceiling: true},
		{Key: "tg:{t}:slots", Rule: "slots", Kind: limit.Lease, Limit: slots, Cost: 1, Floor: 1, Failure: limit.FailLocal},
		{Key: "tg:{t}:quota", Rule: "quota", Kind: limit.Quota, Limit: quota, Cost: cost, Floor: cost / 2, BeginMs: begin, EndMs: begin + day, Failure: limit.FailLocal},
	}
}

// outageSpan is a time without Redis, in seconds since the start.
type outageSpan struct{ from, to int }

// outages are the ways in which Redis leaves, in the first three minutes.
func outages() map[string][]outageSpan {
	var flapping []outageSpan
	for s := 20; s < 180; s += 40 {
		flapping = append(flapping, outageSpan{s, s + 20})
	}
	return map[string][]outageSpan{
		"10 s after the start": {{10, 180}}, "70 s after the start": {{70, 180}}, "100 s after the start": {{100, 180}},
		"flapping": flapping, "before the start": {{0, 100}}, "briefly": {{75, 76}, {90, 91}, {91, 92}},
	}
}

// TestHalfUsed: a caller that uses half of every limit is not refused, whenever Redis
// leaves, whether or not it comes back empty, however the requests are spread over the
// replicas, and wherever they go then.
func TestHalfUsed(t *testing.T) {
	t.Parallel()
	spreads := map[string]func(k int, away bool) int{
		"even":        func(k int, _ bool) int { return k % 2 },
		"nine of ten": func(k int, _ bool) int { return b2i(k%10 == 0) },
		"one only":    func(int, bool) int { return 0 },
		"unsteady":    func(int, bool) int { return 0 },
		"moved":       func(_ int, away bool) int { return b2i(away) },
	}
	for name, spans := range outages() {
		for spread, pick := range spreads {
			for _, empty := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, %s, empty %v", name, spread, empty), func(t *testing.T) {
					t.Parallel()
					o := newOutageRig(t, 2)
					dims := callerDims(60, 6000, 8, 100_000, 100)
					o.settled(dims[4:], 50_000)
					o.during(220, spans, empty, func(second int) {
						due := second%2 == 0
						if spread == "unsteady" && second%20 > 16 { // one in ten comes a second early
							due = second%20 == 17
						}
						if due {
							o.ask(pick(o.next, o.away.Load()), dims, 7)
						}
					})
					for key, seconds := range o.refused {
						t.Errorf("%s: %d of %d requests of a half-used limit were refused, in the seconds %v", key, len(seconds), o.next, seconds)
					}
				})
			}
		}
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// settled says that so much was used of quotas before.
func (o *outageRig) settled(dims []limit.Dim, used int64) {
	o.t.Helper()
	o.quota, o.used = dims[0], used
	if _, err := o.fleet[0].Settle(o.t.Context(), limit.Settlement{ID: "before", Dims: dims, Charges: []int64{used}, New: true}); err != nil {
		o.t.Fatal(err)
	}
}

// during lets seconds pass, with the outages in them.
func (o *outageRig) during(seconds int, spans []outageSpan, empty bool, each func(second int)) {
	o.t.Helper()
	for second := range seconds {
		for _, s := range spans {
			if second == s.from {
				o.leave(empty)
			}
			if second == s.to {
				o.comeBack()
			}
		}
		each(second)
		o.pass()
	}
}

// beyond is what each replica may let in beyond its share.
func beyond(d *limit.Dim) float64 {
	if d.Kind == limit.Window {
		return float64(d.Cost)
	}
	return 0
}

// TestFleetSum: replicas that lose Redis let in no more than the bound together, in any
// window, however unevenly the load comes: also in the window in which Redis was lost,
// and in the one in which it came back, with what it knew or with nothing.
func TestFleetSum(t *testing.T) {
	t.Parallel()
	loads := map[string][2][]int{ // how many of ten ask whom, before and after
		"even":     {{1, 1, 1, 1}, {1, 1, 1, 1}},
		"skewed":   {{7, 1, 1, 1}, {7, 1, 1, 1}},
		"reversed": {{7, 1, 1, 1}, {1, 7, 1, 1}},
		"one only": {{5, 0, 0, 0}, {5, 0, 0, 0}},
	}
	for _, replicas := range []int{1, 2, 3, 4} {
		for name, load := range loads {
			for when, spans := range outages() {
				if when == "before the start" {
					continue // nobody knows of the others
				}
				for _, empty := range []bool{false, true} {
					if replicas != 2 && (empty || when != "flapping" && when != "70 s after the start") {
						continue
					}
					t.Run(fmt.Sprintf("%d replicas, %s, %s, empty %v", replicas, name, when, empty), func(t *testing.T) {
						t.Parallel()
						o := newOutageRig(t, replicas)
						dims := callerDims(60, 6000, 8, 1_000_000, 100)
						dims = []limit.Dim{dims[0], dims[1], dims[3], dims[4]}
						o.settled(dims[3:], 0)
						o.during(220, spans, empty, func(int) {
							for i := range replicas {
								for range load[b2i(o.away.Load())][i] {
									o.ask(i, dims, 6)
								}
							}
						})
						for i := range dims[:3] {
							d := &dims[i]
							most := o.most(d)
							t.Logf("%s: at most %d of %d", d.Rule, most, d.Limit)
							if float64(most) > bound(replicas)*float64(d.Limit)+float64(replicas)*beyond(d) {
								t.Errorf("%s: %d of %d at a time or within a window", d.Rule, most, d.Limit)
							}
						}
					})
				}
			}
		}
	}
}

// TestChanges empties Redis while it is asked, starts a replica or restarts one while it
// is away: a half-used limit refuses nobody, and the replicas let in no more than what
// the page on limits says.
func TestChanges(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		spans  []outageSpan
		at     map[int]func(o *outageRig)
		bound  float64
		slots  float64 // the bound of slots; what a replica that was restarted had is gone with it
		spread int     // replicas that requests go to in the end
	}{
		"emptied while it is asked": {at: map[int]func(*outageRig){70: (*outageRig).flush, 75: (*outageRig).flush, 130: (*outageRig).flush}, bound: 1, slots: 2, spread: 2},
		"a third one starts":        {spans: []outageSpan{{30, 150}}, at: map[int]func(*outageRig){60: (*outageRig).add}, bound: 1.5, slots: 1.5, spread: 3},
		"one is restarted":          {spans: []outageSpan{{30, 150}}, at: map[int]func(*outageRig){80: (*outageRig).restart}, bound: 1.5, slots: 1.5, spread: 2},
	} {
		for what, perSecond := range map[string]int{"half": 0, "flood": 3} {
			t.Run(name+", "+what, func(t *testing.T) {
				t.Parallel()
				o := newOutageRig(t, 2)
				dims := callerDims(60, 6000, 8, 1_000_000, 100)
				if perSecond > 0 {
					dims = []limit.Dim{dims[0], dims[1], dims[3], dims[4]}
				}
				o.settled(dims[len(dims)-1:], 500_000)
				o.during(220, test.spans, false, func(second int) {
					if do := test.at[second]; do != nil {
						do(o)
						for _, g := range o.fleet { // within a second each knows
							g.check(o.t.Context())
						}
					}
					replicas := min(len(o.fleet), test.spread)
					if perSecond == 0 && second%2 == 0 {
						o.ask(o.next%replicas, dims, 8)
					}
					for i := range perSecond * replicas {
						o.ask(i%replicas, dims, 6)
					}
				})
				for i := range dims[:2] {
					if most := o.most(&dims[i]); float64(most) > test.bound*float64(dims[i].Limit)+3*beyond(&dims[i]) {
						t.Errorf("%s: %d of %d within a window", dims[i].Rule, most, dims[i].Limit)
					}
				}
				slots := &dims[len(dims)-2]
				if most := o.most(slots); float64(most) > test.slots*float64(slots.Limit) {
					t.Errorf("%d of %d at a time", most, slots.Limit)
				}
				for key, seconds := range o.refused {
					if perSecond == 0 {
						t.Errorf("%s: %d of %d requests of a half-used limit were refused, in the seconds %v", key, len(seconds), o.next, seconds)
					}
				}
			})
		}
	}
}

// restart replaces the first replica by a new one, which knows nothing.
func (o *outageRig) restart() {
	o.add()
	last := len(o.fleet) - 1
	o.fleet[0], o.fleet = o.fleet[last], o.fleet[:last]
}

// TestQuotaAlone: what a caller is told of a quota without Redis. One that is used up
// by what the ledger knows refuses until its period ends; one of which only the share
// is given out says so, and to try again soon.
func TestQuotaAlone(t *testing.T) {
	t.Parallel()
	o := newOutageRig(t, 2)
	_ = o.fleet[0].heartbeat(t.Context()) // it knows of the second
	dims := callerDims(60, 6000, 8, 10_000, 100)[4:]
	o.quota = dims[0]
	o.leave(false)
	reserve := func(cost int64) limit.Decision {
		t.Helper()
		o.next++
		asked := append([]limit.Dim(nil), dims...)
		asked[0].Cost, asked[0].Floor = cost, cost
		out, err := o.fleet[0].Reserve(t.Context(), limit.Reservation{ID: fmt.Sprint(o.next), Dims: asked})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	o.fleet[0].Recall([]string{"quota"}, []limit.Recorded{{Dim: dims[0], Used: 5_000}})
	if out := reserve(2_400); !out.Allowed || out.States[0].Used != 7_400 {
		t.Errorf("within the half of what is left: %+v", out)
	}
	if out := reserve(200); out.Allowed || out.TooLarge || out.States[0].Share != 2_500 || out.RetryAfterMs != 1000 || out.States[0].Used != 7_400 {
		t.Errorf("over it: %+v", out)
	}
	if _, err := o.fleet[0].Settle(t.Context(), limit.Settlement{ID: "1", Dims: dims, Charges: []int64{2_000}}); err != nil {
		t.Fatal(err)
	}
	o.fleet[0].Recall([]string{"quota"}, []limit.Recorded{{Dim: dims[0], Used: 8_000}}) // 2000 of them here, and 1000 elsewhere since
	if out := reserve(900); !out.Allowed || out.States[0].Used != 8_900 {
		t.Errorf("of what the ledger knows now: %+v", out)
	}
	if out := reserve(200); out.Allowed || out.States[0].Share != 3_000 {
		t.Errorf("over the half of that: %+v", out)
	}
	o.fleet[0].Recall([]string{"quota"}, []limit.Recorded{{Dim: dims[0], Used: 10_000}})
	if out := reserve(1); out.Allowed || out.TooLarge || out.States[0].Share != 0 || out.RetryAfterMs != dims[0].EndMs-o.ms {
		t.Errorf("used up: %+v", out)
	}
	if out := reserve(10_001); !out.TooLarge {
		t.Errorf("larger than the quota: %+v", out)
	}
	o.fleet[0].Recall([]string{"quota"}, nil) // of this period nobody has used anything
	if out := reserve(600); !out.Allowed {
		t.Errorf("not used at all: %+v", out)
	}
	o.fleet[1].Recall([]string{"another"}, nil) // the ledger does not count this one, such as one of addresses
	asked := append([]limit.Dim(nil), dims...)
	asked[0].Cost = 251
	out, err := o.fleet[1].Reserve(t.Context(), limit.Reservation{ID: "first", Dims: asked})
	if err != nil || !out.Allowed || out.States[0].Used != 9_751 {
		t.Errorf("the first request of a quota that is not known: %+v, %v", out, err)
	}
	if out, err = o.fleet[1].Reserve(t.Context(), limit.Reservation{ID: "second", Dims: dims}); err != nil || out.Allowed || out.States[0].Share == 0 {
		t.Errorf("the second: %+v, %v", out, err)
	}
}

// TestAdopted: what was let in without Redis and still runs holds its slots there when
// Redis is back, keeps them while it is renewed, and is charged once.
func TestAdopted(t *testing.T) {
	t.Parallel()
	o := newOutageRig(t, 2)
	_ = o.fleet[0].heartbeat(t.Context())
	dims := callerDims(60, 6000, 2, 100_000, 100)
	dims = []limit.Dim{dims[1], dims[3], dims[4]}
	o.settled(dims[2:], 0)
	o.leave(true)
	if !o.ask(0, dims, 90) {
		t.Fatal("it was not let in")
	}
	o.pass()
	o.comeBack()
	for range 80 { // longer than a lease
		o.pass()
		if used := usedIn(t, o.fleet[1], dims[1:2])[0]; used != 1 {
			t.Fatalf("second %d: %d slots are held", o.second(), used)
		}
	}
	for range 20 {
		o.pass()
	}
	if used := usedIn(t, o.fleet[1], dims[1:]); used[0] != 0 || used[1] != 100 {
		t.Errorf("in the end %d slots are held, and %d are used of the quota", used[0], used[1])
	}
}

// TestHandIn: a replica that finds Redis before the other one does lets in no more than
// its share until that has handed in what it counted alone.
func TestHandIn(t *testing.T) {
	t.Parallel()
	o := newOutageRig(t, 2)
	_ = o.fleet[0].heartbeat(t.Context())
	dims := callerDims(60, 6000, 8, 100_000, 100)
	dims = dims[:1]
	o.leave(false)
	for range 40 {
		o.ask(0, dims, 0)
		o.ask(1, dims, 0)
	}
	o.away.Store(false)
	until(t, "the first asks Redis again", func() bool {
		o.fleet[0].check(t.Context())
		return !o.fleet[0].State().Alone
	})
	for range 40 {
		o.ask(0, dims, 0)
	}
	if most := o.most(&dims[0]); most != 62 {
		t.Errorf("%d of 60 within a window", most)
	}
}

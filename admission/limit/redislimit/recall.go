package redislimit

import (
	"context"
	"fmt"
	"time"

	"tidegate/admission/limit"
)

// recalled is what a ledger said of quotas. A zero one was never told. It is read and
// written under the guard's lock.
type recalled struct {
	time     time.Time
	outage int64            // in which the ledger was asked
	uses    map[string]quotaUse // by counter
	rules  map[string]bool  // quotas that the ledger counts for whomever they are of
}

// spent is what of one quota was used in a period, in its own unit.
type quotaUse struct {
	begin int64 // of the period, in milliseconds since 1970
	used  int64 // by all replicas, this one's since it is alone included
	local  int64 // by this one since it is alone, when the ledger was asked
}

// Recall takes in what a ledger knows of quotas. Of those in counted it knows all that
// was used: a counter that is not among them was not used in the running period. While Redis is
// not asked, what remains is worked out from it, so that quotas are known as soon as
// the ledger was read, and go on counting for all replicas.
func (g *Guarded) Recall(counted []string, records []limit.Recorded) {
	g.mu.Lock()
	next := recalled{time: g.opts.Now(), outage: g.outage, uses: make(map[string]quotaUse, len(records)), rules: map[string]bool{}}
	g.mu.Unlock()
	for _, rule := range counted {
		next.rules[rule] = true
	}
	for i := range records {
		r := &records[i]
		next.uses[r.Dim.Key] = quotaUse{begin: r.Dim.BeginMs, used: r.Used, local: g.localUse(r.Dim, next.outage)}
	}
	g.mu.Lock()
	g.recalled = next
	g.mu.Unlock()
}

// outageSuffix is behind the key of a quota's counter of one outage.
func outageSuffix(outage int64) string { return fmt.Sprintf("#%d", outage) }

// spentHere is what of a quota this replica has settled since it is alone.
func (g *Guarded) localUse(d limit.Dim, outage int64) int64 {
	d.Key += outageSuffix(outage)
	d.Cost = 0
	found, err := g.shadow.Reserve(context.Background(), limit.Reservation{Dims: []limit.Dim{d}, Peek: true, Settled: true})
	if err != nil {
		return 0
	}
	return found.States[0].Used
}

// known is what is known of a quota's use: by Redis until this replica was alone, or by
// the ledger since. Of the two the larger holds: Redis also knew of what was running,
// and the ledger knows of other replicas.
func (g *Guarded) knownUse(d *limit.Dim, now int64) quotaUse {
	last := g.seen.lookup(d.Key)
	g.mu.Lock()
	r, found := g.recalled.uses[d.Key]
	if g.recalled.outage != g.outage {
		r.local = 0
	}
	asked := g.recalled.rules[d.Rule] && now-g.recalled.time.UnixMilli() < recallLife.Milliseconds()
	g.mu.Unlock()
	if found && r.begin != d.BeginMs {
		r = quotaUse{} // of another period
	}
	if last.ms == 0 && !found && !asked {
		return quotaUse{used: d.Limit - d.Limit/unknownPart}
	}
	if last.begin < d.BeginMs {
		last.used = 0 // nothing was used of this period when it was seen
	}
	r.used = max(r.used, last.used+r.local)
	return r
}

package redislimit

import (
	"context"
	"fmt"
	"time"

	"tidegate/admission/limit"
)

// recalled is a reading of quotas from a ledger; zero where there was none.
type recalled struct {
	time   time.Time
	outage int64               // outage in which the ledger was read
	uses   map[string]quotaUse // by counter
	rules  map[string]bool     // quotas that the ledger counts for all their subjects
}

// quotaUse is the use of one quota in a period, in the quota's unit.
type quotaUse struct {
	begin int64 // begin of the period, in milliseconds since 1970
	used  int64 // use by all replicas, including this one's since it has been alone
	local int64 // use by this replica since it has been alone, when the ledger was read
}

// Recall sets what a ledger knows of quotas. Of those in counted it knows all that was
// used: a counter that is not among them was not used in the running period. While Redis is
// not asked, what remains is worked out from it, so that quotas are known as soon as
// the ledger was read, and go on counting for all replicas.
func (g *Guarded) Recall(counted []string, records []limit.Recorded) {
	next := recalled{time: g.opts.Now(), outage: g.link.outageNumber(), uses: make(map[string]quotaUse, len(records)), rules: map[string]bool{}}
	for _, rule := range counted {
		next.rules[rule] = true
	}
	for i := range records {
		r := &records[i]
		next.uses[r.Dim.Key] = quotaUse{begin: r.Dim.BeginMs, used: r.Used, local: g.localUse(r.Dim, next.outage)}
	}
	g.recalls.set(next)
}

// outageSuffix ends the key of a quota's counter of one outage.
func outageSuffix(outage int64) string { return fmt.Sprintf("#%d", outage) }

// localUse returns the amount of a quota that this replica has settled since it has been alone.
func (g *Guarded) localUse(d limit.Dim, outage int64) int64 {
	d.Key += outageSuffix(outage)
	d.Cost = 0
	found, err := g.shadow.Reserve(context.Background(), limit.Reservation{Dims: []limit.Dim{d}, Peek: true, Settled: true})
	if err != nil {
		return 0
	}
	return found.States[0].Used
}

// knownUse returns the known use of a quota: by Redis until this replica was alone, or by the
// ledger since. The larger counts: Redis also knew of what was running, and the ledger knows
// of other replicas.
func (g *Guarded) knownUse(d *limit.Dim, now int64) quotaUse {
	last := g.seen.lookup(d.Key)
	ledger := g.recalls.get()
	r, found := ledger.uses[d.Key]
	if ledger.outage != g.link.outageNumber() {
		r.local = 0
	}
	ledgerKnows := ledger.rules[d.Rule] && now-ledger.time.UnixMilli() < recallLife.Milliseconds()
	if found && r.begin != d.BeginMs {
		r = quotaUse{} // of another period
	}
	if last.ms == 0 && !found && !ledgerKnows {
		return quotaUse{used: d.Limit - d.Limit/unknownPart}
	}
	if last.begin < d.BeginMs {
		last.used = 0 // nothing was used of this period when it was seen
	}
	r.used = max(r.used, last.used+r.local)
	return r
}

package limit

import (
	"context"
	"hash/maphash"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
)

const (
	shardCount = 64 // the bits of a lock set
	// maxCounters bounds the counters of one shard, two million in all. Above it, a window
	// that is soon idle makes room.
	maxCounters = 1 << 15
	// looks is the number of other entries that each new entry of a shard checks for one to
	// forget. With it no more than about a quarter of a shard is idle.
	looks = 4
)

// Memory is the store of a gateway that has no replicas. Its counters are spread over shards.
// A decision holds the locks of all shards it touches, acquired in their order. Idle counters
// are forgotten, a few with each new entry and all with Renew.
type Memory struct {
	now    func() time.Time
	latest atomic.Int64 // latest time; the clock does not go back
	seed   maphash.Seed
	second maphash.Seed // seed of the second half of fingerprints
	bound  int          // counters of a shard, at most
	shards [shardCount]shard
}

type shard struct {
	sync.Mutex
	cells   map[string]*counted
	records map[string]*record // reservations that may still be settled
	settled settledIDs
	peak    int // largest number of cells since the map was made
}

// counted is a counter of a shard.
type counted struct {
	cell
	forget int64 // time at which it is idle, as far as is known; the cell itself may know better
}

// record is a reservation that is not settled.
type record struct {
	reaped bool  // its lease ended, and it was charged what was known of it
	ends   int64 // end of the lease; of a reaped one the time at which it is forgotten
	dims   []Dim
	parts  []part  // by dimension
	room   [5]part // storage of parts, where it is enough
}

func newRecord(dims []Dim, ends int64) *record {
	r := &record{ends: ends, dims: dims}
	if len(dims) <= len(r.room) {
		r.parts = r.room[:len(dims)]
	} else {
		r.parts = make([]part, len(dims))
	}
	return r
}

// NewMemory returns an empty store.
func NewMemory(now func() time.Time) *Memory {
	m := &Memory{now: now, seed: maphash.MakeSeed(), second: maphash.MakeSeed(), bound: maxCounters}
	for i := range m.shards {
		m.shards[i].cells, m.shards[i].records = map[string]*counted{}, map[string]*record{}
	}
	return m
}

func (m *Memory) clock() int64 {
	now := m.now().UnixMilli()
	for {
		latest := m.latest.Load()
		if now <= latest {
			return latest
		}
		if m.latest.CompareAndSwap(latest, now) {
			return now
		}
	}
}

// held is the set of shards that a call has locked: those of its dimensions and of its record.
type held struct {
	m      *Memory
	set    uint64
	record *shard
	id     fingerprint
	room   [24]uint8
	cells  []uint8 // shard of each dimension
	paid   Dim     // scratch of stateWithoutCost, whose copies would be garbage
}

func (m *Memory) shardOf(key string) uint8 {
	return uint8(maphash.String(m.seed, key) % shardCount)
}

func (m *Memory) lock(h *held, id string, dims []Dim) {
	h.m, h.cells = m, h.room[:0]
	for i := range dims {
		n := m.shardOf(dims[i].Key)
		h.cells = append(h.cells, n)
		h.set |= 1 << n
	}
	h.id = fingerprint{maphash.String(m.seed, id), maphash.String(m.second, id)}
	n := h.id[0] % shardCount
	h.record = &m.shards[n]
	h.set |= 1 << n
	for s := h.set; s != 0; s &= s - 1 {
		m.shards[bits.TrailingZeros64(s)].Lock()
	}
}

func (h *held) unlock() {
	for s := h.set; s != 0; s &= s - 1 {
		h.m.shards[bits.TrailingZeros64(s)].Unlock()
	}
}

// cell returns a dimension's counter, or nil.
func (h *held) cell(i int, d *Dim) *counted { return h.m.shards[h.cells[i]].cells[d.Key] }

// quota returns that counter where it is a quota's, else nil.
func (h *held) quota(i int, d *Dim) *quota {
	if c := h.cell(i, d); c != nil {
		q, _ := c.cell.(*quota)
		return q
	}
	return nil
}

// open returns a dimension's counter, and makes it where there is none.
func (h *held) open(i int, d *Dim, now int64) *counted {
	s := &h.m.shards[h.cells[i]]
	c := s.cells[d.Key]
	if c == nil {
		s.makeRoom(now, h.m.bound)
		c = &counted{cell: newCell(d.Kind)}
		s.cells[d.Key] = c
		s.peak = max(s.peak, len(s.cells))
	}
	return c
}

// touch delays the forgetting of a counter that was charged.
func (c *counted) touch(d *Dim, now int64) {
	if w, ok := c.cell.(*window); ok {
		c.forget = max(c.forget, now+d.WindowMs)
		if owed := w.owed(now); owed > 0 {
			c.forget = max(c.forget, now+ceilDiv(owed, w.debtRate))
		}
	}
}

func (c *counted) idle(now int64) bool { return now >= max(c.forget, c.idleAt()) }

func (h *held) states(dims []Dim, now int64) []State {
	out := make([]State, len(dims))
	for i := range dims {
		out[i] = h.state(i, &dims[i], now)
	}
	return out
}

func (h *held) state(i int, d *Dim, now int64) State {
	if c := h.cell(i, d); c != nil {
		return c.check(d, now)
	}
	return untouched(d, now)
}

// untouched returns the state of a dimension that has no counter.
func untouched(d *Dim, now int64) State {
	switch d.Kind {
	case Lease:
		return (&leases{}).check(d, now)
	case Quota:
		return (&quota{}).check(d, now)
	}
	return (&window{}).check(d, now)
}

// Reserve implements Store.
func (m *Memory) Reserve(_ context.Context, r Reservation) (Decision, error) {
	now := m.clock()
	var h held
	m.lock(&h, r.ID, r.Dims)
	defer h.unlock()
	if r.Peek {
		states := h.states(r.Dims, now)
		for i := range states {
			if q := h.quota(i, &r.Dims[i]); q != nil && r.Settled {
				states[i] = q.settled().check(&r.Dims[i], now)
			}
		}
		return Decide(r.Dims, states), nil
	}
	if h.known(r.ID, now) {
		return Decision{Allowed: true, Repeated: true, Binding: -1, States: h.statesAfter(r.Dims, now)}, nil
	}
	states := h.states(r.Dims, now)
	out := Decide(r.Dims, states)
	if !out.Allowed {
		return out, nil
	}
	h.charge(r, states, now)
	return out, nil
}

// Note charges a request that another store has admitted, whether or not it fits here; out is
// that store's decision. So a Memory is kept in step with a store that may be lost. It returns
// the states of its own counters afterwards.
func (m *Memory) Note(r Reservation, out Decision) []State {
	now := m.clock()
	var h held
	m.lock(&h, r.ID, r.Dims)
	defer h.unlock()
	if !h.known(r.ID, now) {
		h.charge(r, append([]State(nil), out.States...), now)
	}
	return h.statesAfter(r.Dims, now)
}

// known reports whether the request of the call was admitted before.
func (h *held) known(id string, now int64) bool {
	r := h.record.records[id]
	return r != nil && !r.forgotten(now) || h.record.settled.contains(h.id, now)
}

// charge makes the reservation of an admitted request, and brings the states up to date.
func (h *held) charge(r Reservation, states []State, now int64) {
	ends := now + LeaseLife.Milliseconds()
	rec := newRecord(r.Dims, ends)
	for i := range r.Dims {
		d := &r.Dims[i]
		if states[i].Exceeded { // soft
			rec.parts[i].skipped = true
			continue
		}
		c := h.open(i, d, now)
		rec.parts[i] = c.charge(d, r.ID, now, ends)
		c.touch(d, now)
		states[i] = h.stateWithoutCost(i, d, now)
	}
	h.record.makeRecordRoom(now)
	h.record.records[r.ID] = rec
}

// stateWithoutCost returns the state of a dimension that asks for nothing more.
func (h *held) stateWithoutCost(i int, d *Dim, now int64) State {
	h.paid = *d
	h.paid.Cost = 0
	return h.state(i, &h.paid, now)
}

func (h *held) statesAfter(dims []Dim, now int64) []State {
	out := make([]State, len(dims))
	for i := range dims {
		out[i] = h.stateWithoutCost(i, &dims[i], now)
	}
	return out
}

func withoutCost(dims []Dim) []Dim {
	out := append([]Dim(nil), dims...)
	for i := range out {
		out[i].Cost = 0
	}
	return out
}

// Settle implements Store.
func (m *Memory) Settle(_ context.Context, s Settlement) (Settled, error) {
	if len(s.Dims) != len(s.Charges) {
		return Settled{}, ErrDims
	}
	now := m.clock()
	var h held
	m.lock(&h, s.ID, s.Dims)
	defer h.unlock()
	rec := h.record.records[s.ID]
	if rec != nil && rec.forgotten(now) {
		rec = nil
	}
	switch {
	case rec == nil && s.New && !h.record.settled.contains(h.id, now):
		rec = newRecord(s.Dims, 0)
		for i := range s.Dims {
			rec.parts[i].chargedAt, rec.parts[i].ageMs = unknownTime, max(s.AgeMs, 0)
		}
	case rec == nil:
		return Settled{States: h.statesAfter(s.Dims, now)}, nil
	case len(rec.parts) != len(s.Dims):
		return Settled{}, ErrDims
	}
	h.settle(rec, s.ID, s.Dims, s.Charges, now)
	delete(h.record.records, s.ID)
	h.record.settled.add(h.id, now)
	return Settled{Applied: true, States: h.statesAfter(s.Dims, now)}, nil
}

// charged bounds the charge of one request on one counter.
func charged(n int64) int64 { return min(max(n, 0), MaxCharge) }

// unknownTime is before any reservation.
const unknownTime = -1

// settle brings the charges of a reservation to their final values and ends its leases.
func (h *held) settle(rec *record, id string, dims []Dim, charges []int64, now int64) {
	for i := range dims {
		d, p := &dims[i], &rec.parts[i]
		if p.skipped {
			continue
		}
		if q := h.quota(i, d); q != nil && !rec.reaped {
			q.hold(p, -p.charged)
		}
		h.adjust(i, d, p, charged(charges[i]), now)
		if c := h.cell(i, d); c != nil {
			c.release(id)
		}
	}
}

// adjust brings one charge of a reservation to its new value.
func (h *held) adjust(i int, d *Dim, p *part, charge, now int64) {
	delta := charge - p.charged
	p.charged = charge
	if delta == 0 || d.Kind == Lease {
		return
	}
	c := h.cell(i, d)
	if c == nil {
		if delta < 0 {
			return // the counter of the refund was forgotten
		}
		c = h.open(i, d, now)
	}
	c.adjust(d, p, delta, now)
	c.touch(d, now)
}

// Renew implements Store.
func (m *Memory) Renew(_ context.Context, renewals []Renewal) (lost []string, err error) {
	now := m.clock()
	for i := range renewals {
		if len(renewals[i].Charges) != 0 && len(renewals[i].Charges) != len(renewals[i].Dims) {
			return nil, ErrDims
		}
		if !m.renew(&renewals[i], now) {
			lost = append(lost, renewals[i].ID)
		}
	}
	for i := range m.shards {
		for id, dims := range m.shards[i].sweep(now) {
			m.reap(id, dims, now)
		}
	}
	return lost, nil
}

func (m *Memory) renew(r *Renewal, now int64) bool {
	var h held
	m.lock(&h, r.ID, r.Dims)
	defer h.unlock()
	rec := h.record.records[r.ID]
	if rec == nil || rec.reaped || rec.ends <= now || len(rec.parts) != len(r.Dims) {
		return false
	}
	rec.ends = now + LeaseLife.Milliseconds()
	for i := range r.Dims {
		d, p := &r.Dims[i], &rec.parts[i]
		if p.skipped {
			continue
		}
		if len(r.Charges) > 0 {
			charge := charged(r.Charges[i])
			p.floor = max(p.floor, charge)
			previous := p.charged
			h.adjust(i, d, p, max(p.charged, charge), now)
			if q := h.quota(i, d); q != nil {
				q.hold(p, p.charged-previous)
			}
		}
		if c := h.cell(i, d); c != nil {
			c.renew(r.ID, now, rec.ends)
		}
	}
	return true
}

// reap settles a reservation whose time is over with what is known of it.
func (m *Memory) reap(id string, dims []Dim, now int64) {
	var h held
	m.lock(&h, id, dims)
	defer h.unlock()
	rec := h.record.records[id]
	if rec == nil || rec.reaped || rec.ends > now {
		return
	}
	charges := make([]int64, len(rec.parts))
	for i := range rec.parts {
		charges[i] = rec.parts[i].floor
	}
	h.settle(rec, id, rec.dims, charges, now)
	rec.reaped, rec.ends = true, now+ReapedLife.Milliseconds()
}

func (r *record) forgotten(now int64) bool { return r.reaped && r.ends <= now }

package device

import (
	"cmp"
	"errors"
	"slices"
	"time"

	"tidegate/nvml"
)

// slot is what is known of one GPU. It outlives generations: a GPU that a new one
// does not find is lost, not forgotten.
type slot struct {
	id       Identity
	readings []nvml.Reading // of the last whole sweep
	sampled  time.Time      // when that sweep, or knowing the GPU, began
	sweep    uint64         // its number; 0: none was whole
	began    time.Time      // of the sweep in flight; zero: none is
	took     time.Duration  // of the last sweep
	read     bool           // in this generation
	lost     bool
	xids     []xid // oldest first
}

type xid struct {
	code uint64
	at   time.Time
}

// Report says what is known now. It waits for nothing but other reports.
func (s *Sampler) Report() nvml.Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seq++
	now := time.Now()
	r := nvml.Report{Node: s.config.Node, BootID: s.boot, Seq: s.seq, Driver: s.driver, Error: s.fault, GPUs: []nvml.Reading{}}
	for _, sl := range s.slots {
		r.GPUs = append(r.GPUs, sl.report(now, s.config.Wedge)...)
	}
	return r
}

func (sl *slot) report(now time.Time, wedge time.Duration) []nvml.Reading {
	readings := sl.readings
	if len(readings) == 0 {
		readings = []nvml.Reading{{Index: sl.id.Index, UUID: sl.id.UUID, Name: sl.id.Name}}
	}
	out := slices.Clone(readings)
	for i := range out {
		r := &out[i]
		switch {
		case sl.lost:
			r.State = nvml.StateLost
		case sl.isWedged(now, wedge):
			r.State = nvml.StateWedged
		case r.State == "":
			r.State = nvml.StateOK
		}
		r.AgeMs, r.Sweep = now.Sub(sl.sampled).Milliseconds(), sl.sweep
		r.LatencyUs = sl.took.Microseconds()
		for _, x := range sl.xids {
			r.XIDs = append(r.XIDs, nvml.XID{Code: x.code, AgeMs: now.Sub(x.at).Milliseconds(), Fatal: nvml.FatalXID(x.code)})
		}
	}
	return out
}

func (sl *slot) isWedged(now time.Time, wedge time.Duration) bool {
	return !sl.began.IsZero() && now.Sub(sl.began) > wedge
}

// failed notes that there is nothing to be read.
func (s *Sampler) failed(err error) {
	s.mu.Lock()
	again := s.fault == err.Error()
	s.fault = err.Error()
	s.mu.Unlock()
	if !again {
		s.log.Error("NVML cannot be used", "error", err)
	}
}

// adopt begins a generation: it gives each GPU of the inventory its slot, and
// marks those lost that were known and are not found. Where a driver does not tell
// a UUID the index says which GPU it is.
func (s *Sampler) adopt(inventory Inventory) []*slot {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.driver, s.fault = inventory.Driver, ""
	if len(inventory.GPUs) == 0 && len(s.slots) == 0 {
		s.fault = "the driver has no GPUs"
	}
	known, slots := slices.Clone(s.slots), make([]*slot, len(inventory.GPUs))
	take := func(i int, fits func(k, id Identity) bool) {
		id := inventory.GPUs[i].Identity()
		at := slices.IndexFunc(known, func(k *slot) bool { return slots[i] == nil && fits(k.id, id) })
		if at >= 0 {
			slots[i] = known[at]
			known = slices.Delete(known, at, at+1)
		}
	}
	for i := range slots {
		take(i, func(k, id Identity) bool { return k.UUID != "" && k.UUID == id.UUID })
	}
	for i, g := range inventory.GPUs {
		take(i, func(k, id Identity) bool { return k.Index == id.Index && (k.UUID == "" || id.UUID == "") })
		if slots[i] == nil {
			slots[i] = &slot{sampled: time.Now()}
		}
		id := g.Identity()
		slots[i].id = Identity{id.Index, cmp.Or(id.UUID, slots[i].id.UUID), cmp.Or(id.Name, slots[i].id.Name)}
		slots[i].read = false
	}
	for _, k := range known {
		k.lost, k.read = true, false
	}
	s.slots = append(slices.Clone(slots), known...)
	s.log.Info("NVML initialised", "driver", s.driver, "gpus", len(slots), "missing", len(known))
	return slots
}

// missing reports whether there is something to look for: a GPU that is lost, or
// any at all.
func (s *Sampler) missing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.slots) == 0 || slices.ContainsFunc(s.slots, func(sl *slot) bool { return sl.lost })
}

func (s *Sampler) wedged() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	return slices.ContainsFunc(s.slots, func(sl *slot) bool { return sl.isWedged(now, s.config.Wedge) })
}

func (s *Sampler) anyRead(slots []*slot) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(slots, func(sl *slot) bool { return sl.read })
}

// begin notes that a sweep is in flight.
func (s *Sampler) begin(sl *slot, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sl.began = now
}

// name puts what the driver failed to tell this time into the readings, and keeps
// what it tells now and did not before.
func (sl *slot) name(readings []nvml.Reading) {
	sl.id.UUID = cmp.Or(sl.id.UUID, readings[0].UUID)
	for i := range readings {
		if r := &readings[i]; i == 0 {
			r.UUID, r.Name = cmp.Or(r.UUID, sl.id.UUID), cmp.Or(r.Name, sl.id.Name)
		} else {
			r.Parent = sl.id.UUID
		}
	}
}

// end takes over what a sweep gave. Its age counts from the sweep's beginning: a
// value read before a call that hung is as old as that.
func (s *Sampler) end(sl *slot, began time.Time, readings []nvml.Reading, err error) {
	s.mu.Lock()
	was := sl.lost
	took := time.Since(began)
	sl.began, sl.took = time.Time{}, took
	switch {
	case err == nil:
		sl.name(readings)
		sl.readings, sl.sampled, sl.read = readings, began, true
		sl.sweep++
		if sl.lost {
			// Nothing but a reset brings it back, and a reset is what its errors
			// asked for.
			sl.lost, sl.xids = false, nil
		}
	case errors.Is(err, ErrLost):
		sl.lost = true
	}
	lost, id, wedge := sl.lost, sl.id, s.config.Wedge
	s.mu.Unlock()
	switch {
	case lost && !was:
		s.log.Error("GPU lost", "gpu", id.Index, "uuid", id.UUID, "error", err)
	case was && !lost:
		s.log.Info("GPU back", "gpu", id.Index, "uuid", id.UUID)
	case took > wedge:
		s.log.Warn("GPU answers again after it was wedged", "gpu", id.Index, "uuid", id.UUID, "took", took)
	}
}

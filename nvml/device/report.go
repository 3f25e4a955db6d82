package device

import (
	"cmp"
	"errors"
	"slices"
	"time"

	"tidegate/nvml"
)

// slot is the state of one GPU. It outlives generations: a GPU that a new one does not find is
// lost, not forgotten.
type slot struct {
	id        Identity
	readings  []nvml.Reading // readings of the last complete sweep
	sampled   time.Time      // start of that sweep; before the first, time of the discovery
	sweep     uint64         // number of that sweep; 0: there was none
	startedAt time.Time      // start of the sweep in flight; zero: there is none
	took      time.Duration  // duration of the last sweep
	read      bool           // it was read in this generation
	lost      bool
	xids      []xid // oldest first
}

type xid struct {
	code   uint64
	seenAt time.Time
}

// Report returns the last readings with their current ages. It never waits for the driver.
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
			r.XIDs = append(r.XIDs, nvml.XID{Code: x.code, AgeMs: now.Sub(x.seenAt).Milliseconds(), Fatal: nvml.FatalXID(x.code)})
		}
	}
	return out
}

func (sl *slot) isWedged(now time.Time, wedge time.Duration) bool {
	return !sl.startedAt.IsZero() && now.Sub(sl.startedAt) > wedge
}

// setFault records an error for which no GPU can be read.
func (s *Sampler) setFault(err error) {
	s.mu.Lock()
	repeated := s.fault == err.Error()
	s.fault = err.Error()
	s.mu.Unlock()
	if !repeated {
		s.log.Error("NVML cannot be used", "error", err)
	}
}

// adopt begins a generation: it assigns a slot to each GPU of the inventory, and marks known
// GPUs that are missing as lost. Where a driver gives no UUID, the index identifies the GPU.
func (s *Sampler) adopt(inventory Inventory) []*slot {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.driver, s.fault = inventory.Driver, ""
	if len(inventory.GPUs) == 0 && len(s.slots) == 0 {
		s.fault = "the driver has no GPUs"
	}
	known, slots := slices.Clone(s.slots), make([]*slot, len(inventory.GPUs))
	assign := func(i int, matches func(k, id Identity) bool) {
		id := inventory.GPUs[i].Identity()
		j := slices.IndexFunc(known, func(k *slot) bool { return slots[i] == nil && matches(k.id, id) })
		if j >= 0 {
			slots[i] = known[j]
			known = slices.Delete(known, j, j+1)
		}
	}
	for i := range slots {
		assign(i, func(k, id Identity) bool { return k.UUID != "" && k.UUID == id.UUID })
	}
	for i, g := range inventory.GPUs {
		assign(i, func(k, id Identity) bool { return k.Index == id.Index && (k.UUID == "" || id.UUID == "") })
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

// missing reports whether a search is due: for a lost GPU, or for any where none is known.
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

// begin records that a sweep is in flight.
func (s *Sampler) begin(sl *slot, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sl.startedAt = now
}

// fillNames adds names and UUIDs that the driver failed to give this time, and keeps new ones.
func (sl *slot) fillNames(readings []nvml.Reading) {
	sl.id.UUID = cmp.Or(sl.id.UUID, readings[0].UUID)
	for i := range readings {
		if r := &readings[i]; i == 0 {
			r.UUID, r.Name = cmp.Or(r.UUID, sl.id.UUID), cmp.Or(r.Name, sl.id.Name)
		} else {
			r.Parent = sl.id.UUID
		}
	}
}

// end records the result of a sweep. Its age counts from the start of the sweep, since a value
// that was read before a call that hung is as old as that.
func (s *Sampler) end(sl *slot, began time.Time, readings []nvml.Reading, err error) {
	s.mu.Lock()
	wasLost := sl.lost
	took := time.Since(began)
	sl.startedAt, sl.took = time.Time{}, took
	switch {
	case err == nil:
		sl.fillNames(readings)
		sl.readings, sl.sampled, sl.read = readings, began, true
		sl.sweep++
		if sl.lost {
			// Only a reset brings a GPU back, and a reset clears its errors.
			sl.lost, sl.xids = false, nil
		}
	case errors.Is(err, ErrLost):
		sl.lost = true
	}
	lost, id, wedge := sl.lost, sl.id, s.config.Wedge
	s.mu.Unlock()
	switch {
	case lost && !wasLost:
		s.log.Error("GPU lost", "gpu", id.Index, "uuid", id.UUID, "error", err)
	case wasLost && !lost:
		s.log.Info("GPU back", "gpu", id.Index, "uuid", id.UUID)
	case took > wedge:
		s.log.Warn("GPU answers again after it was wedged", "gpu", id.Index, "uuid", id.UUID, "took", took)
	}
}

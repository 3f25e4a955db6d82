package limit

// makeRoom forgets some idle counters before another one is added, and one that is not idle
// where there are too many. Iteration of a map begins at a random place, so every counter is
// looked at in time.
func (s *shard) makeRoom(now int64, bound int) {
	looked, victim, soonest := 0, "", int64(farFuture)
	for key, c := range s.cells {
		if c.idle(now) {
			delete(s.cells, key)
		} else if _, ok := c.cell.(*window); ok && c.forget < soonest {
			victim, soonest = key, c.forget
		}
		if looked++; looked == looks {
			break
		}
	}
	if len(s.cells) >= bound && victim != "" {
		delete(s.cells, victim)
	}
}

// makeRecordRoom forgets some old ids before another one is added.
func (s *shard) makeRecordRoom(now int64) {
	looked := 0
	for id, r := range s.records {
		if r.forgotten(now) {
			delete(s.records, id)
		}
		if looked++; looked == looks {
			break
		}
	}
}

// sweep forgets all that is idle, and returns the reservations to reap. A map that has become
// much too large is made anew: maps do not shrink.
func (s *shard) sweep(now int64) map[string][]Dim {
	s.Lock()
	defer s.Unlock()
	var dead map[string][]Dim
	for id, r := range s.records {
		switch {
		case r.forgotten(now):
			delete(s.records, id)
		case r.ends <= now:
			if dead == nil {
				dead = map[string][]Dim{}
			}
			dead[id] = r.dims
		}
	}
	s.settled.rotate(now)
	for key, c := range s.cells {
		if c.idle(now) {
			delete(s.cells, key)
		}
	}
	if s.peak > 1024 && len(s.cells) < s.peak/4 {
		kept := make(map[string]*counted, len(s.cells))
		for key, c := range s.cells {
			kept[key] = c
		}
		s.cells, s.peak = kept, len(kept)
	}
	return dead
}

// Size returns the number of counters that a Memory keeps, and of reservations with the
// remembered ids.
func (m *Memory) Size() (counters, reservations int) {
	for i := range m.shards {
		s := &m.shards[i]
		s.Lock()
		counters += len(s.cells)
		reservations += len(s.records) + s.settled.size()
		s.Unlock()
	}
	return counters, reservations
}

package limit

// settledIDs remembers for SettledLife which reservations were settled. A busy gateway settles
// some million in that time, so an entry is two hashes of the id and a time, and no pointer
// that the garbage collector must follow. Two ids share both hashes once in 2^128 pairs. It is
// guarded by the lock of its shard.
type settledIDs struct {
	young, old map[fingerprint]int64 // expiry of each id, in milliseconds since 1970
	rotateAt   int64                 // time at which all of old is forgotten, in milliseconds since 1970
}

// fingerprint identifies an id by two hashes.
type fingerprint [2]uint64

// add remembers an id from now on.
func (s *settledIDs) add(id fingerprint, now int64) {
	s.rotate(now)
	if s.young == nil {
		s.young = map[fingerprint]int64{}
	}
	s.young[id] = now + SettledLife.Milliseconds()
}

// contains reports whether an id is remembered.
func (s *settledIDs) contains(id fingerprint, now int64) bool {
	expiry, ok := s.young[id]
	if !ok {
		expiry = s.old[id]
	}
	return expiry > now
}

// rotate forgets what was added before the last rotation, of which the youngest is a life old.
func (s *settledIDs) rotate(now int64) {
	if now < s.rotateAt {
		return
	}
	life := SettledLife.Milliseconds()
	s.old, s.young = s.young, nil
	if now >= s.rotateAt+life {
		s.old = nil
	}
	s.rotateAt = now + life
}

// size returns how many ids are kept, some of which may be past their time.
func (s *settledIDs) size() int { return len(s.young) + len(s.old) }

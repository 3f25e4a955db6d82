package account

import (
	"context"
	"errors"
	"sync"
	"time"
)

// running are the requests under way, by the key they began with, so that they can be
// ended when it is not good any more. It is safe for concurrent use.
type running struct {
	mu    sync.Mutex
	holds map[*hold]struct{}
	file  map[hash]Identity // keys of the configuration in force; nil: none is needed, or none is in force yet
}

// hold is one request under way.
type hold struct {
	id  Identity
	cut context.CancelCauseFunc
}

func newRunning() *running { return &running{holds: map[*hold]struct{}{}} }

// add takes in a request that begins now; one with a key that is not in the
// configuration any more ends at once.
func (r *running) add(h *hold, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holds[h] = struct{}{}
	if err := r.lost(&h.id, now); err != nil {
		h.cut(err)
	}
}

// lost says why a request is to end whose key is not in the configuration in force; nil:
// it is there, or is a key of the store. r.mu is held.
func (r *running) lost(id *Identity, now time.Time) error {
	if _, ok := r.file[id.sum]; ok || id.KeyID != "" || r.file == nil {
		return nil
	}
	return &KeyError{State: KeyRevoked, Since: now, Key: id.Key, User: id.User}
}

// enforce takes over the keys of a configuration, and ends the requests with others.
func (r *running) enforce(file map[hash]Identity, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.file = file
	r.cutLocked(func(id *Identity) error { return r.lost(id, now) })
}

func (r *running) remove(h *hold) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.holds, h)
}

// cutLocked ends those requests of which the function says why; r.mu is held.
func (r *running) cutLocked(fault func(*Identity) error) {
	for h := range r.holds {
		if err := fault(&h.id); err != nil {
			h.cut(err)
		}
	}
}

// keys lists the ids of the store's keys in use of which there is no record.
func (r *running) keys(records map[hash]*record) (ids []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.keysLocked(records)
}

// keysLocked is keys where r.mu is held.
func (r *running) keysLocked(records map[hash]*record) (ids []string) {
	for h := range r.holds {
		if records[h.id.sum] == nil && h.id.KeyID != "" {
			ids = append(ids, h.id.KeyID)
		}
	}
	return ids
}

// owners are names of departments, projects and users: after an import thousands, which
// all keys in memory are held against.
type owners map[owner]struct{}

type owner struct {
	kind Kind
	name string
}

func (o owners) have(id *Identity) bool {
	for _, its := range [...]owner{{UserKind, id.User}, {ProjectKind, id.Project}, {DepartmentKind, id.Department}} {
		if _, ok := o[its]; ok {
			return true
		}
	}
	return false
}

// Follow returns a context for a request that goes on under an identity which Identify
// gave. It ends with a *KeyError as its cause when the key is revoked or disabled, by any
// replica, or is taken out of the configuration; that a key expires ends only what
// begins afterwards. The function must be called when the request has ended.
func (d *Directory) Follow(ctx context.Context, id *Identity) (context.Context, func()) {
	if id.sum == (hash{}) || d.config.Mode != Keys {
		return ctx, func() {} // no key, or none is needed
	}
	within, cancel := context.WithCancelCause(ctx)
	h := &hold{id: *id, cut: cancel}
	d.running.add(h, d.now())
	if id.KeyID != "" && d.store.changes() != id.seq {
		// The change may be this key's, which was not followed yet.
		if r, _, err := d.store.find(ctx, id.sum, d.now(), 0); err == nil {
			if err := r.ended(id, d.now()); err != nil {
				cancel(err)
			}
		}
	}
	return within, func() {
		d.running.remove(h)
		cancel(nil)
	}
}

// Enforce puts the directory in force, also in the place of another: requests under way
// with keys that are not in this configuration any more end.
func (d *Directory) Enforce() {
	if d.store != nil {
		d.store.expiry.setWarn(d.config.ExpiryWarn)
	}
	if d.config.Mode != Keys {
		d.running.enforce(nil, d.now())
		return
	}
	d.running.enforce(d.keys, d.now())
}

// ended says why a request that began under an identity is to end; nil: it goes on, also
// where the key has expired when it was to.
func (r *record) ended(id *Identity, now time.Time) error {
	err := r.standing(now)
	if known := (*KeyError)(nil); errors.As(err, &known) && known.State == KeyExpired && id.Expires.Equal(r.id.Expires) {
		return nil
	}
	return err
}

// changes is the count of changes that this replica has taken over.
func (s *Store) changes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seq
}

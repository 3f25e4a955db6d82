package account

import (
	"context"
	"errors"
	"sync"
	"time"
)

// running are the requests under way, by the key they began with, so that they can be
// ended when it is not good any more. It is safe for concurrent use.
type runningRequests struct {
	mu         sync.Mutex
	requests   map[*runningRequest]struct{}
	configured map[hash]Identity // keys of the configuration in force; nil: none is needed, or none is in force yet
}

// hold is one request under way.
type runningRequest struct {
	id     Identity
	cancel context.CancelCauseFunc
}

func newRunningRequests() *runningRequests {
	return &runningRequests{requests: map[*runningRequest]struct{}{}}
}

// add takes in a request that begins now; one with a key that is not in the
// configuration any more ends at once.
func (r *runningRequests) add(h *runningRequest, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests[h] = struct{}{}
	if err := r.checkConfigured(&h.id, now); err != nil {
		h.cancel(err)
	}
}

// lost says why a request is to end whose key is not in the configuration in force; nil:
// it is there, or is a key of the store. r.mu is held.
func (r *runningRequests) checkConfigured(id *Identity, now time.Time) error {
	if _, ok := r.configured[id.sum]; ok || id.KeyID != "" || r.configured == nil {
		return nil
	}
	return &KeyError{State: KeyRevoked, Time: now, Key: id.Key, User: id.User}
}

// enforce takes over the keys of a configuration, and ends the requests with others.
func (r *runningRequests) enforce(configured map[hash]Identity, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.configured = configured
	r.cancelLocked(func(id *Identity) error { return r.checkConfigured(id, now) })
}

func (r *runningRequests) remove(h *runningRequest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.requests, h)
}

// cutLocked ends those requests of which the function says why; r.mu is held.
func (r *runningRequests) cancelLocked(check func(*Identity) error) {
	for h := range r.requests {
		if err := check(&h.id); err != nil {
			h.cancel(err)
		}
	}
}

// keys lists the ids of the store's keys in use of which there is no record.
func (r *runningRequests) missing(records map[hash]*record) (ids []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.missingLocked(records)
}

// keysLocked is keys where r.mu is held.
func (r *runningRequests) missingLocked(records map[hash]*record) (ids []string) {
	for h := range r.requests {
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

func (o owners) match(id *Identity) bool {
	for _, candidate := range [...]owner{{UserKind, id.User}, {ProjectKind, id.Project}, {DepartmentKind, id.Department}} {
		if _, ok := o[candidate]; ok {
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
	runCtx, cancel := context.WithCancelCause(ctx)
	h := &runningRequest{id: *id, cancel: cancel}
	d.running.add(h, d.now())
	if id.KeyID != "" && d.store.currentSeq() != id.seq {
		// The change may be this key's, which was not followed yet.
		if r, _, err := d.store.find(ctx, id.sum, d.now(), 0); err == nil {
			if err := r.endCause(id, d.now()); err != nil {
				cancel(err)
			}
		}
	}
	return runCtx, func() {
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
func (r *record) endCause(id *Identity, now time.Time) error {
	err := r.validity(now)
	if known := (*KeyError)(nil); errors.As(err, &known) && known.State == KeyExpired && id.Expires.Equal(r.id.Expires) {
		return nil
	}
	return err
}

// changes is the count of changes that this replica has taken over.
func (s *Store) currentSeq() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seq
}

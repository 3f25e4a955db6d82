package account

import (
	"context"
	"errors"
	"sync"
	"time"
)

// runningRequests holds the requests under way, so that they can be cancelled when their
// key becomes invalid. It is safe for concurrent use.
type runningRequests struct {
	mu         sync.Mutex
	requests   map[*runningRequest]struct{}
	configured map[hash]Identity // keys of the configuration in force; nil if none is required, or none is in force yet
}

// runningRequest is one request under way.
type runningRequest struct {
	id     Identity
	cancel context.CancelCauseFunc
}

func newRunningRequests() *runningRequests {
	return &runningRequests{requests: map[*runningRequest]struct{}{}}
}

// add registers a request that begins now. It cancels one whose key has left the
// configuration.
func (r *runningRequests) add(h *runningRequest, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests[h] = struct{}{}
	if err := r.checkConfigured(&h.id, now); err != nil {
		h.cancel(err)
	}
}

// checkConfigured returns the error that ends a request whose key has left the
// configuration in force. It returns nil for keys of the store. The caller holds r.mu.
func (r *runningRequests) checkConfigured(id *Identity, now time.Time) error {
	if _, ok := r.configured[id.sum]; ok || id.KeyID != "" || r.configured == nil {
		return nil
	}
	return &KeyError{State: KeyRevoked, Time: now, Key: id.Key, User: id.User}
}

// enforce sets the keys of the configuration in force, and cancels the requests with
// others.
func (r *runningRequests) enforce(configured map[hash]Identity, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.configured = configured
	r.cancelLocked(func(id *Identity) error { return r.checkConfigured(id, now) })
}

// remove unregisters a request that has ended.
func (r *runningRequests) remove(h *runningRequest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.requests, h)
}

// cancelLocked cancels the requests for which check returns an error, with that as the
// cause. The caller holds r.mu.
func (r *runningRequests) cancelLocked(check func(*Identity) error) {
	for h := range r.requests {
		if err := check(&h.id); err != nil {
			h.cancel(err)
		}
	}
}

// missing lists the ids of the store's keys in use that have no record.
func (r *runningRequests) missing(records map[hash]*record) (ids []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.missingLocked(records)
}

// missingLocked does the work of missing. The caller holds r.mu.
func (r *runningRequests) missingLocked(records map[hash]*record) (ids []string) {
	for h := range r.requests {
		if records[h.id.sum] == nil && h.id.KeyID != "" {
			ids = append(ids, h.id.KeyID)
		}
	}
	return ids
}

// owners is a set of departments, projects and users. After an import it has thousands,
// and all keys in memory are matched against it.
type owners map[owner]struct{}

type owner struct {
	kind Kind
	name string
}

// match reports whether the set has the user, project or department of an identity.
func (o owners) match(id *Identity) bool {
	for _, candidate := range [...]owner{{UserKind, id.User}, {ProjectKind, id.Project}, {DepartmentKind, id.Department}} {
		if _, ok := o[candidate]; ok {
			return true
		}
	}
	return false
}

// Follow returns a context for a request that runs under an identity of Identify. The
// context ends with a *KeyError as its cause when any replica revokes or disables the key,
// or when the key leaves the configuration. A key that expires does not end requests under
// way. The caller must call the function when the request has ended.
func (d *Directory) Follow(ctx context.Context, id *Identity) (context.Context, func()) {
	if id.sum == (hash{}) || d.config.Mode != Keys {
		return ctx, func() {} // without a key, or in open mode
	}
	runCtx, cancel := context.WithCancelCause(ctx)
	h := &runningRequest{id: *id, cancel: cancel}
	d.running.add(h, d.now())
	if id.KeyID != "" && d.store.currentSeq() != id.seq {
		// A change since then may be of this key, which was not registered yet.
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

// Enforce puts the directory in force, in place of any other. Requests under way end if
// their keys are not in this configuration any more.
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

// endCause returns the error that ends a request under way; nil if it goes on, as it does
// when its key expires at the expected time.
func (r *record) endCause(id *Identity, now time.Time) error {
	err := r.validity(now)
	if known := (*KeyError)(nil); errors.As(err, &known) && known.State == KeyExpired && id.Expires.Equal(r.id.Expires) {
		return nil
	}
	return err
}

// currentSeq returns the last change that this replica has applied.
func (s *Store) currentSeq() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seq
}

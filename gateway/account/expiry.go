package account

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Parameters of the check for keys that expire soon.
const (
	expiryInterval    = time.Minute
	minExpiryInterval = 10 * time.Second // interval while keys change
	maxExpiring       = 100              // number of keys that are named
)

// Expiring holds the valid keys that end within expiry_warn. Keys with a successor, and
// keys that were created to live no longer than expiry_warn, are left out.
type Expiring struct {
	Count int   // number of such keys
	Keys  []Key // first of them to expire, at most 100
}

// expiryWatch remembers the keys that expire soon. It is safe for concurrent use.
type expiryWatch struct {
	mu       sync.Mutex
	warn     time.Duration        // lead of the warning before the end of a key; 0 for no warnings
	expiring Expiring             // result of the last check
	checked  time.Time            // time of the last check
	dirty    bool                 // set if a key has changed since
	warned   map[string]time.Time // logged ends of keys, by id of the key
}

// setWarn sets the lead of the warning before the end of a key.
func (w *expiryWatch) setWarn(warn time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.warn != warn {
		w.warn, w.checked = warn, time.Time{}
	}
}

// changed records that a key has changed.
func (w *expiryWatch) changed() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dirty = true
}

// due reports whether a check is due, and returns its lead.
func (w *expiryWatch) due(now time.Time) (warn time.Duration, due bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	elapsed := now.Sub(w.checked)
	if elapsed < expiryInterval && (!w.dirty || elapsed < minExpiryInterval) {
		return 0, false
	}
	w.checked, w.dirty = now, false
	return w.warn, true
}

// update stores the result of a check, and returns the keys that the log has not named
// yet.
func (w *expiryWatch) update(e Expiring) (unwarned []Key) {
	w.mu.Lock()
	defer w.mu.Unlock()
	warned := map[string]time.Time{}
	for _, k := range e.Keys {
		if !w.warned[k.ID].Equal(*k.Expires) {
			unwarned = append(unwarned, k)
		}
		warned[k.ID] = *k.Expires
	}
	w.expiring, w.warned = e, warned
	return unwarned
}

// Expiring returns the keys that expire soon, as of this replica's last check. That is at
// most a minute old while the database answers.
func (s *Store) Expiring() Expiring {
	s.expiry.mu.Lock()
	defer s.expiry.mu.Unlock()
	return s.expiry.expiring
}

// checkExpiry finds the keys that expire soon, if a check is due, and logs each once.
func (s *Store) checkExpiry(ctx context.Context) error {
	now := s.hooks.now()
	warn, due := s.expiry.due(now)
	if !due {
		return nil
	}
	var e Expiring
	if warn > 0 {
		ctx, cancel := context.WithTimeout(ctx, queryTimeout)
		defer cancel()
		var err error
		if e, err = s.expiring(ctx, now, warn); err != nil {
			return err
		}
	}
	for _, k := range s.expiry.update(e) {
		s.hooks.Log.LogAttrs(ctx, slog.LevelWarn, "a key expires soon: rotate it, or let it live longer with tidegate key set", slog.String("key", k.Name), slog.String("key_id", k.ID),
			slog.String("user", k.User), slog.Time("expires", *k.Expires))
	}
	return nil
}

// expiring reads the keys that end within warn from now.
func (s *Store) expiring(ctx context.Context, now time.Time, warn time.Duration) (e Expiring, err error) {
	const condition = `k.expires_ms > ? AND k.expires_ms <= ? AND k.expires_ms - k.created_ms > ? AND k.revoked_ms = 0 AND k.replaced_by = ''
		AND u.disabled_ms = 0 AND p.disabled_ms = 0 AND d.disabled_ms = 0`
	args := []any{now.UnixMilli(), now.Add(warn).UnixMilli(), warn.Milliseconds()}
	rows, err := s.keys(ctx, s.db, condition+" ORDER BY k.expires_ms, k.id LIMIT ?", append(args, maxExpiring+1)...)
	if err != nil {
		return e, err
	}
	e.Count = len(rows)
	if len(rows) > maxExpiring {
		rows = rows[:maxExpiring]
		err := s.db.NewRaw(`SELECT COUNT(*) FROM account_keys AS k JOIN account_users AS u ON u.name = k.user_name
			JOIN account_projects AS p ON p.name = u.project JOIN account_departments AS d ON d.name = p.department WHERE `+condition, args...).Scan(ctx, &e.Count)
		if err != nil {
			return e, fmt.Errorf("count the keys that expire soon: %w", err)
		}
	}
	for _, k := range rows {
		e.Keys = append(e.Keys, k.view(now))
	}
	return e, nil
}

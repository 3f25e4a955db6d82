package account

import (
	"context"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/uptrace/bun"
	"golang.org/x/sync/singleflight"

	"tidegate/gateway/database"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Bounds of the store's work and memory.
const (
	pollInterval = time.Second
	queryTimeout = 2 * time.Second // for one query of the database
	loadTimeout  = 2 * time.Minute // for the first Sync, which reads the hashes of all keys
	staleAfter   = time.Hour       // time for which keys in memory are trusted without the database
	cachedKeys   = 50_000          // about 25 MB
	unknownKeys  = 4096            // keys that the database did not have
	unknownRate  = 20              // queries a second for unknown keys
	unknownBurst = 50              // queries at once for unknown keys
	feedPage     = 1000            // changes of one query
)

// Hooks are functions that the store calls, if they are not nil, on the goroutine of the
// event. They must be quick and must not call the store.
type Hooks struct {
	Wrote   func()           // runs after a change by this process; it may tell others to Poke
	Applied func()           // runs after changes of any replica were applied: overrides and pins may differ
	Log     *slog.Logger     // nil for no log
	now     func() time.Time // clock of a test; nil for time.Now
}

// Store is the accounts in a database, with a part of them in this replica's memory. It is
// safe for concurrent use.
type Store struct {
	db      *bun.DB
	hooks   Hooks
	poke    chan struct{}
	flights singleflight.Group
	guesses *guessLimiter
	running *runningRequests
	expiry  expiryWatch

	syncing chan struct{}             // holds one token: its taker may pull
	failing atomic.Bool               // set if the last pull failed
	synced  atomic.Pointer[time.Time] // time of the last successful pull, with the monotonic clock; nil for never

	mu           sync.Mutex // protects the fields below
	seq          int64      // last change that was applied; -1 before the first load
	cache        *simplelru.LRU[hash, *record]
	unknown      *simplelru.LRU[hash, struct{}]
	fingerprints *fingerprints
	lookups      bucket
	overrides    []Override
	pins         []Pin // includes some that have expired
}

// NewStore returns a store over an open database, which the caller closes. It reads
// nothing before Migrate and Sync.
func NewStore(db *bun.DB, hooks Hooks) *Store {
	if hooks.Log == nil {
		hooks.Log = slog.New(slog.DiscardHandler)
	}
	if hooks.now == nil {
		hooks.now = time.Now
	}
	s := &Store{
		db: db, hooks: hooks, poke: make(chan struct{}, 1), syncing: make(chan struct{}, 1), seq: -1, guesses: newGuessLimiter(), running: newRunningRequests(),
		cache: newLRU[hash, *record](cachedKeys), unknown: newLRU[hash, struct{}](unknownKeys), fingerprints: newFingerprints(nil),
		lookups: bucket{rate: unknownRate, burst: unknownBurst},
	}
	s.syncing <- struct{}{}
	return s
}

// Migrate brings the tables up to date. Several replicas may call it at once.
func Migrate(ctx context.Context, db *bun.DB) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	return database.Migrate(ctx, db, "account", files)
}

// Poke makes Run look for changes at once. It never blocks.
func (s *Store) Poke() {
	select {
	case s.poke <- struct{}{}:
	default: // Run is about to look anyway
	}
}

// Healthy reports whether the database answered the last query for changes.
func (s *Store) Healthy() bool { return !s.failing.Load() }

// Run applies the changes of all replicas until ctx ends, and then returns nil. A database
// that does not answer is a state, not an error.
func (s *Store) Run(ctx context.Context) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-s.poke:
		}
		wasDown := s.failing.Load()
		err := s.Sync(ctx)
		if err == nil {
			if err := s.checkExpiry(ctx); err != nil && ctx.Err() == nil {
				s.hooks.Log.Warn("cannot look for keys that expire soon", "error", err.Error())
			}
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !wasDown:
			s.hooks.Log.Error("the store does not answer: keys in use go on, others are refused with 503", "for_at_most", staleAfter, "error", err)
		case err == nil && wasDown:
			s.hooks.Log.Info("the store answers again")
		}
	}
}

// Sync applies the changes since its last call. The first call reads the fingerprints of
// all keys (a million take a few seconds). Identify knows no key before Sync has succeeded
// once.
func (s *Store) Sync(ctx context.Context) error {
	select {
	case <-s.syncing:
		defer func() { s.syncing <- struct{}{} }()
	case <-ctx.Done():
		return ctx.Err()
	}
	s.mu.Lock()
	seq := s.seq
	s.mu.Unlock()
	limit := queryTimeout
	if seq < 0 {
		limit = loadTimeout
	}
	pullCtx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	began := s.hooks.now()
	latest, err := s.pull(pullCtx, seq)
	// This holds after a failure half-way too: the next pull begins after the applied changes.
	if latest != seq && s.hooks.Applied != nil {
		s.hooks.Applied()
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	s.failing.Store(err != nil)
	if err != nil {
		return err
	}
	s.synced.Store(&began)
	return nil
}

// pull reads the changes after seq and applies them. It returns the last applied one, even
// if it fails.
func (s *Store) pull(ctx context.Context, seq int64) (latest int64, err error) {
	if seq < 0 {
		return s.load(ctx)
	}
	for {
		var lines []struct {
			ID      int64  `bun:"id"`
			Action  string `bun:"what"`
			Subject string `bun:"subject"`
		}
		err := s.db.NewRaw("SELECT id, what, subject FROM account_audit WHERE id > ? ORDER BY id LIMIT ?", seq, feedPage).Scan(ctx, &lines)
		if err != nil {
			return seq, fmt.Errorf("read the changes: %w", err)
		}
		if len(lines) == 0 {
			return seq, nil
		}
		var changes delta
		for _, l := range lines {
			changes.add(l.Action, l.Subject)
		}
		if err := s.apply(ctx, lines[len(lines)-1].ID, &changes); err != nil {
			return seq, err
		}
		seq = lines[len(lines)-1].ID
	}
}

// delta is the set of things that some lines of the audit log have changed.
type delta struct {
	keys            []string // ids of keys
	owners          owners
	overrides, pins bool
}

// add adds a line of the audit log.
func (a *delta) add(action, subject string) {
	kind, verb, _ := strings.Cut(action, ".")
	switch {
	case kind == "key":
		a.keys = append(a.keys, subject)
	case kind == "override":
		a.overrides = true
	case kind == "pin":
		a.pins = true
	case verb != "create":
		if a.owners == nil {
			a.owners = owners{}
		}
		a.owners[owner{Kind(kind), subject}] = struct{}{}
	}
}

// keysPage is the number of keys that one query reads.
const keysPage = 500

// apply reads the changed keys again, and the overrides and pins if they changed, and
// installs them as the state after the change seq. It drops keys from memory whose owners
// changed. Requests under way end if their key has become invalid.
func (s *Store) apply(ctx context.Context, seq int64, delta *delta) error {
	var (
		overrides []Override
		pins      []Pin
		err       error
	)
	if delta.overrides {
		if overrides, err = s.AllOverrides(ctx); err != nil {
			return err
		}
	}
	if delta.pins {
		if pins, err = s.StoredPins(ctx); err != nil {
			return err
		}
	}
	records := map[hash]*record{}
	missing := slices.Clone(delta.keys)
	if len(delta.owners) > 0 {
		missing = append(missing, s.running.missing(nil)...)
	}
	for done := false; !done; done = len(missing) == 0 {
		if err := s.readInto(ctx, records, missing); err != nil {
			return err
		}
		missing = s.install(seq, delta, records, func() {
			if delta.overrides {
				s.overrides = overrides
			}
			if delta.pins {
				s.pins = pins
			}
		})
	}
	if len(delta.keys)+len(delta.owners) > 0 {
		s.expiry.changed()
	}
	return nil
}

// readInto reads the records of some keys into a map.
func (s *Store) readInto(ctx context.Context, records map[hash]*record, ids []string) error {
	slices.Sort(ids)
	for part := range slices.Chunk(slices.Compact(ids), keysPage) {
		rows, err := s.keys(ctx, s.db, "k.id IN ?", bun.Tuple(part))
		if err != nil {
			return err
		}
		for _, k := range rows {
			sum, r, err := k.record()
			if err != nil {
				return err
			}
			records[sum] = r
		}
	}
	return nil
}

// install replaces records of keys in memory, calls setRest under the lock, and cancels
// the requests under way whose keys have become invalid. If an owner changed, it needs the
// records of all keys in use. If one is missing, since its request began meanwhile,
// install does nothing but return the ids of such keys. A request that begins later sees
// the new count.
func (s *Store) install(seq int64, delta *delta, records map[hash]*record, setRest func()) (missing []string) {
	s.running.mu.Lock()
	defer s.running.mu.Unlock()
	if len(delta.owners) > 0 {
		if missing = s.running.missingLocked(records); len(missing) > 0 {
			return missing
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	setRest()
	if len(delta.owners) > 0 {
		for _, sum := range s.cache.Keys() {
			if r, _ := s.cache.Peek(sum); delta.owners.match(&r.id) {
				s.cache.Remove(sum)
			}
		}
	}
	for sum, r := range records {
		s.fingerprints.add(sum.fingerprint())
		if _, ok := s.cache.Get(sum); ok {
			s.cache.Add(sum, r)
		}
	}
	s.seq = seq
	now := s.hooks.now()
	s.running.cancelLocked(func(id *Identity) error {
		if r := records[id.sum]; r != nil {
			return r.endCause(id, now)
		}
		return nil
	})
	return nil
}

// load reads the state that is kept in memory from scratch. It reads the count of changes
// first, so that changes during the load are read again.
func (s *Store) load(ctx context.Context) (seq int64, err error) {
	if err := s.db.NewRaw("SELECT seq FROM account_feed").Scan(ctx, &seq); err != nil {
		return -1, fmt.Errorf("read the count of changes: %w", err)
	}
	overrides, err := s.AllOverrides(ctx)
	if err != nil {
		return -1, err
	}
	pins, err := s.StoredPins(ctx)
	if err != nil {
		return -1, err
	}
	rows, err := s.db.QueryContext(ctx, "SELECT hash FROM account_keys")
	if err != nil {
		return -1, fmt.Errorf("read the hashes: %w", err)
	}
	defer func() { _ = rows.Close() }() // Err below reports the errors that matter
	var values []uint64
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			return -1, fmt.Errorf("read the hashes: %w", err)
		}
		sum, err := parseHash(text)
		if err != nil {
			return -1, err
		}
		values = append(values, sum.fingerprint())
	}
	if err := rows.Err(); err != nil {
		return -1, fmt.Errorf("read the hashes: %w", err)
	}
	known := newFingerprints(slices.Clip(values))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fingerprints, s.overrides, s.pins, s.seq = known, overrides, pins, seq
	return seq, nil
}

// parseHash parses a hash of the database.
func parseHash(text string) (sum hash, err error) {
	if n, err := hex.Decode(sum[:], []byte(text)); err != nil || n != len(sum) || len(text) != 2*len(sum) {
		return sum, fmt.Errorf("the store holds %q where a hash should be", text)
	}
	return sum, nil
}

// timeOf returns a time of the database; 0 is the zero time.
func timeOf(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// identify returns the owner of a key by its hash. While the caller's address is locked
// out for guessing, it does not ask the database about unknown keys.
func (s *Store) identify(ctx context.Context, sum hash, addr netip.Addr, lockout time.Duration) (Identity, error) {
	now := s.hooks.now()
	r, seq, err := s.find(ctx, sum, now, lockout)
	if err != nil {
		return Identity{}, err
	}
	id, err := r.admit(now, addr)
	id.seq = seq
	return id, err
}

// find returns the record of a key, from memory or from the database, and the last change
// that it is sure to show.
func (s *Store) find(ctx context.Context, sum hash, now time.Time, lockout time.Duration) (r *record, seq int64, err error) {
	// Sub uses the monotonic clock, so that a jump of the wall clock makes nothing stale.
	if synced := s.synced.Load(); synced == nil || now.Sub(*synced) > staleAfter {
		return nil, 0, ErrUnavailable
	}
	s.mu.Lock()
	seq = s.seq
	r, ok := s.cache.Get(sum)
	if !ok {
		err = s.checkLookup(sum, now, lockout)
	}
	s.mu.Unlock()
	if ok || err != nil {
		return r, seq, err
	}
	return s.query(ctx, sum)
}

// checkLookup returns the error that answers a key without the database; nil if the
// database is to be asked. The caller holds s.mu.
func (s *Store) checkLookup(sum hash, now time.Time, lockout time.Duration) error {
	if s.failing.Load() {
		return ErrUnavailable
	}
	if s.fingerprints.contains(sum.fingerprint()) {
		return nil
	}
	if lockout > 0 {
		return &GuessingError{lockout}
	}
	if _, ok := s.unknown.Get(sum); ok || !s.lookups.allow(now) {
		return ErrUnknownKey
	}
	return nil
}

// lookupResult is the result of find, as a flight returns it.
type lookupResult struct {
	record *record
	seq    int64
}

// query looks up a key in the database, once for all callers at the same time. It goes on
// when one of them leaves.
func (s *Store) query(ctx context.Context, sum hash) (*record, int64, error) {
	answer := s.flights.DoChan(string(sum[:]), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), queryTimeout)
		defer cancel()
		return s.lookup(ctx, sum)
	})
	select {
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	case a := <-answer:
		if a.Err != nil {
			return nil, 0, a.Err
		}
		l := a.Val.(lookupResult)
		return l.record, l.seq, nil
	}
}

// lookup looks up a key in memory again, and then in the database.
func (s *Store) lookup(ctx context.Context, sum hash) (l lookupResult, err error) {
	s.mu.Lock()
	seq := s.seq
	known, ok := s.cache.Get(sum)
	s.mu.Unlock()
	if ok { // another flight has ended since the caller looked
		return lookupResult{known, seq}, nil
	}
	rows, err := s.keys(ctx, s.db, "k.hash = ?", hex.EncodeToString(sum[:]))
	if err != nil {
		return l, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(rows) == 0 {
		s.unknown.Add(sum, struct{}{})
		return l, ErrUnknownKey
	}
	_, r, err := rows[0].record()
	if err != nil {
		return l, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	// A change since then may be of this key, and apply has found nothing to renew.
	if s.seq == seq {
		s.cache.Add(sum, r)
	}
	s.fingerprints.add(sum.fingerprint())
	return lookupResult{r, seq}, nil
}

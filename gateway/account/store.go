package account

import (
	"context"
	"database/sql"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/uptrace/bun"
	"golang.org/x/sync/singleflight"

	"tidegate/gateway/database"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Bounds of what the store does and keeps.
const (
	pollInterval = time.Second
	queryTimeout = 2 * time.Second // of one look into the database
	loadTimeout  = 2 * time.Minute // of the first one, which reads the hashes of all keys
	staleAfter   = time.Hour       // how long keys in memory are believed without the database
	cachedKeys   = 50_000          // about 25 MB
	unknownKeys  = 4096            // that were asked for in vain
	unknownRate  = 20              // a second for which the database is asked
	unknownBurst = 50              //
	feedPage     = 1000            // changes read at a time
)

// Hooks are called, if they are not nil, on the goroutine of what has happened:
// they must be quick and must not call the store.
type Hooks struct {
	Wrote   func()           // this process has made a change: others may be told to Poke
	Applied func()           // changes of any replica have been taken over: overrides and pins may differ
	Log     *slog.Logger     // nil: silent
	now     func() time.Time // for tests
}

// Store is the accounts in a database, and what this replica keeps of them in
// memory. It is safe for concurrent use.
type Store struct {
	db      *bun.DB
	hooks   Hooks
	poke    chan struct{}
	flights singleflight.Group
	guesses *guessLimiter
	running *runningRequests
	expiry  expiryWatch

	syncing chan struct{}             // holds one token: who takes it may pull
	failing atomic.Bool               // the last pull failed
	synced  atomic.Pointer[time.Time] // when the last pull worked, by the monotonic clock too; nil: never

	mu           sync.Mutex // guards what is below
	seq          int64      // the last change that was taken over; -1: nothing is loaded
	cache        *lru[hash, *record]
	unknown      *lru[hash, struct{}]
	fingerprints *fingerprints
	lookups      bucket
	overrides    []Override
	pins         []Pin // some may have ended
}

// NewStore makes a store over an open database, which stays the caller's. Nothing
// is read before Migrate and Sync.
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

// Migrate brings the tables up to date. Several replicas may do so at once.
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
	default: // it is about to look anyway
	}
}

// Up reports whether the database answered when it was last asked for changes.
func (s *Store) Healthy() bool { return !s.failing.Load() }

// Run takes over the changes of all replicas until ctx ends, and then returns nil.
// A database that does not answer is a state, not an error.
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

// Sync takes over what has changed since the last time; the first time it reads
// the beginnings of the hashes of all keys (a million take a few seconds). It must
// have worked once before Identify knows any key.
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
	// Also where it failed half-way: the next time begins after what was taken over.
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

// pull reads the changes after from and takes them over; to is the last that it
// did, also where it fails.
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

// changed is what some lines of the audit log say has changed.
type delta struct {
	keys            []string // ids
	owners          owners
	overrides, pins bool
}

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

// keysPage is how many keys are read at a time.
const keysPage = 500

// apply reads the keys again, and the overrides and pins where they changed, and takes
// them over as the state after the change seq. Keys whose owners changed are forgotten.
// Requests under way with a key that is not good any more end.
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

// readInto reads the records of some keys.
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

// takeOver puts the records of keys, and what rest sets, in the place of those that are
// in memory, and ends the requests under way that are to end. Where an owner changed and
// a request has begun meanwhile with a key that is not among the records, it does
// nothing but return the ids of such keys: a request that begins afterwards sees the
// new count.
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
		s.cache.forget(func(r *record) bool { return delta.owners.match(&r.id) })
	}
	for sum, r := range records {
		s.fingerprints.add(sum.fingerprint())
		if _, ok := s.cache.get(sum); ok {
			s.cache.put(sum, r)
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

// load reads everything that is kept in memory from the start. The count of
// changes is read first, so that what changes meanwhile is read again.
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
	defer func() { _ = rows.Close() }() // Err below says what matters
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

func parseHash(text string) (sum hash, err error) {
	if n, err := hex.Decode(sum[:], []byte(text)); err != nil || n != len(sum) || len(text) != 2*len(sum) {
		return sum, fmt.Errorf("the store holds %q where a hash should be", text)
	}
	return sum, nil
}

// record is a key in memory.
type record struct {
	id       Identity
	ips      []netip.Prefix
	revoked  time.Time // zero: it is not
	disabled time.Time // zero: it is not
}

// admit says whether the key may be used now and from there; its errors are *KeyError.
func (r *record) admit(now time.Time, addr netip.Addr) (Identity, error) {
	if err := r.validity(now); err != nil {
		return Identity{}, err
	}
	if len(r.ips) > 0 && !slices.ContainsFunc(r.ips, func(p netip.Prefix) bool { return p.Contains(addr) }) {
		return Identity{}, r.keyError(KeyWrongAddress, time.Time{})
	}
	return r.id, nil
}

// standing says why the key is not good any more, wherever it is used from; nil: it is.
func (r *record) validity(now time.Time) error {
	switch {
	case !r.revoked.IsZero():
		return r.keyError(KeyRevoked, r.revoked)
	case !r.id.Expires.IsZero() && !now.Before(r.id.Expires):
		return r.keyError(KeyExpired, r.id.Expires)
	case !r.disabled.IsZero():
		return r.keyError(KeyDisabled, r.disabled)
	}
	return nil
}

func (r *record) keyError(state KeyState, t time.Time) error {
	return &KeyError{State: state, Time: t, Key: r.id.Key, KeyID: r.id.KeyID, User: r.id.User}
}

// keyRow is a key as the database holds it, with whom it belongs to.
type keyRow struct {
	ID         string `bun:"id"`
	Name       string `bun:"name"`
	UserName   string `bun:"user_name"`
	Project    string `bun:"project"`
	Department string `bun:"department"`
	Hash       string `bun:"hash"`   // SHA-256 in hex
	Models     string `bun:"models"` // JSON list
	IPs        string `bun:"ips"`    // JSON list of networks
	Tier       string `bun:"tier"`
	MaxLevel   int    `bun:"max_level"` // 0 to 4
	Admin      bool   `bun:"admin"`
	CreatedMs  int64  `bun:"created_ms"`
	ExpiresMs  int64  `bun:"expires_ms"`  // 0 for never
	RevokedMs  int64  `bun:"revoked_ms"`  // 0 for never
	ReplacedBy string `bun:"replaced_by"` // id of the successor; empty for none

	UserDisabledMs       int64 `bun:"user_disabled_ms"`
	ProjectDisabledMs    int64 `bun:"project_disabled_ms"`
	DepartmentDisabledMs int64 `bun:"department_disabled_ms"`
}

// disabled is since when the key's user, project or department is disabled, in
// milliseconds since 1970; 0: none of them is.
func (k *keyRow) disabledMs() (first int64) {
	for _, ms := range []int64{k.UserDisabledMs, k.ProjectDisabledMs, k.DepartmentDisabledMs} {
		if ms != 0 && (first == 0 || ms < first) {
			first = ms
		}
	}
	return first
}

// keys reads the keys that a condition picks.
func (s *Store) keys(ctx context.Context, db bun.IDB, condition string, args ...any) (rows []*keyRow, err error) {
	err = db.NewRaw(`SELECT k.id, k.name, k.user_name, u.project, p.department, k.hash, k.models, k.ips, k.tier, k.max_level,
		k.admin, k.created_ms, k.expires_ms, k.revoked_ms, k.replaced_by,
		u.disabled_ms AS user_disabled_ms, p.disabled_ms AS project_disabled_ms, d.disabled_ms AS department_disabled_ms
		FROM account_keys AS k JOIN account_users AS u ON u.name = k.user_name JOIN account_projects AS p ON p.name = u.project
		JOIN account_departments AS d ON d.name = p.department
		WHERE `+condition, args...).Scan(ctx, &rows)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	return rows, nil
}

func (k *keyRow) record() (hash, *record, error) {
	r := &record{revoked: timeOf(k.RevokedMs), disabled: timeOf(k.disabledMs()), id: Identity{
		Department: k.Department, Project: k.Project, User: k.UserName, Key: k.Name, KeyID: k.ID,
		Tier: Tier(k.Tier), MaxLevel: k.MaxLevel, Admin: k.Admin, Expires: timeOf(k.ExpiresMs),
	}}
	var ips []string
	if err := errors.Join(json.Unmarshal([]byte(k.Models), &r.id.models), json.Unmarshal([]byte(k.IPs), &ips)); err != nil {
		return hash{}, nil, fmt.Errorf("the store's key %s: %w", k.ID, err)
	}
	for _, ip := range ips {
		p, err := netip.ParsePrefix(ip)
		if err != nil {
			return hash{}, nil, fmt.Errorf("the store's key %s: %w", k.ID, err)
		}
		r.ips = append(r.ips, p)
	}
	if !r.id.Expires.IsZero() {
		r.id.expiresText = r.id.Expires.Format(time.RFC3339)
	}
	sum, err := parseHash(k.Hash)
	r.id.sum = sum
	return sum, r, err
}

// at is a time of the database; 0 is no time.
func timeOf(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// identify finds whose key has a hash. A locked caller, whose address guesses keys, is
// told of no key that this store does not know: then the database is not asked.
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

// find returns the record of a key, from memory or from the database, and the last
// change that it is sure to show.
func (s *Store) find(ctx context.Context, sum hash, now time.Time, lockout time.Duration) (r *record, seq int64, err error) {
	// Sub goes by the monotonic clock, so that a jump of the machine's makes nothing old.
	if synced := s.synced.Load(); synced == nil || now.Sub(*synced) > staleAfter {
		return nil, 0, ErrUnavailable
	}
	s.mu.Lock()
	seq = s.seq
	r, ok := s.cache.get(sum)
	if !ok {
		err = s.checkLookup(sum, now, lockout)
	}
	s.mu.Unlock()
	if ok || err != nil {
		return r, seq, err
	}
	return s.query(ctx, sum)
}

// worthAsking says why the database is not to be asked for a key; s.mu is held.
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
	if _, ok := s.unknown.get(sum); ok || !s.lookups.allow(now) {
		return ErrUnknownKey
	}
	return nil
}

// lookedUp is what find returns, as flights pass it on.
type lookupResult struct {
	record *record
	seq    int64
}

// ask looks a key up in the database, once for all that ask at the same time. It
// goes on when one of them leaves.
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

func (s *Store) lookup(ctx context.Context, sum hash) (l lookupResult, err error) {
	s.mu.Lock()
	seq := s.seq
	known, ok := s.cache.get(sum)
	s.mu.Unlock()
	if ok { // who asks may have looked before another one's answer came
		return lookupResult{known, seq}, nil
	}
	rows, err := s.keys(ctx, s.db, "k.hash = ?", hex.EncodeToString(sum[:]))
	if err != nil {
		return l, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(rows) == 0 {
		s.unknown.put(sum, struct{}{})
		return l, ErrUnknownKey
	}
	_, r, err := rows[0].record()
	if err != nil {
		return l, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	// What changed since then may be this key, whose change finds nothing to renew.
	if s.seq == seq {
		s.cache.put(sum, r)
	}
	s.fingerprints.add(sum.fingerprint())
	return lookupResult{r, seq}, nil
}

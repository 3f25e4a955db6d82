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
	pollEvery    = time.Second
	askTimeout   = 2 * time.Second // of one look into the database
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
	guesses *guesses
	running *running
	expiry  expiryWatch

	syncing chan struct{}             // holds one token: who takes it may pull
	down    atomic.Bool               // the last pull failed
	fresh   atomic.Pointer[time.Time] // when the last pull worked, by the monotonic clock too; nil: never

	mu        sync.Mutex // guards what is below
	seq       int64      // the last change that was taken over; -1: nothing is loaded
	cache     *lru[hash, *record]
	unknown   *lru[hash, struct{}]
	prints    *prints
	asks      bucket
	overrides []Override
	pins      []Pin // some may have ended
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
		db: db, hooks: hooks, poke: make(chan struct{}, 1), syncing: make(chan struct{}, 1), seq: -1, guesses: newGuesses(), running: newRunning(),
		cache: newLRU[hash, *record](cachedKeys), unknown: newLRU[hash, struct{}](unknownKeys), prints: newPrints(nil),
		asks: bucket{rate: unknownRate, burst: unknownBurst},
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
func (s *Store) Up() bool { return !s.down.Load() }

// Run takes over the changes of all replicas until ctx ends, and then returns nil.
// A database that does not answer is a state, not an error.
func (s *Store) Run(ctx context.Context) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-s.poke:
		}
		was := s.down.Load()
		err := s.Sync(ctx)
		if err == nil {
			if err := s.lookAtExpiry(ctx); err != nil && ctx.Err() == nil {
				s.hooks.Log.Warn("cannot look for keys that expire soon", "error", err.Error())
			}
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !was:
			s.hooks.Log.Error("the store does not answer: keys in use go on, others are refused with 503", "for_at_most", staleAfter, "error", err)
		case err == nil && was:
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
	from := s.seq
	s.mu.Unlock()
	limit := askTimeout
	if from < 0 {
		limit = loadTimeout
	}
	within, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	began := s.hooks.now()
	to, err := s.pull(within, from)
	// Also where it failed half-way: the next time begins after what was taken over.
	if to != from && s.hooks.Applied != nil {
		s.hooks.Applied()
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	s.down.Store(err != nil)
	if err != nil {
		return err
	}
	s.fresh.Store(&began)
	return nil
}

// pull reads the changes after from and takes them over; to is the last that it
// did, also where it fails.
func (s *Store) pull(ctx context.Context, from int64) (to int64, err error) {
	if from < 0 {
		return s.load(ctx)
	}
	for {
		var lines []struct {
			ID            int64
			What, Subject string
		}
		err := s.db.NewRaw("SELECT id, what, subject FROM account_audit WHERE id > ? ORDER BY id LIMIT ?", from, feedPage).Scan(ctx, &lines)
		if err != nil {
			return from, fmt.Errorf("read the changes: %w", err)
		}
		if len(lines) == 0 {
			return from, nil
		}
		var all changed
		for _, l := range lines {
			all.note(l.What, l.Subject)
		}
		if err := s.apply(ctx, lines[len(lines)-1].ID, &all); err != nil {
			return from, err
		}
		from = lines[len(lines)-1].ID
	}
}

// changed is what some lines of the audit log say has changed.
type changed struct {
	keys            []string // ids
	owners          owners
	overrides, pins bool
}

func (a *changed) note(what, subject string) {
	kind, verb, _ := strings.Cut(what, ".")
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
func (s *Store) apply(ctx context.Context, seq int64, all *changed) error {
	var (
		overrides []Override
		pins      []Pin
		err       error
	)
	if all.overrides {
		if overrides, err = s.AllOverrides(ctx); err != nil {
			return err
		}
	}
	if all.pins {
		if pins, err = s.StoredPins(ctx); err != nil {
			return err
		}
	}
	records := map[hash]*record{}
	missing := slices.Clone(all.keys)
	if len(all.owners) > 0 {
		missing = append(missing, s.running.keys(nil)...)
	}
	for done := false; !done; done = len(missing) == 0 {
		if err := s.readInto(ctx, records, missing); err != nil {
			return err
		}
		missing = s.takeOver(seq, all, records, func() {
			if all.overrides {
				s.overrides = overrides
			}
			if all.pins {
				s.pins = pins
			}
		})
	}
	if len(all.keys)+len(all.owners) > 0 {
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
func (s *Store) takeOver(seq int64, all *changed, records map[hash]*record, rest func()) (missing []string) {
	s.running.mu.Lock()
	defer s.running.mu.Unlock()
	if len(all.owners) > 0 {
		if missing = s.running.keysLocked(records); len(missing) > 0 {
			return missing
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	rest()
	if len(all.owners) > 0 {
		s.cache.forget(func(r *record) bool { return all.owners.have(&r.id) })
	}
	for sum, r := range records {
		s.prints.add(sum.print())
		if _, ok := s.cache.get(sum); ok {
			s.cache.put(sum, r)
		}
	}
	s.seq = seq
	now := s.hooks.now()
	s.running.cutLocked(func(id *Identity) error {
		if r := records[id.sum]; r != nil {
			return r.ended(id, now)
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
	var all []uint64
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			return -1, fmt.Errorf("read the hashes: %w", err)
		}
		sum, err := parseHash(text)
		if err != nil {
			return -1, err
		}
		all = append(all, sum.print())
	}
	if err := rows.Err(); err != nil {
		return -1, fmt.Errorf("read the hashes: %w", err)
	}
	known := newPrints(slices.Clip(all))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.prints, s.overrides, s.pins, s.seq = known, overrides, pins, seq
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
func (r *record) admit(now time.Time, from netip.Addr) (Identity, error) {
	if err := r.standing(now); err != nil {
		return Identity{}, err
	}
	if len(r.ips) > 0 && !slices.ContainsFunc(r.ips, func(p netip.Prefix) bool { return p.Contains(from) }) {
		return Identity{}, r.refuse(KeyElsewhere, time.Time{})
	}
	return r.id, nil
}

// standing says why the key is not good any more, wherever it is used from; nil: it is.
func (r *record) standing(now time.Time) error {
	switch {
	case !r.revoked.IsZero():
		return r.refuse(KeyRevoked, r.revoked)
	case !r.id.Expires.IsZero() && !now.Before(r.id.Expires):
		return r.refuse(KeyExpired, r.id.Expires)
	case !r.disabled.IsZero():
		return r.refuse(KeyDisabled, r.disabled)
	}
	return nil
}

func (r *record) refuse(state KeyState, since time.Time) error {
	return &KeyError{State: state, Since: since, Key: r.id.Key, KeyID: r.id.KeyID, User: r.id.User}
}

// keyRow is a key as the database holds it, with whom it belongs to.
type keyRow struct {
	ID, Name, UserName, Project, Department string
	Hash, Models, Tier                      string
	IPs                                     string `bun:"ips"`
	MaxLevel                                int
	Admin                                   bool
	CreatedMs, ExpiresMs, RevokedMs         int64
	ReplacedBy                              string

	UserDisabledMs, ProjectDisabledMs, DepartmentDisabledMs int64
}

// disabled is since when the key's user, project or department is disabled, in
// milliseconds since 1970; 0: none of them is.
func (k *keyRow) disabled() (since int64) {
	for _, ms := range []int64{k.UserDisabledMs, k.ProjectDisabledMs, k.DepartmentDisabledMs} {
		if ms != 0 && (since == 0 || ms < since) {
			since = ms
		}
	}
	return since
}

// keys reads the keys that a condition picks.
func (s *Store) keys(ctx context.Context, db bun.IDB, where string, args ...any) (rows []*keyRow, err error) {
	err = db.NewRaw(`SELECT k.id, k.name, k.user_name, u.project, p.department, k.hash, k.models, k.ips, k.tier, k.max_level,
		k.admin, k.created_ms, k.expires_ms, k.revoked_ms, k.replaced_by,
		u.disabled_ms AS user_disabled_ms, p.disabled_ms AS project_disabled_ms, d.disabled_ms AS department_disabled_ms
		FROM account_keys AS k JOIN account_users AS u ON u.name = k.user_name JOIN account_projects AS p ON p.name = u.project
		JOIN account_departments AS d ON d.name = p.department
		WHERE `+where, args...).Scan(ctx, &rows)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	return rows, nil
}

func (k *keyRow) record() (hash, *record, error) {
	r := &record{revoked: at(k.RevokedMs), disabled: at(k.disabled()), id: Identity{
		Department: k.Department, Project: k.Project, User: k.UserName, Key: k.Name, KeyID: k.ID,
		Tier: Tier(k.Tier), MaxLevel: k.MaxLevel, Admin: k.Admin, Expires: at(k.ExpiresMs),
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
		r.id.ends = r.id.Expires.Format(time.RFC3339)
	}
	sum, err := parseHash(k.Hash)
	r.id.sum = sum
	return sum, r, err
}

// at is a time of the database; 0 is no time.
func at(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// identify finds whose key has a hash. A locked caller, whose address guesses keys, is
// told of no key that this store does not know: then the database is not asked.
func (s *Store) identify(ctx context.Context, sum hash, from netip.Addr, locked time.Duration) (Identity, error) {
	now := s.hooks.now()
	r, seq, err := s.find(ctx, sum, now, locked)
	if err != nil {
		return Identity{}, err
	}
	id, err := r.admit(now, from)
	id.seq = seq
	return id, err
}

// find returns the record of a key, from memory or from the database, and the last
// change that it is sure to show.
func (s *Store) find(ctx context.Context, sum hash, now time.Time, locked time.Duration) (r *record, seq int64, err error) {
	// Sub goes by the monotonic clock, so that a jump of the machine's makes nothing old.
	if fresh := s.fresh.Load(); fresh == nil || now.Sub(*fresh) > staleAfter {
		return nil, 0, ErrUnavailable
	}
	s.mu.Lock()
	seq = s.seq
	r, ok := s.cache.get(sum)
	if !ok {
		err = s.worthAsking(sum, now, locked)
	}
	s.mu.Unlock()
	if ok || err != nil {
		return r, seq, err
	}
	return s.ask(ctx, sum)
}

// worthAsking says why the database is not to be asked for a key; s.mu is held.
func (s *Store) worthAsking(sum hash, now time.Time, locked time.Duration) error {
	if s.down.Load() {
		return ErrUnavailable
	}
	if s.prints.has(sum.print()) {
		return nil
	}
	if locked > 0 {
		return &GuessingError{locked}
	}
	if _, ok := s.unknown.get(sum); ok || !s.asks.take(now) {
		return ErrUnknownKey
	}
	return nil
}

// lookedUp is what find returns, as flights pass it on.
type lookedUp struct {
	record *record
	seq    int64
}

// ask looks a key up in the database, once for all that ask at the same time. It
// goes on when one of them leaves.
func (s *Store) ask(ctx context.Context, sum hash) (*record, int64, error) {
	answer := s.flights.DoChan(string(sum[:]), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
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
		l := a.Val.(lookedUp)
		return l.record, l.seq, nil
	}
}

func (s *Store) lookup(ctx context.Context, sum hash) (l lookedUp, err error) {
	s.mu.Lock()
	seq := s.seq
	known, ok := s.cache.get(sum)
	s.mu.Unlock()
	if ok { // who asks may have looked before another one's answer came
		return lookedUp{known, seq}, nil
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
	s.prints.add(sum.print())
	return lookedUp{r, seq}, nil
}

// Package account identifies callers and their rights. A key is a random text of which
// only the SHA-256 is kept. It belongs to a user, who belongs to a project of a
// department.
//
// # Where keys come from
//
// The configuration file may hold some keys, for small installations that keep their users
// beside their models under version control. All others live in the Store, in SQLite or
// PostgreSQL, with an expiry, lists of models and addresses, a tier and the level of
// degradation that they accept. They are created, rotated and revoked while the gateway
// runs. The audit log records each change and its author.
//
// # How a change reaches every replica
//
// One row of the database counts the changes. A change increments it in its own
// transaction, and the count is the id of its line in the audit log. The row stays locked
// until the commit, so ids appear in order and without gaps. Every replica asks once a
// second for the lines after the last one it has seen, and drops or renews those keys in
// its memory. So a revoked key is refused everywhere within two seconds, with nothing but
// the database. A faster channel can call Poke. Overrides of limits and pins of levels
// travel the same way.
//
// # What a request costs
//
// Recently used keys are in memory. Of all others, memory holds the first eight bytes of
// the hash (8 MB for a million keys), so a storm of made-up keys is refused without the
// database. Only a few unknown keys a second are looked up there, in case another replica
// has created one a moment ago.
//
// # When the database is down
//
// Keys in memory keep working for staleAfter, which bounds how long a revocation can be
// missed. All others are refused with ErrUnavailable, since nobody knows whether they are
// valid.
package account

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"tidegate/admission/limit"
)

// Tier is the class of a caller's requests, which orders them when they wait.
type Tier string

// The tiers.
const (
	Critical Tier = limit.Critical
	Standard Tier = limit.Standard
	Batch    Tier = limit.Batch
)

// Priority returns the tier's priority for vLLM's scheduler, where a lower number goes
// first.
func (t Tier) Priority() int64 {
	switch t {
	case Critical:
		return 0
	case Batch:
		return 20
	}
	return 10
}

// MaxLevel is the highest level of degradation. A key accepts it unless it sets another.
const MaxLevel = 4

// Identity is the caller of a request, with its rights.
type Identity struct {
	Department  string // department of the user; empty, as is Project, for keys of the file and in open mode
	Project     string
	User        string
	Key         string // name of the key, never its text
	KeyID       string // ULID of the key; empty for keys of the file and in open mode
	Tier        Tier
	MaxLevel    int // highest level of degradation that the caller accepts, 0 to 4
	Admin       bool
	Expires     time.Time // end of the key's life; zero for none
	models      []string  // models that the caller may use; empty for all
	expiresText string    // Expires in RFC 3339; empty for none
	sum         hash      // hash of the key; zero without a key
	seq         int64     // last change of the store that the identity is sure to show
}

// ExpiresText returns the end of the key's life in RFC 3339, or "" if it has none.
func (i *Identity) ExpiresText() string { return i.expiresText }

// MayUse reports whether the caller may use a model.
func (i *Identity) MayUse(model string) bool {
	return len(i.models) == 0 || slices.Contains(i.models, model)
}

// Directory identifies callers by the keys of the configuration file and of the store. It
// is immutable: a new configuration is a new Directory over the same Store.
type Directory struct {
	config Config
	keys   map[hash]Identity
	store  *Store

	guesses *guessLimiter    // shared with the store, so that it outlives a reload
	running *runningRequests // shared with the store too
}

// New returns a directory for a valid configuration.
func New(c Config, store *Store) *Directory {
	d := &Directory{config: c, keys: make(map[hash]Identity, len(c.Keys)+1), store: store}
	if d.guesses, d.running = newGuessLimiter(), newRunningRequests(); store != nil {
		d.guesses, d.running = store.guesses, store.running
	}
	d.guesses.configure(c.FailedKeys)
	for i := range c.Keys {
		k := &c.Keys[i]
		sum, err := k.sum()
		if err != nil {
			continue // Validate has rejected it
		}
		name := k.Name
		if name == "" {
			name = k.User
		}
		d.keys[sum] = Identity{User: k.User, Key: name, Tier: Standard, MaxLevel: MaxLevel, models: k.Models, sum: sum}
	}
	if c.AdminKey != "" {
		sum := hashKey(c.AdminKey)
		d.keys[sum] = Identity{User: "admin", Key: "admin_key_env", Tier: Standard, MaxLevel: MaxLevel, Admin: true, sum: sum}
	}
	return d
}

// Store returns the store behind the directory.
func (d *Directory) Store() *Store { return d.store }

// Identify returns the caller by the Authorization header and the caller's address. It
// looks up hashes, so its duration reveals nothing about any key. It waits for the store,
// if it must, until ctx ends or for two seconds. Its errors are ErrUnknownKey, ErrNoKey,
// *KeyError, ErrUnavailable, *GuessingError or the context's. In open mode it never fails,
// and a known key still names its user.
func (d *Directory) Identify(ctx context.Context, authorization string, addr netip.Addr) (Identity, error) {
	key := bearer(authorization)
	if d.config.Mode == Keys {
		return d.identifyKey(ctx, key, addr)
	}
	if wellFormed(key) {
		if id, err := d.identifyKey(ctx, key, addr); err == nil {
			return id, nil
		}
		return anonymousIdentity(addr), nil
	}
	// A placeholder that a client sends is no guess. The administrator's key of the file is
	// ignored here, or it could be guessed here.
	if id, err := d.identify(ctx, key, addr, 0); err == nil && !id.Admin {
		return id, nil
	}
	return anonymousIdentity(addr), nil
}

// IdentifyAdministrator returns the caller of an administrators' route. It limits guesses
// from one address in open mode too, where an unknown key makes an anonymous caller. Its
// errors are those of Identify.
func (d *Directory) IdentifyAdministrator(ctx context.Context, authorization string, addr netip.Addr) (Identity, error) {
	id, err := d.identifyKey(ctx, bearer(authorization), addr)
	if d.config.Mode == Open && errors.Is(err, ErrUnknownKey) {
		return anonymousIdentity(addr), nil
	}
	return id, err
}

// anonymousIdentity returns the caller of open mode that sends no known key.
func anonymousIdentity(addr netip.Addr) Identity {
	return Identity{User: anonymousUser(addr), Key: Open, Tier: Standard, MaxLevel: MaxLevel}
}

// identifyKey returns the owner of a key, and counts an unknown key as a guess.
func (d *Directory) identifyKey(ctx context.Context, key string, addr netip.Addr) (Identity, error) {
	if key == "" {
		return Identity{}, ErrNoKey // no key is no guess
	}
	caller, now := network(addr).Addr(), d.now()
	id, err := d.identify(ctx, key, addr, d.guesses.lockout(caller, now))
	if errors.Is(err, ErrUnknownKey) && !errors.As(err, new(*KeyError)) { // the holder of a whole key, valid or not, guesses nothing
		d.guesses.recordFailure(caller, now)
	}
	return id, err
}

// identify returns the owner of a key. A positive lockout is the time for which the
// caller's address may try no key.
func (d *Directory) identify(ctx context.Context, key string, addr netip.Addr, lockout time.Duration) (Identity, error) {
	if key == "" {
		return Identity{}, ErrNoKey
	}
	random := wellFormed(key)
	if !random && len(d.keys) == 0 && lockout == 0 {
		return Identity{}, ErrUnknownKey
	}
	sum := hashKey(key)
	if id, ok := d.keys[sum]; ok {
		// A key that is not random was invented by somebody, and can be guessed.
		caller := network(addr).Addr()
		if lockout > 0 && !random && !d.guesses.isTrusted(caller, sum) {
			return Identity{}, &GuessingError{lockout}
		}
		d.guesses.trust(caller, sum)
		return id, nil
	}
	if !random {
		if lockout > 0 {
			return Identity{}, &GuessingError{lockout} // the same answer as for a key of the file
		}
		return Identity{}, ErrUnknownKey
	}
	return d.store.identify(ctx, sum, addr, lockout)
}

// now returns the current time of the store's clock.
func (d *Directory) now() time.Time {
	if d.store == nil {
		return time.Now()
	}
	return d.store.hooks.now()
}

// Package account says who is calling and what they may do. A key is a random
// string of which only the SHA-256 is kept; it belongs to a user, who belongs to a
// project of a department.
//
// # Where keys come from
//
// The configuration file may name some, for small installations that keep their
// users beside their models under version control. All others live in the Store,
// in SQLite or PostgreSQL, with an expiry, a list of models, a list of addresses, a
// tier and the level of degradation they accept; they are made, rotated and revoked
// while the gateway runs, and each change is written down with who made it.
//
// # How a change reaches every replica
//
// One row of the database counts the changes. A change adds one to it in its own
// transaction, and the count is the id of its line in the audit log; since the row
// stays locked until the commit, ids appear in their order and without gaps. Every
// replica asks once a second for the lines after the last it has seen, and drops or
// renews what it holds of those keys: a revoked key is refused everywhere within
// two seconds, without anything but the database. A faster channel can call Poke.
// Overrides of limits and pins of levels travel the same way.
//
// # What a request costs
//
// Recently used keys are in memory. Of all others the store's first eight bytes of
// the hash are (8 MB for a million keys), so a storm of made-up keys is refused
// without the database; only a few unknown ones a second are asked for, in case one
// was made a moment ago on another replica.
//
// # When the database is down
//
// Keys in memory go on for staleAfter, which is how long a revocation can be missed
// then; all others are refused with ErrUnavailable, since nobody can say whether
// they are good.
package account

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"
)

// Tier says whose requests go first.
type Tier string

// The tiers.
const (
	Critical Tier = "critical"
	Standard Tier = "standard"
	Batch    Tier = "batch"
)

// Priority is the tier in vLLM's scheduling, where a lower number goes first.
func (t Tier) Priority() int64 {
	switch t {
	case Critical:
		return 0
	case Batch:
		return 20
	}
	return 10
}

// MaxLevel is the last level of degradation, which a key accepts unless it says
// otherwise.
const MaxLevel = 4

// Identity is who calls.
type Identity struct {
	Department  string // empty for keys of the file and in open mode, as is Project
	Project     string
	User        string
	Key         string // the key's name, never the key
	KeyID       string // empty for keys of the file and in open mode
	Tier        Tier
	MaxLevel    int // the furthest level of degradation that the caller accepts, 0 to 4
	Admin       bool
	Expires     time.Time // zero: never
	models      []string
	expiresText string // Expires in RFC 3339; empty: never
	sum         hash   // of the key; zero: there is none
	seq         int64  // changes of the store that were taken over when it was looked at
}

// Ends returns when the key expires, in RFC 3339; empty: never.
func (i *Identity) ExpiresText() string { return i.expiresText }

// MayUse reports whether the caller may use a model.
func (i *Identity) MayUse(model string) bool {
	return len(i.models) == 0 || slices.Contains(i.models, model)
}

// Directory knows the keys of the file and of the store. It is immutable; a new
// configuration is a new Directory over the same Store.
type Directory struct {
	config Config
	keys   map[hash]Identity
	store  *Store

	guesses *guessLimiter    // of the store, so that they outlive a reload
	running *runningRequests // too
}

// New makes a directory of a valid configuration.
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
			continue // Validate has refused it
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

// Store is the store behind the directory.
func (d *Directory) Store() *Store { return d.store }

// Identify finds who calls from the Authorization header and the caller's
// address. It looks hashes up, so its time says nothing about any key. It waits
// for the store, if it must, until ctx ends or for two seconds. Its errors are
// ErrUnknownKey, ErrNoKey, *KeyError, ErrUnavailable, *GuessingError or the context's.
// In open mode it has none, and a known key still names its user.
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
	// A text that any client makes up guesses nothing. The administrator's key of the
	// file says nothing here, or it could be guessed here.
	if id, err := d.identify(ctx, key, addr, 0); err == nil && !id.Admin {
		return id, nil
	}
	return anonymousIdentity(addr), nil
}

// IdentifyAdministrator finds who calls a route of administrators. In open mode, too,
// it bounds how fast one address may try keys; there an unknown key is an anonymous
// caller. Its errors are those of Identify.
func (d *Directory) IdentifyAdministrator(ctx context.Context, authorization string, addr netip.Addr) (Identity, error) {
	id, err := d.identifyKey(ctx, bearer(authorization), addr)
	if d.config.Mode == Open && errors.Is(err, ErrUnknownKey) {
		return anonymousIdentity(addr), nil
	}
	return id, err
}

// unnamed is a caller of open mode without a key that is known.
func anonymousIdentity(addr netip.Addr) Identity {
	return Identity{User: anonymousUser(addr), Key: Open, Tier: Standard, MaxLevel: MaxLevel}
}

// identifyKey finds whose key it is, and counts one that is unknown as a guess.
func (d *Directory) identifyKey(ctx context.Context, key string, addr netip.Addr) (Identity, error) {
	if key == "" {
		return Identity{}, ErrNoKey // which guesses nothing
	}
	caller, now := network(addr).Addr(), d.now()
	id, err := d.identify(ctx, key, addr, d.guesses.lockout(caller, now))
	if errors.Is(err, ErrUnknownKey) && !errors.As(err, new(*KeyError)) { // who holds a whole key, good or not, guesses nothing
		d.guesses.recordFailure(caller, now)
	}
	return id, err
}

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
		// Unless it is a random one, somebody has made the key up, so it can be guessed.
		caller := network(addr).Addr()
		if lockout > 0 && !random && !d.guesses.isTrusted(caller, sum) {
			return Identity{}, &GuessingError{lockout}
		}
		d.guesses.trust(caller, sum)
		return id, nil
	}
	if !random {
		if lockout > 0 {
			return Identity{}, &GuessingError{lockout} // as for one of the file
		}
		return Identity{}, ErrUnknownKey
	}
	return d.store.identify(ctx, sum, addr, lockout)
}

// now is the store's time.
func (d *Directory) now() time.Time {
	if d.store == nil {
		return time.Now()
	}
	return d.store.hooks.now()
}

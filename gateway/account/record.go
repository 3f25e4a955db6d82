package account

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/uptrace/bun"
)

// record is a key in memory.
type record struct {
	id       Identity
	ips      []netip.Prefix
	revoked  time.Time // time of the revocation; zero for none
	disabled time.Time // time at which an owner was disabled; zero if none is
}

// admit returns the identity if the key may be used now from an address. Its errors are
// *KeyError.
func (r *record) admit(now time.Time, addr netip.Addr) (Identity, error) {
	if err := r.validity(now); err != nil {
		return Identity{}, err
	}
	if len(r.ips) > 0 && !slices.ContainsFunc(r.ips, func(p netip.Prefix) bool { return p.Contains(addr) }) {
		return Identity{}, r.keyError(KeyWrongAddress, time.Time{})
	}
	return r.id, nil
}

// validity returns nil if the key is valid now, whatever the caller's address, or else a
// *KeyError.
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

// keyError returns the refusal of the key in a state that began at t.
func (r *record) keyError(state KeyState, t time.Time) error {
	return &KeyError{State: state, Time: t, Key: r.id.Key, KeyID: r.id.KeyID, User: r.id.User}
}

// keyRow is a key in the database, with its owners.
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

// disabledMs returns the earliest time at which the key's user, project or department was
// disabled, in milliseconds since 1970; 0 if all are enabled.
func (k *keyRow) disabledMs() (first int64) {
	for _, ms := range []int64{k.UserDisabledMs, k.ProjectDisabledMs, k.DepartmentDisabledMs} {
		if ms != 0 && (first == 0 || ms < first) {
			first = ms
		}
	}
	return first
}

// keys reads the keys that match a condition.
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

// record returns the key as it is kept in memory, with its hash.
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

package account

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/oklog/ulid/v2"
	"github.com/uptrace/bun"
)

// Key is the public view of a key: never its text nor its hash.
type Key struct {
	ID         string     `json:"id"`
	Name       string     `json:"name"`
	User       string     `json:"user"`
	Project    string     `json:"project"`
	Department string     `json:"department"`
	Models     []string   `json:"models"` // empty for all
	IPs        []string   `json:"ips"`    // networks of permitted callers; empty for everywhere
	Tier       Tier       `json:"tier"`
	MaxLevel   string     `json:"max_level"` // L0 to L4
	Admin      bool       `json:"admin"`
	Status     KeyState   `json:"status"` // active | replaced (still valid) | expired | disabled | revoked
	Created    time.Time  `json:"created_at"`
	Expires    *time.Time `json:"expires_at"`            // null for never
	Revoked    *time.Time `json:"revoked_at"`            // null for never
	ReplacedBy string     `json:"replaced_by,omitempty"` // id of the key that has its name now
}

// NewKey is a request for a key.
type NewKey struct {
	User       string   `json:"user"`
	Project    string   `json:"project"`    // project of a new user; empty for default
	Department string   `json:"department"` // department of a new project; empty for default
	Name       string   `json:"name"`       // name of the key; empty for the user's name, with a number if that is taken
	TTL        string   `json:"ttl"`        // duration such as 30d, or never; empty for auth.key_ttl
	Models     []string `json:"models"`
	IPs        []string `json:"ips"` // addresses or networks
	Tier       Tier     `json:"tier"`
	MaxLevel   string   `json:"max_level"`
	Admin      bool     `json:"admin"`
}

// CreatedKey is the result of creating a key.
type CreatedKey struct {
	Key     Key      `json:"key"`
	Secret  string   `json:"secret"`            // text of the key, which cannot be shown again
	Created []string `json:"created,omitempty"` // other things that were created, such as "user ann"
	Old     *Key     `json:"old,omitempty"`     // replaced key, with its new expiry
}

// DefaultOverlap is the time for which a rotated key stays valid beside its successor.
const DefaultOverlap = 24 * time.Hour

// neverExpires is the TTL of a key that does not expire.
const neverExpires = "never"

// Bounds of a key.
const (
	maxList  = 100                     // number of models, and of networks
	maxModel = 200                     // length of a model's name, in bytes
	maxTTL   = 36_500 * 24 * time.Hour // keeps every time within RFC 3339
)

// expiry returns the end of a key with a TTL, in milliseconds since 1970; 0 for never.
func (d *Directory) expiry(now time.Time, ttl string) (ms int64, err error) {
	lifetime := d.config.KeyTTL
	switch ttl {
	case "":
	case neverExpires:
		lifetime = 0
	default:
		if lifetime, err = ParseDuration(ttl); err != nil || lifetime < time.Second || lifetime > maxTTL {
			return 0, newFault(ErrInvalid, "ttl", "ttl: must be a duration from 1s to %dd such as 30d or 12h, or never, not %.40q", maxTTL/(24*time.Hour), ttl)
		}
	}
	if lifetime == 0 && !d.config.AllowUnexpiring {
		return 0, newFault(ErrInvalid, "ttl", "ttl: keys that never expire need auth.allow_unexpiring: true in the configuration")
	}
	if lifetime == 0 {
		return 0, nil
	}
	return now.Add(lifetime).UnixMilli(), nil
}

// newRow checks a request for a key and returns its row, without name and user.
func (d *Directory) newRow(now time.Time, n *NewKey) (k *keyRow, err error) {
	for _, f := range []struct{ field, name string }{{"user", n.User}, {"project", n.Project}, {"department", n.Department}} {
		if f.name == "" && f.field != "user" {
			continue
		}
		if err := checkRef(f.field, f.name); err != nil {
			return nil, err
		}
	}
	if n.Name != "" {
		if err := checkName("name", n.Name); err != nil {
			return nil, err
		}
	}
	k = &keyRow{ID: ulid.Make().String(), MaxLevel: MaxLevel, Admin: n.Admin, CreatedMs: now.UnixMilli()}
	if k.Tier, err = checkTier(n.Tier); err != nil {
		return nil, err
	}
	if n.MaxLevel != "" {
		if k.MaxLevel, err = parseLevel("max_level", n.MaxLevel); err != nil {
			return nil, err
		}
	}
	if k.Models, err = checkModels(n.Models); err != nil {
		return nil, err
	}
	if k.IPs, err = checkIPs(n.IPs); err != nil {
		return nil, err
	}
	k.ExpiresMs, err = d.expiry(now, n.TTL)
	return k, err
}

// checkTier returns the tier as it is stored, Standard for none.
func checkTier(t Tier) (string, error) {
	switch t {
	case "":
		return string(Standard), nil
	case Critical, Standard, Batch:
		return string(t), nil
	}
	return "", newFault(ErrInvalid, "tier", "tier: must be critical, standard or batch, not %.20q", t)
}

// checkModels returns a list of models as it is stored.
func checkModels(models []string) (string, error) {
	if len(models) > maxList {
		return "", newFault(ErrInvalid, "models", "models: may have %d entries, not %d", maxList, len(models))
	}
	for _, m := range models {
		if m == "" || len(m) > maxModel || !utf8.ValidString(m) || strings.ContainsFunc(m, unicode.IsControl) {
			return "", newFault(ErrInvalid, "models", "models: %.20q is no name of a model", m)
		}
	}
	return jsonList(models), nil
}

// checkIPs returns a list of networks as it is stored.
func checkIPs(texts []string) (string, error) {
	if len(texts) > maxList {
		return "", newFault(ErrInvalid, "ips", "ips: may have %d entries, not %d", maxList, len(texts))
	}
	ips := []string{}
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if one, oneErr := netip.ParseAddr(text); oneErr == nil && one.Zone() == "" {
			p, err = netip.PrefixFrom(one, one.BitLen()), nil
		}
		if err != nil || p.Addr().Is4In6() {
			return "", newFault(ErrInvalid, "ips", "ips: %.60q is no address or network; expected something like 10.0.0.0/8", text)
		}
		ips = append(ips, p.Masked().String())
	}
	return jsonList(ips), nil
}

// jsonList returns a list as JSON.
func jsonList(items []string) string {
	if len(items) == 0 {
		return "[]"
	}
	text, _ := json.Marshal(items) // strings always marshal
	return string(text)
}

// CheckKey returns the faults of a request for a key that show without the store. Its
// error wraps ErrInvalid.
func (d *Directory) CheckKey(n NewKey) error {
	_, err := d.newRow(time.Now(), &n)
	return err
}

// CreateKey creates a key, and its user, project and department if they are missing. The
// audit log names actor.
func (d *Directory) CreateKey(ctx context.Context, actor string, n NewKey) (m CreatedKey, err error) {
	k, err := d.newRow(d.store.hooks.now(), &n)
	if err != nil {
		return m, err
	}
	err = d.store.change(ctx, actor, func(c *change) error {
		user, created, err := c.ensureUser(n.User, n.Project, n.Department)
		if err == nil {
			m, err = c.createKey(k, user, n.Name)
		}
		m.Created = created
		return err
	})
	return m, err
}

// createKey inserts a checked row for an existing user.
func (c *change) createKey(k *keyRow, user Owner, name string) (m CreatedKey, err error) {
	k.UserName, k.Project, k.Department = user.Name, user.Project, user.Department
	if k.Name, err = c.freeName(name, k); err != nil {
		return m, err
	}
	m.Secret = k.setSecret()
	if err := c.insert(k); err != nil {
		return m, err
	}
	rows, err := c.store.keys(c.ctx, c.tx, "k.id = ?", k.ID) // shows disabled owners too
	if err != nil {
		return m, err
	}
	m.Key = rows[0].view(c.now)
	return m, c.writeAudit("key.create", k.ID, nil, m.Key)
}

// setSecret generates a text for the key, sets the key's hash, and returns the text.
func (k *keyRow) setSecret() string {
	text := NewSecret()
	sum := hashKey(text)
	k.Hash = hex.EncodeToString(sum[:])
	return text
}

// freeName returns the name of a new key: the wanted one, or a numbered one of the user.
// The name of the user's own key that is no longer valid may be used again. Another user's
// may not, so that limits and usage by key stay apart.
func (c *change) freeName(wanted string, k *keyRow) (string, error) {
	if wanted == "" {
		return c.numberedName(k.UserName)
	}
	former, known, err := c.queryText("SELECT user_name FROM account_key_names WHERE name = ?", wanted)
	if err != nil {
		return "", err
	}
	if known && former != k.UserName {
		return "", newFault(ErrConflict, "name", "a key of user %s had the name %s: choose another, so that usage by key stays apart", former, wanted)
	}
	existing, err := c.store.keys(c.ctx, c.tx, "k.name = ? AND k.replaced_by = ''", wanted)
	if err != nil || len(existing) == 0 {
		return wanted, err
	}
	old := existing[0]
	status := old.view(c.now).Status
	switch {
	case old.UserName != k.UserName:
		return "", newFault(ErrConflict, "name", "the name %s belongs to a key of user %s: choose another", wanted, old.UserName)
	case status == KeyActive || status == KeyDisabled:
		return "", newFault(ErrConflict, "name", "the user has a key %s: rotate or revoke it, or choose another name", wanted)
	}
	return wanted, c.exec("UPDATE account_keys SET replaced_by = ? WHERE id = ?", k.ID, old.ID)
}

// nameBatch is the number of names that one query tries.
const nameBatch = 100

// numberedName returns the user's name, with a number if a key has it. It counts the keys
// with such names first, so that the thousandth takes no longer than the second.
func (c *change) numberedName(user string) (string, error) {
	var numbered int
	if err := c.tx.NewRaw("SELECT COUNT(*) FROM account_keys WHERE user_name = ? AND replaced_by = '' AND substr(name, 1, ?) = ?",
		user, utf8.RuneCountInString(user)+1, user+"-").Scan(c.ctx, &numbered); err != nil {
		return "", fmt.Errorf("read the accounts: %w", err)
	}
	names := []string{user}
	for next := numbered + 2; ; next += nameBatch {
		for n := range nameBatch {
			names = append(names, user+"-"+strconv.Itoa(next+n))
		}
		var taken []string
		if err := c.tx.NewRaw(`SELECT name FROM account_keys WHERE replaced_by = '' AND name IN ?
			UNION SELECT name FROM account_key_names WHERE user_name <> ? AND name IN ?`, bun.Tuple(names), user, bun.Tuple(names)).Scan(c.ctx, &taken); err != nil {
			return "", fmt.Errorf("read the accounts: %w", err)
		}
		for _, name := range names {
			if !slices.Contains(taken, name) {
				return name, nil
			}
		}
		names = names[:0]
	}
}

// insert inserts a key.
func (c *change) insert(k *keyRow) error {
	return c.exec(`INSERT INTO account_keys (id, name, user_name, hash, models, ips, tier, max_level, admin, created_ms, expires_ms, revoked_ms, replaced_by)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, '')`,
		k.ID, k.Name, k.UserName, k.Hash, k.Models, k.IPs, k.Tier, k.MaxLevel, k.Admin, k.CreatedMs, k.ExpiresMs)
}

// view returns the public view of the key at a time.
func (k *keyRow) view(now time.Time) Key {
	out := Key{
		ID: k.ID, Name: k.Name, User: k.UserName, Project: k.Project, Department: k.Department, Models: []string{}, IPs: []string{},
		Tier: Tier(k.Tier), MaxLevel: "L" + strconv.Itoa(k.MaxLevel), Admin: k.Admin, Status: KeyActive,
		Created: timeOf(k.CreatedMs), ReplacedBy: k.ReplacedBy,
	}
	// The store has written valid JSON.
	_ = json.Unmarshal([]byte(k.Models), &out.Models)
	_ = json.Unmarshal([]byte(k.IPs), &out.IPs)
	if k.ReplacedBy != "" {
		out.Status = KeyReplaced
	}
	if k.ExpiresMs != 0 {
		t := timeOf(k.ExpiresMs)
		out.Expires = &t
		if !now.Before(t) {
			out.Status = KeyExpired
		}
	}
	if k.disabledMs() != 0 && out.Status != KeyExpired {
		out.Status = KeyDisabled
	}
	if k.RevokedMs != 0 {
		t := timeOf(k.RevokedMs)
		out.Revoked, out.Status = &t, KeyRevoked
	}
	return out
}

// noKey returns the fault of a reference that matches no key. It does not quote a
// reference that is the text of a key.
func noKey(ref string) error {
	if wellFormed(ref) {
		return newFault(ErrInvalid, "key", "that is the text of a key, not its name or id, and now stands where others may read it, such as the history of a shell: revoke it with tidegate key revoke --secret, or POST /admin/v1/keys/revoke")
	}
	return newFault(ErrNotFound, "key", "there is no key with the name or id %.80q", ref)
}

// find returns the keys of a reference: the one with that id, or all with that name, the
// current one first.
func (c *change) find(ref string) ([]*keyRow, error) {
	rows, err := c.store.keys(c.ctx, c.tx, "k.id = ?", ref)
	if err != nil || len(rows) > 0 {
		return rows, err
	}
	rows, err = c.store.keys(c.ctx, c.tx, "k.name = ? ORDER BY k.replaced_by, k.id DESC", ref)
	if err == nil && len(rows) == 0 {
		err = noKey(ref)
	}
	return rows, err
}

// RotateKey creates a successor of the key with an id or name. The successor has the same
// name, rights and length of life. The old key stays valid for overlap, or until its own
// end if that comes first.
func (d *Directory) RotateKey(ctx context.Context, actor, ref string, overlap time.Duration) (m CreatedKey, err error) {
	if overlap < 0 {
		return m, newFault(ErrInvalid, "overlap", "overlap: must not be negative")
	}
	err = d.store.change(ctx, actor, func(c *change) error {
		rows, err := c.find(ref)
		if err != nil {
			return err
		}
		row := rows[0]
		old := row.view(c.now)
		switch {
		case old.Status == KeyRevoked:
			return newFault(ErrConflict, "key", "the key %s is revoked: create a new one", ref)
		case row.ReplacedBy != "":
			return newFault(ErrConflict, "key", "the key %s has been replaced by %s", ref, row.ReplacedBy)
		}
		k := *row
		k.ID, k.CreatedMs = ulid.Make().String(), c.now.UnixMilli()
		if k.ExpiresMs != 0 {
			k.ExpiresMs += k.CreatedMs - row.CreatedMs
		} else if !d.config.AllowUnexpiring {
			k.ExpiresMs = c.now.Add(d.config.KeyTTL).UnixMilli()
		}
		if end := c.now.Add(overlap).UnixMilli(); row.ExpiresMs == 0 || end < row.ExpiresMs {
			row.ExpiresMs = end
		}
		row.ReplacedBy = k.ID
		m.Secret = k.setSecret()
		if err := c.exec("UPDATE account_keys SET replaced_by = ?, expires_ms = ? WHERE id = ?", k.ID, row.ExpiresMs, row.ID); err != nil {
			return err
		}
		if err := c.insert(&k); err != nil {
			return err
		}
		updated := row.view(c.now)
		m.Key, m.Old = k.view(c.now), &updated
		if err := c.writeAudit("key.rotate", row.ID, old, updated); err != nil {
			return err
		}
		return c.writeAudit("key.create", k.ID, nil, m.Key)
	})
	return m, err
}

// Keys lists the keys of one user, or of all, by id, which is the order of their creation.
func (s *Store) Keys(ctx context.Context, user string, p Page) (items []Key, hasMore bool, err error) {
	if user != "" {
		err := s.read(ctx, func(c *change) error {
			row, _, err := c.owner(UserKind, user)
			if row != nil {
				user = row.Name
			}
			return err
		})
		if err != nil {
			return nil, false, err
		}
	}
	rows, err := s.keys(ctx, s.db, "k.id > ? AND (? = '' OR k.user_name = ?) ORDER BY k.id LIMIT ?", p.Cursor, user, user, p.limit()+1)
	if err != nil {
		return nil, false, err
	}
	if hasMore = len(rows) > p.limit(); hasMore {
		rows = rows[:p.limit()]
	}
	items = make([]Key, 0, len(rows))
	for _, k := range rows {
		items = append(items, k.view(s.hooks.now()))
	}
	return items, hasMore, nil
}

// Key returns the key with an id, or the current one with a name.
func (s *Store) Key(ctx context.Context, ref string) (Key, error) {
	rows, err := s.keys(ctx, s.db, "k.id = ? OR k.name = ? AND k.replaced_by = '' ORDER BY k.id LIMIT 1", ref, ref)
	if err != nil {
		return Key{}, err
	}
	if len(rows) == 0 {
		return Key{}, noKey(ref)
	}
	return rows[0].view(s.hooks.now()), nil
}

// Bootstrap creates the first administrator's key if nobody could administer otherwise:
// the mode is keys, the file has no key, and the store has no valid administrator's key.
// It returns the text of the key, to be shown once, or "" if none was needed. Of several
// replicas that start at once, one creates it.
func (d *Directory) Bootstrap(ctx context.Context) (secret string, err error) {
	if d.config.Mode != Keys || len(d.keys) > 0 {
		return "", nil
	}
	err = d.store.change(ctx, "bootstrap", func(c *change) error {
		rows, err := d.store.keys(c.ctx, c.tx, "k.admin AND k.revoked_ms = 0 AND u.disabled_ms + p.disabled_ms + d.disabled_ms = 0 AND (k.expires_ms = 0 OR k.expires_ms > ?) LIMIT 1", c.now.UnixMilli())
		if err != nil || len(rows) > 0 {
			return err
		}
		k, err := d.newRow(c.now, &NewKey{User: "admin", Admin: true})
		if err != nil {
			return err
		}
		user, _, err := c.ensureUser("admin", "", "")
		if err != nil {
			return err
		}
		m, err := c.createKey(k, user, "")
		if err == nil && m.Key.Status == KeyDisabled {
			return newFault(ErrConflict, "user", "no administrator has a good key, and the user %s, its project %s or its department %s is disabled: enable it with tidegate user set %[1]s --enable (or project, department), or make a key for another user with tidegate key create --admin --user NAME", user.Name, user.Project, user.Department)
		}
		secret = m.Secret
		return err
	})
	if err != nil {
		return "", fmt.Errorf("make the first administrator's key: %w", err)
	}
	return secret, nil
}

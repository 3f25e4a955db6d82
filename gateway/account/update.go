package account

import (
	"context"
	"encoding/hex"
	"slices"
	"strings"
	"time"
)

// KeyChange is a change of a key. A nil field stays as it is. At most one of TTL and
// Expires is set.
type KeyChange struct {
	Name     *string   `json:"name"`
	TTL      *string   `json:"ttl"`        // life from now on: a duration such as 30d, or never
	Expires  *string   `json:"expires_at"` // time in RFC 3339
	Models   *[]string `json:"models"`     // empty for all
	IPs      *[]string `json:"ips"`        // addresses or networks; empty for everywhere
	Tier     *Tier     `json:"tier"`
	MaxLevel *string   `json:"max_level"`
}

// empty reports whether the change changes nothing.
func (ch *KeyChange) empty() bool { return *ch == KeyChange{} }

// ChangeKey changes the key with an id, or the current one with a name. The change applies
// to the next request. Requests under way keep their old rights.
func (d *Directory) ChangeKey(ctx context.Context, actor, ref string, ch KeyChange) (updated Key, err error) {
	if ch.empty() {
		return updated, newFault(ErrInvalid, "", "there is no change: give some of name, ttl or expires_at, models, ips, tier and max_level")
	}
	err = d.store.change(ctx, actor, func(c *change) error {
		rows, err := c.find(ref)
		if err != nil {
			return err
		}
		updated, _, err = d.changeKey(c, rows[0], ch)
		return err
	})
	return updated, err
}

// changeKey changes a key, and reports whether that changed anything.
func (d *Directory) changeKey(c *change, k *keyRow, ch KeyChange) (updated Key, changed bool, err error) {
	oldRow, old := *k, k.view(c.now)
	if old.Status == KeyRevoked {
		return updated, false, newFault(ErrConflict, "key", "the key %s is revoked: create a new one", k.Name)
	}
	if err := d.applyChange(c, k, ch); err != nil {
		return updated, false, err
	}
	if ch.Name != nil && *ch.Name != k.Name {
		if err := c.rename(k, *ch.Name); err != nil {
			return updated, false, err
		}
	}
	if updated = k.view(c.now); oldRow == *k {
		return updated, false, nil
	}
	err = c.exec("UPDATE account_keys SET name = ?, models = ?, ips = ?, tier = ?, max_level = ?, expires_ms = ? WHERE id = ?",
		k.Name, k.Models, k.IPs, k.Tier, k.MaxLevel, k.ExpiresMs, k.ID)
	if err != nil {
		return updated, false, err
	}
	return updated, true, c.writeAudit("key.update", k.ID, old, updated)
}

// applyChange checks a change and applies it to a row, except for the name.
func (d *Directory) applyChange(c *change, k *keyRow, ch KeyChange) (err error) {
	if ch.Tier != nil {
		if k.Tier, err = checkTier(*ch.Tier); err != nil {
			return err
		}
	}
	if ch.MaxLevel != nil {
		if k.MaxLevel, err = parseLevel("max_level", *ch.MaxLevel); err != nil {
			return err
		}
	}
	if ch.Models != nil {
		if k.Models, err = checkModels(*ch.Models); err != nil {
			return err
		}
	}
	if ch.IPs != nil {
		if k.IPs, err = checkIPs(*ch.IPs); err != nil {
			return err
		}
	}
	switch {
	case ch.TTL != nil && ch.Expires != nil:
		return newFault(ErrInvalid, "expires_at", "expires_at: give either ttl or expires_at")
	case ch.TTL != nil:
		k.ExpiresMs, err = d.expiry(c.now, *ch.TTL)
	case ch.Expires != nil:
		end, bad := time.Parse(time.RFC3339, *ch.Expires)
		if bad != nil || end.Before(c.now) || end.After(c.now.Add(maxTTL)) {
			return newFault(ErrInvalid, "expires_at", "expires_at: must be a time within the %d days to come such as %s, not %.40q; to end a key now, revoke it", maxTTL/(24*time.Hour), c.now.Add(d.config.KeyTTL).Format(time.RFC3339), *ch.Expires)
		}
		k.ExpiresMs = end.UnixMilli()
	}
	return err
}

// rename gives a key another name. Past usage stays under the old name, which no other
// user's key gets.
func (c *change) rename(k *keyRow, name string) error {
	if err := checkName("name", name); err != nil {
		return err
	}
	if k.ReplacedBy != "" {
		return newFault(ErrConflict, "name", "the key %s has been replaced by %s: rename that one", k.Name, k.ReplacedBy)
	}
	name, err := c.freeName(name, k)
	if err != nil {
		return err
	}
	if err := c.exec("INSERT INTO account_key_names (name, user_name) VALUES (?, ?) ON CONFLICT (name) DO NOTHING", k.Name, k.UserName); err != nil {
		return err
	}
	k.Name = name
	return nil
}

// revoke revokes those keys that are not revoked yet, and returns them. It includes
// expired keys, which a later change or rotation would otherwise make valid again.
func (c *change) revoke(keys []*keyRow) (revoked []Key, err error) {
	for _, k := range keys {
		old := k.view(c.now)
		if old.Status == KeyRevoked {
			continue
		}
		k.RevokedMs = c.now.UnixMilli()
		if err := c.exec("UPDATE account_keys SET revoked_ms = ? WHERE id = ?", k.RevokedMs, k.ID); err != nil {
			return nil, err
		}
		updated := k.view(c.now)
		if err := c.writeAudit("key.revoke", k.ID, old, updated); err != nil {
			return nil, err
		}
		revoked = append(revoked, updated)
	}
	return revoked, nil
}

// RevokeKey revokes the key with an id, or all keys with a name, including replaced ones.
// It ends the requests under way with them. It returns the keys that were not revoked
// before.
func (s *Store) RevokeKey(ctx context.Context, actor, ref string) (revoked []Key, err error) {
	err = s.change(ctx, actor, func(c *change) error {
		rows, err := c.find(ref)
		if err != nil {
			return err
		}
		revoked, err = c.revoke(rows)
		if err == nil && len(revoked) == 0 {
			err = newFault(ErrConflict, "key", "the key %s is %s already", ref, rows[0].view(c.now).Status)
		}
		return err
	})
	return revoked, err
}

// RevokeUser revokes all keys of a user, as RevokeKey does. A user without a valid key is
// no error.
func (s *Store) RevokeUser(ctx context.Context, actor, user string) (revoked []Key, err error) {
	revoked = []Key{}
	err = s.change(ctx, actor, func(c *change) error {
		row, err := c.requireOwner(UserKind, user)
		if err != nil {
			return err
		}
		rows, err := c.store.keys(c.ctx, c.tx, "k.user_name = ? ORDER BY k.id", row.Name)
		if err != nil {
			return err
		}
		ended, err := c.revoke(rows)
		revoked = append(revoked, ended...)
		return err
	})
	return revoked, err
}

// RevokeSecret revokes the key with a text that somebody has found, as RevokeKey does. No
// error quotes the text.
func (d *Directory) RevokeSecret(ctx context.Context, actor, secret string) (revoked []Key, err error) {
	sum := hashKey(secret)
	if id, ok := d.keys[sum]; ok {
		return nil, newFault(ErrConflict, "secret", "this key of user %s is in the configuration file (%s): remove it there, and every gateway refuses it within two seconds of the change", id.User, id.Key)
	}
	if !wellFormed(secret) {
		return nil, newFault(ErrInvalid, "secret", "secret: is not a key, which begins with %s and has %d characters; this one has %d", prefix, secretLen, len(secret))
	}
	err = d.store.change(ctx, actor, func(c *change) error {
		rows, err := c.store.keys(c.ctx, c.tx, "k.hash = ?", hex.EncodeToString(sum[:]))
		if err != nil {
			return err
		}
		if len(rows) == 0 {
			return newFault(ErrNotFound, "secret", "no key of this store has that text: look in the other gateways' stores and configurations")
		}
		revoked, err = c.revoke(rows)
		if err == nil && len(revoked) == 0 {
			err = newFault(ErrConflict, "secret", "the key %s (id %s) of user %s is %s already", rows[0].Name, rows[0].ID, rows[0].UserName, rows[0].view(c.now).Status)
		}
		return err
	})
	return revoked, err
}

// CheckModels returns a Fault that names a model of a key that is not among the known
// names and aliases.
func CheckModels(models, known []string) error {
	for _, m := range models {
		if slices.Contains(known, m) {
			continue
		}
		list := strings.Join(known[:min(len(known), maxListed)], ", ")
		if len(known) > maxListed {
			list += ", ..."
		}
		return newFault(ErrInvalid, "models", "models: the configuration has no model %.60q; it has %s", m, list)
	}
	return nil
}

// maxListed is the largest number of names in a message.
const maxListed = 20

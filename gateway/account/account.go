// Package account says who is calling. A key is a random string of which only
// the SHA-256 is kept here; it belongs to a user and may be bound to some models.
//
// The keys of this package's Directory come from the configuration file, for
// small installations that keep their users beside their models under version
// control.
package account

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// ErrUnknownKey says that a request carries no key, or none that is known.
var ErrUnknownKey = errors.New("unknown key")

// maxKey bounds what is hashed of a caller's key, in bytes.
const maxKey = 512

// Modes of Config.
const (
	Keys = "keys" // only known keys
	Open = "open" // any key or none; the caller's address is the user
)

// Config is the auth section of the configuration.
type Config struct {
	Mode string      `yaml:"mode"` // keys | open
	Keys []KeyConfig `yaml:"keys"`
}

// KeyConfig is one key. It is given as the SHA-256 of its text, in hexadecimal,
// or by an environment variable or a file that holds its text.
type KeyConfig struct {
	Name    string   `yaml:"name"` // shown in usage reports and logs; empty: the user's name
	User    string   `yaml:"user"`
	SHA256  string   `yaml:"sha256"`
	KeyEnv  string   `yaml:"key_env"`
	KeyFile string   `yaml:"key_file"`
	Models  []string `yaml:"models"` // empty: all
	Key     string   `yaml:"-"`      // what the variable or the file held
}

// Default is a gateway that asks for keys.
func Default() Config { return Config{Mode: Keys} }

// Validate says all that is wrong, path first.
func (c *Config) Validate() error {
	var faults []error
	if c.Mode != Keys && c.Mode != Open {
		faults = append(faults, fmt.Errorf("mode: must be keys or open, not %q", c.Mode))
	}
	if c.Mode == Keys && len(c.Keys) == 0 {
		faults = append(faults, errors.New("keys: is empty, so nobody could call; name a key or set mode: open"))
	}
	seen := map[[sha256.Size]byte]int{}
	for i := range c.Keys {
		k := &c.Keys[i]
		sum, err := k.sum()
		switch {
		case k.User == "":
			err = errors.New("user: is missing")
		case err == nil:
			if j, twice := seen[sum]; twice {
				err = fmt.Errorf("user: is the same key as keys[%d]", j)
			}
			seen[sum] = i
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("keys[%d].%w", i, err))
		}
	}
	return errors.Join(faults...)
}

func (k *KeyConfig) sum() (sum [sha256.Size]byte, err error) {
	given := 0
	for _, s := range []string{k.SHA256, k.KeyEnv, k.KeyFile} {
		if s != "" {
			given++
		}
	}
	if given != 1 {
		return sum, errors.New("sha256: give exactly one of sha256, key_env and key_file")
	}
	if k.SHA256 == "" {
		if len(k.Key) < 16 || len(k.Key) > maxKey {
			return sum, fmt.Errorf("key_env: the key must have 16 to %d characters", maxKey)
		}
		return sha256.Sum256([]byte(k.Key)), nil
	}
	raw, err := hex.DecodeString(k.SHA256)
	if err != nil || len(raw) != len(sum) {
		return sum, errors.New("sha256: must be 64 hexadecimal digits, as printed by sha256sum")
	}
	return [sha256.Size]byte(raw), nil
}

// Identity is who calls.
type Identity struct {
	User   string
	Key    string // the key's name, never the key
	models []string
}

// MayUse reports whether the caller may use a model.
func (i Identity) MayUse(model string) bool {
	return len(i.models) == 0 || slices.Contains(i.models, model)
}

// Directory knows the keys. It is immutable.
type Directory struct {
	open bool
	keys map[[sha256.Size]byte]Identity
}

// New makes a directory of a valid configuration.
func New(c Config) *Directory {
	d := &Directory{open: c.Mode == Open, keys: make(map[[sha256.Size]byte]Identity, len(c.Keys))}
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
		d.keys[sum] = Identity{User: k.User, Key: name, models: k.Models}
	}
	return d
}

// Identify finds who calls from the Authorization header and the caller's
// address. The look-up is of a hash, so its time says nothing about any key. In
// open mode a known key still names its user.
func (d *Directory) Identify(authorization string, from netip.Addr) (Identity, error) {
	scheme, key, _ := strings.Cut(authorization, " ")
	key = strings.TrimSpace(key)
	if strings.EqualFold(scheme, "Bearer") && key != "" && len(key) <= maxKey && len(d.keys) > 0 {
		if id, ok := d.keys[sha256.Sum256([]byte(key))]; ok {
			return id, nil
		}
	}
	if d.open {
		return Identity{User: from.String(), Key: Open}, nil
	}
	return Identity{}, ErrUnknownKey
}

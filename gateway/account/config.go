package account

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

func hashKey(key string) hash { return sha256.Sum256([]byte(key)) }

// Modes of Config.
const (
	Keys = "keys" // only known keys
	Open = "open" // any key or none; the caller's address is the user
)

// DefaultAdminKeyEnv is the variable that may hold the administrators' key.
const DefaultAdminKeyEnv = "TIDEGATE_ADMIN_KEY"

// Config is the auth section of the configuration.
type Config struct {
	Mode            string        `yaml:"mode"`             // keys: those of the store and of the file; open: anyone, the address is the user
	KeyTTL          time.Duration `yaml:"key_ttl"`          // how long a key of the store is good unless it says otherwise
	ExpiryWarn      time.Duration `yaml:"expiry_warn"`      // before a key of the store expires, how long the log, /status and a metric warn of it; 0: not at all. Keys that were made to live no longer than that are left out
	AllowUnexpiring bool          `yaml:"allow_unexpiring"` // whether a key may be good forever
	AdminKeyEnv     string        `yaml:"admin_key_env"`    // environment variable whose value opens /admin/v1/; the usual one may be unset
	AdminKeyFile    string        `yaml:"admin_key_file"`   // or the file
	FailedKeys      int           `yaml:"failed_keys"`      // keys a minute that may fail from one address (IPv6: /64), before others from it than those in use are refused unseen; 0: any number
	Keys            []KeyConfig   `yaml:"keys"`
	AdminKey        string        `yaml:"-"` // what the variable held; empty: there is none
}

// KeyConfig is one key. It is given as the SHA-256 of its text, in hexadecimal,
// or by an environment variable or a file that holds its text.
type KeyConfig struct {
	Name    string   `yaml:"name"`     // shown in usage reports and logs; empty: the user's name
	User    string   `yaml:"user"`     // whose key it is
	SHA256  string   `yaml:"sha256"`   // of the key, in hex: the key itself need not be here
	KeyEnv  string   `yaml:"key_env"`  // environment variable that holds the key
	KeyFile string   `yaml:"key_file"` // or the file
	Models  []string `yaml:"models"`   // that it may use; empty: all
	Key     string   `yaml:"-"`        // what the variable or the file held
}

// Default is a gateway that asks for keys, which last a week.
func Default() Config {
	return Config{Mode: Keys, KeyTTL: 7 * 24 * time.Hour, ExpiryWarn: 48 * time.Hour, AdminKeyEnv: DefaultAdminKeyEnv, FailedKeys: 60}
}

// Validate says all that is wrong, path first.
func (c *Config) Validate() error {
	var faults []error
	if c.Mode != Keys && c.Mode != Open {
		faults = append(faults, fmt.Errorf("mode: must be keys or open, not %q", c.Mode))
	}
	switch {
	case c.KeyTTL == 0 && !c.AllowUnexpiring:
		faults = append(faults, errors.New("key_ttl: is 0, so keys would never expire; say allow_unexpiring: true as well, or something like 168h"))
	case c.KeyTTL < 0 || c.KeyTTL > 0 && c.KeyTTL < time.Minute:
		faults = append(faults, errors.New("key_ttl: must be at least 1m, such as 168h"))
	}
	if c.ExpiryWarn < 0 || c.ExpiryWarn > 0 && c.ExpiryWarn < time.Minute {
		faults = append(faults, errors.New("expiry_warn: must be at least 1m, such as 48h, or 0 for no warning"))
	}
	if c.AdminKey != "" && (len(c.AdminKey) < minKey || len(c.AdminKey) > maxKey) {
		faults = append(faults, fmt.Errorf("admin_key_env: the key must have %d to %d characters", minKey, maxKey))
	}
	if c.FailedKeys < 0 || c.FailedKeys > 1_000_000 {
		faults = append(faults, errors.New("failed_keys: must be from 0 to 1000000, such as 60; 0 is any number"))
	}
	seen := map[hash]int{}
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

// minKey is how long a key of somebody's own making must be, in bytes.
const minKey = 16

func (k *KeyConfig) sum() (sum hash, err error) {
	sources := 0
	for _, s := range []string{k.SHA256, k.KeyEnv, k.KeyFile} {
		if s != "" {
			sources++
		}
	}
	if sources != 1 {
		return sum, errors.New("sha256: give exactly one of sha256, key_env and key_file")
	}
	if k.SHA256 == "" {
		if len(k.Key) < minKey || len(k.Key) > maxKey {
			return sum, fmt.Errorf("key_env: the key must have %d to %d characters", minKey, maxKey)
		}
		return hashKey(k.Key), nil
	}
	raw, err := hex.DecodeString(k.SHA256)
	if err != nil || len(raw) != len(sum) {
		return sum, errors.New("sha256: must be 64 hexadecimal digits, as printed by sha256sum")
	}
	return hash(raw), nil
}

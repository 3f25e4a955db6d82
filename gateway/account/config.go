package account

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

// hashKey returns the hash of a key's text.
func hashKey(key string) hash { return sha256.Sum256([]byte(key)) }

// Modes of Config.
const (
	Keys = "keys" // only known keys
	Open = "open" // any key or none; the caller's address is the user
)

// DefaultAdminKeyEnv names the environment variable that may hold the administrators' key.
const DefaultAdminKeyEnv = "TIDEGATE_ADMIN_KEY"

// Config is the auth section of the configuration.
type Config struct {
	Mode            string        `yaml:"mode"`             // keys: only keys of the store and of the file; open: everybody, and the address is the user
	KeyTTL          time.Duration `yaml:"key_ttl"`          // life of a key of the store that sets none of its own
	ExpiryWarn      time.Duration `yaml:"expiry_warn"`      // lead with which the log, /status and a metric warn that a key of the store expires; 0: no warning. Keys that were made to live no longer than that are left out
	AllowUnexpiring bool          `yaml:"allow_unexpiring"` // whether a key may live for ever
	AdminKeyEnv     string        `yaml:"admin_key_env"`    // environment variable that holds the key of /admin/v1/; the default one may be unset
	AdminKeyFile    string        `yaml:"admin_key_file"`   // file that holds it, in place of the variable
	FailedKeys      int           `yaml:"failed_keys"`      // invalid keys a minute from one address (IPv6: /64), above which its new keys are refused unchecked; 0: any number
	Keys            []KeyConfig   `yaml:"keys"`
	AdminKey        string        `yaml:"-"` // value of the variable or the file; empty for none
}

// KeyConfig is one key of the configuration. It is set by the SHA-256 of its text, in
// hexadecimal, or by an environment variable or a file that holds its text.
type KeyConfig struct {
	Name    string   `yaml:"name"`     // name in usage reports and logs; empty: the user's name
	User    string   `yaml:"user"`     // owner of the key
	SHA256  string   `yaml:"sha256"`   // SHA-256 of the key, in hex, so that the file need not hold the key
	KeyEnv  string   `yaml:"key_env"`  // environment variable that holds the key
	KeyFile string   `yaml:"key_file"` // file that holds it, in place of the variable
	Models  []string `yaml:"models"`   // models that it may use; empty: all
	Key     string   `yaml:"-"`        // value of the variable or the file
}

// Default returns the configuration of a gateway that requires keys, which last a week.
func Default() Config {
	return Config{Mode: Keys, KeyTTL: 7 * 24 * time.Hour, ExpiryWarn: 48 * time.Hour, AdminKeyEnv: DefaultAdminKeyEnv, FailedKeys: 60}
}

// Validate returns all faults of the configuration, each with its path first.
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

// minKey is the shortest text of a key of the configuration, in bytes.
const minKey = 16

// sum returns the hash of the key, or an error if the entry sets it wrongly.
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

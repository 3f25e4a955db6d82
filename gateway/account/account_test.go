package account

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func hexSum(key string) string {
	s := sha256.Sum256([]byte(key))
	return hex.EncodeToString(s[:])
}

const (
	annKey = "tg-ann-0123456789"
	bobKey = "tg-bob-0123456789"
)

func validConfig() Config {
	c := Default()
	c.Keys = []KeyConfig{
		{User: "ann", SHA256: hexSum(annKey)},
		{Name: "ci", User: "bob", KeyEnv: "BOB", Key: bobKey, Models: []string{"qwen3", "small"}},
		{Name: "caps", User: "ann", SHA256: strings.ToUpper(hexSum("tg-upper-0123456"))},
	}
	return c
}

func TestFaults(t *testing.T) {
	c := validConfig()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	if c := Default(); c.Mode != Keys || c.KeyTTL != 168*time.Hour || c.Validate() != nil {
		t.Error("the default asks for keys, which the store may have")
	}
	for _, c := range []struct {
		name   string
		change func(*Config)
		want   []string // how the faults begin
	}{
		{"mode", func(c *Config) { c.Mode = "none" }, []string{`mode: must be keys or open, not "none"`}},
		{"no mode", func(c *Config) { c.Mode = "" }, []string{"mode: "}},
		{"keys forever", func(c *Config) { c.KeyTTL = 0 }, []string{"key_ttl: is 0"}},
		{"a negative life", func(c *Config) { c.KeyTTL, c.AllowUnexpiring = -1, true }, []string{"key_ttl: must be"}},
		{"a short life", func(c *Config) { c.KeyTTL = time.Second }, []string{"key_ttl: must be"}},
		{"a short admin key", func(c *Config) { c.AdminKey = "short" }, []string{"admin_key_env: the key must have 16"}},
		{"no user", func(c *Config) { c.Keys[1].User = "" }, []string{"keys[1].user: is missing"}},
		{"no key", func(c *Config) { c.Keys[0].SHA256 = "" }, []string{"keys[0].sha256: give exactly one"}},
		{"two keys", func(c *Config) { c.Keys[0].KeyFile = "f" }, []string{"keys[0].sha256: give exactly one"}},
		{"three keys", func(c *Config) { c.Keys[1].KeyFile, c.Keys[1].SHA256 = "f", hexSum("x") }, []string{"keys[1].sha256: give exactly one"}},
		{"a short key", func(c *Config) { c.Keys[1].Key = strings.Repeat("x", 15) }, []string{"keys[1].key_env: the key must have 16 to 512"}},
		{"an empty variable", func(c *Config) { c.Keys[1].Key = "" }, []string{"keys[1].key_env: "}},
		{"a long key", func(c *Config) { c.Keys[1].Key = strings.Repeat("x", 513) }, []string{"keys[1].key_env: "}},
		{"no hexadecimal", func(c *Config) { c.Keys[0].SHA256 = strings.Repeat("x", 64) }, []string{"keys[0].sha256: must be 64"}},
		{"too short a hash", func(c *Config) { c.Keys[0].SHA256 = hexSum("a")[:62] }, []string{"keys[0].sha256: must be 64"}},
		{"the key in the place of its hash", func(c *Config) { c.Keys[0].SHA256 = annKey }, []string{"keys[0].sha256: must be 64"}},
		{"twice", func(c *Config) { c.Keys[2].SHA256 = hexSum(bobKey) }, []string{"keys[2].user: is the same key as keys[1]"}},
		{"twice, other case", func(c *Config) { c.Keys[2].SHA256 = strings.ToUpper(hexSum(annKey)) }, []string{"keys[2].user: is the same key as keys[0]"}},
		{"all at once", func(c *Config) { c.Mode = "x"; c.Keys = make([]KeyConfig, 2) }, []string{"mode: ", "keys[0].user: ", "keys[1].user: "}},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := validConfig()
			c.change(&config)
			err := config.Validate()
			if err == nil {
				t.Fatal("no fault")
			}
			if faults := strings.Split(err.Error(), "\n"); !slices.EqualFunc(faults, c.want, strings.HasPrefix) {
				t.Errorf("%q", faults)
			}
			if strings.Contains(err.Error(), annKey) || strings.Contains(err.Error(), bobKey) {
				t.Error("a fault tells a key")
			}
		})
	}
}

func TestIdentify(t *testing.T) {
	from := netip.MustParseAddr("192.0.2.7")
	closed := validConfig()
	open := validConfig()
	open.Mode = Open
	for _, c := range []struct {
		name, header string
		user, key    string // empty: nobody, or in open mode the address
	}{
		{"by hash", "Bearer " + annKey, "ann", "ann"},
		{"by text", "Bearer " + bobKey, "bob", "ci"},
		{"a hash in capitals", "Bearer tg-upper-0123456", "ann", "caps"},
		{"another case of the scheme", "bEaReR " + annKey, "ann", "ann"},
		{"spaces", "Bearer   " + annKey + "  ", "ann", "ann"},
		{"no header", "", "", ""},
		{"no key", "Bearer", "", ""},
		{"only spaces", "Bearer   ", "", ""},
		{"another scheme", "Basic " + annKey, "", ""},
		{"no scheme", annKey, "", ""},
		{"an unknown key", "Bearer EMPTY", "", ""},
		{"the hash itself", "Bearer " + hexSum(annKey), "", ""},
		{"another case of the key", "Bearer " + strings.ToUpper(annKey), "", ""},
		{"the start of a key", "Bearer " + annKey[:16], "", ""},
		{"a key and more", "Bearer " + annKey + " x", "", ""},
		{"a huge key", "Bearer " + strings.Repeat("x", 1<<20), "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			id, err := New(closed, nil).Identify(t.Context(), c.header, from)
			if c.user == "" != errors.Is(err, ErrUnknownKey) || id.User != c.user || id.Key != c.key {
				t.Errorf("%+v, %v", id, err)
			}
			user, key := c.user, c.key
			if user == "" {
				user, key = "192.0.2.7", Open
			}
			if id, err := New(open, nil).Identify(t.Context(), c.header, from); err != nil || id.User != user || id.Key != key {
				t.Errorf("open: %+v, %v", id, err)
			}
		})
	}
	if id, err := New(Config{Mode: Open}, nil).Identify(t.Context(), "Bearer "+annKey, from); err != nil || id.User != "192.0.2.7" || !id.MayUse("any") {
		t.Errorf("%+v, %v", id, err)
	}
}

func TestMayUse(t *testing.T) {
	d := New(validConfig(), nil)
	ann, _ := d.Identify(t.Context(), "Bearer "+annKey, netip.Addr{})
	bob, _ := d.Identify(t.Context(), "Bearer "+bobKey, netip.Addr{})
	if !ann.MayUse("qwen3") || !ann.MayUse("") {
		t.Error("a key that names no model may use all")
	}
	if !bob.MayUse("qwen3") || !bob.MayUse("small") || bob.MayUse("Qwen3") || bob.MayUse("large") {
		t.Error("a key that names models may use these")
	}
}

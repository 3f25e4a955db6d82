package redislimit

import (
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

func TestConfig(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Config)
		want   []string // the beginnings of all faults
	}{
		"none":     {func(*Config) {}, nil},
		"one":      {func(c *Config) { c.Addrs, c.DB = []string{"redis:6379"}, 3 }, nil},
		"sentinel": {func(c *Config) { c.Addrs, c.SentinelMaster = []string{"a:1", "b:1", "c:1"}, "m" }, nil},
		"all at once": {func(c *Config) {
			c.Addrs, c.Timeout, c.DB = []string{"redis", ":1", "a:"}, 0, -1
		}, []string{"addrs[0]: ", "addrs[1]: ", "addrs[2]: ", "timeout: ", "db: ", "db: "}},
		"not an address": {func(c *Config) {
			c.Addrs = []string{"h:6379/2", "redis://u:secret@h:6379", "h:0", "h:65536", "h:http"}
		}, []string{"addrs[0]: must be host:port; the number of the database is the setting db", "addrs[1]: must be host:port, without a scheme", "addrs[2]: ", "addrs[3]: ", "addrs[4]: "}},
		"no sentinels":        {func(c *Config) { c.SentinelMaster = "m" }, []string{"sentinel_master: "}},
		"sentinel of cluster": {func(c *Config) { c.Addrs, c.SentinelMaster, c.Cluster = []string{"a:1"}, "m", true }, []string{"cluster: "}},
		"slow":                {func(c *Config) { c.Timeout = time.Minute }, []string{"timeout: "}},
	} {
		c := DefaultConfig()
		test.change(&c)
		var got []string
		if err := c.Validate(); err != nil {
			got = strings.Split(err.Error(), "\n")
		}
		if len(got) != len(test.want) {
			t.Errorf("%s: %q, want %q", name, got, test.want)
			continue
		}
		for i := range got {
			if !strings.HasPrefix(got[i], test.want[i]) {
				t.Errorf("%s: %q, want %q", name, got[i], test.want[i])
			}
		}
	}
}

// TestDial: whatever is dialed neither repeats a call nor outlives a deadline.
func TestDial(t *testing.T) {
	c := DefaultConfig()
	c.Addrs, c.Username, c.Password, c.TLS = []string{"127.0.0.1:1"}, "u", "p", true
	for name, change := range map[string]func(*Config){
		"single":   func(*Config) {},
		"sentinel": func(c *Config) { c.SentinelMaster = "m" },
	} {
		one := c
		change(&one)
		client := Dial(one).(*redis.Client)
		// The client keeps "no retries" as 0.
		if o := client.Options(); o.MaxRetries != 0 || !o.ContextTimeoutEnabled || o.TLSConfig == nil || o.Username != "u" || o.Password != "p" {
			t.Errorf("%s: %+v", name, o)
		}
		_ = client.Close()
	}
	for name, change := range map[string]func(*Config){
		"several": func(c *Config) { c.Addrs = append(c.Addrs, "127.0.0.1:2") },
		"said":    func(c *Config) { c.Cluster = true },
	} {
		one := c
		change(&one)
		client, ok := Dial(one).(*redis.ClusterClient)
		if !ok {
			t.Fatalf("%s: not a cluster's client", name)
		}
		if o := client.Options(); o.MaxRedirects != 3 || !o.ContextTimeoutEnabled {
			t.Errorf("%s: %+v", name, o)
		}
		_ = client.Close()
	}
}

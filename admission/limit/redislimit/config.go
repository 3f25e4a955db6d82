package redislimit

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
)

// Config is the section redis of the configuration.
type Config struct {
	// Addrs are of the server, of some of a cluster's servers (more than one), or of
	// the sentinels. None: there is no Redis.
	Addrs          []string `yaml:"addrs"`
	SentinelMaster string   `yaml:"sentinel_master"` // the name by which sentinels know the master
	Cluster        bool     `yaml:"cluster"`         // the one address is of a cluster
	Username       string   `yaml:"username"`        // of an ACL; empty: the default user
	PasswordEnv    string   `yaml:"password_env"`    // environment variable that holds the password; the usual one may be unset
	PasswordFile   string   `yaml:"password_file"`   // or the file
	Password       string   `yaml:"-"`               // of PasswordEnv or PasswordFile
	TLS            bool     `yaml:"tls"`             // speak TLS to it
	DB             int      `yaml:"db"`              // number of the database
	// Timeout is the most that one decision waits, for a connection too.
	Timeout time.Duration `yaml:"timeout"`
}

// DefaultConfig returns a configuration without Redis, and with 50 ms for a decision.
func DefaultConfig() Config {
	return Config{PasswordEnv: DefaultPasswordEnv, Timeout: 50 * time.Millisecond}
}

// DefaultPasswordEnv is the environment variable of the password, which may be unset.
const DefaultPasswordEnv = "REDIS_PASSWORD"

// Validate returns all faults of the configuration, each with its path first.
func (c *Config) Validate() error {
	var faults []error
	add := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	for i, addr := range c.Addrs {
		host, port, err := net.SplitHostPort(addr)
		number, notNumber := strconv.Atoi(port)
		switch {
		case strings.Contains(addr, "://"):
			add("addrs[%d]: must be host:port, without a scheme; username, password_env, db and tls are settings of their own", i)
		case err == nil && strings.Contains(port, "/"):
			add("addrs[%d]: must be host:port; the number of the database is the setting db", i)
		case err != nil || host == "" || notNumber != nil || number < 1 || number > 65535:
			add("addrs[%d]: must be host:port with a port from 1 to 65535, such as redis:6379", i)
		}
	}
	if c.Timeout < time.Millisecond || c.Timeout > 5*time.Second {
		add("timeout: must be from 1ms to 5s, not %s", c.Timeout)
	}
	if c.DB < 0 {
		add("db: must not be negative")
	}
	if len(c.Addrs) == 0 && c.SentinelMaster != "" {
		add("sentinel_master: needs the sentinels' addrs")
	}
	if c.SentinelMaster != "" && c.Cluster {
		add("cluster: sentinels do not watch a cluster")
	}
	if c.SentinelMaster == "" && (c.Cluster || len(c.Addrs) > 1) && c.DB != 0 {
		add("db: a cluster has only 0")
	}
	return errors.Join(faults...)
}

// Dial returns the client of a valid configuration with addresses; it connects with
// its first use. It never repeats a call: a repeated one whose answer was only late
// would be charged again by a script that is not idempotent, and a heartbeat waits
// for its own deadline, not for four.
func Dial(c Config) redis.UniversalClient {
	o := &redis.UniversalOptions{
		Addrs: c.Addrs, MasterName: c.SentinelMaster, IsClusterMode: c.Cluster,
		Username: c.Username, Password: c.Password, DB: c.DB,
		MaxRetries: -1, ContextTimeoutEnabled: true,
		// A slot that has moved is asked for where it is now: that is no repetition.
		MaxRedirects: 3,
		// Dialing happens beside the call that wants it, and serves a later one where
		// that has given up.
		DialTimeout: 10 * c.Timeout, DialerRetries: 1,
		// For calls without a deadline. The heartbeats of many requests may take a while.
		ReadTimeout: maxRead, WriteTimeout: maxRead, PoolTimeout: maxRead,
		PoolSize: 16 * runtime.GOMAXPROCS(0), MinIdleConns: 2, FailingTimeoutSeconds: 1,
		// With the newer protocol the client looks before each answer for pushed messages,
		// which the server never sends.
		Protocol: 2, DisableIdentity: true,
	}
	if c.TLS {
		o.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	// The library would write each failure to stderr as well, in another form than our log.
	// It dials from the first moment on.
	logging.Disable()
	return redis.NewUniversalClient(o)
}

const maxRead = 2 * time.Second

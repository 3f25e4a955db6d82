package redislimit

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"tidegate/admission/limit"
	"tidegate/admission/limit/limittest"
	"tidegate/admission/limit/redislimit/redistest"
)

// plain is a client as Dial makes them, with time enough for a busy machine.
func plain(t testing.TB, o redis.UniversalOptions) redis.UniversalClient {
	t.Helper()
	o.MaxRetries, o.ContextTimeoutEnabled = -1, true
	c := redis.NewUniversalClient(&o)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func wipe(t testing.TB, servers ...*redistest.Server) {
	t.Helper()
	for _, s := range servers {
		if err := s.Client().FlushAll(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSingle(t *testing.T) {
	server := redistest.Single(t)
	client := plain(t, redis.UniversalOptions{Addrs: []string{server.Addr}})
	look := server.Client()
	limittest.Run(t, func(t *testing.T, now func() time.Time) limit.Store {
		if err := look.FlushAll(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		return New(client, Options{Now: now})
	})
}

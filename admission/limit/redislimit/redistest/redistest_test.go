package redistest

import (
	"context"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

func TestSingle(t *testing.T) {
	s := Single(t)
	c := s.Client()
	if err := c.Set(t.Context(), "a", "b", 0).Err(); err != nil {
		t.Fatal(err)
	}
	s.Pause()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.Get(ctx, "a").Err(); err == nil {
		t.Error("a paused server answered")
	}
	s.Resume()
	if got := s.Client().Get(t.Context(), "a").Val(); got != "b" {
		t.Errorf("after the pause: %q", got)
	}
	s.Kill()
	if err := s.Client().Ping(t.Context()).Err(); err == nil {
		t.Error("a killed server answered")
	}
	s.Start()
	if n := s.Client().DBSize(t.Context()).Val(); n != 0 {
		t.Errorf("%d keys after a restart without persistence", n)
	}
}

func TestCluster(t *testing.T) {
	n := Cluster(t)
	c := redis.NewClusterClient(&redis.ClusterOptions{Addrs: n.Addrs, MaxRetries: -1})
	defer c.Close()
	for _, key := range []string{"a", "b", "c", "d", "e", "f", "g"} {
		if err := c.Set(t.Context(), key, "x", 0).Err(); err != nil {
			t.Error(err)
		}
	}
	for _, s := range n.Servers {
		if s.Client().DBSize(t.Context()).Val() == 0 {
			t.Errorf("%s has no key: the slots are not spread", s.Addr)
		}
	}
}

func TestSentinel(t *testing.T) {
	w := Sentinel(t)
	c := redis.NewFailoverClient(&redis.FailoverOptions{MasterName: w.Name, SentinelAddrs: w.Addrs, MaxRetries: -1})
	defer c.Close()
	if err := c.Set(t.Context(), "a", "b", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if n := c.Wait(t.Context(), 1, 5*time.Second).Val(); n != 1 {
		t.Fatalf("%d replicas have it", n)
	}
	w.Master.Kill()
	w.Replica.await(agreeTime, "is the master", func(ctx context.Context) bool {
		return c.Set(ctx, "b", "c", 0).Err() == nil
	})
	if got := w.Replica.Client().Get(t.Context(), "a").Val(); got != "b" {
		t.Errorf("the new master has %q", got)
	}
}

// Package redistest starts real Redis servers for tests: one, a cluster of three
// masters, or a master with a replica and three sentinels. A stand-in would not
// do: what is tested is what the server's own Lua, clock, expiry and failover do.
//
// Every server listens on a free port of the loopback, keeps its files in the
// test's own folder, and is killed when the test ends. Where there is no
// redis-server the test is skipped, loudly; `make test` installs it where it may.
package redistest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	startTime = 10 * time.Second // for a server to answer
	agreeTime = 30 * time.Second // for several to agree
	pollEvery = 20 * time.Millisecond
)

// Server is one redis-server. Its methods are for one goroutine.
type Server struct {
	Addr string // 127.0.0.1:PORT

	t       testing.TB
	dir     string
	options []string // as lines of a configuration file
	command *exec.Cmd
	ended   chan struct{}
	output  *processOutput
}

// processOutput is a buffer that a process writes while a test may read it.
type processOutput struct {
	sync.Mutex
	bytes.Buffer
}

func (l *processOutput) Write(p []byte) (int, error) {
	l.Lock()
	defer l.Unlock()
	return l.Buffer.Write(p)
}

// tail returns the end of what a process has written.
func (l *processOutput) tail() string {
	l.Lock()
	defer l.Unlock()
	text := l.String()
	return text[max(0, len(text)-2000):]
}

// Single starts one server without persistence.
func Single(t testing.TB) *Server {
	t.Helper()
	return start(t, "server")
}

// start starts one server with more options. A sentinel is one too.
func start(t testing.TB, kind string, options ...string) *Server {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Skip("SKIPPED-PART: tests on a real Redis: redis-server is not installed; `make test` installs it where it may (Debian: apt-get install redis-server)")
	}
	s := &Server{t: t, dir: t.TempDir(), options: options, Addr: freeAddr(t)}
	if kind == "sentinel" {
		s.options = append(s.options, "sentinel resolve-hostnames no")
	} else {
		s.options = append(s.options, `save ""`, "appendonly no", "enable-debug-command yes")
	}
	t.Cleanup(s.Kill)
	s.Start()
	return s
}

// Start starts the server again after Kill, on the same port and with no state but
// what its files hold. It returns when the server answers.
func (s *Server) Start() {
	s.t.Helper()
	_, port, _ := net.SplitHostPort(s.Addr)
	file := filepath.Join(s.dir, "redis.conf")
	if _, err := os.Stat(file); err != nil { // a sentinel and a cluster's node write theirs
		lines := append([]string{"port " + port, "bind 127.0.0.1", "dir " + s.dir, "daemonize no", "protected-mode no"}, s.options...)
		if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	args := []string{file}
	if strings.HasPrefix(strings.Join(s.options, "\n"), "sentinel ") {
		args = append(args, "--sentinel")
	}
	s.output = &processOutput{}
	s.command = exec.Command("redis-server", args...)
	s.command.Stdout, s.command.Stderr = s.output, s.output
	if err := s.command.Start(); err != nil {
		s.t.Fatalf("start redis-server: %v", err)
	}
	command, ended := s.command, make(chan struct{})
	s.ended = ended
	go func() {
		_ = command.Wait() // killed, as it should be
		close(ended)
	}()
	c := s.Client()
	s.await(startTime, "answers", func(ctx context.Context) bool {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.Addr)
		if err != nil {
			return false
		}
		_ = conn.Close()
		return c.Ping(ctx).Err() == nil
	})
}

// Client returns a plain client of this server, for looking at it from outside of what is
// tested. It is closed with the test.
func (s *Server) Client() *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: s.Addr, MaxRetries: -1, DialerRetries: 1, ContextTimeoutEnabled: true, Protocol: 2, DisableIdentity: true})
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}

// Kill kills the server at once, as kill -9 does. It may be killed already.
func (s *Server) Kill() {
	if s.command != nil {
		_ = s.command.Process.Kill()
		<-s.ended
	}
}

// Pause stops the process without closing its sockets, so that it accepts
// connections and answers nobody. Resume lets it go on.
func (s *Server) Pause() { s.signal(syscall.SIGSTOP) }

// Resume ends a Pause.
func (s *Server) Resume() { s.signal(syscall.SIGCONT) }

func (s *Server) signal(one syscall.Signal) {
	s.t.Helper()
	if err := s.command.Process.Signal(one); err != nil {
		s.t.Fatalf("signal redis-server: %v", err)
	}
}

// await polls until a state is reached. A server that ended never reaches it.
func (s *Server) await(limit time.Duration, state string, reached func(context.Context) bool) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for !reached(ctx) {
		select {
		case <-tick.C:
		case <-s.ended:
			s.t.Fatalf("redis-server at %s ended before it %s:\n%s", s.Addr, state, s.output.tail())
		case <-ctx.Done():
			s.t.Fatalf("redis-server at %s: not within %s that it %s:\n%s", s.Addr, limit, state, s.output.tail())
		}
	}
}

func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Nodes is a cluster of three masters without replicas.
type Nodes struct {
	Addrs   []string
	Servers []*Server
}

// Cluster starts three masters that share the slots and know one another.
func Cluster(t testing.TB) *Nodes {
	t.Helper()
	const masters, slots = 3, 16384
	n := &Nodes{}
	for range masters {
		_, bus, _ := net.SplitHostPort(freeAddr(t)) // the usual one, 10000 higher, may not exist
		s := start(t, "server", "cluster-enabled yes", "cluster-node-timeout 2000", "cluster-port "+bus)
		n.Servers, n.Addrs = append(n.Servers, s), append(n.Addrs, s.Addr)
		first := n.Servers[0]
		i := len(n.Servers) - 1
		ctx, c := context.Background(), s.Client()
		if err := c.ClusterAddSlotsRange(ctx, slots*i/masters, slots*(i+1)/masters-1).Err(); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			continue
		}
		host, port, _ := net.SplitHostPort(s.Addr)
		if err := first.Client().Do(ctx, "cluster", "meet", host, port, bus).Err(); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range n.Servers {
		c := s.Client()
		s.await(agreeTime, "knows the whole cluster", func(ctx context.Context) bool {
			state, err := c.ClusterInfo(ctx).Result()
			return err == nil && strings.Contains(state, "cluster_state:ok") && strings.Contains(state, "cluster_known_nodes:3")
		})
	}
	return n
}

// Watched is a master with one replica, and three sentinels that fail it over.
type Watched struct {
	Name      string   // name of the master, for sentinel clients
	Addrs     []string // addresses of the sentinels
	Master    *Server  // the first master
	Replica   *Server
	Sentinels []*Server
}

// Sentinel starts a master, a replica that is in step with it, and three sentinels
// that agree about both and fail over after a second of silence.
func Sentinel(t testing.TB) *Watched {
	t.Helper()
	w := &Watched{Name: "tidegate", Master: Single(t)}
	host, port, _ := net.SplitHostPort(w.Master.Addr)
	w.Replica = start(t, "server", fmt.Sprintf("replicaof %s %s", host, port), "repl-diskless-sync-delay 0")
	c := w.Replica.Client()
	w.Replica.await(agreeTime, "is in step", func(ctx context.Context) bool {
		state, err := c.Info(ctx, "replication").Result()
		return err == nil && strings.Contains(state, "master_link_status:up")
	})
	for range 3 {
		s := start(t, "sentinel", fmt.Sprintf("sentinel monitor %s %s %s 2", w.Name, host, port),
			"sentinel down-after-milliseconds "+w.Name+" 1000", "sentinel failover-timeout "+w.Name+" 3000")
		w.Sentinels, w.Addrs = append(w.Sentinels, s), append(w.Addrs, s.Addr)
	}
	for _, s := range w.Sentinels {
		c := redis.NewSentinelClient(&redis.Options{Addr: s.Addr, Protocol: 2, DisableIdentity: true})
		t.Cleanup(func() { _ = c.Close() })
		s.await(agreeTime, "knows the replica and the other sentinels", func(ctx context.Context) bool {
			state, err := c.Master(ctx, w.Name).Result()
			return err == nil && state["num-slaves"] == "1" && state["num-other-sentinels"] == "2"
		})
	}
	return w
}

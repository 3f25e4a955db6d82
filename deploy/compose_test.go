package deploy

import (
	"bufio"
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"tidegate/gateway/database/databasetest"
	"tidegate/gateway/gatewaytest/stack"
)

// local is the simulated stack of deploy without containers: each service with its
// command, files and environment of the Compose files, on ports of the loopback.
type local struct {
	project
	env      map[string]string // of the gateways
	control  string            // URL of the large engine's control surface
	gateways []*stack.Gateway
	ended    []chan int
	process  []*exec.Cmd
}

// TestComposeStack starts what Compose would, does what deploy/README.md tells a new
// user to do, and sees both gateways count into one quota.
func TestComposeStack(t *testing.T) {
	l := startLocal(t)
	keys := map[string]string{}
	readme, err := os.ReadFile(filepath.Join(deployDir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`docker compose exec -T gateway-1 tidegate ([a-z -]+)`).FindAllStringSubmatch(string(readme), -1) {
		args := strings.Fields(m[1])
		if args[0] == "status" {
			args = append(args, "--ops", l.gateways[0].Ops)
		}
		out, _ := kit.Command(t, 0, args...) // in the environment of the gateways
		keys[m[1]] = strings.TrimSpace(out)
	}
	key, admin := keys["key create --user ann"], keys["key create --user root --admin"]
	if key == "" || admin == "" || keys["status"] == "" {
		t.Fatalf("the README makes no key of each kind, or shows no status: %v", keys)
	}
	if said := l.gateways[0].Log.Text() + l.gateways[1].Log.Text(); strings.Count(said, "no administrator's key") != 1 {
		t.Errorf("not one of the gateways made the first administrator's key:\n%s", said)
	}
	l.gateways[1].Expect(t, admin, http.MethodGet, "/admin/v1/keys", "", http.StatusOK, "ann")
	var used [3]int64
	for i, g := range l.gateways {
		model := []string{stack.LargeModel, stack.SmallModel}[i]
		if a := g.Complete(t, key, stack.Chat(model, 20, "")); a.Status != http.StatusOK || a.Header.Get("X-Tidegate-Level") != "L0" {
			t.Fatalf("%s of gateway %d: %d %v %s", model, i+1, a.Status, a.Header, a.Body)
		}
		for k, other := range l.gateways { // the one that did not answer, too
			var s stack.LimitStatus
			other.Limits(t, key, "/quota/status", &s)
			if len(s.Quotas) != 1 || s.Quotas[0].Used <= used[i] || k > 0 && s.Quotas[0].Used != used[i+1] {
				t.Fatalf("after gateway %d gateway %d says %+v; before it was %d", i+1, k+1, s.Quotas, used[i])
			}
			used[i+1] = s.Quotas[0].Used
		}
	}
	if g := statusOf(t, l.gateways[1]); len(g.GPUs) != 1 || g.GPUs[0].GPU != "node/0" || len(g.Warnings) > 0 {
		t.Errorf("GPUs %+v, warnings %v", g.GPUs, g.Warnings)
	}
	t.Run("balancer", func(t *testing.T) { l.balance(t, key) })
}

// startLocal starts all but the balancer.
func startLocal(t *testing.T) *local {
	t.Helper()
	l := &local{project: compose(t, secrets(), projects()["simulated"]...)}
	at := map[string]string{"redis:6379": l.redis(t)}
	sim := filepath.Join(t.TempDir(), "tidegate-vllm-sim")
	if said, err := exec.CommandContext(t.Context(), "go", "build", "-p", "2", "-tags", "nomsgpack", "-trimpath", "-o", sim, "tidegate/cmd/tidegate-vllm-sim").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	at["vllm-small:8000"], _ = l.engine(t, sim, "vllm-small")
	at["vllm-large:8000"], l.control = l.engine(t, sim, "vllm-large")
	dir := t.TempDir()
	source, err := os.ReadFile(filepath.Join(deployDir, "compose/tidegate.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for name, address := range at {
		if !bytes.Contains(source, []byte(name)) {
			t.Errorf("the configuration does not name %s", name)
		}
		source = bytes.ReplaceAll(source, []byte(name), []byte(address))
	}
	file := filepath.Join(dir, "tidegate.yaml")
	if err := os.WriteFile(file, source, 0o600); err != nil {
		t.Fatal(err)
	}
	dsn := databasetest.Postgres(t)
	transport := &http.Transport{MaxIdleConnsPerHost: 16}
	t.Cleanup(transport.CloseIdleConnections)
	for _, name := range []string{"gateway-1", "gateway-2"} {
		l.env = l.environment(name)
		for key, value := range map[string]string{
			"TIDEGATE_CONFIG": file, "TIDEGATE_STORE_DSN": dsn, "TIDEGATE_STORE_JOURNAL_DIR": filepath.Join(dir, name),
			"TIDEGATE_SERVER_LISTEN": "127.0.0.1:0", "TIDEGATE_SERVER_OPS_LISTEN": "127.0.0.1:0",
			"TIDEGATE_SERVER_TRUSTED_PROXIES": `["127.0.0.0/8"]`, // where the balancer is here
			"TIDEGATE_REDIS_TIMEOUT":          "2s",              // all of it runs on one machine, which may be a busy one
		} {
			l.env[key] = value
		}
		for key, value := range l.env {
			t.Setenv(key, value)
		}
		process, j, ended := kit.StartProcess(t, "serve")
		t.Cleanup(func() {
			_ = process.Process.Kill() // it may have ended
			<-ended
		})
		g := &stack.Gateway{Log: j, Client: &http.Client{Transport: transport}}
		g.URL = "http://" + j.Address(t, "listening", ended)
		g.Ops = "http://" + j.Address(t, "listening for operators", ended)
		l.gateways, l.ended, l.process = append(l.gateways, g), append(l.ended, ended), append(l.process, process)
	}
	for _, g := range l.gateways {
		stack.Eventually(t, "both engines in rotation and a reading", func() bool { return g.InRotation(t) == 2 && len(statusOf(t, g).GPUs) == 1 })
	}
	return l
}

// redis runs the service's command, on a port of its own, until its health check
// says that it is well, and returns the address.
func (l *local) redis(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Skip("SKIPPED-PART: the stack of deploy: redis-server is not installed (apt-get install redis-server)")
	}
	s, dir, address := l.Services["redis"], t.TempDir(), vacant(t)
	_, port, _ := net.SplitHostPort(address)
	script := strings.ReplaceAll(s.Command[2], "/run/redis", dir) + " --bind 127.0.0.1 --port " + port + " --dir " + dir
	env := append(os.Environ(), "REDIS_PASSWORD="+l.environment("redis")["REDIS_PASSWORD"])
	l.begin(t, env, s.Command[0], s.Command[1], script)
	stack.Eventually(t, "the health of Redis", func() bool {
		check := exec.CommandContext(t.Context(), "sh", "-c", strings.Replace(s.Healthcheck.Test[1], "redis-cli ", "redis-cli -p "+port+" ", 1))
		check.Env = env
		return check.Run() == nil
	})
	return address
}

// engine runs a simulated server and returns its address and its control surface.
func (l *local) engine(t *testing.T, binary, name string) (address, control string) {
	t.Helper()
	address = vacant(t)
	args := append([]string(nil), l.Services[name].Command...)
	for i := range args {
		args[i] = strings.Replace(args[i], "0.0.0.0:8000", address, 1)
	}
	said := l.begin(t, nil, binary, args...)
	var m []string
	stack.Eventually(t, name, func() bool {
		m = regexp.MustCompile(`listening on http://(\S+), control on (\S+)`).FindStringSubmatch(said.Text())
		return m != nil
	})
	if m[1] != address {
		t.Fatalf("%s listens on %s, not on %s", name, m[1], address)
	}
	return address, m[2]
}

// begin starts a program that is killed with the test, and keeps what it says.
func (l *local) begin(t *testing.T, env []string, name string, args ...string) *stack.Log {
	t.Helper()
	j := stack.NewLog()
	c := exec.CommandContext(context.Background(), name, args...)
	c.Env, c.Stdout, c.Stderr = env, j, j
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill() // it may have ended
		_ = c.Wait()         // killed, as it should be
		if t.Failed() {
			t.Logf("log of %s:\n%s", name, j)
		}
	})
	return j
}

// vacant is an address of the loopback that nobody listens on.
func vacant(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// haproxy finds the balancer's program and its environment: on the PATH, or where
// .ci/servers unpacks it.
func haproxy() (program string, env []string) {
	if path, err := exec.LookPath("haproxy"); err == nil {
		return path, os.Environ()
	}
	root, err := filepath.Abs("../.cache/servers/haproxy")
	if err != nil {
		return "", nil
	}
	libraries, _ := filepath.Glob(root + "/usr/lib/*-linux-*")
	if _, err := os.Stat(root + "/usr/sbin/haproxy"); err != nil || len(libraries) == 0 {
		return "", nil
	}
	return root + "/usr/sbin/haproxy", append(os.Environ(), "LD_LIBRARY_PATH="+libraries[0])
}

// balance: streams pass event by event, what callers claim to be is dropped, a
// gateway that goes loses no request, and without any there is an error that
// clients can read.
func (l *local) balance(t *testing.T, key string) {
	t.Helper()
	program, env := haproxy()
	if program == "" {
		t.Skip("SKIPPED-PART: the balancer of deploy: there is no haproxy on this machine (`make servers` unpacks it where it may)")
	}
	source, err := os.ReadFile(filepath.Join(deployDir, "compose/haproxy.cfg"))
	if err != nil {
		t.Fatal(err)
	}
	address, text := vacant(t), string(source)
	for from, to := range map[string]string{
		"bind :8080": "bind " + address, "bind 127.0.0.1:8404": "bind " + vacant(t),
		" gateway-1:8080": l.target(0), " gateway-2:8080": l.target(1),
	} {
		if strings.Count(text, from) != 1 {
			t.Fatalf("haproxy.cfg does not say %q once", from)
		}
		text = strings.Replace(text, from, to, 1)
	}
	file := filepath.Join(t.TempDir(), "haproxy.cfg")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if said, err := exec.CommandContext(t.Context(), "env", append(env[len(env)-1:], program, "-c", "-f", file)...).CombinedOutput(); err != nil || bytes.Contains(said, []byte("WARNING")) {
		t.Fatalf("haproxy -c: %v\n%s", err, said)
	}
	l.begin(t, env, program, "-db", "-f", file)
	f := &stack.Gateway{URL: "http://" + address, Client: l.gateways[0].Client}
	stack.Eventually(t, "the balancer", func() bool {
		resp, err := f.Client.Get(f.URL + "/healthz")
		if err == nil {
			resp.Body.Close()
		}
		return err == nil && resp.StatusCode == http.StatusOK
	})
	l.streams(t, f, key)
	l.cancels(t, f, key)
	local, _ := kit.Command(t, 0, "key", "create", "--user", "bea", "--ips", "127.0.0.0/8")
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, f.URL+"/v1/models", nil)
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(local))
	req.Header.Set("X-Forwarded-For", "10.9.9.9")
	if a := f.Do(t, req); a.Status != http.StatusOK {
		t.Errorf("a caller is taken for whom it claims to be: %d %s", a.Status, a.Body)
	}
	l.stop(t, 0)
	for range 20 {
		if a := f.Complete(t, key, stack.Chat(stack.SmallModel, 2, "")); a.Status != http.StatusOK {
			t.Fatalf("with one gateway of two: %d %s", a.Status, a.Body)
		}
	}
	l.stop(t, 1)
	stack.Eventually(t, "the balancer's own answer", func() bool {
		a := f.Complete(t, key, stack.Chat(stack.SmallModel, 2, ""))
		return a.Status == http.StatusServiceUnavailable && a.Code() == "no_gateway" && a.Header.Get("Retry-After") != ""
	})
}

// target is a gateway's address, and the port where its readiness is asked for.
func (l *local) target(i int) string {
	ops := l.gateways[i].Ops
	port := ops[strings.LastIndexByte(ops, ':')+1:]
	return " " + strings.TrimPrefix(l.gateways[i].URL, "http://") + " port " + port
}

// streams lets an engine fall silent in the middle of an answer: what came before
// must reach the caller all the same.
func (l *local) streams(t *testing.T, f *stack.Gateway, key string) {
	t.Helper()
	l.fault(t, http.MethodPost, `{"kind":"hang_mid","after":3}`)
	defer l.fault(t, http.MethodDelete, "")
	ctx, cancel := context.WithTimeout(t.Context(), stack.Patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.URL+"/v1/chat/completions", strings.NewReader(stack.Chat(stack.LargeModel, 50, `,"stream":true`)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Content-Type", "application/json")
	resp, err := f.Client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	events := bufio.NewScanner(resp.Body)
	for events.Scan() {
		if regexp.MustCompile(`"content":"[^"]`).Match(events.Bytes()) {
			return
		}
	}
	t.Fatalf("no text before the stream ended: %d %v", resp.StatusCode, events.Err())
}

// fault sets a fault of the large engine, or clears all.
func (l *local) fault(t *testing.T, method, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, l.control+"/sim/faults", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if a := l.gateways[0].Do(t, req); a.Status/100 != 2 {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
}

// cancels lets a caller leave an answer in one piece that is being made: the engine must
// not go on with it for nobody.
func (l *local) cancels(t *testing.T, f *stack.Gateway, key string) {
	t.Helper()
	l.fault(t, http.MethodPost, `{"kind":"hang"}`)
	defer l.fault(t, http.MethodDelete, "")
	under := func() int {
		n := 0
		for _, g := range l.gateways {
			n += len(regexp.MustCompile(`"in_flight": [1-9]`).FindAllString(g.StatusPage(t), -1))
		}
		return n
	}
	callersLeft := func() int {
		return strings.Count(l.gateways[0].Log.Text()+l.gateways[1].Log.Text(), `"status":499`)
	}
	stack.Eventually(t, "nothing to be under way", func() bool { return under() == 0 })
	before := callersLeft()
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.URL+"/v1/chat/completions", strings.NewReader(stack.Chat(stack.LargeModel, 50, "")))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Content-Type", "application/json")
	left := make(chan error, 1)
	go func() {
		resp, err := f.Client.Do(req)
		if err == nil {
			resp.Body.Close()
		}
		left <- err
	}()
	stack.Eventually(t, "the request to be under way", func() bool { return under() == 1 })
	leave()
	if err := <-left; err == nil {
		t.Fatal("an answer from an engine that hangs")
	}
	stack.Eventually(t, "the request to end", func() bool { return under() == 0 })
	if callersLeft() == before {
		t.Error("the balancer did not pass on that the caller had left: the engine went on for nobody")
	}
}

// stop lets a gateway drain and end.
func (l *local) stop(t *testing.T, i int) {
	t.Helper()
	l.gateways[i].Client.CloseIdleConnections()
	if err := l.process[i].Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	code := <-l.ended[i]
	l.ended[i] <- code
	if code != 0 {
		t.Errorf("gateway %d ended with %d:\n%s", i+1, code, l.gateways[i].Log)
	}
}

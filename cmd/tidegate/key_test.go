package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"tidegate/gateway/database/databasetest"
	"tidegate/gateway/gatewaytest/stack"
)

// command runs a command as a shell would.
func command(t *testing.T, code int, args ...string) (stdout, stderr string) {
	t.Helper()
	var out, log bytes.Buffer
	if got := run(t.Context(), args, noEnv, &out, &log); got != code {
		t.Fatalf("tidegate %s: code %d, expected %d\n%s%s", strings.Join(args, " "), got, code, &out, &log)
	}
	return out.String(), log.String()
}

// TestAccounts runs two gateways over one store: keys are made by command and over
// the API of one, and used on the other.
func TestAccounts(t *testing.T) {
	s := startServers(t, nil)
	databasetest.Run(t, func(t *testing.T, dsn string) {
		p := stack.Config{DSN: dsn, Extra: "limits:\n  - {name: user-rate, per: user, requests: 1000/1m}\n"}
		a, b := startGateway(t, s, p), startGateway(t, s, p)
		out, log := command(t, exitOK, "key", "create", "--config", a.File, "--user", "root", "--project", "ops", "--admin")
		admin := strings.TrimSuffix(out, "\n")
		if !regexp.MustCompile(`^tg-[0-9A-Za-z]{43}$`).MatchString(admin) || strings.Contains(log, admin) {
			t.Fatalf("stdout %q, stderr %q", out, log)
		}
		for _, want := range []string{"made department default", "made project ops", "made user root", "expires 2"} {
			if !strings.Contains(log, want) {
				t.Errorf("%q is not said: %s", want, log)
			}
		}
		for _, f := range []*front{a, b} {
			if status, text := f.Ask(t, admin); status != 200 {
				t.Errorf("a key made while the gateway runs: %d %s", status, text)
			}
		}
		t.Run("revoke", func(t *testing.T) { stack.CheckRevocation(t, a.Gateway, b.Gateway, admin) })
		t.Run("rights", func(t *testing.T) { rights(t, a, b, admin) })
		t.Run("rotate", func(t *testing.T) { rotates(t, a, b, admin) })
		t.Run("admin", func(t *testing.T) { administers(t, a, b, admin) })
		t.Run("bodies", func(t *testing.T) { badBodies(t, a, admin) })
		t.Run("command", func(t *testing.T) { commands(t, a, b) })
	})
}

func rights(t *testing.T, a, b *front, admin string) {
	bound, _ := stack.CreatedKey(t, a.Expect(t, admin, "POST", "/admin/v1/keys",
		fmt.Sprintf(`{"user":"bea","models":[%q],"tier":"batch","max_level":"L1","ips":["127.0.0.0/8"]}`, stack.SmallModel), 200, `"max_level":"L1"`))
	if status, text := b.Ask(t, bound); status != 200 {
		t.Errorf("%d %s", status, text)
	}
	b.Expect(t, bound, "POST", "/v1/chat/completions", fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":"hi"}]}`, stack.LargeModel), 403, "model_not_allowed")
	away, _ := stack.CreatedKey(t, a.Expect(t, admin, "POST", "/admin/v1/keys", `{"user":"bea","ips":["10.0.0.0/8"]}`, 200, "bea-2"))
	b.Expect(t, away, "GET", "/v1/models", "", 403, `"code":"access_denied"`)
	short, _ := stack.CreatedKey(t, a.Expect(t, admin, "POST", "/admin/v1/keys", `{"user":"bea","ttl":"1s"}`, 200, "bea-3"))
	stack.Eventually(t, "the key to expire", func() bool {
		status, _ := b.Call(t, short, "GET", "/v1/models", "")
		return status == 401
	})
	for _, key := range []string{bound, stack.AdaKey} {
		a.Expect(t, key, "GET", "/admin/v1/keys", "", 403, `"code":"access_denied"`)
	}
	a.Expect(t, "EMPTY", "GET", "/admin/v1/keys", "", 401, `"code":"invalid_api_key"`)
	a.Expect(t, away, "GET", "/admin/v1/keys", "", 403, "access_denied")
}

func rotates(t *testing.T, a, b *front, admin string) {
	old, _ := stack.CreatedKey(t, a.Expect(t, admin, "POST", "/admin/v1/keys", `{"user":"cal"}`, 200, ""))
	next, _ := stack.CreatedKey(t, a.Expect(t, admin, "POST", "/admin/v1/keys/cal/rotate", "", 200, `"status":"replaced"`))
	for _, key := range []string{old, next} {
		if status, text := b.Ask(t, key); status != 200 {
			t.Errorf("in the overlap: %d %s", status, text)
		}
	}
	last, _ := stack.CreatedKey(t, a.Expect(t, admin, "POST", "/admin/v1/keys/cal/rotate", `{"overlap":"0s"}`, 200, ""))
	stack.Eventually(t, "the key without overlap to be refused", func() bool {
		status, _ := b.Call(t, next, "GET", "/v1/models", "")
		return status == 401
	})
	b.Expect(t, last, "GET", "/v1/models", "", 200, stack.SmallModel)
	b.Expect(t, last, "GET", "/v1/usage", "", 200, `"user":"cal"`)
	b.Expect(t, last, "GET", "/v1/usage?group_by=model&from=2026-01-01&to=2026-01-31", "", 200, `"to":"2026-01-31"`)
	b.Expect(t, last, "GET", "/v1/usage?to=2026-01-31T12:00:00Z", "", 200, `"from":"2026-01-02"`)
}

func administers(t *testing.T, a, b *front, admin string) {
	a.Expect(t, admin, "POST", "/admin/v1/departments", `{"name":"space"}`, 200, `"name":"space"`)
	a.Expect(t, admin, "POST", "/admin/v1/departments", `{"name":"space"}`, 409, `"code":"conflict"`)
	a.Expect(t, admin, "POST", "/admin/v1/projects", `{"name":"apollo","department":"space"}`, 200, `"department":"space"`)
	b.Expect(t, admin, "POST", "/admin/v1/users", `{"name":"dee","project":"apollo"}`, 200, `"department":"space"`)
	a.Expect(t, admin, "POST", "/admin/v1/users", `{"name":"eli","project":"none"}`, 404, `"param":"project"`)
	a.Expect(t, admin, "GET", "/admin/v1/projects?department=space", "", 200, `"name":"apollo"`)
	a.Expect(t, admin, "GET", "/admin/v1/users?project=apollo", "", 200, `"name":"dee"`)
	a.Expect(t, admin, "GET", "/admin/v1/departments?limit=1", "", 200, `"after":"default","data":[{"name":"default"`)
	a.Expect(t, admin, "GET", "/admin/v1/departments?limit=1&after=default", "", 200, `"name":"space"`)
	a.Expect(t, admin, "GET", "/admin/v1/departments?limit=0", "", 400, `"param":"limit"`)
	a.Expect(t, admin, "GET", "/admin/v1/keys?user=root", "", 200, `"name":"root"`)
	a.Expect(t, admin, "GET", "/admin/v1/keys/root", "", 200, `"admin":true`)
	a.Expect(t, admin, "GET", "/admin/v1/keys/none", "", 404, `"code":"not_found"`)
	a.Expect(t, admin, "POST", "/admin/v1/keys/none/revoke", "", 404, `"code":"not_found"`)
	a.Expect(t, admin, "GET", "/admin/v1/overrides", "", 200, `"data":[]`)
	a.Expect(t, admin, "PUT", "/admin/v1/overrides", `{"rule":"user-rate","of":"user","name":"dee@x","requests":"100/1m","burst":5}`, 200, `"burst":"5"`)
	b.Expect(t, admin, "GET", "/admin/v1/overrides", "", 200, `"requests":"100/1m"`)
	a.Expect(t, admin, "PUT", "/admin/v1/overrides", `{"rule":"user-rate","of":"user","name":"eli","requests":"7/1m"}`, 200, "7/1m")
	b.Expect(t, admin, "GET", "/admin/v1/overrides?limit=1", "", 200, `"after":"user/dee@x/user-rate"`)
	b.Expect(t, admin, "GET", "/admin/v1/overrides?limit=1&after=user/dee@x/user-rate", "", 200, `"requests":"7/1m"`)
	b.Expect(t, admin, "GET", "/admin/v1/overrides?after=dee", "", 400, `"param":"after"`)
	b.Expect(t, admin, "DELETE", "/admin/v1/overrides/user/eli/user-rate", "", 200, "true")
	b.Expect(t, admin, "DELETE", "/admin/v1/overrides/user/dee%40x/user-rate", "", 200, "true")
	b.Expect(t, admin, "DELETE", "/admin/v1/overrides/user/dee@x/user-rate", "", 404, `"code":"not_found"`)
	log := a.Expect(t, admin, "GET", "/admin/v1/audit?limit=1", "", 200, `"what":"override.delete"`)
	if !strings.Contains(log, `"who":"root/root"`) || !strings.Contains(log, `"requests":"100/1m"`) || !strings.Contains(log, `"after":null`) {
		t.Error(log)
	}
	var page struct{ After string }
	if err := json.Unmarshal([]byte(log), &page); err != nil || page.After == "" {
		t.Fatal(log)
	}
	a.Expect(t, admin, "GET", "/admin/v1/audit?limit=1&after="+page.After, "", 200, `"subject":"user eli user-rate"`)
	a.Expect(t, admin, "PATCH", "/admin/v1/keys", "", 405, "method_not_allowed")
	a.Expect(t, admin, "GET", "/admin/v1/none", "", 404, "unknown_url")
	resp, err := a.Client.Get(a.Ops + "/status")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if status, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(status), `"store": "up"`) {
		t.Errorf("%v %s", err, status)
	}
}

func badBodies(t *testing.T, f *front, admin string) {
	for body, want := range map[string]string{
		`{"user":"x","colour":"red"}`:       `"param":"colour"`,
		`{"user":7}`:                        `"param":"user"`,
		`{"user":"x","models":"m"}`:         "expected a list, not string",
		`{"user":"x","admin":"yes"}`:        "expected true or false",
		`{"user":"x"} {}`:                   "nothing after it",
		`{"user":`:                          "no valid JSON",
		`[]`:                                "the body: expected an object",
		`{}`:                                `"param":"user"`,
		`null`:                              `"param":"user"`,
		`{"user":"x","ttl":"never"}`:        "allow_unexpiring",
		`{"user":"x","max_level":"L9"}`:     `"param":"max_level"`,
		`{"user":"x","ips":["1.2.3.4/99"]}`: `"param":"ips"`,
		`{"user":"x","User":"y"}`:           "write it user",
		`{"user":"x","user":"y"}`:           "stands twice",
		`{"user":"x\u0000"}`:                "NUL",
	} {
		f.Expect(t, admin, "POST", "/admin/v1/keys", body, 400, want)
	}
	f.Expect(t, admin, "POST", "/admin/v1/keys", "", 400, "Content-Type")
	f.Expect(t, admin, "POST", "/admin/v1/keys/root/rotate", `{"overlap":"-1s"}`, 400, `"param":"overlap"`)
	f.Expect(t, admin, "POST", "/admin/v1/keys/root/rotate", `{"overlap":"soon"}`, 400, `"param":"overlap"`)
	f.Expect(t, admin, "PUT", "/admin/v1/overrides", `{"rule":"r","of":"user","name":"n","requests":{}}`, 400, `"param":"requests"`)
	f.Expect(t, admin, "PUT", "/admin/v1/overrides", `{"rule":"user-rate","of":"user","name":"n","requests":"5"}`, 400, "requests: must be a count and a window")
	f.Expect(t, admin, "PUT", "/admin/v1/overrides", `{"rule":"user-rate","of":"user","name":"n"}`, 400, "has no numbers")
	f.Expect(t, admin, "PUT", "/admin/v1/overrides", `{"rule":"user-rate","of":"ip","name":"n","requests":"5/1m"}`, 400, `"param":"of"`)
	for _, path := range []string{"keys/a%00b", "keys/%ff", "keys?user=a%00", "users?after=%00", "projects?department=%00", "usage?user=%00", "models/m%00/level"} {
		f.Expect(t, admin, "GET", "/admin/v1/"+path, "", 400, "NUL")
	}
	f.Expect(t, admin, "DELETE", "/admin/v1/overrides/user/a%00/user-rate", "", 400, "NUL")
	f.Expect(t, admin, "GET", "/admin/v1/audit?after=x", "", 400, `"param":"after"`)
}

// commands runs the key commands beside the gateways.
func commands(t *testing.T, a, b *front) {
	out, _ := command(t, exitOK, "key", "create", "--config", a.File, "--user", "fay", "--name", "fay-ci", "--models", stack.SmallModel+",qwen3", "--ips", "127.0.0.1", "--tier", "batch", "--max-level", "L2", "--ttl", "2h")
	old := strings.TrimSpace(out)
	out, log := command(t, exitOK, "key", "rotate", "fay-ci", "--config", b.File, "--overlap", "1h")
	key := strings.TrimSpace(out)
	if !strings.Contains(log, "the old key") || key == old {
		t.Errorf("%q %q", out, log)
	}
	for _, k := range []string{old, key} {
		if status, text := b.Ask(t, k); status != 200 {
			t.Errorf("%d %s", status, text)
		}
	}
	out, _ = command(t, exitOK, "key", "list", "--config", a.File, "--user", "fay")
	if lines := strings.Split(strings.TrimSpace(out), "\n"); len(lines) != 3 || !strings.Contains(out, "replaced") || !strings.Contains(out, stack.SmallModel+",qwen3") || strings.Contains(out, key) {
		t.Error(out)
	}
	out, _ = command(t, exitOK, "key", "list", "--config", a.File, "--user", "fay", "--json")
	var keys []struct{ Name, Status, Tier string }
	if err := json.Unmarshal([]byte(out), &keys); err != nil || len(keys) != 2 || keys[1].Status != "active" || keys[1].Tier != "batch" {
		t.Errorf("%v %s", err, out)
	}
	if _, log = command(t, exitOK, "key", "revoke", "fay-ci", "--config", a.File); strings.Count(log, "revoked fay-ci") != 2 {
		t.Error(log)
	}
	stack.Eventually(t, "both keys to be refused", func() bool {
		one, _ := b.Ask(t, old)
		two, _ := b.Ask(t, key)
		return one == 401 && two == 401
	})
	if out, _ = command(t, exitOK, "migrate", "--config", a.File); !strings.Contains(out, "up to date") {
		t.Error(out)
	}
	for _, c := range []struct {
		code int
		args string
		want string
	}{
		{exitUsage, "key create", "give --user NAME"},
		{exitUsage, "key create --user fay --tier gold", "tier: must be critical, standard or batch"},
		{exitUsage, "key create --user fay --ttl never", "allow_unexpiring"},
		{exitUsage, "key rotate", "name one key"},
		{exitUsage, "key revoke nobody", `no key with the name or id "nobody"`},
		{exitFailed, "key revoke fay-ci", "revoked already"},
		{exitFailed, "key create --user fay --project elsewhere", "users have one project"},
	} {
		_, log := command(t, c.code, append(strings.Fields(c.args), "--config", a.File)...)
		if !strings.Contains(log, c.want) || strings.Count(log, "\n") != 1 {
			t.Errorf("%s: %s", c.args, log)
		}
	}
}

// TestStoreOutage crashes the database under a gateway.
func TestStoreOutage(t *testing.T) {
	server := databasetest.StartServer(t)
	f := startGateway(t, startServers(t, nil), stack.Config{DSN: server.Database(t)})
	out, _ := command(t, exitOK, "key", "create", "--config", f.File, "--user", "root", "--admin")
	warm := strings.TrimSpace(out)
	out, _ = command(t, exitOK, "key", "create", "--config", f.File, "--user", "ann")
	cold := strings.TrimSpace(out)
	f.Expect(t, warm, "GET", "/v1/models", "", 200, stack.SmallModel)
	server.Stop(t)
	stack.Eventually(t, "the crash to be noticed", func() bool { return strings.Contains(f.StatusPage(t), `"store": "down"`) })
	if status, text := f.Ask(t, warm); status != 200 {
		t.Errorf("a key in memory: %d %s", status, text)
	}
	if status, text := f.Ask(t, stack.AdaKey); status != 200 {
		t.Errorf("a key of the file: %d %s", status, text)
	}
	f.Expect(t, cold, "GET", "/v1/models", "", 503, `"code":"store_unavailable"`)
	f.Expect(t, warm, "GET", "/admin/v1/keys", "", 503, `"code":"store_unavailable"`)
	f.Expect(t, warm, "POST", "/admin/v1/keys", `{"user":"bob"}`, 503, `"code":"store_unavailable"`)
	f.Expect(t, "EMPTY", "GET", "/v1/models", "", 401, "invalid_api_key")
	if log := f.Log.String(); !strings.Contains(log, "the store does not answer") {
		t.Error(log)
	}
	server.Start(t)
	stack.Eventually(t, "the key to be good again", func() bool {
		status, _ := f.Ask(t, cold)
		return status == 200
	})
	f.Expect(t, warm, "POST", "/admin/v1/keys", `{"user":"bob"}`, 200, "bob")
}

// TestFirstStart starts gateways in a directory that is empty at first.
func TestFirstStart(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	text := "server: {listen: '127.0.0.1:0', ops_listen: ''}\nmodels: [{name: m, backends: [{url: 'http://127.0.0.1:1'}]}]\n"
	if err := os.WriteFile("tidegate.yaml", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	start := func(env func(string) (string, bool)) (f *front, stop func() int, secrets []string) {
		ctx, cancel := context.WithCancel(t.Context())
		out, log := stack.NewLog(), stack.NewLog()
		ended := make(chan int, 1)
		go func() { ended <- run(ctx, []string{"serve"}, env, out, log) }()
		f = &front{&stack.Gateway{Client: &http.Client{Transport: &http.Transport{}}, URL: "http://" + log.Address(t, "listening", ended)}}
		t.Cleanup(cancel)
		return f, func() int {
			f.Client.CloseIdleConnections()
			cancel()
			return <-ended
		}, regexp.MustCompile(`tg-[0-9A-Za-z]{43}`).FindAllString(out.String(), -1)
	}
	f, stop, secrets := start(noEnv)
	if len(secrets) != 1 {
		t.Fatalf("%d keys are shown", len(secrets))
	}
	f.Expect(t, secrets[0], "GET", "/admin/v1/keys", "", 200, `"name":"admin"`)
	// Another gateway beside it, with an administrator's key of its own in the environment.
	const own = "an-administrators-own-key"
	g, stopOther, others := start(func(name string) (string, bool) {
		value, ok := map[string]string{"TIDEGATE_ADMIN_KEY": own, "TIDEGATE_STORE_JOURNAL_DIR": "journal-2"}[name]
		return value, ok
	})
	if len(others) != 0 {
		t.Error("a second first key")
	}
	g.Expect(t, own, "POST", "/admin/v1/keys", `{"user":"gil"}`, 200, "gil")
	g.Expect(t, own, "GET", "/admin/v1/audit?limit=1", "", 200, `"who":"admin/admin_key_env"`)
	f.Expect(t, own, "GET", "/admin/v1/keys", "", 401, "invalid_api_key")
	for _, s := range []func() int{stop, stopOther} {
		if code := s(); code != exitOK {
			t.Errorf("code %d", code)
		}
	}
	f, stop, again := start(noEnv)
	if len(again) != 0 {
		t.Error("a first key at the second start")
	}
	f.Expect(t, secrets[0], "GET", "/admin/v1/keys", "", 200, `"name":"gil"`)
	stop()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if i := slices.IndexFunc(entries, func(e os.DirEntry) bool { return e.Name() == "tidegate.db" }); i < 0 {
		t.Errorf("%v", entries)
	}
}

// TestNoStore starts where the usual store cannot be made.
func TestNoStore(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.Mkdir("tidegate.db", 0o700); err != nil {
		t.Fatal(err)
	}
	models := "\nmodels: [{name: m, backends: [{url: 'http://127.0.0.1:1'}]}]\nserver: {listen: '127.0.0.1:0', ops_listen: ''}\n"
	write := func(name, text string) string {
		path, err := filepath.Abs(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text+models), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if _, log := command(t, exitFailed, "serve", "--config", write("none.yaml", "")); !strings.Contains(log, "store.dsn: reach sqlite://tidegate.db") {
		t.Error(log)
	}
	if _, log := command(t, exitFailed, "serve", "--config", write("lost.yaml", "auth: {mode: open}\nstore: {dsn: 'sqlite://none/t.db'}")); !strings.Contains(log, "the directory none is not there") {
		t.Error(log)
	}
	if _, log := command(t, exitFailed, "serve", "--config", write("pg.yaml", "store: {dsn: 'postgres://u:hunter2@127.0.0.1:1/t'}")); !strings.Contains(log, "127.0.0.1:1") || strings.Contains(log, "hunter2") {
		t.Error(log)
	}
	if err := os.Remove("tidegate.db"); err != nil {
		t.Fatal(err)
	}
	if _, log := command(t, exitUsage, "key", "list"); !strings.Contains(log, "there is no tidegate.db here") {
		t.Error(log)
	}
	if _, err := os.Stat("tidegate.db"); err == nil {
		t.Error("listing makes a store")
	}
}

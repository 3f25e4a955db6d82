package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidegate/gateway/database/databasetest"
	"tidegate/gateway/gatewaytest"
	"tidegate/gateway/gatewaytest/stack"
)

// report runs tidegate usage report.
func report(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, complaints bytes.Buffer
	code = run(t.Context(), append([]string{"usage", "report"}, args...), noEnv, &out, &complaints)
	return code, out.String(), complaints.String()
}

// TestKilled kills a gateway again and again while it serves. What it has answered
// and written down is counted once: in the engines' books, in the next gateway's
// report, and in that of the command line, whether a gateway runs or not.
func TestKilled(t *testing.T) {
	s := startServers(t, func(o *gatewaytest.Options) { o.Version, o.PromptTokensDetails = "0.30.0", true })
	dir := t.TempDir()
	file := filepath.Join(dir, "tidegate.yaml")
	if err := os.WriteFile(file, []byte(stack.Config{}.YAML(s, dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 16}
	defer transport.CloseIdleConnections()
	const rounds, requests = 3, 40
	for round := range rounds + 1 {
		process, j, ended := kit.StartProcess(t, "serve", "--config", file)
		f := &front{&stack.Gateway{Servers: s, Log: j, Client: &http.Client{Transport: transport}, File: file}}
		f.URL, f.Ops = "http://"+j.Address(t, "listening", ended), "http://"+j.Address(t, "listening for operators", ended)
		stack.Eventually(t, "all servers in rotation", func() bool { return f.InRotation(t) == len(s) })
		var want, got stack.Tokens
		settled := func() bool {
			want, _ = s.Delivered()
			got = f.Usage(t)
			return want.Requests == got.Requests
		}
		stack.Eventually(t, "what earlier gateways served", settled)
		if got != want {
			t.Errorf("round %d: the report says %+v, the engines say %+v", round, got, want)
		}
		if round == rounds {
			process.Process.Signal(syscall.SIGTERM)
			if code := <-ended; code != exitOK {
				t.Errorf("code %d: %s", code, j)
			}
			break
		}
		for i := range requests {
			resp, err := f.Post(t.Context(), "/v1/chat/completions", fmt.Sprintf(
				`{"model":%q,"stream":%v,"messages":[{"role":"user","content":"hi %d"}],"sim":{"tokens":%d}}`, stack.LargeModel, i%2 == 0, i, 5+i))
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		stack.Eventually(t, "all requests to be written down", func() bool {
			return settled() && strings.Contains(f.StatusPage(t), `"buffer_bytes": 0`)
		})
		process.Process.Kill()
		<-ended
		transport.CloseIdleConnections()
		// Nothing runs now; the rest stands in the journal.
		if code, out, complaints := report(t, "--config", file, "--by", "model", "--format", "csv"); code != exitOK || !strings.Contains(out, fmt.Sprintf("%s,%d,0,%d,", stack.LargeModel, want.Requests, want.Input)) {
			t.Errorf("code %d: %s%s; the engines say %+v", code, out, complaints, want)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "journal", "*.journal")); len(left) > 0 {
		t.Errorf("after a drain: %v", left)
	}
	want, _ := s.Delivered()
	if want.Requests != rounds*requests {
		t.Errorf("the engines saw %d requests", want.Requests)
	}
	checkReports(t, file, want)
	t.Logf("%d requests through 3 kills: output %d in the engines' books and in the report", want.Requests, want.Output)
}

// TestDatabaseAway stops the database under two gateways that share it: they go on
// to serve, say in a report that they cannot tell, and have counted all when it is
// back.
func TestDatabaseAway(t *testing.T) {
	server := databasetest.StartServer(t)
	s := startServers(t, func(o *gatewaytest.Options) { o.Version, o.PromptTokensDetails = "0.30.0", true })
	dsn := server.Database(t)
	gateways := []*front{startGateway(t, s, stack.Config{DSN: dsn}), startGateway(t, s, stack.Config{DSN: dsn})}
	generate := func(n int) {
		for i := range n {
			resp, err := gateways[i%2].Post(t.Context(), "/v1/chat/completions", fmt.Sprintf(
				`{"model":%q,"messages":[{"role":"user","content":"hi"}],"sim":{"tokens":%d}}`, stack.LargeModel, 5+i))
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != http.StatusOK {
				t.Errorf("status %d", resp.StatusCode)
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	}
	counted := func() bool {
		want, _ := s.Delivered()
		return gateways[0].Usage(t) == want && gateways[1].Usage(t) == want
	}
	generate(20)
	stack.Eventually(t, "all to be in both reports", counted)
	server.Stop(t)
	generate(20)
	for _, f := range gateways {
		resp := f.get(t, "/v1/usage")
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(body), "store_unavailable") || resp.Header.Get("Retry-After") == "" {
			t.Errorf("status %d: %s", resp.StatusCode, body)
		}
		stack.Eventually(t, "the outage to be seen", func() bool { return strings.Contains(f.StatusPage(t), `"failure"`) })
	}
	server.Start(t)
	stack.Eventually(t, "all to be in both reports after the outage", func() bool {
		resp := gateways[0].get(t, "/v1/usage")
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK && counted()
	})
}

// get asks for a path as Ada; the caller closes the answer's body.
func (f *front) get(t *testing.T, path string) *http.Response {
	t.Helper()
	q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Authorization", "Bearer "+stack.AdaKey)
	resp, err := f.Client.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

// checkReports prints the same sum in each form.
func checkReports(t *testing.T, file string, want stack.Tokens) {
	t.Helper()
	_, text, _ := report(t, "--config", file, "--by", "user,key,day,model", "--format", "json", "--user", "ada")
	var parsed struct {
		Data []struct {
			User, Model string
			Output      int64 `json:"output_tokens"`
			Units       float64
		}
	}
	if err := json.Unmarshal([]byte(text), &parsed); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	var output int64
	var units float64
	for _, r := range parsed.Data {
		if r.User != "ada" || r.Model != stack.LargeModel {
			t.Errorf("%+v", r)
		}
		output, units = output+r.Output, units+r.Units
	}
	if output != want.Output || units != float64(want.Input+want.Output) {
		t.Errorf("JSON: %d output tokens, %v units; the engines say %+v", output, units, want)
	}
	_, text, _ = report(t, "--config", file, "--by", "department,user", "--format", "csv")
	lines, err := csv.NewReader(strings.NewReader(text)).ReadAll()
	if err != nil || len(lines) != 2 || lines[1][1] != "ada" || lines[1][6] != fmt.Sprint(want.Output) || lines[0][6] != "output_tokens" {
		t.Errorf("%v: %v", err, lines)
	}
	if _, text, _ = report(t, "--config", file); strings.Count(text, "\n") != 3 || !strings.Contains(text, "total") || !strings.Contains(text, fmt.Sprint(want.Output)) {
		t.Errorf("table:\n%s", text)
	}
	tomorrow := time.Now().UTC().AddDate(0, 0, 1).Format(time.DateOnly)
	if code, text, _ := report(t, "--config", file, "--from", tomorrow, "--to", tomorrow); code != exitOK || text != "nothing was used\n" {
		t.Errorf("code %d: %s", code, text)
	}
}

// TestReportMistakes: a mistake is one line that says what to do.
func TestReportMistakes(t *testing.T) {
	t.Chdir(t.TempDir())
	for args, want := range map[string]string{
		"--by status": "expected department, project", "--by user,user": "twice", "--by=": "--by is empty", "--format xml": "expected table, json or csv",
		"--from yesterday": "expected a day such as", "--from 2026-02-01 --to 2026-01-01": "must not be after",
		"": "there is no database", "--config missing.yaml": "missing.yaml", "--what": "unknown flag",
	} {
		code, out, complaints := report(t, strings.Fields(args)...)
		if code != exitUsage || out != "" || !strings.Contains(complaints, want) || strings.Count(complaints, "\n") != 1 {
			t.Errorf("%s: code %d: %s%s", args, code, out, complaints)
		}
	}
}

// TestReportDays: days without a midnight are whole, as those of the API are.
func TestReportDays(t *testing.T) {
	f := reportFlags{dimensions: []string{"user"}, zone: "America/Santiago", begin: "2024-09-08", end: "2024-09-08"}
	q, err := f.query(time.Now())
	if from, to := q.Start.Format(time.RFC3339), q.End.Format(time.RFC3339); err != nil || from != "2024-09-08T01:00:00-03:00" || to != "2024-09-09T00:00:00-03:00" {
		t.Errorf("from %s to %s, %v", from, to, err)
	}
}

// TestReadOnlyDirectory starts a gateway without a file where nothing can be
// written: it says where usage is kept instead.
func TestReadOnlyDirectory(t *testing.T) {
	if _, err := os.Stat("/proc/self"); err != nil {
		t.Skip("there is no directory here that root cannot write to")
	}
	t.Setenv("TMPDIR", t.TempDir())
	t.Chdir("/proc")
	p := &process{env: noEnv, stdout: io.Discard, stderr: &bytes.Buffer{}}
	c := defaultConfig().Store
	if err := p.storeHere(&c); err != nil || !strings.Contains(fmt.Sprint(p.stderr), filepath.Dir(c.JournalDir)) || !writable(filepath.Dir(c.JournalDir)) {
		t.Errorf("%v: %+v: %s", err, c, p.stderr)
	}
	t.Chdir(t.TempDir())
	c = defaultConfig().Store
	if err := p.storeHere(&c); err != nil || c != defaultConfig().Store {
		t.Errorf("%v: %+v", err, c)
	}
}

// TestStoreMistakes starts gateways that cannot keep what is used.
func TestStoreMistakes(t *testing.T) {
	s := startServers(t, nil)
	f := startGateway(t, s, stack.Config{})
	dir := filepath.Dir(f.File)
	for name, c := range map[string]struct{ store, want string }{
		"the journal is in use": {"{dsn: 'sqlite://" + dir + "/tidegate.db', journal_dir: " + dir + "/journal}", "in use by another gateway"},
		"no such directory":     {"{dsn: 'sqlite://" + dir + "/none/tidegate.db', journal_dir: " + dir + "/none}", "the directory " + dir + "/none is not there"},
		"no server":             {"{dsn: 'postgres://u:secret@127.0.0.1:1/x', journal_dir: " + dir + "/other}", "reach postgres://127.0.0.1:1/x"},
		"no DSN":                {"{dsn: 'mysql://u:secret@x'}", "must begin with sqlite:// or postgres://"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "tidegate.yaml")
			text := fmt.Sprintf("server: {listen: '127.0.0.1:0', ops_listen: '127.0.0.1:0'}\nauth: {mode: open}\nstore: %s\nmodels: [{name: m, backends: [{url: 'http://127.0.0.1:1'}]}]\n", c.store)
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			if code := run(t.Context(), []string{"serve", "--config", file}, noEnv, &out, &out); code == exitOK || !strings.Contains(out.String(), c.want) || strings.Contains(out.String(), "secret") {
				t.Errorf("code %d: %s", code, out.String())
			}
		})
	}
}

package deploy

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"tidegate/admission/limit/redislimit/redistest"
	"tidegate/gateway/gatewaytest/stack"
	"tidegate/nvml"
)

// TestPromtool runs the rules' own tests, which say when each alert fires and when
// it does not. Every alert must have both.
func TestPromtool(t *testing.T) {
	tool := stack.PrometheusTool(t, os.Getenv, "promtool")
	tests, _ := filepath.Glob(filepath.Join(prometheusDir, "tests", "*.yml"))
	for _, args := range [][]string{
		{"check", "config", filepath.Join(prometheusDir, "prometheus.yml")}, append([]string{"test", "rules"}, tests...),
	} {
		if out, err := exec.CommandContext(t.Context(), tool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	fires, rests := map[string]bool{}, map[string]bool{}
	recorded := ""
	for _, file := range tests {
		var of struct {
			Tests []struct {
				Alerts []struct {
					Name     string `yaml:"alertname"`
					Expected []any  `yaml:"exp_alerts"`
				} `yaml:"alert_rule_test"`
				Exprs []struct{ Expr string } `yaml:"promql_expr_test"`
			}
		}
		readYAML(t, file, &of)
		for _, test := range of.Tests {
			for _, a := range test.Alerts {
				fires[a.Name] = fires[a.Name] || len(a.Expected) > 0
				rests[a.Name] = rests[a.Name] || len(a.Expected) == 0
			}
			for _, e := range test.Exprs {
				recorded += e.Expr + "\n"
			}
		}
	}
	for _, r := range readRules(t) {
		if r.Alert != "" && (!fires[r.Alert] || !rests[r.Alert]) {
			t.Errorf("%s: there is no case in which it fires, or none in which it does not", r.Alert)
		}
		if r.Record != "" && !strings.Contains(recorded, r.Record) {
			t.Errorf("%s: there is no case of it", r.Record)
		}
	}
}

func readYAML(t *testing.T, path string, into any) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err == nil {
		err = yaml.Unmarshal(raw, into)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// rule is one of Prometheus's rules.
type rule struct {
	Record, Alert, Expr string
	Labels, Annotations map[string]string
}

func readRules(t *testing.T) (all []rule) {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(prometheusDir, "rules", "*.yml"))
	for _, file := range files {
		var of struct{ Groups []struct{ Rules []rule } }
		readYAML(t, file, &of)
		for _, g := range of.Groups {
			all = append(all, g.Rules...)
		}
	}
	if len(all) < 20 {
		t.Fatalf("found only %d rules", len(all))
	}
	return all
}

// TestAlertsSay: each alert says what is wrong, with the value, how bad it is, and
// where to read on.
func TestAlertsSay(t *testing.T) {
	page, err := os.ReadFile("../docs/monitoring.md")
	if err != nil {
		t.Fatal(err)
	}
	guide, _ := os.ReadFile("../docs/operating.md")
	for _, r := range readRules(t) {
		if r.Alert == "" {
			continue
		}
		anchor := kebab(r.Alert)
		if s := r.Labels["severity"]; s != "critical" && s != "warning" {
			t.Errorf("%s: severity %q", r.Alert, s)
		}
		if r.Annotations["runbook_url"] != "docs/operating.md#"+anchor {
			t.Errorf("%s: its runbook is %q; expected the section #%s", r.Alert, r.Annotations["runbook_url"], anchor)
		}
		if r.Annotations["summary"] == "" || !strings.Contains(r.Annotations["description"], "{{ $") {
			t.Errorf("%s: it says too little", r.Alert)
		}
		if row := fmt.Sprintf("\n| `%s` | %s | ", r.Alert, r.Labels["severity"]); !bytes.Contains(page, []byte(row)) {
			t.Errorf("%s, %s: docs/monitoring.md does not list it", r.Alert, r.Labels["severity"])
		}
		if len(guide) > 0 && !bytes.Contains(guide, []byte(`<a id="`+anchor+`">`)) {
			t.Errorf("%s: docs/operating.md has no section #%s", r.Alert, anchor)
		}
		if r.Alert != "TidegateGatewayDown" && !strings.Contains(r.Annotations["description"], "$value") {
			t.Errorf("%s: it does not tell the value", r.Alert)
		}
	}
}

// kebab is TidegateGPUHot as tidegate-gpu-hot.
func kebab(name string) string {
	name = regexp.MustCompile(`([a-z])([A-Z])`).ReplaceAllString(name, "$1-$2")
	return strings.ToLower(regexp.MustCompile(`([A-Z]+)([A-Z][a-z])`).ReplaceAllString(name, "$1-$2"))
}

// TestDashboardNames: what dashboards and rules ask for is what docs/metrics.md lists
// of a gateway, or what a rule records.
func TestDashboardNames(t *testing.T) {
	known := stack.DocumentedMetrics(t, "..")
	recorded := map[string]bool{}
	for _, r := range readRules(t) {
		recorded[r.Record] = true
	}
	name := regexp.MustCompile(`[a-z_:]*tidegate_[a-z0-9_:]+`)
	asked := map[string]bool{}
	for _, q := range inquiries(t) {
		for _, n := range name.FindAllString(q.expr, -1) {
			asked[n] = true
			plain := regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(n, "")
			if d := known[plain]; !recorded[n] && !known[n].Gateway && (!d.Gateway || d.Type != "histogram") {
				t.Errorf("%s asks for %s, which docs/metrics.md does not know", q.of, n)
			}
		}
	}
	if len(asked) < 50 {
		t.Errorf("found only %d names", len(asked))
	}
}

// promServer is a running Prometheus.
type promServer struct {
	what string
	base string
	log  *stack.Log
}

// startPrometheus runs the configuration that is shipped, with the gateway and its
// servers in place of the compose file's names, and everything once a second.
func startPrometheus(t *testing.T, g *stack.Gateway, what string, flags ...string) *promServer {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "prometheus.yml")
	var c map[string]any
	readYAML(t, filepath.Join(prometheusDir, "prometheus.yml"), &c)
	rules, _ := filepath.Abs(filepath.Join(prometheusDir, "rules/*.yml"))
	c["rule_files"] = []string{rules}
	c["global"] = map[string]any{"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
	targets := map[string]string{"tidegate": strings.TrimPrefix(g.Ops, "http://"), "vllm": strings.TrimPrefix(g.Servers[0].URL, "http://")}
	jobs, _ := c["scrape_configs"].([]any)
	for _, job := range jobs {
		job := job.(map[string]any)
		if at := targets[job["job_name"].(string)]; at != "" {
			job["static_configs"] = []any{map[string]any{"targets": []string{at}}}
		} else {
			job["static_configs"] = []any{}
		}
	}
	write := func() {
		raw, err := yaml.Marshal(c)
		if err == nil {
			err = os.WriteFile(file, raw, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if what == "native" { // new servers want it said here, old ones refuse to read it
		global := c["global"].(map[string]any)
		global["scrape_native_histograms"] = true
		if write(); exec.CommandContext(t.Context(), stack.PrometheusTool(t, os.Getenv, "promtool"), "check", "config", file).Run() != nil {
			delete(global, "scrape_native_histograms")
		}
	}
	write()
	p := &promServer{what: what, log: stack.NewLog()}
	command := exec.Command(stack.PrometheusTool(t, os.Getenv, "prometheus"), append([]string{
		"--config.file=" + file, "--storage.tsdb.path=" + filepath.Join(dir, "data"), "--web.listen-address=127.0.0.1:0",
	}, flags...)...)
	command.Stdout, command.Stderr = p.log, p.log
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	t.Cleanup(func() {
		_ = command.Process.Signal(syscall.SIGKILL) // what it has stored goes with it
		<-ended
		if t.Failed() {
			t.Logf("log of Prometheus (%s):\n%s", what, p.log)
		}
	})
	address := regexp.MustCompile(`[Ll]istening on"? address=(127\.0\.0\.1:\d+)`)
	stack.Eventually(t, "Prometheus to listen", func() bool {
		if m := address.FindStringSubmatch(p.log.Text()); m != nil {
			p.base = "http://" + m[1]
		}
		return p.base != ""
	})
	return p
}

// sample is one series of an answer.
type sample struct {
	Metric map[string]string
	Value  [2]any
}

// api asks for a path of its API.
func (p *promServer) api(ctx context.Context, client *http.Client, path string, values url.Values, into any) error {
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, p.base+"/api/v1/"+path, strings.NewReader(values.Encode()))
	if path == "rules" {
		q, err = http.NewRequestWithContext(ctx, http.MethodGet, p.base+"/api/v1/"+path, nil)
	}
	if err != nil {
		return err
	}
	q.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := client.Do(q)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var answer struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return err
	}
	if answer.Status != "success" {
		return fmt.Errorf("%s: %s", answer.Status, answer.Error)
	}
	return json.Unmarshal(answer.Data, into)
}

// query evaluates an expression now.
func (p *promServer) query(ctx context.Context, client *http.Client, expr string) ([]sample, error) {
	var data struct{ Result []sample }
	err := p.api(ctx, client, "query", url.Values{"query": {expr}}, &data)
	return data.Result, err
}

// asked of Prometheus: an expression, whose it is, and the labels its legend names.
type inquiry struct {
	of, expr string
	labels   []string
}

// inquiries are those of every panel, every variable and every rule.
func inquiries(t *testing.T) (all []inquiry) {
	t.Helper()
	named := regexp.MustCompile(`\{\{(\w+)\}\}`)
	for _, d := range readDashboards(t) {
		for _, v := range d.Templating.List {
			if m := regexp.MustCompile(`^label_values\((.+), (\w+)\)$`).FindStringSubmatch(v.Definition); m != nil {
				all = append(all, inquiry{d.Title + ", variable " + v.Name, m[1], []string{m[2]}})
			} else if v.Type == "query" {
				t.Errorf("%s: the variable %s asks %s", d.Title, v.Name, v.Definition)
			}
		}
		for _, p := range d.Panels {
			for _, q := range p.Targets {
				one := inquiry{of: d.Title + " / " + p.Title + " " + q.RefID, expr: q.Expr}
				for _, m := range named.FindAllStringSubmatch(q.LegendFormat, -1) {
					one.labels = append(one.labels, m[1])
				}
				all = append(all, one)
			}
		}
	}
	// A comparison keeps what fulfils it. Told to say 0 or 1 it shows that there is
	// something to be compared.
	compares := regexp.MustCompile(` (>=|<=|>|<|==|!=) `)
	for _, r := range readRules(t) {
		one := inquiry{of: "rule " + r.Record + r.Alert, expr: r.Expr}
		if r.Alert != "" {
			one.expr = compares.ReplaceAllString(r.Expr, " $1 bool ")
			for _, text := range r.Annotations {
				for _, m := range regexp.MustCompile(`\$labels\.(\w+)`).FindAllStringSubmatch(text, -1) {
					one.labels = append(one.labels, m[1])
				}
			}
		}
		all = append(all, one)
	}
	return all
}

// asGrafana puts in what Grafana would, with all or some values of each variable chosen.
func asGrafana(expr string, chosen map[string]string) string {
	for name, value := range map[string]string{"__rate_interval": "10s", "__interval": "5s", "__range": "60s"} {
		expr = strings.ReplaceAll(expr, "$"+name, value)
	}
	for name, value := range chosen {
		expr = strings.ReplaceAll(expr, "$"+name, value)
	}
	return expr
}

// everything is each variable at All, as the dashboards say it.
func everything(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, d := range readDashboards(t) {
		for _, v := range d.Templating.List {
			if v.Type == "query" {
				out[v.Name] = v.AllValue
			}
		}
	}
	return out
}

// several is what Grafana puts in where more than one value of each variable is
// chosen: an alternative of them, quoted for a regular expression inside a string.
func several(s stack.Servers) map[string]string {
	either := func(values ...string) string {
		for i := range values {
			values[i] = strings.ReplaceAll(regexp.QuoteMeta(values[i]), `\`, `\\`)
		}
		return "(" + strings.Join(values, "|") + ")"
	}
	var backends []string
	for _, server := range s {
		backends = append(backends, strings.TrimPrefix(server.URL, "http://"))
	}
	return map[string]string{
		"model": either(stack.LargeModel, stack.SmallModel), "backend": either(backends...), "gpu": either("demo/0", "demo/9"), "rule": either("rate", "tokens", "daily"),
	}
}

// TestExpressions lets a real Prometheus scrape a gateway under traffic, with a hot
// GPU, and asks it everything that dashboards and rules ask: all must parse and
// return data, with the labels that legends name. One Prometheus keeps histograms
// with buckets and one in their native form.
func TestExpressions(t *testing.T) {
	stack.PrometheusTool(t, os.Getenv, "prometheus")
	node := stack.StartNode(t)
	node.Answer(overheated(time.Now()))
	g := kit.Start(t, kit.StartServers(t, nil), observable(t, node, redistest.Single(t).Addr))
	busy(t, g)
	servers := []*promServer{startPrometheus(t, g, "buckets"), startPrometheus(t, g, "native", "--enable-feature=native-histograms")}
	all := inquiries(t)
	for _, p := range servers {
		p.answers(t, g.Client, all, []map[string]string{everything(t), several(g.Servers)})
		p.rulesHold(t, g.Client)
	}
	for _, p := range servers {
		have, err := p.query(t.Context(), g.Client, "tidegate_request_duration_seconds_bucket")
		if err != nil || (len(have) > 0) != (p.what == "buckets") {
			t.Errorf("%s: %d series with buckets, %v", p.what, len(have), err)
		}
	}
}

// answers asks everything again and again until all is well.
func (p *promServer) answers(t *testing.T, client *http.Client, all []inquiry, choices []map[string]string) {
	t.Helper()
	wrong := map[int]string{}
	for i := range all {
		wrong[i] = "not asked"
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(stack.Patience); len(wrong) > 0; <-tick.C {
		for _, i := range slices.Sorted(maps.Keys(wrong)) {
			if wrong[i] = all[i].ask(t.Context(), p, client, choices); wrong[i] == "" {
				delete(wrong, i)
			}
		}
		if time.Now().After(deadline) {
			for i, what := range wrong {
				t.Errorf("%s: %s: %s\n%s", p.what, all[i].of, what, all[i].expr)
			}
			t.FailNow()
		}
	}
}

// ask says what is wrong with the answers, with each choice of variables; empty:
// nothing.
func (q *inquiry) ask(ctx context.Context, p *promServer, client *http.Client, choices []map[string]string) string {
	for _, chosen := range choices {
		result, err := p.query(ctx, client, asGrafana(q.expr, chosen))
		if err != nil {
			return err.Error()
		}
		if wrong := q.wrong(result); wrong != "" {
			return fmt.Sprintf("%s, where %v is chosen", wrong, chosen)
		}
	}
	return ""
}

func (q *inquiry) wrong(result []sample) string {
	number := slices.ContainsFunc(result, func(s sample) bool { return s.Value[1] != "NaN" })
	if !number {
		return fmt.Sprintf("no data: %v", result)
	}
	for _, label := range q.labels {
		if result[0].Metric[label] == "" {
			return fmt.Sprintf("there is no label %s in %v", label, result[0].Metric)
		}
	}
	return ""
}

// rulesHold: Prometheus itself has no trouble with the rules, and sees the hot GPU.
func (p *promServer) rulesHold(t *testing.T, client *http.Client) {
	t.Helper()
	var data struct {
		Groups []struct {
			Rules []struct{ Name, Health, LastError, State string }
		}
	}
	hot := ""
	stack.Eventually(t, "all rules to be evaluated", func() bool {
		if err := p.api(t.Context(), client, "rules", nil, &data); err != nil {
			t.Fatal(err)
		}
		for _, g := range data.Groups {
			for _, r := range g.Rules {
				if r.Health == "unknown" {
					return false
				}
				if r.Name == "TidegateGPUHot" {
					hot = r.State
				}
			}
		}
		return hot != ""
	})
	for _, g := range data.Groups {
		for _, r := range g.Rules {
			if r.Health != "ok" {
				t.Errorf("%s: %s: %s, %s", p.what, r.Name, r.Health, r.LastError)
			}
		}
	}
	if hot != "pending" && hot != "firing" {
		t.Errorf("%s: the GPU is 4 degrees below its slowdown, and TidegateGPUHot is %s", p.what, hot)
	}
}

// observable returns a configuration of which there is something to see of everything.
func observable(t *testing.T, node *stack.Node, redis string) stack.Config {
	authority, _ := stack.Certificate(t, t.TempDir(), "authority")
	c := stack.Laddered(fmt.Sprintf(`  baseline: 1s
gpus: [{name: demo, agent: '%s', every: 100ms}]
redis: {addrs: ['%s'], timeout: 2s}
telemetry: {per_user: 3}
limits:
  - {name: rate, per: user, requests: 20/1s}
  - {name: tokens, per: user, tokens: 1/1m, shadow: true}
alerts:
  - {name: ops, type: webhook, url: 'http://127.0.0.1:1/', secret_env: HOOK_SECRET, allow_private: true, ca_file: '%s'}
quotas:
  - {name: daily, per: user, units: 1000000000, every: day}
  - {name: monthly, per: department, units: 1000000000, every: month}
  - {name: team, per: project, units: 1000000000, every: week}
`, node.URL, redis, authority))
	c.GPUs, c.Env["HOOK_SECRET"] = "demo/0", "a secret of sixteen"
	return c
}

// overheated returns the answer of a node whose GPU is hot, nearly full, and has been held
// down since it began.
func overheated(began time.Time) func(http.ResponseWriter, *nvml.Report) {
	return func(w http.ResponseWriter, report *nvml.Report) {
		known := func(v uint64) *uint64 { return &v }
		margin, hot, full := 4, 83, 97
		r := &report.GPUs[0]
		r.Margin, r.Temperature, r.HBM, r.Utilisation = &margin, &hot, &hot, &full
		r.MemoryTotal, r.MemoryUsed, r.MemoryFree, r.Power = known(143771<<20), known(132270<<20), known(11501<<20), known(690_000)
		r.ThrottleNs = map[string]uint64{"sw_thermal": uint64(time.Since(began) / 4), "sw_power_cap": uint64(time.Since(began) / 2)}
		_ = json.NewEncoder(w).Encode(report) // the gateway may have left
	}
}

// busy sends requests of every kind, of a user with a project and a department, which are
// answered and refused, until the test ends.
func busy(t *testing.T, g *stack.Gateway) {
	key, _ := kit.Command(t, 0, "key", "create", "--user", "ann", "--config", g.File)
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	var callers sync.WaitGroup
	t.Cleanup(func() {
		stop()
		callers.Wait()
	})
	send := func(model string) error {
		body := fmt.Sprintf(`{"model":%q,"stream":true,"max_tokens":40,"messages":[{"role":"user","content":"Why is the sky blue?"}]}`, model)
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, g.URL+stack.ChatPath, strings.NewReader(body))
		if err != nil {
			return err
		}
		r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(key))
		r.Header.Set("Content-Type", "application/json")
		resp, err := g.Client.Do(r)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	for _, model := range []string{stack.LargeModel, stack.SmallModel, "junk"} {
		callers.Go(func() {
			for ctx.Err() == nil {
				if err := send(model); err != nil && ctx.Err() == nil {
					t.Error(err)
					return
				}
			}
		})
	}
}

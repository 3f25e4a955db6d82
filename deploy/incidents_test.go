package deploy

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tidegate/admission/limit/redislimit/redistest"
	"tidegate/gateway/database/databasetest"
	"tidegate/gateway/gatewaytest"
	"tidegate/gateway/gatewaytest/stack"
	"tidegate/nvml"
)

// The incidents of operating.md are caused for real. A test of one takes from the page
// what `tidegate status` or `tidegate top` must show, and the remedy that it runs.

// runbookPage is where the incidents stand.
const runbookPage = "docs/operating.md"

// runbookEntry is one incident of the page.
type runbookEntry struct {
	name    string
	shown   string // by the status or by top; "..." stands for anything
	section string // to which it leads, as text
}

// runbook reads the incidents of the page.
func runbook(t *testing.T) (all []runbookEntry) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("..", filepath.FromSlash(runbookPage)))
	if err != nil {
		t.Fatal(err)
	}
	_, list, ok := strings.Cut(string(raw), "## The twelve incidents\n")
	list, _, _ = strings.Cut(list, "\n## ")
	if !ok {
		t.Fatalf("%s has no list of incidents", runbookPage)
	}
	for _, m := range regexp.MustCompile("(?m)^\\| ([^|]+) \\| `([^|`]+)` \\| \\[[^]]+\\]\\(#([a-z0-9-]+)\\) \\|$").FindAllStringSubmatch(list, -1) {
		all = append(all, runbookEntry{m[1], m[2], sectionOf(t, string(raw), m[3])})
	}
	return all
}

// sectionOf is the part of a page under the heading with that anchor.
func sectionOf(t *testing.T, page, anchor string) string {
	t.Helper()
	heads := regexp.MustCompile(`(?m)^(#+) (.*)$`).FindAllStringSubmatchIndex(page, -1)
	for i, h := range heads {
		slug := strings.ReplaceAll(regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(strings.ToLower(page[h[4]:h[5]]), ""), " ", "-")
		if slug != anchor {
			continue
		}
		for _, next := range heads[i+1:] {
			if next[3]-next[2] <= h[3]-h[2] {
				return page[h[0]:next[0]]
			}
		}
		return page[h[0]:]
	}
	t.Fatalf("%s has no section #%s", runbookPage, anchor)
	return ""
}

// incident is the one with that name.
func incident(t *testing.T, name string) runbookEntry {
	t.Helper()
	for _, e := range runbook(t) {
		if e.name == name {
			return e
		}
	}
	t.Fatalf("%s has no incident %q", runbookPage, name)
	return runbookEntry{}
}

// by puts a user and a key where the page speaks of anyone's.
func (e runbookEntry) by(user, key string) runbookEntry {
	e.shown = strings.NewReplacer("(user)", user, "(key)", key).Replace(e.shown)
	return e
}

// views returns what an operator looks at: the status and top.
func views(t *testing.T, f *stack.Gateway) string {
	t.Helper()
	status, _ := kit.Command(t, 0, "status", "--ops", f.Ops)
	top, _ := kit.Command(t, 0, "top", "--once", "--ops", f.Ops)
	return status + top
}

// shows waits until what the page says of the incident stands there. again is done
// before each look; nil: nothing.
func (e runbookEntry) shows(t *testing.T, f *stack.Gateway, again func()) {
	t.Helper()
	seen := ""
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s: what was seen last:\n%s", e.name, seen)
		}
	})
	stack.Eventually(t, e.name+" to show as "+e.shown, func() bool {
		if again != nil {
			again()
		}
		seen = views(t, f)
		_, ok := stack.Shows(seen, e.shown)
		return ok
	})
}

// ends waits until it no longer stands there.
func (e runbookEntry) ends(t *testing.T, f *stack.Gateway) {
	t.Helper()
	stack.Eventually(t, e.name+" to end", func() bool {
		_, ok := stack.Shows(views(t, f), e.shown)
		return !ok
	})
}

// says checks that the section tells the operator to do this.
func (e runbookEntry) says(t *testing.T, remedies ...string) {
	t.Helper()
	for _, r := range remedies {
		if !strings.Contains(e.section, r) {
			t.Errorf("%s: its section does not say %q", e.name, r)
		}
	}
}

// runs runs the command of the section that begins so, with the test's file and, one
// after the other, its own names.
func (e runbookEntry) runs(t *testing.T, f *stack.Gateway, begin string, names ...string) string {
	t.Helper()
	m := regexp.MustCompile("[\n`(]" + regexp.QuoteMeta("tidegate "+begin) + "[^`\n)]*").FindString(e.section)
	if m == "" {
		t.Fatalf("%s: its section has no command tidegate %s", e.name, begin)
	}
	line := strings.NewReplacer(append(names, "tidegate.yaml", f.File, "http://127.0.0.1:9090", f.Ops)...).Replace(m[1:])
	var args []string
	for _, word := range regexp.MustCompile(`"[^"]*"|\S+`).FindAllString(line, -1)[1:] {
		args = append(args, strings.Trim(word, `"`))
	}
	out, log := kit.Command(t, 0, args...)
	return out + log
}

// TestRunbookIncidents: each incident of the page leads to a section that says what to
// do, and a test causes it.
func TestRunbookIncidents(t *testing.T) {
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	sources := ""
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		sources += string(raw)
	}
	all := runbook(t)
	if len(all) != 12 {
		t.Errorf("%d incidents", len(all))
	}
	for _, e := range all {
		if !strings.Contains(e.section, "*Do*") && !strings.Contains(e.section, "and do*") {
			t.Errorf("%s: its section does not say what to do", e.name)
		}
		if !strings.Contains(sources, fmt.Sprintf("incident(t, %q)", e.name)) {
			t.Errorf("%s: no test causes it", e.name)
		}
	}
}

// TestHotCards: one card of two is hot, then both are, which makes the model's answers
// smaller; and a level that somebody holds makes limits smaller.
func TestHotCards(t *testing.T) {
	n, s := stack.StartNode(t), kit.StartServers(t, nil)
	heat := func(margin int) {
		n.Answer(func(w http.ResponseWriter, r *nvml.Report) {
			r.GPUs[0].Margin = &margin
			_ = json.NewEncoder(w).Encode(r) // the gateway may have gone
		})
	}
	p := stack.Laddered("  dwell: {up: 200ms, down: 1s, down_max: 1s}\n" +
		fmt.Sprintf("gpus: [{name: gpu-a, agent: '%s', every: 100ms}]\n", n.URL) +
		"limits: [{name: user-rate, per: user, requests: 1000/1h}, {name: shared, per: user, requests: 12/1h, under_pressure: {L2: 0.25}}]\n")
	p.GPUs = "gpu-a/0"
	f := kit.Start(t, s, p)
	level := func() string { return statusOf(t, f).Ladder.Models[0].Level }
	t.Run("one", func(t *testing.T) {
		e := incident(t, "a hot card")
		heat(4)
		e.shows(t, f, nil)
		e.says(t, "its requests go to the others", "weight: 0")
		if a := f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 2, "")); a.Status != http.StatusOK || a.Header.Get("X-Tidegate-Level") != "L0" {
			t.Errorf("with one of two cards hot: %d, %v", a.Status, a.Header)
		}
		e.runs(t, f, "pin Qwen3-1.7B L3")
		stack.Eventually(t, "the load to be off the card", func() bool { return level() == "L3" })
		e.runs(t, f, "unpin Qwen3-1.7B")
		heat(60)
		e.ends(t, f)
		stack.Eventually(t, "the model at L0", func() bool { return level() == "L0" })
	})
	t.Run("both", func(t *testing.T) {
		e := incident(t, "L3 for an hour")
		f.Rewrite(t, strings.Replace(p.YAML(s, filepath.Dir(f.File)), "gpus: []", "gpus: [gpu-a/0]", 1))
		heat(4)
		e.shows(t, f, nil)
		if a := f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 2, "")); a.Header.Get("X-Tidegate-Level") != "L3" || a.Header.Get("X-Tidegate-Reason") != "gpu_temperature" {
			t.Errorf("with all cards hot: %d, %v", a.Status, a.Header)
		}
		e.runs(t, f, "pin Qwen3-1.7B L1")
		stack.Eventually(t, "the model at L1", func() bool { return level() == "L1" })
		heat(60)
		e.runs(t, f, "unpin Qwen3-1.7B")
		e.ends(t, f)
		stack.Eventually(t, "the model at L0", func() bool { return level() == "L0" })
	})
	t.Run("limits", func(t *testing.T) {
		e := incident(t, "429 below the limit")
		f.Pin(t, stack.LargeModel, "L2")
		e.shows(t, f, nil)
		stack.Eventually(t, "a refusal", func() bool {
			return f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 2, "")).Status == http.StatusTooManyRequests
		})
		e.runs(t, f, "unpin Qwen3-1.7B")
		e.ends(t, f)
		if a := f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 2, "")); a.Status != http.StatusOK {
			t.Errorf("below the whole limit: %d %s", a.Status, a.Body)
		}
	})
}

// TestRedisIncident: Redis dies and comes back.
func TestRedisIncident(t *testing.T) {
	e, redis := incident(t, "Redis is down"), redistest.Single(t)
	f := kit.Start(t, kit.StartServers(t, nil), stack.Config{Extra: fmt.Sprintf("redis: {addrs: ['%s']}\nlimits: [{name: user-rate, per: user, requests: 1000/1m}]\n", redis.Addr)})
	ask := func() {
		if a := f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 2, "")); a.Status != http.StatusOK {
			t.Errorf("a caller noticed: %d %s", a.Status, a.Body)
		}
	}
	ask()
	redis.Kill()
	e.shows(t, f, ask)
	e.says(t, "bring Redis back; nothing else is needed")
	redis.Start()
	e.ends(t, f)
	ask()
}

// TestDatabaseIncident: PostgreSQL dies and comes back.
func TestDatabaseIncident(t *testing.T) {
	e, server := incident(t, "PostgreSQL is down"), databasetest.StartServer(t)
	f := kit.Start(t, kit.StartServers(t, nil), stack.Config{DSN: server.Database(t)})
	server.Stop(t)
	e.shows(t, f, nil)
	e.says(t, "bring it back")
	if a := f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 2, "")); a.Status != http.StatusOK {
		t.Errorf("meanwhile: %d %s", a.Status, a.Body)
	}
	server.Start(t)
	e.ends(t, f)
	stack.Eventually(t, "what was used meanwhile to be in the report", func() bool {
		out, _ := kit.Command(t, 0, "usage", "report", "--by", "user", "--config", f.File)
		return strings.Contains(out, "ada")
	})
}

// TestCertificateIncident: the certificate has ended; a new one in its files and a SIGHUP
// are enough.
func TestCertificateIncident(t *testing.T) {
	e, dir := incident(t, "an expired certificate"), t.TempDir()
	now := time.Now()
	cert, key := stack.CertificateFor(t, dir, "server", now.Add(-48*time.Hour), now.Add(-time.Hour))
	f := kit.StartReplica(t, kit.StartServers(t, nil), stack.Config{Server: []string{fmt.Sprintf("tls: {cert_file: %s, key_file: %s}", cert, key)}}, stack.NewClient(t))
	e.shows(t, f.Gateway, nil)
	e.says(t, "put the new files where `server.tls.cert_file` and `key_file` point, both, then SIGHUP")
	stack.CertificateFor(t, dir, "server", now.Add(-time.Hour), now.Add(90*24*time.Hour))
	stack.Eventually(t, "the new certificate", func() bool {
		if err := f.Process.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		conn, err := tls.Dial("tcp", strings.TrimPrefix(f.URL, "http://"), &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // it looks at the certificate itself
		if err != nil {
			return false
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].NotAfter.After(now)
	})
	e.ends(t, f.Gateway)
}

// TestHungBackend: a server of two hangs, although it answers its health probe. It goes out
// of rotation, no caller of a whole answer or of a stream that has not begun notices, and
// it comes back by itself when it answers again.
func TestHungBackend(t *testing.T) {
	s := kit.StartServers(t, nil)
	f := kit.Start(t, s, stack.Config{Model: []string{"breaker: {stall: 500ms, open: 1s}"}})
	s[:1].Fault(t, gatewaytest.Fault{Kind: gatewaytest.FaultHang})
	var asking sync.WaitGroup
	for n := range 12 {
		asking.Go(func() {
			if a := f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 20, []string{"", `,"stream":true`}[n%2])); a.Status != 200 {
				t.Errorf("a caller noticed: %d %s", a.Status, a.Body)
			}
		})
	}
	stack.Eventually(t, "the hung server to go out", func() bool { return f.InRotation(t) == len(s)-1 })
	e := incident(t, "a hung backend")
	e.shows(t, f, nil)
	asking.Wait()
	if status := f.StatusPage(t); !strings.Contains(status, "it hangs: it has ") {
		t.Errorf("the status does not say why: %s", status)
	}
	e.says(t, "Restart the backend; it comes back by itself")
	s.Heal(t)
	e.ends(t, f)
	stack.Eventually(t, "the server to be back", func() bool { return f.InRotation(t) == len(s) })
	f.Idle(t)
}

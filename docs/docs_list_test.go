package docs

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"tidegate/gateway/gatewaytest/stack"
)

// unrun is a line of a shell block, or a whole block of another language, that the
// test of the pages cannot run, and what is checked instead.
type unrun struct {
	lang, starts string // how the line begins, or the block: a regular expression
	why          string
	stand        func(t *testing.T, line string)
}

// unrunnable is the list. A line that is neither on it nor runs is a failure, and so
// is an entry that no page needs.
func unrunnable() []unrun {
	return []unrun{
		{"sh", "make demo", "serves until it is stopped", demoServes},
		{"sh", "make ", "this test is part of one; the others take minutes", makeTarget},
		{"sh", `(\w+=\S+ )*bin/tidegate serve`, "serves until it is stopped", serves},
		{"sh", "bin/tidegate demo --scenario", "takes a minute; TestDemoScenario plays one", playsIn},
		{"sh", "python3 -m venv", "needs a package index", tested},
		{"sh", `\.venv/bin/pip`, "needs a package index", tested},
		{"sh", `\.venv/bin/python`, "the Python block of the same page is run", namesPython},
		{"sh", "tidegate-gpu-agent", "needs a GPU's driver; its own tests run it", agentFlags},
		{"sh", "vllm serve", "needs vLLM and a GPU", vllmFlags},
		{"sh", `(\w+=\$\()?docker compose`, "needs a container engine", filesExist},
		{"sh", "sudo ", "changes the host", filesExist},
		{"text", "cmd/tidegate ", "is a picture; TestPicture holds it", func(*testing.T, string) {}},
	}
}

// excuse finds a line, or a block, on the list.
func excuse(b *block, line string) (u unrun, ok bool) {
	for _, u := range unrunnable() {
		if shell := b.lang == "sh" || b.lang == "bash"; (u.lang == b.lang || shell && u.lang == "sh") && regexp.MustCompile(`^(?:`+u.starts+`)`).MatchString(strings.TrimSpace(line)) {
			return u, true
		}
	}
	return u, false
}

// wholly says that nothing of a block is run.
func wholly(b *block) bool {
	if b.lang != "sh" && b.lang != "bash" {
		_, ok := excuse(b, b.text)
		return ok
	}
	return !slices.ContainsFunc(shellLines(b.text), func(line string) bool {
		_, ok := excuse(b, line)
		return !ok && strings.TrimSpace(line) != ""
	})
}

// TestDocsList checks what stands for each line that is not run, and that nothing is
// on the list in vain.
func TestDocsList(t *testing.T) {
	used := map[string]int{}
	for _, page := range docPages(t) {
		for _, b := range blocksOf(t, page) {
			lines := []string{b.text}
			if b.lang == "sh" || b.lang == "bash" {
				lines = shellLines(b.text)
			}
			for _, line := range lines {
				if u, ok := excuse(b, line); ok {
					used[u.starts]++
					t.Run(b.at(), func(t *testing.T) { u.stand(t, strings.TrimSpace(strings.ReplaceAll(line, "\\\n", " "))) })
				}
			}
		}
	}
	for _, u := range unrunnable() {
		if used[u.starts] == 0 {
			t.Errorf("no page has a line %q: take it off the list", u.starts)
		}
		if u.why == "" {
			t.Errorf("%q: nobody says why it cannot run", u.starts)
		}
	}
}

// serving starts a command that does not end by itself, waits until it says word, and
// stops it: it must end as it should.
func (s *settings) serving(t *testing.T, word string, args ...string) {
	t.Helper()
	env := map[string]string{"TIDEGATE_STORE_DSN": "sqlite://" + filepath.Join(t.TempDir(), "x.db"), "TIDEGATE_STORE_JOURNAL_DIR": t.TempDir()}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	out := stack.NewLog()
	_, ended := kit.Process(ctx, t, out, env, append(args, "--listen", "127.0.0.1:0")...)
	out.Await(t, ended, word, func(text string) bool { return strings.Contains(text, word) })
	stop()
	if code := <-ended; code != 0 {
		t.Errorf("%v: code %d: %s", args, code, out)
	}
}

// demoServes runs what `make demo` runs once all is built.
func demoServes(t *testing.T, line string) {
	makeTarget(t, line)
	(&settings{}).serving(t, "Ctrl-C stops all.", "demo")
}

// makeTarget wants the Makefile to have what the line makes.
func makeTarget(t *testing.T, line string) {
	line, _, _ = strings.Cut(line, "#")
	raw, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range strings.Fields(line)[1:] {
		if !strings.Contains(target, "=") && !regexp.MustCompile(`(?m)^`+regexp.QuoteMeta(target)+`:`).Match(raw) {
			t.Errorf("the Makefile has no target %s", target)
		}
	}
}

// serves starts the gateway as the line says, in front of servers of this test.
func serves(t *testing.T, line string) {
	sims := kit.StartServers(t, nil)
	args := strings.Fields(line)
	args = args[slices.Index(args, "bin/tidegate")+1:]
	for i, a := range args {
		if strings.HasPrefix(a, "http://") {
			args[i] = sims[i%len(sims)].URL
		}
		if a == "tidegate.yaml" || a == "deploy/tidegate.example.yaml" {
			args[i] = filepath.Join(t.TempDir(), "tidegate.yaml")
			if err := os.WriteFile(args[i], []byte("models: [{name: Qwen3-1.7B, backends: [{url: '"+sims[0].URL+"'}]}]\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	(&settings{}).serving(t, "listening", append(args, "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0")...)
}

func playsIn(t *testing.T, line string) {
	out, _ := kit.Command(t, 0, "demo", "--help")
	if name := regexp.MustCompile(`--scenario (\w+)`).FindStringSubmatch(line); name == nil || !regexp.MustCompile(`(?m)^  `+name[1]+` `).MatchString(out) {
		t.Errorf("tidegate demo --help does not know the scenario of %q", line)
	}
}

// tested wants the client tests to use the packages that a page tells to install.
func tested(t *testing.T, line string) {
	var known []byte
	for _, file := range []string{"../gateway/testdata/clients/python/requirements.txt", "../gateway/testdata/clients/node/package.json"} {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		known = append(known, raw...)
	}
	_, packages, found := strings.Cut(line, " install ")
	if !found {
		return
	}
	for _, name := range strings.Fields(packages) {
		if !regexp.MustCompile(`(?m)(^|")` + regexp.QuoteMeta(name) + `(==|": ")`).Match(known) {
			t.Errorf("no test runs a client with %s", name)
		}
	}
}

// namesPython wants some page to have a block that says that it is the file.
func namesPython(t *testing.T, line string) {
	file := line[strings.LastIndexByte(line, ' ')+1:]
	for _, page := range docPages(t) {
		for _, b := range blocksOf(t, page) {
			if strings.HasPrefix(b.text, "# "+file+"\n") {
				return
			}
		}
	}
	t.Errorf("no page shows the file %s", file)
}

// hasFlags wants a program's source to have the flags of a line.
func hasFlags(t *testing.T, line, dir string) {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatal(dir, err)
	}
	var source []byte
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		source = append(source, raw...)
	}
	for _, flag := range regexp.MustCompile(`--([a-z-]+)`).FindAllStringSubmatch(line, -1) {
		if !bytes.Contains(source, []byte(`"`+flag[1]+`"`)) {
			t.Errorf("%s: there is no flag --%s in %s", line, flag[1], dir)
		}
	}
}

func agentFlags(t *testing.T, line string) { hasFlags(t, line, "../cmd/tidegate-gpu-agent") }

// vllmFlags are those that vLLM's documentation has and the pages use.
func vllmFlags(t *testing.T, line string) {
	known := []string{"--port", "--enable-auto-tool-choice", "--tool-call-parser", "--reasoning-parser", "--served-model-name", "--gpu-memory-utilization", "--host"}
	for _, flag := range regexp.MustCompile(`--[a-z-]+`).FindAllString(line, -1) {
		if !slices.Contains(known, flag) {
			t.Errorf("%s: look up whether vLLM has %s, and then let this test know it", line, flag)
		}
	}
}

// filesExist wants the files, units, services and commands of this project that a line
// names to be there. Files stand below the root or, on the page of deploy, beside it.
func filesExist(t *testing.T, line string) {
	words := strings.Fields(strings.NewReplacer("'", "", `"`, "", "(", " ", ")", "").Replace(line))
	exists := func(pattern string) bool {
		found, err := filepath.Glob(filepath.Join("..", pattern))
		return err == nil && len(found) > 0
	}
	for i, word := range words {
		switch {
		case strings.HasPrefix(word, "/"):
		case strings.HasPrefix(word, "deploy/") && !exists(word),
			words[max(i-1, 0)] == "-f" && !exists(word) && !exists("deploy/"+word),
			slices.Contains(words[:i], "--now") && !exists("deploy/systemd/"+word+".service"):
			t.Errorf("%s: there is no %s", line, word)
		case word == "compose" && !regexp.MustCompile(`compose( -f \S+)* (up|down|ps|build|exec|logs)\b`).MatchString(line):
			t.Errorf("%s: what does compose do?", line)
		case word == "tidegate" && !slices.Contains(words, "--now"):
			hasCommand(t, words[i:])
		}
	}
	if name := regexp.MustCompile(`exec -T (\S+)`).FindStringSubmatch(line); name != nil {
		if file, err := os.ReadFile("../deploy/compose.yaml"); err != nil || !bytes.Contains(file, []byte("\n  "+name[1]+":")) {
			t.Errorf("%s: there is no service %s", line, name[1])
		}
	}
}

// hasCommand wants tidegate to have a command with its flags.
func hasCommand(t *testing.T, words []string) {
	n := slices.IndexFunc(words, func(w string) bool { return !regexp.MustCompile(`^[a-z]+$`).MatchString(w) })
	if n < 0 {
		n = len(words)
	}
	if n > 3 {
		n = 3 // what follows are arguments
	}
	help, _ := kit.Command(t, 0, append(slices.Clone(words[1:n]), "--help")...)
	if !strings.Contains(help, "\n  "+strings.Join(words[:n], " ")+" ") {
		t.Errorf("there is no %v: %s", words[:n], help)
	}
	for _, w := range words[n:] {
		if strings.HasPrefix(w, "--") && !strings.Contains(help, w) {
			t.Errorf("%v has no %s", words[:n], w)
		}
	}
}

// TestDocMetrics wants every metric that a page names to be in the list of them.
func TestDocMetrics(t *testing.T) {
	list, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range docPages(t) {
		raw, err := os.ReadFile(filepath.Join("..", page))
		if err != nil {
			t.Fatal(err)
		}
		// Names of recording rules have a colon beside it; tidegate_gpu_* is no name.
		for _, m := range regexp.MustCompile(`(?:^|[^:a-z_])(tidegate(?:_[a-z0-9]+)+)(?:[^:a-z0-9_]|$)`).FindAllSubmatch(raw, -1) {
			name := regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAll(m[1], nil)
			if !bytes.Contains(list, fmt.Appendf(nil, "`%s`", name)) {
				t.Errorf("%s names %s, which docs/metrics.md does not have", page, name)
			}
		}
	}
}

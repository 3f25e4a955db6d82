package docs

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tidegate/gateway/gatewaytest/stack"
)

// Documentation is tested code: every fenced block of the pages is run or checked,
// in front of simulated servers. The pages speak of the addresses that the demo has;
// the test puts those of its own gateway in their place (settings.place), and $KEY is
// a key that is good there. What cannot run here stands in the list of unrun
// (docs_list_test.go), each with what is checked instead.
//
// The blocks of one language on one page are one session, in their order, as a
// reader would paste them; a JavaScript block that imports begins a program of its own,
// since a module may import a name once. A text block after a command is what it prints; "..."
// stands for anything, and any number for any number but HTTP's statuses of errors.

// docPages are the pages whose blocks are run.
func docPages(t *testing.T) []string {
	t.Helper()
	return slices.DeleteFunc(markdown(t), func(page string) bool {
		return page == "docs/CHANGELOG.md" || strings.HasPrefix(page, "docs/adr/") || strings.HasPrefix(page, "docs/benchmarks/")
	})
}

// markdown lists all pages, from the root.
func markdown(t *testing.T) (pages []string) {
	t.Helper()
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/*/*.md", "deploy/*.md", "deploy/*/*.md"} {
		found, err := filepath.Glob(filepath.Join("..", filepath.FromSlash(pattern)))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			rel, _ := filepath.Rel("..", f)
			pages = append(pages, filepath.ToSlash(rel))
		}
	}
	if len(pages) < 10 {
		t.Fatalf("found only %v", pages)
	}
	return pages
}

// block is one fenced piece of a page.
type block struct {
	page, lang, text string
	line             int
	shows            *block // the text block right after it, if there is one
	shown            bool   // it is that text block, of a block that is run
}

func (b *block) at() string { return fmt.Sprintf("%s:%d", b.page, b.line) }

// blocksOf finds the fenced pieces of a page.
func blocksOf(t *testing.T, page string) (out []*block) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("..", filepath.FromSlash(page)))
	if err != nil {
		t.Fatal(err)
	}
	var open *block
	fence := ""
	for i, line := range strings.Split(string(raw), "\n") {
		trimmed := strings.TrimLeft(line, " ")
		switch {
		case open == nil && strings.HasPrefix(trimmed, "```"):
			fence = line[:len(line)-len(trimmed)]
			open = &block{page: page, line: i + 1, lang: strings.TrimPrefix(trimmed, "```")}
		case open != nil && strings.TrimSpace(line) == "```":
			if n := len(out); n > 0 && open.lang == "text" && out[n-1].lang != "text" {
				out[n-1].shows = open
				open.shown = runs(out[n-1])
			}
			out = append(out, open)
			open = nil
		case open != nil:
			open.text += strings.TrimPrefix(line, fence) + "\n"
		}
	}
	if open != nil {
		t.Errorf("%s: the block is never closed", open.at())
	}
	return out
}

// session names the language of the session that a block is part of; "": of none.
func session(b *block) string {
	return map[string]string{"sh": "sh", "bash": "sh", "python": "python", "js": "js", "javascript": "js"}[b.lang]
}

// runs reports whether what a block prints is compared.
func runs(b *block) bool { return (session(b) != "" || b.lang == "go") && !wholly(b) }

// settings is the prepared place: a directory like a clone with what was built, and a
// gateway like the demo's.
type settings struct {
	dir   string
	front *stack.Gateway
	sims  stack.Servers
	env   []string
}

// docsConfig is what the gateway of the pages has beside keys and servers.
const docsConfig = `degrade:
  l1: {max_tokens: 2048}
limits:
  - {name: user-rate, per: user, requests: 6000/1m, tokens: 10000000/1m, concurrency: 16}
quotas:
  - {name: daily, per: user, units: 1000000000, every: day}
gpus:
  - {name: demo, replay: %s}
`

func newSettings(t *testing.T) *settings {
	t.Helper()
	s := &settings{dir: t.TempDir()}
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"deploy", "docs", "Makefile", "README.md", "cmd"} {
		if err := os.Symlink(filepath.Join(root, name), filepath.Join(s.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	s.command(t)
	trace := filepath.Join(s.dir, "gpus.jsonl")
	if err := os.WriteFile(trace, simulatedGPUs(), 0o600); err != nil {
		t.Fatal(err)
	}
	s.sims = kit.StartServers(t, nil)
	p := stack.Laddered("")
	p.Extra, p.GPUs = fmt.Sprintf(docsConfig, trace), "demo/0"
	s.front = kit.Start(t, s.sims, p)
	stack.Eventually(t, "readings of the simulated GPUs", func() bool { return strings.Contains(s.front.StatusPage(t), "Simulated H200") })
	// Commands without --config read the same file as the gateway, and its store.
	file, err := os.ReadFile(s.front.File)
	if err == nil {
		err = os.WriteFile(filepath.Join(s.dir, "tidegate.yaml"), file, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.env = append(slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(strings.ToUpper(v), "=")
		return strings.HasPrefix(name, "OPENAI_") || strings.HasPrefix(name, "LANG") || strings.HasSuffix(name, "_PROXY") ||
			strings.HasPrefix(name, "TIDEGATE_") || strings.HasPrefix(name, "PYTHON") || name == "NODE_OPTIONS"
	}), "KEY="+stack.AdaKey, "ADMIN_KEY="+stack.AdminKey, "KEY_OF_ADA="+stack.AdaKey, "KEY_OF_BOB="+stack.BobKey, "TIDEGATE_ADMIN_KEY="+stack.AdminKey,
		"PATH="+strings.Join([]string{filepath.Join(s.dir, "bin"), os.Getenv("PATH"), os.Getenv("TIDEGATE_TEST_PROMETHEUS")}, string(os.PathListSeparator)), "LC_ALL=C.UTF-8", "LANGSMITH_TRACING=false", "PYTHONDONTWRITEBYTECODE=1")
	return s
}

// kit runs tidegate as users do.
var kit = stack.NewKit(stack.Binary(binary), nil)

// binary is the path of the command, which is built once.
var binary = sync.OnceValues(stack.Build)

// simulatedGPUs is a trace of the demo's GPUs.
func simulatedGPUs() (trace []byte) {
	for second := range 120 {
		for i := range 3 {
			trace = fmt.Appendf(trace, `{"t_ms":%d,"uuid":"GPU-simulated-%d","name":"Simulated H200","margin":35,"temp":50,"hbm":42,"used":132270,"total":143771,"reasons":4,"power":560}`+"\n", 1000*second, i)
		}
	}
	return trace
}

// command puts into bin/ what `make build` would.
func (s *settings) command(t *testing.T) {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(s.dir, "bin"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path, filepath.Join(s.dir, "bin", "tidegate")); err != nil {
		t.Fatal(err)
	}
	if curl, err := exec.LookPath("curl"); err == nil {
		// A page whose request is refused is wrong, and curl alone would not say so; with
		// -i the page shows the status.
		text := "#!/bin/sh\ncase $1 in -si) fail= ;; *) fail=--fail-with-body ;; esac\nexec '" + curl + "' $fail \"$@\"\n"
		if err := os.WriteFile(filepath.Join(s.dir, "bin", "curl"), []byte(text), 0o700); err != nil { //nolint:gosec // it is to be run
			t.Fatal(err)
		}
	}
}

// place puts the addresses and the key of this test where a page has the demo's.
func (s *settings) place(text string) string {
	host := func(u string) string {
		parsed, err := url.Parse(u)
		if err != nil {
			return u
		}
		return parsed.Host
	}
	return strings.NewReplacer(
		"127.0.0.1:8080", host(s.front.URL), "localhost:8080", host(s.front.URL),
		"127.0.0.1:9090", host(s.front.Ops), "localhost:9090", host(s.front.Ops),
		"localhost:8000", host(s.sims[0].URL), "localhost:8001", host(s.sims[1].URL),
		`"EMPTY"`, `"`+stack.AdaKey+`"`, "PASTE-THE-KEY", stack.AdaKey, "traces/heat.jsonl", filepath.Join(s.dir, "gpus.jsonl"),
	).Replace(text)
}

// shellLines are the logical lines of a shell block.
func shellLines(text string) (lines []string) {
	for _, line := range strings.Split(strings.ReplaceAll(text, "\\\n", "\x00"), "\n") {
		line = strings.ReplaceAll(line, "\x00", "\\\n")
		lines = append(lines, line)
	}
	return lines
}

// session runs the blocks of one language on one page as one program and compares
// what they print. A record separator and its number begin what a block prints.
func (s *settings) session(t *testing.T, lang string, blocks []*block) {
	var program strings.Builder
	for i, b := range blocks {
		if strings.Contains(b.text, "promtool ") {
			stack.PrometheusTool(t, os.Getenv, "promtool") // or the page is skipped, and that said
		}
		switch lang {
		case "sh":
			fmt.Fprintf(&program, "printf '\\036%d\\n'\n", i)
			for _, line := range shellLines(b.text) {
				if _, ok := excuse(b, line); !ok {
					program.WriteString(line + "\n")
				}
			}
		case "python":
			fmt.Fprintf(&program, "print('\\x1e%d', flush=True)\n%s\n", i, b.text)
		case "js":
			fmt.Fprintf(&program, "console.log('\\x1e%d');\n%s\n", i, b.text)
		}
	}
	out, err := s.execute(t, lang, s.place(program.String()))
	pieces := strings.Split(out, "\x1e")[1:]
	if err != nil {
		last := blocks[max(0, len(pieces)-1)]
		t.Fatalf("%s: %v\n%s\nprints\n%s", last.at(), err, last.text, out)
	}
	if len(pieces) != len(blocks) {
		t.Fatalf("%s: %d of %d blocks ran:\n%s", blocks[0].page, len(pieces), len(blocks), out)
	}
	for i, b := range blocks {
		if _, printed, _ := strings.Cut(pieces[i], "\n"); b.shows != nil && !wholly(b) {
			if line, ok := stack.Shows(printed, b.shows.text); !ok {
				t.Errorf("%s: nothing like\n%s\nin what %s prints:\n%s", b.shows.at(), line, b.at(), printed)
			}
		}
	}
}

// sessionTime bounds the blocks of a page in one language.
const sessionTime = 2 * time.Minute

func (s *settings) execute(t *testing.T, lang, program string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), sessionTime)
	defer cancel()
	var cmd *exec.Cmd
	switch lang {
	case "sh":
		for _, tool := range []string{"bash", "curl", "jq"} {
			if _, err := exec.LookPath(tool); err != nil {
				t.Skipf("SKIPPED-PART: commands of the pages: %s is not installed", tool)
			}
		}
		cmd = exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", "exec 2>&1\n"+program)
	case "python":
		cmd = exec.CommandContext(ctx, stack.Clients(t, os.Getenv, "python", "TIDEGATE_TEST_PYTHON"), "-")
		cmd.Stdin = strings.NewReader(program)
	case "js":
		modules := stack.Clients(t, os.Getenv, "node", "TIDEGATE_TEST_NODE_MODULES")
		// Node looks for packages beside the file that imports them.
		link := filepath.Join(s.dir, "node_modules")
		if err := os.Symlink(filepath.Join(modules, "node_modules"), link); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
		file := filepath.Join(s.dir, "page.mjs")
		if err := os.WriteFile(file, []byte(program), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd = exec.CommandContext(ctx, "node", file)
	}
	cmd.Dir, cmd.Env, cmd.WaitDelay = s.dir, s.env, time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestDocs runs and checks every block of every page.
func TestDocs(t *testing.T) {
	if testing.Short() {
		t.Skip("the pages are not part of -short")
	}
	s := newSettings(t)
	for _, page := range docPages(t) {
		t.Run(page, func(t *testing.T) {
			sessions := map[string][][]*block{}
			for _, b := range blocksOf(t, page) {
				if lang := session(b); lang != "" {
					programs := sessions[lang]
					if n := len(programs); n == 0 || lang == "js" && strings.HasPrefix(b.text, "import ") {
						sessions[lang] = append(programs, []*block{b})
					} else {
						programs[n-1] = append(programs[n-1], b)
					}
					continue
				}
				if !wholly(b) {
					s.check(t, b)
				}
			}
			for _, lang := range []string{"sh", "python", "js"} {
				for _, blocks := range sessions[lang] {
					t.Run(lang, func(t *testing.T) { s.session(t, lang, blocks) })
				}
			}
		})
	}
}

// check looks at a block that is no session's.
func (s *settings) check(t *testing.T, b *block) {
	switch b.lang {
	case "text":
		if !b.shown {
			t.Errorf("%s: shows what nothing that is run prints", b.at())
		}
	case "json":
		if !json.Valid([]byte(b.text)) {
			t.Errorf("%s: is no JSON", b.at())
		}
	case "yaml":
		if strings.Contains("\n"+b.text, "\nscrape_configs:") {
			t.Run("scrape", func(t *testing.T) { promtool(t, b, b.text, "check", "config", "--syntax-only") })
			return
		}
		if err := checkYAML(t, s.place(b.text)); err != nil {
			t.Errorf("%s: %v", b.at(), err)
		}
	case "promql":
		t.Run("promql", func(t *testing.T) { checkPromQL(t, b) })
	case "redis":
		t.Run("redis", func(t *testing.T) { runRedis(t, b) })
	case "go":
		t.Run("go", func(t *testing.T) { s.runGo(t, b) })
	default:
		t.Errorf("%s: a block of %q, which this test can neither run nor check, and which is not on its list", b.at(), b.lang)
	}
}

// runGo runs a program of a page with this module's versions of its imports, and
// compiles a piece of one.
func (s *settings) runGo(t *testing.T, b *block) {
	file, verb, text := filepath.Join(t.TempDir(), "main.go"), "run", s.place(b.text)
	if !strings.HasPrefix(text, "package ") {
		verb, text = "vet", imported(text)+text
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), sessionTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", verb, "-tags", "nomsgpack", file)
	cmd.Dir, cmd.Env = "..", s.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", b.at(), err, out)
	}
	if b.shows != nil {
		if line, ok := stack.Shows(string(out), b.shows.text); !ok {
			t.Errorf("%s: nothing like\n%s\nin\n%s", b.shows.at(), line, out)
		}
	}
}

// imported is the head of a file for a piece of Go: the usual packages that it names.
func imported(text string) string {
	head := "package page\n\n"
	for _, path := range []string{
		"bytes", "context", "crypto/hmac", "crypto/sha256", "crypto/subtle", "encoding/base64", "encoding/hex", "encoding/json",
		"errors", "fmt", "io", "net/http", "os", "strconv", "strings", "time",
	} {
		if regexp.MustCompile(`\b` + path[strings.LastIndexByte(path, '/')+1:] + `\.[A-Z]`).MatchString(text) {
			head += fmt.Sprintf("import %q\n", path)
		}
	}
	return head
}

// links finds [text](target) outside of fenced blocks.
func links(page string) (targets []string) {
	raw, err := os.ReadFile(filepath.Join("..", filepath.FromSlash(page)))
	if err != nil {
		return nil
	}
	text := regexp.MustCompile("(?s)\n *```.*?\n *```").ReplaceAllString("\n"+string(raw), "")
	text = regexp.MustCompile("`[^`\n]*`").ReplaceAllString(text, "x")
	for _, m := range regexp.MustCompile(`\]\(([^)\s]+)\)`).FindAllStringSubmatch(text, -1) {
		targets = append(targets, m[1])
	}
	return targets
}

// anchors are the names by which headings of a page are linked, as GitHub makes them.
func anchors(file string) map[string]bool {
	out := map[string]bool{}
	raw, err := os.ReadFile(file)
	if err != nil {
		return out
	}
	text := regexp.MustCompile("(?s)\n *```.*?\n *```").ReplaceAllString("\n"+string(raw), "")
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
		slug := regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(strings.TrimSpace(m[1])), "")
		slug = strings.ReplaceAll(slug, " ", "-")
		name := slug
		for i := 1; out[name]; i++ {
			name = fmt.Sprintf("%s-%d", slug, i)
		}
		out[name] = true
	}
	for _, m := range regexp.MustCompile(`<a (?:id|name)="([^"]+)">`).FindAllStringSubmatch(text, -1) {
		out[m[1]] = true
	}
	return out
}

// TestDocLinks follows every link of every page that leads to a file of the project.
func TestDocLinks(t *testing.T) {
	for _, page := range markdown(t) {
		for _, target := range links(page) {
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			path, anchor, _ := strings.Cut(target, "#")
			file := filepath.Join("..", filepath.FromSlash(page))
			if path != "" {
				file = filepath.Join(filepath.Dir(file), filepath.FromSlash(path))
			}
			if _, err := os.Stat(file); err != nil {
				t.Errorf("%s: the link to %s leads nowhere", page, target)
				continue
			}
			if found := anchors(file); anchor != "" && len(found) > 0 && !found[anchor] {
				t.Errorf("%s: %s has no heading #%s", page, path, anchor)
			}
		}
	}
}

// TestRunbooks follows every link into the pages from what is deployed, such as the
// runbooks of alerts.
func TestRunbooks(t *testing.T) {
	err := filepath.WalkDir(filepath.Join("..", "deploy"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(path, ".md") {
			return err
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range regexp.MustCompile(`(docs/[a-z-]+\.md)#([a-z0-9-]+)`).FindAllSubmatch(raw, -1) {
			if file := filepath.Join("..", string(m[1])); !anchors(file)[string(m[2])] {
				t.Errorf("%s leads to %s, which is not there", path, m[0])
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestDocIndex: the README leads to every page of docs.
func TestDocIndex(t *testing.T) {
	listed := links("README.md")
	for _, page := range markdown(t) {
		if filepath.ToSlash(filepath.Dir(page)) == "docs" && !slices.Contains(listed, page) {
			t.Errorf("README.md does not lead to %s", page)
		}
	}
}

// TestShows holds the comparison of what is printed with what is shown.
func TestShows(t *testing.T) {
	for _, c := range []struct {
		printed, shown string
		ok             bool
	}{
		{"a\nok: 2 models\n", "ok: 7 models", true},
		{"took 1.25 s", "took 3 s", true},
		{"id 01ABC of ann", "id ... of ann", true},
		{"one\ntwo\n", "two\none", false},
		{"one\nthree\ntwo\n", "one\n...\ntwo", true},
		{"x   y", "x y", true},
		{"ok: models", "ok: 7 models", false},
		{"404 model_not_found", "404 model_not_found", true},
		{"404 model_not_found", "400 model_not_found", false},
	} {
		if _, ok := stack.Shows(c.printed, c.shown); ok != c.ok {
			t.Errorf("%q shows %q: %t", c.printed, c.shown, ok)
		}
	}
}

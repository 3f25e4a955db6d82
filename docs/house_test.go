package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// arrows are the only imports of one package of the house by another. They go
// one way: cmd → gateway → admission → degrade → nvml.
func arrows() map[string][]string {
	return map[string][]string{
		"cmd/tidegate": {
			"admission", "admission/limit", "admission/limit/redislimit", "admission/limit/redislimit/redistest", "degrade", "gateway", "gateway/account", "gateway/activity", "gateway/alert", "gateway/alert/channel", "gateway/backend", "gateway/database", "gateway/database/databasetest",
			"gateway/gatewaytest", "gateway/gatewaytest/stack", "gateway/ledger", "gateway/ops", "gateway/qwen", "gateway/refusal", "nvml", "nvml/nvmltest",
		},
		"cmd/tidegate-vllm-sim":  {"gateway/gatewaytest"},
		"cmd/tidegate-gpu-agent": {"nvml", "nvml/device", "nvml/device/devicetest", "nvml/nvmltest"},
		"gateway": {
			"admission", "admission/limit", "degrade", "gateway/account", "gateway/activity", "gateway/admin", "gateway/alert", "gateway/backend", "gateway/backend/exchange", "gateway/door", "gateway/ledger", "gateway/openai", "gateway/ops", "gateway/qwen", "gateway/refusal", "nvml",
		},
		"gateway_test": {
			"admission/limit/redislimit/redistest", "gateway", "gateway/account", "gateway/database", "gateway/database/databasetest", "gateway/ops",
		},
		"deploy":                                {"admission/limit/redislimit/redistest", "gateway/backend", "gateway/database/databasetest", "gateway/gatewaytest", "gateway/gatewaytest/stack", "gateway/ops", "nvml"},
		"deploy/grafana/generate":               {},
		"docs":                                  {"admission/limit/redislimit/redistest"},
		"gateway/account":                       {"admission/limit", "gateway/database", "gateway/database/databasetest", "nvml/poll"},
		"gateway/activity":                      {"gateway/account", "gateway/backend"},
		"gateway/ops":                           {"admission/limit", "degrade", "gateway/account", "gateway/activity", "gateway/alert", "gateway/backend", "nvml"},
		"gateway/admin":                         {"admission", "admission/limit", "gateway/account", "gateway/backend", "gateway/ledger", "gateway/openai", "gateway/refusal"},
		"gateway/alert/channel":                 {},
		"gateway/alert":                         {"admission/limit", "gateway/alert/channel", "gateway/database", "gateway/database/databasetest"},
		"gateway/backend":                       {"admission", "admission/limit", "degrade", "gateway/backend/exchange", "gateway/backend/exchange/exchangetest", "gateway/openai", "nvml", "nvml/promtext"},
		"gateway/backend/exchange":              {"gateway/backend/exchange/exchangetest"},
		"gateway/backend/exchange/exchangetest": {},
		"gateway/database":                      {"gateway/database/databasetest"},
		"gateway/database/databasetest":         {},
		"gateway/ledger":                        {"gateway/database", "gateway/database/databasetest", "gateway/openai", "nvml/poll"},
		"gateway/jsonwalk":                      {"gateway/jsonwalk/jsontest"},
		"gateway/jsonwalk/jsontest":             {},
		"gateway/openai":                        {"gateway/jsonwalk", "gateway/jsonwalk/jsontest"},
		"gateway/qwen":                          {"gateway/jsonwalk"},
		"gateway/door":                          {"gateway/openai", "gateway/qwen", "gateway/refusal"},
		"gateway/refusal":                       {},
		"gateway/gatewaytest":                   {"gateway/qwen", "nvml/poll"},
		"gateway/gatewaytest/schematest":        {},
		"gateway/gatewaytest/stack":             {"gateway/gatewaytest", "gateway/qwen", "nvml", "nvml/poll"},
		"gateway/gatewaytest/bench":             {"nvml/poll"},
		"gateway/gatewaytest/bench/overload":    {"gateway/gatewaytest", "gateway/gatewaytest/bench", "gateway/qwen"},
		"admission":                             {"admission/limit", "degrade"},
		"admission/limit":                       {},
		"admission/limit/limittest":             {"admission/limit"},
		"admission/limit/redislimit":            {"admission/limit", "admission/limit/limittest", "admission/limit/redislimit/redistest", "degrade"},
		"admission/limit/redislimit/redistest":  {},
		"degrade":                               {"nvml"},
		"nvml":                                  {"nvml/promtext", "nvml/poll"},
		"nvml/poll":                             {},
		"nvml/promtext":                         {},
		"nvml/nvmltest":                         {},
		"nvml/device":                           {"nvml", "nvml/device/devicetest"},
		"nvml/device/devicetest":                {"nvml", "nvml/device"},
	}
}

// owners says which files alone may import a library that rules how the rest is
// written.
func owners() map[string][]string {
	return map[string][]string{
		"github.com/gin-gonic/gin":      {"gateway/routes.go"},
		"go.opentelemetry.io/otel":      {"gateway/trace", "cmd/"},
		"github.com/redis/go-redis":     {"admission/limit/redislimit/", "gateway/cache/", "cmd/"},
		"github.com/sony/gobreaker":     {"degrade/"},
		"github.com/NVIDIA/go-nvml":     {"nvml/device/"},
		"github.com/goccy/go-yaml":      {"cmd/tidegate/yaml.go", "cmd/tidegate/reference_test.go", "deploy/", "docs/docs_check_test.go"},
		"github.com/spf13/cobra":        {"cmd/"},
		"github.com/invopop/jsonschema": {"cmd/"},
		"github.com/uptrace/bun":        {"gateway/database/", "gateway/account/", "gateway/alert/", "gateway/ledger/"},
		"github.com/pressly/goose":      {"gateway/database/"},
		"github.com/jackc/pgx":          {"gateway/database/", "gateway/ledger/"},
		"modernc.org/sqlite":            {"gateway/database/"},
		"github.com/wneessen/go-mail":   {"gateway/alert/channel/"},
	}
}

// topLevel is fixed: a new thing goes into a room that is there.
func topLevel() []string {
	return []string{
		"cmd", "gateway", "admission", "degrade", "nvml", "deploy", "docs", "go.mod", "go.sum", "Makefile", "README.md", "LICENSE", "bin",
	}
}

const (
	maxFunction = 80  // lines
	maxFile     = 600 // lines
)

// source is one Go file of the house.
type source struct {
	path  string // from the root, with slashes
	dir   string
	test  bool
	lines int
	file  *ast.File
	set   *token.FileSet
}

func house(t *testing.T) []source {
	t.Helper()
	root := ".."
	var out []source
	set := token.NewFileSet()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		rel = filepath.ToSlash(rel)
		if d.IsDir() && rel != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "node_modules") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") {
			return nil
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(set, rel, raw, parser.ParseComments)
		if err != nil {
			return err
		}
		dir := "."
		if i := strings.LastIndexByte(rel, '/'); i >= 0 {
			dir = rel[:i]
		}
		out = append(out, source{rel, dir, strings.HasSuffix(rel, "_test.go"), strings.Count(string(raw), "\n"), file, set})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 20 {
		t.Fatalf("found only %d Go files: the walk is broken", len(out))
	}
	return out
}

func TestArrows(t *testing.T) {
	allowed := arrows()
	for _, s := range house(t) {
		room := s.dir
		if seen := s.dir + "_test"; s.test && s.file.Name.Name == path.Base(seen) && allowed[seen] != nil {
			room = seen // tests that see a package from outside have a room of their own
		}
		rooms, known := allowed[room]
		if !known {
			t.Errorf("%s: there is no room %s in the house", s.path, s.dir)
			continue
		}
		for _, im := range s.file.Imports {
			name := strings.Trim(im.Path.Value, `"`)
			for lib, where := range owners() {
				if (name == lib || strings.HasPrefix(name, lib+"/")) && !slices.ContainsFunc(where, func(w string) bool { return strings.HasPrefix(s.path, w) }) {
					t.Errorf("%s imports %s, which only %v may", s.path, name, where)
				}
			}
			room, ours := strings.CutPrefix(name, "tidegate/")
			if !ours || s.test && (strings.HasPrefix(room, "gateway/gatewaytest") || room == s.dir) {
				continue
			}
			if !slices.Contains(rooms, room) {
				t.Errorf("%s imports %s: there is no such arrow", s.path, name)
			}
		}
	}
}

func TestTopLevel(t *testing.T) {
	entries, err := os.ReadDir("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") && !slices.Contains(topLevel(), e.Name()) {
			t.Errorf("%s stands at the top level, which is fixed", e.Name())
		}
	}
}

func TestSizes(t *testing.T) {
	for _, s := range house(t) {
		if s.lines > maxFile {
			t.Errorf("%s has %d lines; at most %d", s.path, s.lines, maxFile)
		}
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if n := s.set.Position(f.End()).Line - s.set.Position(f.Pos()).Line + 1; n > maxFunction {
				t.Errorf("%s: %s has %d lines; at most %d", s.path, f.Name.Name, n, maxFunction)
			}
			if f.Name.Name == "init" && f.Recv == nil {
				t.Errorf("%s: has an init function", s.path)
			}
		}
	}
}

func TestPackageComments(t *testing.T) {
	commented := map[string]bool{} // of packages that have more than tests
	for _, s := range house(t) {
		if !s.test {
			commented[s.dir] = commented[s.dir] || s.file.Doc != nil
		}
	}
	for dir, ok := range commented {
		if !ok {
			t.Errorf("%s: no file says what the package is for", dir)
		}
	}
}

// TestPackageVariables allows errors, interface guards and embedded files, which
// Go can only put into a package variable.
func TestPackageVariables(t *testing.T) {
	for _, s := range house(t) {
		if s.test {
			continue
		}
		for _, d := range s.file.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.VAR {
				continue
			}
			for _, spec := range g.Specs {
				v := spec.(*ast.ValueSpec)
				for i, name := range v.Names {
					if name.Name == "_" || embedded(g, v) || i < len(v.Values) && isError(v.Values[i]) {
						continue
					}
					t.Errorf("%s: %s is a package variable", s.path, name.Name)
				}
			}
		}
	}
}

func embedded(g *ast.GenDecl, v *ast.ValueSpec) bool {
	for _, doc := range []*ast.CommentGroup{g.Doc, v.Doc} {
		if doc == nil {
			continue
		}
		for _, c := range doc.List {
			if strings.HasPrefix(c.Text, "//go:embed ") {
				return true
			}
		}
	}
	return false
}

// isError recognises errors.New(…) and fmt.Errorf(…).
func isError(e ast.Expr) bool {
	call, ok := e.(*ast.CallExpr)
	if !ok {
		return false
	}
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	pkg, ok := sel.X.(*ast.Ident)
	return ok && (pkg.Name == "errors" && sel.Sel.Name == "New" || pkg.Name == "fmt" && sel.Sel.Name == "Errorf")
}

// TestNoEnvironment keeps environment reads in cmd.
func TestNoEnvironment(t *testing.T) {
	for _, s := range house(t) {
		if s.test || strings.HasPrefix(s.dir, "cmd/") {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if pkg, ok := sel.X.(*ast.Ident); ok && pkg.Name == "os" && slices.Contains([]string{"Getenv", "LookupEnv", "Environ"}, sel.Sel.Name) {
				t.Errorf("%s reads the environment", s.path)
			}
			return true
		})
	}
}

// processWide lists what belongs to the whole process, by package: a test that writes or
// counts there, or a connection that it leaves in the shared client, meets another
// test. t.Setenv and t.Chdir put back what they change.
func processWide() map[string][]string {
	return map[string][]string{
		"net/http":                  {"Get", "Head", "Post", "PostForm", "DefaultClient", "DefaultTransport", "DefaultServeMux", "Handle", "HandleFunc"},
		"log":                       {"Default", "Print", "Printf", "Println", "SetOutput", "SetFlags", "SetPrefix", "Fatal", "Fatalf"},
		"log/slog":                  {"Default", "SetDefault", "Debug", "Info", "Warn", "Error", "Log", "SetLogLoggerLevel"},
		"os":                        {"Setenv", "Unsetenv", "Clearenv", "Chdir"},
		"github.com/redis/go-redis": {"SetLogger"},
		"github.com/prometheus/client_golang/prometheus": {"DefaultRegisterer", "DefaultGatherer", "Register", "MustRegister"},
	}
}

// TestHouseSharesNothing keeps code and tests off what all of a process share.
func TestHouseSharesNothing(t *testing.T) {
	for _, s := range house(t) {
		imported := map[string][]string{} // what must not be used, by the name of the package here
		for _, im := range s.file.Imports {
			path := strings.Trim(im.Path.Value, `"`)
			for of, names := range processWide() {
				if path != of && !strings.HasPrefix(path, of+"/v") {
					continue
				}
				name := of[strings.LastIndexByte(of, '/')+1:]
				if name == "go-redis" {
					name = "redis"
				}
				if im.Name != nil {
					name = im.Name.Name
				}
				imported[name] = names
			}
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if pkg, ok := sel.X.(*ast.Ident); ok && pkg.Obj == nil && slices.Contains(imported[pkg.Name], sel.Sel.Name) {
				t.Errorf("%s: %s.%s is shared by the whole process: make one of its own", s.set.Position(sel.Pos()), pkg.Name, sel.Sel.Name)
			}
			return true
		})
	}
}

package docs

import (
	"go/ast"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestPicture holds that the picture of architecture.md is true: its rooms and files are
// there, its functions stand where it says, and generate takes its steps in that order.
func TestPicture(t *testing.T) {
	raw, err := os.ReadFile("architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(raw), "```text\n")
	picture, _, ok := strings.Cut(rest, "```")
	if !ok {
		t.Fatal("architecture.md has no picture")
	}
	functions := map[string][]string{} // by file and by room
	var steps []string                 // methods that generate calls, in order
	for _, s := range house(t) {
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || s.test {
				continue
			}
			functions[s.dir] = append(functions[s.dir], f.Name.Name)
			functions[path.Join(s.dir, path.Base(s.path))] = append(functions[path.Join(s.dir, path.Base(s.path))], f.Name.Name)
			if s.path == "gateway/serve.go" && f.Name.Name == "generate" {
				ast.Inspect(f, func(n ast.Node) bool {
					if call, ok := n.(*ast.SelectorExpr); ok {
						steps = append(steps, call.Sel.Name)
					}
					return true
				})
			}
		}
	}
	var drawn []string // functions of the numbered steps
	file, room, name := regexp.MustCompile(`\b[a-z]+\.go\b`), regexp.MustCompile(`^ *([a-z]+(?:/[a-z-]+)*)  `), regexp.MustCompile(`([A-Za-z]+)\(\)`)
	for line := range strings.Lines(picture) {
		where := "gateway"
		if m := room.FindStringSubmatch(line); m != nil {
			if where = m[1]; functions[where] == nil {
				t.Errorf("there is no room %s", where)
			}
		}
		files := file.FindAllString(line, -1)
		for _, f := range files {
			if functions["gateway/"+f] == nil {
				t.Errorf("there is no file gateway/%s", f)
			}
		}
		for _, m := range name.FindAllStringSubmatch(line, -1) {
			found := slices.Contains(functions[where], m[1]) && len(files) == 0
			for _, f := range files {
				found = found || slices.Contains(functions["gateway/"+f], m[1])
			}
			if !found {
				t.Errorf("%s is not in %s %v", m[1], where, files)
			}
			if strings.Contains(line[:8], " ") && regexp.MustCompile(`^ +\d `).MatchString(line) {
				drawn = append(drawn, m[1])
			}
		}
	}
	at := -1
	for _, step := range drawn {
		switch step {
		case "planFor": // by way of applyLevel
			step = "applyLevel"
		case "settle": // deferred as soon as there is something to settle
			continue
		case "finish": // answer's, after generate
			continue
		}
		next := slices.Index(steps, step)
		if next <= at {
			t.Errorf("generate does not take the step %s after those before it: %v", step, steps)
		}
		at = next
	}
	if len(drawn) < 6 {
		t.Errorf("only these steps are drawn: %v", drawn)
	}
}

// TestRoomTable holds that every room is in the table of architecture.md, and every room of
// the table is there. A room of tests and tools may stand in the line of its parent.
func TestRoomTable(t *testing.T) {
	raw, err := os.ReadFile("architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	var table string
	for line := range strings.Lines(string(raw)) {
		if strings.HasPrefix(line, "| `") {
			table += line
		}
	}
	named := map[string]bool{}
	for _, m := range regexp.MustCompile("`([a-z0-9/-]+)`").FindAllStringSubmatch(table, -1) {
		named[m[1]] = true
	}
	rooms := arrows()
	for room := range rooms {
		_, inner, _ := strings.Cut(room, "gatewaytest/")
		if !named[room] && !named[path.Base(room)] && !named[inner] && !strings.HasSuffix(room, "_test") {
			t.Errorf("the table does not name %s", room)
		}
	}
	for line := range strings.Lines(table) {
		first, _, _ := strings.Cut(strings.TrimPrefix(line, "| `"), "`")
		if _, ok := rooms[first]; !ok && strings.Contains(first, "/") {
			t.Errorf("the table names %s, which is not there", first)
		}
	}
}

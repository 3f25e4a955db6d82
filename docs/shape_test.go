package docs

import (
	"go/ast"
	"go/token"
	"go/types"
	"path"
	"slices"
	"strings"
	"testing"
)

// emptyImporter gives every import an empty package: what a package declares itself is
// resolved all the same.
type emptyImporter struct{}

func (emptyImporter) Import(name string) (*types.Package, error) {
	p := types.NewPackage(name, path.Base(name))
	p.MarkComplete()
	return p, nil
}

// fileGraph says which file of a package refers to types that another one declares.
type fileGraph map[string]map[string]bool

// filesOf returns the graph of the files of a room, tests left out.
func filesOf(sources []source, dir string) fileGraph {
	g := fileGraph{}
	var set *token.FileSet
	var files []*ast.File
	for _, s := range sources {
		if s.dir == dir && !s.test {
			set = s.set
			files = append(files, s.file)
			g[path.Base(s.path)] = map[string]bool{}
		}
	}
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}}
	config := types.Config{Importer: emptyImporter{}, Error: func(error) {}}
	_, _ = config.Check(dir, set, files, info) // what it says of empty imports is no matter
	for id, object := range info.Uses {
		t, ok := object.(*types.TypeName)
		if !ok || t.Pkg() == nil || t.Pkg().Path() != dir {
			continue
		}
		from, to := path.Base(set.Position(id.Pos()).Filename), path.Base(set.Position(t.Pos()).Filename)
		if from != to {
			g[from][to] = true
		}
	}
	return g
}

// largestCycle returns the largest set of files that all refer to each other, directly or
// not.
func (g fileGraph) largestCycle() (largest []string) {
	reach := map[string]map[string]bool{}
	for from := range g {
		seen := map[string]bool{}
		todo := []string{from}
		for len(todo) > 0 {
			next := todo[len(todo)-1]
			todo = todo[:len(todo)-1]
			for to := range g[next] {
				if !seen[to] {
					seen[to] = true
					todo = append(todo, to)
				}
			}
		}
		reach[from] = seen
	}
	for a := range g {
		var cycle []string
		for b := range g {
			if a == b || reach[a][b] && reach[b][a] {
				cycle = append(cycle, b)
			}
		}
		if len(cycle) > len(largest) {
			largest = cycle
		}
	}
	slices.Sort(largest)
	return largest
}

// upward returns the arrows that run from a file to one that stands before it in order. A
// file that is not listed stands last.
func (g fileGraph) upward(order []string) (up []string) {
	floor := func(file string) int {
		if i := slices.Index(order, file); i >= 0 {
			return i
		}
		return len(order)
	}
	for from, targets := range g {
		for to := range targets {
			if floor(to) < floor(from) {
				up = append(up, from+" -> "+to)
			}
		}
	}
	slices.Sort(up)
	return up
}

// pathOrder returns the files of package gateway from the top of the path down: what every
// request meets first, then what handlers use, then leaves. An arrow that runs up is a file
// that knows who calls it.
func pathOrder() []string {
	return []string{
		"routes.go", "serve.go", "cors.go", "parse.go", "admit.go", "forward.go", "deliver.go", "sender.go", "settle.go", "fail.go", "finish.go", "log.go",
		"admin.go", "quota.go", "models.go", "body.go", "caller.go",
		"health.go",
		"gateway.go", "metrics.go", "rejected.go", "errors.go", "call.go",
		"settlement.go", "plan.go", "prompt.go", "request.go", "answer.go", "trace.go", "outcome.go", "config.go", "budget.go", "size.go",
	}
}

// TestShape holds how the files of package gateway lean on each other by types: a reader
// follows the path down and meets nothing that leads back up.
func TestShape(t *testing.T) {
	const maxCycle, maxUpward = 1, 0
	g := filesOf(house(t), "gateway")
	cycle, up := g.largestCycle(), g.upward(pathOrder())
	t.Logf("package gateway: %d files, the largest cycle has %d, and %d arrows run up", len(g), len(cycle), len(up))
	if len(cycle) > maxCycle {
		t.Errorf("these files refer to each other, and at most %d may: %s", maxCycle, strings.Join(cycle, " "))
	}
	if len(up) > maxUpward {
		t.Errorf("%d arrows run up, and at most %d may: %s", len(up), maxUpward, strings.Join(up, ", "))
	}
}

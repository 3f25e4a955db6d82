package docs

import (
	"fmt"
	"go/ast"
	"go/token"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// functionWords are words that say nothing about the thing they name. Go's own idioms
// (now, out, in, with, do, less, as, is, any) are not among them.
const functionWords = `
	a an the of to on at by for from without into onto off over under up down about
	before above below between among during until till against within beside toward per via
	than so if then also only even just such same other another others both each all some many
	much more most few none not no nor and or but yet
	i you he she it we they me him her them us my your his its our their own self
	this that these those which who whom whose what when where why how whether
	are was were be been being am has have had having does did doing can could may might must
	shall should will would here there ever never always often very too quite again already still
	once else otherwise elsewhere meanwhile
	told said says tell tells goes gone went gives given got gets came comes`

// maxFunctionWords is the share of declared names that may be function words. A pair of
// from and to has its uses.
const maxFunctionWords = 0.015

// maxFields bounds the fields of a struct.
const maxFields = 20

// declared calls f with each name that a file declares and that has more than one letter.
func declared(file *ast.File, f func(*ast.Ident)) {
	names := func(list ...*ast.Ident) {
		for _, id := range list {
			if id != nil && len(id.Name) > 1 {
				f(id)
			}
		}
	}
	expressions := func(list ...ast.Expr) {
		for _, e := range list {
			if id, ok := e.(*ast.Ident); ok {
				names(id)
			}
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			names(n.Name)
		case *ast.TypeSpec:
			names(n.Name)
		case *ast.ValueSpec:
			names(n.Names...)
		case *ast.Field:
			names(n.Names...)
		case *ast.AssignStmt:
			if n.Tok == token.DEFINE {
				expressions(n.Lhs...)
			}
		case *ast.RangeStmt:
			if n.Tok == token.DEFINE {
				expressions(n.Key, n.Value)
			}
		}
		return true
	})
}

// TestWords holds that names say what they name: in every package almost no declared name
// is a function word.
func TestWords(t *testing.T) {
	words := map[string]bool{}
	for _, w := range strings.Fields(functionWords) {
		words[w] = true
	}
	type count struct {
		names, empty int
		found        []string
	}
	byRoom := map[string]*count{}
	for _, s := range house(t) {
		if s.test {
			continue
		}
		c := byRoom[s.dir]
		if c == nil {
			c = &count{}
			byRoom[s.dir] = c
		}
		declared(s.file, func(id *ast.Ident) {
			c.names++
			if words[strings.ToLower(id.Name)] {
				c.empty++
				c.found = append(c.found, fmt.Sprintf("%s:%d %s", s.path, s.set.Position(id.Pos()).Line, id.Name))
			}
		})
	}
	for _, room := range slices.Sorted(maps.Keys(byRoom)) {
		c := byRoom[room]
		share := float64(c.empty) / float64(max(c.names, 1))
		t.Logf("%-40s %5d names, %3d function words, %4.1f %%", room, c.names, c.empty, 100*share)
		if share > maxFunctionWords {
			t.Errorf("%s: %.1f %% of the names are function words, and %.1f %% may be: %s", room, 100*share, 100*maxFunctionWords, strings.Join(c.found, ", "))
		}
	}
}

// TestFields holds that no struct is a bag.
func TestFields(t *testing.T) {
	for _, s := range house(t) {
		ast.Inspect(s.file, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			if kind, ok := spec.Type.(*ast.StructType); ok && kind.Fields.NumFields() > maxFields {
				t.Errorf("%s: %s has %d fields; at most %d", s.path, spec.Name.Name, kind.Fields.NumFields(), maxFields)
			}
			return true
		})
	}
}

// TestDocComments holds that a doc comment says what a thing does, and not that it is what
// or how something is.
func TestDocComments(t *testing.T) {
	empty := regexp.MustCompile(`^\S+ (is|are|was|were) (what|how|when|why|who|where|whether)\b`)
	found := map[string][]string{}
	check := func(s source, doc *ast.CommentGroup) {
		if doc != nil && empty.MatchString(doc.Text()) {
			found[s.dir] = append(found[s.dir], fmt.Sprintf("%s:%d", s.path, s.set.Position(doc.Pos()).Line))
		}
	}
	for _, s := range house(t) {
		if s.test {
			continue
		}
		for _, d := range s.file.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				check(s, d.Doc)
			case *ast.GenDecl:
				check(s, d.Doc)
				for _, spec := range d.Specs {
					switch spec := spec.(type) {
					case *ast.TypeSpec:
						check(s, spec.Doc)
					case *ast.ValueSpec:
						check(s, spec.Doc)
					}
				}
			}
		}
	}
	for _, room := range slices.Sorted(maps.Keys(found)) {
		t.Errorf("%s: %d doc comments say that something is what or how: %s", room, len(found[room]), strings.Join(found[room], ", "))
	}
}

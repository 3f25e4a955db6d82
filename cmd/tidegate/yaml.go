package main

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"sort"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// This file is the only one that calls the YAML library. Every call goes through
// guard: the library panics on input that it did not expect, and a gateway that
// reloads its file must outlive that.

// maxNesting bounds how deep lists and mappings of a file may stand in each other.
// The parser calls itself for each level, and a stack that is full ends the process.
const maxNesting = 64

// yamlFault is a fault of a file that the library has not found itself.
type yamlFault struct {
	line, column int // from 1
	message      string
}

// Error returns the fault without its place.
func (f *yamlFault) Error() string { return f.message }

func faultAt(t *token.Token, format string, args ...any) error {
	f := &yamlFault{line: 1, column: 1, message: fmt.Sprintf(format, args...)}
	if t != nil && t.Position != nil {
		f.line, f.column = t.Position.Line, t.Position.Column
	}
	return f
}

// crash is a panic of the YAML library.
type crash struct{ cause any }

// Error returns what the library said last, and what the writer can do.
func (c *crash) Error() string {
	return fmt.Sprintf("cannot be read here (the YAML library fails: %v); write it plainly, as deploy/tidegate.example.yaml does", c.cause)
}

// guard runs a call of the YAML library and returns its panic as an error.
func guard(call func() error) (err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = &crash{cause}
		}
	}()
	return call()
}

// parse reads a file into its documents. Where the library fails without naming a
// place, the fault stands behind the longest start of the file that it can read.
func parse(source []byte) (tree *ast.File, err error) {
	read := func(part []byte) (tree *ast.File, err error) {
		err = guard(func() (err error) {
			tokens := lexer.Tokenize(string(part))
			if err = checkNesting(tokens); err == nil {
				tree, err = parser.Parse(tokens, 0)
			}
			return err
		})
		return tree, err
	}
	tree, err = read(source)
	if placed(err) {
		return tree, err
	}
	n := sort.Search(len(source), func(n int) bool {
		_, again := read(source[:n])
		return again != nil && again.Error() == err.Error()
	})
	start := string(source[:max(n-1, 0)])
	return nil, &yamlFault{
		line: strings.Count(start, "\n") + 1, column: len(start) - strings.LastIndexByte(start, '\n'), message: err.Error(),
	}
}

// placed reports whether an error names its place, or is none.
func placed(err error) bool {
	var (
		ours *yamlFault
		e    yaml.Error
	)
	return err == nil || errors.As(err, &ours) || errors.As(err, &e) && e.GetToken() != nil
}

// checkNesting refuses more than maxNesting lists and mappings in each other.
// Nesting by indentation needs no bound: the file grows with its square.
func checkNesting(tokens token.Tokens) error {
	flow, prefixes, line := 0, 0, 0
	for _, t := range tokens {
		if t.Position.Line != line {
			line, prefixes = t.Position.Line, 0
		}
		switch t.Type {
		case token.SequenceStartType, token.MappingStartType:
			flow++
		case token.SequenceEndType, token.MappingEndType:
			flow--
		case token.SequenceEntryType, token.MappingKeyType, token.AnchorType, token.TagType:
			prefixes++
		}
		if flow > maxNesting || prefixes > maxNesting {
			return faultAt(t, "lists and mappings stand more than %d deep in each other", maxNesting)
		}
	}
	return nil
}

// decode reads the one document of a file into what a pointer leads to. A key
// without a value, such as that of a section whose lines are all commented out,
// leaves the defaults.
func decode(source []byte, into any) error {
	tree, err := parse(source)
	if err != nil {
		return err
	}
	for i, doc := range tree.Docs {
		if i > 0 && doc.Body != nil {
			return faultAt(doc.Body.GetToken(), "holds more than one document; expected one")
		}
		if doc.Body == nil {
			continue
		}
		if doc.Body, err = plain(doc.Body); err != nil {
			return err
		}
		if doc.Body.Type() == ast.NullType || doc.Body.Type() == ast.CommentType {
			continue
		}
		read := func(into any) error {
			return guard(func() error { return yaml.NodeToValue(doc.Body, into, yaml.Strict()) })
		}
		if err := read(into); err != nil {
			if placed(err) {
				return err
			}
			at := narrow(doc.Body, func() bool {
				again := read(reflect.New(reflect.TypeOf(into).Elem()).Interface())
				return again != nil && again.Error() == err.Error()
			})
			return faultAt(at.GetToken(), "%s", err)
		}
	}
	return nil
}

// plain takes out the members of mappings that have no value, and the tags, of
// which the library is not safe: those of YAML's core schema that say what the
// value is anyway go, and others are refused.
func plain(node ast.Node) (_ ast.Node, err error) {
	switch n := node.(type) {
	case *ast.MappingNode:
		for _, v := range n.Values {
			if v.Value, err = plain(v.Value); err != nil {
				return nil, err
			}
		}
		n.Values = slices.DeleteFunc(n.Values, func(v *ast.MappingValueNode) bool { return v.Value == nil || v.Value.Type() == ast.NullType })
	case *ast.SequenceNode:
		for i := range n.Values {
			if n.Values[i], err = plain(n.Values[i]); err != nil {
				return nil, err
			}
		}
	case *ast.AnchorNode:
		n.Value, err = plain(n.Value)
	case *ast.TagNode:
		return untagged(n)
	}
	return node, err
}

// untagged returns the value of a tag.
func untagged(n *ast.TagNode) (ast.Node, error) {
	value := n.Value
	if value == nil {
		return nil, faultAt(n.Start, "the tag %s has no value", n.Start.Value)
	}
	var kinds []ast.NodeType
	switch token.ReservedTagKeyword(n.Start.Value) {
	case token.StringTag:
		if _, scalar := value.(ast.ScalarNode); scalar && value.GetToken() != nil {
			if kind := value.Type(); kind == ast.StringType || kind == ast.LiteralType {
				return value, nil
			}
			return ast.String(value.GetToken()), nil
		}
	case token.IntegerTag:
		kinds = []ast.NodeType{ast.IntegerType}
	case token.FloatTag:
		kinds = []ast.NodeType{ast.FloatType, ast.IntegerType}
	case token.BooleanTag:
		kinds = []ast.NodeType{ast.BoolType}
	case token.NullTag:
		kinds = []ast.NodeType{ast.NullType}
	case token.SequenceTag:
		kinds = []ast.NodeType{ast.SequenceType}
	case token.MappingTag:
		kinds = []ast.NodeType{ast.MappingType}
	}
	if !slices.Contains(kinds, value.Type()) {
		return nil, faultAt(n.Start, "the tag %s does not fit here; expected the value itself, without a tag", n.Start.Value)
	}
	return plain(value)
}

// narrow returns the smallest part of a tree in which the fault stands: it goes
// down while the whole fails the same way without all siblings of one part.
func narrow(node ast.Node, fails func() bool) ast.Node {
	switch n := node.(type) {
	case *ast.MappingNode:
		all := n.Values
		for _, v := range all {
			if n.Values = []*ast.MappingValueNode{v}; fails() {
				return narrow(v.Value, fails)
			}
		}
		n.Values = all
	case *ast.SequenceNode:
		all := n.Values
		for _, v := range all {
			if n.Values = []ast.Node{v}; fails() {
				return narrow(v, fails)
			}
		}
		n.Values = all
	case *ast.AnchorNode:
		return narrow(n.Value, fails)
	}
	return node
}

// explainYAML says what a decoder refused, in the words of the file's author.
func explainYAML(file string, source []byte, err error) string {
	var (
		ours *yamlFault
		e    yaml.Error
	)
	if errors.As(err, &ours) {
		return fmt.Sprintf("%s:%d:%d: %s\n%s", file, ours.line, ours.column, ours.message, excerpt(source, ours.line, ours.column))
	}
	if !errors.As(err, &e) || e.GetToken() == nil {
		return file + ": " + err.Error()
	}
	message := e.GetMessage()
	if m := regexp.MustCompile(`^unknown field "(.*)"$`).FindStringSubmatch(message); m != nil {
		message = fmt.Sprintf("unknown key %q", m[1])
		if near := nearest(m[1], keysOf(reflect.TypeFor[config]())); near != "" {
			message += fmt.Sprintf("; expected %q?", near)
		}
	}
	if m := regexp.MustCompile(`^cannot unmarshal (\S+).* of type (\S+)$`).FindStringSubmatch(message); m != nil {
		message = fmt.Sprintf("expected %s, not %s", inWords(m[2]), inWords(m[1]))
	}
	at := e.GetToken().Position
	return fmt.Sprintf("%s:%d:%d: %s\n%s", file, at.Line, at.Column, message, excerpt(source, at.Line, at.Column))
}

// inWords names a Go type as a writer of YAML would.
func inWords(kind string) string {
	switch {
	case kind == "time.Duration":
		return "a duration such as 10s"
	case kind == "string":
		return "text"
	case kind == "bool":
		return "true or false"
	case strings.Contains(kind, "int"):
		return "a whole number"
	case strings.Contains(kind, "float"):
		return "a number"
	case strings.HasPrefix(kind, "[]"):
		return "a list"
	case strings.HasPrefix(kind, "map"), strings.Contains(kind, "."):
		return "a mapping"
	}
	return kind
}

// excerpt shows a line and points at a column of it.
func excerpt(source []byte, line, column int) string {
	lines := strings.Split(string(source), "\n")
	if line < 1 || line > len(lines) {
		return ""
	}
	text := strings.TrimRight(lines[line-1], "\r")
	// A log needs no password, of which the writer may have forgotten to encode an @.
	text = regexp.MustCompile(`(://[^:@/\s]*:)\S*@`).ReplaceAllString(text, "$1***@")
	text = regexp.MustCompile(`(?i)(password=)[^&\s'"]*`).ReplaceAllString(text, "$1***")
	return fmt.Sprintf("    %s\n    %s^", text, strings.Repeat(" ", max(column-1, 0)))
}

// locate finds the line of each fault, whose text begins with its path.
func locate(file string, source []byte, faults error) []string {
	tree, err := parse(source)
	var out []string
	for _, fault := range flatten(faults) {
		path, message, _ := strings.Cut(fault.Error(), ": ")
		line, column := 0, 0
		if err == nil {
			line, column = position(tree, path)
		}
		if line == 0 {
			out = append(out, fmt.Sprintf("%s: %s: %s", file, path, message))
			continue
		}
		out = append(out, fmt.Sprintf("%s:%d:%d: %s: %s\n%s", file, line, column, path, message, excerpt(source, line, column)))
	}
	return out
}

// position finds a path in the file, or the nearest thing above it.
func position(tree *ast.File, path string) (line, column int) {
	for path != "" {
		var found *token.Token
		err := guard(func() error {
			p, err := yaml.PathString("$." + path)
			if err != nil {
				return err
			}
			node, err := p.FilterFile(tree)
			if err == nil && node != nil {
				found = node.GetToken()
			}
			return err
		})
		if err == nil && found != nil {
			return found.Position.Line, found.Position.Column
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
	return 0, 0
}

// keysOf lists every key that a configuration may have.
func keysOf(t reflect.Type) (keys []string) {
	switch t.Kind() {
	case reflect.Slice, reflect.Pointer:
		return keysOf(t.Elem())
	case reflect.Struct:
		for i := range t.NumField() {
			if key := yamlKey(t.Field(i)); key != "" && key != "-" {
				keys = append(keys, key)
			}
			keys = append(keys, keysOf(t.Field(i).Type)...)
		}
	}
	return keys
}

func yamlKey(f reflect.StructField) string {
	key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	return key
}

// nearest is the key that differs from what was written by at most two letters, and not by
// all of them.
func nearest(written string, keys []string) string {
	best, least := "", min(3, len(written))
	for _, k := range keys {
		if d := distance(written, k); d < least {
			best, least = k, d
		}
	}
	return best
}

// distance is Levenshtein's: insertions, deletions and substitutions.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}

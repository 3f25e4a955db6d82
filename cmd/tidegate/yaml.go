package main

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"tidegate/gateway/account"
)

// This file is the only one that calls the YAML library. Every call goes through
// guard: the library panics on input that it did not expect, and a gateway that
// reloads its file must outlive that.

// maxNesting bounds how deep lists and mappings of a file may stand in each other.
// The parser calls itself for each level, and a stack that is full ends the process.
const maxNesting = 64

// yamlFault is a fault of a file at its place.
type yamlFault struct {
	line, column int // from 1
	message      string
	path         string       // of what cannot be read, such as queue.max_wait; empty: not known
	token        *token.Token // nil: none stands there
}

// Error returns the fault without its place.
func (f *yamlFault) Error() string { return f.message }

func faultAt(t *token.Token, format string, args ...any) error {
	f := &yamlFault{line: 1, column: 1, message: fmt.Sprintf(format, args...), token: t}
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
	if source, err = withoutMark(source); err != nil {
		return nil, err
	}
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
		_, failure := read(source[:n])
		return failure != nil && failure.Error() == err.Error()
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

// maxFaults bounds how many faults of one file are told at a time.
const maxFaults = 50

// document returns the one document of a file, without byte order mark, tags, merge
// keys and members that have no value; nil: the file holds nothing.
func document(source []byte) (ast.Node, error) {
	tree, err := parse(source)
	if err != nil {
		return nil, err
	}
	var out ast.Node
	for i, doc := range tree.Docs {
		if i > 0 && doc.Body != nil {
			return nil, faultAt(doc.Body.GetToken(), "holds more than one document; expected one")
		}
		if doc.Body == nil {
			continue
		}
		body, err := (&simplifier{anchors: map[string]ast.Node{}}).simplify(doc.Body)
		if err != nil {
			return nil, err
		}
		if body.Type() != ast.NullType && body.Type() != ast.CommentType {
			out = body
		}
	}
	return out, nil
}

// decode reads the one document of a file into what a pointer leads to, and returns
// everything in it that cannot be read, each a *yamlFault. A key without a value, such
// as that of a section whose lines are all commented out, leaves the defaults.
func decode(source []byte, target any) error {
	body, err := document(source)
	if err != nil || body == nil {
		return err
	}
	err = decodeTree(body, target)
	var faults []error
	for err != nil && len(faults) < maxFaults {
		// What cannot be read is taken out, so that the rest shows its own faults.
		t := blame(body, target, err)
		around := entriesAt(body, "", t)
		if strings.Contains(err.Error(), wantsScalar) && len(around) > 1 {
			around = around[1:] // it is a list or mapping that cannot be read, not what is in it
		}
		path := ""
		if len(around) > 0 {
			path = around[0].path
		}
		faults = append(faults, inPlain(err, t, path))
		for text := err.Error(); err != nil && err.Error() == text; around = around[1:] {
			if len(around) == 0 {
				return errors.Join(faults...)
			}
			around[0].remove()
			err = decodeTree(body, blank(target))
		}
	}
	return errors.Join(faults...)
}

// wantsScalar is a message of the YAML library, word for word (decode.go of goccy/go-yaml
// 1.19), of a list or a mapping in place of a text. TestAllUnreadable fails where it says it
// otherwise.
const wantsScalar = "does not implemented Unmarshaler"

// decodeTree reads a tree into what a pointer leads to.
func decodeTree(body ast.Node, target any) error {
	return guard(func() error {
		return yaml.NodeToValue(body, target, yaml.Strict(), yaml.CustomUnmarshaler(unmarshalDuration))
	})
}

// unmarshalDuration reads a duration as every other place of the gateway does.
func unmarshalDuration(d *time.Duration, source []byte) (err error) {
	text := strings.TrimSpace(string(source))
	if n := len(text); n > 1 && text[0] == text[n-1] && (text[0] == '"' || text[0] == '\'') {
		text = text[1 : n-1]
	}
	*d, err = account.ParseDuration(text)
	return err
}

// blank returns a pointer to a new value of the type that a pointer leads to.
func blank(target any) any { return reflect.New(reflect.TypeOf(target).Elem()).Interface() }

// blame returns the token at which reading failed.
func blame(body ast.Node, target any, err error) *token.Token {
	var (
		ours *yamlFault
		e    yaml.Error
	)
	switch {
	case errors.As(err, &ours):
		return ours.token
	case errors.As(err, &e) && e.GetToken() != nil:
		return e.GetToken()
	}
	return narrow(body, func() bool {
		repeated := decodeTree(body, blank(target))
		return repeated != nil && repeated.Error() == err.Error()
	}).GetToken()
}

// treeEntry is a member of a mapping or an element of a list in a tree.
type treeEntry struct {
	path   string // such as models[0].probe
	remove func() // takes it out of the tree; an element leaves a null in its place
}

// entriesAt finds the entries around a token, the one first whose key or value stands
// there.
func entriesAt(node ast.Node, path string, t *token.Token) []treeEntry {
	switch n := node.(type) {
	case *ast.MappingNode:
		for _, v := range n.Values {
			e := treeEntry{strings.TrimPrefix(path+"."+keyText(v), "."), func() {
				n.Values = slices.DeleteFunc(n.Values, func(value *ast.MappingValueNode) bool { return value == v })
			}}
			if inner := entriesAt(v.Value, e.path, t); len(inner) > 0 || standsAt(v.Key, t) || standsAt(v.Value, t) {
				return append(inner, e)
			}
		}
	case *ast.SequenceNode:
		for i, v := range n.Values {
			e := treeEntry{fmt.Sprintf("%s[%d]", path, i), func() { n.Values[i] = ast.Null(v.GetToken()) }}
			if inner := entriesAt(v, e.path, t); len(inner) > 0 || standsAt(v, t) {
				return append(inner, e)
			}
		}
	case *ast.AnchorNode:
		return entriesAt(n.Value, path, t)
	}
	return nil
}

// standsAt reports whether a node begins at a token.
func standsAt(n ast.Node, t *token.Token) bool {
	if anchor, ok := n.(*ast.AnchorNode); ok && standsAt(anchor.Value, t) {
		return true
	}
	if n == nil || t == nil || t.Position == nil {
		return false
	}
	first := n.GetToken()
	return first != nil && first.Position != nil && first.Position.Line == t.Position.Line && first.Position.Column == t.Position.Column
}

// keyText returns the text of a member's key.
func keyText(v *ast.MappingValueNode) string {
	if t := v.Key.GetToken(); t != nil {
		return t.Value
	}
	return ""
}

// simplifier takes out of a tree what the library does not read as YAML means it:
// members of mappings that have no value, tags, and merge keys.
type simplifier struct {
	anchors map[string]ast.Node // those met so far
}

// simplify returns a node without them. Tags of YAML's core schema that say what the
// value is anyway go, and others are refused.
func (s *simplifier) simplify(node ast.Node) (_ ast.Node, err error) {
	switch n := node.(type) {
	case *ast.MappingNode:
		for _, v := range n.Values {
			if v.Value, err = s.simplify(v.Value); err != nil {
				return nil, err
			}
		}
		if n.Values, err = s.merge(n.Values); err != nil {
			return nil, err
		}
		n.Values = slices.DeleteFunc(n.Values, func(v *ast.MappingValueNode) bool { return v.Value == nil || v.Value.Type() == ast.NullType })
	case *ast.SequenceNode:
		for i := range n.Values {
			if n.Values[i], err = s.simplify(n.Values[i]); err != nil {
				return nil, err
			}
		}
	case *ast.AnchorNode:
		if n.Value, err = s.simplify(n.Value); err == nil && n.Name != nil && n.Name.GetToken() != nil {
			s.anchors[n.Name.GetToken().Value] = n.Value
		}
	case *ast.TagNode:
		return s.untagged(n)
	}
	return node, err
}

// merge puts the members of the mappings that merge keys name in their place: a key
// that the mapping has itself goes before one that is merged in, and of several that
// are merged in the first (https://yaml.org/type/merge.html).
func (s *simplifier) merge(members []*ast.MappingValueNode) ([]*ast.MappingValueNode, error) {
	var merged, direct []*ast.MappingValueNode
	for _, v := range members {
		if v.Key.IsMergeKey() {
			merged = append(merged, v)
		} else {
			direct = append(direct, v)
		}
	}
	if len(merged) == 0 {
		return members, nil
	}
	present := map[string]bool{}
	for _, v := range direct {
		present[keyText(v)] = true
	}
	for _, v := range merged {
		sources := []ast.Node{v.Value}
		if list, ok := s.target(v.Value).(*ast.SequenceNode); ok {
			sources = list.Values
		}
		for _, source := range sources {
			m, ok := s.target(source).(*ast.MappingNode)
			if !ok {
				return nil, faultAt(v.Key.GetToken(), "<< takes a mapping or a list of mappings, each by the name of its anchor: <<: *name, where the mapping stands further up as &name")
			}
			for _, member := range m.Values {
				if key := keyText(member); !present[key] {
					present[key] = true
					taken := *member // since what cannot be read is taken out of each mapping on its own
					direct = append(direct, &taken)
				}
			}
		}
	}
	return direct, nil
}

// target follows anchors and aliases to a node; nil: an alias names no anchor.
func (s *simplifier) target(node ast.Node) ast.Node {
	switch n := node.(type) {
	case *ast.AnchorNode:
		return s.target(n.Value)
	case *ast.AliasNode:
		if t := n.Value.GetToken(); t != nil && s.anchors[t.Value] != nil {
			return s.target(s.anchors[t.Value])
		}
		return nil
	}
	return node
}

// untagged returns the value of a tag.
func (s *simplifier) untagged(n *ast.TagNode) (ast.Node, error) {
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
	return s.simplify(value)
}

// asFault returns an error with its place; nil: it has none.
func asFault(err error) *yamlFault {
	var (
		ours *yamlFault
		e    yaml.Error
	)
	switch {
	case errors.As(err, &ours):
		return ours
	case errors.As(err, &e) && e.GetToken() != nil && e.GetToken().Position != nil:
		return &yamlFault{
			line: e.GetToken().Position.Line, column: e.GetToken().Position.Column, message: inWords(e.GetMessage(), ""), token: e.GetToken(),
		}
	}
	return nil
}

// inPlain returns what reading a tree refused as a fault at a token and a path.
func inPlain(err error, t *token.Token, path string) error {
	message := err.Error()
	var e yaml.Error
	if errors.As(err, &e) {
		message = e.GetMessage()
	}
	fault := asFault(faultAt(t, "%s", inWords(message, path)))
	fault.path = path
	return fault
}

// narrow returns the smallest part of a tree in which the fault stands: it goes
// down while the whole fails the same way without all siblings of one part. It leaves
// the tree as it was.
func narrow(node ast.Node, fails func() bool) ast.Node {
	switch n := node.(type) {
	case *ast.MappingNode:
		nodes := n.Values
		defer func() { n.Values = nodes }()
		for _, v := range nodes {
			if n.Values = []*ast.MappingValueNode{v}; fails() {
				return narrow(v.Value, fails)
			}
		}
	case *ast.SequenceNode:
		nodes := n.Values
		defer func() { n.Values = nodes }()
		for _, v := range nodes {
			if n.Values = []ast.Node{v}; fails() {
				return narrow(v, fails)
			}
		}
	case *ast.AnchorNode:
		return narrow(n.Value, fails)
	}
	return node
}

// position finds a path in the file, or the nearest thing above it.
func position(body ast.Node, path string) (line, column int) {
	for path != "" {
		var found *token.Token
		err := guard(func() error {
			p, err := yaml.PathString("$." + path)
			if err != nil {
				return err
			}
			node, err := p.FilterNode(body)
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

// withoutMark takes the byte order mark off a file, which editors on Windows write
// (YAML 1.2.2, section 5.2), and refuses other encodings than UTF-8.
func withoutMark(source []byte) ([]byte, error) {
	for _, mark := range [][]byte{{0xff, 0xfe}, {0xfe, 0xff}} {
		if bytes.HasPrefix(source, mark) {
			return nil, faultAt(nil, "the file is in UTF-16; save it as UTF-8")
		}
	}
	return bytes.TrimPrefix(source, []byte("\ufeff")), nil
}

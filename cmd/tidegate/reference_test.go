package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"tidegate/admission/limit"
	"tidegate/gateway"
)

// reference writes docs/reference.md: the keys, their kinds and defaults come from
// the types that the file is read into, their meaning from the comments of those
// types' fields, and whether a reload is enough from restartOnly.
type reference struct {
	out      bytes.Buffer
	comments map[string]map[string]string // of a directory: of TYPE.FIELD
	faults   []string
}

const referenceHead = `# Configuration reference

Made from the types that the file is read into: do not edit, run ` + "`make docs`" + `. [configuration.md](configuration.md) says how the parts work together, [deploy/tidegate.example.yaml](../deploy/tidegate.example.yaml) shows them in one file.

A key with ` + "`[]`" + ` belongs to each member of a list. A setting with a variable can be set by it, over the file; lists and mappings are given there as YAML. *Reload*: a changed file is enough; *restart*: it is read at the start only, and the log says so if it changes.
`

// leaf names the types that a file writes as one value.
func leaf(t reflect.Type) (kind string, ok bool) {
	switch t {
	case reflect.TypeFor[time.Duration]():
		return "duration", true
	case reflect.TypeFor[limit.Rate]():
		return "COUNT/WINDOW", true
	case reflect.TypeFor[limit.Count]():
		return "number from 1", true
	case reflect.TypeFor[limit.Milli](), reflect.TypeFor[limit.Factor]():
		return "decimal, 3 places", true
	case reflect.TypeFor[gateway.Size]():
		return "size", true
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false", true
	case reflect.String:
		return "text", true
	case reflect.Int, reflect.Int64, reflect.Uint16:
		return "number", true
	case reflect.Float64:
		return "decimal", true
	case reflect.Pointer:
		return leaf(t.Elem())
	case reflect.Map:
		kind, ok = leaf(t.Elem())
		return "mapping of " + kind, ok
	case reflect.Slice:
		kind, ok = leaf(t.Elem())
		return "list of " + kind, ok
	}
	return "", false
}

// shownDefault is a default as a file would say it.
func shownDefault(v reflect.Value) string {
	if !v.IsValid() || v.IsZero() && v.Kind() != reflect.Bool {
		return ""
	}
	if d, ok := v.Interface().(time.Duration); ok {
		return "`" + trimDuration(d) + "`"
	}
	raw, err := yaml.MarshalWithOptions(v.Interface(), yaml.Flow(true))
	if err != nil {
		return "`" + fmt.Sprint(v.Interface()) + "`"
	}
	text := strings.TrimSpace(string(raw))
	if t := v.Type(); t.Kind() == reflect.Float64 || t == reflect.TypeFor[[]float64]() {
		text = regexp.MustCompile(`(\d)\.0\b`).ReplaceAllString(text, "$1")
	}
	return "`" + strings.Trim(text, `"`) + "`"
}

// trimDuration is 1m, not 1m0s.
func trimDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// comment is what the type says of a field.
func (r *reference) comment(t reflect.Type, field string) string {
	dir := filepath.Join("..", "..", strings.TrimPrefix(t.PkgPath(), "tidegate/"))
	if r.comments[dir] == nil {
		r.comments[dir] = map[string]string{}
		files, _ := filepath.Glob(filepath.Join(dir, "*.go"))
		for _, file := range files {
			tree, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
			if err != nil {
				r.faults = append(r.faults, err.Error())
				continue
			}
			ast.Inspect(tree, func(n ast.Node) bool {
				if spec, ok := n.(*ast.TypeSpec); ok {
					if s, ok := spec.Type.(*ast.StructType); ok {
						for _, f := range s.Fields.List {
							for _, name := range f.Names {
								text := f.Comment.Text()
								if text == "" {
									text = f.Doc.Text()
								}
								r.comments[dir][spec.Name.Name+"."+name.Name] = strings.Join(strings.Fields(text), " ")
							}
						}
					}
				}
				return true
			})
		}
	}
	return r.comments[dir][t.Name()+"."+field]
}

// walk writes a line for each key below a struct. variable is "" where the
// environment cannot name it.
func (r *reference) walk(v reflect.Value, path, variable, applies string) {
	t := v.Type()
	for i := range t.NumField() {
		f, value := t.Field(i), v.Field(i)
		key := yamlKey(f)
		if key == "-" {
			continue
		}
		if key == "" {
			if strings.Contains(f.Tag.Get("yaml"), "inline") {
				r.walk(value, path, variable, applies)
			}
			continue // what the file cannot name
		}
		at, named, how := key, "", applies
		if path != "" {
			at = path + "." + key
		}
		if variable != "" {
			named = variable + "_" + strings.ToUpper(key)
		}
		if needsRestart(at) {
			how = "restart"
		}
		meaning := r.comment(t, f.Name)
		kind, one := leaf(f.Type)
		switch {
		case one:
			if meaning == "" {
				r.faults = append(r.faults, fmt.Sprintf("%s: %s.%s has no comment", at, t, f.Name))
			}
			r.line(at, kind, shownDefault(value), named, how, meaning)
		case f.Type.Kind() == reflect.Slice:
			r.line(at, "list", "", named, how, meaning)
			element := reflect.New(f.Type.Elem())
			if err := yaml.Unmarshal([]byte("{}"), element.Interface()); err != nil {
				element = reflect.New(f.Type.Elem()) // it cannot be empty; its zeros say enough
			}
			r.walk(element.Elem(), at+"[]", "", how)
		default:
			if meaning != "" && path != "" {
				r.line(at, "mapping", "", named, how, meaning)
			}
			r.walk(value, at, named, how)
		}
	}
}

func (r *reference) line(key, kind, value, variable, applies, meaning string) {
	if variable != "" {
		variable = "`" + variable + "`"
	}
	fmt.Fprintf(&r.out, "| `%s` | %s | %s | %s | %s | %s |\n", key, kind, value, variable, applies, strings.ReplaceAll(meaning, "|", `\|`))
}

// needsRestart asks restartOnly about a key: it changes the setting and sees what
// is said.
func needsRestart(path string) bool {
	if strings.Contains(path, "[]") {
		return false
	}
	now, next := defaultConfig(), defaultConfig()
	v := reflect.ValueOf(&next).Elem()
	for _, key := range strings.Split(path, ".") {
		if v = member(v, key); !v.IsValid() {
			return false
		}
	}
	if !alter(v) {
		return false
	}
	return len(now.restartOnly(&next)) > 0
}

// member is the field of a key, which may be that of an inlined struct.
func member(v reflect.Value, key string) reflect.Value {
	if v.Kind() != reflect.Struct {
		return reflect.Value{}
	}
	for i := range v.NumField() {
		switch yamlKey(v.Type().Field(i)) {
		case key:
			return v.Field(i)
		case "":
			if found := member(v.Field(i), key); found.IsValid() {
				return found
			}
		}
	}
	return reflect.Value{}
}

// alter gives a setting another value.
func alter(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.String:
		v.SetString(v.String() + "x")
	case reflect.Int, reflect.Int64:
		v.SetInt(v.Int() + 1)
	case reflect.Float64:
		v.SetFloat(v.Float() + 1)
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), v.Len()+1, v.Len()+1))
	default:
		return false
	}
	return true
}

// TestReference holds docs/reference.md to the types, or writes it, where a
// variable says so (make docs).
func TestReference(t *testing.T) {
	r := &reference{comments: map[string]map[string]string{}}
	r.out.WriteString(referenceHead)
	c := defaultConfig()
	v := reflect.ValueOf(&c).Elem()
	for i := range v.NumField() {
		f := v.Type().Field(i)
		key := yamlKey(f)
		fmt.Fprintf(&r.out, "\n## %s\n\n| key | kind | default | variable | applies by | meaning |\n|---|---|---|---|---|---|\n", key)
		section := reflect.New(reflect.StructOf([]reflect.StructField{{Name: f.Name, Type: f.Type, Tag: f.Tag}})).Elem()
		section.Field(0).Set(v.Field(i))
		r.walk(section, "", "TIDEGATE", "reload")
	}
	for _, fault := range r.faults {
		t.Error(fault)
	}
	const file = "../../docs/reference.md"
	if out := os.Getenv("TIDEGATE_DOCS_OUT"); out != "" {
		if err := os.WriteFile(out, r.out.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	page, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(page, r.out.Bytes()) {
		is, want := strings.Split(string(page), "\n"), strings.Split(r.out.String(), "\n")
		if i := slices.IndexFunc(want, func(line string) bool { return !slices.Contains(is, line) }); i >= 0 {
			t.Errorf("docs/reference.md:%d should be\n%s", i+1, want[i])
		}
		t.Error("docs/reference.md is not what the types say: run make docs")
	}
}

func TestRestartIsSaid(t *testing.T) {
	for path, want := range map[string]bool{
		"server.listen": true, "server.tls.cert_file": true, "store.retention": true, "redis.timeout": true, "telemetry.log": true,
		"server.max_body": false, "models": false, "degrade.observe": false, "auth.mode": false,
	} {
		if needsRestart(path) != want {
			t.Errorf("%s: a restart is needed: %t", path, !want)
		}
	}
}

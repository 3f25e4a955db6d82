package main

import (
	"strings"
	"testing"
)

// TestTags: a tag that says what its value is anyway is read over, any other is
// refused at its place.
func TestTags(t *testing.T) {
	const rest = "auth: {mode: open}\nmodels: [{name: m, backends: [{url: 'http://a:1'}]}]\n"
	c, err := readConfig("F", []byte("server: !!map {max_n: !!int 3}\nlimits: !!seq []\ngpus: !!null null\ndegrade: {observe: !!bool true}\nstore: {journal_dir: !!str 8080}\n"+rest), noEnv)
	if err != nil || c.Store.JournalDir != "8080" || c.Server.MaxN != 3 || !c.Degrade.Observe {
		t.Errorf("%v: %+v", err, c.Server)
	}
	for text, want := range map[string]string{
		"quotas: !include q.yaml\n":                   "F:1:9: the tag !include does not fit here",
		"limits: !!str 1\n":                           "F:1:14: limits: expected a list, not text",
		"limits: !!binary aGk=\n":                     "F:1:9: the tag !!binary",
		"server:\n  max_n: !!int x\n":                 "F:2:10: the tag !!int",
		"gpus: !!set {a}\n":                           "F:1:7: the tag !!set",
		"queue: {max_wait: !secret wait}\n":           "F:1:19: the tag !secret",
		"server: &s {listen: ':1', tls: !x {a: b}}\n": "F:1:32: the tag !x",
	} {
		_, err := readConfig("F", []byte(text+rest), noEnv)
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

// fragile is a type of which reading one value fails as the library itself might.
type fragile string

func (f *fragile) UnmarshalYAML(raw []byte) error {
	if strings.Contains(string(raw), "bad") {
		panic("no such thing")
	}
	*f = fragile(raw)
	return nil
}

// TestLibraryPanics: what panics while a value is read is an error that says where.
func TestLibraryPanics(t *testing.T) {
	type part struct {
		Name  fragile            `yaml:"name"`
		Names []fragile          `yaml:"names"`
		More  map[string]fragile `yaml:"more"`
	}
	for text, want := range map[string]string{
		"name: good\nnames: [a, b]\n":      "",
		"names: [a,\n  bad]\nmore: {a: b}": "F:2:3: names[1]: cannot be read here (the YAML library fails: no such thing)",
		"name: good\nmore: {a: b, c: bad}": "F:2:17: more.c: cannot be read here",
		"name: &a bad":                     "F:1:10: name: cannot be read here",
	} {
		var into part
		got := ""
		if err := decode([]byte(text), &into); err != nil {
			got = strings.Join(explainYAML("F", []byte(text), err), "\n")
		}
		if !strings.HasPrefix(got, want) || want == "" && got != "" {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
	_, err := readConfig("F", nil, func(name string) (string, bool) { return "!!str 1", name == "TIDEGATE_LIMITS" })
	if err == nil || !strings.HasPrefix(err.Error(), "environment variable TIDEGATE_LIMITS: value:1:6: ") {
		t.Errorf("%v", err)
	}
	_, err = readConfig("F", []byte("server:\n  listen: *nobody\n"), noEnv)
	if err == nil || !strings.HasPrefix(err.Error(), "F:2:12: could not find alias") {
		t.Errorf("%v", err)
	}
}

// TestDeepNesting: what would fill the parser's stack, which nothing recovers, is
// refused before.
func TestDeepNesting(t *testing.T) {
	const deep = 1 << 20
	for _, level := range []string{"[", "{a: ", "- ", "? ", "&a ", "!!seq "} {
		_, err := readConfig("F", []byte("limits:\n  "+strings.Repeat(level, deep)), noEnv)
		if err == nil || !strings.HasPrefix(err.Error(), "F:2:") || !strings.Contains(err.Error(), "more than 64 deep") {
			t.Errorf("%s: %.200v", level, err)
		}
	}
	lists := strings.Repeat("[", 60) + strings.Repeat("]", 60)
	if _, err := readConfig("F", []byte("limits: "+lists), noEnv); err == nil || strings.Contains(err.Error(), "deep") {
		t.Errorf("%v", err)
	}
}

// Package jsontest generates JSON texts for tests, and reads them with encoding/json.
package jsontest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"pgregory.net/rapid"
)

// Seeds returns texts, valid and not, on the edges of the grammar. The deepest valid one is
// nested depth deep.
func Seeds(depth int) []string {
	return []string{
		``, ` `, `{`, `}`, `{}`, `[]`, ` { } `, "\t[\n]\r", `{"a":1}`, ` {"a" : [1,2,{"b":null}] , "c":"x\"y"} `, `{"a":1,}`, `[1,]`, `[,1]`,
		`{,}`, `{"a":1`, `{"a"`, `{"a":`, `{"a"}`, `{a:1}`, `{"a" 1}`, `{"a":1 "b":2}`, `{1:2}`, `[1 2]`, `{"a":01}`, `{"a":-}`, `{"a":-0}`, `{"a":1.}`,
		`{"a":.5}`, `{"a":1.5}`, `{"a":1e5}`, `{"a":1E+5}`, `{"a":1e-05}`, `{"a":1e}`, `{"a":1e+}`, `{"a":+1}`, `{"a":0x1}`, `{"a":1e5.5}`, "{\"a\":\"\x01\"}",
		"{\"a\":\"\x1f\"}", "{\"a\":\"\x20\x7f\"}", "{\"a\":\"\x80\xff\"}", "{\"\xc3\x28\":1}", `{"a":"\u12g4"}`, `{"a":"\u12G4"}`, `{"a":"\u12Af"}`, `{"a":"\u12`, `{"a":"\u123"}`, `{"a":"\u123x"}`, `{"a":"\u"}`,
		`{"a":"\x"}`, `{"a":"\`, `{"a":"\b\f\n\r\t\/\\\""}`, `{"a":tru}`, `{"a":true}`, `{"a":truex}`, `{"a":nul`, `{"a":null}`, `{"a":False}`, `{} x`, `{}{}`, `[][]`,
		`{"a":{}}}`, `[[]]]`, `[[}]`, `{"a":[}}`, "\ufeff{}", `"s"`, `1`, `null`, "{\"a\"\v:1}", `[1,2,"12345678\u0041bcdefgh","1234567"]`, `[""]`, "[\"\x00\"]", "{\"a\":\"1234567\n\"}",
		strings.Repeat("[", depth) + strings.Repeat("]", depth), strings.Repeat("[", depth+1) + strings.Repeat("]", depth+1),
		strings.Repeat(`{"a":`, depth-1) + "[]" + strings.Repeat("}", depth-1), strings.Repeat(`{"a":`, depth) + "[]" + strings.Repeat("}", depth),
		strings.Repeat("[", 1<<16),
	}
}

// The generators draw JSON as text, with the white space, escapes and long integers that
// decoding and encoding again would lose.

// Space draws white space between two tokens, or none.
func Space(t *rapid.T) string {
	return rapid.SampledFrom([]string{"", "", "", " ", "\n", "\t \r\n"}).Draw(t, "space")
}

// String draws a JSON string with its quotes.
func String(t *rapid.T) string {
	pieces := []string{
		"a", "model", "content", " ", "developer", "12345678", "é", "日本", "\U0001f600", "\u2028",
		`\"`, `\\`, `\/`, `\n`, `\u0041`, `\u00e9`, `\ud83d\ude00`, `\ud800`, `{`, `}`, `[`, `]`, `,`, `:`, `"reasoning`,
	}
	var b strings.Builder
	b.WriteByte('"')
	for range rapid.IntRange(0, 6).Draw(t, "pieces") {
		p := rapid.SampledFrom(pieces).Draw(t, "piece")
		if p[0] == '"' {
			p = `\` + p
		}
		b.WriteString(p)
	}
	return b.String() + `"`
}

// Value draws any value, nested at most depth deep.
func Value(t *rapid.T, depth int) string {
	kinds := 5
	if depth > 0 {
		kinds = 7
	}
	switch rapid.IntRange(0, kinds-1).Draw(t, "kind") {
	case 0:
		return rapid.SampledFrom([]string{"null", "true", "false"}).Draw(t, "word")
	case 1:
		return rapid.SampledFrom([]string{"0", "-0", "1", "-7", "16.0", "1.5", "1e9", "1E-2", "9007199254740993", "12345678901234567890123"}).Draw(t, "number")
	case 2, 3, 4:
		return String(t)
	case 5:
		var items []string
		for range rapid.IntRange(0, 4).Draw(t, "length") {
			items = append(items, Space(t)+Value(t, depth-1)+Space(t))
		}
		return "[" + Space(t) + strings.Join(items, ",") + "]"
	}
	var names, values []string
	for i := range rapid.IntRange(0, 4).Draw(t, "members") {
		names = append(names, fmt.Sprintf(`"k%d%s`, i, String(t)[1:]))
		values = append(values, Value(t, depth-1))
	}
	return Object(t, names, values)
}

// Object returns an object of members (names as raw strings) and draws the white space.
func Object(t *rapid.T, names, values []string) string {
	var b strings.Builder
	b.WriteString("{" + Space(t))
	for i := range names {
		if i > 0 {
			b.WriteString("," + Space(t))
		}
		b.WriteString(names[i] + Space(t) + ":" + Space(t) + values[i] + Space(t))
	}
	return b.String() + "}"
}

// A Pair is a member of an object: its decoded name and its raw value.
type Pair struct{ Name, Value string }

// Pairs returns the members of an object in order, as encoding/json reads them.
func Pairs(t interface{ Fatalf(string, ...any) }, object []byte) (out []Pair) {
	d := json.NewDecoder(bytes.NewReader(object))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		t.Fatalf("%s is no object: %v", object, err)
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			t.Fatalf("%s: %v", object, err)
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			t.Fatalf("%s: %v", object, err)
		}
		out = append(out, Pair{name.(string), string(value)})
	}
	return out
}

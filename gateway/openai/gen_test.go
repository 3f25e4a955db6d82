package openai

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"pgregory.net/rapid"
)

// Generators of JSON as text: with white space, escapes and long integers, as
// clients write it and as decoding and encoding again would lose it.

func drawSpace(t *rapid.T) string {
	return rapid.SampledFrom([]string{"", "", "", " ", "\n", "\t \r\n"}).Draw(t, "space")
}

// drawString is a JSON string with its quotes.
func drawString(t *rapid.T) string {
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

// drawJSON is any value, nested at most depth deep.
func drawJSON(t *rapid.T, depth int) string {
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
		return drawString(t)
	case 5:
		var items []string
		for range rapid.IntRange(0, 4).Draw(t, "length") {
			items = append(items, drawSpace(t)+drawJSON(t, depth-1)+drawSpace(t))
		}
		return "[" + drawSpace(t) + strings.Join(items, ",") + "]"
	}
	var names, values []string
	for i := range rapid.IntRange(0, 4).Draw(t, "members") {
		names = append(names, fmt.Sprintf(`"k%d%s`, i, drawString(t)[1:]))
		values = append(values, drawJSON(t, depth-1))
	}
	return drawObject(t, names, values)
}

// drawObject writes members (names as raw strings) with white space between.
func drawObject(t *rapid.T, names, values []string) string {
	var b strings.Builder
	b.WriteString("{" + drawSpace(t))
	for i := range names {
		if i > 0 {
			b.WriteString("," + drawSpace(t))
		}
		b.WriteString(names[i] + drawSpace(t) + ":" + drawSpace(t) + values[i] + drawSpace(t))
	}
	return b.String() + "}"
}

// pair is a member of an object, its name decoded and its value as written.
type pair struct{ name, value string }

// pairsOf reads an object's members in their order with encoding/json alone.
func pairsOf(t interface{ Fatalf(string, ...any) }, object []byte) (out []pair) {
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
		out = append(out, pair{name.(string), string(value)})
	}
	return out
}

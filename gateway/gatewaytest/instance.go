package gatewaytest

import (
	"encoding/json"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/tidwall/gjson"
)

// deepest is the depth to which optional parts of a possibly recursive schema are
// filled in.
const deepest = 5

// author fills a JSON schema from a text: numbers from its numbers, strings
// from its quotations, names and long words, in the order in which they come.
type author struct {
	root    gjson.Result
	text    string
	numbers []float64
	phrases []string
}

// instance returns one JSON value that fits the schema; avoid are words that are
// not worth quoting.
func instance(schema gjson.Result, text string, avoid []string) string {
	a := &author{root: schema, text: text, numbers: numbersIn(text), phrases: phrasesIn(text, avoid)}
	if !schema.IsObject() {
		return "{}"
	}
	return string(a.value(nil, schema, "", 0))
}

// formatted returns the answer to a response_format or structured_outputs.
func (c *call) formatted() string {
	if c.script.hasText {
		return c.script.text
	}
	switch c.format.kind {
	case "schema":
		return instance(c.format.schema, c.talk.user, nil)
	case "choice":
		return mentioned(c.format.schema.Array(), c.talk.user).String()
	case "regex":
		a := &author{text: c.talk.user, phrases: phrasesIn(c.talk.user, nil)}
		return a.matching(c.format.regex)
	}
	return c.anyObject()
}

// anyObject returns an object for json_object: the keys the text quotes, each with a sentence.
func (c *call) anyObject() string {
	var keys []string
	word := regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	for _, q := range quotationsIn(c.talk.user) {
		if word.MatchString(q) && !slices.Contains(keys, q) {
			keys = append(keys, q)
		}
	}
	if len(keys) == 0 {
		keys = []string{"answer"}
	}
	b := []byte("{")
	for i, k := range keys {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = appendString(b, k)
		b = append(b, ": "...)
		b = appendString(b, "Here is the "+k+".")
	}
	return string(append(b, '}'))
}

// readFormat understands response_format and structured_outputs.
func readFormat(c *call) error {
	rf := c.root.Get("response_format")
	switch kind := rf.Get("type").String(); kind {
	case "", "text":
	case "json_object":
		c.format.kind = "json"
	case "json_schema":
		c.format = format{kind: "schema", schema: rf.Get("json_schema.schema")}
		if !c.format.schema.Exists() {
			return malformed("response_format", "[{'loc': ('body', 'response_format', 'json_schema', 'schema'), 'msg': 'Field required'}]")
		}
	default:
		return malformed("response_format", "[{'loc': ('body', 'response_format', 'type'), 'msg': 'Unknown type'}]")
	}
	kinds := 0
	outputs := c.root.Get("structured_outputs")
	for _, kind := range []string{"json", "regex", "choice"} {
		v := outputs.Get(kind)
		if !v.Exists() || v.Type == gjson.Null {
			continue
		}
		kinds++
		switch kind {
		case "json":
			if v.Type == gjson.String {
				v = gjson.Parse(v.Str)
			}
			c.format = format{kind: "schema", schema: v}
		case "regex":
			c.format = format{kind: "regex", regex: v.String()}
		case "choice":
			c.format = format{kind: "choice", schema: v}
		}
	}
	if kinds > 1 {
		return malformed("structured_outputs", "You can only use one kind of constraints for structured outputs ('json', 'regex', 'choice', ...).")
	}
	return nil
}

func (a *author) value(b []byte, s gjson.Result, name string, depth int) []byte {
	if ref := s.Get(`\$ref`); ref.Exists() && depth < 4*deepest {
		return a.value(b, a.resolve(ref.String()), name, depth+1)
	}
	if v := s.Get("const"); v.Exists() {
		return append(b, v.Raw...)
	}
	if v := s.Get("enum"); v.IsArray() {
		return append(b, mentioned(v.Array(), a.text).Raw...)
	}
	for _, key := range []string{"anyOf", "oneOf"} {
		if v := s.Get(key); v.IsArray() {
			return a.value(b, a.preferred(v.Array(), depth), name, depth+1)
		}
	}
	if v := s.Get("allOf"); v.IsArray() && !s.Get("properties").Exists() && len(v.Array()) == 1 {
		return a.value(b, v.Array()[0], name, depth+1)
	}
	switch a.typeOf(s) {
	case "object":
		return a.object(b, s, depth)
	case "array":
		return a.array(b, s, name, depth)
	case "integer", "number":
		return a.number(b, s)
	case "boolean":
		text := strings.ToLower(a.text)
		negative := strings.Contains(text, "false") || strings.Contains(text, " not ") || strings.Contains(text, "n't ")
		return strconv.AppendBool(b, !negative)
	case "null":
		return append(b, "null"...)
	}
	return appendString(b, a.str(s, name))
}

// resolve follows a local JSON pointer.
func (a *author) resolve(ref string) gjson.Result {
	node := a.root
	for _, step := range strings.Split(strings.TrimPrefix(ref, "#"), "/") {
		if step == "" {
			continue
		}
		step = strings.NewReplacer("~1", "/", "~0", "~").Replace(step)
		next := gjson.Result{}
		node.ForEach(func(k, v gjson.Result) bool {
			if k.String() == step {
				next = v
				return false
			}
			return true
		})
		node = next
	}
	return node
}

// preferred takes the first option that says something; deep down, null.
func (a *author) preferred(options []gjson.Result, depth int) gjson.Result {
	for _, o := range options {
		if (a.typeOf(o) == "null") == (depth > deepest) {
			return o
		}
	}
	return options[0]
}

func (a *author) typeOf(s gjson.Result) string {
	t := s.Get("type")
	if t.IsArray() {
		for _, one := range t.Array() {
			if one.Str != "null" {
				return one.Str
			}
		}
		return "null"
	}
	switch {
	case t.Str != "":
		return t.Str
	case s.Get("properties").Exists(), s.Get("additionalProperties").IsObject(), s.Get("allOf").Exists():
		return "object"
	case s.Get("items").Exists(), s.Get("prefixItems").Exists():
		return "array"
	case s.Get("minimum").Exists(), s.Get("maximum").Exists():
		return "number"
	}
	return ""
}

func (a *author) object(b []byte, s gjson.Result, depth int) []byte {
	b = append(b, '{')
	count := 0
	key := func(k string) {
		if count > 0 {
			b = append(b, ", "...)
		}
		count++
		b = append(appendString(b, k), ": "...)
	}
	done := map[string]bool{}
	for _, part := range append([]gjson.Result{s}, s.Get("allOf").Array()...) {
		if ref := part.Get(`\$ref`); ref.Exists() {
			part = a.resolve(ref.String())
		}
		required := map[string]bool{}
		for _, r := range part.Get("required").Array() {
			required[r.String()] = true
		}
		part.Get("properties").ForEach(func(k, v gjson.Result) bool {
			if name := k.String(); !done[name] && (required[name] || depth < deepest) {
				done[name] = true
				key(name)
				b = a.value(b, v, name, depth+1)
			}
			return true
		})
	}
	extra := s.Get("additionalProperties")
	minimum := int(s.Get("minProperties").Int())
	if extra.IsObject() && depth < deepest && count == 0 {
		minimum = max(minimum, 1)
	}
	for i := count; i < minimum; i++ {
		key("key" + strconv.Itoa(i+1))
		b = a.value(b, extra, "", depth+1)
	}
	return append(b, '}')
}

func (a *author) array(b []byte, s gjson.Result, name string, depth int) []byte {
	b = append(b, '[')
	items, first := s.Get("items"), s.Get("prefixItems").Array()
	n := max(int(s.Get("minItems").Int()), len(first))
	if n == 0 && depth < deepest {
		n = 1
	}
	if v := s.Get("maxItems"); v.Exists() {
		n = min(n, int(v.Int()))
	}
	kind := a.typeOf(items)
	if kind == "integer" || kind == "number" {
		// A list of numbers takes all that the text has.
		n = max(n, len(a.numbers))
		if v := s.Get("maxItems"); v.Exists() {
			n = min(n, int(v.Int()))
		}
	}
	for i := range n {
		if i > 0 {
			b = append(b, ", "...)
		}
		item := items
		if i < len(first) {
			item = first[i]
		}
		b = a.value(b, item, name, depth+1)
	}
	return append(b, ']')
}

// number takes the next number of the text that fits.
func (a *author) number(b []byte, s gjson.Result) []byte {
	integer := a.typeOf(s) == "integer"
	fits := func(x float64) bool {
		if integer && x != float64(int64(x)) {
			return false
		}
		bound := func(name string, bad func(limit float64) bool) bool {
			v := s.Get(name)
			return v.Type == gjson.Number && bad(v.Num)
		}
		step := s.Get("multipleOf").Num
		return !bound("minimum", func(l float64) bool { return x < l }) &&
			!bound("maximum", func(l float64) bool { return x > l }) &&
			!bound("exclusiveMinimum", func(l float64) bool { return x <= l }) &&
			!bound("exclusiveMaximum", func(l float64) bool { return x >= l }) &&
			(step == 0 || x/step == float64(int64(x/step)))
	}
	for i, x := range a.numbers {
		if fits(x) {
			a.numbers = slices.Delete(a.numbers, i, i+1)
			return appendNumber(b, x)
		}
	}
	low := max(s.Get("minimum").Num, s.Get("exclusiveMinimum").Num)
	high := min(s.Get("maximum").Num, s.Get("exclusiveMaximum").Num)
	step := s.Get("multipleOf").Num
	for _, x := range []float64{1, 0, low, low + 1, (low + high) / 2, high, high - 1, low + step, step} {
		if fits(x) {
			return appendNumber(b, x)
		}
	}
	return appendNumber(b, low)
}

func appendNumber(b []byte, x float64) []byte {
	return strconv.AppendFloat(b, x, 'f', -1, 64)
}

func (a *author) str(s gjson.Result, name string) string {
	if v := s.Get("pattern"); v.Exists() {
		return a.matching(v.String())
	}
	switch s.Get("format").String() {
	case "date":
		return "2026-01-15"
	case "date-time":
		return "2026-01-15T09:30:00Z"
	case "time":
		return "09:30:00Z"
	case "email":
		return "someone@example.com"
	case "uuid":
		return "123e4567-e89b-42d3-a456-426614174000"
	case "uri":
		return "https://example.com/"
	case "ipv4":
		return "192.0.2.1"
	}
	text := a.phrase(name)
	minimum := int(s.Get("minLength").Int())
	for utf8.RuneCountInString(text) < minimum {
		text += " and so on"
	}
	if v := s.Get("maxLength"); v.Exists() && utf8.RuneCountInString(text) > int(v.Int()) {
		text = string([]rune(text)[:v.Int()])
	}
	return text
}

// phrase returns the next string the text offers for a property.
func (a *author) phrase(name string) string {
	switch strings.ToLower(name) {
	case "query", "question", "text", "content", "message", "description", "summary", "input":
		if a.text != "" {
			return strings.TrimSpace(string([]rune(a.text)[:min(200, utf8.RuneCountInString(a.text))]))
		}
	}
	if len(a.phrases) > 0 {
		p := a.phrases[0]
		a.phrases = a.phrases[1:]
		return p
	}
	if name == "" {
		return "something"
	}
	return "some " + strings.ReplaceAll(name, "_", " ")
}

// matching returns a string for a pattern: a phrase of the text if one fits.
func (a *author) matching(pattern string) string {
	parsed, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return a.phrase("")
	}
	if re, err := regexp.Compile("^(?:" + pattern + ")$"); err == nil {
		for i, p := range a.phrases {
			if re.MatchString(p) {
				a.phrases = slices.Delete(a.phrases, i, i+1)
				return p
			}
		}
		for _, w := range strings.Fields(a.text) {
			if w = strings.Trim(w, ".,!?"); re.MatchString(w) {
				return w
			}
		}
	}
	return string(appendMatch(nil, parsed))
}

// appendMatch writes the shortest plain string a pattern accepts.
func appendMatch(b []byte, re *syntax.Regexp) []byte {
	switch re.Op {
	case syntax.OpLiteral:
		return append(b, string(re.Rune)...)
	case syntax.OpCharClass:
		return utf8.AppendRune(b, plainRune(re.Rune))
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		return append(b, 'a')
	case syntax.OpCapture, syntax.OpPlus:
		return appendMatch(b, re.Sub[0])
	case syntax.OpRepeat:
		for range re.Min {
			b = appendMatch(b, re.Sub[0])
		}
	case syntax.OpConcat:
		for _, sub := range re.Sub {
			b = appendMatch(b, sub)
		}
	case syntax.OpAlternate:
		return appendMatch(b, re.Sub[0])
	}
	return b
}

// plainRune prefers a letter or digit out of a class given as ranges.
func plainRune(ranges []rune) rune {
	for _, want := range "a1Ax" {
		for i := 0; i+1 < len(ranges); i += 2 {
			if ranges[i] <= want && want <= ranges[i+1] {
				return want
			}
		}
	}
	return ranges[0]
}

// mentioned returns the member of a list that the text names, or the first.
func mentioned(list []gjson.Result, text string) gjson.Result {
	text = strings.ToLower(text)
	for _, v := range list {
		if s := strings.ToLower(v.String()); s != "" && strings.Contains(text, s) {
			return v
		}
	}
	if len(list) == 0 {
		return gjson.Parse("null")
	}
	return list[0]
}

func numbersIn(text string) []float64 {
	var values []float64
	for _, s := range regexp.MustCompile(`-?\d+(?:\.\d+)?`).FindAllString(text, -1) {
		if x, err := json.Number(s).Float64(); err == nil {
			values = append(values, x)
		}
	}
	return values
}

func quotationsIn(text string) []string {
	var quotations []string
	quoted := regexp.MustCompile(`(?:^|[\s(:,，：])(?:"([^"]+)"|'([^']+)')|“([^”]+)”|「([^」]+)」|『([^』]+)』|《([^》]+)》`)
	for _, m := range quoted.FindAllStringSubmatch(text, -1) {
		for _, group := range m[1:] {
			if group != "" {
				quotations = append(quotations, group)
			}
		}
	}
	return quotations
}

// phrasesIn lists what could be a value: quotations, then capitalised names,
// then long words.
func phrasesIn(text string, avoid []string) []string {
	phrases := quotationsIn(text)
	names := regexp.MustCompile(`\p{Lu}[\p{L}\p{N}]*(?:,? \p{Lu}[\p{L}\p{N}]*)*`)
	for _, span := range names.FindAllStringIndex(text, -1) {
		name := text[span[0]:span[1]]
		prefix := strings.TrimRightFunc(text[:span[0]], unicode.IsSpace)
		opens := prefix == "" || strings.ContainsAny(prefix[len(prefix)-1:], ".!?")
		if !opens && len(name) > 1 {
			phrases = append(phrases, name)
		}
	}
	phrases = append(phrases, regexp.MustCompile(`[\p{L}][\p{L}\p{N}_'-]{4,}`).FindAllString(text, -1)...)
	phrases = append(phrases, regexp.MustCompile(`\p{Han}{2,8}`).FindAllString(text, -1)...)
	var kept []string
	for _, p := range phrases {
		if !slices.Contains(avoid, p) && !slices.Contains(kept, p) {
			kept = append(kept, p)
		}
	}
	return kept
}

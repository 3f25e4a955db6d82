package qwen

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"unicode/utf8"
)

// A generator makes texts and conversations that are hard to count. Always valid: what is
// not is for the fuzz tests.
type generator struct {
	*rand.Rand
	tok   *Tokenizer
	marks []rune // combining marks, and what else NFC may change
}

func newGenerator(tok *Tokenizer, seed uint64) *generator {
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 9)), tok: tok}
	for r := range rune(utf8.MaxRune) {
		if utf8.ValidRune(r) && !tok.table.lookup(r).settled() {
			g.marks = append(g.marks, r)
		}
	}
	return g
}

func (g *generator) pick(from ...string) string { return from[g.IntN(len(from))] }

func (g *generator) char() rune {
	for {
		limit := [...]int32{0x80, 0x250, 0x3000, 0x10000, 0x20000, utf8.MaxRune}[g.IntN(6)]
		if r := g.Int32N(limit); utf8.ValidRune(r) {
			return r
		}
	}
}

// text returns up to n fragments one after the other.
func (g *generator) text(n int) string {
	var b strings.Builder
	for range g.IntN(n + 1) {
		g.fragment(&b)
	}
	return b.String()
}

func (g *generator) fragment(b *strings.Builder) {
	repeat := func(s string, most int) { b.WriteString(strings.Repeat(s, 1+g.IntN(most))) }
	switch g.IntN(17) {
	case 0, 1:
		if token := g.tok.token(g.Uint32N(baseTokens)); utf8.Valid(token) {
			b.Write(token)
		}
	case 2:
		b.WriteString(g.pick("the", " quick", "Hello", "naïve", "Bar_baz", "x", " I", "  ", "你好", "，", "北京大学", "ไทย", "हिन्दी", "עברית", "العربية"))
	case 3:
		repeat(g.pick(" ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "\u0085", "\v", "\f", "\u1680", "\x1c", "\u200b", "\ufeff"), 3)
	case 4:
		b.WriteString(g.pick("'", "’", "''") + g.pick("s", "S", "ſ", "t", "T", "re", "RE", "rE", "ve", "VE", "m", "M", "ll", "lL", "LL", "d", "D", "l", "v", "ß", "k", "ŉ"))
	case 5:
		fmt.Fprint(b, g.Uint32N(100000))
	case 6:
		b.WriteString(g.pick("½", "²", "Ⅷ", "٣", "𝟘", "①", "〇", "一"))
	case 7:
		b.WriteString(addedTokens()[g.IntN(len(addedTokens()))])
	case 8:
		b.WriteString(g.pick("<", "<|", "<|im_", "<|im_end|", "</", "<think", "<think >", "</think>\n", "\n<think>\n", ">", "|>", "<tool_response>", "</tool_response>"))
	case 9:
		for range 1 + g.IntN(4) {
			b.WriteRune(g.char())
		}
	case 10:
		b.WriteString(g.pick("a", "e", "A", "<", ">", "=", "か", "ক", "Ω", "s", " "))
		for range 1 + g.IntN(4) {
			b.WriteRune(g.marks[g.IntN(len(g.marks))])
		}
	case 11:
		for range g.IntN(3) * 25 { // beyond the 30 marks after which x/text cuts
			b.WriteRune(g.marks[g.IntN(len(g.marks))])
		}
	case 12:
		b.WriteRune(0xac00 + g.Int32N(hangulCount))
		b.WriteRune(leadBase + g.Int32N(leadCount+2))
		b.WriteRune(vowelBase - 1 + g.Int32N(vowelCount+2))
		b.WriteRune(tailBase + g.Int32N(tailCount+2))
	case 13:
		b.WriteString(g.pick("👩‍👩‍👧", "🏽", "🇩🇪", "❤️", "😀"))
	case 14:
		repeat(g.pick("a", "=", "-", "ab", "!", "ha", "哈", ".", "_", "/"), 70)
	case 15:
		b.WriteString(g.pick(".", "...", "!?", "-", "()", "{};", "\"", "\\", "://", "e.g.", "*", "#"))
	default:
		for range 1 + g.IntN(8) {
			b.WriteByte(byte('a' + g.IntN(26)))
		}
	}
}

// quoted returns s as JSON, with more escapes than needed now and then.
func (g *generator) quoted(s string) string {
	if g.IntN(4) > 0 {
		return string(appendPythonString(nil, []byte(s)))
	}
	out, _ := json.Marshal(s) // escapes <, > and & as well
	return string(out)
}

func (g *generator) space() string { return g.pick("", "", "", " ", "\n  ") }

// value returns any JSON value, with keys repeated now and then.
func (g *generator) value(depth int) string {
	kind := g.IntN(9)
	if depth <= 0 {
		kind %= 6
	}
	switch kind {
	case 0:
		return g.pick("true", "false", "null")
	case 1:
		return g.pick("0", "-0", "1", "-17", "123456789012345678901234567890", "9007199254740993")
	case 2:
		return g.pick("1.0", "-0.0", "1e5", "1E+16", "1e15", "123456.789e3", "1e-7", "0.0001", "0.00001", "5e-324", "1.7976931348623157e308", "1e400", "0.1", "2.50")
	case 3:
		return fmt.Sprint(g.NormFloat64())
	case 4, 5:
		return g.quoted(g.text(3))
	case 6:
		var items []string
		for range g.IntN(4) {
			items = append(items, g.space()+g.value(depth-1))
		}
		return "[" + strings.Join(items, ",") + g.space() + "]"
	}
	return g.object(depth, g.pick("2", "3", "30")[0]-'0')
}

func (g *generator) object(depth int, most byte) string {
	var items []string
	for range g.IntN(int(most) + 1) {
		key := g.pick("a", "b", "name", "type", "é", "properties", g.text(1))
		items = append(items, g.space()+g.quoted(key)+g.space()+":"+g.space()+g.value(depth-1))
	}
	return "{" + strings.Join(items, ",") + g.space() + "}"
}

// messages returns a messages array of up to n messages.
func (g *generator) messages(n int) string {
	items := make([]string, 1+g.IntN(n))
	for i := range items {
		items[i] = g.space() + g.message()
	}
	return "[" + strings.Join(items, ",") + g.space() + "]"
}

func (g *generator) message() string {
	role := g.pick("user", "user", "assistant", "assistant", "assistant", "tool", "tool", "system", "developer")
	fields := []string{`"role":` + g.quoted(role), `"content":` + g.content(role)}
	if role == "assistant" {
		if g.IntN(4) == 0 {
			fields[1] = `"content":` + g.pick("null", `""`)
		}
		if g.IntN(3) == 0 {
			fields = append(fields, g.pick(`"reasoning":`, `"reasoning_content":`)+g.pick("null", `""`, g.quoted(g.text(3)), g.quoted("\n"+g.text(3)+"\n")))
		}
		if g.IntN(3) == 0 {
			fields = append(fields, `"tool_calls":`+g.calls())
		}
	}
	if g.IntN(8) == 0 {
		fields = append(fields, g.pick(`"name":"x"`, `"tool_call_id":"c1"`, `"role":"`+role+`"`))
	}
	g.Shuffle(len(fields), func(i, j int) { fields[i], fields[j] = fields[j], fields[i] })
	return "{" + g.space() + strings.Join(fields, ","+g.space()) + "}"
}

func (g *generator) content(role string) string {
	text := g.text(5)
	switch g.IntN(8) {
	case 0:
		return "null"
	case 1:
		var parts []string
		for range g.IntN(4) {
			parts = append(parts, g.pick(
				g.quoted(g.text(2)), `{"type":"text","text":`+g.quoted(g.text(2))+`}`, `{"text":"","type":"text"}`,
				`{"type":"input_text","text":`+g.quoted(g.text(1))+`}`, `{"type":"refusal","refusal":`+g.quoted(g.text(1))+`}`))
		}
		return "[" + strings.Join(parts, ",") + "]"
	case 2:
		if role == "user" {
			text = "<tool_response>" + text + g.pick("</tool_response>", "")
		}
	case 3, 4:
		if role == "assistant" {
			text = g.pick("<think>", "", "<think>\n", "x<think>") + g.text(3) + g.pick("\n\n", "") + "</think>" + g.pick("\n\n", "", "</think>\n") + text
		}
	}
	return g.quoted(text)
}

func (g *generator) calls() string {
	var calls []string
	for range g.IntN(3) {
		arguments := g.object(2, 3)
		switch g.IntN(6) {
		case 0, 1, 2:
			arguments = g.quoted(arguments)
		case 3:
			arguments = g.quoted(g.pick("", "{broken", g.text(2), "[1,2]", " {} ", "null", "5", `"str"`, "NaN", "{\"a\":NaN}"))
		}
		function := `{"name":` + g.quoted(g.text(1)) + `,"arguments":` + arguments + `}`
		calls = append(calls, g.pick(`{"id":"c1","type":"function","function":`+function+`}`, `{"function":`+function+`}`, function))
	}
	return "[" + strings.Join(calls, ",") + "]"
}

// tools returns a tools array, or "".
func (g *generator) tools() string {
	if g.IntN(2) == 0 {
		return ""
	}
	tools := make([]string, g.IntN(3))
	for i := range tools {
		fields := []string{`"name":` + g.quoted(g.text(1))}
		for _, field := range []string{`"description":` + g.quoted(g.text(2)), `"parameters":` + g.object(3, 3), `"strict":true`, `"x":` + g.value(1)} {
			if g.IntN(2) == 0 {
				fields = append(fields, field)
			}
		}
		g.Shuffle(len(fields), func(i, j int) { fields[i], fields[j] = fields[j], fields[i] })
		tools[i] = `{"function":{` + strings.Join(fields, ",") + `}`
		if g.IntN(4) > 0 {
			tools[i] += `,"type":"function"`
		}
		if g.IntN(4) == 0 {
			tools[i] += `,"extra":` + g.value(1)
		}
		tools[i] += "}"
	}
	return "[" + strings.Join(tools, ",") + "]"
}

// chat returns a conversation of up to n messages.
func (g *generator) chat(n int) Chat {
	chat := Chat{
		Messages: []byte(g.messages(n)), Tools: []byte(g.tools()),
		NoThinking: g.IntN(3) == 0, NoGenerationPrompt: g.IntN(4) == 0, Dialect: []Dialect{Template, V12}[g.IntN(2)],
	}
	if _, err := Render(chat); err != nil { // arguments that are no JSON
		chat.Dialect = Template
	}
	return chat
}

package gateway

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidegate/gateway/backend"
	"tidegate/gateway/openai"
	"tidegate/gateway/qwen"
)

// hostileSize is the size of a hostile body in bytes.
const hostileSize = 512 << 10

// escaped spells a name with a \u escape for each of its letters.
func escaped(name string) string {
	var b strings.Builder
	for _, r := range name {
		fmt.Fprintf(&b, `\u%04x`, r)
	}
	return b.String()
}

// fill repeats what item makes until size bytes are reached, with commas between.
func fill(size int, item func(i int) string) string {
	var b strings.Builder
	for i := 0; b.Len() < size; i++ {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(item(i))
	}
	return b.String()
}

// ordinaryBody is a chat as people write it: the project's own pages, in messages.
func ordinaryBody(t testing.TB) []byte {
	t.Helper()
	names, err := filepath.Glob("../docs/*.md")
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	var b bytes.Buffer
	b.WriteString(`{"model":"m","stream":true,"temperature":0.7,"max_tokens":256,"messages":[`)
	role := "user"
	for turn := 0; b.Len() < hostileSize; turn++ {
		text, err := os.ReadFile(names[turn%len(names)])
		if err != nil {
			t.Fatal(err)
		}
		for part := range slices.Chunk(bytes.ToValidUTF8(text, nil), 2000) {
			if b.Bytes()[b.Len()-1] != '[' {
				b.WriteByte(',')
			}
			b.WriteString(`{"role":"` + role + `","content":`)
			b.Write(quotedText(string(bytes.ToValidUTF8(part, nil))))
			b.WriteByte('}')
			role = map[string]string{"user": "assistant", "assistant": "user"}[role]
		}
	}
	b.WriteString(`,{"role":"user","content":"And now?"}]}`)
	return b.Bytes()
}

// quotedText is a JSON string.
func quotedText(s string) []byte {
	b := []byte{'"'}
	for _, c := range []byte(s) {
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < ' ':
			b = fmt.Appendf(b, `\u%04x`, c)
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}

// hostileBodies are bodies made to be slow to read, each of about size bytes.
func hostileBodies(size int) map[string][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	bodies := map[string][]byte{}
	const head = `{"model":"m","messages":[{"role":"user","content":"hi"}]`
	add := func(name, body string) { bodies[name] = []byte(body) }
	chat := func(name, more string) { add(name, head+","+more+"}") }
	content := func(name, text string) {
		add(name, `{"model":"m","messages":[{"role":"user","content":"`+text+`"}]}`)
	}
	messages := func(name, list string) { add(name, `{"model":"m","messages":[`+list+`]}`) }
	prompt := func(name, raw string) { add("completion: "+name, `{"model":"m","prompt":`+raw+`}`) }
	repeat := func(s string) string { return strings.Repeat(s, max(size/len(s), 1)) }
	random := func(from, count rune) string {
		var b strings.Builder
		for b.Len() < size {
			b.WriteRune(from + r.Int32N(count))
		}
		return b.String()
	}

	// Names.
	const names = 240
	long := escaped(strings.Repeat("n", size/names/6))
	chat("names: 240 long escaped", strings.TrimPrefix(fill(size, func(i int) string { return fmt.Sprintf(`"%s\u%04x":1`, long, i) }), ","))
	short := escaped(strings.Repeat("n", 40))
	chat("names: 250 escaped, then a long value", fill(250*250, func(i int) string { return fmt.Sprintf(`"%s\u%04x":1`, short, i) })+`,"x":"`+repeat("a ")+`"`)
	chat("names: 256 with one beginning", fill(240*258, func(i int) string { return fmt.Sprintf(`"%s%03d":1`, strings.Repeat("n", 250), i) }))
	chat("names: of extra_body", `"extra_body":{`+fill(250*250, func(i int) string { return fmt.Sprintf(`"%s\u%04x":1`, short, i) })+`}`)
	member := func(i int) string { return fmt.Sprintf(`"%s%d":1`, escaped("enable_thinkin"), i) }
	for _, name := range []string{"chat_template_kwargs", "structured_outputs", "response_format", "tool_choice", "reasoning", "thinking", "metadata", "logit_bias"} {
		kind := ""
		if name == "thinking" {
			kind = `"type":"enabled",`
		}
		chat("names: in "+name, `"`+name+`":{`+kind+fill(size, member)+`}`)
	}
	chat("names: in stream_options", `"stream":true,"stream_options":{`+fill(size, member)+`}`)
	messages("names: in one message", `{"role":"user","content":"hi",`+fill(size, member)+`}`)
	messages("names: escaped in all messages", fill(size, func(int) string {
		return fmt.Sprintf(`{"%s":"user","%s":"hi"}`, escaped("role"), escaped("content"))
	}))
	chat("names: in a tool", `"tools":[{"type":"function","function":{"name":"f",`+fill(size, member)+`}}]`)
	chat("names: the same in a tool", `"tools":[{"type":"function","function":{"name":"f","parameters":{`+fill(size, func(int) string { return `"a":1` })+`}}}]`)
	same := func(depth int, begin, end string) string {
		return strings.Repeat(begin, depth) + `"` + repeat("a ") + `"` + strings.Repeat(end, depth)
	}
	chat("names: the same at each depth", `"tools":[{"type":"function","function":{"name":"f","parameters":`+same(190, `{"a":0,"a":`, `}`)+`}}]`)
	chat("names: the same around each depth", `"tools":[{"type":"function","function":{"name":"f","parameters":`+same(190, `{"a":0,"b":`, `,"a":1}`)+`}}]`)
	messages("names: the same in arguments", `{"role":"assistant","tool_calls":[{"name":"f","arguments":`+string(quotedText(same(500, `{"a":0,"b":`, `,"a":1}`)))+`}]}`)

	// Structure.
	deep := strings.Repeat("[", 180) + strings.Repeat("]", 180)
	chat("deep arrays", `"metadata":[`+fill(size, func(int) string { return deep })+`]`)
	chat("deep arrays in a tool", `"tools":[{"type":"function","function":{"name":"f","parameters":[`+fill(size, func(int) string { return deep })+`]}}]`)
	chat("small arrays in a tool", `"tools":[{"type":"function","function":{"name":"f","parameters":[`+fill(size, func(int) string { return "[]" })+`]}}]`)
	chat("numbers in a tool", `"tools":[{"type":"function","function":{"name":"f","parameters":[`+fill(size, func(int) string { return "1e9" })+`]}}]`)
	chat("long numbers in a tool", `"tools":[{"type":"function","function":{"name":"f","parameters":[`+fill(size, func(int) string { return "1e15" })+`]}}]`)
	chat("a huge number in a tool", `"tools":[{"type":"function","function":{"name":"f","parameters":0.`+repeat("7")+`}}]`)
	chat("a huge max_tokens", `"max_tokens":1`+repeat("0"))
	chat("tools", `"tools":[`+fill(size, func(i int) string {
		return fmt.Sprintf(`{"type":"function","function":{"name":"f%d"}}`, i)
	})+`]`)
	chat("smallest tools", `"tools":[`+fill(size, func(int) string { return `{"function":{"name":""}}` })+`]`)
	chat("stop strings", `"stop":[`+fill(size, func(int) string { return `"a"` })+`]`)
	chat("bad words", `"bad_words":[`+fill(size, func(int) string { return `"a"` })+`]`)
	chat("token lists", `"stop_token_ids":[`+fill(size, func(int) string { return `1` })+`]`)
	chat("logit_bias", `"logit_bias":{`+fill(size, func(i int) string { return fmt.Sprintf(`"%d":1`, i) })+`}`)
	chat("white space", `"x":1`+repeat(" \n\t"))
	messages("messages", fill(size, func(int) string { return `{"role":"user","content":""}` }))
	messages("smallest messages", fill(size, func(int) string { return `{"role":""}` }))
	messages("tool results", fill(size, func(int) string { return `{"role":"tool"}` }))
	messages("assistants", fill(size, func(int) string { return `{"role":"assistant"}` }))
	messages("thoughts", fill(size, func(int) string { return `{"role":"assistant","content":"</think>"}` }))
	messages("developers", fill(size, func(int) string { return `{"role":"developer"}` }))
	messages("wrong messages", fill(size, func(int) string { return "1" }))
	messages("parts", `{"role":"user","content":[`+fill(size, func(int) string { return `{"type":"text","text":"a"}` })+`]}`)
	messages("parts that are strings", `{"role":"user","content":[`+fill(size, func(int) string { return `"a"` })+`]}`)
	messages("parts that are numbers", `{"role":"user","content":[`+fill(size, func(int) string { return `1` })+`]}`)
	messages("tool calls", `{"role":"assistant","tool_calls":[`+fill(size, func(int) string { return `{"name":"f"}` })+`]}`)
	messages("arguments in arguments", `{"role":"assistant","tool_calls":[{"name":"f","arguments":"{`+
		fill(size, func(int) string { return `\"a\":1` })+`}"}]}`)
	messages("not quite JSON arguments", `{"role":"assistant","tool_calls":[`+fill(size, func(int) string { return `{"name":"f","arguments":"[[[[[[[[["}` })+`]}`)
	prompt("token ids", `[`+fill(size, func(int) string { return "1" })+`]`)
	prompt("lists of token ids", `[`+fill(size, func(int) string { return "[1]" })+`]`)
	prompt("texts", `[`+fill(size, func(int) string { return `""` })+`]`)
	prompt("texts and lists", `[`+fill(size, func(int) string { return `"",[1]` })+`]`)
	prompt("empty lists", `[`+fill(size, func(int) string { return `[]` })+`]`)
	prompt("deep", `[`+fill(size, func(int) string { return deep })+`]`)

	// Text.
	content("text: escapes of letters", repeat(`\u0061`))
	content("text: escaped quotes", repeat(`\"`))
	content("text: escaped backslashes", repeat(`\\`))
	content("text: surrogates", repeat(`\ud83d\ude00`))
	content("text: half surrogates", repeat(`\ud83d`))
	for name, s := range map[string]string{
		"one letter": repeat("a"), "random letters": random('a', 26), "capitals": random('A', 26), "spaces": repeat(" ") + "x",
		"spaces and lines": repeat(`\n   \t   `), "equals signs": repeat("="), "slashes": repeat("/"), "dashes": repeat("-"), "words of slashes": repeat("//////////// a"), "emoji": repeat("👩‍👩‍👧🏽"), "han": random(0x4e00, 0x5000),
		"rare han": random(0x20000, 0xa000), "marks": "a" + random(0x300, 0x50), "marks not in order": "a" + repeat("\u0301\u0323"),
		"jamo": repeat("\u1112\u1161\u11ab"), "hangul": random(0xac00, 11172), "angle brackets": repeat("<|im_<"), "smaller signs": repeat("<"),
		"almost tokens": repeat("</think"), "added tokens": repeat("<think>"), "digits": repeat("0123456789"), "apostrophes": repeat("'"),
		"punctuation": random('#', 14), "ascii": strings.NewReplacer(`"`, "x", `\`, "y").Replace(random(' ', 95)),
		"cyrillic": random(0x400, 0x100), "composed": random(0xc0, 0x180), "decomposed": repeat("e\u0301"), "compatibility": random(0xf900, 0x100),
		"devanagari": random(0x900, 0x80), "private": random(0xe000, 0x1900), "mathematical": random(0x1d400, 0x3ff),
	} {
		content("text: "+name, s)
	}
	return bodies
}

// reader is a gateway that reads bodies and sends none: its model has a server that
// nobody asks, and it remembers no message.
func reader(t testing.TB) *Gateway {
	t.Helper()
	g, _ := bare(t, func(c *Config) { c.MaxBody = 64 << 20 })
	m := backend.DefaultModel()
	m.Name, m.Backends = "m", []backend.Config{{URL: "http://127.0.0.1:1"}}
	g.Fleet.Apply([]backend.ModelConfig{m})
	g.Counter = qwen.NewCounter(g.Tokenizer, 0)
	return g
}

// readWhole does all that is done with a body until it is sent, and on every level.
func readWhole(g *Gateway, body []byte) (*call, error) {
	kind := openai.Chat
	if bytes.Contains(body[:min(len(body), 64)], []byte(`"prompt":`)) {
		kind = openai.Completions
	}
	r := httptest.NewRequest("POST", path(kind), bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	c := &call{w: deadlines{httptest.NewRecorder()}, r: r, set: g.settings.Load(), id: "a", kind: kind, began: time.Now()}
	if err := g.parse(c); err != nil {
		return c, err
	}
	_ = g.demand(c)
	_ = c.body.Needs()
	_ = openai.Language("", c.body, []string{"en", "zh"})
	_ = c.body.Whole(100)
	_ = c.body.StopThinking()
	_ = c.bodyFor(c.model.Backends[0])
	return c, nil
}

// TestHostileBodies: each is answered or refused, and by no fault of ours.
func TestHostileBodies(t *testing.T) {
	g := reader(t)
	for name, body := range hostileBodies(4 << 10) {
		_, err := readWhole(g, body)
		if err == nil {
			continue
		}
		if r := g.explain(&call{}, err); r.status != 400 {
			t.Errorf("%s: %d, %v", name, r.status, err)
		}
	}
	if _, err := readWhole(g, ordinaryBody(t)); err != nil {
		t.Error(err)
	}
}

// TestHostileWork: no body makes us decode or copy many times what an ordinary chat of
// the same size does, counted in bytes allocated for each byte of it. A name that is
// decoded whenever it is looked for took 600. The tokenizer's own steps are counted where
// it is tested.
func TestHostileWork(t *testing.T) {
	g := reader(t)
	perByte := func(body []byte) float64 {
		_, _ = readWhole(g, body) // what is kept for the next one
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _ = readWhole(g, body)
		runtime.ReadMemStats(&after)
		return float64(after.TotalAlloc-before.TotalAlloc) / float64(len(body))
	}
	usual := perByte(ordinaryBody(t))
	for name, body := range hostileBodies(64 << 10) {
		if n := perByte(body); n > 8*usual {
			t.Errorf("%s: %.1f bytes allocated for each byte, and %.1f of an ordinary chat", name, n, usual)
		} else {
			t.Logf("%s: %.1f", name, n)
		}
	}
	t.Logf("ordinary: %.1f", usual)
}

// cpuTime is what the process has used of the processor's time so far.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkHostileBodies shows what a megabyte of each hostile body costs of the
// processor's time, from its first byte until it could be sent, and how many times
// that of an ordinary chat, which is measured anew beside each.
func BenchmarkHostileBodies(b *testing.B) {
	g := reader(b)
	ordinary := ordinaryBody(b)
	perMB := func(body []byte, n int) float64 {
		from := cpuTime(b)
		for range n {
			_, _ = readWhole(g, body)
		}
		return float64(cpuTime(b)-from) / 1e6 / float64(n) / float64(len(body)) * (1 << 20)
	}
	bodies := hostileBodies(hostileSize)
	bodies["ordinary"] = ordinary
	for _, name := range slices.Sorted(maps.Keys(bodies)) {
		b.Run(strings.ReplaceAll(name, " ", "_"), func(b *testing.B) {
			usual := perMB(ordinary, 8)
			hostile := perMB(bodies[name], b.N)
			b.ReportMetric(hostile, "cpu-ms/MB")
			b.ReportMetric(hostile/usual, "x-ordinary")
			b.ReportMetric(0, "ns/op")
		})
	}
}

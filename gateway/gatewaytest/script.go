package gatewaytest

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"unicode/utf8"

	"tidegate/gateway/qwen"
)

// Tokens of Qwen3 that the script needs by id.
const (
	endOfTurn  = 151645 // <|im_end|>, the EOS; hidden from the text
	thinkEnd   = 151668 // </think>
	thinkFrame = 4      // <think> \n ... \n </think>
	emptyThink = 3      // <think> \n\n </think>
)

// script is one choice decided beforehand: its tokens, how much text may be
// shown after each of them, what that text is, and why it ends.
type script struct {
	ids       []uint32
	text      string
	shown     []int32 // length of the text that may be out after each token
	segments  []segment
	finish    string
	stopped   string // the stop string that was met
	reasoning int    // tokens up to and including </think>
	called    int    // tools called
}

// segment is a stretch of the text and what it is on the wire.
type segment struct {
	kind       segmentKind
	start, end int
	call       int
}

type segmentKind int

const (
	content segmentKind = iota
	mark                // markup that a parser swallows
	thought
	toolName
	toolArgs
)

// writer builds a script.
type writer struct {
	tokenizer *qwen.Tokenizer
	ids       []uint32
	text      []byte
	segments  []segment
	reasoning int
}

func (w *writer) add(kind segmentKind, call int, text string) {
	w.addIDs(kind, call, w.tokenizer.Append(nil, text))
}

func (w *writer) addIDs(kind segmentKind, call int, ids []uint32) {
	start := len(w.text)
	for _, id := range ids {
		w.ids = append(w.ids, id)
		w.text = w.tokenizer.AppendToken(w.text, id)
	}
	w.segments = append(w.segments, segment{kind, start, len(w.text), call})
}

// write decides one choice of a request.
func (s *Server) write(c *call, prompt []uint32, choice int) *script {
	seed := saltOf(c.talk.user) ^ uint64(len(prompt))<<32 ^ uint64(choice)
	rng := rand.New(rand.NewPCG(s.options.Seed, seed))
	w := &writer{tokenizer: s.tokenizer}
	calls := c.calls()
	bound := len(calls) > 0 && c.choice != "auto" || c.format.kind != ""
	parser := s.options.ReasoningParser != ""
	// Without a parser the grammar of a bound answer begins at the first token.
	thinks := c.chat && c.thinking && (parser || !bound)
	total, think := s.lengths(c, thinks, rng)
	if thinks {
		s.writeThinking(w, c, think, rng)
	}
	lead := ""
	if thinks && !bound {
		lead = "\n\n"
	}
	switch {
	case len(calls) > 0:
		s.writeCalls(w, c, calls, lead)
	case c.format.kind != "":
		w.add(content, 0, c.formatted())
	case c.script.hasText:
		w.add(content, 0, lead+c.script.text)
	default:
		w.add(content, 0, lead)
		s.writeText(w, c, total, rng)
	}
	if !parser {
		w.plain()
	}
	return s.end(w, c, len(calls))
}

// lengths draws how long the answer and its thinking are; a total of 0 means
// "about so many, to the end of a sentence", given as a negative number.
func (s *Server) lengths(c *call, thinks bool, rng *rand.Rand) (total, think int) {
	total = c.script.tokens
	if total == 0 {
		total = s.engine.tokens()
	}
	if c.ignoreEOS {
		total = c.max + 1
	}
	think = c.script.thinking
	switch {
	case c.script.answer > 0:
		if think < 0 {
			think = 2 * c.script.answer
		}
	case total == 0:
		total = -min(500, 15+int(rng.ExpFloat64()*60))
		if think < 0 {
			think = thinkFrame + min(400, 20+int(rng.ExpFloat64()*60))
		}
	case think < 0:
		think = max(emptyThink, total/3)
	}
	if c.talk.noThink {
		think = emptyThink
	}
	if c.script.answer > 0 {
		total = c.script.answer
		if thinks {
			total += think
		}
	}
	// What lies beyond the limit is cut anyway.
	return min(total, c.max+1), min(think, c.max+1)
}

// writeThinking writes the think block.
func (s *Server) writeThinking(w *writer, c *call, think int, rng *rand.Rand) {
	if c.budget >= 0 {
		think = min(think, c.budget+thinkFrame)
	}
	w.add(mark, 0, "<think>")
	if think <= thinkFrame {
		w.add(thought, 0, "\n\n")
	} else {
		w.add(thought, 0, "\n")
		w.addIDs(thought, 0, s.filler.exactly(true, hasHan(c.talk.user), think-thinkFrame, rng))
		w.add(thought, 0, "\n")
	}
	w.add(mark, 0, "</think>")
	w.reasoning = len(w.ids)
}

func (s *Server) writeText(w *writer, c *call, total int, rng *rand.Rand) {
	han := hasHan(c.talk.user)
	if total < 0 {
		w.addIDs(content, 0, s.filler.roughly(han, -total, rng))
		return
	}
	if n := total - len(w.ids) - 1; n > 0 {
		w.addIDs(content, 0, s.filler.exactly(false, han, n, rng))
	}
}

// writeCalls writes tool calls: hermes markup under auto, the JSON of the
// guided grammar when a call was demanded.
func (s *Server) writeCalls(w *writer, c *call, calls []tool, lead string) {
	if c.choice == "auto" && lead != "" {
		// Swallowed: LangChain's v1 content cannot take blank text before a call.
		w.add(mark, 0, lead)
	}
	for i, t := range calls {
		arguments := instance(t.parameters, c.talk.user, c.names())
		switch c.choice {
		case "named":
			w.segments = append(w.segments, segment{toolName, len(w.text), len(w.text), i})
			w.add(toolArgs, i, arguments)
		case "required":
			w.add(mark, 0, []string{`[{"name": "`, `, {"name": "`}[min(i, 1)])
			w.add(toolName, i, t.name)
			w.add(mark, 0, `", "parameters": `)
			w.add(toolArgs, i, arguments)
			w.add(mark, 0, "}")
		default:
			w.add(mark, 0, "<tool_call>")
			w.add(mark, 0, "\n{\"name\": \"")
			w.add(toolName, i, t.name)
			w.add(mark, 0, `", "arguments": `)
			w.add(toolArgs, i, arguments)
			w.add(mark, 0, "}\n")
			w.add(mark, 0, "</tool_call>")
		}
	}
	if c.choice == "required" {
		w.add(mark, 0, "]")
	}
}

// names returns the tools' names, which a string argument should not be.
func (c *call) names() []string {
	var names []string
	for _, t := range c.tools {
		names = append(names, t.name)
	}
	return names
}

// plain shows the think block as text: there is no parser to take it out.
func (w *writer) plain() {
	end := -1
	for i, g := range w.segments {
		if g.kind == thought {
			end = i + 1
		}
	}
	for i := 0; i <= end; i++ {
		w.segments[i].kind = content
	}
	w.reasoning = 0
}

// end closes the script with EOS, a stop string or the limit.
func (s *Server) end(w *writer, c *call, called int) *script {
	sc := &script{finish: "stop", reasoning: w.reasoning, called: called}
	if called > 0 && c.choice != "named" {
		sc.finish = "tool_calls"
	}
	w.ids = append(w.ids, endOfTurn)
	lengths := make([]int32, 0, len(w.ids))
	n := 0
	var scratch []byte
	for _, id := range w.ids[:len(w.ids)-1] {
		scratch = s.tokenizer.AppendToken(scratch[:0], id)
		n += len(scratch)
		lengths = append(lengths, int32(n))
	}
	lengths = append(lengths, int32(n))
	text := string(w.text)
	if start, end, stop := firstStop(text, c.stops); stop != "" {
		last := tokenReaching(lengths, end)
		if last+1 >= c.min && last < len(w.ids)-1 {
			w.ids, lengths = w.ids[:last+1], lengths[:last+1]
			text, sc.stopped, sc.finish = text[:start], stop, "stop"
			if c.keepStop {
				text = string(w.text[:end])
			}
		}
	}
	if len(w.ids) > c.max {
		w.ids, lengths = w.ids[:c.max], lengths[:c.max]
		text = text[:min(len(text), int(lengths[c.max-1]))]
		sc.finish, sc.stopped = "length", ""
	}
	sc.ids, sc.text, sc.segments = w.ids, text, w.segments
	sc.reasoning = min(sc.reasoning, len(sc.ids))
	sc.shown = holdBack(text, lengths, c.stops, c.keepStop)
	return sc
}

// firstStop finds the stop string that is complete first.
func firstStop(text string, stops []string) (start, end int, stop string) {
	end = len(text) + 1
	for _, s := range stops {
		if i := strings.Index(text, s); s != "" && i >= 0 && i+len(s) < end {
			start, end, stop = i, i+len(s), s
		}
	}
	return start, end, stop
}

func tokenReaching(lengths []int32, end int) int {
	for i, n := range lengths {
		if int(n) >= end {
			return i
		}
	}
	return len(lengths) - 1
}

// holdBack keeps half characters, and the characters that may turn out to be
// a stop string, until the end.
func holdBack(text string, lengths []int32, stops []string, keep bool) []int32 {
	hold := 0
	for _, s := range stops {
		if !keep {
			hold = max(hold, len(s)-1)
		}
	}
	for i := range lengths {
		n := min(int(lengths[i]), len(text))
		if i < len(lengths)-1 {
			n = max(0, n-hold)
			for n > 0 && n < len(text) && !utf8.RuneStart(text[n]) {
				n--
			}
		} else {
			n = len(text)
		}
		lengths[i] = int32(n)
	}
	return lengths
}

// reasoningAt returns the number of reasoning tokens among the first n.
func (sc *script) reasoningAt(n int) int { return min(n, sc.reasoning) }

// thinkClosed reports whether the think block was closed before the cut.
func (sc *script) thinkClosed() bool {
	for _, id := range sc.ids {
		if id == thinkEnd {
			return true
		}
	}
	return false
}

// toolDelta is a piece of one tool call.
type toolDelta struct {
	call int
	name bool // the call begins here
	args string
}

// piece is the part of an answer between two points of its text.
type piece struct {
	reasoning, content string
	tools              []toolDelta
}

func (p piece) empty() bool { return p.reasoning == "" && p.content == "" && len(p.tools) == 0 }

// slice returns the part of the answer between two lengths of the visible text.
func (sc *script) slice(start, end int) piece {
	var p piece
	for _, g := range sc.segments {
		if g.kind == toolName {
			// An empty name (named choice) begins with the first of its arguments.
			begins := g.end > start && g.end <= end
			if g.start == g.end {
				begins = g.end >= start && g.end < end
			}
			if begins {
				p.tools = append(p.tools, toolDelta{call: g.call, name: true})
			}
			continue
		}
		x, y := max(start, g.start), min(end, g.end)
		if x >= y || g.kind == mark {
			continue
		}
		t := sc.text[x:y]
		switch g.kind {
		case thought:
			p.reasoning += t
		case content:
			p.content += t
		case toolArgs:
			p.tools = append(p.tools, toolDelta{call: g.call, args: t})
		}
	}
	return p
}

// fillers are sentences already tokenised, so that a long answer costs a copy.
type fillers struct {
	sentences map[string][][]uint32
}

func newFillers(t *qwen.Tokenizer) fillers {
	f := fillers{map[string][][]uint32{}}
	for name, text := range prose() {
		for _, sentence := range strings.Split(text, "|") {
			f.sentences[name] = append(f.sentences[name], t.Append(nil, sentence))
		}
	}
	return f
}

func (f fillers) sentencesFor(thinking, han bool) [][]uint32 {
	return f.sentences[fmt.Sprintf("think=%t han=%t", thinking, han)]
}

// exactly returns n tokens and cuts the last sentence.
func (f fillers) exactly(thinking, han bool, n int, rng *rand.Rand) []uint32 {
	sentences := f.sentencesFor(thinking, han)
	ids := make([]uint32, 0, n+64)
	for i := rng.IntN(len(sentences)); len(ids) < n; i++ {
		ids = append(ids, sentences[i%len(sentences)]...)
	}
	return ids[:n]
}

// roughly returns at least n tokens, to the end of a sentence.
func (f fillers) roughly(han bool, n int, rng *rand.Rand) []uint32 {
	sentences := f.sentencesFor(false, han)
	var ids []uint32
	for i := rng.IntN(len(sentences)); len(ids) < n; i++ {
		ids = append(ids, sentences[i%len(sentences)]...)
	}
	return ids
}

// prose holds the sentences of the simulator, parted by "|".
func prose() map[string]string {
	return map[string]string{
		"think=false han=false": "A shared server works best when every request is small and clear. |" +
			"The first token takes longest, because the whole prompt has to be read before anything can be said. |" +
			"After that the answer grows one token at a time, at a steady pace. |" +
			"When many people ask at once, the requests are put into one batch and share the same pass over the weights. |" +
			"Memory is the real limit: each open answer keeps its keys and values until it is finished. |" +
			"A short pause in the stream is normal and does not mean that anything was lost. |" +
			"If the answer is no longer needed, closing the connection frees its place at once. |" +
			"It helps to set a limit on the length, so that the time can be foreseen. |" +
			"In the evening the load falls, and long jobs can run without disturbing anyone. |" +
			"That is the idea in short, and the details follow from it. ",
		"think=true han=false": "The question has to be read carefully before it is answered. |" +
			"First I should find out what is really being asked. |" +
			"There are two ways to go about it, and the simpler one is probably enough. |" +
			"Let me check the numbers once more to be sure. |" +
			"I should keep the answer short and give one example. |" +
			"Wait, there may be a case I have not considered yet. |" +
			"It does not change the result, so the plan holds. ",
		"think=false han=true": "共享的推理服务要让每个请求都清楚而简短。|" +
			"第一个词最慢，因为模型必须先读完整个提示。|" +
			"之后答案会一个词一个词地稳定输出。|" +
			"同时提问的人很多时，请求会被合并成一个批次一起计算。|" +
			"真正的限制是显存，每个未完成的回答都要保存自己的键和值。|" +
			"流中短暂的停顿是正常的，并不表示内容丢失。|" +
			"如果不再需要回答，关闭连接就会立即释放资源。|" +
			"到了晚上负载下降，较长的任务就可以安静地运行。",
		"think=true han=true": "首先要弄清楚用户真正想问什么。|" +
			"有两种办法可以回答，简单的那一种应该就够了。|" +
			"我再核对一下数字，确认没有错误。|" +
			"等一下，可能还有一种情况没有考虑到。|" +
			"这并不影响结论，所以可以开始回答了。",
	}
}

func hasHan(s string) bool {
	for _, r := range s {
		if r >= 0x4E00 && r <= 0x9FFF {
			return true
		}
	}
	return false
}

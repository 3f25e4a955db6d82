package gatewaytest

import (
	"math"
	"strconv"
	"unicode/utf8"
)

// appendString writes a JSON string as pydantic does: UTF-8 stays as it is,
// broken UTF-8 becomes U+FFFD.
func appendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRuneInString(s[i:])
			b = utf8.AppendRune(b, r)
			i += size
			continue
		}
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c == '\n':
			b = append(b, '\\', 'n')
		case c == '\r':
			b = append(b, '\\', 'r')
		case c == '\t':
			b = append(b, '\\', 't')
		case c < 0x20:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			b = append(b, c)
		}
		i++
	}
	return append(b, '"')
}

// head opens a response object up to its choices.
func (p *reply) head(b []byte, object string) []byte {
	b = append(b, `{"id":`...)
	b = appendString(b, p.id)
	b = append(b, `,"object":"`...)
	b = append(b, object...)
	b = append(b, `","created":`...)
	b = strconv.AppendInt(b, p.created, 10)
	b = append(b, `,"model":`...)
	b = appendString(b, p.server.options.Model)
	return append(b, `,"choices":[`...)
}

func (p *reply) chunkObject() string {
	if p.call.chat {
		return "chat.completion.chunk"
	}
	return "text_completion"
}

// appendRole appends the role chunk, sent with the first output of a choice.
func (p *reply) appendRole(b []byte, ch *choice) []byte {
	b = p.head(b, p.chunkObject())
	b = append(b, `{"index":`...)
	b = strconv.AppendInt(b, int64(ch.index), 10)
	b = append(b, `,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"prompt_token_ids":null`...)
	if p.server.release.atLeast(22, 0) {
		b = append(b, `,"prompt_text":null`...)
	}
	return p.closeChunk(b, ch, 0, false)
}

// appendChunk appends a delta or finish chunk of a choice, n tokens further on.
func (p *reply) appendChunk(b []byte, ch *choice, part piece, n int, final bool) []byte {
	b = p.head(b, p.chunkObject())
	b = append(b, `{"index":`...)
	b = strconv.AppendInt(b, int64(ch.index), 10)
	if p.call.chat {
		b = append(b, `,"delta":`...)
		b = p.appendDelta(b, ch, part)
	} else {
		b = append(b, `,"text":`...)
		b = appendString(b, part.content)
	}
	b = append(b, `,"logprobs":`...)
	b = p.appendLogprobs(b, ch, ch.sent, ch.sent+n)
	b = append(b, `,"finish_reason":`...)
	b = ch.appendFinish(b, final, final || !p.call.chat)
	b = append(b, `,"token_ids":null}]`...)
	return p.closeChunk(b, ch, ch.sent+n, final)
}

// closeChunk adds the usage so far, that of this choice alone.
func (p *reply) closeChunk(b []byte, ch *choice, completion int, final bool) []byte {
	if p.call.running {
		b = append(b, `,"usage":`...)
		b = appendCounts(b, ch.prompt, completion)
		b = append(b, '}')
	}
	if final && !p.call.usage {
		b = p.appendFingerprint(b)
	}
	return append(b, '}')
}

func (p *reply) appendFingerprint(b []byte) []byte {
	if !p.server.release.fingerprint() {
		return b
	}
	b = append(b, `,"system_fingerprint":`...)
	return appendString(b, "vllm-"+p.server.options.Version+"-5eed0000")
}

func (ch *choice) appendFinish(b []byte, final, stopReason bool) []byte {
	if !final {
		b = append(b, "null"...)
	} else {
		b = appendString(b, ch.script.finish)
	}
	if stopReason {
		b = append(b, `,"stop_reason":`...)
		if final && ch.script.stopped != "" {
			return appendString(b, ch.script.stopped)
		}
		b = append(b, "null"...)
	}
	return b
}

// appendDelta writes the keys that vLLM has set, and only those.
func (p *reply) appendDelta(b []byte, ch *choice, part piece) []byte {
	hidden := p.call.silent && p.server.release.hidesStreamedReasoning()
	b = append(b, '{')
	first := len(b)
	key := func(name string) {
		if len(b) > first {
			b = append(b, ',')
		}
		b = append(append(append(b, '"'), name...), '"', ':')
	}
	if part.reasoning != "" && !hidden {
		for _, name := range p.reasoningFields() {
			key(name)
			b = appendString(b, part.reasoning)
		}
	}
	switch {
	case len(part.tools) > 0:
		key("content")
		if part.content != "" {
			b = appendString(b, part.content)
		} else {
			b = append(b, "null"...)
		}
		key("tool_calls")
		b = p.appendToolDeltas(b, ch, part.tools)
	case part.content != "" || len(b) == first:
		key("content")
		b = appendString(b, part.content)
		if p.call.choice == "auto" && p.server.release.emptyToolDeltas() {
			key("tool_calls")
			b = append(b, "[]"...)
		}
	}
	return append(b, '}')
}

// reasoningFields returns the names under which this release writes reasoning.
func (p *reply) reasoningFields() []string {
	var names []string
	if p.server.release.newReasoningField() {
		names = append(names, "reasoning")
	}
	if p.server.release.oldReasoningField() {
		names = append(names, "reasoning_content")
	}
	return names
}

func (p *reply) appendToolDeltas(b []byte, ch *choice, deltas []toolDelta) []byte {
	b = append(b, '[')
	for i, d := range deltas {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"index":`...)
		b = strconv.AppendInt(b, int64(d.call), 10)
		if d.name {
			b = append(b, `,"id":`...)
			b = appendString(b, ch.tools[d.call].id)
			b = append(b, `,"type":"function","function":{"name":`...)
			b = appendString(b, ch.tools[d.call].name)
		} else {
			b = append(b, `,"function":{"arguments":`...)
			b = appendString(b, d.args)
		}
		b = append(b, "}}"...)
	}
	return append(b, ']')
}

func appendCounts(b []byte, prompt, completion int) []byte {
	b = append(b, `{"prompt_tokens":`...)
	b = strconv.AppendInt(b, int64(prompt), 10)
	b = append(b, `,"total_tokens":`...)
	b = strconv.AppendInt(b, int64(prompt+completion), 10)
	b = append(b, `,"completion_tokens":`...)
	return strconv.AppendInt(b, int64(completion), 10)
}

// appendUsage appends the usage of the whole answer. Streams leave null details out.
func (p *reply) appendUsage(b []byte, nulls bool) []byte {
	b = appendCounts(b, p.promptTokens(), p.completionTokens())
	rel := p.server.release
	cached := p.choices[0].cached
	switch {
	case p.server.options.PromptTokensDetails && (cached > 0 || rel.zeroCachedTokens()):
		b = append(b, `,"prompt_tokens_details":{"cached_tokens":`...)
		b = strconv.AppendInt(b, int64(cached), 10)
		b = append(b, '}')
	case nulls:
		b = append(b, `,"prompt_tokens_details":null`...)
	}
	if rel.reasoningTokens() && p.server.options.ReasoningParser != "" && p.call.chat {
		n := 0
		for _, ch := range p.choices {
			n += ch.script.reasoning
		}
		b = append(b, `,"completion_tokens_details":{"reasoning_tokens":`...)
		b = strconv.AppendInt(b, int64(n), 10)
		b = append(b, '}')
	}
	return append(b, '}')
}

// appendUsageChunk appends the last JSON chunk of a stream.
func (p *reply) appendUsageChunk(b []byte) []byte {
	b = p.head(b, p.chunkObject())
	b = append(b, `],"usage":`...)
	b = p.appendUsage(b, false)
	b = p.appendFingerprint(b)
	return append(b, '}')
}

// appendWhole appends the body of an answer that is not streamed.
func (p *reply) appendWhole(b []byte) []byte {
	object := "text_completion"
	if p.call.chat {
		object = "chat.completion"
	}
	b = p.head(b, object)
	for i, ch := range p.choices {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"index":`...)
		b = strconv.AppendInt(b, int64(ch.index), 10)
		if p.call.chat {
			b = append(b, `,"message":`...)
			b = p.appendMessage(b, ch)
		} else {
			b = append(b, `,"text":`...)
			text := ch.script.text
			if p.call.echoAlone {
				text = ""
			}
			b = appendString(b, p.echo(ch)+text)
		}
		b = append(b, `,"logprobs":`...)
		b = p.appendLogprobs(b, ch, 0, len(ch.script.ids))
		b = append(b, `,"finish_reason":`...)
		b = ch.appendFinish(b, true, true)
		b = append(b, `,"token_ids":null`...)
		if !p.call.chat {
			b = append(b, `,"prompt_logprobs":null,"prompt_token_ids":null`...)
		}
		b = append(b, '}')
	}
	b = append(b, `],"service_tier":null`...)
	if p.server.release.fingerprint() {
		b = p.appendFingerprint(b)
	} else {
		b = append(b, `,"system_fingerprint":null`...)
	}
	b = append(b, `,"usage":`...)
	b = p.appendUsage(b, true)
	if p.call.chat {
		b = append(b, `,"prompt_logprobs":null,"prompt_token_ids":null`...)
	}
	return append(b, `,"kv_transfer_params":null}`...)
}

// appendMessage appends the assistant's message, with vLLM's nulls.
func (p *reply) appendMessage(b []byte, ch *choice) []byte {
	part, isNull := p.message(ch)
	b = append(b, `{"role":"assistant","content":`...)
	if isNull {
		b = append(b, "null"...)
	} else {
		b = appendString(b, part.content)
	}
	b = append(b, `,"refusal":null,"annotations":null,"audio":null,"function_call":null,"tool_calls":[`...)
	arguments := make([]string, len(ch.tools))
	begun := 0
	for _, d := range part.tools {
		arguments[d.call] += d.args
		begun = max(begun, d.call+1)
	}
	for i := range begun {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"id":`...)
		b = appendString(b, ch.tools[i].id)
		b = append(b, `,"type":"function","function":{"name":`...)
		b = appendString(b, ch.tools[i].name)
		b = append(b, `,"arguments":`...)
		b = appendString(b, arguments[i])
		b = append(b, "}}"...)
	}
	b = append(b, ']')
	for _, name := range p.reasoningFields() {
		b = append(append(append(b, ',', '"'), name...), '"', ':')
		if part.reasoning == "" || p.call.silent {
			b = append(b, "null"...)
		} else {
			b = appendString(b, part.reasoning)
		}
	}
	return append(b, '}')
}

// appendLogprobs writes made-up but legal log probabilities of the tokens
// from..to.
func (p *reply) appendLogprobs(b []byte, ch *choice, start, end int) []byte {
	if !p.call.logprobs {
		return append(b, "null"...)
	}
	if !p.call.chat {
		return p.appendTextLogprobs(b, ch, start, end)
	}
	b = append(b, `{"content":[`...)
	for i := start; i < end; i++ {
		if i > start {
			b = append(b, ',')
		}
		id := ch.script.ids[i]
		b = p.appendTokenLogprob(b, id, logprobOf(id, 0))
		b = append(b, `,"top_logprobs":[`...)
		for rank := range p.call.top {
			if rank > 0 {
				b = append(b, ',')
			}
			alternative := (id + uint32(rank)*7919) % 151643
			if rank == 0 {
				alternative = id
			}
			b = p.appendTokenLogprob(b, alternative, logprobOf(id, rank))
			b = append(b, '}')
		}
		b = append(b, "]}"...)
	}
	return append(b, "]}"...)
}

func (p *reply) appendTokenLogprob(b []byte, id uint32, logprob float64) []byte {
	raw := p.server.tokenizer.AppendToken(nil, id)
	b = append(b, `{"token":`...)
	b = appendString(b, string(raw))
	b = append(b, `,"logprob":`...)
	b = strconv.AppendFloat(b, logprob, 'f', -1, 64)
	b = append(b, `,"bytes":[`...)
	for i, c := range raw {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, uint64(c), 10)
	}
	return append(b, ']')
}

func (p *reply) appendTextLogprobs(b []byte, ch *choice, start, end int) []byte {
	var offsets, logprobs, tokens, tops []byte
	sep := func(l []byte) []byte {
		if len(l) > 0 {
			return append(l, ',')
		}
		return l
	}
	offset := 0
	for i := range end {
		id := ch.script.ids[i]
		raw := string(p.server.tokenizer.AppendToken(nil, id))
		if i >= start {
			offsets = strconv.AppendInt(sep(offsets), int64(offset), 10)
			logprobs = strconv.AppendFloat(sep(logprobs), logprobOf(id, 0), 'f', -1, 64)
			tokens = appendString(sep(tokens), raw)
			tops = append(sep(tops), '{')
			tops = append(appendString(tops, raw), ':')
			tops = append(strconv.AppendFloat(tops, logprobOf(id, 0), 'f', -1, 64), '}')
		}
		offset += utf8.RuneCountInString(raw)
	}
	b = append(append(append(b, `{"text_offset":[`...), offsets...), `],"token_logprobs":[`...)
	b = append(append(append(b, logprobs...), `],"tokens":[`...), tokens...)
	return append(append(append(b, `],"top_logprobs":[`...), tops...), "]}"...)
}

// logprobOf returns a log probability: the same for the same token, and falling with the rank.
func logprobOf(id uint32, rank int) float64 {
	x := -float64(id%997)/1000 - float64(rank)
	return math.Round(x*10000) / 10000
}

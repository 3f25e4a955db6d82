package openai

import (
	"bytes"
	"strconv"

	"tidegate/gateway/jsonwalk"
)

// CompletionDefault is vLLM's max_tokens of a completion without one, in tokens.
const CompletionDefault = 16

// MakeUnary edits the body for a unary answer (level 1): not streamed, one choice per
// prompt, at most maxTokens tokens. It returns the limit of the answer that the body now
// has, in tokens.
func (q *Request) MakeUnary(maxTokens int) (limit int) {
	if raw, ok := q.Raw("stream"); ok && string(raw) != "false" {
		q.Set("stream", []byte("false"))
	}
	q.Delete("stream_options") // vLLM refuses it without a stream
	for _, name := range []string{"n", "best_of"} {
		if raw, ok := q.Raw(name); ok && string(raw) != "1" {
			q.Set(name, []byte("1"))
		}
	}
	return q.LimitTokens(maxTokens)
}

// LimitTokens limits the answer to maxTokens tokens, at least 1, and returns its limit. If
// the body has a higher limit, all spellings of it are lowered; if it has none, one is
// added. A min_tokens above the limit is lowered, since vLLM would refuse the body.
func (q *Request) LimitTokens(maxTokens int) (limit int) {
	limit = q.maxTokens()
	if limit == 0 || limit > maxTokens {
		if limit = maxTokens; q.Route == Completions && q.maxTokens() == 0 {
			limit = min(maxTokens, CompletionDefault)
		}
		raw := strconv.AppendInt(nil, int64(limit), 10)
		if _, ok := q.Raw("max_completion_tokens"); ok {
			q.Set("max_completion_tokens", raw)
			if _, ok := q.Raw("max_tokens"); ok || q.Route == Completions {
				q.Set("max_tokens", raw)
			}
		} else {
			q.Set("max_tokens", raw)
		}
	}
	if n, ok, _ := q.Int("min_tokens", 0); ok && n > limit {
		q.Set("min_tokens", strconv.AppendInt(nil, int64(limit), 10))
	}
	return limit
}

// maxTokens returns the limit that the backend applies, or 0 if the body has none.
func (q *Request) maxTokens() int {
	if q.echoAlone() {
		return 1
	}
	n, _, _ := q.Int(q.LimitName(), 1)
	return n
}

// LimitName returns the name of the member that limits the answer. If a chat has both, vLLM
// applies max_completion_tokens.
func (q *Request) LimitName() string {
	const newer = "max_completion_tokens"
	if _, ok := q.Raw(newer); ok && q.Route == Chat {
		return newer
	}
	return "max_tokens"
}

// emptyThinking is the number of tokens of "<think>\n\n</think>\n\n", which Qwen3's chat
// template puts behind the generation prompt if thinking is off.
const emptyThinking = 4

// StopThinking switches the thinking of a chat off (level 2), whatever its caller asked
// for. It sets the sampling that Qwen advises without thinking, unless the caller has set
// it. The other members of chat_template_kwargs stay byte for byte. It returns the growth
// of the prompt in tokens, which Growth returned before.
//
// A completion stays unchanged: its prompt is the caller's own, without a template.
func (q *Request) StopThinking() (grown int) {
	if q.Route == Completions {
		return 0
	}
	grown = q.Growth()
	kwargs, _ := q.Raw("chat_template_kwargs")
	if kwargs, _ = withoutMember(kwargs, "enable_thinking"); kwargs == nil || kwargs[0] != '{' {
		kwargs = nil
	}
	q.Set("chat_template_kwargs", withMember(kwargs, "enable_thinking", "false"))
	q.Delete("thinking_token_budget", "thinking_budget", "reasoning_effort")
	if raw, ok := q.Raw("reasoning"); ok {
		if rest, cut := withoutMember(raw, "effort"); cut && len(bytes.TrimSpace(rest[1:len(rest)-1])) == 0 {
			q.Delete("reasoning")
		} else if cut {
			q.Set("reasoning", rest)
		}
	}
	for _, d := range [...][2]string{{"temperature", "0.7"}, {"top_p", "0.8"}, {"top_k", "20"}} {
		if _, ok := q.Raw(d[0]); !ok {
			q.Set(d[0], []byte(d[1]))
		}
	}
	return grown
}

// Growth returns the number of tokens that StopThinking adds to the prompt. It is 0 if the
// thinking is off already or the prompt does not end in a generation prompt.
func (q *Request) Growth() int {
	if q.Route == Completions {
		return 0
	}
	if raw, ok := q.Raw("add_generation_prompt"); ok && string(raw) == "false" {
		return 0
	}
	kwargs, _ := q.Raw("chat_template_kwargs")
	thinking := jsonwalk.Find(kwargs, "enable_thinking")
	if string(thinking) == "false" || jsonwalk.IsNothing(thinking) && q.QuietDefault {
		return 0
	}
	return emptyThinking
}

// withoutMember returns an object without all members of a name, in any spelling with
// escapes; cut is false if it has none.
func withoutMember(object []byte, name string) (rest []byte, cut bool) {
	return withoutMembers(object, func(key []byte) bool { return jsonwalk.KeyIs(key, name) })
}

// withoutMembers returns an object without the members whose raw keys are unwanted; cut is
// false if it has none.
func withoutMembers(object []byte, unwanted func(key []byte) bool) (rest []byte, cut bool) {
	var e edits
	e.reset(object)
	kept := 0
	for w := jsonwalk.Members(object); w.Next(); {
		drop := unwanted(w.Key)
		w.Value()
		if drop {
			e.cut(&w, kept == 0)
			cut = true
		} else {
			kept++
		}
	}
	if !cut {
		return object, false
	}
	return e.append(make([]byte, 0, len(object))), true
}

// Needs are the features that a request needs of its backend and that not every vLLM has.
type Needs struct {
	Tools      bool // the answer may call tools
	AutoTools  bool // the model chooses the tool, for which the backend needs a flag
	Call       bool // the answer must be a tool call
	Structured bool // the answer must fit a schema or a grammar, or be JSON
}

// Constrained reports whether a program reads the answer, so that a plain text is useless.
func (n Needs) Constrained() bool { return n.Call || n.Structured }

// Needs returns the features that the request needs.
func (q *Request) Needs() (n Needs) {
	if tools, ok := q.Raw("tools"); ok && q.Route == Chat && Count(tools) > 0 {
		choice, _ := q.Raw("tool_choice")
		kind, _ := jsonwalk.Text(choice)
		named, _ := jsonwalk.Text(jsonwalk.Find(choice, "type"))
		n.Tools = kind != "none"
		n.AutoTools = n.Tools && kind != "required" && named != "function"
		mode, _ := jsonwalk.Text(jsonwalk.Find(jsonwalk.Find(choice, "allowed_tools"), "mode"))
		n.Call = n.Tools && (!n.AutoTools || mode == "required")
	}
	if format, ok := q.Raw("response_format"); ok {
		kind, _ := jsonwalk.Text(jsonwalk.Find(format, "type"))
		n.Structured = kind != "text"
	}
	_, constrained := q.Raw("structured_outputs")
	for _, g := range guided() { // Translate may not have run yet
		_, ok := q.Raw(g[0])
		constrained = constrained || ok
	}
	n.Structured = n.Structured || constrained
	return n
}

package openai

import (
	"bytes"

	"tidegate/gateway/jsonwalk"
)

// guided maps the names that vLLM dropped in v0.12, and has ignored since without an error,
// to the kinds of structured_outputs.
func guided() [4][2]string {
	return [4][2]string{{"guided_json", "json"}, {"guided_regex", "regex"}, {"guided_choice", "choice"}, {"guided_grammar", "grammar"}}
}

// A Wish is the part of a request that concerns the gateway and not the backend.
type Wish struct {
	Model           string // model that the caller names; empty for none
	Stream          bool
	IncludeUsage    bool // whether a stream ends with a chunk with the usage
	ContinuousUsage bool // whether every chunk of a stream has the usage
	HideReasoning   bool // whether return_reasoning or include_reasoning is false
	NoThinking      bool // whether the chat template gets enable_thinking: false
	ThinkingOpen    bool // whether it gets no enable_thinking, so that the backend's default applies
	N               int  // choices per prompt
	MaxTokens       int  // limit of a choice; 0 if absent; 1 for a prompt that is only echoed, whose token vLLM hides
	ScoresPrompt    bool // whether the log probabilities of the prompt's tokens are asked for
	Truncate        int  // tokens of the prompt that are kept; -1: as many as fit; 0: all
}

// Translate checks the members that the gateway reads, translates clients' spellings into
// vLLM's, and strips the members that callers may not set.
//
// The thinking switch is chat_template_kwargs.enable_thinking, a boolean. If the caller
// set it, it stays. Otherwise it comes from enable_thinking, from thinking.type, or from
// the reasoning effort, in this order.
func (q *Request) Translate(maxN int) (Wish, *Error) {
	w, err := q.readWish(maxN)
	if err != nil {
		return w, err
	}
	if err := q.readStreamOptions(&w); err != nil {
		return w, err
	}
	if err := q.readReasoningOptions(&w); err != nil {
		return w, err
	}
	if err := q.translateStructured(); err != nil {
		return w, err
	}
	if q.Route == Chat {
		if err := q.translateThinking(&w); err != nil {
			return w, err
		}
		if err := q.translateMessages(); err != nil {
			return w, err
		}
	}
	if w.Truncate, err = q.Truncation(); err != nil {
		return w, err
	}
	if w.ScoresPrompt, err = q.ScoresPrompt(); err != nil {
		return w, err
	}
	return w, q.checkMembers()
}

// readWish reads the model, the choices and the limit, and checks that there is a prompt.
func (q *Request) readWish(maxN int) (w Wish, err *Error) {
	var ok bool
	if w.Model, _, err = q.Text("model"); err != nil {
		return w, err
	}
	content := "messages"
	if q.Route == Completions {
		content = "prompt"
	}
	if raw, ok := q.Raw(content); !ok {
		return w, invalid(content, "%s is missing", content)
	} else if q.Route == Chat && raw[0] != '[' {
		return w, invalid(content, "messages must be an array")
	}
	if w.N, ok, err = q.Int("n", 1); err != nil {
		return w, err
	} else if !ok {
		w.N = 1
	}
	if w.N > maxN {
		return w, invalid("n", "n may be at most %d here", maxN)
	}
	if err = q.checkLimits(); err != nil {
		return w, err
	}
	w.MaxTokens = q.maxTokens()
	return w, nil
}

// checkLimits checks the limits of the answer. A completion may ask for 0 tokens to get its
// prompt back, perhaps with log probabilities, as lm-evaluation-harness does.
func (q *Request) checkLimits() *Error {
	if _, _, err := q.Bool("echo"); err != nil {
		return err
	}
	for _, name := range [...]string{"max_tokens", "max_completion_tokens"} {
		if q.echoAlone() && name == "max_tokens" {
			_, _, err := q.Int(name, 0) // rewrites it in plain digits
			return err
		}
		if _, _, err := q.Int(name, 1); err != nil {
			if q.Route == Completions && name == "max_tokens" {
				err.Message += ", or 0 with echo: true, which gives the prompt back"
			}
			return err
		}
	}
	return nil
}

// echoAlone reports whether a completion asks only for its prompt. vLLM then accepts
// max_tokens 0, but makes one token, which it does not show.
func (q *Request) echoAlone() bool {
	if q.Route != Completions {
		return false
	}
	raw, _ := q.Raw("max_tokens")
	n, whole := lenientInteger(raw)
	echo, _ := q.Raw("echo")
	wanted, _ := lenientBoolean(echo)
	return whole && n == 0 && wanted
}

// readStreamOptions reads stream and stream_options.
func (q *Request) readStreamOptions(w *Wish) (err *Error) {
	if w.Stream, _, err = q.Bool("stream"); err != nil {
		return err
	}
	options, ok := q.Raw("stream_options")
	if !ok {
		return nil
	}
	if options[0] != '{' {
		return invalid("stream_options", "stream_options must be an object")
	}
	if !w.Stream {
		return invalid("stream_options", "stream_options can only be set when stream is true")
	}
	w.IncludeUsage, _ = lenientBoolean(jsonwalk.Find(options, "include_usage"))
	w.ContinuousUsage, _ = lenientBoolean(jsonwalk.Find(options, "continuous_usage_stats"))
	w.ContinuousUsage = w.ContinuousUsage && w.IncludeUsage
	return nil
}

// readReasoningOptions reads and removes return_reasoning and include_reasoning. The gateway
// applies them itself, since backends honour the latter in some answers only.
func (q *Request) readReasoningOptions(w *Wish) *Error {
	for _, name := range []string{"return_reasoning", "include_reasoning"} {
		show, ok, err := q.Bool(name)
		if err != nil {
			return err
		}
		w.HideReasoning = w.HideReasoning || ok && !show
		q.Delete(name)
	}
	return nil
}

// translateStructured translates guided_... into structured_outputs.
func (q *Request) translateStructured() *Error {
	_, constrained := q.Raw("structured_outputs")
	for _, g := range guided() {
		raw, ok := q.Raw(g[0])
		q.Delete(g[0])
		if !ok {
			continue
		}
		if constrained {
			return invalid(g[0], "%s and another output constraint exclude each other", g[0])
		}
		constrained = true
		q.Set("structured_outputs", join(`{"`, g[1], `":`, string(raw), `}`))
	}
	return nil
}

// join returns the concatenation of parts.
func join(parts ...string) []byte {
	var b bytes.Buffer
	for _, p := range parts {
		b.WriteString(p)
	}
	return b.Bytes()
}

// withMember returns an object with a further member, which it must not have yet; nil counts
// as {}.
func withMember(object []byte, name, value string) []byte {
	rest := "}"
	if inner := bytes.TrimLeft(bytes.TrimPrefix(object, []byte("{")), " \t\r\n"); len(inner) > 0 && inner[0] != '}' {
		rest = "," + string(inner)
	}
	return join(`{"`, name, `":`, value, rest)
}

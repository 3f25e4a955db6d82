package openai

import (
	"math"
	"strings"

	"tidegate/gateway/jsonwalk"
)

// A Use is the treatment of a member of a request's body.
type Use string

// The uses.
const (
	Translated Use = "translated" // the gateway reads it and sends the backend its translation
	Checked    Use = "checked"    // sent to the backend if its value is allowed
	Stripped   Use = "stripped"   // not sent to the backend
	Refused    Use = "refused"    // the request is answered with 400
	Passed     Use = "passed"     // sent to the backend unchanged
)

// A Member is a field of a request's body that the gateway knows. All other fields are
// passed: vLLM ignores those that it does not know.
type Member struct {
	Name   string
	Use    Use
	Reason string // reason of the treatment, or the translation, in the words of docs/api.md

	check func(q *Request, raw []byte) *Error // check of its value; nil for none here
}

// Bounds of lists.
const (
	maxStops    = 4   // strings of stop, as in OpenAI's API and vLLM from 0.32 on
	maxBadWords = 128 // strings of bad_words; the engine checks each of them at each token
	maxScores   = 5   // log probabilities of each token of a prompt, as in OpenAI's API
)

// handledMembers returns the members that checkMembers strips, refuses or checks. It runs
// for each request, so it only returns constants; a test compares the texts with the bounds.
// The names are those of vLLM's request models (vllm/entrypoints/openai/*/protocol.py, 0.11
// to 0.33).
func handledMembers() [26]Member {
	const (
		transfer  = "moves a prompt's memory between servers, and names hosts to fetch it from"
		identity  = "the gateway names requests itself; two of one name disturb each other in older servers"
		operators = "the operator's to set, on the server"
		hidden    = "costs the server work that no usage shows"
		pictures  = "Qwen3 reads text alone"
	)
	return [...]Member{
		{"priority", Stripped, "the key's tier decides who goes first", nil},
		{"data_parallel_rank", Stripped, "the gateway chooses the server", nil},
		{"kv_transfer_params", Stripped, transfer, nil},
		{"ec_transfer_params", Stripped, transfer, nil},
		{"request_id", Stripped, identity, nil},
		{"session_id", Stripped, identity, nil},
		{"prompt_logprobs", Stripped, hidden, nil},
		{"use_beam_search", Stripped, hidden, nil},
		{"best_of", Stripped, hidden, nil},
		{"ignore_eos", Stripped, "goes on to the limit when the answer has long ended", nil},
		{"cache_salt", Stripped, "would keep the prompt out of the cache that all share", nil},
		{"stream_interval", Stripped, "a stream is counted, and cut, by what comes when it is made", nil},
		{"logits_processors", Stripped, "names code to be run in the server", nil},
		{"watermarking", Stripped, operators, nil},
		{"return_weight_versions", Stripped, "tells of the server, not of the answer", nil},
		{"routed_experts_prompt_start", Stripped, "tells of the server, not of the answer", nil},
		{"mm_processor_kwargs", Stripped, pictures, nil},
		{"media_io_kwargs", Stripped, pictures, nil},
		{"mm_payload", Refused, pictures + ", and nobody could count it", nil},
		{"prompt_embeds", Refused, "a prompt that is no text and no token ids cannot be counted", nil},
		{"chat_template", Refused, "another template makes another prompt than the one that is counted", nil},
		{"vllm_xargs", Checked, "an object; what is stripped or refused here is taken out of it", checkExtraArguments},
		{"seed", Checked, "a whole number within 64 bits, with its sign: another one ends the engine of older servers", checkSeed},
		{"stop", Checked, "a string, or at most 4", checkStop},
		{"bad_words", Checked, "at most 128 strings", checkBadWords},
		{"echo", Checked, "with log probabilities it asks for those of the prompt: at most 5 for each token, of a prompt of at most 4096 tokens. With `max_tokens` 0 the prompt alone is answered, but vLLM makes a token that it does not show and states, and that is charged", checkEcho},
	}
}

// checkMembers refuses, strips and checks the members that need nothing else.
func (q *Request) checkMembers() *Error {
	members := handledMembers()
	for i := range members {
		m := &members[i]
		pos := q.index(m.Name)
		if pos < 0 {
			continue
		}
		raw := q.fields[pos].value
		switch {
		case m.Use == Stripped, jsonwalk.IsNull(raw):
			q.Delete(m.Name)
		case m.Use == Refused:
			return invalid(m.Name, "%s is not taken: %s", m.Name, m.Reason)
		case m.check != nil:
			if err := m.check(q, raw); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkSeed(q *Request, raw []byte) *Error {
	n, ok := lenientInteger(raw)
	if !ok || n == math.MaxInt64 || n == -math.MaxInt64 {
		return invalid("seed", "seed must be a whole number between -2^63 and 2^63")
	}
	q.setPlain("seed", raw, n)
	return nil
}

func checkStop(_ *Request, raw []byte) *Error {
	if raw[0] == '"' {
		return nil
	}
	return checkStrings("stop", raw, maxStops)
}

func checkBadWords(_ *Request, raw []byte) *Error { return checkStrings("bad_words", raw, maxBadWords) }

// checkStrings checks that raw is a list of at most limit strings.
func checkStrings(name string, raw []byte, limit int) *Error {
	if raw[0] != '[' {
		return invalid(name, "%s must be a list of strings", name)
	}
	n := 0
	for w := jsonwalk.Elements(raw); w.Next(); n++ {
		if kindOf(w.Value()) != stringKind {
			return invalid(name, "%s must be a list of strings", name)
		}
		if n == limit {
			return invalid(name, "%s may have at most %d strings", name, limit)
		}
	}
	return nil
}

// checkExtraArguments removes from vllm_xargs the members that the body may not have: vLLM
// puts the body's own kv_transfer_params there.
func checkExtraArguments(q *Request, raw []byte) *Error {
	const name = "vllm_xargs"
	if raw[0] != '{' {
		return invalid(name, "vllm_xargs must be an object")
	}
	handled := handledMembers()
	rest, cut := withoutMembers(raw, func(key []byte) bool {
		for i := range handled {
			if (handled[i].Use == Stripped || handled[i].Use == Refused) && jsonwalk.KeyIs(key, handled[i].Name) {
				return true
			}
		}
		return false
	})
	if cut {
		q.Set(name, rest)
	}
	return nil
}

// MaxScored bounds a prompt whose log probabilities are asked for, in tokens: the backend
// makes 600 KB for each token.
const MaxScored = 4096

// checkEcho bounds the log probabilities of the prompt, which echo asks for: vLLM then reads
// logprobs of a completion, and top_logprobs of a chat, as prompt_logprobs.
func checkEcho(q *Request, _ []byte) *Error {
	if scores, err := q.ScoresPrompt(); err != nil || !scores {
		return err
	}
	name := q.scoresName()
	n, _, err := q.Int(name, 0)
	if err == nil && n > maxScores {
		err = invalid(name, "%s may be at most %d with echo, which asks for those of the prompt too", name, maxScores)
	}
	return err
}

func (q *Request) scoresName() string {
	if q.Route == Completions {
		return "logprobs"
	}
	return "top_logprobs"
}

// ScoresPrompt reports whether the log probabilities of the prompt's tokens are asked for.
func (q *Request) ScoresPrompt() (bool, *Error) {
	echo, _, err := q.Bool("echo")
	if err != nil || !echo {
		return false, err
	}
	_, asked := q.Raw(q.scoresName())
	return asked || q.Route == Chat, nil // a chat asks for 0 of each token, and vLLM computes all the same
}

// Members returns all members that the gateway knows, each once.
func Members() []Member {
	handled := handledMembers()
	return append(append(handled[:], translatedMembers()...), passedMembers()...)
}

// translatedMembers returns the members that Translate and the gateway read.
func translatedMembers() []Member {
	const ids = "token ids from 0 to 151,935"
	return expandListings([]listing{
		{Translated, "the server's own name of the model; where your key may use one model only, you may leave it out", "model"},
		{Translated, "at most 65,536; the role `developer` becomes `system`, and `reasoning_content` becomes `reasoning`, which vLLM reads from 0.16 on, or the reverse before; all of it is counted. Reasoning that is no text, such as a list, is passed, and no template reads it", "messages"},
		{Translated, "nothing: its members are members of the body", "extra_body"},
		{Translated, "as you say, but not streamed from L1 on; `Accept` decides nothing", "stream"},
		{Translated, "usage, always; you see it if you asked for it", "stream_options"},
		{Translated, "at least 1, or 0 in a completion with `echo`, which gives its prompt back; lowered to what the prompt leaves of the context and to what the level allows. Without it a chat may have all that is left, or `degrade.l1.max_tokens` where no server says its context, and a completion 16", "max_tokens max_completion_tokens"},
		{Translated, "lowered with `max_tokens`", "min_tokens"},
		{Translated, "at most `server.max_n`; 1 from L1 on", "n"},
		{Translated, "`chat_template_kwargs.enable_thinking`, unless you set that yourself", "enable_thinking thinking"},
		{Translated, "an effort of `none` becomes `enable_thinking: false`, any other `true`, unless you set that yourself. `none` itself, and any effort for a server before vLLM 0.22, is taken out", "reasoning_effort reasoning"},
		{Translated, "`thinking_token_budget`", "thinking_budget"},
		{Translated, "nothing: where it is false the gateway leaves the reasoning out of the answer", "return_reasoning include_reasoning"},
		{Translated, "`structured_outputs`: vLLM ignores these names since 0.12", "guided_json guided_regex guided_choice guided_grammar"},
		{Checked, "one output constraint, this or one of `guided_…`", "structured_outputs"},
		{Checked, "counted; texts, or " + ids + "; at most `server.max_prompts` of them, each with `n` answers", "prompt"},
		{Checked, ids, "stop_token_ids allowed_token_ids logprob_token_ids"},
		{Checked, "its keys are " + ids, "logit_bias"},
		{Checked, "an object; its keys are counted, refused or passed: see below", "chat_template_kwargs"},
		{Checked, "counted", "tools"},
		{Checked, "true or false; counted. To continue goes only with `add_generation_prompt: false`", "add_generation_prompt continue_final_message"},
		{Translated, "at least 1, or -1 for what fits beside `max_tokens`: the number of tokens that the prompt is cut to if it is longer, else nothing; counted", "truncate_prompt_tokens"},
	})
}

// passedMembers returns the known members that are sent to the backend unchanged.
func passedMembers() []Member {
	return expandListings([]listing{
		{Passed, "how a token is chosen", "temperature top_p top_k min_p presence_penalty frequency_penalty repetition_penalty length_penalty repetition_detection"},
		{Passed, "what the answer is and shows", "response_format tool_choice parallel_tool_calls thinking_token_budget logprobs top_logprobs include_stop_str_in_output " +
			"skip_special_tokens spaces_between_special_tokens return_token_ids return_tokens_as_token_ids return_prompt_text return_token_offsets return_mm_kwargs suffix"},
		{Passed, "how the prompt is made", "add_special_tokens documents truncation_side"},
		{Passed, "OpenAI's; vLLM ignores it", "user metadata store service_tier safety_identifier prompt_cache_key prompt_cache_retention verbosity prediction modalities audio " +
			"web_search_options functions function_call"},
	})
}

// A listing is a group of members with the same use and reason; spaces separate their names.
type listing struct {
	use           Use
	reason, names string
}

func expandListings(listings []listing) (members []Member) {
	for _, l := range listings {
		for name := range strings.FieldsSeq(l.names) {
			members = append(members, Member{Name: name, Use: l.use, Reason: l.reason})
		}
	}
	return members
}

package openai

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestMembersAreKnown: each field of vLLM's request models, and of OpenAI's, stands in the
// table once.
func TestMembersAreKnown(t *testing.T) {
	count := map[string]int{}
	for _, m := range Members() {
		count[m.Name]++
		if m.Reason == "" || m.Use == "" {
			t.Errorf("%s has no reason", m.Name)
		}
	}
	for _, m := range Members() {
		for name, bounds := range map[string][]int{"stop": {maxStops}, "bad_words": {maxBadWords}, "echo": {maxScores, MaxScored}} {
			for _, n := range bounds {
				if m.Name == name && !strings.Contains(m.Reason, fmt.Sprint("at most ", n)) {
					t.Errorf("%s: %q does not say %d", name, m.Reason, n)
				}
			}
		}
	}
	for name, n := range count {
		if n != 1 {
			t.Errorf("%s stands %d times in the table", name, n)
		}
	}
	// ChatCompletionRequest and CompletionRequest of vLLM 0.33, older fields, and
	// CreateChatCompletionRequest of OpenAI.
	for name := range strings.FieldsSeq(`messages model frequency_penalty logit_bias logprobs top_logprobs max_tokens max_completion_tokens n
		presence_penalty response_format seed stop stream stream_options temperature top_p tools tool_choice reasoning_effort thinking_token_budget
		include_reasoning parallel_tool_calls user use_beam_search top_k min_p repetition_penalty watermarking length_penalty stop_token_ids
		include_stop_str_in_output ignore_eos min_tokens skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens truncation_side
		prompt_logprobs logprob_token_ids allowed_token_ids bad_words echo add_generation_prompt continue_final_message add_special_tokens documents
		chat_template chat_template_kwargs media_io_kwargs mm_processor_kwargs structured_outputs priority request_id session_id
		return_tokens_as_token_ids return_token_ids routed_experts_prompt_start return_token_offsets return_prompt_text return_mm_kwargs cache_salt
		kv_transfer_params ec_transfer_params vllm_xargs repetition_detection stream_interval mm_payload return_weight_versions
		prompt prompt_embeds suffix best_of guided_json guided_regex guided_choice guided_grammar logits_processors
		metadata store service_tier safety_identifier prompt_cache_key prompt_cache_retention verbosity prediction modalities audio
		web_search_options functions function_call`) {
		if count[name] != 1 {
			t.Errorf("%s is not in the table", name)
		}
	}
}

// TestMembers: what is stripped reaches no server, in no spelling and at no place that
// the server reads; what is refused or over a bound is told by its name.
func TestMembers(t *testing.T) {
	const head = `{"model":"m","messages":[{"role":"user","content":"hi"}]`
	const completion = `{"model":"m","prompt":"hi"`
	list := func(n int) string { return `[` + strings.TrimSuffix(strings.Repeat(`"a",`, n), ",") + `]` }
	for _, m := range Members() {
		if strings.Contains(head, `"`+m.Name+`"`) {
			continue
		}
		for _, body := range []string{
			fmt.Sprintf(`,"%s":{"a":1}}`, m.Name), fmt.Sprintf(`,"\u%04x%s":{"a":1}}`, m.Name[0], m.Name[1:]), fmt.Sprintf(`,"extra_body":{"%s":{"a":1}}}`, m.Name),
			fmt.Sprintf(`,"vllm_xargs":{"x":1,"%s":{"a":1}}}`, m.Name), fmt.Sprintf(`,"vllm_xargs":{"\u%04x%s":{"a":1},"x":1}}`, m.Name[0], m.Name[1:]),
		} {
			inner := strings.Contains(body, "vllm_xargs") && m.Name != "vllm_xargs"
			q := parse(t, Chat, head+body)
			_, err := q.Translate(8)
			switch {
			case m.Use == Refused && !inner:
				if err == nil || err.Param != m.Name {
					t.Errorf("%s: %v", body, err)
				}
			case m.Use == Refused, m.Use == Stripped:
				want := head + "}"
				if inner {
					want = head + `,"vllm_xargs":{"x":1}}`
				}
				if err != nil || string(q.Bytes()) != want {
					t.Errorf("%s: %s, %v", body, q.Bytes(), err)
				}
			case m.Use == Passed:
				if err == nil && string(q.Bytes()) != head+body && !strings.Contains(body, "extra_body") {
					t.Errorf("%s becomes %s", body, q.Bytes())
				}
			}
		}
	}
	for _, c := range []struct {
		route Route
		more  string
		param string // empty: it is taken
	}{
		{Chat, `"stop":"a"`, ""}, {Chat, `"stop":` + list(4), ""}, {Chat, `"stop":` + list(5), "stop"}, {Chat, `"stop":null`, ""}, {Chat, `"stop":[1]`, "stop"},
		{Chat, `"stop":1`, "stop"}, {Chat, `"extra_body":{"stop":` + list(5) + `}`, "stop"}, {Completions, `"stop":` + list(5), "stop"},
		{Chat, `"bad_words":` + list(128), ""}, {Chat, `"bad_words":` + list(129), "bad_words"}, {Chat, `"bad_words":"a"`, "bad_words"},
		{Chat, `"seed":-42`, ""}, {Chat, `"seed":9223372036854775806`, ""}, {Chat, `"seed":9223372036854775808`, "seed"}, {Chat, `"seed":-9223372036854775809`, "seed"},
		{Chat, `"seed":1e30`, "seed"}, {Chat, `"seed":0.5`, "seed"}, {Chat, `"seed":"1"`, ""}, {Chat, `"seed":"x"`, "seed"},
		{Chat, `"vllm_xargs":[]`, "vllm_xargs"}, {Chat, `"vllm_xargs":null`, ""},
		{Chat, `"chat_template":null`, ""}, {Chat, `"chat_template":"{{ x }}"`, "chat_template"},
		{Completions, `"prompt_embeds":"AAAA"`, "prompt_embeds"}, {Completions, `"prompt_embeds":["AAAA"]`, "prompt_embeds"},
		{Completions, `"echo":true,"logprobs":5`, ""}, {Completions, `"echo":true,"logprobs":6`, "logprobs"}, {Completions, `"echo":false,"logprobs":20`, ""},
		{Completions, `"echo":true,"logprobs":-1`, "logprobs"}, {Completions, `"echo":true`, ""}, {Completions, `"echo":1`, ""}, {Completions, `"echo":2`, "echo"}, {Completions, `"echo":1,"logprobs":6`, "logprobs"}, {Completions, `"logprobs":20`, ""},
		{Chat, `"echo":true,"logprobs":true,"top_logprobs":5`, ""}, {Chat, `"echo":true,"logprobs":true,"top_logprobs":20`, "top_logprobs"},
		{Chat, `"logprobs":true,"top_logprobs":20`, ""},
	} {
		body := head
		if c.route == Completions {
			body = completion
		}
		_, err := parse(t, c.route, body+","+c.more+"}").Translate(8)
		if (err == nil) != (c.param == "") || err != nil && err.Param != c.param {
			t.Errorf("%.100s: %v", c.more, err)
		}
	}
	for body, want := range map[string]bool{
		completion + `,"echo":true,"logprobs":0}`: true, completion + `,"echo":true}`: false, completion + `,"logprobs":3}`: false,
	} {
		if w, err := parse(t, Completions, body).Translate(8); err != nil || w.ScoresPrompt != want {
			t.Errorf("%s: %+v, %v", body, w, err)
		}
	}
}

// TestMembersPage: the table of docs/api.md says what the code says. With
// TIDEGATE_API_OUT it is written there.
func TestMembersPage(t *testing.T) {
	const file, begin, end = "../../docs/api.md", "<!-- fields: written by make docs from gateway/openai/members.go -->\n", "<!-- end of fields -->"
	page, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(page), begin)
	_, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		t.Fatalf("docs/api.md has no place for the table")
	}
	want := before + begin + membersTable() + end + after
	if out := os.Getenv("TIDEGATE_API_OUT"); out != "" {
		if err := os.WriteFile(out, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if string(page) != want {
		t.Error("the table of fields in docs/api.md is not what members.go says: run make docs")
	}
}

// membersTable is the table, in the order of the uses; fields that share a reason share a
// line.
func membersTable() string {
	var b strings.Builder
	b.WriteString("| field | | what the server gets, or why it does not |\n|---|---|---|\n")
	all := Members()
	for _, use := range []Use{Translated, Checked, Stripped, Refused, Passed} {
		for i, m := range all {
			if m.Use != use || slices.ContainsFunc(all[:i], func(o Member) bool { return o.Use == use && o.Reason == m.Reason }) {
				continue
			}
			var names []string
			for _, o := range all[i:] {
				if o.Use == use && o.Reason == m.Reason {
					names = append(names, "`"+o.Name+"`")
				}
			}
			fmt.Fprintf(&b, "| %s | %s | %s |\n", strings.Join(names, ", "), use, m.Reason)
		}
	}
	return b.String()
}

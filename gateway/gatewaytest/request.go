package gatewaytest

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"strings"

	"github.com/tidwall/gjson"

	"tidegate/gateway/qwen"
)

// call is one generation request, parsed.
type call struct {
	body     []byte
	root     gjson.Result
	chat     bool
	prompts  [][]uint32
	model    string
	logprobs bool
	top      int // top_logprobs
	priority int64
	salt     uint64
	format   format
	talk     talk
	script   simHook
	streamOptions
	lengthOptions
	thinkingOptions
	echoOptions
	toolOptions
}

// streamOptions holds the options of a streamed answer.
type streamOptions struct {
	stream  bool
	usage   bool // a usage chunk ends the stream
	running bool // continuous: every chunk has usage
}

// lengthOptions holds the number of choices and the conditions that end them.
type lengthOptions struct {
	n         int
	max       int // tokens that this request may get
	min       int
	ignoreEOS bool
	stops     []string
	keepStop  bool
}

// thinkingOptions holds the options of reasoning.
type thinkingOptions struct {
	thinking bool
	budget   int  // thinking tokens, -1: none
	silent   bool // include_reasoning: false
}

// echoOptions holds the options of a prompt that is repeated in the answer.
type echoOptions struct {
	echo      bool
	echoAlone bool // max_tokens 0: the token that is made all the same is not shown
	echoed    []string
}

// toolOptions holds the tools of a request.
type toolOptions struct {
	tools    []tool
	choice   string // none, auto, required or named
	parallel bool
}

// talk holds the parts of the conversation that shape the answer.
type talk struct {
	user     string // the last user message
	lastRole string
	noThink  bool // "/no_think" was said
}

// simHook is the body's unknown field "sim": a test's wish, which also proves
// that unknown fields pass through a gateway.
type simHook struct {
	tokens   int // completion_tokens of the answer, 0: not asked
	thinking int // reasoning tokens of it, -1: not asked
	// answer is the tokens of the answer without its thinking, 0: not asked; it goes
	// before tokens. Thinking comes on top, twice as long unless it is given: two
	// thirds of the output, about what Qwen3 spends. So a gateway that switches
	// thinking off saves as much here as on a real server.
	answer  int
	calls   int // tool calls
	text    string
	hasText bool
}

// format is the required form of the answer.
type format struct {
	kind   string // "", json, schema, choice, regex
	schema gjson.Result
	regex  string
}

// fields reads typed fields and keeps the first complaint, as pydantic does.
type fields struct {
	root gjson.Result
	err  error
}

func (f *fields) complain(name, message string, v gjson.Result) {
	if f.err == nil {
		f.err = malformed(name, fmt.Sprintf("[{'loc': ('body', '%s'), 'msg': '%s', 'input': %s}]", name, message, v.Raw))
	}
}

func (f *fields) present(name string) (gjson.Result, bool) {
	v := f.root.Get(name)
	return v, v.Exists() && v.Type != gjson.Null
}

func (f *fields) boolean(name string, fallback bool) bool {
	v, ok := f.present(name)
	switch {
	case !ok:
		return fallback
	case !v.IsBool():
		f.complain(name, "Input should be a valid boolean", v)
	}
	return v.Bool()
}

func (f *fields) integer(name string, fallback int64) int64 {
	v, ok := f.present(name)
	switch {
	case !ok:
		return fallback
	case v.Type != gjson.Number || v.Num != math.Trunc(v.Num):
		f.complain(name, "Input should be a valid integer", v)
	}
	return v.Int()
}

func (f *fields) number(name string, low, high float64) {
	v, ok := f.present(name)
	switch {
	case !ok:
	case v.Type != gjson.Number:
		f.complain(name, "Input should be a valid number", v)
	case f.err == nil && (v.Num < low || v.Num > high):
		f.err = invalid(name, fmt.Sprintf("%s must be in [%g, %g], got %s. (parameter=%s, value=%s)",
			name, low, high, v.Raw, name, v.Raw))
	}
}

func (f *fields) strings(name string) []string {
	v, ok := f.present(name)
	if !ok {
		return nil
	}
	if v.Type == gjson.String {
		return []string{v.Str}
	}
	if !v.IsArray() {
		f.complain(name, "Input should be a valid string or list", v)
		return nil
	}
	var stops []string
	for _, s := range v.Array() {
		stops = append(stops, s.String())
	}
	return stops
}

// readBody does what vLLM's validate_json_request and pydantic do first.
func readBody(r *http.Request) (gjson.Result, []byte, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return gjson.Result{}, nil, malformed("", "the body could not be read")
	}
	media, _, _ := strings.Cut(strings.ToLower(r.Header.Get("Content-Type")), ";")
	if strings.TrimSpace(media) != "application/json" {
		return gjson.Result{}, body, malformed("", "Unsupported Media Type: Only 'application/json' is allowed")
	}
	if !gjson.ValidBytes(body) {
		return gjson.Result{}, body, malformed("", "[{'type': 'json_invalid', 'loc': ('body', 0), 'msg': 'JSON decode error'}]")
	}
	root := gjson.ParseBytes(body)
	if !root.IsObject() {
		return gjson.Result{}, body, malformed("", "[{'loc': ('body',), 'msg': 'Input should be a valid dictionary or object to extract fields from'}]")
	}
	return root, body, nil
}

// shared reads what chat and completions have in common.
func (s *Server) shared(c *call, f *fields, r *http.Request) error {
	c.model = c.root.Get("model").String()
	c.stream = f.boolean("stream", false)
	c.n = int(f.integer("n", 1))
	c.min = int(f.integer("min_tokens", 0))
	c.ignoreEOS = f.boolean("ignore_eos", false)
	c.keepStop = f.boolean("include_stop_str_in_output", false)
	c.stops = f.strings("stop")
	c.priority = f.integer("priority", 0)
	c.budget = int(f.integer("thinking_token_budget", -1))
	f.integer("seed", 0)
	f.number("temperature", 0, math.MaxFloat64)
	f.number("top_p", math.SmallestNonzeroFloat64, 1)
	f.number("presence_penalty", -2, 2)
	f.number("frequency_penalty", -2, 2)
	if v := c.root.Get("cache_salt"); v.Exists() && v.Type != gjson.Null {
		if v.Type != gjson.String || v.Str == "" {
			return malformed("cache_salt", "Parameter 'cache_salt' must be a non-empty string if provided.")
		}
		c.salt = saltOf(v.Str)
	}
	if f.err != nil {
		return f.err
	}
	if c.n < 1 || c.n > 16384 {
		return invalid("n", fmt.Sprintf("n must be at least 1, got %d. (parameter=n, value=%d)", c.n, c.n))
	}
	if s.release.priorityHeader() {
		if v := gjson.Parse(r.Header.Get("X-Vllm-Priority")); v.Type == gjson.Number {
			c.priority = v.Int()
		}
	}
	sim := c.root.Get("sim")
	c.script = simHook{
		tokens: int(sim.Get("tokens").Int()), answer: int(sim.Get("answer_tokens").Int()), thinking: -1, calls: int(sim.Get("tool_calls").Int()),
		text: sim.Get("text").String(), hasText: sim.Get("text").Exists(),
	}
	if v := sim.Get("thinking_tokens"); v.Exists() {
		c.script.thinking = int(v.Int())
	}
	if err := s.streamOptions(c); err != nil {
		return err
	}
	if !s.options.serves(c.model) {
		return noModel(c.model)
	}
	return nil
}

func (s *Server) streamOptions(c *call) error {
	o := c.root.Get("stream_options")
	asked := o.Exists() && o.Type != gjson.Null
	if asked && !c.stream {
		return malformed("stream_options", "Stream options can only be defined when `stream=True`.")
	}
	if asked {
		include := o.Get("include_usage")
		c.usage = include.Bool() || !include.Exists() && s.release.emptyOptionsMeanUsage()
		c.running = c.usage && o.Get("continuous_usage_stats").Bool()
	}
	if s.options.ForceIncludeUsage && c.stream {
		c.usage, c.running = true, true
	}
	return nil
}

// limit resolves max_tokens against the context, with vLLM's refusals.
func (s *Server) limit(c *call, fallback int) error {
	context := s.options.MaxModelLen
	longest := 0
	for _, p := range c.prompts {
		longest = max(longest, len(p))
	}
	name := "max_tokens"
	v := c.root.Get(name)
	if o := c.root.Get("max_completion_tokens"); c.chat && o.Exists() && o.Type != gjson.Null {
		name, v = "max_completion_tokens", o
	}
	asked := v.Exists() && v.Type != gjson.Null
	c.max = fallback
	if asked {
		if v.Type != gjson.Number || v.Num != math.Trunc(v.Num) {
			return malformed(name, fmt.Sprintf("[{'loc': ('body', '%s'), 'msg': 'Input should be a valid integer', 'input': %s}]", name, v.Raw))
		}
		c.max = int(v.Int())
		if c.max == 0 && c.echo && !c.chat {
			c.max, c.echoAlone = 1, true
		}
		if c.max < 1 {
			return invalid(name, fmt.Sprintf("%s must be at least 1, got %d. (parameter=%s, value=%d)", name, c.max, name, c.max))
		}
		if c.max > context {
			return invalid(name, fmt.Sprintf("%s=%d cannot be greater than max_model_len=%d. Please request fewer output tokens. (parameter=%s, value=%d)",
				name, c.max, context, name, c.max))
		}
	}
	if c.max == 0 {
		c.max = context - longest
	}
	if longest >= context || longest+c.max > context && asked {
		return invalid("input_tokens", fmt.Sprintf("This model's maximum context length is %d tokens. However, you requested %d output tokens and your prompt contains at least %d input tokens, for a total of at least %d tokens. Please reduce the length of the input prompt or the number of requested output tokens. (parameter=input_tokens, value=%d)",
			context, max(c.max, 0), longest, longest+max(c.max, 0), longest))
	}
	c.max = min(c.max, context-longest)
	return nil
}

// parseChat understands a chat request.
func (s *Server) parseChat(r *http.Request, root gjson.Result, body []byte) (*call, error) {
	c := &call{body: body, root: root, chat: true}
	f := &fields{root: root}
	messages := root.Get("messages")
	if !messages.IsArray() {
		return nil, malformed("messages", "[{'type': 'missing', 'loc': ('body', 'messages'), 'msg': 'Field required'}]")
	}
	if len(messages.Array()) == 0 {
		return nil, invalid("messages", "messages must not be empty (parameter=messages, value=[])")
	}
	for i, m := range messages.Array() {
		if !m.IsObject() || m.Get("role").Type != gjson.String {
			return nil, malformed("messages", fmt.Sprintf("[{'loc': ('body', 'messages', %d, 'role'), 'msg': 'Field required'}]", i))
		}
	}
	c.logprobs = f.boolean("logprobs", false)
	c.top = int(f.integer("top_logprobs", 0))
	c.silent = !f.boolean("include_reasoning", true)
	c.parallel = f.boolean("parallel_tool_calls", true)
	if err := s.shared(c, f, r); err != nil {
		return nil, err
	}
	if c.top != 0 && !c.logprobs {
		return nil, malformed("top_logprobs", "when using `top_logprobs`, `logprobs` must be set to true.")
	}
	if root.Get("chat_template").Type == gjson.String {
		return nil, invalid("chat_template", "Chat template is passed with request, but --trust-request-chat-template is not set. Refused request with untrusted chat template.")
	}
	if err := s.readTools(c); err != nil {
		return nil, err
	}
	if err := readFormat(c); err != nil {
		return nil, err
	}
	if err := s.readThinking(c); err != nil {
		return nil, err
	}
	c.talk = readTalk(messages)
	if err := s.renderChat(c, messages); err != nil {
		return nil, err
	}
	return c, s.limit(c, 0)
}

// readThinking resolves the switches in vLLM's order of precedence. The
// template tests "is false", so the string "false" does nothing.
func (s *Server) readThinking(c *call) error {
	c.thinking = true
	kwargs := c.root.Get("chat_template_kwargs")
	for _, banned := range []string{"chat_template", "tokenize"} {
		if kwargs.Get(banned).Exists() {
			return invalid("chat_template_kwargs", "Found unexpected chat template kwargs from request: {'"+banned+"'}")
		}
	}
	effort := c.root.Get("reasoning_effort")
	if effort.Exists() && effort.Type != gjson.Null && !slices.Contains(s.release.efforts(), effort.String()) {
		return malformed("reasoning_effort", fmt.Sprintf("[{'type': 'literal_error', 'loc': ('body', 'reasoning_effort'), 'msg': \"Input should be one of %q\", 'input': %s}]",
			s.release.efforts(), effort.Raw))
	}
	enable := kwargs.Get("enable_thinking")
	if !enable.Exists() && s.release.effortSwitchesThinking() && effort.Type == gjson.String {
		c.thinking = effort.Str != "none"
	} else {
		c.thinking = s.thinks(enable, s.release.defaultKwargs())
	}
	if !s.release.thinkingBudget() {
		c.budget = -1
	}
	return nil
}

// thinks reports whether the template thinks, as a request's enable_thinking says, or,
// where that says nothing, the server's default, if it counts.
func (s *Server) thinks(enable gjson.Result, byDefault bool) bool {
	if !enable.Exists() || enable.Type == gjson.Null || enable.String() == "auto" {
		return !byDefault || !s.options.NoThinking
	}
	return enable.Type != gjson.False
}

func (s *Server) renderChat(c *call, messages gjson.Result) error {
	if len(messages.Raw) > s.options.MaxModelLen*128 {
		return invalid("input_text", fmt.Sprintf("This model's maximum context length is %d tokens. However, your prompt has at least %d characters. (parameter=input_text, value=%d)",
			s.options.MaxModelLen, len(messages.Raw), len(messages.Raw)))
	}
	chat, err := s.template(c.root, c.thinking)
	if err != nil {
		return err
	}
	prompt, err := qwen.Render(chat)
	if err != nil {
		return invalid("", err.Error())
	}
	c.prompts = [][]uint32{s.truncate(c.root, s.tokenizer.Append(nil, prompt))}
	return nil
}

// truncate keeps the last truncate_prompt_tokens ids of a prompt.
func (s *Server) truncate(root gjson.Result, ids []uint32) []uint32 {
	keep := int(root.Get("truncate_prompt_tokens").Int())
	if keep < 0 {
		keep = s.options.MaxModelLen - int(root.Get("max_tokens").Int())
	}
	if keep == 0 || keep >= len(ids) {
		return ids
	}
	return ids[len(ids)-keep:]
}

// template returns the chat for the template, for answers and for /tokenize. Members of
// chat_template_kwargs override the body's tools.
func (s *Server) template(root gjson.Result, thinking bool) (qwen.Chat, error) {
	generation, goesOn := root.Get("add_generation_prompt"), root.Get("continue_final_message").Bool()
	if goesOn && generation.Type != gjson.False {
		return qwen.Chat{}, invalid("", "continue_final_message and add_generation_prompt are not compatible.")
	}
	messages := []byte(root.Get("messages").Raw)
	if !s.release.readsReasoning() {
		messages = bytes.ReplaceAll(messages, []byte(`"reasoning"`), []byte(`"ignored"`))
	}
	if !s.release.readsReasoningContent() {
		messages = bytes.ReplaceAll(messages, []byte(`"reasoning_content"`), []byte(`"ignored"`))
	}
	chat := qwen.Chat{
		Messages: messages, NoThinking: !thinking, NoGenerationPrompt: generation.Type == gjson.False,
		Continue: goesOn, Dialect: s.release.dialect(),
	}
	if tools := root.Get("tools"); tools.IsArray() {
		chat.Tools = []byte(tools.Raw)
	}
	if tools := root.Get("chat_template_kwargs.tools"); tools.IsArray() {
		chat.Tools, chat.Dialect = []byte(tools.Raw), qwen.Template // nobody has dumped them
	}
	return chat, nil
}

func readTalk(messages gjson.Result) talk {
	var t talk
	system := ""
	for _, m := range messages.Array() {
		t.lastRole = m.Get("role").Str
		switch t.lastRole {
		case "user":
			t.user = plainText(m.Get("content"))
		case "system":
			system = plainText(m.Get("content"))
		}
	}
	t.noThink = strings.Contains(t.user, "/no_think") ||
		strings.Contains(system, "/no_think") && !strings.Contains(t.user, "/think")
	return t
}

// plainText joins the text parts of a message as vLLM does.
func plainText(content gjson.Result) string {
	if !content.IsArray() {
		return content.String()
	}
	var parts []string
	for _, p := range content.Array() {
		if t := p.Get("text"); t.Exists() {
			parts = append(parts, t.String())
		}
	}
	return strings.Join(parts, "\n")
}

// parseCompletion understands a text completion.
func (s *Server) parseCompletion(r *http.Request, root gjson.Result, body []byte) (*call, error) {
	c := &call{body: body, root: root}
	f := &fields{root: root}
	if v := root.Get("logprobs"); v.Exists() && v.Type != gjson.Null {
		c.logprobs, c.top = true, int(f.integer("logprobs", 0))
	}
	c.echo = f.boolean("echo", false)
	if err := s.shared(c, f, r); err != nil {
		return nil, err
	}
	if err := readFormat(c); err != nil {
		return nil, err
	}
	prompt := root.Get("prompt")
	list := prompt.Array()
	switch {
	case prompt.Type == gjson.String:
		list = []gjson.Result{prompt}
	case !prompt.IsArray() || len(list) == 0:
		return nil, invalid("prompt", "Either prompt or prompt_embeds must be provided and non-empty.")
	case list[0].Type == gjson.Number:
		list = []gjson.Result{prompt} // one prompt, as ids
	}
	for _, p := range list {
		var ids []uint32
		if p.IsArray() {
			for _, id := range p.Array() {
				ids = append(ids, uint32(id.Uint()))
			}
		} else {
			ids = s.tokenizer.Append(nil, p.String())
		}
		ids = s.truncate(root, ids)
		if len(ids) == 0 {
			return nil, invalid("prompt", "The decoder prompt cannot be empty")
		}
		c.prompts = append(c.prompts, ids)
		c.echoed = append(c.echoed, s.decode(ids))
	}
	c.talk = talk{user: c.echoed[0], lastRole: "user"}
	return c, s.limit(c, 16)
}

// decode turns ids back into text, as /detokenize does.
func (s *Server) decode(ids []uint32) string {
	var b []byte
	for _, id := range ids {
		b = s.tokenizer.AppendToken(b, id)
	}
	return strings.ToValidUTF8(string(b), "\uFFFD")
}

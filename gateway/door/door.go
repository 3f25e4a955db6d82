// Package door holds the APIs that callers speak, as data. A Door is a struct of pure
// functions over one wire format: how a body is read, how a plan is written into it, and
// how answers, keep-alives and errors look. The path of a request calls its door, and
// knows of a format only that it may be SSE. To add an API, write its door here and its
// grammar in a package beside openai, and list it in gateway.New: see docs/architecture.md.
package door

import (
	"time"

	"tidegate/gateway/openai"
	"tidegate/gateway/qwen"
	"tidegate/gateway/refusal"
)

// Door is one API. All functions are pure and safe for concurrent use.
type Door struct {
	Pattern   string // route of the front
	Path      string // path at the backend
	Operation string // gen_ai.operation.name of OpenTelemetry's conventions

	// Read parses a caller's body and translates it into what every backend reads. The
	// error is fit for the caller's eyes.
	Read func(raw []byte, limits Limits) (Parsed, error)
	// Prompt returns what the prompt's tokens are counted from. The error is fit for the
	// caller's eyes.
	Prompt func(body Body, limits Limits) (Prompt, error)
	// Needs returns what the body asks of the engine. It is called where that matters: for a
	// smaller model and for a canned answer.
	Needs func(body Body) Needs
	// Write edits the body into what one backend is sent, and returns its bytes. Edits only
	// ever reduce a request, so Write may be called again for another backend.
	Write func(body Body, e Edits) []byte
	// Language chooses one of the languages in which a canned answer is written.
	Language func(acceptLanguage string, body Body, languages []string) string

	// Stream returns a reader of a backend's events.
	Stream func(view openai.View, bounds openai.Bounds, tally func() openai.Tally) Stream
	// Answer reads a backend's answer in one piece.
	Answer func(view openai.View, body []byte, bounds openai.Bounds, tally func() openai.Tally) (openai.Answer, error)
	// BackendError reads a backend's error body.
	BackendError func(body []byte) openai.Error

	// AnswerID returns the id of an answer, as the backend makes it of the attempt's id.
	AnswerID func(attempt string) string
	// KeepAlive returns an event that says nothing. The first of a stream opens the answer.
	KeepAlive func(id, model string, created time.Time, first bool) []byte
	// Events turns an answer in one piece into the stream that the caller asked for. begun
	// is the id of keep-alives that were sent before; empty where none were.
	Events func(view openai.View, answer []byte, begun string) ([]byte, error)
	// Canned returns a whole answer without a backend.
	Canned func(id, model string, created time.Time, choices int, structured bool, text string) []byte
	// Announce returns an answer in one piece with a notice of its level.
	Announce func(answer []byte, notice openai.Notice) []byte
	// Error returns the body of a refusal.
	Error func(*refusal.Refusal) []byte
	// ErrorEvent returns the event by which a stream that has begun ends in a refusal.
	ErrorEvent func(*refusal.Refusal) []byte
}

// Body is a caller's body, as its door holds it. It is not safe for concurrent use.
type Body interface {
	// Compact drops what the body does not need, and returns how many bytes it holds.
	Compact() int
}

// Needs holds what a request asks of the engine beyond what every vLLM can do.
type Needs struct {
	openai.Needs
	Guided bool // the answer must fit a grammar that not every engine has
}

// Limits bound what a body may ask for.
type Limits struct {
	MaxN       int // choices per prompt
	MaxPrompts int // prompts of one request
}

// Prompt holds what the engine makes tokens of: a conversation or plain prompts.
type Prompt struct {
	Chat  qwen.Chat       // conversation, whose thinking switch the path sets
	Texts []openai.Prompt // prompts without a template; nil where the prompt is a conversation
}

// Parsed holds what the path needs to know of a body.
type Parsed struct {
	Body Body
	Wish openai.Wish

	DefaultLimit int  // tokens of an answer whose caller sets no limit; 0: as many as fit
	Growth       int  // tokens by which the prompt grows where thinking is switched off
	Margin       int  // tokens by which engines' versions may differ in rendering the prompt
	Echo         bool // each choice begins with its prompt

	PromptParam string // parameter that holds the prompt, for errors
	LimitParam  string // parameter that holds the limit, for errors
}

// Edits holds what a plan writes into a body for one backend.
type Edits struct {
	Model        string // name that the backend knows the model by
	Priority     int64  // scheduling priority
	HasPriority  bool   // the backend schedules by priority; others refuse the field
	Stream       bool   // the backend streams its answer
	OneChoice    bool   // one choice per prompt
	Limit        int    // tokens that a choice may have; 0: as the caller wrote it
	StopThinking bool   // the chat template is told not to think
	Truncates    bool   // the caller asked for a cut prompt
	Truncate     int    // tokens to which it is cut; 0: it fits as it is

	Known              bool // the backend's version is known, and the next two hold
	ReasoningEffort    bool // the version reads reasoning_effort
	OnlyReasoningField bool // the version reads the field reasoning, not reasoning_content
}

// Stream reads one streamed answer. One goroutine may use it.
type Stream interface {
	// Event appends what the caller gets for one event of the backend, which may be nothing.
	Event(dst, data []byte) ([]byte, error)
	// Holding reports whether the end of the answer waits for the backend's usage.
	Holding() bool
	// Rest appends what is held back.
	Rest(dst []byte) []byte
	// Done reports whether the answer is whole.
	Done() bool
	// Usage returns the tokens so far; estimated says that a figure is the gateway's own.
	Usage() (u openai.Usage, estimated bool)
	// Longest returns the output tokens of the longest choice.
	Longest() int
	// Faults returns what was wrong with the backend's usage.
	Faults() openai.Faults
}

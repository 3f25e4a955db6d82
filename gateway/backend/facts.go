package backend

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"
)

// learn reads the models, the context, the version and the chat template of the backend.
func (p *prober) learn(ctx context.Context) error {
	f, err := p.identify(ctx)
	if err != nil {
		return err
	}
	p.learnThinking(ctx, &f)
	p.b.facts.Store(&f)
	p.factsTime = time.Now()
	return nil
}

// identify reads the models of the backend, finds the configured one, and reads the
// version.
func (p *prober) identify(ctx context.Context) (Facts, error) {
	body, err := p.ask(ctx, "/v1/models")
	if err != nil {
		return Facts{}, err
	}
	cards, err := readModels(body)
	if err != nil {
		return Facts{}, err
	}
	f := Facts{Names: namesOf(cards)}
	wanted := p.names
	if name := p.b.config.Serves; name != "" {
		wanted = []string{name}
	}
	f.Serves = match(f.Names, wanted)
	if f.Serves == "" {
		return Facts{}, fmt.Errorf("it serves %s, none of which is %s: set serves on the backend to the name it uses",
			list(f.Names), list(wanted))
	}
	if f.MaxModelLen, err = contextOf(cards, f.Serves); err != nil {
		f.Warnings = append(f.Warnings, err.Error())
	}
	var version struct{ Version string }
	if body, err := p.ask(ctx, "/version"); err == nil && json.Unmarshal(body, &version) == nil {
		f.Version = printed(version.Version, maxVersion)
		f.Capabilities = capabilitiesOf(f.Version)
	}
	return f, nil
}

// Ask checks once whether a backend is healthy and serves a model of one of the names.
// It costs no tokens.
func Ask(ctx context.Context, c Config, names []string, client *http.Client) (Facts, error) {
	p := prober{b: New(c, "tidegate"), client: client, names: names}
	if _, err := p.ask(ctx, "/health"); err != nil {
		return Facts{}, err
	}
	return p.identify(ctx)
}

// A modelCard is one model of GET /v1/models, as vLLM writes it. An adapter (LoRA) names
// the model that it belongs to as its parent and has no length of its own.
type modelCard struct {
	ID          string          `json:"id"`
	Root        *string         `json:"root"`
	Parent      *string         `json:"parent"`
	MaxModelLen json.RawMessage `json:"max_model_len"`
}

func readModels(body []byte) (cards []modelCard, err error) {
	var list struct{ Data []modelCard }
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("GET /v1/models: %w", err)
	}
	for _, m := range list.Data[:min(len(list.Data), maxNames)] {
		if m.ID != "" && printed(m.ID, maxName) == m.ID { // else nobody can configure the name, and it is unfit to be shown
			cards = append(cards, m)
		}
	}
	if len(cards) == 0 {
		return nil, errors.New("GET /v1/models: lists no model")
	}
	return cards, nil
}

func namesOf(cards []modelCard) []string {
	names := make([]string, len(cards))
	for i, m := range cards {
		names[i] = m.ID
	}
	return names
}

// maxContext is the largest credible context, in tokens.
const maxContext = 1 << 27

// contextOf returns the context of a served name in tokens; 0 and an error if it is
// unknown. Other models of the server, which may be a router, do not count.
func contextOf(cards []modelCard, name string) (int, error) {
	find := func(matches func(modelCard) bool) *modelCard {
		for i := range cards {
			if matches(cards[i]) {
				return &cards[i]
			}
		}
		return nil
	}
	card := find(func(m modelCard) bool { return m.ID == name })
	for range cards { // as many steps at most, should parents form a ring
		if card == nil || !isNull(card.MaxModelLen) || card.Parent == nil {
			break
		}
		parent := *card.Parent
		if card = find(func(m modelCard) bool { return m.ID == parent }); card == nil {
			card = find(func(m modelCard) bool { return m.Root != nil && *m.Root == parent && m.Parent == nil })
		}
	}
	if card == nil || isNull(card.MaxModelLen) {
		return 0, fmt.Errorf("GET /v1/models gives no max_model_len of %s: its context is not known, and no answer is limited by it", name)
	}
	n, err := strconv.ParseFloat(string(card.MaxModelLen), 64)
	if err != nil || n < 1 || n > maxContext || n != float64(int(n)) {
		return 0, fmt.Errorf("GET /v1/models gives %s a max_model_len of %s, which is no number of tokens from 1 to %d: its context is not known, and no answer is limited by it",
			name, printed(string(card.MaxModelLen), 40), maxContext)
	}
	return int(n), nil
}

func isNull(raw json.RawMessage) bool { return len(raw) == 0 || string(raw) == "null" }

// The chat that tells whether a server thinks by default, and how many tokens Qwen3's
// template makes of it.
const (
	probeChat      = `"messages":[{"role":"user","content":"Hello"}]`
	thinkingTokens = 9
	quietTokens    = 13 // with <think>\n\n</think>\n\n at the end
)

// learnThinking finds out whether the server was started with enable_thinking: false in
// --default-chat-template-kwargs. Its /tokenize tells, at no cost to its GPUs, but not
// before vLLM 0.18, and such a server is asked, once since it came up, for an answer of
// one token. Where neither answers, what was known before of that release and name
// holds, also after the server was down.
func (p *prober) learnThinking(ctx context.Context, f *Facts) {
	old := p.b.Facts()
	unchanged := old.Version == f.Version && old.Serves == f.Serves
	f.NoThinking = unchanged && old.NoThinking
	if !f.Capabilities.defaultKwargs() {
		return
	}
	n, err := p.promptTokens(ctx, "/tokenize", f.Serves, "")
	if err == nil && n != thinkingTokens && n != quietTokens {
		f.Warnings = append(f.Warnings, fmt.Sprintf("its chat template makes %d tokens of a chat that Qwen3's makes %d or %d of: prompts are counted by Qwen3's until its own usage is known",
			n, thinkingTokens, quietTokens))
		f.NoThinking = false // what was known is of another template
		return
	}
	switch {
	case f.Capabilities.tokenizesByDefaults():
		if err != nil {
			return
		}
	case unchanged && !p.factsTime.IsZero() && p.tokenAsked.After(p.b.started()):
		return
	default:
		if n, err = p.promptTokens(ctx, "/v1/chat/completions", f.Serves, `,"max_tokens":1`); err != nil {
			p.tokenAsked = time.Time{} // it is asked again
			return
		}
		p.tokenAsked = time.Now()
	}
	f.NoThinking = n == quietTokens
}

// started returns the time of the last restart that was seen; zero before the first.
func (b *Backend) started() time.Time {
	if e := b.engine.Load(); e != nil {
		return e.Started
	}
	return time.Time{}
}

// promptTokens makes the backend count the tokens of the probe chat.
func (p *prober) promptTokens(ctx context.Context, route, model, fields string) (int, error) {
	name, err := json.Marshal(model)
	if err != nil {
		return 0, err
	}
	body, err := p.exchange(ctx, http.MethodPost, route, bytes.NewReader([]byte(`{"model":`+string(name)+`,`+probeChat+fields+`}`)))
	if err != nil {
		return 0, err
	}
	var answer struct {
		Count *int
		Usage struct {
			PromptTokens *int `json:"prompt_tokens"`
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return 0, err
	}
	for _, n := range []*int{answer.Count, answer.Usage.PromptTokens} {
		if n != nil {
			return *n, nil
		}
	}
	return 0, fmt.Errorf("POST %s: no count in the answer", route)
}

// match returns the served name that equals one of the wanted names, or whose last path
// element does (Qwen/Qwen3-1.7B).
func match(served, names []string) string {
	for _, equal := range []func(a, b string) bool{
		func(a, b string) bool { return a == b },
		func(a, b string) bool { return strings.EqualFold(path.Base(a), path.Base(b)) },
	} {
		for _, s := range served {
			for _, n := range names {
				if equal(s, n) {
					return s
				}
			}
		}
	}
	return ""
}

// Discover asks an unknown backend for the names that it serves.
func Discover(ctx context.Context, c Config, client *http.Client) (Facts, error) {
	p := prober{b: New(c, "tidegate"), client: client}
	body, err := p.ask(ctx, "/v1/models")
	if err != nil {
		return Facts{}, err
	}
	cards, err := readModels(body)
	if err != nil {
		return Facts{}, err
	}
	f := Facts{Names: namesOf(cards)}
	f.MaxModelLen, _ = contextOf(cards, f.Names[0]) // the prober says what is wrong with it
	return f, nil
}

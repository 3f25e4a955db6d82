package gateway

import (
	"slices"
	"strconv"
	"strings"

	"tidegate/admission/limit"
	"tidegate/gateway/account"
	"tidegate/gateway/backend"
	"tidegate/gateway/backend/exchange"
	"tidegate/gateway/door"
	"tidegate/gateway/openai"
	"tidegate/gateway/refusal"
)

// pickModel finds the model that a caller names and may use.
func (g *Gateway) pickModel(c *call, name string) (*backend.Model, error) {
	c.request.Wish.Model = name // for the log
	m, ok := g.Fleet.Model(name)
	if !ok {
		return nil, refusal.UnknownModel(name, g.usable(c))
	}
	if !c.mayUse(m) {
		return nil, refusal.New(refusal.ModelNotAllowed, "model", "this key may not use the model "+refusal.Quote(name)+": "+refusal.SuggestModel(name, g.usable(c)))
	}
	return m, nil
}

// askedModel finds the model that a generation is for. As with vLLM, it need not be named
// where there is only one: here, one that the key may use.
func (g *Gateway) askedModel(c *call) (*backend.Model, error) {
	if c.request.Wish.Model != "" {
		return g.pickModel(c, c.request.Wish.Model)
	}
	var single *backend.Model
	usable := 0
	for _, m := range g.Fleet.Models() {
		if c.mayUse(m) {
			single = m
			usable++
		}
	}
	if usable != 1 {
		return nil, refusal.New(refusal.InvalidRequest, "model", "model is missing: "+refusal.SuggestModel("", g.usable(c)))
	}
	c.request.Wish.Model = single.Name
	return single, nil
}

// usable returns the names of the models, aliases included, that the caller's key may use.
func (g *Gateway) usable(c *call) []string {
	var names []string
	for _, m := range g.Fleet.Models() {
		if c.mayUse(m) {
			names = append(append(names, m.Name), m.Aliases...)
		}
	}
	return names
}

// mayUse reports whether a caller's key may use a model; an allow-list may name an alias.
func mayUse(caller *account.Identity, m *backend.Model) bool {
	return caller.MayUse(m.Name) || slices.ContainsFunc(m.Aliases, caller.MayUse)
}

// modelCard is a model as GET /v1/models shows it: OpenAI's fields, and vLLM's.
type modelCard struct {
	ID          string `json:"id"`
	Object      string `json:"object"`
	Created     int64  `json:"created"`
	OwnedBy     string `json:"owned_by"`
	Root        string `json:"root"` // the model itself, where id is an alias
	MaxModelLen *int   `json:"max_model_len"`
	Context     *int   `json:"context_length"` // the same, under the name that other gateways use
}

// cards are the models that the caller may use, aliases included.
func (g *Gateway) cards(c *call) []modelCard {
	cards := []modelCard{}
	for _, m := range g.Fleet.Models() {
		if !c.mayUse(m) {
			continue
		}
		var length *int
		if n := m.Context(); n > 0 {
			length = &n
		}
		for _, name := range append([]string{m.Name}, m.Aliases...) {
			cards = append(cards, modelCard{name, "model", g.began.Unix(), "tidegate", m.Name, length, length})
		}
	}
	return cards
}

// aux lets callers through to a route that generates nothing, as often as
// aux_requests says.
func (g *Gateway) aux(h handler) handler {
	return func(c *call) error {
		if err := c.identify(); err != nil {
			return err
		}
		if err := g.Admission.Count(c.r.Context(), limit.Request{ID: c.id, Subjects: c.limitSubjects(), Tier: string(c.caller.Tier)}); err != nil {
			return err
		}
		return h(c)
	}
}

// models lists what this key may use.
func (g *Gateway) models(c *call) error {
	return c.writer.sendJSON(map[string]any{"object": "list", "data": g.cards(c)})
}

// model shows one of them; ids may have slashes.
func (g *Gateway) model(c *call) error {
	id := strings.TrimPrefix(c.r.URL.Path, "/v1/models/")
	for _, card := range g.cards(c) {
		if card.ID == id {
			return c.writer.sendJSON(card)
		}
	}
	return refusal.UnknownModel(id, g.usable(c))
}

// tokenize answers vLLM's route of this name itself: how many tokens a prompt or
// a conversation has, exactly, and which.
func (g *Gateway) tokenize(c *call) error {
	raw, err := c.readBody()
	if err != nil {
		return err
	}
	body, fault := openai.ParseRequest(openai.Chat, raw)
	if fault != nil {
		return fault
	}
	var model *backend.Model
	if name, ok, fault := body.Text("model"); fault != nil {
		return fault
	} else if ok {
		if model, err = g.pickModel(c, name); err != nil {
			return err
		}
	}
	prompt, ok, fault := body.Text("prompt")
	if fault != nil {
		return fault
	}
	keep, fault := body.Truncation()
	if fault != nil {
		return fault
	}
	if !ok {
		if prompt, err = g.promptOf(body, model); err != nil {
			return err
		}
	}
	if err := c.hold(len(raw) + len(prompt) + idBytes*(len(prompt)/3+8)); err != nil {
		return err
	}
	ids := g.Tokenizer.Append(make([]uint32, 0, len(prompt)/3+8), prompt)
	if err := c.hold(idBytes * cap(ids)); err != nil { // the text is forgotten
		return err
	}
	if keep > 0 && keep < len(ids) {
		// As a generation would cut it; vLLM keeps the end unless told otherwise.
		if side, _, _ := body.Text("truncation_side"); side == "right" {
			ids = ids[:keep]
		} else {
			ids = ids[len(ids)-keep:]
		}
	}
	length := 0
	if model != nil {
		length = model.Context()
	}
	return c.replyTokens(ids, length)
}

const (
	idBytes     = 4        // of a token's id in memory
	answerChunk = 32 << 10 // bytes of an answer that are made at a time
)

// replyTokens sends what /tokenize found, piece by piece: the text of a million ids is
// never in memory as a whole. context is that of the model; 0: none was named.
func (c *call) replyTokens(ids []uint32, context int) error {
	out := make([]byte, 0, min(answerChunk, 128+8*len(ids))+16)
	out = strconv.AppendInt(append(out, `{"count":`...), int64(len(ids)), 10)
	if context > 0 {
		out = strconv.AppendInt(append(out, `,"max_model_len":`...), int64(context), 10)
	}
	out = append(out, `,"token_strs":null,"tokens":[`...)
	length := len(out) + len("]}") + max(len(ids)-1, 0)
	for _, id := range ids {
		length += digits(id)
	}
	h := c.writer.w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(length))
	c.writer.sendHead()
	for i, id := range ids {
		if len(out) >= answerChunk {
			if _, err := c.writer.w.Write(out); err != nil {
				return exchange.ErrLeft
			}
			out = out[:0]
		}
		if i > 0 {
			out = append(out, ',')
		}
		out = strconv.AppendUint(out, uint64(id), 10)
	}
	if _, err := c.writer.w.Write(append(out, "]}"...)); err != nil {
		return exchange.ErrLeft
	}
	return nil
}

// digits counts the decimal digits of a number.
func digits(n uint32) int {
	count := 1
	for ; n >= 10; n /= 10 {
		count++
	}
	return count
}

// promptOf returns the prompt of a conversation as it would be sent on.
func (g *Gateway) promptOf(body *openai.Request, m *backend.Model) (string, error) {
	if _, ok := body.Raw("messages"); !ok {
		return "", refusal.New(refusal.InvalidRequest, "prompt", "the body must have a prompt or messages")
	}
	noThinking, open, fault := body.ThinkingSwitch()
	if fault != nil {
		return "", fault
	}
	chat := door.ChatOf(body)
	chat.NoThinking = noThinking || open && m != nil && m.NoThinking()
	return renderChat(g.Counter, chat, m)
}

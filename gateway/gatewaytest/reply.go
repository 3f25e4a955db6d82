package gatewaytest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"github.com/tidwall/gjson"
)

var (
	errGone   = errors.New("the client has left")
	errStruck = errors.New("a fault struck")
)

// reply is one generation request on its way out.
type reply struct {
	server  *Server
	call    *call
	id      string
	created int64
	choices []*choice
	ready   chan struct{}
	strike  strike
	record  *Record
	dealt   int // tokens handed to the client so far, over all choices
}

// choice is one answer of a request.
type choice struct {
	index    int
	seq      *sequence
	script   *script
	prompt   int
	cached   int
	tools    []calledTool
	sent     int // tokens consumed
	textSent int // text consumed
	opened   bool
	done     bool
}

type calledTool struct{ id, name string }

type parser func(*http.Request, gjson.Result, []byte) (*call, error)

// generation returns the handler of a generating route.
func (s *Server) generation(parse parser) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s.inFlight.Add(1)
		defer s.inFlight.Add(-1)
		record := s.log.open(r)
		defer s.log.close(record)
		strike := s.faults.draw()
		root, body, err := readBody(r)
		record.Body = body
		record.Model = root.Get("model").String()
		record.Stream = root.Get("stream").Bool()
		if s.strikeBefore(w, r, strike, record) {
			return
		}
		var c *call
		if err == nil {
			err = s.engine.admit(int(max(1, root.Get("n").Int())))
		}
		if err == nil {
			c, err = parse(r, root, body)
		}
		if err == nil && !c.stream {
			err = s.late(c)
		}
		if err != nil {
			record.Status = writeError(w, err)
			return
		}
		p := s.newReply(r, c, record, strike)
		if err := p.start(); err != nil {
			record.Status = writeError(w, err)
			return
		}
		defer p.settle()
		if c.stream {
			p.stream(w, r)
		} else {
			p.whole(w, r)
		}
	}
}

// late returns an error that only vLLM's engine finds: in a stream it follows the 200.
func (s *Server) late(c *call) error {
	if c.top > 20 {
		return invalid("logprobs", fmt.Sprintf("Requested sample logprobs of %d, which is greater than max allowed: 20 (parameter=logprobs, value=%d)", c.top, c.top))
	}
	if c.budget >= 0 && s.options.ReasoningParser == "" {
		return invalid("thinking_token_budget", "thinking_token_budget is set but reasoning_config is not configured. Please set --reasoning-parser or --reasoning-config. (parameter=thinking_token_budget, value="+fmt.Sprint(c.budget)+")")
	}
	return nil
}

func (s *Server) newReply(r *http.Request, c *call, record *Record, strike strike) *reply {
	id := r.Header.Get("X-Request-Id")
	if id == "" {
		id = c.root.Get("request_id").String()
	}
	if id == "" {
		id = randomID()
	}
	prefix := "cmpl-"
	if c.chat {
		prefix = "chatcmpl-"
	}
	p := &reply{
		server: s, call: c, id: prefix + id, created: time.Now().Unix(),
		ready: make(chan struct{}, 1), strike: strike, record: record,
	}
	called := c.calls()
	for i := range len(c.prompts) * c.n {
		prompt := c.prompts[i/c.n]
		sc := s.write(c, prompt, i)
		ch := &choice{index: i, script: sc, prompt: len(prompt)}
		for _, t := range called {
			ch.tools = append(ch.tools, calledTool{"chatcmpl-tool-" + randomID(), t.name})
		}
		ch.seq = &sequence{
			prompt: prompt, salt: c.salt, hashes: blockHashes(c.salt, prompt), script: sc,
			priority: c.priority, extraITL: strike.slow, maxNew: c.max, fanout: c.n, ready: p.ready,
		}
		p.choices = append(p.choices, ch)
	}
	record.ID, record.ResponseID, record.Priority = id, p.id, c.priority
	record.Prompt = p.promptTokens()
	return p
}

func randomID() string { return fmt.Sprintf("%016x%016x", rand.Uint64(), rand.Uint64()) }

func (p *reply) start() error {
	seqs := make([]*sequence, len(p.choices))
	for i, ch := range p.choices {
		seqs[i] = ch.seq
	}
	return p.server.engine.submit(seqs)
}

// settle aborts what still runs and writes down what the engine did.
func (p *reply) settle() {
	for _, ch := range p.choices {
		p.server.engine.abort(ch.seq)
	}
	p.server.engine.report(p)
}

func (p *reply) promptTokens() int {
	n := 0
	for _, ids := range p.call.prompts {
		n += len(ids)
	}
	return n
}

func (p *reply) completionTokens() int {
	n := 0
	for _, ch := range p.choices {
		n += ch.sent
	}
	return n
}

// echo returns the prompt in front of a text completion that asked for it.
func (p *reply) echo(ch *choice) string {
	if !p.call.echo {
		return ""
	}
	return p.call.echoed[ch.index/p.call.n]
}

// follow hands out tokens as the engine deals them, until all choices are done.
// It merges what has come in meanwhile, and stops exactly where a fault strikes.
func (p *reply) follow(ctx context.Context, interval int, emit func(ch *choice, n int, final bool) error) error {
	for {
		if p.allowed() == 0 {
			return errStruck
		}
		moved, open := false, false
		for _, ch := range p.choices {
			if ch.done {
				continue
			}
			n, final, err := p.fresh(ch, interval)
			if err != nil {
				return err
			}
			if n > 0 {
				moved = true
				if err := emit(ch, n, final); err != nil {
					return errGone
				}
				ch.sent += n
				ch.done = final
				p.dealt += n
			}
			open = open || !ch.done
		}
		switch {
		case !open:
			return nil
		case ctx.Err() != nil:
			return errGone
		case moved:
			continue
		}
		select {
		case <-p.ready:
		case <-ctx.Done():
			return errGone
		case <-p.server.closing:
			return errGone
		}
	}
}

// allowed returns the number of tokens that may go out before the fault strikes.
func (p *reply) allowed() int {
	if p.strike.midway == "" {
		return math.MaxInt
	}
	return max(0, p.strike.delay-p.dealt)
}

// fresh returns the number of new tokens of a choice to send now.
func (p *reply) fresh(ch *choice, interval int) (n int, final bool, err error) {
	allowed := p.allowed()
	state := p.server.engine.poll(ch.seq, min(interval, allowed))
	if state.state == failed || state.state == aborted {
		return 0, false, engineDead()
	}
	ch.cached = state.cached
	n = state.produced - ch.sent
	final = state.state == finished
	switch {
	case n > allowed:
		return allowed, false, nil
	case !final && n < interval && ch.sent > 0 && n < allowed:
		return 0, false, nil
	}
	return n, final, nil
}

// whole answers at the end.
func (p *reply) whole(w http.ResponseWriter, r *http.Request) {
	err := p.follow(r.Context(), 1<<20, func(*choice, int, bool) error { return nil })
	switch {
	case errors.Is(err, errGone):
		return
	case errors.Is(err, errStruck):
		p.strikeMidway(w, r, nil)
		return
	case err != nil:
		p.record.Status = writeError(w, err)
		return
	}
	body := p.appendWhole(nil)
	if p.strike.split || p.strike.crlf {
		// Pretty JSON is legal too; here only the cutting matters.
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusOK)
		out := p.strike.sink(w)
		err = out.write(body)
	} else {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		w.WriteHeader(http.StatusOK)
		_, err = w.Write(body)
	}
	p.record.Status = http.StatusOK
	if err == nil {
		for _, ch := range p.choices {
			p.record.deliver(ch.index, len(p.choices), ch.sent)
		}
		p.record.DeliveredPrompt = p.promptTokens()
	}
}

// stream answers chunk by chunk. The headers go out before the first token.
func (p *reply) stream(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	w.WriteHeader(http.StatusOK)
	p.record.Status = http.StatusOK
	out := p.strike.sink(w)
	if out.flush() != nil {
		return
	}
	err := p.server.late(p.call)
	if err == nil {
		err = p.follow(r.Context(), p.server.options.StreamInterval, func(ch *choice, n int, final bool) error {
			return p.emit(out, ch, n, final)
		})
	}
	switch {
	case errors.Is(err, errGone):
		return
	case errors.Is(err, errStruck):
		p.strikeMidway(w, r, out)
		return
	case err != nil:
		_ = out.event(asAPIError(err).body())
	case p.call.usage:
		if out.event(p.appendUsageChunk(nil)) == nil {
			for _, ch := range p.choices {
				p.record.deliver(ch.index, len(p.choices), ch.sent)
			}
			p.record.DeliveredPrompt = p.promptTokens()
		}
	}
	_ = out.event([]byte("[DONE]"))
}

// emit writes the chunks for n more tokens of a choice.
func (p *reply) emit(out *sink, ch *choice, n int, final bool) error {
	first := !ch.opened
	if first {
		ch.opened = true
		if p.call.chat {
			if err := out.event(p.appendRole(out.scratch(), ch)); err != nil {
				return err
			}
		}
	}
	end := int(ch.script.shown[ch.sent+n-1])
	part := ch.script.slice(ch.textSent, end)
	ch.textSent = max(ch.textSent, end)
	if p.call.echoAlone {
		part.content = ""
	}
	if first && !p.call.chat {
		part.content = p.echo(ch) + part.content
	}
	buffered := p.server.options.ReasoningParser != "" || len(p.call.tools) > 0
	if part.empty() && !final && buffered && p.call.chat && !p.call.logprobs {
		return nil // a parser holds it
	}
	if err := out.event(p.appendChunk(out.scratch(), ch, part, n, final)); err != nil {
		return err
	}
	if p.call.running {
		p.record.deliver(ch.index, len(p.choices), ch.sent+n)
		p.record.DeliveredPrompt = ch.prompt
	}
	return nil
}

// message returns the whole text of a choice, taken apart as the reasoning parser
// of this server does for answers that are not streamed.
func (p *reply) message(ch *choice) (part piece, noContent bool) {
	sc := ch.script
	part = sc.slice(0, len(sc.text))
	if sc.called > 0 && strings.TrimSpace(part.content) == "" && len(part.tools) > 0 {
		return part, true
	}
	switch p.server.options.ReasoningParser {
	case "deepseek_r1":
		if !sc.thinkClosed() { // thinking off, too: vLLM's known quirk
			part.reasoning += part.content
			part.content = ""
			return part, true
		}
	case "qwen3":
		if p.call.thinking && !sc.thinkClosed() && part.reasoning != "" {
			if p.server.release.needsBothThinkMarks() {
				return piece{content: sc.text}, false
			}
			return part, true
		}
	}
	return part, false
}

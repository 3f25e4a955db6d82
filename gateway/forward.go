package gateway

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"tidegate/admission"
	"tidegate/gateway/account"
	"tidegate/gateway/backend"
	"tidegate/gateway/openai"
)

// Bounds in bytes.
const (
	maxAnswer = 64 << 20 // of a server's answer in one piece
	maxError  = 64 << 10 // of what is read of a server's refusal
	passOn    = 32 << 10 // of a stream, before it is flushed at the latest
)

// forward sends the request to the permit's backend and the answer to the caller.
// A failure of which the caller has seen nothing is tried again, elsewhere.
func (g *Gateway) forward(c *call, permit *admission.Permit) (err error) {
	c.model.Retries.Request()
	asked := c.model
	var doubted []doubt
	for n := 1; ; n++ {
		b := g.backendOf(c, permit)
		if b == nil {
			return admission.ErrNoBackend // a reload took it away meanwhile
		}
		if n > 1 {
			permit.Since = time.Now() // what went before is not this server's fault
		}
		if c.out.begun == "" { // else the caller has been told an id, and the answer keeps it
			c.out.id = c.id + "-" + strconv.Itoa(n)
		}
		err = b.Guard(func() error { return g.attempt(c, b, permit, n) })
		switch {
		case c.out.answered || err == nil:
			for _, d := range doubted {
				if c.model == asked { // a smaller model's answer says nothing of it
					d.backend.Blame(d.err, b)
				}
			}
			return err
		case !backend.Retryable(err) || !g.elsewhere(c, b, permit, n):
			return err
		case backend.Doubtful(err):
			doubted = append(doubted, doubt{b, err})
		}
	}
}

// doubt is a failure of which it is not known yet whose fault it was.
type doubt struct {
	backend *backend.Backend
	err     error
}

// elsewhere takes a place for the next attempt after the nth has failed on b: on another
// backend of the model while it may be tried there, else on the fallback model, once.
// The budget of retries bounds both.
func (g *Gateway) elsewhere(c *call, b *backend.Backend, permit *admission.Permit, n int) bool {
	if !c.retries(b) {
		return false
	}
	if n < c.model.Attempts && permit.Another() {
		return true
	}
	// Who has been told a level and a model must be answered so.
	if c.sent || !g.Admission.FallBack(permit, g.demand(c)) || g.descend(c, permit) != nil {
		return false
	}
	c.stand(permit.Level, permit.Reason)
	return true
}

// retries takes one retry of a request that failed on b; false: there is none left.
func (c *call) retries(b *backend.Backend) bool {
	if c.paid {
		c.paid = false
		return true
	}
	return c.model.Attempts >= 2 && (c.model.Retries.Retry() || b.Move(time.Now()))
}

// moves reports whether the nth attempt, which waits on b, is better given up for another
// one, and takes the retry for that.
func (g *Gateway) moves(c *call, b *backend.Backend, permit *admission.Permit, n int) bool {
	if !(n < c.model.Attempts && permit.Elsewhere()) && (c.sent || !g.Admission.FallsBack(permit, g.demand(c))) {
		return false
	}
	c.paid = c.retries(b)
	return c.paid
}

// backendOf is the backend that a permit names. One that was added while the request
// waited stands only in the configuration of now.
func (g *Gateway) backendOf(c *call, permit *admission.Permit) *backend.Backend {
	if b := c.model.On(permit.Backend()); b != nil {
		return b
	}
	m, ok := g.Fleet.Model(c.model.Name)
	if !ok || m.Pool != permit.Pool() {
		return nil
	}
	c.model = m
	return m.On(permit.Backend())
}

// attempt is one exchange with one backend, the nth of the request.
func (g *Gateway) attempt(c *call, b *backend.Backend, permit *admission.Permit, n int) (err error) {
	first := c.backend == ""
	c.backend = b.Name
	header := c.tracing.send(c, b)
	ended := errPanic
	defer func() {
		g.metrics.attempted(c.model.Name, b.Name, ended)
		c.flowed(b, c.usage)
		c.tracing.sent(c, ended)
	}()

	out := c.out
	q := &backend.Request{
		Path: path(c.kind), ID: out.id, Body: c.bodyFor(b), Stream: c.streamed, Limits: c.model.Timeouts, Header: header,
		Prompt: c.prompt, Answer: c.limit, Elsewhere: func() bool { return g.moves(c, b, permit, n) },
	}
	sent := time.Now()
	if first {
		c.overhead = sent.Sub(c.began) - c.reading - permit.Waited
	}
	q.Silence, q.SilenceAfter = out.silence, c.set.KeepAlive.After
	if !c.streamed {
		q.SilenceAfter = guessEvery
		q.Silence = func(now time.Time) time.Duration {
			guess := c.guess(b.Pace.Tokens(now.Sub(sent)))
			c.progress(guess)
			c.flowed(b, guess)
			permit.Delivered(int64(guess.Output))
			permit.Progress(charge(guess))
			if c.wish.Stream {
				return min(out.silence(now), guessEvery)
			}
			return guessEvery
		}
	}
	answer, err := b.Send(c.r.Context(), q)
	if err == nil {
		defer answer.Close()
		switch {
		case answer.Status != http.StatusOK:
			c.retry = max(c.retry, retryAfter(answer.Header, time.Now()))
			err = refused(answer)
		case c.streamed:
			var longest int
			longest, err = g.stream(c, b, answer, permit)
			b.Pace.Observe(c.firstToken.Sub(sent), out.lastWrite.Sub(c.firstToken), longest)
			b.Pace.ObservePrompt(c.firstToken.Sub(sent), c.usage.Input-c.usage.Cached)
			if !c.firstToken.IsZero() && c.who.Tier != account.Batch { // nobody waits for a batch
				b.Pace.First(c.firstToken, c.firstToken.Sub(permit.Since))
			}
		default:
			var body []byte
			if body, err = readAll(answer); err != nil {
				break
			}
			read := time.Now() // how long the caller takes to read says nothing of the server
			if err = g.whole(c, b, body); out.answered {
				c.pace(b, read, read.Sub(sent), permit)
			}
		}
	}
	if !out.answered && c.unseen(err) {
		tokens := b.Pace.Tokens(time.Since(sent))
		if b.Silent(sent, time.Now()) {
			tokens = 0 // it hung
		}
		g.abandoned(c, b, tokens)
	}
	ended = err
	return err
}

// pace learns from an answer in one piece how fast a backend is.
func (c *call) pace(b *backend.Backend, now time.Time, took time.Duration, permit *admission.Permit) {
	tokens := c.usage.Output / c.answers
	if decode, known := b.Pace.Decode(tokens); known && c.who.Tier != account.Batch { // nobody waits for a batch
		b.Pace.First(now, max(now.Sub(permit.Since)-decode, time.Millisecond))
	}
	b.Pace.ObserveWhole(took, tokens)
}

// unseen reports whether an attempt that failed is charged although nothing of its
// answer was seen: the caller left, or the server was still making an answer in one
// piece when its time was over. A server that hung was not.
func (c *call) unseen(err error) bool {
	var timeout *backend.TimeoutError
	if errors.Is(err, backend.ErrLeft) {
		return true
	}
	return !c.streamed && errors.As(err, &timeout) && (timeout.Phase == backend.Total || timeout.Phase == backend.FirstByte && !timeout.Silent)
}

// guessEvery is how often it is noted, by the ledger and by the limits, what an answer
// in one piece may have taken so far, should this process be killed.
const guessEvery = 100 * time.Millisecond

// abandoned charges a request that ended before the server had said what it took.
// A request that failed before its first token is charged nothing.
func (g *Gateway) abandoned(c *call, b *backend.Backend, tokens int) {
	c.charged, c.usage, c.estimated = true, c.guess(tokens), !c.streamed
	if c.estimated {
		g.corrected(b, openai.FaultUnseen)
	}
}

// guess is what a request has taken of which nothing has come: its prompt, and where
// it is not streamed what all its choices have by now, by an estimate of one.
func (c *call) guess(tokens int) openai.Usage {
	u := openai.Usage{Input: c.prompt}
	if !c.streamed {
		if c.limit > 0 {
			tokens = min(tokens, c.limit)
		}
		u.Output = openai.Times(tokens, c.answers)
	}
	return u
}

func path(kind openai.Route) string {
	if kind == openai.Completions {
		return "/v1/completions"
	}
	return "/v1/chat/completions"
}

// bodyFor is the body with the name that b knows the model by, and the caller's
// priority where it schedules by that.
func (c *call) bodyFor(b *backend.Backend) []byte {
	if b.ByPriority() {
		c.body.Set("priority", strconv.AppendInt(nil, c.who.Tier.Priority(), 10))
	} else {
		c.body.Delete("priority") // such a server refuses it
	}
	facts := b.Facts()
	c.fitVersion(facts)
	name := strconv.AppendQuote(nil, facts.Serves)
	if raw, _ := c.body.Raw("model"); string(raw) != string(name) {
		c.body.Set("model", name)
	}
	return c.body.Bytes()
}

// fitVersion puts the body into the words that the server's version reads.
func (c *call) fitVersion(f backend.Facts) {
	c.quietDefault = c.wish.ThinkingOpen && f.NoThinking
	if c.kind != openai.Chat || !f.Can.Known {
		return
	}
	if !f.Can.ReasoningEffort {
		c.body.Delete("reasoning_effort") // it would do nothing, or be refused; the thinking switch stands in its place
	}
	if f.Can.OnlyReasoning {
		c.body.NameReasoning("reasoning")
	} else {
		c.body.NameReasoning("reasoning_content")
	}
}

func refused(answer *backend.Answer) error {
	// What cannot be read is left out of the error; its status still counts.
	body, _ := io.ReadAll(io.LimitReader(answer, maxError))
	return &backend.StatusError{Status: answer.Status, Body: body}
}

func (c *call) view() openai.View {
	return openai.View{
		Model: c.served, IncludeUsage: c.wish.IncludeUsage, ContinuousUsage: c.wish.ContinuousUsage,
		HideReasoning: c.wish.HideReasoning, Reasoning: c.model.Reasoning, ThinkingOff: c.wish.NoThinking || c.quietDefault,
	}
}

// whole passes on an answer that comes as one JSON body.
func (g *Gateway) whole(c *call, b *backend.Backend, body []byte) error {
	answer, err := openai.ReadAnswer(c.kind, c.view(), body, c.bounds(b), g.tally)
	if err != nil {
		return err
	}
	c.charged, c.usage, c.estimated = true, answer.Usage, answer.Estimated
	g.corrected(b, answer.Faults)
	return g.give(c, answer.Body)
}

// bounds are what the usage of the request's answer can be.
func (c *call) bounds(b *backend.Backend) openai.Bounds {
	echo, _ := c.body.Raw("echo")
	return openai.Bounds{
		Input: c.prompt, Context: b.Facts().MaxModelLen, Prompts: c.answers / max(c.wish.N, 1), Limit: c.limit, Choices: c.answers,
		Echo: c.kind == openai.Completions && string(echo) == "true",
	}
}

// tally counts a text whose tokens an engine does not state.
func (g *Gateway) tally() openai.Tally { return g.Tokenizer.NewTally() }

// give gives the caller a whole answer, as a stream where that was asked for.
func (g *Gateway) give(c *call, answer []byte) error {
	c.out.answered = true
	g.countFirst(c)
	g.settle(c, c.permit)
	c.dropBody()
	answer = c.announced(answer)
	if c.wish.Stream {
		events, err := c.view().Stream(nil, c.kind, answer, c.out.begun)
		if err == nil && c.out.write(events) != nil {
			return backend.ErrLeft
		}
		return err
	}
	c.header("Content-Type", "application/json")
	c.header("Content-Length", strconv.Itoa(len(answer)))
	c.send()
	if _, err := c.w.Write(answer); err != nil {
		return backend.ErrLeft
	}
	return nil
}

func readAll(answer *backend.Answer) ([]byte, error) {
	if answer.Length() > maxAnswer {
		return nil, fmt.Errorf("an answer of %d bytes is too long", answer.Length())
	}
	room := int64(4 << 10) // where the server did not say
	if answer.Length() >= 0 {
		room = answer.Length() + 1 // so that the end is seen without growing
	}
	body := make([]byte, 0, room)
	for {
		if len(body) == cap(body) {
			body = append(body, 0)[:len(body)]
		}
		n, err := answer.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		switch {
		case errors.Is(err, io.EOF):
			return body, nil
		case err != nil:
			return nil, err
		case len(body) > maxAnswer:
			return nil, fmt.Errorf("an answer of more than %d bytes is too long", maxAnswer)
		}
	}
}

// stream passes on an answer event by event. The caller's leaving ends the
// request at the server, and what the server had sent by then is still counted.
func (g *Gateway) stream(c *call, b *backend.Backend, answer *backend.Answer, permit *admission.Permit) (longest int, err error) {
	out := c.out
	tap := openai.Tap{View: c.view(), Route: c.kind, Bounds: c.bounds(b), NewTally: g.tally, HoldEnd: true}
	out.tap = &tap
	used := func() {
		if out.answered {
			c.usage, c.estimated = tap.Usage()
		}
	}
	defer func() {
		if used(); out.answered {
			longest = tap.Longest()
			g.corrected(b, tap.Faults())
		}
	}()
	pass := func() bool {
		if out.answered {
			c.usage, c.estimated = tap.Usage()
			c.progress(c.usage) // before the caller has it
			permit.Delivered(int64(c.usage.Output))
		}
		ok := out.flush()
		if out.lastWrite.Sub(out.told) >= progressEvery {
			out.told = out.lastWrite
			if out.answered {
				permit.Progress(charge(c.usage))
				c.flowed(b, c.usage)
			}
		}
		return ok
	}
	events := openai.NewScanner(answer, &g.scans)
	err = answer.Follow(func() error {
		for {
			data, err := events.Next()
			if err == backend.ErrNothing { //nolint:errorlint // never wrapped, and asked for each event
				return err
			}
			if err != nil {
				return out.ended(&tap, err)
			}
			answer.Progress()
			out.ready()
			if *out.pending, err = tap.Event(*out.pending, data); err != nil {
				out.flush()
				return err
			}
			if !out.answered {
				out.begin()
			}
			if tap.Holding() {
				answer.Soon(endWait)
			}
			if tap.Done() {
				used()
				g.countFirst(c)
				g.settle(c, permit)
			}
			if len(*out.pending) >= passOn && !pass() {
				answer.Leave()
			}
		}
	}, pass)
	return longest, err
}

// endWait is how long the end of a stream waits for the engine's chunk with the usage,
// which comes at once.
const endWait = 100 * time.Millisecond

// progressEvery is how often the limits are told what a stream has used so far.
const progressEvery = 2 * time.Second

// ended judges how a stream ended. What has come is the caller's in any case. Many
// clients close the connection as soon as they have read [DONE], before the server has
// ended its answer: they have left nothing.
func (o *reply) ended(tap *openai.Tap, err error) error {
	o.ready()
	*o.pending = tap.Rest(*o.pending)
	passed := tap.Done() && (o.pending == nil || len(*o.pending) == 0)
	switch {
	case !o.flush():
		return backend.ErrLeft
	case errors.Is(err, io.EOF) && tap.Done(), errors.Is(err, backend.ErrLeft) && passed:
		return nil
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return backend.Broken("stream", openai.ErrUnfinished)
	}
	return err
}

// reply is what the caller of a stream is sent.
type reply struct {
	c         *call
	id        string      // of the attempt, as it stands in the server's chunks
	model     string      // that answers, as far as is known
	buffers   *sync.Pool  // of *[]byte, so that a stream that waits holds none
	tap       *openai.Tap // of the stream; nil: there is none
	pending   *[]byte     // what is to be written next; nil: nothing
	answered  bool        // some of the server's answer has been passed on
	gone      bool        // the caller takes no more
	lastWrite time.Time
	told      time.Time // when the limits were told last
	kept      bool      // the last write was a keep-alive
	begun     string    // the id under which keep-alives were sent; empty: none was
}

// begin notes that the server's answer has begun.
func (o *reply) begin() {
	c := o.c
	o.answered, c.charged = true, true
	c.usage.Input = c.prompt // until the server says more
	c.firstToken = time.Now()
	c.dropBody() // no other backend will be sent it: a long stream need not hold it
}

// send writes the head of a good answer.
func (c *call) send() {
	c.sent, c.status = true, http.StatusOK
	c.w.WriteHeader(http.StatusOK)
}

// ready makes room for what is to be written.
func (o *reply) ready() {
	if o.pending == nil {
		var ok bool
		if o.pending, ok = o.buffers.Get().(*[]byte); !ok {
			o.pending = new([]byte)
		}
	}
}

// flush writes what is pending; false: the caller takes no more.
func (o *reply) flush() bool {
	if o.pending == nil {
		return !o.gone
	}
	if len(*o.pending) > 0 && !o.gone {
		o.gone = o.write(*o.pending) != nil
	}
	*o.pending = (*o.pending)[:0]
	o.buffers.Put(o.pending)
	o.pending = nil
	return !o.gone
}

func (o *reply) write(events []byte) error {
	c := o.c
	o.lastWrite, o.kept = c.now(), false
	if !c.sent {
		c.header("Content-Type", "text/event-stream; charset=utf-8")
		c.header("Cache-Control", "no-cache")
		c.header("X-Accel-Buffering", "no")
		c.send()
	}
	if _, err := c.w.Write(events); err != nil {
		return err
	}
	return http.NewResponseController(c.w).Flush()
}

// due says when the next keep-alive is due, and whether that is now.
func (o *reply) due(now time.Time) (next time.Duration, is bool) {
	patience := o.c.set.KeepAlive.After
	if o.kept {
		patience = o.c.set.KeepAlive.Every
	}
	next = patience - now.Sub(o.lastWrite)
	return next, next <= 0
}

// silence keeps the caller's stream alive while the server says nothing.
func (o *reply) silence(now time.Time) (next time.Duration) {
	if o.tap != nil && o.tap.Holding() {
		o.ready()
		*o.pending = o.tap.Rest(*o.pending)
		o.flush()
		return o.c.set.KeepAlive.After
	}
	next, is := o.due(now)
	if !is {
		return next
	}
	o.ready()
	if o.c.set.KeepAlive.Form == "comment" {
		*o.pending = append(*o.pending, ": ping\n\n"...)
	} else {
		if !o.answered {
			o.begun = o.answerID()
		}
		*o.pending = append(*o.pending, openai.KeepAlive(o.c.kind, o.answerID(), o.model, o.c.began, !o.c.sent)...)
	}
	// A caller that is gone is noticed by its context or the next write.
	o.flush()
	o.kept = true
	return o.c.set.KeepAlive.Every
}

// answerID is the id of the answer, as vLLM makes it from the attempt's.
func (o *reply) answerID() string {
	if o.c.kind == openai.Completions {
		return "cmpl-" + o.id
	}
	return "chatcmpl-" + o.id
}

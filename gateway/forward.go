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
	"tidegate/gateway/backend"
	"tidegate/gateway/openai"
)

// Bounds in bytes.
const (
	maxAnswer    = 64 << 20 // of a server's answer in one piece
	maxError     = 64 << 10 // of what is read of a server's refusal
	passOn       = 32 << 10 // of a stream, before it is flushed at the latest
	socketBuffer = 64 << 10 // what a socket takes whether its reader reads or not
)

// forward sends the request to the permit's backend and the answer to the caller.
// A failure of which the caller has seen nothing is tried once more, elsewhere.
func (g *Gateway) forward(c *call, permit *admission.Permit) error {
	out := &reply{c: c, lastWrite: c.began, told: c.began, buffers: &g.buffers}
	err := g.attempt(c, permit, out, 1)
	if err != nil && !out.answered && backend.Retryable(err) && permit.Another() {
		err = g.attempt(c, permit, out, 2)
	}
	return err
}

// attempt is one exchange with one backend.
func (g *Gateway) attempt(c *call, permit *admission.Permit, out *reply, n int) (err error) {
	b := c.model.Backends[permit.Backend()]
	c.backend = b.Name
	defer func() { g.metrics.attempted(c.model.Name, b.Name, err) }()

	out.id = c.id + "-" + strconv.Itoa(n)
	q := &backend.Request{Path: path(c.kind), ID: out.id, Body: c.bodyFor(b), Stream: c.wish.Stream, Limits: c.model.Timeouts}
	sent := time.Now()
	if c.wish.Stream {
		q.Silence, q.SilenceAfter = out.silence, c.set.KeepAlive.After
	} else {
		q.SilenceAfter = guessEvery
		q.Silence = func(now time.Time) time.Duration {
			c.progress(c.guess(b.Pace.Tokens(now.Sub(sent))))
			return guessEvery
		}
	}
	answer, err := b.Send(c.r.Context(), q)
	if err == nil {
		defer answer.Close()
		switch {
		case answer.Status != http.StatusOK:
			err = refused(answer)
		case c.wish.Stream:
			err = g.stream(c, answer, out, permit)
			b.Pace.Observe(c.firstToken.Sub(sent), out.lastWrite.Sub(c.firstToken), c.usage.Output/c.wish.N)
		default:
			err = g.whole(c, answer, out)
		}
	}
	if errors.Is(err, backend.ErrLeft) && !out.answered {
		c.abandoned(b.Pace.Tokens(time.Since(sent)))
	}
	return err
}

// guessEvery is how often it is noted what an answer in one piece may have taken so
// far, should this process be killed.
const guessEvery = 100 * time.Millisecond

// abandoned charges a request whose caller left before the server had said what
// it took. A request that failed before its first token is charged nothing.
func (c *call) abandoned(tokens int) {
	c.charged, c.usage, c.estimated = true, c.guess(tokens), !c.wish.Stream
}

// guess is what a request has taken of which nothing has come: its prompt, and where
// it is not streamed what one choice has by now, by estimate.
func (c *call) guess(tokens int) openai.Usage {
	u := openai.Usage{Input: c.prompt}
	if !c.wish.Stream {
		u.Output = min(tokens, c.limit) * c.wish.N
	}
	return u
}

func path(kind openai.Route) string {
	if kind == openai.Completions {
		return "/v1/completions"
	}
	return "/v1/chat/completions"
}

// bodyFor is the body with the name that b knows the model by.
func (c *call) bodyFor(b *backend.Backend) []byte {
	name := strconv.AppendQuote(nil, b.Facts().Serves)
	if raw, _ := c.body.Raw("model"); string(raw) != string(name) {
		c.body.Set("model", name)
	}
	return c.body.Bytes()
}

func refused(answer *backend.Answer) error {
	// What cannot be read is left out of the error; its status still counts.
	body, _ := io.ReadAll(io.LimitReader(answer, maxError))
	return &backend.StatusError{Status: answer.Status, Body: body}
}

func (c *call) view() openai.View {
	return openai.View{
		Model: c.model.Name, IncludeUsage: c.wish.IncludeUsage, ContinuousUsage: c.wish.ContinuousUsage,
		HideReasoning: c.wish.HideReasoning, Reasoning: c.model.Reasoning,
	}
}

// whole passes on an answer that comes as one JSON body.
func (g *Gateway) whole(c *call, answer *backend.Answer, out *reply) error {
	body, err := readAll(answer)
	if err != nil {
		return err
	}
	shown, usage, known, err := openai.ReadAnswer(c.kind, c.view(), body, g.Counter.Text)
	if err != nil {
		return err
	}
	c.charged, c.usage, c.estimated = true, usage, !known
	out.answered = true
	g.countFirst(c)
	if len(shown) > socketBuffer {
		if err := c.extend(time.Now()); err != nil {
			return backend.ErrLeft
		}
	}
	c.w.Header()["Content-Type"] = []string{"application/json"}
	c.w.Header()["Content-Length"] = []string{strconv.Itoa(len(shown))}
	c.send()
	if _, err := c.w.Write(shown); err != nil {
		return backend.ErrLeft
	}
	return nil
}

func readAll(answer *backend.Answer) ([]byte, error) {
	if answer.Length() > maxAnswer {
		return nil, fmt.Errorf("an answer of %d bytes is too long", answer.Length())
	}
	body := make([]byte, 0, max(answer.Length()+1, 4<<10))
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
func (g *Gateway) stream(c *call, answer *backend.Answer, out *reply, permit *admission.Permit) (err error) {
	tap := openai.Tap{View: c.view(), Route: c.kind}
	if c.several {
		tap.Input = c.prompt
	}
	used := func() {
		if u, known := tap.Usage(); known && out.answered {
			c.usage = u
		}
	}
	defer used()
	pass := func() bool {
		u, known := tap.Usage()
		if known {
			c.progress(u) // before the caller has it
		}
		ok := out.flush()
		if out.lastWrite.Sub(out.told) >= progressEvery {
			out.told = out.lastWrite
			if known {
				permit.Progress(charge(u))
			}
		}
		return ok
	}
	events := openai.NewScanner(answer, &g.scans)
	return answer.Follow(func() error {
		for {
			data, err := events.Next()
			if err == backend.ErrNothing { //nolint:errorlint // never wrapped, and asked for each event
				return err
			}
			if err != nil {
				return out.ended(&tap, err)
			}
			out.ready()
			if *out.pending, err = tap.Event(*out.pending, data); err != nil {
				out.flush()
				return err
			}
			if !out.answered {
				out.begin()
			}
			if tap.Done() {
				used()
				g.countFirst(c)
			}
			if len(*out.pending) >= passOn && !pass() {
				answer.Leave()
			}
		}
	}, pass)
}

// progressEvery is how often the limits are told what a stream has used so far.
const progressEvery = 2 * time.Second

// ended judges how a stream ended. What has come is the caller's in any case.
func (o *reply) ended(tap *openai.Tap, err error) error {
	switch {
	case !o.flush():
		return backend.ErrLeft
	case errors.Is(err, io.EOF) && tap.Done():
		return nil
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return backend.Broken("stream", openai.ErrUnfinished)
	}
	return err
}

// reply is what the caller of a stream is sent.
type reply struct {
	c         *call
	id        string     // of the attempt, as it stands in the server's chunks
	buffers   *sync.Pool // of *[]byte, so that a stream that waits holds none
	pending   *[]byte    // what is to be written next; nil: nothing
	answered  bool       // some of the server's answer has been passed on
	gone      bool       // the caller takes no more
	lastWrite time.Time
	told      time.Time // when the limits were told last
	kept      bool      // the last write was a keep-alive
}

// begin notes that the server's answer has begun.
func (o *reply) begin() {
	c := o.c
	o.answered, c.charged = true, true
	c.usage.Input = c.prompt // until the server says more
	c.firstToken = time.Now()
	c.body = nil // no other backend will be sent it: a long stream need not hold it
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
		h := c.w.Header()
		h["Content-Type"] = []string{"text/event-stream; charset=utf-8"}
		h["Cache-Control"] = []string{"no-cache"}
		h["X-Accel-Buffering"] = []string{"no"}
		c.send()
	}
	if err := c.extend(o.lastWrite); err != nil {
		return err
	}
	if _, err := c.w.Write(events); err != nil {
		return err
	}
	return http.NewResponseController(c.w).Flush()
}

// extend moves the deadline for writing to the caller, seldom.
func (c *call) extend(now time.Time) error {
	limit := c.set.WriteTimeout
	if c.deadline.Sub(now) > limit/2 {
		return nil
	}
	c.deadline = now.Add(limit)
	return http.NewResponseController(c.w).SetWriteDeadline(c.deadline)
}

// silence keeps the caller's stream alive while the server says nothing.
func (o *reply) silence(now time.Time) (next time.Duration) {
	set := o.c.set.KeepAlive
	patience := set.After
	if o.kept {
		patience = set.Every
	}
	if quiet := now.Sub(o.lastWrite); quiet < patience {
		return patience - quiet
	}
	o.ready()
	if set.Form == "comment" {
		*o.pending = append(*o.pending, ": ping\n\n"...)
	} else {
		prefix := "chatcmpl-"
		if o.c.kind == openai.Completions {
			prefix = "cmpl-"
		}
		*o.pending = append(*o.pending, openai.KeepAlive(o.c.kind, prefix+o.id, o.c.model.Name, o.c.began, !o.c.sent)...)
	}
	// A caller that is gone is noticed by its context or the next write.
	o.flush()
	o.kept = true
	return set.Every
}

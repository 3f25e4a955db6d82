package gateway

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"tidegate/gateway/account"
	"tidegate/gateway/backend"
	"tidegate/gateway/backend/exchange"
	"tidegate/gateway/door"
	"tidegate/gateway/openai"
)

// Bounds in bytes.
const (
	maxAnswer = 64 << 20 // answer in one piece
	maxError  = 64 << 10 // error body of a backend
	passOn    = 32 << 10 // pending events of a stream before they are flushed
)

// estimateEvery is the time between two notes, to the ledger and to the limits, of what an
// answer in one piece may have taken so far, should this process be killed.
const estimateEvery = 100 * time.Millisecond

// sender makes the attempts of one request, which forward repeats, and writes the outcome. It
// lives as long as forward, and one goroutine may use it.
type sender struct {
	g *Gateway
	c *call

	backend      *backend.Backend      // backend of the attempt
	number       int                   // number of the attempt, from 1
	start        time.Time             // begin of the exchange
	retryPaid    bool                  // the next attempt was taken from the budget of retries
	unattributed []unattributedFailure // failures that may turn out to be their backends'
	stream       door.Stream           // stream of the attempt; nil where there is none
	progressed   time.Time             // last note of the stream's usage to the limits
	metered      int                   // output tokens that the meters have
}

// unattributedFailure is a failure of which it is not known yet whose fault it was.
type unattributedFailure struct {
	backend *backend.Backend
	err     error
}

// attemptID returns the id of a request's nth attempt.
func attemptID(request string, n int) string { return request + "-" + strconv.Itoa(n) }

// attempt is one exchange with one backend.
func (s *sender) attempt() (err error) {
	g, c, b := s.g, s.c, s.backend
	s.stream = nil
	c.outcome.attempts = s.number
	first := c.outcome.backend == ""
	c.outcome.backend = b.Name
	header := c.tracing.sendAttempt(c.door.Operation, c.plan.model.Name, b.Name, c.writer.attempt)
	ended := errPanic // unless the attempt returns
	defer func() {
		c.outcome.lastWrite = c.writer.lastWrite
		g.metrics.attempted(c.plan.model.Name, b.Name, ended)
		s.meter(c.outcome.usage)
		c.tracing.attemptEnded(&c.outcome, c.plan.stream, ended)
	}()

	edits := c.plan.edits(&c.request, b, c.caller.Tier.Priority())
	q := &exchange.Request{
		Path: c.door.Path, ID: c.writer.attempt, Body: c.door.Write(c.request.Body, edits), Stream: c.plan.stream, Limits: c.plan.model.Timeouts, Header: header,
		Prompt: c.plan.prompt, Answer: c.plan.limit, CanMove: s.shouldMove,
		Silence: s.keepStream, SilenceAfter: c.settings.KeepAlive.Silence,
	}
	s.start = time.Now()
	if first {
		c.outcome.overhead = s.start.Sub(c.began) - c.reading - c.permit.Wait
	}
	if !c.plan.stream {
		q.Silence, q.SilenceAfter = s.noteEstimate, estimateEvery
	}
	answer, err := b.Send(c.r.Context(), q)
	if err == nil {
		defer answer.Close()
		err = s.receive(answer)
	}
	if !c.outcome.answered && s.chargesUnseen(err) {
		tokens := b.Pace.Tokens(time.Since(s.start))
		if b.Silent(s.start, time.Now()) {
			tokens = 0 // it hung
		}
		s.setEstimatedUsage(tokens)
	}
	ended = err
	return err
}

// receive passes on the answer whose head has come, and learns the backend's pace from it.
func (s *sender) receive(answer *exchange.Answer) (err error) {
	c, b := s.c, s.backend
	out := &c.outcome
	switch {
	case answer.Status != http.StatusOK:
		out.retryAfter = max(out.retryAfter, retryAfter(answer.Header, time.Now()))
		return statusError(answer)
	case c.plan.stream:
		longest, err := s.passStream(answer)
		b.Pace.Observe(out.firstToken.Sub(s.start), c.writer.lastWrite.Sub(out.firstToken), longest)
		b.Pace.ObservePrompt(out.firstToken.Sub(s.start), out.usage.Input-out.usage.Cached)
		if !out.firstToken.IsZero() && c.caller.Tier != account.Batch { // nobody waits for a batch
			b.Pace.First(out.firstToken, out.firstToken.Sub(c.permit.Arrival))
		}
		return err
	}
	body, err := readAll(answer)
	if err != nil {
		return err
	}
	read := time.Now() // the time that the caller takes to read says nothing of the backend
	if err = s.passWhole(body); out.answered {
		s.learnPace(read)
	}
	return err
}

// learnPace teaches the backend's pace from an answer in one piece that came at now.
func (s *sender) learnPace(now time.Time) {
	c, pace := s.c, &s.backend.Pace
	tokens := c.outcome.usage.Output / max(c.plan.choices, 1)
	if decode, known := pace.Decode(tokens); known && c.caller.Tier != account.Batch { // nobody waits for a batch
		pace.First(now, max(now.Sub(c.permit.Arrival)-decode, time.Millisecond))
	}
	pace.ObserveWhole(now.Sub(s.start), tokens)
}

// keepStream keeps the caller's stream alive while the backend is silent.
func (s *sender) keepStream(now time.Time) (next time.Duration) {
	w := &s.c.writer
	if s.stream != nil && s.stream.Holding() {
		events := w.buffer()
		*events = s.stream.Rest(*events)
		w.flush()
		return w.keepAlive.Silence
	}
	return w.sendKeepAlive(now, s.c.outcome.answered)
}

// noteEstimate notes what an answer in one piece may have taken so far, while the backend is
// silent, and keeps the stream of a caller that asked for one alive.
func (s *sender) noteEstimate(now time.Time) (next time.Duration) {
	c := s.c
	u := c.plan.estimate(s.backend.Pace.Tokens(now.Sub(s.start)))
	c.settlement.progress(&c.plan, u)
	s.meter(u)
	c.permit.SetOutput(int64(u.Output))
	c.permit.RecordUsage(limitUsage(u))
	if c.request.Wish.Stream {
		return min(s.keepStream(now), estimateEvery)
	}
	return estimateEvery
}

// chargesUnseen reports whether an attempt that failed is charged although nothing of its
// answer was seen: the caller left, or the backend was still making an answer in one piece
// when its time was over. A backend that hung was not.
func (s *sender) chargesUnseen(err error) bool {
	var timeout *exchange.TimeoutError
	if errors.Is(err, exchange.ErrLeft) {
		return true
	}
	return !s.c.plan.stream && errors.As(err, &timeout) && (timeout.Phase == exchange.Total || timeout.Phase == exchange.FirstByte && !timeout.Silent)
}

// setEstimatedUsage sets the usage of a request that ended before the backend had stated any.
func (s *sender) setEstimatedUsage(tokens int) {
	out := &s.c.outcome
	out.complete(s.c.plan.estimate(tokens), !s.c.plan.stream)
	if out.estimated {
		s.noteFaults(openai.FaultUnseen)
	}
}

// noteFaults notes what was wrong with the usage of one of the backend's answers. That nobody
// saw an answer is no fault of the backend's.
func (s *sender) noteFaults(faults openai.Faults) {
	if faults == 0 {
		return
	}
	s.g.metrics.corrected(s.backend.Name, faults)
	if faults &^= openai.FaultUnseen; faults != 0 && s.backend.Doubts.Note(time.Now(), faults) {
		s.g.Log.Warn("a server's usage was not believed, own counts replace it", "backend", s.backend.Name, "figures", faults.Names())
	}
}

// meter counts what an answer has made since it was last counted, for its backend and for
// its caller.
func (s *sender) meter(used openai.Usage) {
	if n := used.Output - s.metered; n > 0 {
		now := s.c.writer.now()
		s.backend.Output.Add(now, n)
		s.c.use.Output(now, n)
		s.metered = used.Output
	}
}

// view returns how the caller sees the answer.
func (s *sender) view() openai.View {
	c := s.c
	wish := &c.request.Wish
	return openai.View{
		Model: c.plan.served, IncludeUsage: wish.IncludeUsage, ContinuousUsage: wish.ContinuousUsage, HideReasoning: wish.HideReasoning,
		Reasoning: c.plan.model.Reasoning, ThinkingOff: c.plan.noThinking || wish.ThinkingOpen && s.backend.Facts().NoThinking,
	}
}

// bounds returns what the usage of the request's answer can be.
func (s *sender) bounds() openai.Bounds {
	p := &s.c.plan
	perPrompt := s.c.request.choicesPerPrompt()
	if p.oneChoice {
		perPrompt = 1
	}
	return openai.Bounds{
		Input: p.prompt, Context: s.backend.Facts().MaxModelLen, Prompts: p.choices / perPrompt, Limit: p.limit, Choices: p.choices, Echo: s.c.request.Echo,
	}
}

// newTally counts a text whose tokens an engine does not state.
func (g *Gateway) newTally() openai.Tally { return g.Tokenizer.NewTally() }

// statusError reads a backend's error body. What cannot be read is left out; the status
// still counts.
func statusError(answer *exchange.Answer) error {
	body, _ := io.ReadAll(io.LimitReader(answer, maxError))
	return &backend.StatusError{Status: answer.Status, Body: body}
}

// readAll reads an answer in one piece.
func readAll(answer *exchange.Answer) ([]byte, error) {
	if answer.Length() > maxAnswer {
		return nil, fmt.Errorf("an answer of %d bytes is too long", answer.Length())
	}
	room := int64(4 << 10) // where the backend states no length
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

package gateway

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"tidegate/admission"
	"tidegate/degrade"
	"tidegate/gateway/backend/exchange"
	"tidegate/gateway/openai"
)

// Rhythms of a stream.
const (
	// endWait bounds the wait of a stream's end for the engine's chunk with the usage,
	// which comes at once.
	endWait = 100 * time.Millisecond
	// progressEvery is the time between two notes to the limits of a stream's usage.
	progressEvery = 2 * time.Second
)

// passWhole passes on an answer that comes as one JSON body.
func (s *sender) passWhole(body []byte) error {
	c := s.c
	answer, err := c.door.Answer(s.view(), body, s.bounds(), s.g.newTally)
	if err != nil {
		return err
	}
	c.outcome.complete(answer.Usage, answer.Estimated)
	s.noteFaults(answer.Faults)
	return s.g.give(c, answer.Body, s.view())
}

// give sends the caller a whole answer, as a stream where that was asked for. It is counted
// and settled before the caller has its end.
func (g *Gateway) give(c *call, answer []byte, view openai.View) error {
	c.outcome.answered = true
	g.recordFirst(c)
	g.settle(c)
	c.dropBody()
	if c.plan.level > degrade.Full {
		answer = c.door.Announce(answer, openai.Notice{Level: c.plan.level.String(), Reason: c.writer.reason, Served: c.plan.served})
	}
	if !c.request.Wish.Stream {
		if c.writer.sendBody(answer) != nil {
			return exchange.ErrLeft
		}
		return nil
	}
	events, err := c.door.Events(view, answer, c.writer.begun)
	if err == nil && c.writer.writeEvents(events) != nil {
		return exchange.ErrLeft
	}
	return err
}

// passStream passes on an answer event by event, and returns the output tokens of its
// longest choice. The caller's leaving ends the request at the backend, and what the
// backend had sent by then is still counted.
func (s *sender) passStream(answer *exchange.Answer) (longest int, err error) {
	c, out, w := s.c, &s.c.outcome, &s.c.writer
	stream := c.door.Stream(s.view(), s.bounds(), s.g.newTally)
	s.stream = stream
	defer func() {
		if s.readUsage(); out.answered {
			longest = stream.Longest()
			s.noteFaults(stream.Faults())
		}
	}()
	events := openai.NewScanner(answer, &s.g.scans)
	err = answer.Follow(func() error {
		for {
			data, err := events.Next()
			if err == exchange.ErrNothing { //nolint:errorlint // never wrapped, and asked for each event
				return err
			}
			if err != nil {
				return s.endStream(err)
			}
			answer.Progress()
			pending := w.buffer()
			if *pending, err = stream.Event(*pending, data); err != nil {
				w.flush()
				return err
			}
			if !out.answered {
				out.begin(c.plan.prompt, time.Now())
				c.dropBody()
			}
			if stream.Holding() {
				answer.SilenceWithin(endWait)
			}
			if stream.Done() {
				s.readUsage()
				s.g.recordFirst(c)
				s.g.settle(c)
			}
			if w.pendingBytes() >= passOn && !s.flush() {
				answer.Cancel()
			}
		}
	}, s.flush)
	return longest, err
}

// readUsage takes the stream's usage so far into the outcome.
func (s *sender) readUsage() {
	if out := &s.c.outcome; out.answered {
		out.usage, out.estimated = s.stream.Usage()
	}
}

// flush writes what is pending, once the ledger knows what it cost. It reports whether the
// caller still reads.
func (s *sender) flush() bool {
	c, out, w := s.c, &s.c.outcome, &s.c.writer
	if out.answered {
		s.readUsage()
		c.settlement.progress(&c.plan, out.usage)
		c.permit.SetOutput(int64(out.usage.Output))
	}
	reads := w.flush()
	if w.lastWrite.Sub(s.progressed) >= progressEvery {
		s.progressed = w.lastWrite
		if out.answered {
			c.permit.RecordUsage(limitUsage(out.usage))
			s.meter(out.usage)
		}
	}
	return reads
}

// endStream judges how a stream ended with err, and passes on what has come in any case.
// Many clients close the connection as soon as they have read [DONE], before the backend
// has ended its answer: they have left nothing.
func (s *sender) endStream(err error) error {
	w := &s.c.writer
	events := w.buffer()
	*events = s.stream.Rest(*events)
	passed := s.stream.Done() && w.pendingBytes() == 0
	switch {
	case !w.flush():
		return exchange.ErrLeft
	case errors.Is(err, io.EOF) && s.stream.Done(), errors.Is(err, exchange.ErrLeft) && passed:
		return nil
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return &exchange.BrokenError{Action: "stream", Err: openai.ErrUnfinished}
	}
	return err
}

// canned answers without any model. Where a program reads the answer, no text is one: it
// would be stored or acted upon as if a model had said it.
func (g *Gateway) canned(c *call) error {
	q, answer, needs := &c.request, g.Ladder.Canned(), c.door.Needs(c.request.Body)
	text := answer.Text[c.door.Language(c.r.Header.Get("Accept-Language"), q.Body, slices.Collect(maps.Keys(answer.Text)))]
	status, constrained := answer.Status, needs.Constrained()
	if constrained && status == 200 {
		status = answer.ConstrainedStatus
	}
	if status != 200 {
		r := explain(&admission.Overloaded{Cause: admission.ShedLevel, Level: degrade.Canned, Reason: c.permit.Reason, RetryAfter: c.permit.RetryAfter}, c.facts())
		r.Message, r.Status = text, status
		if constrained {
			r.Message = fmt.Sprintf("%s (%s is at level L4, %s: no model answers, and a canned text is neither the tool call nor the format that this request demands; try again in %s)",
				text, q.model.Name, c.writer.reason, roundWait(r.RetryAfter))
		}
		return r
	}
	c.outcome.charged = true // with nothing but the request
	view := openai.View{
		Model: cannedModel, IncludeUsage: q.Wish.IncludeUsage, ContinuousUsage: q.Wish.ContinuousUsage, HideReasoning: q.Wish.HideReasoning,
		Reasoning: q.model.Reasoning, ThinkingOff: q.Wish.NoThinking,
	}
	return g.give(c, c.door.Canned(c.door.AnswerID(c.writer.attempt), cannedModel, c.began, c.plan.choices, needs.Structured, text), view)
}

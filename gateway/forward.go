package gateway

import (
	"time"

	"tidegate/admission"
	"tidegate/gateway/backend"
)

// forward sends the request to the permit's backend and the answer to the caller. A failure
// of which the caller has seen nothing is tried again, on another backend.
func (g *Gateway) forward(c *call) (err error) {
	c.plan.model.Retries.Earn()
	first := c.plan.model
	s := &sender{g: g, c: c, progressed: c.began}
	for s.number = 1; ; s.number++ {
		if s.backend = s.permitted(); s.backend == nil {
			return admission.ErrNoBackend // a reload removed it meanwhile
		}
		if s.number > 1 && c.writer.begun == "" { // else the caller knows an id, and the answer keeps it
			c.writer.attempt = attemptID(c.id, s.number)
		}
		err = s.backend.Guard(s.attempt)
		switch {
		case c.outcome.answered || err == nil:
			if c.plan.model == first { // a smaller model's answer says nothing of it
				s.blame()
			}
			return err
		case !backend.Retryable(err) || !s.retry():
			return err
		case backend.Doubtful(err):
			s.unattributed = append(s.unattributed, unattributedFailure{s.backend, err})
		}
	}
}

// blame blames earlier unattributed failures on their backends, since another one answered.
func (s *sender) blame() {
	for _, d := range s.unattributed {
		d.backend.Blame(d.err, s.backend)
	}
}

// permitted returns the backend that the permit names; nil where it is no more. One that
// was added while the request waited stands only in the fleet of now.
func (s *sender) permitted() *backend.Backend {
	c := s.c
	if b := c.plan.model.BackendOf(c.permit.Seat()); b != nil {
		return b
	}
	m, ok := s.g.Fleet.Model(c.plan.model.Name)
	if !ok || m.Pool != c.permit.Pool() {
		return nil
	}
	c.plan.model = m
	return m.BackendOf(c.permit.Seat())
}

// retry takes a place for the next attempt after one has failed: on another backend of the
// model while it may be tried there, else on the fallback model, once. payRetry
// bounds both.
func (s *sender) retry() bool {
	c := s.c
	if !s.payRetry() {
		return false
	}
	if s.number < c.plan.model.Attempts && c.permit.SwitchBackend() {
		return true
	}
	// A caller that was told a level and a model must be answered so.
	if c.writer.sent || !s.g.Admission.FallBack(c.permit, c.demand) || s.g.applyLevel(c) != nil {
		return false
	}
	c.writer.setLevel(c.plan.level, c.plan.reason)
	return true
}

// payRetry takes one retry from the budget; false where none is left.
func (s *sender) payRetry() bool {
	if s.retryPaid {
		s.retryPaid = false
		return true
	}
	m := s.c.plan.model
	return m.Attempts >= 2 && (m.Retries.Spend() || s.backend.SpendMove(time.Now()))
}

// shouldMove reports whether the attempt, which waits on a backend out of rotation, is
// better given up for another one, and takes the retry for that.
func (s *sender) shouldMove() bool {
	c := s.c
	if !(s.number < c.plan.model.Attempts && c.permit.CanSwitchBackend()) && (c.writer.sent || !s.g.Admission.CanFallBack(c.permit, c.demand)) {
		return false
	}
	s.retryPaid = s.payRetry()
	return s.retryPaid
}

package backend

import "time"

// observer follows the exchanges with a backend. It implements exchange.Observer.
type observer struct{ b *Backend }

// Begin records that a request is sent.
func (o observer) Begin(now time.Time) { o.b.progress.begin(now) }

// End records the end of a request; answered means that the backend has sent an answer.
func (o observer) End(answered bool) { o.b.progress.end(answered) }

// Sign records that the backend has made some of an answer.
func (o observer) Sign(now time.Time) { o.b.progress.sign(now) }

// Suspect records that a request failed.
func (o observer) Suspect(err error) { o.b.suspect(err) }

// QueuedSince returns the time of the last report of waiting or preempted requests, but
// none after the last sign of work; zero before the first report.
func (o observer) QueuedSince() time.Time {
	queued := o.b.queuedAt.Load()
	if queued == nil {
		return time.Time{}
	}
	if last := o.b.progress.last(); !last.IsZero() && last.Before(*queued) {
		return last
	}
	return *queued
}

// Silent reports whether the backend has shown no sign of work since start, for long
// enough to be confirmed.
func (o observer) Silent(start, now time.Time) bool { return o.b.Silent(start, now) }

// SilentFor reports whether a backend that has worked since it came up has shown no sign
// of work for d, nor since start. The first requests of an engine may wait for a
// compilation, longer than any later one.
func (o observer) SilentFor(d time.Duration, start, now time.Time) bool {
	return !o.b.progress.last().IsZero() && o.b.progress.silentFor(d, start, now, o.b.evidence(now))
}

// Unavailable reports whether the backend is out of rotation because it is unhealthy: a
// request that waits there may wait for ever.
func (o observer) Unavailable() bool { return !o.b.Seat.Usable() && *o.b.outReason.Load() != removed }

// Predict returns the expected time of an answer in one piece.
func (o observer) Predict(prompt, answer int, now time.Time) time.Duration {
	token := time.Duration(0)
	if e := o.b.Engine(); e != nil && o.b.hasFreshMetrics(now) && e.Speed > 0 && e.Running > 0 {
		token = time.Duration(min(float64(e.Running)/e.Speed, time.Hour.Seconds()) * float64(time.Second))
	}
	return o.b.Pace.Whole(prompt, answer, token)
}

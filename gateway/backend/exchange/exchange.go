package exchange

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"
)

// Timeouts holds the limits of one exchange. An answer in one piece has no byte before
// it is complete: FirstByte is its limit, as FirstToken is that of a stream.
type Timeouts struct {
	Connect    time.Duration `yaml:"connect"`     // to reach the server
	FirstToken time.Duration `yaml:"first_token"` // from sending to the first event of a stream
	FirstByte  time.Duration `yaml:"first_byte"`  // the least time that an answer in one piece is given, from sending to its first byte: three times the predicted time where that is more. It does not run while the engine says that requests wait or were preempted. Also the time without any sign of work from the backend after which such a request fails
	Idle       time.Duration `yaml:"idle"`        // between two events of a stream, or two reads of another body; it does not run while the engine says that requests wait or were preempted
	Total      time.Duration `yaml:"total"`       // from sending to the end of the answer
}

// Request is one POST to a backend.
type Request struct {
	Path   string
	ID     string // X-Request-Id, new for each attempt
	Header string // further lines of the head, each with its CRLF
	Body   []byte
	Stream bool
	Limits Timeouts

	// Prompt and Answer are the tokens of all prompts, and the most that one choice may
	// have: from them, and the speed of the backend, the time of an answer in one piece
	// is predicted.
	Prompt, Answer int

	// CanMove, if set, reports whether the request can be sent to another backend now.
	// It is called on the exchange's own goroutine while the backend is out of rotation
	// and nothing has come of the answer; if it is true, the exchange ends.
	CanMove func() bool

	// Silence, if set, is called on the exchange's own goroutine while nothing
	// comes, first after SilenceAfter and then as it asks.
	Silence      func(now time.Time) (next time.Duration)
	SilenceAfter time.Duration
}

// Answer is an exchange whose head has arrived. Read it to the end and Close it;
// a connection whose answer was read to its end is used again.
type Answer struct {
	Status int
	Header http.Header

	client          *Client
	c               *conn
	q               *Request
	ctx             context.Context
	stop            func() bool // stops the watch over ctx
	body            framing
	length          int64
	began           time.Time
	silentSince     time.Time   // start of the silence; for a stream without an event, the time of sending plus the time that Silence took
	nextSilence     time.Time   // time of the next call of Silence
	flush           func() bool // flush of Follow
	deadline        time.Time   // current read deadline
	eventSinceWait  bool        // whether an event has come since the last wait
	eventSinceCheck bool        // whether an event has come since the last look at the clock
	started         bool        // whether some of the body is read; of a stream, an event
	counted         bool        // whether the backend's progress counts it as under way
	left            bool        // whether the caller left, so that only bytes already sent are read
	drainEnd        time.Time   // end of that reading
}

// exchange sends the request and reads the head of the answer.
func (a *Answer) exchange() error {
	a.c.x, a.c.received = a, false
	a.client.observer.Begin(a.began)
	a.counted = true
	a.nextSilence = a.began.Add(a.q.SilenceAfter)
	a.stop = context.AfterFunc(a.ctx, func() { _ = a.c.nc.SetDeadline(time.Unix(1, 0)) })
	if err := a.c.nc.SetWriteDeadline(a.began.Add(a.q.Limits.Total)); err != nil {
		return err
	}
	a.arm(a.began)
	wrote := a.client.write(a.c, a.q)
	if isTimeout(wrote) {
		return &TimeoutError{Phase: Total, Wait: a.q.Limits.Total}
	}
	for range maxInterim {
		resp, err := a.c.head(a.client.post) //nolint:bodyclose // only the head is parsed out of a buffer: there is no body to close
		if wrote != nil && (err != nil || resp.StatusCode < http.StatusBadRequest) {
			return wrote
		}
		if err != nil {
			return err
		}
		if resp.StatusCode >= 200 {
			a.Status, a.Header, a.body, a.length = resp.StatusCode, resp.Header, framingOf(resp), resp.ContentLength
			// Who refuses a request before all of it has come (a proxy that finds it too
			// long) need not read the rest.
			a.body.close = a.body.close || wrote != nil
			return nil
		}
	}
	return errHead
}

// maxInterim is the most 1xx answers before the final one.
const maxInterim = 16

// Follow reads a stream as it arrives. It calls consume on this goroutine whenever there
// is more. consume calls Read until that returns ErrNothing and returns its error; it
// calls Progress for each event. Any other error ends Follow. Before each wait, Follow
// calls flush, which should pass on what was read and returns false if the caller is
// gone. A slow stream costs one read call for each piece; a loop over Read needs a
// second call to learn that there is no more.
func (a *Answer) Follow(consume func() error, flush func() bool) error {
	a.flush, a.c.followed = flush, true
	defer func() { a.c.followed = false }()
	err := consume()
	for err == ErrNothing { //nolint:errorlint // it is never wrapped, and this is asked for each event
		err = a.c.follow(consume)
	}
	return err
}

// Read reads the body. It returns io.EOF at its end, a *TimeoutError, ErrLeft, or an
// error for which Retryable is true.
func (a *Answer) Read(p []byte) (int, error) {
	n, err := a.body.read(a.c, p)
	if n > 0 && !a.q.Stream {
		a.started = true
		a.sign(a.now())
	}
	switch {
	case err == nil, err == ErrNothing: //nolint:errorlint // as in Follow
	case errors.Is(err, io.EOF):
		if a.left {
			err = ErrLeft
		}
	case a.left || a.ctx.Err() != nil:
		err = ErrLeft
	case errors.As(err, new(*TimeoutError)):
	default:
		a.client.observer.Suspect(err)
		err = &BrokenError{"the answer broke off", err}
	}
	return n, err
}

// Progress records an event of a stream. Only events end the wait for the first token
// and renew the idle limit: proxies, and engines without output, send comments, empty
// lines and empty events.
func (a *Answer) Progress() {
	a.eventSinceWait, a.eventSinceCheck = true, true
	if a.started {
		return
	}
	a.started = true
	a.sign(a.now())
	if !a.left { // the deadline was that of the first token
		a.silentSince = time.Now()
		a.arm(a.silentSince)
	}
}

// SilenceWithin makes Silence run after d at the latest, if nothing arrives before.
func (a *Answer) SilenceWithin(d time.Duration) {
	now := a.now()
	if quiet := now.Add(d); !a.left && quiet.Before(a.nextSilence) {
		a.nextSilence = quiet
		a.arm(now)
	}
}

// Length returns the length of the body in bytes; -1 if it is unknown.
func (a *Answer) Length() int64 { return a.length }

// Cancel cancels the request at the backend because the caller is gone. Reading
// continues for what the backend had already sent.
func (a *Answer) Cancel() {
	if a.left {
		return
	}
	a.left, a.drainEnd = true, time.Now().Add(drainAfter)
	a.deadline = a.drainEnd
	// Were this to fail, the deadline below still ends the exchange.
	_ = a.c.closeWrite()
	_ = a.c.nc.SetReadDeadline(a.drainEnd)
}

// sign records that the backend works. A refusal is no sign: a proxy in front of a hung
// engine can still refuse.
func (a *Answer) sign(now time.Time) {
	if a.Status == http.StatusOK {
		a.client.observer.Sign(now)
	}
}

// Close ends the exchange.
func (a *Answer) Close() {
	if a.counted {
		a.counted = false
		a.client.observer.End(a.Status != 0 && (a.started || a.Status != http.StatusOK))
	}
	watching := a.stop == nil || a.stop()
	if a.body.state == ended && !a.body.close && watching && !a.left && a.c.drained() {
		a.client.pool.release(a.c, time.Now())
		return
	}
	a.c.close()
}

// beforeWait flushes what was read before a wait. The backend's silence begins after it,
// since flush may take long.
func (a *Answer) beforeWait() {
	if !a.flush() {
		a.Cancel()
	}
	if a.eventSinceWait {
		a.eventSinceWait, a.eventSinceCheck, a.silentSince = false, false, a.now()
		a.sign(a.silentSince)
	}
}

// overdue reports whether a deadline has passed or the caller has left, for a backend
// that sends so much that nothing ever waits.
func (a *Answer) overdue() bool {
	now := a.now()
	a.renew(now)
	return !a.left && a.ctx.Err() != nil || !now.Before(a.deadline)
}

// renew restarts the idle limit at now if an event has come since the last look at the
// clock. The exact time of the event is unknown.
func (a *Answer) renew(now time.Time) {
	if a.eventSinceCheck {
		a.eventSinceCheck, a.silentSince = false, now
	}
}

// now reads only one of the two clocks that time.Now reads.
func (a *Answer) now() time.Time { return a.began.Add(time.Since(a.began)) }

// deadlinePassed handles a read deadline: it returns the error that ends the exchange,
// or sets the next deadline. The time of Silence does not count as the backend's.
func (a *Answer) deadlinePassed() error {
	now := time.Now()
	a.renew(now)
	if a.left && now.Before(a.drainEnd) { // the watch over ctx fired after Cancel
		_ = a.c.nc.SetReadDeadline(a.drainEnd)
		return nil
	}
	if a.left {
		return ErrLeft
	}
	if a.ctx.Err() != nil {
		a.Cancel()
		return nil
	}
	if err := a.checkLimits(now); err != nil {
		return err
	}
	if a.q.Silence != nil && !now.Before(a.nextSilence) {
		next := a.q.Silence(now)
		took := time.Since(now)
		now = now.Add(took)
		a.nextSilence, a.silentSince = now.Add(next), a.silentSince.Add(took)
	}
	a.arm(now)
	return nil
}

// checkLimits returns an error if a limit has passed, or if the backend is out of
// rotation and the request can move.
func (a *Answer) checkLimits(now time.Time) error {
	deadline, phase := a.limit()
	silent := !a.started && a.client.observer.Silent(a.began, now)
	switch {
	case !now.Before(a.began.Add(a.q.Limits.Total)):
		return &TimeoutError{Phase: Total, Wait: a.q.Limits.Total, Silent: silent}
	case !now.Before(deadline):
		return &TimeoutError{Phase: phase, Wait: a.patience(phase), Silent: silent}
	case a.started:
		return nil
	case silent && !a.q.Stream && a.client.observer.SilentFor(a.q.Limits.FirstByte, a.began, now):
		return &TimeoutError{Phase: FirstByte, Wait: a.q.Limits.FirstByte, Silent: true}
	case a.q.CanMove != nil && a.client.observer.Unavailable() && a.q.CanMove():
		return &BrokenError{"not waited for", errMoved}
	}
	return nil
}

// limit returns the time at which the backend has been silent for too long. An engine
// that defers requests for lack of KV memory reports that in its metrics and resumes
// them later: the silence counts from the last such report. A hung engine reports it for
// ever: its reports count only until its last sign of work.
func (a *Answer) limit() (time.Time, Phase) {
	if !a.started && a.q.Stream {
		return a.silentSince.Add(a.q.Limits.FirstToken), FirstToken
	}
	start := a.silentSince
	if queued := a.client.observer.QueuedSince(); queued.After(start) {
		start = queued
	}
	if a.started {
		return start.Add(a.q.Limits.Idle), Idle
	}
	return start.Add(a.patience(FirstByte)), FirstByte
}

// patience returns the length of a limit.
func (a *Answer) patience(phase Phase) time.Duration {
	switch phase {
	case FirstToken:
		return a.q.Limits.FirstToken
	case Idle:
		return a.q.Limits.Idle
	}
	return max(a.q.Limits.FirstByte, predictedFactor*a.client.observer.Predict(a.q.Prompt, a.q.Answer, a.now()))
}

// predictedFactor multiplies the predicted time of an answer in one piece to give its
// limit.
const predictedFactor = 3

// rotationCheckEvery is the interval at which an unanswered request checks whether its
// backend is in rotation.
const rotationCheckEvery = time.Second

// arm sets the read deadline to the next thing due.
func (a *Answer) arm(now time.Time) {
	next := a.began.Add(a.q.Limits.Total)
	if deadline, _ := a.limit(); deadline.Before(next) {
		next = deadline
	}
	if look := now.Add(rotationCheckEvery); a.q.CanMove != nil && !a.started && look.Before(next) {
		next = look
	}
	if a.q.Silence != nil && a.nextSilence.Before(next) {
		next = a.nextSilence
	}
	if !next.After(now) {
		next = now.Add(time.Millisecond)
	}
	a.deadline = next
	// A connection that takes no deadline is closed, and the next read says so.
	_ = a.c.nc.SetReadDeadline(next)
	if a.ctx.Err() != nil { // the watch may have fired just before
		_ = a.c.nc.SetReadDeadline(time.Unix(1, 0))
	}
}

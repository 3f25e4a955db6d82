package backend

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

// Timeouts are the limits of one exchange. An answer that is not streamed brings nothing
// until it is whole: FirstByte holds for it where FirstToken does for a stream.
type Timeouts struct {
	Connect    time.Duration `yaml:"connect"`     // to reach the server
	FirstToken time.Duration `yaml:"first_token"` // from sending to the first event of a stream
	FirstByte  time.Duration `yaml:"first_byte"`  // the least time that an answer in one piece is given, from sending to its first byte: three times the predicted time where that is more. It does not run while the engine says that requests wait or were preempted. Also the time without any sign of work from the backend after which such a request fails
	Idle       time.Duration `yaml:"idle"`        // between two events of a stream, or two reads of another body; it does not run while the engine says that requests wait or were preempted
	Total      time.Duration `yaml:"total"`       // from sending to the end of the answer
}

// Request is what is sent: one POST.
type Request struct {
	Path   string
	ID     string // X-Request-Id, a fresh one for each attempt
	Header string // further lines of the head, each with its CRLF
	Body   []byte
	Stream bool
	Limits Timeouts

	// Prompt and Answer are the tokens of all prompts, and the most that one choice may
	// have: from them, and the speed of the backend, the time of an answer in one piece
	// is predicted.
	Prompt, Answer int

	// Elsewhere, if set, reports whether the request can be sent to another backend now.
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

	b               *Backend
	c               *conn
	q               *Request
	ctx             context.Context
	stop            func() bool // of the watch over ctx
	body            framing
	length          int64
	began           time.Time
	silentSince     time.Time   // since when the server is silent; of a stream without an event, when it was sent, put off by what Silence took
	nextSilence     time.Time   // when to call Silence
	flush           func() bool // of Follow
	deadline        time.Time   // when the read deadline is
	eventSinceWait  bool        // an event has come since the last wait
	eventSinceCheck bool        // an event has come since the clock was looked at
	started         bool        // some of the body is read; of a stream, an event
	counted         bool        // the backend's progress has it as under way
	left            bool        // the caller left; only what was on its way is read
	drainEnd        time.Time   // and only until then
}

// Send sends q and returns when the head of the answer has arrived, whatever its
// status. When ctx ends the request is cancelled at the server.
func (b *Backend) Send(ctx context.Context, q *Request) (*Answer, error) {
	now := time.Now()
	c := b.pool.acquire(now)
	for {
		fresh := c == nil
		if fresh {
			var err error
			if c, err = b.dialer.dial(ctx, q.Limits.Connect); err != nil {
				if ctx.Err() != nil {
					return nil, ctx.Err()
				}
				b.suspect(err)
				return nil, err
			}
		}
		a := &Answer{b: b, c: c, q: q, ctx: ctx, began: now, silentSince: now}
		err := a.exchange()
		if err == nil && !fresh && a.Status == http.StatusRequestTimeout && time.Since(now) < staleWithin {
			// The server says that it has waited for a request for too long (RFC 9110
			// §15.5.9), which crossed this one on the way.
			a.Close()
			c = nil
			continue
		}
		if err == nil {
			return a, nil
		}
		silent := !c.received
		a.Close()
		switch {
		case a.left || ctx.Err() != nil:
			return nil, ErrLeft
		case !fresh && silent && stale(err) && time.Since(now) < staleWithin:
			c = nil // the server had closed the idle connection; nobody has seen the request
		case errors.As(err, new(*TimeoutError)):
			return nil, err
		default:
			b.suspect(err)
			return nil, &brokenError{"no answer", err}
		}
	}
}

// staleWithin is how soon after sending a reused connection breaks that the server had
// closed as idle. One that breaks later was being served: an answer in one piece has
// no head until it is made.
const staleWithin = time.Second

// exchange sends the request and reads the head of the answer.
func (a *Answer) exchange() error {
	a.c.x, a.c.received = a, false
	a.b.progress.begin(a.began)
	a.counted = true
	a.nextSilence = a.began.Add(a.q.SilenceAfter)
	a.stop = context.AfterFunc(a.ctx, func() { _ = a.c.nc.SetDeadline(time.Unix(1, 0)) })
	if err := a.c.nc.SetWriteDeadline(a.began.Add(a.q.Limits.Total)); err != nil {
		return err
	}
	a.arm(a.began)
	wrote := a.b.write(a.c, a.q)
	if isTimeout(wrote) {
		return &TimeoutError{Phase: Total, Wait: a.q.Limits.Total}
	}
	for range maxInterim {
		resp, err := a.c.head(a.b.post) //nolint:bodyclose // only the head is parsed out of a buffer: there is no body to close
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

// maxInterim is how many 1xx answers may come before the one that counts.
const maxInterim = 16

// joined is up to which size in bytes a body is copied behind its head, which
// costs less than a second buffer in the system call.
const maxJoined = 16 << 10

// write sends the request in one system call.
func (b *Backend) write(c *conn, q *Request) error {
	buf, ok := b.dialer.buffers.out.Get().(*[]byte)
	if !ok {
		buf = new([]byte)
	}
	defer b.dialer.buffers.out.Put(buf)
	head := append(append((*buf)[:0], "POST "...), b.prefix...)
	head = append(append(append(head, q.Path...), " HTTP/1.1\r\n"...), b.header...)
	if q.Stream {
		head = append(head, "Accept: text/event-stream\r\n"...)
	}
	head = append(append(head, "X-Request-Id: "...), q.ID...)
	head = append(head, "\r\n"...)
	head = append(append(head, q.Header...), "Content-Length: "...)
	head = append(strconv.AppendInt(head, int64(len(q.Body)), 10), "\r\n\r\n"...)
	if len(q.Body) <= maxJoined {
		head = append(head, q.Body...)
		*buf = head
		_, err := c.nc.Write(head)
		return err
	}
	*buf = head
	_, err := (&net.Buffers{head, q.Body}).WriteTo(c.nc)
	return err
}

// Follow reads a stream as it comes. It calls take whenever there is more, on this
// goroutine; take calls Read until that returns ErrNothing and returns its error, and
// calls Progress for each event.
// Any other error ends Follow. Before it waits for the server it calls pause,
// which should pass on what was read so far and returns false where the caller is
// gone. A slow stream costs one system call to read for each piece, where a loop
// over Read needs a second to learn that there is no more.
func (a *Answer) Follow(consume func() error, flush func() bool) error {
	a.flush, a.c.followed = flush, true
	defer func() { a.c.followed = false }()
	err := consume()
	for err == ErrNothing { //nolint:errorlint // it is never wrapped, and this is asked for each event
		err = a.c.follow(consume)
	}
	return err
}

// Read reads the body. The error is io.EOF at its end, a *TimeoutError, ErrLeft,
// or one for which Retryable is true.
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
		a.b.suspect(err)
		err = &brokenError{"the answer broke off", err}
	}
	return n, err
}

// Progress says that a stream has brought an event. Nothing else ends the wait for the
// first token and renews the idle limit: comments, empty lines and empty events are
// sent by proxies and by engines that have nothing to say.
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

// Soon asks for Silence to be called after d at the latest, if nothing comes before.
func (a *Answer) SilenceWithin(d time.Duration) {
	now := a.now()
	if quiet := now.Add(d); !a.left && quiet.Before(a.nextSilence) {
		a.nextSilence = quiet
		a.arm(now)
	}
}

// Length is the length of the body in bytes, -1 where the server did not say.
func (a *Answer) Length() int64 { return a.length }

// Leave cancels the request at the server because the caller is gone. Reading
// goes on for what the server had already sent.
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

// works notes that the backend has made some of an answer. A refusal is none: the server
// before an engine that hangs can still refuse.
func (a *Answer) sign(now time.Time) {
	if a.Status == http.StatusOK {
		a.b.progress.sign(now)
	}
}

// Close ends the exchange.
func (a *Answer) Close() {
	if a.counted {
		a.counted = false
		a.b.progress.end(a.Status != 0 && (a.started || a.Status != http.StatusOK))
	}
	watching := a.stop == nil || a.stop()
	if a.body.state == ended && !a.body.close && watching && !a.left && a.c.drained() {
		a.b.pool.release(a.c, time.Now())
		return
	}
	a.c.close()
}

// beforeWait is called when nothing more is there to be taken. A caller may take long
// over what pause passes on: the server's silence begins after it.
func (a *Answer) beforeWait() {
	if !a.flush() {
		a.Cancel()
	}
	if a.eventSinceWait {
		a.eventSinceWait, a.eventSinceCheck, a.silentSince = false, false, a.now()
		a.sign(a.silentSince)
	}
}

// overdue reports whether a deadline has passed, or the caller has left, while a server
// sends so much that nothing is ever waited for.
func (a *Answer) overdue() bool {
	now := a.now()
	a.renew(now)
	return !a.left && a.ctx.Err() != nil || !now.Before(a.deadline)
}

// renew starts the idle limit anew at now if an event has come since the clock was
// looked at. The caller may have taken any time over it, so when it came is not known.
func (a *Answer) renew(now time.Time) {
	if a.eventSinceCheck {
		a.eventSinceCheck, a.silentSince = false, now
	}
}

// now reads only one of the two clocks that time.Now reads.
func (a *Answer) now() time.Time { return a.began.Add(time.Since(a.began)) }

// waitOn is called when the read deadline has passed: it says why to stop, or
// sets the next one. The time that the caller takes over Silence is not the server's.
func (a *Answer) deadlinePassed() error {
	now := time.Now()
	a.renew(now)
	if a.left && now.Before(a.drainEnd) { // the watch over ctx fired after Leave
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

// over reports which limit has passed, or that the backend has gone out of rotation and
// another one can be asked; nil: neither.
func (a *Answer) checkLimits(now time.Time) error {
	deadline, phase := a.limit()
	silent := !a.started && a.b.Silent(a.began, now)
	switch {
	case !now.Before(a.began.Add(a.q.Limits.Total)):
		return &TimeoutError{Phase: Total, Wait: a.q.Limits.Total, Silent: silent}
	case !now.Before(deadline):
		return &TimeoutError{Phase: phase, Wait: a.patience(phase), Silent: silent}
	case a.started:
		return nil
	case silent && !a.q.Stream && a.b.silentFor(a.q.Limits.FirstByte, a.began, now):
		return &TimeoutError{Phase: FirstByte, Wait: a.q.Limits.FirstByte, Silent: true}
	case a.q.CanMove != nil && a.b.unavailable() && a.q.CanMove():
		return &brokenError{"not waited for", errMoved}
	}
	return nil
}

// limit is when the server has been silent for too long. An engine that
// sets requests back for want of KV memory says so in its metrics, and goes on with them
// when there is room again: the silence counts from when it last said so. An engine that
// hangs says so, too, for ever: its word holds until its last sign of work.
func (a *Answer) limit() (time.Time, Phase) {
	if !a.started && a.q.Stream {
		return a.silentSince.Add(a.q.Limits.FirstToken), FirstToken
	}
	start := a.silentSince
	if held := a.b.queuedAt.Load(); held != nil {
		end := *held
		if last := a.b.progress.last(); !last.IsZero() && last.Before(end) {
			end = last
		}
		start = latest(start, end)
	}
	if a.started {
		return start.Add(a.q.Limits.Idle), Idle
	}
	return start.Add(a.patience(FirstByte)), FirstByte
}

// patience is how long a limit is.
func (a *Answer) patience(phase Phase) time.Duration {
	switch phase {
	case FirstToken:
		return a.q.Limits.FirstToken
	case Idle:
		return a.q.Limits.Idle
	}
	return max(a.q.Limits.FirstByte, predictedFactor*a.b.predict(a.q.Prompt, a.q.Answer, a.now()))
}

// predictedTimes is how many times as long as predicted an answer in one piece may take.
const predictedFactor = 3

// lookEvery is how often a request of which nothing has come looks whether its backend is
// still in rotation.
const rotationCheckEvery = time.Second

// arm sets the read deadline to whatever is due next.
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

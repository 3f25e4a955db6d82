package backend

import (
	"context"

	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"

	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"
)

const (
	probeLimit  = 2 * time.Second
	factsEvery  = 30 * time.Second // time between two readings of the facts of a healthy backend
	maxFailures = 2                // consecutive failures that take a backend out of rotation
	minStart    = 10 * time.Second // least time of a start: no engine loads a model in less
	maxProbe    = 1 << 20          // most bytes of a probe's answer
)

// prober keeps the rotation state of one backend current. It asks GET /health, which
// costs no tokens, and, of a backend that comes up, GET /v1/models and /version.
type prober struct {
	b              *Backend
	client         *http.Client
	log            *slog.Logger
	names          []string // names by which the backend may know the model
	every          time.Duration
	scrape         time.Duration // time between two readings of its load
	failed         int
	loggedReason   string    // last logged reason for being out of rotation; empty after a return
	loggedAt       time.Time // time of that log line
	factsTime      time.Time // time of the last reading of the facts; zero after an outage
	tokenAsked     time.Time // time of the request for one token to a backend whose /tokenize is too old; zero before it
	lastDown       time.Time // end of the last failed probe that counted as an outage; zero before the first
	healthy        bool      // whether a health probe has ever succeeded
	unhealthySince time.Time // start of the current failure of the health probe, after a success; zero if there is none
}

// run probes until ctx ends.
func (p *prober) run(ctx context.Context) {
	tick := time.NewTicker(p.every)
	defer tick.Stop()
	for {
		p.probe(ctx)
		p.b.Prune(time.Now())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-p.b.probeRequests:
		}
	}
}

func (p *prober) probe(ctx context.Context) {
	suspected := p.b.suspected.Swap(false)
	defer func() {
		p.b.Seat.SetDoubt(false)
		if p.b.suspected.Load() { // meanwhile: the next probe tells
			p.b.Seat.SetDoubt(true)
		}
	}()
	_, err := p.ask(ctx, "/health")
	p.setHealth(ctx, err)
	if err == nil && time.Since(p.factsTime) > factsEvery {
		err = p.learn(ctx)
	}
	if ctx.Err() != nil {
		return
	}
	reason := p.b.sleepReason(p.lastDown)
	if err == nil && reason == "" {
		reason = p.b.stalled()
	}
	if err == nil && reason == "" {
		reason = p.b.checkBreaker()
	}
	if err == nil && reason != "" {
		// Healthy, and yet no place for a request.
		p.failed = 0
		p.removeAndLog(reason)
		return
	}
	if err == nil {
		p.failed, p.loggedReason = 0, ""
		if p.b.Seat.SetRotation(true) {
			p.log.Info("backend in rotation", "backend", p.b.Name, "serves", p.b.Facts().Serves, "version", p.b.Facts().Version)
		}
		return
	}
	p.factsTime = time.Time{}
	if suspected {
		p.failed++ // the request that failed counts, too
	}
	if p.failed++; p.failed >= maxFailures || errors.Is(err, syscall.ECONNREFUSED) {
		p.lastDown = time.Now()
		p.b.progress.restart()
	} else if p.b.Seat.InRotation() {
		return
	}
	p.removeAndLog(err.Error())
}

// removeAndLog takes the backend out of rotation and logs the reason once, also of a
// backend that never was in rotation. It logs another reason after a minute: errors of
// one kind may name another port each time.
func (p *prober) removeAndLog(reason string) {
	changed, now := p.b.takeOut(reason), time.Now()
	if !changed && (p.loggedReason == reason || p.loggedReason != "" && now.Sub(p.loggedAt) < logEvery || reason == p.b.stalled()) {
		return // the watcher logs that it hangs
	}
	p.loggedReason, p.loggedAt = reason, now
	p.log.Warn("backend out of rotation", "backend", p.b.Name, "reason", reason)
}

// logEvery is the least time between two logged reasons for being out of rotation.
const logEvery = time.Minute

// setHealth records the result of a health probe. It finds the restart of a server that
// does not report its start time.
func (p *prober) setHealth(ctx context.Context, err error) {
	now := time.Now()
	switch {
	case ctx.Err() != nil:
	case err == nil:
		if !p.unhealthySince.IsZero() && !p.lastDown.Before(p.unhealthySince) && now.Sub(p.unhealthySince) >= minStart {
			p.b.setRestarted(now)
		}
		p.healthy, p.unhealthySince = true, time.Time{}
	case p.healthy && p.unhealthySince.IsZero():
		p.unhealthySince = now
	}
}

func (p *prober) ask(ctx context.Context, route string) ([]byte, error) {
	return p.exchange(ctx, http.MethodGet, route, nil)
}

// exchange sends a request with a JSON body, or none, and reads the answer.
func (p *prober) exchange(ctx context.Context, method, route string, body io.Reader) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	resp, err := p.send(ctx, method, route, body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(io.LimitReader(resp.Body, maxProbe))
}

// get requests a route; a status other than 200 is an error.
func (p *prober) get(ctx context.Context, route string) (*http.Response, error) {
	return p.send(ctx, http.MethodGet, route, nil)
}

func (p *prober) send(ctx context.Context, method, route string, body io.Reader) (*http.Response, error) {
	q, err := http.NewRequestWithContext(ctx, method, p.b.base+route, body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		q.Header.Set("Content-Type", "application/json")
	}
	if p.b.config.APIKey != "" {
		q.Header.Set("Authorization", "Bearer "+p.b.config.APIKey)
	}
	resp, err := p.client.Do(q)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, route, cause(err))
	}
	p.b.setCertificates(resp.TLS)
	if resp.StatusCode != http.StatusOK {
		// What is read lets the connection be used again.
		_, _ = io.CopyN(io.Discard, resp.Body, 4<<10)
		resp.Body.Close()
		if location := resp.Header.Get("Location"); location != "" && resp.StatusCode/100 == 3 {
			return nil, fmt.Errorf("%s %s: status %d, a redirect to %s, which is not followed: set url on the backend to where the server itself answers",
				method, route, resp.StatusCode, printed(location, maxText))
		}
		return nil, fmt.Errorf("%s %s: status %d", method, route, resp.StatusCode)
	}
	return resp, nil
}

// cause removes the method and the URL that net/http puts before the cause of an error.
func cause(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("no answer within %v", probeLimit)
	}
	if inner := errors.Unwrap(err); inner != nil {
		err = inner
	}
	if text := printed(err.Error(), maxText); text != err.Error() { // net/http quotes what it cannot read
		return &quotingError{text, err}
	}
	return err
}

// quotingError is an error with a printable text.
type quotingError struct {
	text string
	err  error
}

func (e *quotingError) Error() string { return e.text }
func (e *quotingError) Unwrap() error { return e.err }

// Bounds of what is kept of a server's own words, which reach logs, /status and
// terminals.
const (
	maxText    = 300  // bytes of an error or an address
	maxName    = 200  // bytes of a model's name; a configured one is no longer either
	maxVersion = 64   // bytes
	maxNames   = 1000 // models of one server; those after it are passed over
	namesShown = 8    // of those in an error
)

// printed makes a backend's text printable: it cuts the text to limit bytes and replaces
// every unprintable character by a question mark, so that it moves no cursor and
// reverses no line.
func printed(text string, limit int) string {
	clean := strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !strconv.IsPrint(r) {
			return '?'
		}
		return r
	}, text[:min(len(text), limit)])
	if len(text) > limit {
		clean += "..."
	}
	return clean
}

// list joins names for a sentence.
func list(names []string) string {
	if len(names) <= namesShown {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:namesShown], ", "), len(names)-namesShown)
}

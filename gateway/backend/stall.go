package backend

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"
)

// removed is why a backend is out of rotation that is not configured any more. What it
// has goes on to its end.
const removed = "removed from the configuration"

// gone reports whether the backend is out of rotation because it is not well: what waits
// there for an answer may wait for ever.
func (b *Backend) unavailable() bool { return !b.Seat.Usable() && *b.outReason.Load() != removed }

// tells reports whether the engine's figures are read, so that they show whether it works.
func (b *Backend) hasFreshMetrics(now time.Time) bool {
	e := b.Engine()
	return e != nil && b.LoadError() == "" && e.Age(now) <= metricsMaxAge
}

// figuresFor is how old a reading of the engine's metrics may be.
const metricsMaxAge = 3 * time.Second

// Silent reports whether the backend has shown no sign of work since a moment, and long
// enough to say something: it has made nothing for anybody.
func (b *Backend) Silent(start, now time.Time) bool {
	return b.progress.silentFor(quietAfter(b.patience()), start, now, b.evidence(now))
}

// patience is the silence after which the backend is taken to hang; 0: it never is.
func (b *Backend) patience() time.Duration { return b.tuned.Load().config.Stall }

func (b *Backend) evidence(now time.Time) evidence {
	return evidence{b.hasFreshMetrics(now), canaryFor(b.patience())}
}

// silentFor reports whether a backend that has worked since it came up has shown no sign
// of it for so long, nor since a moment. The first requests of an engine may have it
// compile for longer than it ever takes again.
func (b *Backend) silentFor(d time.Duration, start, now time.Time) bool {
	return !b.progress.last().IsZero() && b.progress.silentFor(d, start, now, b.evidence(now))
}

// Unanswered is for how many requests the backend shows no sign of work, and since when;
// 0: it works, or has nothing to do. A slow engine that tells its load shows one with
// every token that it makes.
func (b *Backend) Unanswered(now time.Time) (requests int, start time.Time) {
	n, start := b.progress.silence()
	if n == 0 || now.Sub(start) < quietAfter(b.patience()) {
		return 0, time.Time{}
	}
	return n, start
}

// predict is how long an answer in one piece takes on the backend.
func (b *Backend) predict(prompt, answer int, now time.Time) time.Duration {
	token := time.Duration(0)
	if e := b.Engine(); e != nil && b.hasFreshMetrics(now) && e.Speed > 0 && e.Running > 0 {
		token = time.Duration(min(float64(e.Running)/e.Speed, time.Hour.Seconds()) * float64(time.Second))
	}
	return b.Pace.Whole(prompt, answer, token)
}

// stall is a silence for which a backend is taken to hang. It is the backend's own and
// not its watcher's: a reload may replace that.
type stall struct {
	reason string
	start  time.Time // of the silence
}

// stalled is why the backend is taken to hang; empty: it is not.
func (b *Backend) stalled() string {
	if s := b.stall.Load(); s != nil {
		return s.reason
	}
	return ""
}

// others reports whether another backend of the model can take what this one has: it is
// in rotation, and does not leave requests unanswered itself.
func (b *Backend) hasPeer(now time.Time) bool {
	peers := b.peers.Load()
	if peers == nil {
		return false
	}
	for _, p := range *peers {
		if p == b || !p.Seat.Usable() || p.Seat.Drained() {
			continue
		}
		if n, _ := p.Unanswered(now); n == 0 {
			return true
		}
	}
	return false
}

// watcher takes a backend out of rotation that hangs although it answers its health
// probe, and lets it in again when it shows a sign of work. While a backend is silent it
// is asked for one token, again and again: an engine that works answers that beside
// whatever else it does.
type watcher struct {
	p     *prober
	b     *Backend
	log   *slog.Logger
	every time.Duration
	limit time.Duration // for one canary
}

// watchEvery is how often a backend is looked at.
const watchInterval = 500 * time.Millisecond

func newWatcher(p *prober) *watcher {
	return &watcher{p: p, b: p.b, log: p.log, every: watchInterval, limit: canaryLimit}
}

// run watches until ctx ends.
func (w *watcher) run(ctx context.Context) {
	tick := time.NewTicker(w.every)
	defer tick.Stop()
	results := make(chan canary, 1)
	asked := false
	for {
		select {
		case <-ctx.Done():
			if asked {
				<-results
			}
			return
		case c := <-results:
			asked = false
			w.setResult(time.Now(), c)
			continue
		case <-tick.C:
		}
		if now := time.Now(); w.check(now) && !asked {
			asked = true
			w.b.progress.canary(now, true)
			go func() { results <- w.ask(ctx) }()
		}
	}
}

// look judges the backend, and reports whether it is to be asked for a token.
func (w *watcher) check(now time.Time) (ask bool) {
	last := w.b.progress.last()
	if s := w.b.stall.Load(); s != nil {
		if last.After(s.start) || w.b.patience() == 0 {
			w.recover(s.start, now, last)
			return false
		}
		if w.b.Seat.InRotation() { // a probe that had begun before let it in
			w.b.takeOut(s.reason)
		}
		return true
	}
	requests, start := w.b.Unanswered(now)
	if requests == 0 {
		return false
	}
	patience := w.b.patience()
	if patience > 0 && w.b.Seat.InRotation() && w.b.progress.hangs(patience, now, w.b.evidence(now)) && w.b.hasPeer(now) {
		w.takeOut(requests, start, now)
	}
	return true
}

// out takes the backend out of rotation.
func (w *watcher) takeOut(requests int, start, now time.Time) {
	reason := fmt.Sprintf("it hangs: it has %d requests and has made nothing for %v, although it answers its health probe; it comes back when it answers a request for one token",
		requests, now.Sub(start).Round(time.Second))
	w.b.stall.Store(&stall{reason, start})
	if w.b.takeOut(reason) {
		w.log.Warn("backend out of rotation", "backend", w.b.Name, "reason", reason)
	}
}

// back lets the next health probe take the backend into rotation, after a silence since a
// moment.
func (w *watcher) recover(start, now, last time.Time) {
	if silence := last.Sub(start); silence > 0 && silence <= time.Minute { // else it was mended, or started anew
		w.b.progress.learn(silence)
	}
	w.log.Info("backend works again", "backend", w.b.Name, "after", now.Sub(start).Round(time.Millisecond))
	w.b.stall.Store(nil)
	w.b.probeNow()
}

// canary is what became of a request for one token.
type canary int

const (
	unanswered canary = iota
	answered
	refused // which says nothing of the engine
)

// canaryLimit is how long a canary is waited for before the next one is sent.
const canaryLimit = 5 * time.Second

// ask asks the server for one token.
func (w *watcher) ask(ctx context.Context) canary {
	ctx, cancel := context.WithTimeout(ctx, w.limit)
	defer cancel()
	name, err := json.Marshal(w.b.Facts().Serves)
	if err != nil {
		return refused
	}
	resp, err := w.p.send(ctx, http.MethodPost, "/v1/chat/completions", bytes.NewReader([]byte(`{"model":`+string(name)+`,`+probeChat+`,"max_tokens":1}`)))
	if err == nil {
		_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, maxProbe))
		resp.Body.Close()
	}
	switch {
	case err == nil:
		return answered
	case ctx.Err() != nil:
		return unanswered
	}
	return refused
}

// answered takes in what became of a canary.
func (w *watcher) setResult(now time.Time, c canary) {
	switch c {
	case answered:
		w.b.progress.sign(now)
	case refused:
		w.b.progress.canary(now, false)
	}
}

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

// removed is the reason for being out of rotation of a backend that is no longer
// configured. Its requests run to their end.
const removed = "removed from the configuration"

// hasFreshMetrics reports whether the engine's metrics are current enough to show
// whether it works.
func (b *Backend) hasFreshMetrics(now time.Time) bool {
	e := b.Engine()
	return e != nil && b.LoadError() == "" && e.Age(now) <= metricsMaxAge
}

// metricsMaxAge is the greatest age of a reading that shows whether the engine works.
const metricsMaxAge = 3 * time.Second

// Silent reports whether the backend has shown no sign of work since start, for long
// enough to be confirmed.
func (b *Backend) Silent(start, now time.Time) bool {
	return b.progress.silentFor(quietAfter(b.patience()), start, now, b.evidence(now))
}

// patience returns the silence that counts as a hang; 0 if none does.
func (b *Backend) patience() time.Duration { return b.tuned.Load().config.Stall }

func (b *Backend) evidence(now time.Time) evidence {
	return evidence{b.hasFreshMetrics(now), canaryFor(b.patience())}
}

// Unanswered returns the number of requests for which the backend shows no sign of work,
// and the start of the silence; 0 if it works or is idle. A slow engine whose metrics
// are read shows a sign with every token.
func (b *Backend) Unanswered(now time.Time) (requests int, start time.Time) {
	n, start := b.progress.silence()
	if n == 0 || now.Sub(start) < quietAfter(b.patience()) {
		return 0, time.Time{}
	}
	return n, start
}

// stall is a silence that counts as a hang. It belongs to the backend and not to its
// watcher, which a reload may replace.
type stall struct {
	reason string
	start  time.Time // start of the silence
}

// stalled returns the reason if the backend hangs, else "".
func (b *Backend) stalled() string {
	if s := b.stall.Load(); s != nil {
		return s.reason
	}
	return ""
}

// hasPeer reports whether another backend of the model can serve in place of b: it is in
// rotation and leaves no requests unanswered itself.
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

// watcher takes a backend out of rotation that hangs although its health probe passes,
// and lets it in again after a sign of work. It sends canaries to a silent backend: a
// working engine answers them beside its other work.
type watcher struct {
	p     *prober
	b     *Backend
	log   *slog.Logger
	every time.Duration
	limit time.Duration // time limit of one canary
}

// watchInterval is the time between two checks of a backend.
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

// check judges the backend and reports whether to send it a canary.
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

// takeOut takes the backend out of rotation.
func (w *watcher) takeOut(requests int, start, now time.Time) {
	reason := fmt.Sprintf("it hangs: it has %d requests and has made nothing for %v, although it answers its health probe; it comes back when it answers a request for one token",
		requests, now.Sub(start).Round(time.Second))
	w.b.stall.Store(&stall{reason, start})
	if w.b.takeOut(reason) {
		w.log.Warn("backend out of rotation", "backend", w.b.Name, "reason", reason)
	}
}

// recover lets the next health probe take the backend into rotation, after a silence
// from start to last.
func (w *watcher) recover(start, now, last time.Time) {
	if silence := last.Sub(start); silence > 0 && silence <= time.Minute { // otherwise it was repaired or restarted
		w.b.progress.learn(silence)
	}
	w.log.Info("backend works again", "backend", w.b.Name, "after", now.Sub(start).Round(time.Millisecond))
	w.b.stall.Store(nil)
	w.b.probeNow()
}

// canary is the result of a request for one token.
type canary int

const (
	unanswered canary = iota
	answered
	refused // says nothing about the engine
)

// canaryLimit is the time limit of one canary.
const canaryLimit = 5 * time.Second

// ask asks the backend for one token.
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

// setResult records the result of a canary.
func (w *watcher) setResult(now time.Time, c canary) {
	switch c {
	case answered:
		w.b.progress.sign(now)
	case refused:
		w.b.progress.canary(now, false)
	}
}

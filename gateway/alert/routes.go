package alert

import (
	"slices"
	"sync"

	"tidegate/gateway/alert/channel"
)

// routes holds the channels that alerts go to. It is safe for concurrent use.
type routes struct {
	mu         sync.Mutex
	channels   []Channel
	generation int              // number of reloads
	removed    []channel.Target // targets of former channels, whose deliveries are not dropped yet
}

// replace sets the channels, and publishes them under the lock.
func (r *routes) replace(channels []Channel, publish func([]Channel)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	current := targets(channels)
	for _, t := range targets(r.channels) {
		if !slices.Contains(current, t) {
			r.removed = append(r.removed, t)
		}
	}
	r.removed = slices.DeleteFunc(r.removed, func(t channel.Target) bool { return slices.Contains(current, t) })
	r.channels = slices.Clone(channels)
	r.generation++
	for i := range r.channels {
		r.channels[i].generation = r.generation
	}
	publish(channels)
}

// list returns the channels, which the caller must not change.
func (r *routes) list() []Channel {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.channels
}

// isCurrent reports whether no reload has replaced the channel.
func (r *routes) isCurrent(c Channel) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return c.generation == r.generation
}

// accepting returns the targets of the channels that accept a severity.
func (r *routes) accepting(s channel.Severity) []channel.Target {
	return targets(slices.DeleteFunc(slices.Clone(r.list()), func(c Channel) bool { return !c.Accepts(s) }))
}

// removedTargets returns the removed targets.
func (r *routes) removedTargets() []channel.Target {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.removed)
}

// forget deletes removed targets whose deliveries are dropped.
func (r *routes) forget(dropped []channel.Target) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.removed = slices.DeleteFunc(r.removed, func(t channel.Target) bool { return slices.Contains(dropped, t) })
}

// targets returns the targets of some channels.
func targets(channels []Channel) (out []channel.Target) {
	for _, c := range channels {
		for _, recipient := range c.Targets {
			out = append(out, channel.Target{Channel: c.Name, Recipient: recipient})
		}
	}
	return out
}

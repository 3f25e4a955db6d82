package channel

import (
	"context"
	"sync"
	"time"
)

// burst is the number of messages that may go at once.
const burst = 4

// paceInterval returns the time between messages that keeps a channel within its vendor's
// limit, burst included. DingTalk and WeCom accept 20 a minute; Feishu 100 a minute and 5
// a second; Slack one a second and a few more. A robot that receives more may be blocked
// for minutes. The functions that build the messages name the sources.
func paceInterval(kind string) time.Duration {
	switch kind {
	case DingTalk, WeCom:
		return 4 * time.Second
	case Feishu, Slack:
		return time.Second
	}
	return 0
}

// pacer spaces out messages. It is safe for concurrent use.
type pacer struct {
	interval time.Duration // time between messages; 0 for none
	mu       sync.Mutex
	next     time.Time // time of the next message without a burst
}

// wait blocks until the next message may go, and reports whether that came before the end
// of the context. A wait in vain uses up no turn.
func (t *pacer) wait(ctx context.Context) bool {
	if t.interval == 0 {
		return true
	}
	t.mu.Lock()
	now := time.Now()
	if t.next.Before(now) {
		t.next = now
	}
	left := t.next.Add(-(burst - 1) * t.interval).Sub(now)
	t.next = t.next.Add(t.interval)
	t.mu.Unlock()
	if left <= 0 {
		return true
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		t.mu.Lock()
		t.next = t.next.Add(-t.interval)
		t.mu.Unlock()
		return false
	}
}

package channel

import (
	"context"
	"sync"
	"time"
)

// burst is how many messages go at once before the pace holds.
const burst = 4

// paceOf is the time between messages with which a channel stays within what its vendor
// takes, burst included: of DingTalk and WeCom 20 in a minute, of Feishu 100 in a minute
// and 5 in a second, of Slack one in a second and a few more. A robot that is sent more
// may be shut out for minutes. The sources are named where each message is written.
func paceInterval(kind string) time.Duration {
	switch kind {
	case DingTalk, WeCom:
		return 4 * time.Second
	case Feishu, Slack:
		return time.Second
	}
	return 0
}

// turns hands out the moments at which messages may go.
type pacer struct {
	interval time.Duration // 0: at once
	mu       sync.Mutex
	next     time.Time // when a message could go if there were no burst
}

// wait blocks until it is the caller's turn, and reports whether it came before the
// context ended; a turn that was waited for in vain is given back.
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

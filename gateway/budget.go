package gateway

import (
	"fmt"
	"sync"

	"tidegate/gateway/refusal"
)

// BodyBudget bounds the bytes that requests hold: their bodies while they are read,
// wait for a place and are answered, and what /tokenize makes of them.
type BodyBudget struct {
	Total     Size `yaml:"total"`      // of all callers together; 0: 256MiB, or per_caller where that is more
	PerCaller Size `yaml:"per_caller"` // of one user, or in open mode of one address; 0: 64MiB, or max_body where that is more
}

// resolve returns the budget with what was left out: a larger max_body alone must not
// make a configuration invalid.
func (b BodyBudget) resolve(maxBody Size) BodyBudget {
	if b.PerCaller == 0 {
		b.PerCaller = max(64<<20, maxBody)
	}
	if b.Total == 0 {
		b.Total = max(256<<20, b.PerCaller)
	}
	return b
}

// validate reports the faults of the budget beside the largest body.
func (b BodyBudget) validate(maxBody Size, fault func(ok bool, format string, args ...any)) {
	b = b.resolve(maxBody)
	fault(b.PerCaller >= maxBody, "body_budget.per_caller: must be at least max_body, which is %v, or no request of that size could be served", maxBody)
	fault(b.Total >= b.PerCaller, "body_budget.total: must be at least per_caller, which is %v", b.PerCaller)
}

// budget is a BodyBudget and what is held of it. It is safe for concurrent use.
type budget struct {
	mu       sync.Mutex
	limits   BodyBudget
	used     int64            // bytes
	byCaller map[string]int64 // bytes, of callers who hold any
}

// configure sets the limits. What is held stays held.
func (b *budget) configure(limits BodyBudget) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.limits = limits
}

// take changes what a caller holds by so many bytes. More is refused where it is not
// there; less never is.
func (b *budget) take(caller string, bytes int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	held := b.byCaller[caller] + bytes
	if bytes > 0 && held > int64(b.limits.PerCaller) {
		return refusal.New(refusal.Overloaded, "", fmt.Sprintf("your requests under way hold %v of text, and one caller may hold %v (server.body_budget): wait for some to be answered, then try again",
			Size(held-bytes), b.limits.PerCaller)).After(retryOverloaded)
	}
	if bytes > 0 && b.used+bytes > int64(b.limits.Total) {
		return refusal.New(refusal.Overloaded, "", fmt.Sprintf("the requests of all callers hold %v of text, and the gateway takes %v at a time (server.body_budget): try again in %v",
			Size(b.used), b.limits.Total, retryOverloaded)).After(retryOverloaded)
	}
	b.used += bytes
	if b.byCaller == nil {
		b.byCaller = map[string]int64{}
	}
	if b.byCaller[caller] = held; held <= 0 {
		delete(b.byCaller, caller)
	}
	return nil
}

// holding is one request's part of a budget. One goroutine may use it. The zero
// value holds nothing.
type holding struct {
	budget *budget // nil: nothing was ever held
	caller string
	bytes  int64
}

// resize makes the request hold so many bytes in all. To hold fewer never fails.
func (h *holding) resize(bytes int64) error {
	if h.budget == nil || bytes == h.bytes {
		return nil
	}
	if err := h.budget.take(h.caller, bytes-h.bytes); err != nil {
		return err
	}
	h.bytes = bytes
	return nil
}

// release gives all back. A second call does nothing.
func (h *holding) release() { _ = h.resize(0) } // which never fails

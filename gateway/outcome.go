package gateway

import (
	"time"

	"tidegate/admission/limit"
	"tidegate/degrade"
	"tidegate/gateway/openai"
	"tidegate/gateway/refusal"
)

// outcome describes the end of a request. The sender, or canned, writes what the answer
// was; fail writes why there was none; finish writes the level. The log line, metrics,
// trace, ledger and settlement read it.
type outcome struct {
	backend    string        // name of the backend asked last; empty where none was
	attempts   int           // exchanges with backends
	overhead   time.Duration // time that the gateway itself took before the first exchange
	retryAfter time.Duration // longest wait that a refusing backend asked for

	answered   bool         // some of the backend's answer was passed on
	charged    bool         // usage goes to the caller's account
	usage      openai.Usage // tokens so far
	estimated  bool         // a figure of usage is the gateway's own
	firstToken time.Time    // zero where no stream began
	lastWrite  time.Time    // last write of the stream to the caller

	status int          // HTTP status of the answer
	code   refusal.Code // empty where there was no error, or nobody to hear it
	param  string       // parameter that the error names
	rule   string       // limit that rejected
	level  degrade.Level
	reason string // signal or rule that asked for the level
}

// begin notes that a stream's answer has begun.
func (o *outcome) begin(prompt int, now time.Time) {
	o.answered, o.charged = true, true
	o.usage.Input = prompt // until the backend states more
	o.firstToken = now
}

// complete notes an answer in one piece with its checked usage.
func (o *outcome) complete(u openai.Usage, estimated bool) {
	o.charged, o.usage, o.estimated = true, u, estimated
}

// flow returns how long a stream took from its first token to its last write; 0 where
// nothing was written, because the caller had left.
func (o *outcome) flow() time.Duration { return max(o.lastWrite.Sub(o.firstToken), 0) }

// refuse notes the refusal by which the request ended.
func (o *outcome) refuse(r *refusal.Refusal) {
	o.status, o.code, o.param, o.rule = r.Status, r.Code, r.Param, r.Rule
}

// limitUsage converts usage into what the limits count.
func limitUsage(u openai.Usage) limit.Usage {
	return limit.Usage{Input: int64(u.Input), Cached: int64(u.Cached), Output: int64(u.Output), Reasoning: int64(u.Reasoning)}
}

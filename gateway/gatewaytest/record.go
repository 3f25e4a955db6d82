package gatewaytest

import (
	"net/http"
	"sync"
	"time"
)

const (
	keptRecords = 100_000
	keptBodies  = 256
)

// Record holds the engine's own figures of one generation request, with which tests
// compare a gateway's ledger. Token counts are sums over the choices.
type Record struct {
	ID         string // request id as vLLM understood it, without prefix
	ResponseID string
	Path       string
	Model      string // model as asked
	Stream     bool
	Priority   int64
	Status     int // HTTP status of the answer; 0: none was sent
	Fault      FaultKind
	Finish     string // finish reason of the first choice; empty if it did not finish
	Aborted    bool   // the client left, or the fault cut it
	Preempted  int

	TokenCounts
	Choices []ChoiceRecord

	Arrived    time.Time
	FirstToken time.Time // zero if none came
	Ended      time.Time

	// Header and Body are kept for the last 256 requests only.
	Header http.Header
	Body   []byte
}

// TokenCounts holds the tokens of a request.
type TokenCounts struct {
	Prompt    int // counted once for n > 1, as usage does
	Cached    int
	Output    int // generated, delivered or not
	Reasoning int // part of Output, up to and including </think>
	// Delivered is the completion_tokens of the last usage written to the
	// socket, DeliveredPrompt its prompt_tokens.
	Delivered       int
	DeliveredPrompt int
}

// ChoiceRecord is one choice of a request.
type ChoiceRecord struct {
	Output    int
	Reasoning int
	Delivered int
	Finish    string
}

// deliver notes the usage just written for one choice.
func (r *Record) deliver(index, choices, completion int) {
	if r.Choices == nil {
		r.Choices = make([]ChoiceRecord, choices)
	}
	r.Delivered += completion - r.Choices[index].Delivered
	r.Choices[index].Delivered = completion
}

// report copies the end of a request into its record.
func (e *engine) report(p *reply) {
	e.mu.Lock()
	defer e.mu.Unlock()
	r := p.record
	if r.Choices == nil {
		r.Choices = make([]ChoiceRecord, len(p.choices))
	}
	for i, ch := range p.choices {
		s := ch.seq
		out := &r.Choices[i]
		out.Output = s.produced
		out.Reasoning = ch.script.reasoningAt(s.produced)
		r.Output += s.produced
		r.Reasoning += out.Reasoning
		r.Preempted += s.preempted
		if s.state == finished {
			out.Finish = ch.script.finish
		} else {
			r.Aborted = true
		}
		if !s.first.IsZero() && (r.FirstToken.IsZero() || s.first.Before(r.FirstToken)) {
			r.FirstToken = s.first
		}
	}
	r.Cached = p.choices[0].seq.cached
	r.Finish = r.Choices[0].Finish
}

// Stats is the whole server at a glance.
type Stats struct {
	Running     int `json:"running"`
	Waiting     int `json:"waiting"`
	PeakRunning int `json:"peak_running"`
	PeakWaiting int `json:"peak_waiting"`

	Requests int64 `json:"requests"` // that reached a generating route
	Finished int64 `json:"finished"` // all choices ended by themselves
	Aborted  int64 `json:"aborted"`  // cut by the client or by a fault
	Refused  int64 `json:"refused"`  // answered with an error

	// Sums over the ended requests that got a token.
	PromptTokens     int64 `json:"prompt_tokens"`
	CachedTokens     int64 `json:"cached_tokens"`
	GenerationTokens int64 `json:"generation_tokens"`
	ReasoningTokens  int64 `json:"reasoning_tokens"`
	DeliveredTokens  int64 `json:"delivered_tokens"`
	Preemptions      int64 `json:"preemptions"`

	KVUsage             float64 `json:"kv_usage"`
	Connections         int64   `json:"connections"`
	ConnectionsAccepted int64   `json:"connections_accepted"`
	InFlight            int64   `json:"in_flight"`
}

// requestLog keeps the records of ended requests.
type requestLog struct {
	mu      sync.Mutex
	records []*Record // a ring once it is full
	next    int
	bodies  []*Record
	sum     Stats
}

func newRequestLog() *requestLog { return &requestLog{} }

func (l *requestLog) open(r *http.Request) *Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sum.Requests++
	return &Record{Path: r.URL.Path, Arrived: time.Now(), Header: r.Header.Clone()}
}

func (l *requestLog) close(r *Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.Ended = time.Now()
	switch {
	case r.Aborted || r.Fault == FaultDieBefore:
		l.sum.Aborted++
	case len(r.Choices) == 0:
		l.sum.Refused++
	default:
		l.sum.Finished++
	}
	if r.Output > 0 {
		l.sum.PromptTokens += int64(r.Prompt)
		l.sum.CachedTokens += int64(r.Cached)
		l.sum.GenerationTokens += int64(r.Output)
		l.sum.ReasoningTokens += int64(r.Reasoning)
		l.sum.DeliveredTokens += int64(r.Delivered)
	}
	if len(l.records) < keptRecords {
		l.records = append(l.records, r)
	} else {
		l.records[l.next] = r
		l.next = (l.next + 1) % keptRecords
	}
	if len(l.bodies) == keptBodies {
		l.bodies[0].Header, l.bodies[0].Body = nil, nil
		l.bodies = l.bodies[:copy(l.bodies, l.bodies[1:])]
	}
	l.bodies = append(l.bodies, r)
}

// Requests lists the ended requests, in the order in which they ended; the
// last 100,000.
func (s *Server) Requests() []Record {
	l := s.log
	l.mu.Lock()
	defer l.mu.Unlock()
	records := make([]Record, 0, len(l.records))
	for i := range l.records {
		records = append(records, *l.records[(l.next+i)%len(l.records)])
	}
	return records
}

// Stats counts ended requests, and what runs and waits now.
func (s *Server) Stats() Stats {
	s.log.mu.Lock()
	sum := s.log.sum
	s.log.mu.Unlock()
	e := s.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	sum.Running, sum.Waiting = len(e.running), len(e.waiting.seqs)
	sum.PeakRunning, sum.PeakWaiting = e.totals.peakRunning, e.totals.peakWaiting
	sum.Preemptions = e.totals.preemptions
	sum.KVUsage = e.cache.usage()
	sum.Connections, sum.ConnectionsAccepted = s.net.open.Load(), s.net.accepted.Load()
	sum.InFlight = s.inFlight.Load()
	return sum
}

// Reset forgets the records, the sums and the prefix cache.
func (s *Server) Reset() {
	s.log.mu.Lock()
	s.log.records, s.log.bodies, s.log.next, s.log.sum = nil, nil, 0, Stats{}
	s.log.mu.Unlock()
	s.engine.mu.Lock()
	defer s.engine.mu.Unlock()
	s.engine.totals = totals{}
	s.engine.cache.forget()
}

package gatewaytest

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// FaultKind names a way to fail.
type FaultKind string

// The ways to fail. Those of a stream strike after Fault.AfterTokens tokens; on an
// answer that is not streamed they strike when so many have been generated.
const (
	FaultRefuse    FaultKind = "refuse"     // nobody listens
	FaultDead      FaultKind = "dead"       // the engine core is dead: /health 503, requests 500
	Fault500       FaultKind = "500"        // 500 with an error body
	Fault503       FaultKind = "503"        // 503 with an error body
	FaultHang      FaultKind = "hang"       // silence before the headers
	FaultDieBefore FaultKind = "die_before" // reset before any byte of an answer
	FaultGarbage   FaultKind = "garbage"    // 200 with something that is no JSON
	FaultHangMid   FaultKind = "hang_mid"   // silence in the middle
	FaultDieMid    FaultKind = "die_mid"    // reset in the middle
	FaultTruncate  FaultKind = "truncate"   // clean end in the middle, no finish, no [DONE]
	FaultError     FaultKind = "error"      // an error event in the middle, then [DONE]
	FaultSlow      FaultKind = "slow"       // DelayMS more between two tokens
	FaultSplit     FaultKind = "split"      // bytes cut at random places, each piece flushed
	FaultCRLF      FaultKind = "crlf"       // CRLF line ends
	FaultComments  FaultKind = "comments"   // a comment before each event
)

// Fault is one way to fail and how often.
type Fault struct {
	Kind FaultKind `json:"kind"`
	// Share of the generation requests it strikes, 0..1; 0 means all.
	Share float64 `json:"share,omitempty"`
	// Count is how many requests it strikes before it is spent; 0: no end.
	Count int `json:"count,omitempty"`
	// AfterTokens is the number of tokens that go out before it strikes.
	AfterTokens int `json:"after,omitempty"`
	// DelayMS is the extra time between two tokens of FaultSlow, milliseconds.
	DelayMS int `json:"delay_ms,omitempty"`
}

// ParseFault reads "kind" or "kind:key=value,key=value" with the JSON names.
func ParseFault(s string) (Fault, error) {
	kind, rest, _ := strings.Cut(s, ":")
	f := Fault{Kind: FaultKind(kind)}
	for _, pair := range strings.Split(rest, ",") {
		if pair == "" {
			continue
		}
		key, value, _ := strings.Cut(pair, "=")
		var err error
		switch key {
		case "share":
			f.Share, err = strconv.ParseFloat(value, 64)
		case "count":
			f.Count, err = strconv.Atoi(value)
		case "after":
			f.AfterTokens, err = strconv.Atoi(value)
		case "delay_ms":
			f.DelayMS, err = strconv.Atoi(value)
		default:
			err = fmt.Errorf("unknown key %q", key)
		}
		if err != nil {
			return f, fmt.Errorf("fault %q: %w", s, err)
		}
	}
	return f, f.validate()
}

func (f Fault) validate() error {
	switch f.Kind {
	case FaultRefuse, FaultDead, Fault500, Fault503, FaultHang, FaultDieBefore, FaultGarbage, FaultHangMid,
		FaultDieMid, FaultTruncate, FaultError, FaultSlow, FaultSplit, FaultCRLF, FaultComments:
	default:
		return fmt.Errorf("fault: unknown kind %q", f.Kind)
	}
	if f.Share < 0 || f.Share > 1 || f.Count < 0 || f.AfterTokens < 0 || f.DelayMS < 0 {
		return fmt.Errorf("fault %s: share must be in 0..1, count, after and delay_ms not negative", f.Kind)
	}
	return nil
}

// faults are those set, and how often each has struck.
type faults struct {
	mu   sync.Mutex
	rng  *rand.Rand
	list []*activeFault
}

type activeFault struct {
	Fault
	struck int
}

func newFaults(seed uint64) *faults {
	return &faults{rng: rand.New(rand.NewPCG(seed, 77))}
}

// strike holds the faults of one request.
type strike struct {
	early, midway         FaultKind
	delay                 int
	slow                  time.Duration
	crlf, comments, split bool
}

// draw decides what happens to the next request.
func (f *faults) draw() strike {
	f.mu.Lock()
	defer f.mu.Unlock()
	var s strike
	for _, a := range f.list {
		if a.Count > 0 && a.struck >= a.Count || a.Share > 0 && f.rng.Float64() >= a.Share {
			continue
		}
		switch a.Kind {
		case Fault500, Fault503, FaultHang, FaultDieBefore, FaultGarbage:
			if s.early != "" {
				continue
			}
			s.early = a.Kind
		case FaultHangMid, FaultDieMid, FaultTruncate, FaultError:
			if s.midway != "" {
				continue
			}
			s.midway, s.delay = a.Kind, a.AfterTokens
		case FaultSlow:
			s.slow = time.Duration(a.DelayMS) * time.Millisecond
		case FaultSplit:
			s.split = true
		case FaultCRLF:
			s.crlf = true
		case FaultComments:
			s.comments = true
		default:
			continue // the server's state, not a request's
		}
		a.struck++
	}
	return s
}

// SetFault adds a fault to those already set. A fault of unknown kind is an
// error and changes nothing.
func (s *Server) SetFault(f Fault) error {
	if err := f.validate(); err != nil {
		return err
	}
	s.faults.mu.Lock()
	s.faults.list = append(s.faults.list, &activeFault{Fault: f})
	s.faults.mu.Unlock()
	switch f.Kind {
	case FaultRefuse:
		s.net.refuse()
	case FaultDead:
		s.engine.kill(true)
	}
	return nil
}

// ClearFaults ends all faults; a refused port is opened again.
func (s *Server) ClearFaults() error {
	s.faults.mu.Lock()
	s.faults.list = nil
	s.faults.mu.Unlock()
	s.engine.kill(false)
	return s.net.accept()
}

// strikeBefore does what happens instead of an answer; true if it did.
func (s *Server) strikeBefore(w http.ResponseWriter, r *http.Request, k strike, record *Record) bool {
	if k.early == "" {
		return false
	}
	record.Fault = k.early
	switch k.early {
	case Fault500:
		record.Status = writeError(w, &apiError{500, "Internal server error", "InternalServerError", ""})
	case Fault503:
		record.Status = writeError(w, queueFull())
	case FaultHang:
		s.silence(r)
		record.Aborted = true
		panic(http.ErrAbortHandler)
	case FaultDieBefore:
		reset(w)
	case FaultGarbage:
		record.Status = http.StatusOK
		if record.Stream {
			w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
			_, _ = w.Write([]byte("data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.comp\n\ndata: [1,2\n\n<html>"))
			break
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte("<html><body>It works!</body></html>"))
	}
	return true
}

// strikeMidway does what happens when the tokens before the fault are out.
func (p *reply) strikeMidway(w http.ResponseWriter, r *http.Request, out *sink) {
	p.record.Fault = p.strike.midway
	switch p.strike.midway {
	case FaultHangMid:
		p.server.silence(r)
	case FaultDieMid:
		p.settleBeforeReset()
		reset(w)
	case FaultTruncate:
		if out == nil {
			reset(w)
		}
	case FaultError:
		err := &apiError{500, "Internal server error", "InternalServerError", ""}
		if out == nil {
			p.record.Status = writeError(w, err)
			return
		}
		_ = out.event(err.body())
		_ = out.event([]byte("[DONE]"))
	}
}

// settleBeforeReset frees the engine first: a process that dies takes its
// sequences with it.
func (p *reply) settleBeforeReset() {
	for _, ch := range p.choices {
		p.server.engine.abort(ch.seq)
	}
}

// silence waits until the client gives up.
func (s *Server) silence(r *http.Request) {
	select {
	case <-r.Context().Done():
	case <-s.closing:
	}
}

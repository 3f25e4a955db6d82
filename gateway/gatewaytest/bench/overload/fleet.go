package overload

import (
	"fmt"
	"net/http"
	"time"

	"tidegate/gateway/gatewaytest"
	"tidegate/gateway/qwen"
)

// The models. Requests ask for the large one.
const (
	LargeModel = "Qwen3-1.7B"
	SmallModel = "Qwen3-0.6B"
)

// thinking is the number of reasoning tokens per token of the answer.
const thinking = 2

// Speed holds the times and the slots of a backend.
type Speed struct {
	TTFT    time.Duration // of an empty prompt
	Prefill time.Duration // for each token of the prompt
	ITL     time.Duration
	Slots   int
}

// Holds returns the time for which a request with its thinking keeps a slot.
func (s Speed) Holds(input, answer int) time.Duration {
	return s.TTFT + time.Duration(input)*s.Prefill + time.Duration((1+thinking)*answer-1)*s.ITL
}

// Faster returns the speed of a backend that is so many times as fast, with as many slots.
func (s Speed) Faster(times float64) Speed {
	scaled := func(d time.Duration) time.Duration { return time.Duration(float64(d) / times) }
	return Speed{scaled(s.TTFT), scaled(s.Prefill), scaled(s.ITL), s.Slots}
}

// Fleet is the simulated servers of a run.
type Fleet struct {
	Large, Small   Speed
	Larges, Smalls int // servers
	Context        int // tokens, of both models
}

// DefaultFleet returns two servers of the large model and so many of the small one, which
// are 2.5 times as fast. The speeds are about those of one H100-class card with short
// batches; the slots are few, so that a machine of two cores can play four times the
// load.
func DefaultFleet(smalls int) Fleet {
	large := Speed{TTFT: 40 * time.Millisecond, Prefill: 10 * time.Microsecond, ITL: 5 * time.Millisecond, Slots: 16}
	return Fleet{Large: large, Small: large.Faster(2.5), Larges: 2, Smalls: smalls, Context: 40960}
}

// Slots returns the slots of the large model.
func (f Fleet) Slots() int { return f.Larges * f.Large.Slots }

// Capacity returns the requests a second, as long as these rows on average, that the large
// model's backends can answer at L0.
func (f Fleet) Capacity(rows []Row) float64 {
	var held time.Duration
	for _, r := range rows {
		held += f.Large.Holds(r.Input, r.Output)
	}
	return float64(f.Slots()) * float64(len(rows)) / held.Seconds()
}

// kvBlocks is the KV cache of a server, 655,360 tokens: what an 80 GB card has left
// beside either model, whose tokens take 112 KiB each.
const kvBlocks = 40960

// Servers are the simulated servers that run.
type Servers struct {
	servers []*gatewaytest.Server
	Larges  []string // URLs
	Smalls  []string
	Slots   int // of the large model
}

// StartServers starts a fleet on ports of the loopback.
func StartServers(f Fleet, tokenizer *qwen.Tokenizer) (*Servers, error) {
	s := &Servers{Slots: f.Slots()}
	for i := range f.Larges + f.Smalls {
		o := gatewaytest.Default()
		speed, urls := f.Large, &s.Larges
		if o.Model = LargeModel; i >= f.Larges {
			o.Model, speed, urls = SmallModel, f.Small, &s.Smalls
		}
		o.Tokenizer, o.MaxModelLen, o.KVBlocks = tokenizer, f.Context, kvBlocks
		o.TTFT, o.PrefillPerToken, o.ITL, o.Slots = speed.TTFT, speed.Prefill, speed.ITL, speed.Slots
		server, err := gatewaytest.New(o)
		if err == nil {
			s.servers = append(s.servers, server)
			var url string
			url, err = server.Listen("127.0.0.1:0")
			*urls = append(*urls, url)
		}
		if err != nil {
			s.Close()
			return nil, fmt.Errorf("start a server of %s: %w", o.Model, err)
		}
	}
	return s, nil
}

// Close ends all servers.
func (s *Servers) Close() {
	for _, server := range s.servers {
		server.Close()
	}
}

// Load returns the number of requests that run and that wait in all engines.
func (s *Servers) Load() (running, waiting int) {
	for _, server := range s.servers {
		n := server.Stats()
		running += n.Running
		waiting += n.Waiting
	}
	return running, waiting
}

// FirstTokens returns the time of the first token of each answer in the engines, by its id.
func (s *Servers) FirstTokens() map[string]time.Time {
	times := map[string]time.Time{}
	for _, server := range s.servers {
		for _, r := range server.Requests() {
			if r.Status == http.StatusOK && !r.FirstToken.IsZero() {
				times[r.ResponseID] = r.FirstToken
			}
		}
	}
	return times
}

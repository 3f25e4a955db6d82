package gateway

import (
	"tidegate/gateway/ledger"
	"tidegate/gateway/openai"
)

// settlement tracks the charging of a request: to the limits by settle, and to the
// ledger by record, each once.
type settlement struct {
	flight   *ledger.Flight // under way in the ledger; nil before and after
	settled  bool           // the limits have it, and the place is given back
	recorded bool           // the ledger has it
}

// progress notes for the ledger what a request under way has used so far.
func (s *settlement) progress(p *plan, u openai.Usage) {
	if s.flight != nil {
		s.flight.Progress(u, p.model.Weights.Units(limitUsage(u)))
	}
}

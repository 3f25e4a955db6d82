package redislimit

import (
	"fmt"
	"time"
)

// State is what an operator may want to know.
type State struct {
	Alone     bool      `json:"alone"`     // Redis is not asked
	ChangedAt     time.Time `json:"since"`     // when that changed; zero: never
	Error     string    `json:"error"`     // why it is not asked; empty while it is
	Replicas  int       `json:"replicas"`  // for which the share is made; 0: never known
	PerMille  int64     `json:"per_mille"` // of each limit, that this replica enforces alone
	Waiting   int       `json:"waiting"`   // settlements that Redis is still to be told of
	Dropped   int64     `json:"dropped"`   // settlements for which there was no room
	Lost      time.Time `json:"lost"`      // when Redis was last found to have lost its counters; zero: never
	Recounted bool      `json:"recounted"` // for a window after that the share holds beside what Redis says
	Recalled  time.Time `json:"recalled"`  // when quotas were last read from the ledger; zero: never
	Action     string    `json:"doing"`     // what is being done about Redis, in one sentence; empty: nothing has to be
}

// State returns how things are now.
func (g *Guarded) State() State {
	s := State{Alone: g.alone.Load()}
	s.Replicas, s.PerMille = g.fleet.size()
	if lost := g.lostMs.Load(); lost != 0 {
		s.Lost, s.Recounted = time.UnixMilli(lost), g.lostRecently(g.opts.Now())
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	s.ChangedAt, s.Waiting, s.Dropped, s.Recalled = g.since, len(g.waiting), g.dropped, g.recalled.time
	if s.Alone && g.last != nil {
		s.Error = g.last.Error()
	}
	s.Action = s.action()
	return s
}

// doing returns one sentence for State.Doing.
func (s *State) action() string {
	switch {
	case s.Alone:
		fleet := fmt.Sprintf("%d gateways were last known", s.Replicas)
		if s.Replicas == 0 {
			fleet = "how many gateways there are was never known"
		}
		return fmt.Sprintf("this gateway alone enforces %s of each limit (%s), reads quotas from the ledger and asks Redis again every second; %d settlements wait for it",
			percent(s.PerMille), fleet, s.Waiting)
	case s.Waiting > 0:
		return fmt.Sprintf("%d settlements are being handed in to Redis", s.Waiting)
	case s.Recounted:
		return fmt.Sprintf("Redis lost its counters at %s: until a rule's window has passed, this gateway enforces %s of it beside what Redis counts; quotas are restored from the ledger",
			s.Lost.UTC().Format(time.RFC3339), percent(s.PerMille))
	}
	return ""
}

func percent(perMille int64) string {
	return fmt.Sprintf("%g %%", float64(perMille)/10)
}

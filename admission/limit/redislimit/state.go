package redislimit

import (
	"fmt"
	"time"
)

// State is the state of the guard for operators.
type State struct {
	Alone     bool      `json:"alone"`     // Redis is not asked
	ChangedAt time.Time `json:"since"`     // time of the last change of Alone; zero for never
	Error     string    `json:"error"`     // reason for which Redis is not asked; empty while it is
	Replicas  int       `json:"replicas"`  // replicas for which the share is made; 0 where never known
	PerMille  int64     `json:"per_mille"` // part of each limit that this replica enforces alone
	Waiting   int       `json:"waiting"`   // settlements that Redis has not accepted yet
	Dropped   int64     `json:"dropped"`   // settlements for which there was no room
	Lost      time.Time `json:"lost"`      // time at which Redis was last found to have lost its counters; zero for never
	Recounted bool      `json:"recounted"` // for a window after that, the share applies beside what Redis counts
	Recalled  time.Time `json:"recalled"`  // time at which quotas were last read from the ledger; zero for never
	Action    string    `json:"doing"`     // what the gateway does about Redis, in one sentence; empty where nothing has to be done
}

// State returns the present state.
func (g *Guarded) State() State {
	s := State{Alone: g.link.alone.Load(), Recalled: g.recalls.get().time}
	s.Replicas, s.PerMille = g.fleet.size()
	if lost := g.loss.atMs.Load(); lost != 0 {
		s.Lost, s.Recounted = time.UnixMilli(lost), g.loss.isRecent(g.opts.Now())
	}
	s.Waiting, s.Dropped = g.backlog.size()
	var err error
	if s.ChangedAt, err = g.link.lastChange(); s.Alone && err != nil {
		s.Error = err.Error()
	}
	s.Action = s.action()
	return s
}

// action returns the sentence for State.Action.
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

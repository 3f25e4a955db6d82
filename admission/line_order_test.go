package admission

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"tidegate/admission/limit"
)

// TestFirstChanges: somebody asks for the place that another gateway gives back, also
// where the first in line is passed because its tenant uses more meanwhile.
func TestFirstChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := sharing{limit.NewMemory(time.Now)}
		here, there := newCrowd(t, store, placesRule(2, 20*time.Second), 8), newCrowd(t, store, placesRule(2, 20*time.Second), 8)
		others := []*Permit{there.admit("eve"), there.admit("eve")}
		running := here.ask(t.Context(), here.demand("ann"))
		there.settle(others[0])
		time.Sleep(time.Second)
		ann, bob := here.ask(t.Context(), here.demand("ann")), here.ask(t.Context(), here.demand("bob"))
		if running.permit == nil || ann.done || bob.done {
			t.Fatalf("%+v, %+v, %+v", running, ann, bob)
		}
		running.permit.SetOutput(1000) // ann has had more than bob now
		time.Sleep(time.Second)
		there.settle(others[1])
		time.Sleep(time.Second)
		if synctest.Wait(); bob.permit == nil || ann.done || bob.took > 2*time.Second {
			t.Errorf("%+v, %+v", ann, bob)
		}
		here.settle(running.permit)
		if ann.permit == nil {
			t.Fatalf("%+v", ann)
		}
		here.settle(ann.permit)
		if bob.permit != nil {
			here.settle(bob.permit)
		}
		here.checkEmpty()
	})
}

// TestLinesThatAsk: the first in line asks as often as the number of lines allows where
// somebody waits; those of requests that run since do not count.
func TestLinesThatAsk(t *testing.T) {
	var all lines
	q := &queueing{QueueConfig: DefaultQueue()}
	newOne := func() *waiter { return &waiter{tenant: "ann", weight: 1, sequences: 1, ready: make(chan struct{}, 1)} }
	var running []*waiter
	for i := range 2000 {
		w := newOne()
		all.join(fmt.Sprint(i), q, w)
		all.serve(w)
		running = append(running, w)
	}
	w := newOne()
	all.join("busy", q, w)
	if every := all.pollInterval(&limit.Rejection{Shared: true}, time.Second); every > maxPoll*5/4 {
		t.Errorf("it asks again after %v", every)
	}
	all.remove(w)
	for _, w := range running {
		all.finish(w)
	}
	if all.polling != 0 || all.waiting.Load() != 0 || len(all.byCounter) != 0 {
		t.Errorf("%d lines ask, %d wait, %d are left", all.polling, all.waiting.Load(), len(all.byCounter))
	}
}

// forgetful is a store that cannot say so in time what it decided of some requests, as
// often as left: they are refused, and their ids are settled to nothing.
type forgetful struct {
	limit.Store
	left   int
	gone   map[string]bool
	misuse []string // ids that were asked for after that
}

func (s *forgetful) Reserve(ctx context.Context, r limit.Reservation) (limit.Decision, error) {
	if s.gone[r.ID] && !r.Peek {
		s.misuse = append(s.misuse, r.ID)
	}
	out, err := s.Store.Reserve(ctx, r)
	if err == nil && !out.Allowed && !r.Peek && s.left > 0 {
		s.left--
		s.gone[r.ID], out.Forgotten = true, true
	}
	return out, err
}

// TestWaitsUnderAnotherID: a request that was refused while its store could not answer is
// not asked for again by an id which is settled to nothing, or it would run uncharged.
func TestWaitsUnderAnotherID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &forgetful{Store: limit.NewMemory(time.Now), left: 2, gone: map[string]bool{}}
		c := newCrowd(t, store, placesRule(1, 5*time.Second), 4)
		running := c.admit("ann")
		a := c.ask(t.Context(), c.demand("bob"))
		time.Sleep(2 * time.Second)
		c.settle(running)
		if !a.done || a.err != nil || len(store.gone) != 2 || len(store.misuse) > 0 {
			t.Fatalf("done %v, %v; forgotten %v, asked for again %v", a.done, a.err, store.gone, store.misuse)
		}
		c.settle(a.permit)
		c.checkEmpty()
	})
}

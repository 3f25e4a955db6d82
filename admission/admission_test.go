package admission

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tidegate/admission/limit"
	"tidegate/degrade"
)

// poolOf returns a pool of backends in rotation with the given weights.
func poolOf(weights ...int) *Pool {
	var all []*Seat
	for _, w := range weights {
		b := weightedSeat(w)
		b.SetRotation(true)
		all = append(all, b)
	}
	return newTestPool(all...)
}

// weightedSeat returns a backend of some weight without bounds.
func weightedSeat(weight int) *Seat {
	return NewSeat(degrade.NewGauge("", weight, nil), Bounds{})
}

func newTestPool(all ...*Seat) *Pool {
	p := NewPool("model", nil)
	p.Set(all, nil)
	return p
}

// index returns the position of the permit's backend in its pool; -1 for none.
func (p *Permit) index() int { return slices.Index(p.pool.seats, p.seat) }

// unlimited returns a controller without limits.
func unlimited() *Controller {
	return New(limit.New(&limit.Set{}, limit.Options{Store: limit.NewMemory(time.Now)}), DefaultQueue())
}

func admit(t *testing.T, p *Pool) *Permit {
	t.Helper()
	permit, err := unlimited().Admit(t.Context(), &Demand{Pool: p})
	if err != nil {
		t.Fatal(err)
	}
	return permit
}

func inFlight(p *Pool) (n []int) {
	for _, b := range p.seats {
		n = append(n, b.InFlight())
	}
	return n
}

func TestRotation(t *testing.T) {
	b := weightedSeat(0)
	if b.InRotation() || b.SetRotation(false) || !b.SetRotation(true) || b.SetRotation(true) || !b.InRotation() || !b.SetRotation(false) || b.InRotation() {
		t.Error("Rotate")
	}
	if newTestPool().Available() || newTestPool(b, weightedSeat(1)).Available() || !poolOf(1, 1).Available() {
		t.Error("a pool is in rotation when one of its backends is")
	}
	var zero Seat
	if zero.InRotation() {
		t.Error("the zero value is in rotation")
	}
}

func TestNoBackend(t *testing.T) {
	down := poolOf(1, 1)
	for _, b := range down.seats {
		b.SetRotation(false)
	}
	for _, p := range []*Pool{newTestPool(), down} {
		if permit, err := unlimited().Admit(t.Context(), &Demand{Pool: p}); !errors.Is(err, ErrNoBackend) || permit != nil {
			t.Errorf("%v, %v", permit, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p := poolOf(1)
	if _, err := unlimited().Admit(ctx, &Demand{Pool: p}); !errors.Is(err, context.Canceled) || inFlight(p)[0] != 0 {
		t.Errorf("a caller that is gone: %v, %v", err, inFlight(p))
	}
}

// TestLeastInFlight: no request goes to a backend that has as many for its weight as
// another one would have with one more, those out of rotation aside.
func TestLeastInFlight(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		weights := rapid.SliceOfN(rapid.IntRange(1, 5), 1, 5).Draw(t, "weights")
		p := poolOf(weights...)
		var held []*Permit
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 5).Draw(t, "step") {
			case 0:
				p.seats[rapid.IntRange(0, len(weights)-1).Draw(t, "which")].SetRotation(rapid.Bool().Draw(t, "in"))
				continue
			case 1, 2:
				if len(held) > 0 {
					i := rapid.IntRange(0, len(held)-1).Draw(t, "settled")
					held[i].Settle(limit.Usage{}, "")
					held = append(held[:i], held[i+1:]...)
				}
				continue
			}
			before := inFlight(p)
			permit, err := unlimited().Admit(t.Context(), &Demand{Pool: p})
			if err != nil {
				if p.Available() {
					t.Fatal(err)
				}
				continue
			}
			got := permit.index()
			if permit.Level != degrade.Full || permit.Reason != "" || !p.seats[got].InRotation() || p.seats[got].InFlight() != before[got]+1 {
				t.Fatalf("%+v", permit)
			}
			for i, w := range weights {
				if i != got && p.seats[i].InRotation() && (before[i]+1)*weights[got] <= before[got]*w {
					t.Fatalf("%v in flight by weights %v: picked %d before %d", before, weights, got, i)
				}
			}
			held = append(held, permit)
		}
		for _, permit := range held {
			permit.Settle(limit.Usage{}, "")
		}
		for i, n := range inFlight(p) {
			if n != 0 {
				t.Fatalf("%d left on backend %d", n, i)
			}
		}
	})
}

func TestShares(t *testing.T) {
	p := poolOf(1, 2, 5)
	for range 800 {
		admit(t, p)
	}
	if n := inFlight(p); n[0] != 100 || n[1] != 200 || n[2] != 500 {
		t.Errorf("%v", n)
	}
}

// TestSharesAtAnyLoad: of the requests of few callers as of many each backend gets its
// share, and one of weight 0 gets none. Where they end in any order, few callers can leave
// too many on one backend for the others to be let in: then shares are near it.
func TestSharesAtAnyLoad(t *testing.T) {
	const requests = 2000
	for _, weights := range [][]int{{3, 1}, {5, 3}, {10, 1}, {4, 3, 2, 0, 1}, {1, 1}} {
		for _, callers := range []int{1, 2, 3, 5, 200} {
			for _, inTurn := range []bool{true, false} {
				p := poolOf(weights...)
				all := 0
				for i, w := range weights {
					p.seats[i].SetWeight(w)
					all += w
				}
				order := rand.New(rand.NewPCG(1, 2))
				counts := make([]int, len(weights))
				var held []*Permit
				for range requests {
					if len(held) == callers {
						i := 0
						if !inTurn {
							i = order.IntN(len(held))
						}
						if err := held[i].Settle(limit.Usage{}, ""); err != nil {
							t.Fatal(err)
						}
						held = slices.Delete(held, i, i+1)
					}
					permit := admit(t, p)
					counts[permit.index()]++
					held = append(held, permit)
				}
				off := 0.02
				if !inTurn {
					off = 0.07
				}
				for i, w := range weights {
					if got, want := float64(counts[i])/requests, float64(w)/float64(all); math.Abs(got-want) > off || w == 0 && got > 0 {
						t.Errorf("weights %v, %d callers, in turn %v: backend %d got %.3f of the requests, want %.3f", weights, callers, inTurn, i, got, want)
					}
				}
			}
		}
	}
}

// TestSlowOneIsNotFlooded: a backend that has taken longer than its share is not sent all
// that it did not take when it is quick again.
func TestSlowOneIsNotFlooded(t *testing.T) {
	p := poolOf(1, 1)
	slow := p.seats[0]
	slow.inFlight.Store(50)
	for range 1000 {
		if err := admit(t, p).Settle(limit.Usage{}, ""); err != nil {
			t.Fatal(err)
		}
	}
	slow.inFlight.Store(0)
	got := [2]int{}
	for range 20 {
		permit := admit(t, p)
		got[permit.index()]++
		if err := permit.Settle(limit.Usage{}, ""); err != nil {
			t.Fatal(err)
		}
	}
	if got[0] > 12 {
		t.Errorf("%v of 20", got)
	}
}

// TestDrained: a backend of weight 0 keeps what it has and gets nothing new; a model whose
// backends all are is without any.
func TestDrained(t *testing.T) {
	p := poolOf(1, 1)
	permit := admit(t, p)
	b := p.seats[permit.index()]
	b.SetWeight(0)
	for range 10 {
		if admit(t, p).seat == b {
			t.Fatal("a new request")
		}
	}
	if b.InFlight() != 1 || !b.Usable() || !b.Drained() {
		t.Errorf("%d in flight, usable %v, drained %v", b.InFlight(), b.Usable(), b.Drained())
	}
	p.seats[0].SetWeight(0)
	p.seats[1].SetWeight(0)
	if _, err := unlimited().Admit(t.Context(), &Demand{Pool: p}); !errors.Is(err, ErrNoBackend) || p.Available() {
		t.Errorf("%v", err)
	}
	b.SetWeight(2)
	if got := admit(t, p).seat; got != b {
		t.Error("it is not back")
	}
}

// TestEqualsInTurn: requests one after the other, none in flight meanwhile.
func TestEqualsInTurn(t *testing.T) {
	p := poolOf(1, 1, 1)
	got := [3]int{}
	for range 300 {
		permit := admit(t, p)
		got[permit.index()]++
		permit.Settle(limit.Usage{}, "")
	}
	if got != [3]int{100, 100, 100} {
		t.Errorf("%v", got)
	}
}

func TestAnother(t *testing.T) {
	p := poolOf(1, 100)
	permit := admit(t, p)
	first := permit.index()
	p.seats[1-first].inFlight.Store(1000) // the other one is taken all the same
	if !permit.SwitchBackend() || permit.index() != 1-first {
		t.Fatalf("%+v", permit)
	}
	if n := inFlight(p); n[first] != 0 || n[1-first] != 1001 {
		t.Errorf("%v", n)
	}
	permit.Settle(limit.Usage{}, "")
	permit.Settle(limit.Usage{}, "")
	if n := inFlight(p); n[first] != 0 || n[1-first] != 1000 {
		t.Errorf("settled twice: %v", n)
	}

	alone := poolOf(1)
	permit = admit(t, alone)
	if permit.SwitchBackend() || permit.index() != -1 {
		t.Errorf("there is no other: %+v", permit)
	}
	permit.Settle(limit.Usage{}, "")
	if n := inFlight(alone); n[0] != 0 {
		t.Errorf("%v", n)
	}
	p = poolOf(1, 1)
	permit = admit(t, p)
	p.seats[1-permit.index()].SetRotation(false)
	if permit.SwitchBackend() {
		t.Error("the only other one is out of rotation")
	}
}

// TestPlacesComeBack: under concurrency nothing is lost, counted twice or ever
// below zero.
func TestPlacesComeBack(t *testing.T) {
	p := poolOf(1, 2, 3)
	var callers, watching sync.WaitGroup
	stop := make(chan bool)
	watching.Go(func() {
		for {
			for i, n := range inFlight(p) {
				if n < 0 || n > 8 {
					t.Errorf("%d in flight on backend %d", n, i)
				}
			}
			select {
			case <-stop:
				return
			default:
				p.seats[rand.IntN(3)].SetRotation(rand.IntN(4) > 0)
			}
		}
	})
	for range 8 {
		callers.Go(func() {
			for range 2000 {
				permit, err := unlimited().Admit(context.Background(), &Demand{Pool: p})
				if err != nil {
					continue
				}
				for rand.IntN(3) == 0 && permit.SwitchBackend() {
				}
				for range 1 + rand.IntN(2) {
					permit.Settle(limit.Usage{}, "")
				}
			}
		})
	}
	callers.Wait()
	close(stop)
	watching.Wait()
	for i, n := range inFlight(p) {
		if n != 0 {
			t.Errorf("%d left on backend %d", n, i)
		}
	}
}

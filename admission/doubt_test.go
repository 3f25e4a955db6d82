package admission

import (
	"slices"
	"testing"
	"testing/synctest"
)

// TestDoubt: a backend in doubt gets no request that another one can have, be that busier,
// and all that no other one can have.
func TestDoubt(t *testing.T) {
	p := poolOf(1, 1)
	first, second := p.seats[0], p.seats[1]
	first.SetDoubt(true)
	for range 4 {
		admit(t, p)
	}
	if n := inFlight(p); !slices.Equal(n, []int{0, 4}) {
		t.Fatalf("with the first in doubt: %v in flight", n)
	}
	second.SetDoubt(true)
	admit(t, p)
	if n := inFlight(p); !slices.Equal(n, []int{1, 4}) {
		t.Fatalf("with both in doubt: %v in flight", n)
	}
	second.SetDoubt(false)
	second.SetRotation(false)
	admit(t, p)
	if n := inFlight(p); !slices.Equal(n, []int{2, 4}) {
		t.Fatalf("with the other one out of rotation: %v in flight", n)
	}
	second.SetRotation(true)
	first.SetDoubt(false)
	admit(t, p)
	if n := inFlight(p); !slices.Equal(n, []int{3, 4}) {
		t.Fatalf("without doubts: %v in flight", n)
	}
}

// TestDoubtEnds: who waits while the only free backend is in doubt gets its place when
// that is over.
func TestDoubtEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, other := weightedSeat(1), NewSeat(nil, Bounds{InFlight: 1})
		b.SetRotation(true)
		other.SetRotation(true)
		p := newTestPool(b, other)
		b.SetDoubt(true)
		admit(t, p)
		var got *Permit
		go func() {
			permit, err := unlimited().Admit(t.Context(), &Demand{Pool: p})
			if err != nil {
				t.Error(err)
			}
			got = permit
		}()
		synctest.Wait()
		if got != nil {
			t.Fatal("it did not wait")
		}
		b.SetDoubt(false)
		synctest.Wait()
		if got == nil || got.seat != b {
			t.Error("it has no place on the backend that is sound again")
		}
	})
}

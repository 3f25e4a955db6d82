package redislimit

import (
	"testing"
	"time"

	"tidegate/admission/limit"
	"tidegate/admission/limit/redislimit/redistest"
)

// TestForgotten: a reservation that Redis made without being able to say so in time,
// and that was refused alone, is settled to nothing: it says that its id must not be
// asked for again, or the request would run uncharged.
func TestForgotten(t *testing.T) {
	server := redistest.Single(t)
	g := Guard(New(patient(t, server.Addr), Options{}), GuardOptions{Replica: "r", Timeout: 50 * time.Millisecond})
	dims := day("forgotten", 1000, 1000, limit.FailLocal)
	if out, err := g.Reserve(t.Context(), limit.Reservation{ID: "a", Dims: dims}); err != nil || !out.Allowed || out.Forgotten {
		t.Fatalf("%+v, %v", out, err)
	}
	server.Pause()
	defer server.Resume()
	if out, err := g.Reserve(t.Context(), limit.Reservation{ID: "b", Dims: dims}); err != nil || out.Allowed || !out.Forgotten {
		t.Errorf("%+v, %v", out, err)
	}
}

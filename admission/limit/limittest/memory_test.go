package limittest

import (
	"testing"
	"time"

	"tidegate/admission/limit"
)

func memory(_ *testing.T, now func() time.Time) limit.Store { return limit.NewMemory(now) }

func TestMemory(t *testing.T) { Run(t, memory) }

// TestMemoryRefused is the longer form of the suite's own.
func TestMemoryRefused(t *testing.T) {
	histories := 100_000
	if testing.Short() {
		histories = 5_000
	}
	Refused(t, memory, histories)
}

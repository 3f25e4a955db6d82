package nvml

import (
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestReasons(t *testing.T) {
	for mask, want := range map[uint64][]string{
		0:              nil,
		0x1:            {"gpu_idle"},
		0x4:            {"sw_power_cap"},
		0x8 | 0x40:     {"hw_slowdown", "hw_thermal"},
		0x20:           {"sw_thermal"},
		0x80 | 1<<40:   {"hw_power_brake"}, // a bit of a newer driver
		0x2 | 0x10:     {"applications_clocks", "sync_boost"},
		math.MaxUint64: {"gpu_idle", "applications_clocks", "sw_power_cap", "hw_slowdown", "sync_boost", "sw_thermal", "hw_thermal", "hw_power_brake", "display_clocks"},
	} {
		if got := ReasonNames(mask); got == nil || !slices.Equal(got, want) {
			t.Errorf("%#x: %q", mask, got)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		mask := rapid.Uint64Range(0, 0x1ff).Draw(t, "mask")
		if got := ReasonMask(ReasonNames(mask)); got != mask {
			t.Fatalf("%#x became %#x", mask, got)
		}
	})
}

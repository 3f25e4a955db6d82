package nvml

import "slices"

// reasonsByBit are the clocks-event reasons as NVML numbers them; all sources that
// have a mask have this one.
func reasonsByBit() [9]string {
	return [...]string{
		"gpu_idle", "applications_clocks", "sw_power_cap", "hw_slowdown", "sync_boost", "sw_thermal", "hw_thermal", "hw_power_brake", "display_clocks",
	}
}

// ReasonNames are the clocks-event reasons of NVML's bit mask, never nil; bits that
// have no name are left out.
func ReasonNames(mask uint64) []string {
	names := []string{}
	for bit, name := range reasonsByBit() {
		if mask&(1<<bit) != 0 {
			names = append(names, name)
		}
	}
	return names
}

// ReasonMask is NVML's bit mask of reasons by name.
func ReasonMask(names []string) (mask uint64) {
	for bit, name := range reasonsByBit() {
		if slices.Contains(names, name) {
			mask |= 1 << bit
		}
	}
	return mask
}

// FatalXID reports whether a GPU gives wrong results or none after an error, until
// it is reset.
func FatalXID(code uint64) bool {
	return slices.Contains([]uint64{48, 64, 74, 79, 95, 119, 120}, code)
}

// MarginBelow is the margin of a card that does not tell it (before Ada): the
// distance to the nearer of the GPU's and its memory's highest operating
// temperatures. It is not known where the GPU's part of it is not, nor where that
// says 0 degrees, as a sensor does that is not there; a card's own margin is better,
// since it follows the hottest of its inner sensors.
func MarginBelow(gpuMax, memoryMax, gpu, memory *int) *int {
	if gpuMax == nil || gpu == nil || *gpu == 0 {
		return nil
	}
	margin := *gpuMax - *gpu
	if memoryMax != nil && memory != nil {
		margin = min(margin, *memoryMax-*memory)
	}
	return &margin
}

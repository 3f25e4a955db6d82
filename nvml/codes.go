package nvml

import "slices"

// reasonsByBit returns the clocks-event reasons in the order of NVML's bits
// (nvmlClocksEventReasons in nvml.h). All sources with a mask use them.
func reasonsByBit() [9]string {
	return [...]string{
		"gpu_idle", "applications_clocks", "sw_power_cap", "hw_slowdown", "sync_boost", "sw_thermal", "hw_thermal", "hw_power_brake", "display_clocks",
	}
}

// ReasonNames returns the clocks-event reasons of NVML's bit mask. It is never nil, and leaves
// out bits without a name.
func ReasonNames(mask uint64) []string {
	names := []string{}
	for bit, name := range reasonsByBit() {
		if mask&(1<<bit) != 0 {
			names = append(names, name)
		}
	}
	return names
}

// ReasonMask returns NVML's bit mask of reasons by name.
func ReasonMask(names []string) (mask uint64) {
	for bit, name := range reasonsByBit() {
		if slices.Contains(names, name) {
			mask |= 1 << bit
		}
	}
	return mask
}

// FatalXID reports whether a GPU gives wrong results or none after an error until it is
// reset.
func FatalXID(code uint64) bool {
	return slices.Contains([]uint64{48, 64, 74, 79, 95, 119, 120}, code)
}

// MarginBelow returns the margin in degrees Celsius of a card that does not report it (before
// Ada): the smaller distance of the GPU and its memory to their highest operating
// temperatures. It is nil where the GPU's part is not known, or its temperature is 0, which a
// missing sensor reads. A card's own margin is better, since it follows the hottest of its
// inner sensors.
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

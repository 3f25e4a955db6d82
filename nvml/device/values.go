package device

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"tidegate/nvml"
)

// Return codes of NVML that mean more than a missing value.
const (
	codeUninitialized  = 1
	codeNoDriver       = 9
	codeLost           = 15
	codeResetRequired  = 16
	codeMismatch       = 18
	unknownCardMaximum = 83 // degrees Celsius; the lowest that cards in servers begin to slow down at
)

// failure returns the error of a call that did not succeed. The texts are our own, since the
// library's would need one more call that may be missing. Codes: nvmlReturn_t in nvml.h.
func failure(call string, code int) error {
	text := map[int]string{
		1: "not initialised", 2: "invalid argument", 3: "not supported", 4: "no permission", 6: "not found",
		8: "a power cable is missing", 9: "driver not loaded", 10: "timeout", 11: "interrupt issue", 12: "library not found",
		13: "function not found", 14: "corrupted infoROM", 15: "GPU is lost", 16: "reset required", 17: "blocked by the operating system",
		18: "driver and library have different versions", 20: "out of memory", 23: "out of resources", 25: "argument version mismatch",
		28: "GPU not found", 999: "unknown error",
	}[code]
	if text == "" {
		text = "error"
	}
	err := fmt.Errorf("%s: %s (%d)", call, text, code)
	switch code {
	case codeUninitialized, codeNoDriver, codeMismatch:
		return fmt.Errorf("%w: %w", ErrDriver, err)
	case codeLost, codeResetRequired:
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	return err
}

// thresholds are the highest operating temperatures of a GPU, in degrees Celsius; nil where the
// card has none. Cards since Ada have none, but a margin.
type thresholds struct {
	gpu, memory *int
}

// margin returns the margin of a card that has none of its own.
func (t thresholds) margin(gpu, memory *int) *int {
	limit := t.gpu
	if limit == nil {
		limit = new(unknownCardMaximum)
	}
	return nvml.MarginBelow(limit, t.memory, gpu, memory)
}

// number returns a field's value by its type (nvmlValueType_t in nvml.h); false for an unknown
// type or a value that is no number.
func number(kind uint32, raw [8]byte) (int64, bool) {
	word := binary.NativeEndian.Uint64(raw[:])
	switch kind {
	case 0: // double
		f := math.Float64frombits(word)
		if f != f || math.Abs(f) > math.MaxInt64/2 {
			return 0, false
		}
		return int64(f), true
	case 1: // unsigned int
		return int64(binary.NativeEndian.Uint32(raw[:])), true
	case 2, 3, 4: // unsigned long, unsigned long long, signed long long
		return int64(word), true //nolint:gosec // counters stay below 2^63
	case 5: // signed int
		return int64(int32(binary.NativeEndian.Uint32(raw[:]))), true //nolint:gosec // this is what the type says
	case 6: // unsigned short
		return int64(binary.NativeEndian.Uint16(raw[:])), true
	}
	return 0, false
}

// migReading returns the part of a MIG device's reading that comes from its GPU: all devices of
// a GPU share its temperature. Power and utilisation belong to the GPU alone.
func migReading(gpu nvml.Reading, uuid, name string) nvml.Reading {
	r := gpu
	r.UUID, r.Name, r.Parent = uuid, name, gpu.UUID
	r.MemoryTotal, r.MemoryUsed, r.MemoryFree, r.MemoryReserved = nil, nil, nil, nil
	r.Power, r.PowerLimit, r.Utilisation = nil, nil, nil
	return r
}

// isApplicationXID reports whether a program on the GPU causes an error, which says nothing
// about the GPU.
func isApplicationXID(xid uint64) bool {
	return slices.Contains([]uint64{13, 31, 43, 45, 68, 109}, xid)
}

package device

import (
	"encoding/binary"
	"errors"
	"math"
	"testing"

	"tidegate/nvml"
)

func TestFailure(t *testing.T) {
	for code, want := range map[int]error{
		1: ErrDriver, 9: ErrDriver, 18: ErrDriver, 15: ErrLost, 16: ErrLost,
		2: nil, 3: nil, 10: nil, 999: nil, 12345: nil,
	} {
		err := failure("nvmlX", code)
		if errors.Is(err, ErrDriver) != (want == ErrDriver) || errors.Is(err, ErrLost) != (want == ErrLost) { //nolint:errorlint // which of the two
			t.Error(code, err)
		}
	}
	if got := failure("nvmlInit_v2", 18).Error(); got != "driver failed: nvmlInit_v2: driver and library have different versions (18)" {
		t.Error(got)
	}
	if got := failure("nvmlX", 12345).Error(); got != "nvmlX: error (12345)" {
		t.Error(got)
	}
}

// Cards before Ada: A100, T4; one that tells nothing.
func TestMargin(t *testing.T) {
	p := func(v int) *int { return &v }
	for _, c := range []struct {
		name           string
		limits         thresholds
		gpu, hbm, want *int
	}{
		{"A100, memory nearer", thresholds{p(85), p(95)}, p(50), p(80), p(15)},
		{"A100, core nearer", thresholds{p(85), p(95)}, p(80), p(80), p(5)},
		{"T4, no memory sensor", thresholds{p(85), nil}, p(33), nil, p(52)},
		{"memory's temperature not known", thresholds{p(85), p(95)}, p(33), nil, p(52)},
		{"memory's limit not known", thresholds{p(85), nil}, p(33), p(90), p(52)},
		{"nothing known of the card", thresholds{}, p(60), nil, p(23)},
		{"above the limit", thresholds{p(85), nil}, p(90), nil, p(-5)},
		{"no temperature", thresholds{p(85), p(95)}, nil, p(50), nil},
	} {
		got := c.limits.margin(c.gpu, c.hbm)
		if (got == nil) != (c.want == nil) || got != nil && *got != *c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestNumber(t *testing.T) {
	raw := func(v uint64) (b [8]byte) { binary.NativeEndian.PutUint64(b[:], v); return }
	for _, c := range []struct {
		kind uint32
		raw  [8]byte
		want int64
		ok   bool
	}{
		{0, raw(math.Float64bits(41.9)), 41, true},
		{0, raw(math.Float64bits(math.NaN())), 0, false},
		{0, raw(math.Float64bits(math.Inf(1))), 0, false},
		{1, raw(0xffffffff_00000029), 41, true}, // what is behind is not defined
		{2, raw(1 << 40), 1 << 40, true},
		{3, raw(1 << 40), 1 << 40, true},
		{4, raw(math.MaxUint64), -1, true},
		{5, raw(0x00000001_fffffffe), -2, true},
		{6, raw(0xffff_0029), 41, true},
		{7, raw(41), 0, false},
	} {
		if got, ok := number(c.kind, c.raw); got != c.want || ok != c.ok {
			t.Errorf("type %d %x: %d %v", c.kind, c.raw, got, ok)
		}
	}
}

// All on a GPU share its heat; memory and power are each one's own.
func TestMIGReading(t *testing.T) {
	v, n := 7, uint64(7)
	got := migReading(nvml.Reading{
		Index: 3, UUID: "GPU", Name: "A100", Margin: &v, Temperature: &v, HBM: &v, Reasons: []string{"sw_thermal"},
		Memory: nvml.Memory{MemoryTotal: &n, MemoryUsed: &n, MemoryFree: &n, MemoryReserved: &n}, Power: &n, PowerLimit: &n, Utilisation: &v,
	}, "MIG", "A100 1g")
	if got.Index != 3 || got.UUID != "MIG" || got.Parent != "GPU" || got.Name != "A100 1g" || got.Margin != &v || got.HBM != &v || len(got.Reasons) != 1 {
		t.Errorf("%+v", got)
	}
	if got.MemoryTotal != nil || got.MemoryUsed != nil || got.MemoryFree != nil || got.MemoryReserved != nil || got.Power != nil || got.PowerLimit != nil || got.Utilisation != nil {
		t.Errorf("%+v", got)
	}
}

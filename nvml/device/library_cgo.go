//go:build linux && cgo

package device

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/dl"
	gonvml "github.com/NVIDIA/go-nvml/pkg/nvml"

	"tidegate/nvml"
)

// Open returns the NVML library at path, a file or a name for the loader; "" is that of the
// driver. Nothing is loaded before Init.
func Open(path string) Library {
	if path == "" {
		path = "libnvidia-ml.so.1"
	}
	return &library{path: path}
}

// library guards go-nvml, whose functions are undefined symbols that the loader looks up at
// their first call. If it finds none, or no library is loaded, it ends the process with 127.
// So every name is looked up after loading, and an absent one is never called.
//
// A library that was initialised once is never unloaded: its functions are bound for the life
// of the process. With a second library of another driver beside it, one would be initialised
// and the other called.
type library struct {
	path      string
	loaded    *dl.DynamicLibrary
	api       gonvml.Interface
	available map[string]bool
	events    gonvml.EventSet
	devices   map[gonvml.Device]int
}

// symbols returns all functions that are ever called, by the names that go-nvml links against.
func symbols() []string {
	return []string{
		"nvmlInit_v2", "nvmlInit", "nvmlShutdown", "nvmlSystemGetDriverVersion",
		"nvmlDeviceGetCount_v2", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetHandleByIndex",
		"nvmlDeviceGetUUID", "nvmlDeviceGetName", "nvmlDeviceGetTemperatureThreshold",
		"nvmlDeviceGetMarginTemperature", "nvmlDeviceGetTemperature", "nvmlDeviceGetFieldValues",
		"nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetMemoryInfo",
		"nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons",
		"nvmlDeviceGetPowerUsage", "nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetUtilizationRates",
		"nvmlDeviceGetTotalEccErrors", "nvmlDeviceGetRemappedRows", "nvmlDeviceGetRetiredPagesPendingStatus",
		"nvmlDeviceGetMigMode", "nvmlDeviceGetMaxMigDeviceCount", "nvmlDeviceGetMigDeviceHandleByIndex",
		"nvmlEventSetCreate", "nvmlEventSetWait_v2", "nvmlEventSetWait", "nvmlEventSetFree",
		"nvmlDeviceGetSupportedEventTypes", "nvmlDeviceRegisterEvents",
	}
}

func (l *library) Init() (Inventory, error) {
	if err := l.load(); err != nil {
		return Inventory{}, fmt.Errorf("%w: %w", ErrNoLibrary, err)
	}
	// A new interface each time: go-nvml counts a failed initialisation, and would not shut
	// down the next one that succeeds.
	l.api = gonvml.New(gonvml.WithLibraryPath(l.path))
	if ret := l.api.Init(); ret != gonvml.SUCCESS {
		return Inventory{}, failure("nvmlInit", int(ret))
	}
	inventory, err := l.inventory()
	if err != nil {
		l.Shutdown()
		return Inventory{}, err
	}
	return inventory, nil
}

// load loads the library once, and looks up its names each time.
func (l *library) load() error {
	lib := l.loaded
	if lib == nil {
		lib = dl.New(l.path, dl.RTLD_LAZY|dl.RTLD_GLOBAL)
		if err := lib.Open(); err != nil {
			return err
		}
	}
	l.available = map[string]bool{}
	for _, name := range symbols() {
		l.available[name] = lib.Lookup(name) == nil
	}
	for _, names := range [][2]string{
		{"nvmlInit_v2", "nvmlInit"}, {"nvmlDeviceGetCount_v2", "nvmlDeviceGetCount"},
		{"nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetHandleByIndex"}, {"nvmlShutdown", "nvmlShutdown"},
	} {
		if !l.available[names[0]] && !l.available[names[1]] {
			// Nothing was called, so nothing is bound, and another library may be loaded.
			l.loaded = nil
			return errors.Join(fmt.Errorf("%s has no %s", l.path, names[0]), lib.Close())
		}
	}
	l.loaded = lib
	return nil
}

func (l *library) inventory() (Inventory, error) {
	out := Inventory{}
	if l.available["nvmlSystemGetDriverVersion"] {
		if version, ret := l.api.SystemGetDriverVersion(); ret == gonvml.SUCCESS {
			out.Driver = version
		}
	}
	count, ret := l.api.DeviceGetCount()
	if ret != gonvml.SUCCESS {
		return out, failure("nvmlDeviceGetCount", int(ret))
	}
	l.devices = map[gonvml.Device]int{}
	for i := range count {
		device, ret := l.api.DeviceGetHandleByIndex(i)
		if ret != gonvml.SUCCESS {
			out.GPUs = append(out.GPUs, absent{Identity{Index: i}, failure("nvmlDeviceGetHandleByIndex", int(ret))})
			continue
		}
		l.devices[device] = i
		s := newSweep(context.Background(), l.available, nil)
		g := &gpu{available: l.available, device: device, id: Identity{Index: i}}
		g.id.UUID, _ = query(s, "nvmlDeviceGetUUID", device.GetUUID)
		g.id.Name, _ = query(s, "nvmlDeviceGetName", device.GetName)
		if errors.Is(s.err, ErrDriver) {
			return out, s.err
		}
		out.GPUs = append(out.GPUs, g)
	}
	l.events = l.listen()
	return out, nil
}

// threshold returns a temperature threshold of the card; nil where it has none.
func threshold(s *sweep, device gonvml.Device, kind gonvml.TemperatureThresholds) *int {
	t, ok := query(s, "nvmlDeviceGetTemperatureThreshold", func() (uint32, gonvml.Return) { return device.GetTemperatureThreshold(kind) })
	if !ok || t == 0 {
		return nil
	}
	return new(int(t))
}

// listen returns an event set for errors of all GPUs; nil where there can be none.
func (l *library) listen() gonvml.EventSet {
	if !l.available["nvmlEventSetCreate"] || !l.available["nvmlEventSetFree"] || !l.available["nvmlDeviceRegisterEvents"] ||
		!l.available["nvmlDeviceGetSupportedEventTypes"] || !l.available["nvmlEventSetWait_v2"] && !l.available["nvmlEventSetWait"] {
		return nil
	}
	set, ret := l.api.EventSetCreate()
	if ret != gonvml.SUCCESS {
		return nil
	}
	registered := false
	for device := range l.devices {
		types, ret := device.GetSupportedEventTypes()
		types &= gonvml.EventTypeXidCriticalError | gonvml.EventTypeDoubleBitEccError
		if ret == gonvml.SUCCESS && types != 0 && device.RegisterEvents(types, set) == gonvml.SUCCESS {
			registered = true
		}
	}
	if !registered {
		_ = set.Free()
		return nil
	}
	return set
}

func (l *library) Wait(timeout time.Duration) (*Event, error) {
	if l.events == nil {
		return nil, ErrNoEvents
	}
	data, ret := l.events.Wait(uint32(timeout.Milliseconds())) //nolint:gosec // seconds
	switch ret {
	case gonvml.SUCCESS:
	case gonvml.ERROR_TIMEOUT:
		return nil, nil
	default:
		return nil, failure("nvmlEventSetWait", int(ret))
	}
	e := &Event{GPU: -1, XID: data.EventData}
	if i, ok := l.devices[data.Device]; ok {
		e.GPU = i
	}
	if data.EventType == gonvml.EventTypeDoubleBitEccError {
		e.XID = 48 // the XID that the driver logs for it
	}
	return e, nil
}

func (l *library) Shutdown() {
	if l.events != nil {
		_ = l.events.Free()
		l.events = nil
	}
	// The next Init finds a failure.
	_ = l.api.Shutdown()
}

// sweep guards the calls of one sweep over a GPU.
type sweep struct {
	ctx       context.Context //nolint:containedctx // a sweep lives as long as the call that it belongs to
	available map[string]bool
	timed     func(string, time.Duration)
	answered  bool  // at least one call succeeded or is not supported
	failed    int   // number of other calls
	last      error // error of the last failed call
	err       error // error that ends the sweep
}

func newSweep(ctx context.Context, available map[string]bool, timed func(string, time.Duration)) *sweep {
	if timed == nil {
		timed = func(string, time.Duration) {}
	}
	return &sweep{ctx: ctx, available: available, timed: timed}
}

// query makes one call, unless the library lacks it or the sweep has ended. It returns false
// where there is no answer.
func query[T any](s *sweep, symbol string, call func() (T, gonvml.Return)) (T, bool) {
	var zero T
	if s.err == nil {
		s.err = s.ctx.Err()
	}
	if s.err != nil || !s.available[symbol] {
		return zero, false
	}
	start := time.Now()
	value, ret := call()
	s.timed(symbol, time.Since(start))
	switch ret {
	case gonvml.SUCCESS:
		s.answered = true
		return value, true
	case gonvml.ERROR_NOT_SUPPORTED:
		s.answered = true
		return zero, false
	}
	s.failed++
	s.last = failure(symbol, int(ret))
	if errors.Is(s.last, ErrDriver) || errors.Is(s.last, ErrLost) {
		s.err = s.last
	}
	return zero, false
}

// queryOptional is query for a value that may be missing in a reading.
func queryOptional[T any](s *sweep, symbol string, call func() (T, gonvml.Return)) *T {
	if v, ok := query(s, symbol, call); ok {
		return &v
	}
	return nil
}

// absent is a GPU that the driver counts but cannot open.
type absent struct {
	id  Identity
	err error
}

func (a absent) Identity() Identity { return a.id }

func (a absent) Read(context.Context, bool, func(string, time.Duration)) ([]nvml.Reading, error) {
	if errors.Is(a.err, ErrLost) {
		return nil, a.err
	}
	return nil, fmt.Errorf("%w: %w", ErrSilent, a.err)
}

// gpu is a GPU of one generation.
type gpu struct {
	available   map[string]bool
	device      gonvml.Device
	id          Identity
	limits      thresholds
	limitsKnown bool // the limits were read

	// Values of the last slow sweep.
	ecc     *uint64
	pending *bool
	broken  bool // the driver requires a reset
	mig     []migDevice
}

type migDevice struct {
	device gonvml.Device
	id     Identity
}

func (g *gpu) Identity() Identity { return g.id }

func (g *gpu) Read(ctx context.Context, slow bool, timed func(string, time.Duration)) ([]nvml.Reading, error) {
	s := newSweep(ctx, g.available, timed)
	r := nvml.Reading{Index: g.id.Index, UUID: g.id.UUID, Name: g.id.Name}
	if r.UUID == "" { // the driver failed to give it before
		r.UUID, _ = query(s, "nvmlDeviceGetUUID", g.device.GetUUID)
		g.id.UUID = r.UUID
	}
	if before := s.failed; slow && !g.limitsKnown {
		g.limits = thresholds{threshold(s, g.device, gonvml.TEMPERATURE_THRESHOLD_GPU_MAX), threshold(s, g.device, gonvml.TEMPERATURE_THRESHOLD_MEM_MAX)}
		g.limitsKnown = s.failed == before
	}
	g.fields(s, &r, slow)
	if t, ok := query(s, "nvmlDeviceGetTemperature", func() (uint32, gonvml.Return) { return g.device.GetTemperature(gonvml.TEMPERATURE_GPU) }); ok {
		r.Temperature = new(int(t))
	}
	before := s.failed
	if m, ok := query(s, "nvmlDeviceGetMarginTemperature", g.device.GetMarginTemperature); ok {
		r.Margin = new(int(m.MarginTemperature))
	} else if s.failed == before {
		// The card or the library has none. Where only the call failed, the margin stays
		// unknown, so that it does not seem to jump.
		r.Margin = g.limits.margin(r.Temperature, r.HBM)
	}
	clocks, ok := query(s, "nvmlDeviceGetCurrentClocksEventReasons", g.device.GetCurrentClocksEventReasons)
	if !ok {
		clocks, ok = query(s, "nvmlDeviceGetCurrentClocksThrottleReasons", g.device.GetCurrentClocksThrottleReasons)
	}
	if ok {
		r.Reasons = nvml.ReasonNames(clocks)
	}
	memory(s, g.device, &r)
	if p, ok := query(s, "nvmlDeviceGetPowerUsage", g.device.GetPowerUsage); ok {
		r.Power = new(uint64(p))
	}
	if p, ok := query(s, "nvmlDeviceGetEnforcedPowerLimit", g.device.GetEnforcedPowerLimit); ok {
		r.PowerLimit = new(uint64(p))
	}
	if u, ok := query(s, "nvmlDeviceGetUtilizationRates", g.device.GetUtilizationRates); ok {
		r.Utilisation = new(int(u.Gpu))
	}
	if slow {
		g.readSlow(s)
	}
	r.ECCUncorrected, r.RowsPending = g.ecc, g.pending
	if g.broken {
		r.State = nvml.StateLost
	}
	out := []nvml.Reading{r}
	for _, m := range g.mig {
		mr := migReading(r, m.id.UUID, m.id.Name)
		memory(s, m.device, &mr)
		out = append(out, mr)
	}
	switch {
	case s.err != nil:
		return nil, s.err
	case !s.answered:
		return nil, fmt.Errorf("%w: %w", ErrSilent, s.last)
	}
	return out, nil
}

// fields reads the values that the driver gives as numbered fields, in one call; each has a
// return code of its own.
func (g *gpu) fields(s *sweep, r *nvml.Reading, slow bool) {
	counters := map[uint32]string{
		gonvml.FI_DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP:            "sw_power_cap",
		gonvml.FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN:       "sw_thermal",
		gonvml.FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN:       "hw_thermal",
		gonvml.FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN: "hw_power_brake",
	}
	values := []gonvml.FieldValue{{FieldId: gonvml.FI_DEV_MEMORY_TEMP}}
	for id := range counters {
		values = append(values, gonvml.FieldValue{FieldId: id})
	}
	if slow {
		values = append(values, gonvml.FieldValue{FieldId: gonvml.FI_DEV_GET_GPU_RECOVERY_ACTION})
	}
	if _, ok := query(s, "nvmlDeviceGetFieldValues", func() (struct{}, gonvml.Return) {
		return struct{}{}, g.device.GetFieldValues(values)
	}); !ok {
		return
	}
	for _, v := range values {
		n, ok := number(v.ValueType, v.Value)
		if v.NvmlReturn != uint32(gonvml.SUCCESS) || !ok || n < 0 {
			continue
		}
		switch v.FieldId {
		case gonvml.FI_DEV_MEMORY_TEMP:
			if n > 0 { // cards without a sensor may say 0
				r.HBM = new(int(n))
			}
		case gonvml.FI_DEV_GET_GPU_RECOVERY_ACTION:
			action := gonvml.DeviceGpuRecoveryAction(n) //nolint:gosec // 0 to 5
			g.broken = action == gonvml.GPU_RECOVERY_ACTION_GPU_RESET || action == gonvml.GPU_RECOVERY_ACTION_NODE_REBOOT
		default:
			if r.ThrottleNs == nil {
				r.ThrottleNs = map[string]uint64{}
			}
			r.ThrottleNs[counters[v.FieldId]] = uint64(n)
		}
	}
}

// memory reads the memory by the second form of the call, whose used part excludes what the
// driver reserves. Only an old library is called by the first form; then the reserved part is
// unknown, and included in the used one.
func memory(s *sweep, device gonvml.Device, r *nvml.Reading) {
	if s.available["nvmlDeviceGetMemoryInfo_v2"] {
		if m, ok := query(s, "nvmlDeviceGetMemoryInfo_v2", device.GetMemoryInfo_v2); ok {
			r.MemoryTotal, r.MemoryUsed, r.MemoryFree, r.MemoryReserved = &m.Total, &m.Used, &m.Free, &m.Reserved
		}
		return
	}
	if m, ok := query(s, "nvmlDeviceGetMemoryInfo", device.GetMemoryInfo); ok {
		r.MemoryTotal, r.MemoryUsed, r.MemoryFree = &m.Total, &m.Used, &m.Free
	}
}

// readSlow reads the values that change seldom and cost more.
func (g *gpu) readSlow(s *sweep) {
	g.ecc = queryOptional(s, "nvmlDeviceGetTotalEccErrors", func() (uint64, gonvml.Return) {
		return g.device.GetTotalEccErrors(gonvml.MEMORY_ERROR_TYPE_UNCORRECTED, gonvml.VOLATILE_ECC)
	})
	// Rows of memory are remapped since Ampere; before, pages were retired.
	g.pending = queryOptional(s, "nvmlDeviceGetRemappedRows", func() (bool, gonvml.Return) {
		_, _, pending, failed, ret := g.device.GetRemappedRows()
		return pending || failed, ret
	})
	if g.pending == nil {
		g.pending = queryOptional(s, "nvmlDeviceGetRetiredPagesPendingStatus", func() (bool, gonvml.Return) {
			state, ret := g.device.GetRetiredPagesPendingStatus()
			return state == gonvml.FEATURE_ENABLED, ret
		})
	}
	g.mig = nil
	enabled, ok := query(s, "nvmlDeviceGetMigMode", func() (bool, gonvml.Return) {
		now, _, ret := g.device.GetMigMode()
		return now == gonvml.DEVICE_MIG_ENABLE, ret
	})
	if !ok || !enabled {
		return
	}
	count, _ := query(s, "nvmlDeviceGetMaxMigDeviceCount", g.device.GetMaxMigDeviceCount)
	for i := range count {
		device, ok := query(s, "nvmlDeviceGetMigDeviceHandleByIndex", func() (gonvml.Device, gonvml.Return) { return g.device.GetMigDeviceHandleByIndex(i) })
		if !ok {
			continue // there may be gaps
		}
		m := migDevice{device: device, id: Identity{Index: i}}
		m.id.UUID, _ = query(s, "nvmlDeviceGetUUID", device.GetUUID)
		m.id.Name, _ = query(s, "nvmlDeviceGetName", device.GetName)
		g.mig = append(g.mig, m)
	}
}

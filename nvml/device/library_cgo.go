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

// Open returns the NVML at path, a file or a name for the loader; "" is the
// driver's. Nothing is loaded before Init.
func Open(path string) Library {
	if path == "" {
		path = "libnvidia-ml.so.1"
	}
	return &library{path: path}
}

// library guards go-nvml, whose functions are undefined symbols that the loader
// looks up when they are first called. Where it finds none, or before a library is
// loaded, it ends the process with 127. So every name is looked up after loading,
// and one that is absent is never called.
//
// A library that was initialised once is never let go: its functions are bound for
// the life of the process, and a second library beside it, of another driver,
// would be initialised by one and asked by the other.
type library struct {
	path    string
	loaded  *dl.DynamicLibrary
	api     gonvml.Interface
	has     map[string]bool
	events  gonvml.EventSet
	devices map[gonvml.Device]int
}

// symbols are all that is ever called, by the names that go-nvml links against.
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
	// A new one each time: go-nvml counts an initialisation that failed, and would
	// not end the next that succeeds.
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

// load loads the library, once, and looks its names up, each time.
func (l *library) load() error {
	lib := l.loaded
	if lib == nil {
		lib = dl.New(l.path, dl.RTLD_LAZY|dl.RTLD_GLOBAL)
		if err := lib.Open(); err != nil {
			return err
		}
	}
	l.has = map[string]bool{}
	for _, name := range symbols() {
		l.has[name] = lib.Lookup(name) == nil
	}
	for _, either := range [][2]string{
		{"nvmlInit_v2", "nvmlInit"}, {"nvmlDeviceGetCount_v2", "nvmlDeviceGetCount"},
		{"nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetHandleByIndex"}, {"nvmlShutdown", "nvmlShutdown"},
	} {
		if !l.has[either[0]] && !l.has[either[1]] {
			// Nothing was called, so nothing is bound, and another may be loaded.
			l.loaded = nil
			return errors.Join(fmt.Errorf("%s has no %s", l.path, either[0]), lib.Close())
		}
	}
	l.loaded = lib
	return nil
}

func (l *library) inventory() (Inventory, error) {
	out := Inventory{}
	if l.has["nvmlSystemGetDriverVersion"] {
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
		s := newSweep(context.Background(), l.has, nil)
		g := &gpu{has: l.has, device: device, id: Identity{Index: i}}
		g.id.UUID, _ = ask(s, "nvmlDeviceGetUUID", device.GetUUID)
		g.id.Name, _ = ask(s, "nvmlDeviceGetName", device.GetName)
		if errors.Is(s.err, ErrDriver) {
			return out, s.err
		}
		out.GPUs = append(out.GPUs, g)
	}
	l.events = l.listen()
	return out, nil
}

// threshold is a temperature of the card's, nil where it has none.
func threshold(s *sweep, device gonvml.Device, kind gonvml.TemperatureThresholds) *int {
	t, ok := ask(s, "nvmlDeviceGetTemperatureThreshold", func() (uint32, gonvml.Return) { return device.GetTemperatureThreshold(kind) })
	if !ok || t == 0 {
		return nil
	}
	return new(int(t))
}

// listen makes an event set for errors of all GPUs, nil where that cannot be.
func (l *library) listen() gonvml.EventSet {
	if !l.has["nvmlEventSetCreate"] || !l.has["nvmlEventSetFree"] || !l.has["nvmlDeviceRegisterEvents"] ||
		!l.has["nvmlDeviceGetSupportedEventTypes"] || !l.has["nvmlEventSetWait_v2"] && !l.has["nvmlEventSetWait"] {
		return nil
	}
	set, ret := l.api.EventSetCreate()
	if ret != gonvml.SUCCESS {
		return nil
	}
	some := false
	for device := range l.devices {
		types, ret := device.GetSupportedEventTypes()
		types &= gonvml.EventTypeXidCriticalError | gonvml.EventTypeDoubleBitEccError
		if ret == gonvml.SUCCESS && types != 0 && device.RegisterEvents(types, set) == gonvml.SUCCESS {
			some = true
		}
	}
	if !some {
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
		e.XID = 48 // what the driver logs it as
	}
	return e, nil
}

func (l *library) Shutdown() {
	if l.events != nil {
		_ = l.events.Free()
		l.events = nil
	}
	// What fails now is found by the next Init.
	_ = l.api.Shutdown()
}

// sweep guards the calls of one sweep over a GPU.
type sweep struct {
	ctx      context.Context //nolint:containedctx // a sweep lives as long as the call that it was given to
	has      map[string]bool
	timed    func(string, time.Duration)
	answered bool  // at least one call succeeded or said that it is not supported
	failed   int   // calls that did neither
	last     error // of the last of them
	err      error // ends the sweep
}

func newSweep(ctx context.Context, has map[string]bool, timed func(string, time.Duration)) *sweep {
	if timed == nil {
		timed = func(string, time.Duration) {}
	}
	return &sweep{ctx: ctx, has: has, timed: timed}
}

// ask makes one call, unless the library does not have it or the sweep has ended.
// It is false where there is no answer.
func ask[T any](s *sweep, symbol string, call func() (T, gonvml.Return)) (T, bool) {
	var nothing T
	if s.err == nil {
		s.err = s.ctx.Err()
	}
	if s.err != nil || !s.has[symbol] {
		return nothing, false
	}
	began := time.Now()
	value, ret := call()
	s.timed(symbol, time.Since(began))
	switch ret {
	case gonvml.SUCCESS:
		s.answered = true
		return value, true
	case gonvml.ERROR_NOT_SUPPORTED:
		s.answered = true
		return nothing, false
	}
	s.failed++
	s.last = failure(symbol, int(ret))
	if errors.Is(s.last, ErrDriver) || errors.Is(s.last, ErrLost) {
		s.err = s.last
	}
	return nothing, false
}

// asked is ask for a value that a reading has or does not have.
func asked[T any](s *sweep, symbol string, call func() (T, gonvml.Return)) *T {
	if v, ok := ask(s, symbol, call); ok {
		return &v
	}
	return nil
}

// absent is a GPU that the driver counts and cannot open.
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
	has    map[string]bool
	device gonvml.Device
	id     Identity
	limits thresholds
	asked  bool // for the limits

	// Of the last slow sweep.
	ecc     *uint64
	pending *bool
	broken  bool // the driver says that it must be reset
	mig     []migDevice
}

type migDevice struct {
	device gonvml.Device
	id     Identity
}

func (g *gpu) Identity() Identity { return g.id }

func (g *gpu) Read(ctx context.Context, slow bool, timed func(string, time.Duration)) ([]nvml.Reading, error) {
	s := newSweep(ctx, g.has, timed)
	r := nvml.Reading{Index: g.id.Index, UUID: g.id.UUID, Name: g.id.Name}
	if r.UUID == "" { // the driver failed to tell it before
		r.UUID, _ = ask(s, "nvmlDeviceGetUUID", g.device.GetUUID)
		g.id.UUID = r.UUID
	}
	if before := s.failed; slow && !g.asked {
		g.limits = thresholds{threshold(s, g.device, gonvml.TEMPERATURE_THRESHOLD_GPU_MAX), threshold(s, g.device, gonvml.TEMPERATURE_THRESHOLD_MEM_MAX)}
		g.asked = s.failed == before
	}
	g.fields(s, &r, slow)
	if t, ok := ask(s, "nvmlDeviceGetTemperature", func() (uint32, gonvml.Return) { return g.device.GetTemperature(gonvml.TEMPERATURE_GPU) }); ok {
		r.Temperature = new(int(t))
	}
	before := s.failed
	if m, ok := ask(s, "nvmlDeviceGetMarginTemperature", g.device.GetMarginTemperature); ok {
		r.Margin = new(int(m.MarginTemperature))
	} else if s.failed == before {
		// The card or the library has none. A card that has one and fails to tell it
		// must not seem to jump.
		r.Margin = g.limits.margin(r.Temperature, r.HBM)
	}
	clocks, ok := ask(s, "nvmlDeviceGetCurrentClocksEventReasons", g.device.GetCurrentClocksEventReasons)
	if !ok {
		clocks, ok = ask(s, "nvmlDeviceGetCurrentClocksThrottleReasons", g.device.GetCurrentClocksThrottleReasons)
	}
	if ok {
		r.Reasons = nvml.ReasonNames(clocks)
	}
	memory(s, g.device, &r)
	if p, ok := ask(s, "nvmlDeviceGetPowerUsage", g.device.GetPowerUsage); ok {
		r.Power = new(uint64(p))
	}
	if p, ok := ask(s, "nvmlDeviceGetEnforcedPowerLimit", g.device.GetEnforcedPowerLimit); ok {
		r.PowerLimit = new(uint64(p))
	}
	if u, ok := ask(s, "nvmlDeviceGetUtilizationRates", g.device.GetUtilizationRates); ok {
		r.Utilisation = new(int(u.Gpu))
	}
	if slow {
		g.seldom(s)
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

// fields asks for what the driver gives as numbered fields, in one call, where
// each has a return code of its own.
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
	if _, ok := ask(s, "nvmlDeviceGetFieldValues", func() (struct{}, gonvml.Return) {
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

// memory asks for the second form, whose used does not include what the driver
// keeps for itself; only an old library is asked for the first, and then reserved
// is not known and used includes it.
func memory(s *sweep, device gonvml.Device, r *nvml.Reading) {
	if s.has["nvmlDeviceGetMemoryInfo_v2"] {
		if m, ok := ask(s, "nvmlDeviceGetMemoryInfo_v2", device.GetMemoryInfo_v2); ok {
			r.MemoryTotal, r.MemoryUsed, r.MemoryFree, r.MemoryReserved = &m.Total, &m.Used, &m.Free, &m.Reserved
		}
		return
	}
	if m, ok := ask(s, "nvmlDeviceGetMemoryInfo", device.GetMemoryInfo); ok {
		r.MemoryTotal, r.MemoryUsed, r.MemoryFree = &m.Total, &m.Used, &m.Free
	}
}

// seldom asks for what changes seldom and costs more.
func (g *gpu) seldom(s *sweep) {
	g.ecc = asked(s, "nvmlDeviceGetTotalEccErrors", func() (uint64, gonvml.Return) {
		return g.device.GetTotalEccErrors(gonvml.MEMORY_ERROR_TYPE_UNCORRECTED, gonvml.VOLATILE_ECC)
	})
	// Rows of memory are remapped since Ampere; before, pages were retired.
	g.pending = asked(s, "nvmlDeviceGetRemappedRows", func() (bool, gonvml.Return) {
		_, _, pending, failed, ret := g.device.GetRemappedRows()
		return pending || failed, ret
	})
	if g.pending == nil {
		g.pending = asked(s, "nvmlDeviceGetRetiredPagesPendingStatus", func() (bool, gonvml.Return) {
			state, ret := g.device.GetRetiredPagesPendingStatus()
			return state == gonvml.FEATURE_ENABLED, ret
		})
	}
	g.mig = nil
	on, ok := ask(s, "nvmlDeviceGetMigMode", func() (bool, gonvml.Return) {
		now, _, ret := g.device.GetMigMode()
		return now == gonvml.DEVICE_MIG_ENABLE, ret
	})
	if !ok || !on {
		return
	}
	most, _ := ask(s, "nvmlDeviceGetMaxMigDeviceCount", g.device.GetMaxMigDeviceCount)
	for i := range most {
		device, ok := ask(s, "nvmlDeviceGetMigDeviceHandleByIndex", func() (gonvml.Device, gonvml.Return) { return g.device.GetMigDeviceHandleByIndex(i) })
		if !ok {
			continue // there may be gaps
		}
		m := migDevice{device: device, id: Identity{Index: i}}
		m.id.UUID, _ = ask(s, "nvmlDeviceGetUUID", device.GetUUID)
		m.id.Name, _ = ask(s, "nvmlDeviceGetName", device.GetName)
		g.mig = append(g.mig, m)
	}
}

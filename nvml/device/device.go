// Package device reads NVIDIA GPUs through NVML, the driver's own library, and
// keeps the last reading of each with its age.
//
// A driver can hang or crash the process that calls it. So each GPU has one goroutine with at
// most one call in flight. A call that hangs makes that GPU wedged and delays nothing else,
// since a report is built from the last readings without a call. NVML is called only within a
// generation: between an initialisation that succeeded and its shutdown. A GPU that is lost,
// or a driver that changed, ends the generation; the next begins after a back-off. A fault
// that lasts beyond that needs a new process: Run returns ErrGivenUp, and the supervisor
// restarts the process.
//
// Only library_cgo.go calls NVML; without cgo a stub takes its place, which never finds a
// library. The reasons are in docs/adr/0008-gpu-agent.md.
package device

import (
	"context"
	"errors"
	"fmt"
	"time"

	"tidegate/nvml"
)

// Faults of a driver. Errors of a Library and its GPUs wrap one of these, or none where a single
// value is missing.
var (
	// ErrNoLibrary means that there is no library to call. Nothing was loaded or called, so
	// another try is harmless, and a new process would not help.
	ErrNoLibrary = errors.New("no NVML library")
	// ErrDriver means that the driver as a whole does not answer; only another
	// initialisation can help.
	ErrDriver = errors.New("driver failed")
	// ErrLost means that this GPU has fallen off the bus or must be reset.
	ErrLost = errors.New("GPU lost")
	// ErrSilent means that no call to this GPU succeeds, and none gives a reason. Where that
	// holds for all GPUs, as in a container that lost access to them, the driver has failed.
	ErrSilent = fmt.Errorf("%w: no call succeeds", ErrLost)
	// ErrNoEvents means that the driver has no events.
	ErrNoEvents = errors.New("no events")
)

// Errors that end a Sampler's Run.
var (
	// ErrGivenUp means that a loaded library could not be initialised repeatedly. A new
	// process may succeed: this one keeps the library mapped, even after an update of the
	// driver.
	ErrGivenUp = errors.New("NVML cannot be initialised")
	// ErrHung means that a call was still in flight after the grace period.
	ErrHung = errors.New("an NVML call did not return")
)

// Library is an NVML library. Init and Shutdown alternate. Wait and the GPUs may be used only
// between them, and Shutdown only while no other call is in flight.
type Library interface {
	// Init loads and initialises the library. After an error only Init may be called.
	Init() (Inventory, error)
	// Wait returns the next event of any GPU; nil if there is none within the timeout; or
	// ErrNoEvents.
	Wait(timeout time.Duration) (*Event, error)
	// Shutdown ends the generation that Init began.
	Shutdown()
}

// Inventory is the result of an initialisation.
type Inventory struct {
	Driver string // version of the driver; "" where it is not known
	GPUs   []GPU
}

// GPU is one GPU of an inventory. Its methods are called by one goroutine.
type GPU interface {
	// Identity returns the identity without a call of the driver.
	Identity() Identity
	// Read makes one sweep. The first reading is that of the GPU, the others are those of its
	// MIG devices. Values that change seldom are read only if slow is set, and kept. Read
	// calls timed after each call of the driver. Once the context ends, it makes no further
	// call and returns the context's error. After an error that wraps ErrLost or ErrDriver the
	// GPU must not be read again in this generation.
	Read(ctx context.Context, slow bool, timed func(call string, took time.Duration)) ([]nvml.Reading, error)
}

// Identity names a GPU.
type Identity struct {
	Index      int // the driver's index, which may differ after a restart
	UUID, Name string
}

// Event is an error event of a GPU.
type Event struct {
	GPU int // position in the inventory
	XID uint64
}

// Config configures a Sampler.
type Config struct {
	Node     string        // name of this machine in reports
	Interval time.Duration // time between the starts of two sweeps over a GPU
	Slow     time.Duration // time between two readings of values that change seldom
	Wedge    time.Duration // duration of a sweep from which its GPU is wedged
	Retry    time.Duration // first wait before another initialisation; doubles up to RetryMax
	RetryMax time.Duration
	// Search is the first wait before a search for a GPU that is lost while others work. Each
	// search interrupts the readings of all. It doubles up to SearchMax.
	Search    time.Duration
	SearchMax time.Duration
	Attempts  int           // failed initialisations in a row, of a loaded library, before Run gives up
	Grace     time.Duration // time that Run waits for calls in flight when its context ends
}

// Default returns the configuration for a node that serves.
func Default() Config {
	return Config{
		Interval: time.Second, Slow: 10 * time.Second, Wedge: 2 * time.Second,
		Retry: time.Second, RetryMax: 15 * time.Second,
		Search: 5 * time.Second, SearchMax: 5 * time.Minute,
		// A call that waits for a GPU's firmware gives up after 45 s.
		Attempts: 10, Grace: 60 * time.Second,
	}
}

// Validate returns all faults at once.
func (c Config) Validate() error {
	var faults []error
	check := func(ok bool, name string, value any, want string) {
		if !ok {
			faults = append(faults, fmt.Errorf("%s: %v: must be %s", name, value, want))
		}
	}
	check(c.Interval >= 50*time.Millisecond, "interval", c.Interval, "50ms or more")
	check(c.Slow >= c.Interval, "slow", c.Slow, "the interval or more")
	check(c.Wedge > 0, "wedge", c.Wedge, "above 0")
	check(c.Retry > 0 && c.RetryMax >= c.Retry, "retry", c.Retry, "above 0 and not above its maximum")
	check(c.Search > 0 && c.SearchMax >= c.Search, "search", c.Search, "above 0 and not above its maximum")
	check(c.Attempts > 0, "attempts", c.Attempts, "1 or more")
	check(c.Grace >= 0, "grace", c.Grace, "0 or more")
	return errors.Join(faults...)
}

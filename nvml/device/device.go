// Package device reads NVIDIA GPUs through NVML, the driver's own library, and
// keeps the last reading of each with its age.
//
// A driver is not to be trusted with the process it is called from. So each GPU
// has one goroutine with at most one call in flight; a call that hangs makes that
// GPU wedged and nothing else, since a report is put together from what is known
// and calls nobody. NVML is called only between an initialisation that succeeded
// and the shutdown that ends it, a generation. A GPU that is lost, or a driver
// that changed, ends the generation; the next begins with a back-off. What
// re-initialising does not cure, a new process does: Run gives up with
// ErrGivenUp, and whoever supervises the process starts it again.
//
// Only library_cgo.go knows NVML; without cgo a stub stands in its place, which
// never finds a library. Why it is so: docs/adr/0008-gpu-agent.md.
package device

import (
	"context"
	"errors"
	"fmt"
	"time"

	"tidegate/nvml"
)

// What can be wrong with a driver. Errors of a Library and its GPUs wrap one of
// these, or none: then it is the one value that is missing.
var (
	// ErrNoLibrary: there is no library to call. Nothing was loaded or called, so
	// trying again is free, and a new process would find no more.
	ErrNoLibrary = errors.New("no NVML library")
	// ErrDriver: the driver as a whole does not answer; only initialising again
	// can help.
	ErrDriver = errors.New("driver failed")
	// ErrLost: this GPU has fallen off the bus or must be reset.
	ErrLost = errors.New("GPU lost")
	// ErrSilent: no call to this GPU succeeds, and none says why. Where all GPUs
	// are, as in a container that lost its right to them, the driver has failed.
	ErrSilent = fmt.Errorf("%w: no call succeeds", ErrLost)
	// ErrNoEvents: the driver has no events.
	ErrNoEvents = errors.New("no events")
)

// What ends a Sampler's Run besides its context.
var (
	// ErrGivenUp: a loaded library could not be initialised, time after time. A
	// new process may do better: the library stays mapped in this one, whatever
	// the driver's version has become.
	ErrGivenUp = errors.New("NVML cannot be initialised")
	// ErrHung: a call was still in flight when the grace had passed.
	ErrHung = errors.New("an NVML call did not return")
)

// Library is an NVML library. Init and Shutdown are called in turns, Wait and the
// GPUs only between them, and Shutdown only while no other call is in flight.
type Library interface {
	// Init loads and initialises the library. After an error nothing of it may be
	// called but Init.
	Init() (Inventory, error)
	// Wait returns the next event of any GPU, nil where none came in time, or
	// ErrNoEvents.
	Wait(timeout time.Duration) (*Event, error)
	// Shutdown ends what Init began.
	Shutdown()
}

// Inventory is what an initialisation found.
type Inventory struct {
	Driver string // version, "" where not known
	GPUs   []GPU
}

// GPU is one GPU of an inventory. Its methods are called by one goroutine.
type GPU interface {
	// Identity asks the driver nothing.
	Identity() Identity
	// Read makes one sweep. The first reading is of the GPU, others of its MIG
	// devices. Values that change seldom are asked for only if slow is set, and
	// kept. Each call is told to timed. Between two calls the sweep ends with the
	// context's error. An error that wraps ErrLost or ErrDriver means that the GPU
	// must not be read again in this generation.
	Read(ctx context.Context, slow bool, timed func(call string, took time.Duration)) ([]nvml.Reading, error)
}

// Identity names a GPU.
type Identity struct {
	Index      int // as the driver counts, which may differ after a restart
	UUID, Name string
}

// Event is an error event of a GPU.
type Event struct {
	GPU int // position in the inventory
	XID uint64
}

// Config is how a Sampler samples.
type Config struct {
	Node     string        // name of this machine in reports
	Interval time.Duration // between the beginnings of two sweeps over a GPU
	Slow     time.Duration // between two readings of what changes seldom
	Wedge    time.Duration // a sweep that takes longer makes its GPU wedged
	Retry    time.Duration // before initialising again, first; doubles up to RetryMax
	RetryMax time.Duration
	// Search is the same for a GPU that is lost while others work: each look for it
	// interrupts the readings of all. It doubles up to SearchMax.
	Search    time.Duration
	SearchMax time.Duration
	Attempts  int           // failed initialisations of a loaded library in a row before Run gives up
	Grace     time.Duration // that Run waits for calls in flight when its context ends
}

// Default is what fits a node that serves.
func Default() Config {
	return Config{
		Interval: time.Second, Slow: 10 * time.Second, Wedge: 2 * time.Second,
		Retry: time.Second, RetryMax: 15 * time.Second,
		Search: 5 * time.Second, SearchMax: 5 * time.Minute,
		// A call that waits for a GPU's firmware gives up after 45 s.
		Attempts: 10, Grace: 60 * time.Second,
	}
}

// Validate reports all faults at once.
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

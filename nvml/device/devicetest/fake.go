// Package devicetest has Fake, a driver in Go whose faults a test can set.
package devicetest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"tidegate/nvml"
	"tidegate/nvml/device"
)

// Fake is a driver in Go. It records wrong uses: see Misuse. It is safe for concurrent use.
type Fake struct {
	mu          sync.Mutex
	state       State
	initialised bool
	calls       int // calls in flight
	inits       int
	sweeps      map[string]int // sweeps that began, by UUID
	misuse      []string
	event       chan device.Event
	hanging     chan struct{} // closed and replaced when the state changes
}

// State is the behaviour of a Fake.
type State struct {
	Driver    string
	Init      error // error of Init
	HangInit  bool  // Init does not return
	NoEvents  bool
	FailWaits bool
	GPUs      []GPU
}

// GPU is the behaviour of one GPU of a Fake.
type GPU struct {
	Reading nvml.Reading   // reading of a sweep; it names the GPU as well
	MIG     []nvml.Reading // readings of its MIG devices
	Err     error          // error of a sweep
	Hang    bool           // a sweep does not return
	Unnamed bool           // the driver gives no UUID and no name
}

// New returns a driver with n healthy GPUs, called GPU-0 and so on.
func New(n int) *Fake {
	f := &Fake{state: State{Driver: "580.1"}, event: make(chan device.Event, 100), hanging: make(chan struct{}), sweeps: map[string]int{}}
	for i := range n {
		margin, temperature := 40, 45
		f.state.GPUs = append(f.state.GPUs, GPU{Reading: nvml.Reading{
			Index: i, UUID: fmt.Sprintf("GPU-%d", i), Name: "Fake", Margin: &margin, Temperature: &temperature,
		}})
	}
	return f
}

// Change changes the behaviour of the next calls and of those that hang.
func (f *Fake) Change(change func(*State)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.state)
	close(f.hanging)
	f.hanging = make(chan struct{})
}

// GPUs returns the behaviour of its GPUs.
func (f *Fake) GPUs() []GPU {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.state.GPUs)
}

// Send sends an event.
func (f *Fake) Send(e device.Event) { f.event <- e }

// Inits returns the number of successful initialisations.
func (f *Fake) Inits() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.inits
}

// Sweeps returns the number of sweeps over a GPU that began.
func (f *Fake) Sweeps(uuid string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sweeps[uuid]
}

// Misuse returns the calls that broke the rules of a Library, and whether it is still
// initialised.
func (f *Fake) Misuse() (misuse []string, initialised bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.misuse, f.initialised
}

// hang waits while blocked returns true. The caller holds mu, which is free during the wait.
func (f *Fake) hang(blocked func() bool) {
	for blocked() {
		changed := f.hanging
		f.mu.Unlock()
		<-changed
		f.mu.Lock()
	}
}

// Init implements device.Library.
func (f *Fake) Init() (device.Inventory, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.initialised {
		f.misuse = append(f.misuse, "Init while initialised")
	}
	f.hang(func() bool { return f.state.HangInit })
	if f.state.Init != nil {
		return device.Inventory{}, f.state.Init
	}
	f.initialised = true
	f.inits++
	inventory := device.Inventory{Driver: f.state.Driver}
	for _, g := range f.state.GPUs {
		id := device.Identity{Index: g.Reading.Index, UUID: g.Reading.UUID, Name: g.Reading.Name}
		if g.Unnamed {
			id.UUID, id.Name = "", ""
		}
		inventory.GPUs = append(inventory.GPUs, &gpu{fake: f, uuid: g.Reading.UUID, id: id})
	}
	return inventory, nil
}

// Wait implements device.Library.
func (f *Fake) Wait(timeout time.Duration) (*device.Event, error) {
	defer f.begin("Wait")()
	f.mu.Lock()
	noEvents, fail := f.state.NoEvents, f.state.FailWaits
	f.mu.Unlock()
	switch {
	case noEvents:
		return nil, device.ErrNoEvents
	case fail:
		return nil, fmt.Errorf("wait: %w", device.ErrLost)
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case e := <-f.event:
		return &e, nil
	case <-timer.C:
		return nil, nil
	}
}

// Shutdown implements device.Library.
func (f *Fake) Shutdown() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.initialised {
		f.misuse = append(f.misuse, "Shutdown while not initialised")
	}
	if f.calls > 0 {
		f.misuse = append(f.misuse, "Shutdown while a call is in flight")
	}
	f.initialised = false
}

// begin records the start of a call and returns a function that records its end.
func (f *Fake) begin(call string) (end func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.initialised {
		f.misuse = append(f.misuse, call+" while not initialised")
	}
	f.calls++
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.calls--
	}
}

type gpu struct {
	fake *Fake
	uuid string
	id   device.Identity
	busy bool
	bad  bool
}

func (g *gpu) Identity() device.Identity { return g.id }

// state returns the behaviour of the GPU; one that is no longer there is lost.
func (g *gpu) state() GPU {
	i := slices.IndexFunc(g.fake.state.GPUs, func(s GPU) bool { return s.Reading.UUID == g.uuid })
	if i < 0 {
		return GPU{Err: fmt.Errorf("not there: %w", device.ErrLost)}
	}
	return g.fake.state.GPUs[i]
}

func (g *gpu) Read(ctx context.Context, _ bool, timed func(string, time.Duration)) ([]nvml.Reading, error) {
	f := g.fake
	defer f.begin("Read of " + g.uuid)()
	f.mu.Lock()
	defer f.mu.Unlock()
	if g.busy {
		f.misuse = append(f.misuse, "two calls in flight for "+g.uuid)
	}
	if g.bad {
		f.misuse = append(f.misuse, "Read after it failed of "+g.uuid)
	}
	g.busy = true
	defer func() { g.busy = false }()
	f.sweeps[g.uuid]++
	f.hang(func() bool { return g.state().Hang })
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	timed("read", time.Millisecond)
	now := g.state()
	if now.Err != nil {
		g.bad = true
		return nil, now.Err
	}
	if now.Unnamed {
		now.Reading.UUID, now.Reading.Name = "", ""
	}
	return append([]nvml.Reading{now.Reading}, now.MIG...), nil
}

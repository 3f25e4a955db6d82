// Package devicetest has Fake, a driver in Go whose faults a test can write down.
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

// Fake is a driver in Go. It keeps account of how it is used: see Misuse. All
// methods may be called by any goroutine.
type Fake struct {
	mu      sync.Mutex
	state   State
	up      bool
	calls   int // in flight
	inits   int
	sweeps  map[string]int // by UUID
	misuse  []string
	event   chan device.Event
	hanging chan struct{} // closed and made anew when the state changes
}

// State is how a Fake behaves.
type State struct {
	Driver    string
	Init      error // of Init
	HangInit  bool  // Init does not return
	NoEvents  bool
	FailWaits bool
	GPUs      []GPU
}

// GPU is how a GPU of a Fake behaves.
type GPU struct {
	Reading nvml.Reading   // names the GPU as well
	MIG     []nvml.Reading // of its MIG devices
	Err     error          // of a sweep
	Hang    bool           // a sweep does not return
	Unnamed bool           // the driver does not tell which one it is
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

// Change changes how it behaves, from the next call on and for those that hang.
func (f *Fake) Change(change func(*State)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.state)
	close(f.hanging)
	f.hanging = make(chan struct{})
}

// GPUs says how its GPUs behave now.
func (f *Fake) GPUs() []GPU {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.state.GPUs)
}

// Send makes an event.
func (f *Fake) Send(e device.Event) { f.event <- e }

// Inits says how often it was initialised with success.
func (f *Fake) Inits() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.inits
}

// Sweeps says how many sweeps over a GPU began.
func (f *Fake) Sweeps(uuid string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sweeps[uuid]
}

// Misuse says what was called that must not be called then, and whether it is
// still initialised.
func (f *Fake) Misuse() (misuse []string, up bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.misuse, f.up
}

// hang waits, with mu held but not meanwhile, until the state is no longer so.
func (f *Fake) hang(so func() bool) {
	for so() {
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
	if f.up {
		f.misuse = append(f.misuse, "Init while initialised")
	}
	f.hang(func() bool { return f.state.HangInit })
	if f.state.Init != nil {
		return device.Inventory{}, f.state.Init
	}
	f.up = true
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
	defer f.enter("Wait")()
	f.mu.Lock()
	none, fail := f.state.NoEvents, f.state.FailWaits
	f.mu.Unlock()
	switch {
	case none:
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
	if !f.up {
		f.misuse = append(f.misuse, "Shutdown while not initialised")
	}
	if f.calls > 0 {
		f.misuse = append(f.misuse, "Shutdown while a call is in flight")
	}
	f.up = false
}

func (f *Fake) enter(what string) (leave func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.up {
		f.misuse = append(f.misuse, what+" while not initialised")
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

// state is how it behaves: one that is no longer there is lost.
func (g *gpu) state() GPU {
	at := slices.IndexFunc(g.fake.state.GPUs, func(s GPU) bool { return s.Reading.UUID == g.uuid })
	if at < 0 {
		return GPU{Err: fmt.Errorf("not there: %w", device.ErrLost)}
	}
	return g.fake.state.GPUs[at]
}

func (g *gpu) Read(ctx context.Context, _ bool, timed func(string, time.Duration)) ([]nvml.Reading, error) {
	f := g.fake
	defer f.enter("Read of " + g.uuid)()
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

package device

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	"tidegate/nvml"
)

// Call is one call of the library and how long it took.
type Call struct {
	Name string
	Took time.Duration
}

// Sample is what one sweep over a GPU gave.
type Sample struct {
	Time     time.Time // when the sweep began
	Readings []nvml.Reading
	Calls    []Call
}

// Sampler keeps the last readings of a node's GPUs. Run samples; Report may be
// called from any goroutine, before, while and after Run runs.
type Sampler struct {
	config  Config
	library Library
	log     *slog.Logger
	observe func(Sample)
	boot    string

	mu     sync.Mutex // held for no call of the library
	seq    uint64
	driver string
	fault  string // why there is nothing to be read
	slots  []*slot
}

// New builds a Sampler. Each finished sweep is told to observe, if it is not nil,
// by the goroutine of its GPU: what observe waits for, the GPU's readings wait for.
func New(config Config, library Library, log *slog.Logger, observe func(Sample)) (*Sampler, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	if observe == nil {
		observe = func(Sample) {}
	}
	return &Sampler{config: config, library: library, log: log, observe: observe, boot: ulid.Make().String(), fault: "not initialised yet"}, nil
}

// Run samples until ctx ends, then waits for calls in flight, since to kill a
// process inside of a call may freeze the GPU. It returns nil; or ErrHung where a
// call was still in flight after the grace; or ErrGivenUp.
func (s *Sampler) Run(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- s.generations(ctx) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	grace := time.NewTimer(s.config.Grace)
	defer grace.Stop()
	select {
	case err := <-done:
		return err
	case <-grace.C:
		return fmt.Errorf("%w within %s", ErrHung, s.config.Grace)
	}
}

// generations initialises the library again and again, as often as it must.
func (s *Sampler) generations(ctx context.Context) error {
	failed := 0
	retry, search := backoff{first: s.config.Retry, most: s.config.RetryMax}, backoff{first: s.config.Search, most: s.config.SearchMax}
	for ctx.Err() == nil {
		read, err := s.generation(ctx, &search)
		if read {
			failed = 0
			retry.reset()
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, ErrNoLibrary) {
			failed++
		}
		s.failed(err)
		if failed >= s.config.Attempts {
			return fmt.Errorf("%w: %d times in a row: %w", ErrGivenUp, failed, err)
		}
		sleep(ctx, retry.next())
	}
	return nil
}

// generation initialises the library, samples until ctx ends, the driver fails, or
// it is time to look for a GPU that is lost, and shuts the library down when no
// call is in flight. It reports whether any GPU was read, and what failed but a
// single GPU.
func (s *Sampler) generation(ctx context.Context, search *backoff) (read bool, err error) {
	var inventory Inventory
	s.telling("initialising the driver", func() { inventory, err = s.library.Init() })
	if err != nil {
		return false, err
	}
	defer s.telling("shutting the driver down", s.library.Shutdown)
	slots := s.adopt(inventory)
	inside, stop := context.WithCancel(ctx)
	var calls sync.WaitGroup
	defer calls.Wait()
	defer stop()
	ended := make(chan error, len(slots))
	for i, g := range inventory.GPUs {
		calls.Go(func() {
			if err := s.sample(inside, slots[i], g); err != nil {
				ended <- err
			}
		})
	}
	calls.Go(func() { s.events(inside, slots) })

	var look <-chan time.Time
	silent := 0
	for {
		if look == nil && s.missing() {
			timer := time.NewTimer(search.next())
			defer timer.Stop()
			look = timer.C
		}
		select {
		case <-ctx.Done():
			return true, nil
		case <-look:
			look = nil
			if s.missing() {
				s.unwedged(ctx)
				return s.anyRead(slots), nil
			}
			search.reset()
		case err := <-ended:
			if errors.Is(err, ErrSilent) {
				silent++
			}
			if silent == len(slots) && !s.anyRead(slots) {
				err = fmt.Errorf("%w: of all GPUs: %w", ErrDriver, err)
			}
			if errors.Is(err, ErrDriver) {
				s.failed(err)
				s.unwedged(ctx)
				return s.anyRead(slots), err
			}
		}
	}
}

// telling makes a call that belongs to no GPU, and says so while it hangs. What
// comes next says how it is then.
func (s *Sampler) telling(what string, call func()) {
	said := make(chan struct{})
	hangs := time.AfterFunc(s.config.Wedge, func() {
		defer close(said)
		s.failed(fmt.Errorf("%s hangs", what))
	})
	call()
	if !hangs.Stop() {
		<-said // or it would be said after all is well
	}
}

// unwedged waits until no call hangs: until then the other GPUs are still read,
// and afterwards the calls in flight end soon.
func (s *Sampler) unwedged(ctx context.Context) {
	for s.wedged() && ctx.Err() == nil {
		sleep(ctx, s.config.Interval)
	}
}

// sample reads one GPU until ctx ends or the GPU must not be read any more.
func (s *Sampler) sample(ctx context.Context, into *slot, gpu GPU) error {
	tick := time.NewTicker(s.config.Interval)
	defer tick.Stop()
	var slowest time.Time // the last sweep that asked for all
	id := gpu.Identity()
	for {
		began := time.Now()
		slow := slowest.IsZero() || began.Sub(slowest) >= s.config.Slow
		if slow {
			slowest = began
		}
		s.begin(into, began)
		hangs := time.AfterFunc(s.config.Wedge, func() { s.log.Error("GPU wedged", "gpu", id.Index, "uuid", id.UUID) })
		var calls []Call
		readings, err := gpu.Read(ctx, slow, func(name string, took time.Duration) { calls = append(calls, Call{name, took}) })
		hangs.Stop()
		s.end(into, began, readings, err)
		switch {
		case err == nil:
			s.observe(Sample{began, readings, calls})
		case errors.Is(err, ErrLost), errors.Is(err, ErrDriver):
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// backoff doubles.
type backoff struct{ first, most, now time.Duration }

func (b *backoff) next() time.Duration {
	if b.now == 0 {
		b.now = b.first
		return b.now
	}
	b.now = min(2*b.now, b.most)
	return b.now
}

func (b *backoff) reset() { b.now = 0 }

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

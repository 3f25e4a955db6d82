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

// Call is one call of the library with its duration.
type Call struct {
	Name string
	Took time.Duration
}

// Sample is the result of one sweep over a GPU.
type Sample struct {
	Time     time.Time // start of the sweep
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

	mu     sync.Mutex // never held during a call of the library
	seq    uint64
	driver string
	fault  string // reason why no GPU can be read; empty: there is none
	slots  []*slot
}

// New returns a Sampler. The goroutine of each GPU calls observe, if it is not nil, after each
// complete sweep; a slow observe delays the readings of the GPU.
func New(config Config, library Library, log *slog.Logger, observe func(Sample)) (*Sampler, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	if observe == nil {
		observe = func(Sample) {}
	}
	return &Sampler{config: config, library: library, log: log, observe: observe, boot: ulid.Make().String(), fault: "not initialised yet"}, nil
}

// Run samples until ctx ends. Then it waits for calls in flight, since killing a process inside
// of a call may freeze the GPU. It returns nil; ErrHung if a call is still in flight after the
// grace period; or ErrGivenUp.
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

// generations runs one generation after another until ctx ends or it gives up.
func (s *Sampler) generations(ctx context.Context) error {
	failed := 0
	retry, search := backoff{first: s.config.Retry, limit: s.config.RetryMax}, backoff{first: s.config.Search, limit: s.config.SearchMax}
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
		s.setFault(err)
		if failed >= s.config.Attempts {
			return fmt.Errorf("%w: %d times in a row: %w", ErrGivenUp, failed, err)
		}
		sleep(ctx, retry.next())
	}
	return nil
}

// generation initialises the library, and samples until ctx ends, the driver fails, or a search
// for a lost GPU is due. It shuts the library down when no call is in flight. It reports
// whether any GPU was read, and returns the error of the driver, but not of a single GPU.
func (s *Sampler) generation(ctx context.Context, search *backoff) (read bool, err error) {
	var inventory Inventory
	s.watchCall("initialising the driver", func() { inventory, err = s.library.Init() })
	if err != nil {
		return false, err
	}
	defer s.watchCall("shutting the driver down", s.library.Shutdown)
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

	var searchTime <-chan time.Time
	silent := 0
	for {
		if searchTime == nil && s.missing() {
			timer := time.NewTimer(search.next())
			defer timer.Stop()
			searchTime = timer.C
		}
		select {
		case <-ctx.Done():
			return true, nil
		case <-searchTime:
			searchTime = nil
			if s.missing() {
				s.waitUnwedged(ctx)
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
				s.setFault(err)
				s.waitUnwedged(ctx)
				return s.anyRead(slots), err
			}
		}
	}
}

// watchCall makes a call that belongs to no GPU, and reports a fault while it hangs. The next
// step replaces that fault.
func (s *Sampler) watchCall(phase string, call func()) {
	reported := make(chan struct{})
	hangs := time.AfterFunc(s.config.Wedge, func() {
		defer close(reported)
		s.setFault(fmt.Errorf("%s hangs", phase))
	})
	call()
	if !hangs.Stop() {
		<-reported // else the fault could be reported after the call has returned
	}
}

// waitUnwedged waits until no call hangs. Until then the other GPUs are still read, and
// afterwards the calls in flight end soon.
func (s *Sampler) waitUnwedged(ctx context.Context) {
	for s.wedged() && ctx.Err() == nil {
		sleep(ctx, s.config.Interval)
	}
}

// sample reads one GPU until ctx ends or the GPU must not be read any more.
func (s *Sampler) sample(ctx context.Context, target *slot, gpu GPU) error {
	tick := time.NewTicker(s.config.Interval)
	defer tick.Stop()
	var slowest time.Time // start of the last sweep over all values
	id := gpu.Identity()
	for {
		began := time.Now()
		slow := slowest.IsZero() || began.Sub(slowest) >= s.config.Slow
		if slow {
			slowest = began
		}
		s.begin(target, began)
		hangs := time.AfterFunc(s.config.Wedge, func() { s.log.Error("GPU wedged", "gpu", id.Index, "uuid", id.UUID) })
		var calls []Call
		readings, err := gpu.Read(ctx, slow, func(name string, took time.Duration) { calls = append(calls, Call{name, took}) })
		hangs.Stop()
		s.end(target, began, readings, err)
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

// backoff is a wait that doubles from first up to limit.
type backoff struct{ first, limit, now time.Duration }

func (b *backoff) next() time.Duration {
	if b.now == 0 {
		b.now = b.first
		return b.now
	}
	b.now = min(2*b.now, b.limit)
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

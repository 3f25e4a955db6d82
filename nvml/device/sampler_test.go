package device_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"tidegate/nvml"
	"tidegate/nvml/device"
	"tidegate/nvml/device/devicetest"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// running is a sampler over a fake, in a bubble.
type running struct {
	*device.Sampler
	fake *devicetest.Fake
	stop context.CancelFunc
	done chan error
}

func start(t *testing.T, fake *devicetest.Fake, observe func(device.Sample)) *running {
	t.Helper()
	c := device.Default()
	c.Node = "node"
	s, err := device.New(c, fake, quiet(), observe)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	r := &running{s, fake, stop, make(chan error, 1)}
	go func() { r.done <- s.Run(ctx) }()
	synctest.Wait()
	return r
}

// end stops it and checks how the driver was used.
func (r *running) end(t *testing.T) {
	t.Helper()
	r.stop()
	if err := <-r.done; err != nil {
		t.Error(err)
	}
	if misuse, up := r.fake.Misuse(); len(misuse) > 0 || up {
		t.Errorf("misuse %q, still initialised: %v", misuse, up)
	}
}

// after lets time pass until all that is due has been done.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func states(r nvml.Report) string {
	var s []string
	for _, g := range r.GPUs {
		s = append(s, fmt.Sprintf("%s:%s:%d", g.UUID, g.State, g.AgeMs))
	}
	return strings.Join(s, " ")
}

func want(t *testing.T, r *running, s string) {
	t.Helper()
	if got := states(r.Report()); got != s {
		t.Errorf("got %q, want %q", got, s)
	}
}

func TestReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var samples atomic.Int32 // each GPU has its own goroutine
		r := start(t, devicetest.New(2), func(s device.Sample) {
			samples.Add(1)
			if len(s.Calls) != 1 || s.Calls[0].Name != "read" {
				t.Error(s.Calls)
			}
		})
		a := r.Report()
		if a.Node != "node" || a.Driver != "580.1" || a.Error != "" || a.BootID == "" || *a.GPUs[1].Margin != 40 {
			t.Errorf("%+v", a)
		}
		want(t, r, "GPU-0:ok:0 GPU-1:ok:0")
		after(600 * time.Millisecond)
		want(t, r, "GPU-0:ok:600 GPU-1:ok:600")
		if again := r.Report(); again.GPUs[0].Sweep != a.GPUs[0].Sweep {
			t.Errorf("one sweep, told as number %d and %d", a.GPUs[0].Sweep, again.GPUs[0].Sweep)
		}
		after(time.Second)
		want(t, r, "GPU-0:ok:600 GPU-1:ok:600")
		b := r.Report()
		if a, b := a.GPUs[0].Sweep, b.GPUs[0].Sweep; a == 0 || b != a+1 {
			t.Errorf("sweep %d, and the next is %d", a, b)
		}
		if b.Seq <= a.Seq || b.BootID != a.BootID {
			t.Errorf("%d after %d", b.Seq, a.Seq)
		}
		r.end(t)
		if n := samples.Load(); n != 4 || r.fake.Inits() != 1 {
			t.Error(n, r.fake.Inits())
		}
	})
}

// A GPU that hangs is wedged and grows old; it is asked nothing more, and the
// others are read on.
func TestWedged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, devicetest.New(2), nil)
		r.fake.Change(func(s *devicetest.State) { s.GPUs[0].Hang = true })
		after(2900 * time.Millisecond)
		want(t, r, "GPU-0:ok:2900 GPU-1:ok:900")
		after(200 * time.Millisecond)
		want(t, r, "GPU-0:wedged:3100 GPU-1:ok:100")
		after(45 * time.Second)
		want(t, r, "GPU-0:wedged:48100 GPU-1:ok:100")
		if n := r.fake.Sweeps("GPU-0"); n != 2 {
			t.Errorf("%d sweeps over a GPU that hangs", n)
		}
		r.fake.Change(func(s *devicetest.State) { s.GPUs[0].Hang = false })
		synctest.Wait()
		// What it answered is as old as the question, until the next sweep, which a
		// tick that was missed begins at once.
		want(t, r, "GPU-0:ok:0 GPU-1:ok:100")
		if r.fake.Inits() != 1 {
			t.Error("initialised again")
		}
		r.end(t)
	})
}

func TestHungFromTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := devicetest.New(1)
		fake.Change(func(s *devicetest.State) { s.HangInit = true })
		r := start(t, fake, nil)
		if got := r.Report(); got.Error != "not initialised yet" || got.GPUs == nil || len(got.GPUs) != 0 {
			t.Errorf("%+v", got)
		}
		after(3 * time.Second)
		if got := r.Report().Error; got != "initialising the driver hangs" {
			t.Error(got)
		}
		fake.Change(func(s *devicetest.State) { s.HangInit, s.GPUs[0].Hang = false, true })
		after(3 * time.Second)
		if got := r.Report().Error; got != "" {
			t.Error(got)
		}
		want(t, r, "GPU-0:wedged:3000")
		if g := r.Report().GPUs[0]; g.Margin != nil || g.Temperature != nil {
			t.Error("values that nobody read")
		}
		r.fake.Change(func(s *devicetest.State) { s.GPUs[0].Hang = false })
		r.end(t)
	})
}

// A GPU that is lost stays in the report, is looked for with a back-off while the
// others work, and comes back without the errors that its reset has cured.
func TestLost(t *testing.T) {
	for name, gone := range map[string]func(*devicetest.State){
		"not answering": func(s *devicetest.State) { s.GPUs[0].Err = fmt.Errorf("fell off: %w", device.ErrLost) },
		"not found": func(s *devicetest.State) {
			s.GPUs = s.GPUs[1:]
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fake := devicetest.New(2)
				r := start(t, fake, nil)
				healthy := fake.GPUs()
				fake.Send(device.Event{GPU: 0, XID: 79})
				fake.Change(func(s *devicetest.State) { s.GPUs[0].Err = fmt.Errorf("fell off: %w", device.ErrLost) })
				after(1500 * time.Millisecond)
				want(t, r, "GPU-0:lost:1500 GPU-1:ok:500")
				fake.Change(gone)
				// Looked for after 5, 10, 20 ... seconds.
				after(100 * time.Second)
				if n := fake.Inits(); n != 5 {
					t.Errorf("initialised %d times", n)
				}
				for _, g := range r.Report().GPUs {
					if g.UUID == "GPU-0" && (g.State != "lost" || len(g.XIDs) != 1 || g.AgeMs < 100_000) || g.UUID == "GPU-1" && (g.State != "ok" || g.AgeMs > 1000) {
						t.Errorf("%+v", g)
					}
				}
				fake.Change(func(s *devicetest.State) { s.GPUs = healthy })
				after(5 * time.Minute)
				again := fake.Inits()
				for _, g := range r.Report().GPUs {
					if g.State != "ok" || len(g.XIDs) != 0 || g.AgeMs > 1000 {
						t.Errorf("%+v", g)
					}
				}
				after(time.Hour)
				if again != 6 || fake.Inits() != again {
					t.Errorf("initialised %d, then %d times: again while all is well", again, fake.Inits())
				}
				r.end(t)
			})
		})
	}
}

// A lost GPU is not looked for while another hangs: the library cannot be shut
// down, and the rest is still read.
func TestLostWhileWedged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, devicetest.New(3), nil)
		r.fake.Change(func(s *devicetest.State) { s.GPUs[0].Err, s.GPUs[1].Hang = device.ErrLost, true })
		after(60 * time.Second)
		want(t, r, "GPU-0:lost:60000 GPU-1:wedged:60000 GPU-2:ok:0")
		r.fake.Change(func(s *devicetest.State) { s.GPUs[0].Err, s.GPUs[1].Hang = nil, false })
		after(2 * time.Second)
		for _, g := range r.Report().GPUs {
			if g.State != "ok" || g.AgeMs > 1000 {
				t.Errorf("%+v", g)
			}
		}
		if r.fake.Inits() != 2 {
			t.Error(r.fake.Inits())
		}
		r.end(t)
	})
}

// A driver that fails is initialised again; one that cannot be is given up, and
// the report says why all the while.
func TestDriverFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, devicetest.New(1), nil)
		mismatch := fmt.Errorf("version mismatch: %w", device.ErrDriver)
		r.fake.Change(func(s *devicetest.State) { s.GPUs[0].Err = mismatch })
		after(1600 * time.Millisecond) // when the wait for events has ended as well
		if got := r.Report(); got.Error != mismatch.Error() || got.GPUs[0].State != "ok" || got.GPUs[0].AgeMs != 1600 {
			t.Errorf("%+v", got)
		}
		r.fake.Change(func(s *devicetest.State) { s.GPUs[0].Err, s.Driver = nil, "590.2" })
		after(1500 * time.Millisecond)
		if got := r.Report(); got.Error != "" || got.Driver != "590.2" || got.GPUs[0].AgeMs > 1000 {
			t.Errorf("%+v", got)
		}
		r.fake.Change(func(s *devicetest.State) { s.GPUs[0].Err, s.Init = mismatch, mismatch })
		began := time.Now()
		if err := <-r.done; !errors.Is(err, device.ErrGivenUp) || !errors.Is(err, device.ErrDriver) {
			t.Error(err)
		}
		if took := time.Since(began).Round(time.Second); took < time.Minute || took > 3*time.Minute {
			t.Error("gave up after", took)
		}
		if misuse, up := r.fake.Misuse(); len(misuse) > 0 || up {
			t.Error(misuse, up)
		}
	})
}

// That the driver failed is told although another GPU hangs, and so nothing can be
// done about it yet.
func TestDriverFailsWhileWedged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, devicetest.New(2), nil)
		r.fake.Change(func(s *devicetest.State) { s.GPUs[0].Err, s.GPUs[1].Hang = device.ErrDriver, true })
		after(10 * time.Second)
		if got := r.Report(); got.Error != device.ErrDriver.Error() || r.fake.Inits() != 1 {
			t.Errorf("%+v", got)
		}
		r.fake.Change(func(s *devicetest.State) { s.GPUs[0].Err, s.GPUs[1].Hang = nil, false })
		after(5 * time.Second)
		if got := r.Report(); got.Error != "" || r.fake.Inits() != 2 {
			t.Errorf("%+v", got)
		}
		r.end(t)
	})
}

// A GPU that the driver does not name keeps its name, and one that it names later
// leaves no other behind.
func TestUnnamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := devicetest.New(2)
		fake.Change(func(s *devicetest.State) { s.GPUs[0].Unnamed, s.GPUs[0].Err = true, device.ErrLost })
		r := start(t, fake, nil)
		after(2 * time.Second)
		want(t, r, ":lost:2000 GPU-1:ok:0")
		fake.Change(func(s *devicetest.State) { s.GPUs[0].Unnamed, s.GPUs[0].Err = false, nil })
		after(8 * time.Second)
		if got := r.Report().GPUs; len(got) != 2 || got[0].UUID != "GPU-0" || got[0].State != nvml.StateOK {
			t.Errorf("%+v", got)
		}
		fake.Change(func(s *devicetest.State) {
			s.GPUs[0].Unnamed, s.GPUs[1].Err = true, device.ErrLost
			s.GPUs[0].MIG = []nvml.Reading{{UUID: "MIG-0"}}
		})
		after(20 * time.Second)
		if got := r.Report().GPUs; len(got) != 3 || got[0].UUID != "GPU-0" || got[0].Name != "Fake" || got[0].State != nvml.StateOK || got[1].Parent != "GPU-0" || got[2].UUID != "GPU-1" {
			t.Errorf("%+v", got)
		}
		r.end(t)
	})
}

// Failures that were cured in between do not add up.
func TestDriverFailsNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, devicetest.New(1), nil)
		for range 3 * device.Default().Attempts {
			r.fake.Change(func(s *devicetest.State) { s.GPUs[0].Err = device.ErrDriver })
			after(2 * time.Second)
			r.fake.Change(func(s *devicetest.State) { s.GPUs[0].Err = nil })
			after(10 * time.Second)
			if got := r.Report(); got.Error != "" || got.GPUs[0].AgeMs > 1000 {
				t.Fatalf("%+v", got)
			}
		}
		r.end(t)
	})
}

// An initialisation after which nothing can be read is a failed one.
func TestInitialisesInVain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := devicetest.New(2)
		fake.Change(func(s *devicetest.State) { s.GPUs[0].Err, s.GPUs[1].Err = device.ErrDriver, device.ErrDriver })
		r := start(t, fake, nil)
		if err := <-r.done; !errors.Is(err, device.ErrGivenUp) {
			t.Error(err)
		}
		if n := fake.Inits(); n != device.Default().Attempts {
			t.Error(n)
		}
	})
}

// One GPU that answers nothing is lost and takes nobody with it; where none answers
// anything the driver has failed.
func TestSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, devicetest.New(2), nil)
		silent := fmt.Errorf("%w: unknown error (999)", device.ErrSilent)
		r.fake.Change(func(s *devicetest.State) { s.GPUs[0].Err = silent })
		after(time.Hour)
		got := r.Report()
		if got.Error != "" || got.GPUs[0].State != nvml.StateLost || got.GPUs[1].State != nvml.StateOK || got.GPUs[1].AgeMs > 1000 || r.fake.Inits() > 20 {
			t.Errorf("%+v, initialised %d times", got, r.fake.Inits())
		}
		r.fake.Change(func(s *devicetest.State) { s.GPUs[1].Err = silent })
		select {
		case err := <-r.done:
			if !errors.Is(err, device.ErrGivenUp) || !errors.Is(err, device.ErrDriver) {
				t.Error(err)
			}
		case <-time.After(time.Hour):
			t.Error("it does not end")
			r.stop()
			<-r.done
		}
		if misuse, up := r.fake.Misuse(); len(misuse) > 0 || up {
			t.Error(misuse, up)
		}
	})
}

// Where there is no library, a new process would find none either.
func TestNoLibrary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := devicetest.New(1)
		fake.Change(func(s *devicetest.State) { s.Init = fmt.Errorf("%w: no such file", device.ErrNoLibrary) })
		r := start(t, fake, nil)
		after(24 * time.Hour)
		if got := r.Report(); got.Error != "no NVML library: no such file" {
			t.Errorf("%+v", got)
		}
		fake.Change(func(s *devicetest.State) { s.Init = nil })
		after(15 * time.Second)
		if got := r.Report(); got.Error != "" || got.GPUs[0].State != "ok" {
			t.Errorf("%+v", got)
		}
		r.end(t)
	})
}

func TestNoGPUs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := devicetest.New(1)
		var gpus []devicetest.GPU
		fake.Change(func(s *devicetest.State) { gpus, s.GPUs = s.GPUs, nil })
		r := start(t, fake, nil)
		if got := r.Report(); got.Error != "the driver has no GPUs" {
			t.Errorf("%+v", got)
		}
		fake.Change(func(s *devicetest.State) { s.GPUs = gpus })
		after(10 * time.Second)
		if got := r.Report(); got.Error != "" || len(got.GPUs) != 1 {
			t.Errorf("%+v", got)
		}
		r.end(t)
	})
}

// The end waits for the call in flight, as long as it was told to.
func TestEndWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, devicetest.New(1), nil)
		r.fake.Change(func(s *devicetest.State) { s.GPUs[0].Hang = true })
		after(time.Second)
		r.stop()
		after(50 * time.Second)
		select {
		case err := <-r.done:
			t.Fatal("did not wait", err)
		default:
		}
		r.fake.Change(func(s *devicetest.State) { s.GPUs[0].Hang = false })
		r.end(t)
	})
	synctest.Test(t, func(t *testing.T) {
		r := start(t, devicetest.New(1), nil)
		r.fake.Change(func(s *devicetest.State) { s.GPUs[0].Hang = true })
		after(time.Second)
		r.stop()
		began := time.Now()
		if err := <-r.done; !errors.Is(err, device.ErrHung) || time.Since(began) != time.Minute {
			t.Error(err, time.Since(began))
		}
		r.fake.Change(func(s *devicetest.State) { s.GPUs[0].Hang = false })
	})
}

func TestXIDs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := devicetest.New(2)
		fake.Change(func(s *devicetest.State) {
			s.GPUs[1].MIG = []nvml.Reading{{Index: 1, UUID: "MIG-0", Parent: "GPU-1"}}
		})
		r := start(t, fake, nil)
		fake.Send(device.Event{GPU: 1, XID: 31}) // an application's
		fake.Send(device.Event{GPU: -1, XID: 79})
		fake.Send(device.Event{GPU: 1, XID: 79})
		after(3 * time.Second)
		for range 40 {
			fake.Send(device.Event{GPU: 1, XID: 92})
		}
		synctest.Wait()
		gpus := r.Report().GPUs
		if len(gpus[0].XIDs) != 0 {
			t.Error("another GPU's error:", gpus[0].XIDs)
		}
		for _, g := range gpus[1:] {
			x := g.XIDs
			if len(x) != 16 || x[0] != (nvml.XID{Code: 79, AgeMs: 3000, Fatal: true}) || x[15] != (nvml.XID{Code: 92}) {
				t.Errorf("%s: %+v", g.UUID, x)
			}
		}
		// Events that fail leave the readings alone.
		fake.Change(func(s *devicetest.State) { s.FailWaits = true })
		after(time.Minute)
		fake.Change(func(s *devicetest.State) { s.FailWaits = false })
		fake.Send(device.Event{GPU: 0, XID: 48})
		after(30 * time.Second)
		if g := r.Report().GPUs[0]; g.State != "ok" || len(g.XIDs) != 1 || g.AgeMs > 1000 {
			t.Errorf("%+v", g)
		}
		fake.Change(func(s *devicetest.State) { s.NoEvents = true })
		after(time.Minute)
		want(t, r, "GPU-0:ok:0 GPU-1:ok:0 MIG-0:ok:0")
		r.end(t)
	})
}

// Whatever a driver does in whatever order: NVML's rules are kept, a report is
// whole, a GPU once seen stays in it, and a driver that is well again is read.
func TestAnyDriver(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		steps := rapid.SliceOfN(rapid.SampledFrom([]string{"lose", "hang", "fail", "init", "nolib", "vanish", "xid", "heal"}), 1, 12).Draw(rt, "steps")
		pauses := rapid.SliceOfN(rapid.IntRange(0, 20_000), len(steps), len(steps)).Draw(rt, "pauses")
		which := rapid.SliceOfN(rapid.IntRange(0, 2), len(steps), len(steps)).Draw(rt, "which")
		synctest.Test(t, func(t *testing.T) {
			fake := devicetest.New(3)
			c := device.Default()
			c.Attempts, c.SearchMax = 1000, 20*time.Second
			s, err := device.New(c, fake, quiet(), nil)
			if err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- s.Run(ctx) }()
			synctest.Wait()
			healthy := fake.GPUs()
			heal := func(st *devicetest.State) { st.Init, st.GPUs = nil, slices.Clone(healthy) }
			for i, step := range steps {
				fake.Change(func(st *devicetest.State) {
					at := min(which[i], len(st.GPUs)-1)
					switch step {
					case "lose":
						st.GPUs[at].Err = device.ErrLost
					case "hang":
						st.GPUs[at].Hang = true
					case "fail":
						st.GPUs[at].Err = device.ErrDriver
					case "init":
						st.Init = errors.New("unknown error")
					case "nolib":
						st.Init = device.ErrNoLibrary
					case "vanish":
						if at > 0 {
							st.GPUs = slices.Delete(slices.Clone(st.GPUs), at, at+1)
						}
					case "heal":
						heal(st)
					}
				})
				if step == "xid" {
					fake.Send(device.Event{GPU: which[i], XID: 79})
				}
				after(time.Duration(pauses[i]) * time.Millisecond)
				seen := map[string]bool{}
				for _, g := range s.Report().GPUs {
					if seen[g.UUID] || g.AgeMs < 0 || !slices.Contains([]string{"ok", "wedged", "lost"}, g.State) || g.State == "ok" && g.Margin == nil {
						rt.Fatalf("step %d (%s): %+v", i, step, g)
					}
					seen[g.UUID] = true
				}
				if len(seen) != 3 {
					rt.Fatalf("step %d (%s): %d GPUs", i, step, len(seen))
				}
			}
			fake.Change(heal)
			after(time.Minute)
			for _, g := range s.Report().GPUs {
				if g.State != "ok" || g.AgeMs > 1000 {
					rt.Fatalf("not read again: %+v", g)
				}
			}
			stop()
			if err := <-done; err != nil {
				rt.Fatal(err)
			}
			if misuse, up := fake.Misuse(); len(misuse) > 0 || up {
				rt.Fatal(misuse, up)
			}
		})
	})
}

func TestConfig(t *testing.T) {
	if err := device.Default().Validate(); err != nil {
		t.Error(err)
	}
	for want, spoil := range map[string]func(*device.Config){
		"interval": func(c *device.Config) { c.Interval = 49 * time.Millisecond },
		"slow":     func(c *device.Config) { c.Slow = c.Interval - 1 },
		"wedge":    func(c *device.Config) { c.Wedge = 0 },
		"retry":    func(c *device.Config) { c.RetryMax = c.Retry - 1 },
		"search":   func(c *device.Config) { c.Search = 0 },
		"attempts": func(c *device.Config) { c.Attempts = 0 },
		"grace":    func(c *device.Config) { c.Grace = -1 },
	} {
		c := device.Default()
		spoil(&c)
		if _, err := device.New(c, devicetest.New(1), quiet(), nil); err == nil || !strings.HasPrefix(err.Error(), want+": ") {
			t.Errorf("%s: %v", want, err)
		}
	}
	if err := (device.Config{Grace: -1}).Validate(); strings.Count(err.Error(), "\n") < 4 {
		t.Error("not all faults at once:", err)
	}
}

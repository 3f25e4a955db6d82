package degrade

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

var errDown = errors.New("down")

func fail() error { return errDown }

func work() error { return nil }

func TestBreakerOpensAndOnlyAProbeCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []bool
		b := NewBreaker(BreakerConfig{Changed: func(open bool) { told = append(told, open) }})
		for i := range 5 {
			if err := b.Do(fail); !errors.Is(err, errDown) {
				t.Fatalf("call %d: %v", i, err)
			}
		}
		refuses := func(when string) {
			t.Helper()
			if err := b.Do(func() error { t.Error("called"); return nil }); !errors.Is(err, ErrOpen) {
				t.Fatalf("%s: %v", when, err)
			}
		}
		refuses("at once")
		if err := b.Probe(work); !errors.Is(err, ErrOpen) {
			t.Fatalf("a probe at once: %v", err)
		}
		time.Sleep(1001 * time.Millisecond)
		refuses("when a probe is due")
		if err := b.Probe(fail); !errors.Is(err, errDown) {
			t.Fatalf("a probe that fails: %v", err)
		}
		time.Sleep(999 * time.Millisecond)
		if err := b.Probe(work); !errors.Is(err, ErrOpen) {
			t.Fatalf("a probe too soon after one that failed: %v", err)
		}
		time.Sleep(2 * time.Millisecond)
		if err := b.Probe(work); err != nil || !b.Closed() {
			t.Fatalf("a probe that succeeds: %v, closed %v", err, b.Closed())
		}
		if err := b.Do(work); err != nil {
			t.Fatal(err)
		}
		if want := []bool{true, false}; !slices.Equal(told, want) {
			t.Errorf("told %v, want %v", told, want)
		}
	})
}

func TestBreakerRatio(t *testing.T) {
	for name, test := range map[string]struct {
		every int // of so many calls one fails
		pause time.Duration
		open  bool
	}{
		"one of four":              {4, 0, true},
		"one of six":               {6, 0, false},
		"one of four, but seldom":  {4, 200 * time.Millisecond, false},
		"one of four, still dense": {4, 10 * time.Millisecond, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := NewBreaker(BreakerConfig{})
				for i := range 200 {
					if i%test.every == test.every-1 {
						_ = b.Do(fail)
					} else {
						_ = b.Do(work)
					}
					time.Sleep(test.pause)
				}
				if b.Closed() == test.open {
					t.Errorf("closed %v", b.Closed())
				}
			})
		})
	}
}

func TestBreakerIgnores(t *testing.T) {
	b := NewBreaker(BreakerConfig{Ignore: func(err error) bool { return errors.Is(err, context.Canceled) }})
	for range 100 {
		if err := b.Do(func() error { return context.Canceled }); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	if !b.Closed() {
		t.Error("callers that went away opened it")
	}
}

// TestBreakerSeldom: failures in a row open it however far apart they are, and a
// success between them begins the row anew.
func TestBreakerSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBreaker(BreakerConfig{})
		for i, call := range []func() error{fail, fail, fail, fail, work, fail, fail, fail, fail, fail} {
			if !b.Closed() {
				t.Fatalf("open before call %d", i)
			}
			_ = b.Do(call)
			time.Sleep(time.Minute * time.Duration(1-i/9))
		}
		if b.Closed() {
			t.Error("closed after five failures in a row")
		}
	})
}

package degrade

import (
	"strings"
	"testing"
	"time"
)

func TestHysteresisAndDwell(t *testing.T) {
	r := newRig(t)
	r.r.Waiting = 12
	r.want("up", r.run(4), "0002")
	r.r.Waiting = 6
	r.want("above half of L2", r.run(60), strings.Repeat("2", 60))
	r.r.Waiting = 5
	r.want("at half of L2, long enough after", r.run(1), "1")
	r.want("above half of L1", r.run(60), strings.Repeat("1", 60))
	r.r.Waiting = 0
	r.want("down", r.run(1), "0")
	r.r.Waiting = 12
	r.want("up again", r.run(4), "0002")
	r.r.Waiting = 0
	r.want("the dwell has doubled", r.run(61), strings.Repeat("2", 59)+"11")
	for range 4 {
		r.r.Waiting = 12
		r.run(4)
		r.r.Waiting = 0
		r.run(300)
	}
	r.r.Waiting = 12
	r.run(4)
	if got := r.w.stages[queue].dwell; got > 300*time.Second {
		t.Errorf("a dwell of %v", got)
	}
	r.r.Waiting = 0
	r.run(1300)
	if got := r.w.stages[queue].dwell; got != 30*time.Second {
		t.Errorf("a dwell of %v after it has been calm", got)
	}
}

// TestRelapseDoublesOnce: a level that comes back by steps has come back once.
func TestRelapseDoublesOnce(t *testing.T) {
	r := newRig(t)
	r.r.Waiting = 6
	r.run(5)
	r.r.Waiting = 0
	r.run(30)
	for _, n := range []int{6, 12, 25, 50} {
		r.r.Waiting = n
		r.run(5)
	}
	if d := r.w.stages[queue].dwell; d != time.Minute || r.w.standings[acting].level != Canned {
		t.Errorf("one step down, one relapse: a dwell of %v", d)
	}
}

// TestRetryWhileItLasts: while a level's cause lasts it may fall a dwell from now.
func TestRetryWhileItLasts(t *testing.T) {
	r := newRig(t)
	r.r.Waiting = 50
	r.run(600)
	retry := r.w.standings[acting].retry
	if left := retry.Sub(r.now); left != 30*time.Second {
		t.Errorf("it may fall in %v", left)
	}
	r.now = r.now.Add(-600 * time.Millisecond)
	if r.run(1); !r.w.standings[acting].retry.Equal(retry) {
		t.Error("it tells more often than once a second")
	}
	r.r.Waiting = 0
	r.now = r.now.Add(-time.Second)
	if r.run(1); r.w.standings[acting].level != SmallerModel {
		t.Errorf("at %v when the cause is gone", r.w.standings[acting].level)
	}
}

package bench

import (
	"syscall"
	"time"
)

// nap waits for about d. The runtime's timers are a millisecond coarse when the
// process is idle; nanosleep on a thread of one's own is some 60 µs late.
func nap(d time.Duration) {
	ts := syscall.NsecToTimespec(d.Nanoseconds())
	_ = syscall.Nanosleep(&ts, nil) // cut short by a signal: the caller looks at the clock
}

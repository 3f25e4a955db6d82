//go:build !linux

package bench

import "time"

// nap waits for about d.
func nap(d time.Duration) { time.Sleep(d) }

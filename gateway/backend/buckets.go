package backend

import "time"

// Buckets number pieces of time of BucketTime each, of which whoever counts into them keeps
// the last few. They go by the monotonic clock: where the machine's clock is set back, they
// neither stand still nor count twice. The zero value begins with the first Roll. One
// goroutine at a time may use them.
type Buckets struct {
	began  time.Time
	newest int64 // number of the newest bucket since began
}

// BucketTime is how long one bucket is filled.
const BucketTime = 5 * time.Second

// Roll goes on to the bucket of now and returns its place among n. It calls empty with the
// place of each bucket that time has passed by.
func (b *Buckets) Roll(now time.Time, n int64, empty func(place int64)) (newest int64) {
	if b.began.IsZero() {
		b.began = now
	}
	current := int64(now.Sub(b.began) / BucketTime)
	for next := max(b.newest+1, current-n+1); next <= current; next++ {
		empty(next % n)
	}
	b.newest = max(b.newest, current)
	return b.newest % n
}

// PerSecond returns how many a second a sum over the newest n buckets is.
func (b *Buckets) PerSecond(sum int64, now time.Time, n int) float64 {
	begun := max(now.Sub(b.began), 0) % BucketTime
	return float64(sum) / (time.Duration(n-1)*BucketTime + begun).Seconds()
}

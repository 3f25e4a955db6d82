package backend

import "time"

// Buckets numbers intervals of BucketTime each, for counters that keep the last few of
// them. It uses the monotonic clock: if the machine's clock is set back, it neither
// stops nor counts twice. The zero value begins with the first Roll. It is not safe for
// concurrent use.
type Buckets struct {
	began  time.Time
	newest int64 // number of the newest bucket since began
}

// BucketTime is the length of one bucket.
const BucketTime = 5 * time.Second

// Roll advances to the bucket of now and returns its index among n. It calls empty with
// the index of each bucket that it passes.
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

// PerSecond returns the rate per second of a sum over the newest n buckets.
func (b *Buckets) PerSecond(sum int64, now time.Time, n int) float64 {
	begun := max(now.Sub(b.began), 0) % BucketTime
	return float64(sum) / (time.Duration(n-1)*BucketTime + begun).Seconds()
}

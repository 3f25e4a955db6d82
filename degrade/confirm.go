package degrade

import "time"

// confirmation holds the evidence for each level of one card or one engine. Samples of
// another card or engine confirm nothing.
type confirmation [Canned + 1]evidence

// evidence counts the unbroken row of samples that call for a level.
type evidence struct {
	begin   time.Time // time of the first sample
	samples int       // number of samples, up to Dwell.UpSamples
}

// proof is the kind of evidence that raises a signal's level.
type proof int

const (
	// eachLevel confirms each level by itself, by samples that call for it for some time.
	eachLevel proof = iota
	// anyLevel confirms that the signal calls for any level. From then on, and as long as
	// it stands above L0, the level that it calls for counts at once. It is for a smoothed
	// signal: smoothing confirms each level already, and three seconds of proof for each
	// level would be too slow, since a card that loses its cooling at L1 can be at its limit
	// in four.
	anyLevel
	// noProof lets each level count at once.
	noProof
)

// proof returns the kind of evidence that the signal needs.
func (s signal) proof() proof {
	switch s {
	case temperature:
		return anyLevel
	case throttle:
		return noProof
	}
	return eachLevel
}

// step adds an assessment, and returns the highest level that it confirms. An assessment of a
// new reading is a sample; a signal above L0 is raised. All kinds of proof are monotone: a
// signal that calls for more is never confirmed later.
func (c *confirmation) step(a assessment, sample, raised bool, need proof, d *Dwell, now time.Time) (target Level) {
	for l := StreamingOff; l <= Canned; l++ {
		level := &c[l]
		switch {
		case a.enter < l:
			*level = evidence{}
			continue
		case level.samples == 0:
			*level = evidence{now, 1}
		case sample:
			level.samples = min(level.samples+1, d.UpSamples)
		}
		if need == anyLevel {
			level = &c[StreamingOff]
		}
		proven := level.samples >= d.UpSamples && now.Sub(level.begin) >= d.Rise || need == anyLevel && raised
		if need == noProof || sample && proven {
			target = l
		}
	}
	return target
}

package degrade

import "time"

// confirmation holds the evidence for each level of one card or one engine: no other's
// samples confirm its assessment.
type confirmation [Canned + 1]evidence

// evidence counts the unbroken row of samples that call for a level.
type evidence struct {
	begin   time.Time
	samples int
}

// proof is the kind of evidence that raises a signal's level.
type proof int

const (
	// eachLevel: samples that ask for it, for some time, confirm each level by itself.
	eachLevel proof = iota
	// anyLevel: they confirm that something is asked for; from then on, and as long as
	// it stands above L0, what is asked for counts at once. It is for what is smoothed,
	// which confirms each level already, and which rises faster than three seconds of
	// proof for each level allow: a card that loses its cooling at L1 can be at its
	// limit in four.
	anyLevel
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

// step adds an assessment, and returns the highest level that it confirms. sample says that
// the reading was not assessed before, raised that the signal stands above L0. All kinds of proof are monotone: what asks for
// more is never later.
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

package limit

// The tiers of keys. A tier orders requests when they wait, and shifts the level at which
// they are answered.
const (
	Critical = "critical"
	Standard = "standard"
	Batch    = "batch"
)

// TierCount is the number of tiers.
const TierCount = 3

// Tiers returns the tiers in their order of precedence.
func Tiers() [TierCount]string { return [...]string{Critical, Standard, Batch} }

// TierIndex returns the position of a tier among Tiers; an unknown one counts as standard.
func TierIndex(tier string) int {
	switch tier {
	case Critical:
		return 0
	case Batch:
		return 2
	}
	return 1
}

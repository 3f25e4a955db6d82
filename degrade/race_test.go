//go:build race

package degrade

// slower is by what the race detector slows random traces down. They have one
// goroutine, of which it has nothing to say.
const slower = 20

//go:build race

package gateway

// raced says that the race detector is on, under which all is ten times slower.
const raced = true

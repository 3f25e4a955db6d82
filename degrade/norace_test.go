//go:build !race

package degrade

const slower = 1

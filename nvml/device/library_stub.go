//go:build !linux || !cgo

package device

import (
	"fmt"
	"time"
)

// Open returns a library that is never found: this build has no NVML. With cgo on
// Linux it is the driver's.
func Open(string) Library { return none{} }

type none struct{}

func (none) Init() (Inventory, error) {
	return Inventory{}, fmt.Errorf("%w: this program was built without cgo", ErrNoLibrary)
}

func (none) Wait(time.Duration) (*Event, error) { return nil, ErrNoEvents }

func (none) Shutdown() {}

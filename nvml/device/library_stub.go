//go:build !linux || !cgo

package device

import (
	"fmt"
	"time"
)

// Open returns a library that is never found, since this build has no NVML. With cgo on Linux
// it returns that of the driver.
func Open(string) Library { return noLibrary{} }

type noLibrary struct{}

func (noLibrary) Init() (Inventory, error) {
	return Inventory{}, fmt.Errorf("%w: this program was built without cgo", ErrNoLibrary)
}

func (noLibrary) Wait(time.Duration) (*Event, error) { return nil, ErrNoEvents }

func (noLibrary) Shutdown() {}

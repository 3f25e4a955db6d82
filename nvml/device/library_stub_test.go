//go:build !linux || !cgo

package device_test

import (
	"errors"
	"testing"
	"time"

	"tidegate/nvml/device"
)

func TestStub(t *testing.T) {
	lib := device.Open("")
	if _, err := lib.Init(); !errors.Is(err, device.ErrNoLibrary) {
		t.Error(err)
	}
	if _, err := lib.Wait(time.Hour); !errors.Is(err, device.ErrNoEvents) {
		t.Error(err)
	}
	lib.Shutdown()
}

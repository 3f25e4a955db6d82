//go:build linux

package loadtest

import (
	"testing"
	"time"
)

func TestSelfUsesCPUAndMemory(t *testing.T) {
	idle := Self().RSS()
	s := Watch(Self(), 5*time.Millisecond)
	ballast := make([]byte, 32<<20)
	begin := Self().CPU()
	for end := time.Now().Add(10 * time.Second); Self().CPU()-begin < 100*time.Millisecond && time.Now().Before(end); {
		for i := 0; i < len(ballast); i += 512 {
			ballast[i]++
		}
	}
	u := s.Stop()
	if u.CPU < 50*time.Millisecond || u.RSSPeak < idle+16<<20 || MachineCPU() < u.CPU {
		t.Fatalf("implausible usage: %+v, idle %d (ballast %d)", u, idle, ballast[0])
	}
	if Process(0).CPU() != 0 || Process(0).RSS() != 0 {
		t.Fatal("no process uses something")
	}
}

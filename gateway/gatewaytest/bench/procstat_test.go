//go:build linux

package bench

import (
	"syscall"
	"testing"
	"time"
)

func TestSelfUsesCPUAndMemory(t *testing.T) {
	idle := CurrentProcess().RSS()
	s := Watch(CurrentProcess(), 5*time.Millisecond)
	ballast, err := syscall.Mmap(-1, 0, 32<<20, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE) // new to the process, as make's need not be
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Munmap(ballast)
	begin := CurrentProcess().CPU()
	for end := time.Now().Add(10 * time.Second); CurrentProcess().CPU()-begin < 100*time.Millisecond && time.Now().Before(end); {
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

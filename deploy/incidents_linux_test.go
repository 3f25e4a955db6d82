package deploy

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidegate/gateway/gatewaytest/stack"
)

// TestDiskIncident: the disk of the journal is full. The gateway serves on, and when there
// is room again every answer is in the report.
func TestDiskIncident(t *testing.T) {
	e, disk := incident(t, "the disk is full"), t.TempDir()
	if err := syscall.Mount("tidegate-test", disk, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("a full disk: no small disk can be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(disk, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	f := kit.Start(t, kit.StartServers(t, nil), stack.Config{JournalDir: filepath.Join(disk, "journal")})
	filler := filepath.Join(disk, "filler")
	file, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = file.Write(make([]byte, 4096))
	}
	file.Close()
	if !strings.Contains(err.Error(), "no space left on device") {
		t.Fatal(err)
	}
	answered := 0
	e.shows(t, f, func() {
		for range 8 {
			if a := f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 2, "")); a.Status != http.StatusOK {
				t.Fatalf("a caller noticed: %d %s", a.Status, a.Body)
			}
			answered++
		}
	})
	e.says(t, "Free the disk; nothing needs a restart")
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	e.ends(t, f)
	want := fmt.Sprintf(`"requests":%d,`, answered)
	stack.Eventually(t, "all that was answered to be reported", func() bool {
		_, text := f.Call(t, stack.AdaKey, "GET", "/v1/usage", "")
		return strings.Contains(text, want)
	})
}

// TestClockIncident: the clock of a gateway's machine is set ahead by an hour, and right
// again.
func TestClockIncident(t *testing.T) {
	e := incident(t, "a clock jump")
	f := kit.StartReplica(t, kit.StartServers(t, nil), stack.Config{}, stack.NewClient(t))
	out, _ := kit.Command(t, 0, "key", "create", "--user", "ann", "--ttl", "30m", "--config", f.File)
	key := strings.TrimSpace(out)
	status := func() int {
		got, _ := f.Call(t, key, "GET", "/v1/models", "")
		return got
	}
	if got := status(); got != http.StatusOK {
		t.Fatal(got)
	}
	set := wallClock(t, f.Process.Process.Pid)
	set(time.Hour)
	e.shows(t, f.Gateway, nil)
	stack.Eventually(t, "a key of 30 minutes to have ended", func() bool { return status() == http.StatusUnauthorized })
	if a := f.Complete(t, stack.AdaKey, stack.Chat(stack.LargeModel, 2, "")); a.Status != http.StatusOK {
		t.Errorf("a key that does not end: %d %s", a.Status, a.Body)
	}
	e.says(t, "set the clock right")
	set(0)
	e.ends(t, f.Gateway)
	if got := status(); got != http.StatusOK {
		t.Errorf("with the clock right again: %d", got)
	}
}

// clockCode replaces the vDSO's clock_gettime: it asks the kernel, and adds the seconds
// in its last eight bytes to CLOCK_REALTIME.
const clockCode = "" +
	"\xb8\xe4\x00\x00\x00" + // mov eax, 228 (clock_gettime)
	"\x0f\x05" + // syscall
	"\x85\xff" + // test edi, edi (CLOCK_REALTIME is 0)
	"\x75\x0a" + // jne to ret
	"\x48\x8b\x0d\x06\x00\x00\x00" + // mov rcx, [rip+6]
	"\x48\x01\x0e" + // add [rsi], rcx
	"\xc3\x90\x90" + // ret
	"\x00\x00\x00\x00\x00\x00\x00\x00"

// wallClock returns what sets the wall clock of one process, by so much ahead of the
// machine's. It changes the code by which the process reads the clock.
func wallClock(t *testing.T, pid int) (set func(ahead time.Duration)) {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		t.Skip("a clock jump: the code for the clock of a process is that of amd64")
	}
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	var from, to uint64
	for line := range strings.Lines(string(maps)) {
		if strings.Contains(line, "[vdso]") {
			if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil {
				t.Fatal(err)
			}
		}
	}
	memory, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil || to == 0 {
		t.Skipf("a clock jump: the memory of a process cannot be written here: %v", err)
	}
	t.Cleanup(func() { memory.Close() })
	image := make([]byte, to-from)
	if _, err := memory.ReadAt(image, int64(from)); err != nil {
		t.Fatal(err)
	}
	address := clockFunction(t, image) + int64(from)
	stack.Eventually(t, "the process to stop outside of the clock's code", func() bool {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		if stopped(t, pid, from, to) {
			return true
		}
		_ = syscall.Kill(pid, syscall.SIGCONT) // it goes on, and is stopped elsewhere
		return false
	})
	_, err = memory.WriteAt([]byte(clockCode), address)
	if again := syscall.Kill(pid, syscall.SIGCONT); again != nil {
		t.Fatal(again)
	}
	if err != nil {
		t.Skipf("a clock jump: the code of a process cannot be written here: %v", err)
	}
	return func(ahead time.Duration) {
		t.Helper()
		seconds := binary.LittleEndian.AppendUint64(nil, uint64(ahead/time.Second))
		if _, err := memory.WriteAt(seconds, address+int64(len(clockCode)-len(seconds))); err != nil {
			t.Fatal(err)
		}
	}
}

// clockFunction finds clock_gettime in a vDSO (man 7 vdso).
func clockFunction(t *testing.T, image []byte) int64 {
	t.Helper()
	file, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	symbols, err := file.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range symbols {
		if s.Name == "__vdso_clock_gettime" && s.Size >= uint64(len(clockCode)) {
			return int64(s.Value)
		}
	}
	t.Skip("a clock jump: the vDSO has no clock_gettime of a usual size")
	return 0
}

// stopped tells whether every thread has stopped, and none of them between two addresses.
func stopped(t *testing.T, pid int, from, to uint64) bool {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil || len(threads) == 0 {
		t.Fatalf("no threads: %v", err)
	}
	for _, thread := range threads {
		stat, err := os.ReadFile(filepath.Join(thread, "stat"))
		if err != nil || !bytes.Contains(stat, []byte(") T ")) {
			return false
		}
		call, err := os.ReadFile(filepath.Join(thread, "syscall"))
		words := strings.Fields(string(call))
		if err != nil || len(words) < 3 {
			return false
		}
		var at uint64
		if _, err := fmt.Sscanf(words[len(words)-1], "0x%x", &at); err != nil || at >= from && at < to {
			return false
		}
	}
	return true
}

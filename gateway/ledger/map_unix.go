//go:build unix

package ledger

import (
	"os"
	"syscall"
)

// mapped maps a part of a file into memory, until the process ends.
func mapped(f *os.File, offset int64, length int) ([]byte, error) {
	return syscall.Mmap(int(f.Fd()), offset, length, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
}

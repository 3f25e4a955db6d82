//go:build unix

package ledger

import (
	"os"
	"syscall"
)

// mapped is a part of a file as memory. It stays until the process ends.
func mapped(f *os.File, at int64, length int) ([]byte, error) {
	return syscall.Mmap(int(f.Fd()), at, length, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
}

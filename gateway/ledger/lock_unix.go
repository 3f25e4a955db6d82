//go:build unix

package ledger

import (
	"errors"
	"os"
	"syscall"
)

// lockFile locks a file. It returns false and no error where another process holds the
// lock. The system releases the lock when the process ends, however it ends.
func lockFile(f *os.File) (locked bool, err error) {
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

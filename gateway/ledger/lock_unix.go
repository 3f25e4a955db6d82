//go:build unix

package ledger

import (
	"errors"
	"os"
	"syscall"
)

// take takes the lock of a file, or says that another process has it. The system
// gives it back when the process ends, however it ends.
func take(f *os.File) (taken bool, err error) {
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

//go:build unix

package main

import "syscall"

// descriptorLimit returns how many files and connections this process may have open;
// 0: not known, or any number.
func descriptorLimit() uint64 {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil || limit.Cur > 1<<40 {
		return 0
	}
	return uint64(limit.Cur)
}

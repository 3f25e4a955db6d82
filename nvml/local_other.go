//go:build !linux

package nvml

import "syscall"

// dieWithParent is Linux's alone; elsewhere the child is ended when this process
// is told to end.
func dieWithParent() *syscall.SysProcAttr { return nil }

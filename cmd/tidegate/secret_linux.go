package main

import (
	"os"
	"syscall"
	"unsafe"
)

// hideInput makes a terminal not show what is typed; the function puts it back.
// It is termios(3): TCGETS and TCSETS of ioctl_tty(2), without ECHO.
func hideInput(f *os.File) (show func(), err error) {
	var old syscall.Termios
	if err := terminalMode(f, syscall.TCGETS, &old); err != nil {
		return nil, err
	}
	silent := old
	silent.Lflag &^= syscall.ECHO
	if err := terminalMode(f, syscall.TCSETS, &silent); err != nil {
		return nil, err
	}
	return func() { _ = terminalMode(f, syscall.TCSETS, &old) }, nil // a terminal that is gone shows nothing
}

func terminalMode(f *os.File, request uintptr, mode *syscall.Termios) error {
	_, _, code := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(mode)))
	if code != 0 {
		return code
	}
	return nil
}

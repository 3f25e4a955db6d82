//go:build !linux

package main

import (
	"errors"
	"os"
)

// hideInput is not known on this system.
func hideInput(*os.File) (show func(), err error) {
	return nil, errors.New("hiding what is typed is not supported on this system")
}

//go:build !unix

package ledger

import (
	"errors"
	"os"
)

func mapped(*os.File, int64, int) ([]byte, error) {
	return nil, errors.New("this system cannot map files")
}

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// maxSecret bounds what is read of a pasted key, in bytes.
const maxSecret = 4096

// readSecret reads one line that nobody may see: from a pipe as it comes, from a
// terminal after a prompt and without showing what is typed. Its errors do not quote it.
func (p *process) readSecret(prompt string) (string, error) {
	in := p.stdin
	if in == nil {
		in = strings.NewReader("")
	}
	if f, ok := in.(*os.File); ok && isTerminal(f) {
		show, err := hideInput(f)
		if err != nil {
			return "", usageError{fmt.Errorf("this terminal would show what you paste: give it by a pipe, such as pbpaste | tidegate key revoke --secret (%w)", err)}
		}
		fmt.Fprint(p.stderr, prompt)
		defer func() {
			show()
			fmt.Fprintln(p.stderr)
		}()
	}
	line, err := bufio.NewReaderSize(io.LimitReader(in, maxSecret), maxSecret).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read the key from stdin: %w", err)
	}
	secret := strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), "Bearer "))
	if secret == "" {
		return "", usageError{errors.New("no key came from stdin: pipe its text in, or run this in a terminal and paste it")}
	}
	return secret, nil
}

// isTerminal reports whether a file is a device such as a terminal.
func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && f.Name() != os.DevNull
}

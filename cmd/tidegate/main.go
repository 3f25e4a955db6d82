// Command tidegate is the gateway: one front door in OpenAI's API for a fleet of
// vLLM servers. See tidegate --help.
package main

import (
	"context"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	p := &process{env: os.LookupEnv, stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
	for _, variable := range os.Environ() {
		name, _, _ := strings.Cut(variable, "=")
		p.names = append(p.names, name)
	}
	code := p.run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

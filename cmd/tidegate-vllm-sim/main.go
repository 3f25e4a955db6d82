// Command tidegate-vllm-sim stands in for a Qwen3 vLLM server: for demos,
// tests, benchmarks and drills on machines without a GPU. All behaviour is in
// package gatewaytest; here are only the flags and the two ports.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

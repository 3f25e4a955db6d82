// Command tidegate-gpu-agent says what the GPUs of its node are doing, for
// gateways that may run elsewhere. It alone calls the driver's library, so that a
// driver that hangs or crashes takes no gateway with it.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"tidegate/nvml/device"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.LookupEnv, device.Open, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

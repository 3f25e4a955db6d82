// Command tidegate-gpu-agent serves the readings of its node's GPUs to gateways, which may run
// elsewhere. It alone calls the driver's library, so that a driver that hangs or crashes takes
// no gateway down.
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

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"tidegate/nvml/device"
)

// Exit codes.
const (
	exitOK      = 0
	exitFailed  = 1 // it ran and failed
	exitUsage   = 2 // the command line is wrong
	exitGivenUp = 3 // the driver's library cannot be initialised; a new process may do better
)

const long = `Reads the GPUs of this node once a second through NVML and answers

  GET /v1/readings  the last reading of each GPU with its age, as JSON
  GET /metrics      the same for Prometheus
  GET /healthz      200 while the process lives, whatever the driver does

It needs no GPU and no driver to start: it looks for them for ever. It ends by
itself only when a driver that is there cannot be initialised again and again, as
after an update of the driver; its supervisor should then start it anew. On
SIGTERM it waits for the call in flight: to kill it inside of one may freeze the
GPU, so give it more time than --grace before you do.

Exit codes: 0 stopped, 1 it ran and failed, 2 the command line is wrong, 3 the
driver cannot be initialised: start it again.`

const example = `  # on loopback, for a gateway on the same node
  tidegate-gpu-agent

  # for gateways elsewhere, with a token, over TLS
  TOKEN=... tidegate-gpu-agent --listen :9410 --token-env TOKEN --tls-cert cert.pem --tls-key key.pem

  # on a Unix socket, keeping what it reads
  tidegate-gpu-agent --socket /run/tidegate/gpu.sock --record trace.jsonl
  curl --unix-socket /run/tidegate/gpu.sock http://gpu/v1/readings`

// options holds the command line.
type options struct {
	listen, socket      string
	tokenEnv, tokenFile string
	cert, key           string
	record, library     string
	sampling            device.Config
	env                 func(string) (string, bool)
	open                func(string) device.Library
	stdout, logsTarget  io.Writer
}

// usageError is an error of the command line.
type usageError struct{ error }

// run runs the command and returns its exit code.
func run(ctx context.Context, args []string, env func(string) (string, bool), open func(string) device.Library, stdout, stderr io.Writer) int {
	o := &options{sampling: device.Default(), env: env, open: open, stdout: stdout, logsTarget: stderr}
	cmd := &cobra.Command{
		Use:           "tidegate-gpu-agent",
		Short:         "Says what the GPUs of this node are doing",
		Long:          long,
		Example:       example,
		Args:          func(cmd *cobra.Command, args []string) error { return asUsage(cobra.NoArgs(cmd, args)) },
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return o.serve(cmd.Context()) },
	}
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	o.flags(cmd)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	var usage usageError
	if errors.As(err, &usage) {
		fmt.Fprintf(stderr, "tidegate-gpu-agent: %v (see tidegate-gpu-agent --help)\n", err)
		return exitUsage
	}
	fmt.Fprintf(stderr, "tidegate-gpu-agent: %v\n", err)
	if errors.Is(err, device.ErrGivenUp) {
		return exitGivenUp
	}
	return exitFailed
}

func asUsage(err error) error {
	if err == nil {
		return nil
	}
	return usageError{err}
}

func (o *options) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.SortFlags = false
	c := &o.sampling
	f.StringVar(&o.listen, "listen", "127.0.0.1:9410", "TCP address")
	f.StringVar(&o.socket, "socket", "", "Unix socket to listen on instead, for the own user only")
	f.StringVar(&o.tokenEnv, "token-env", "", "environment variable with the bearer token to ask for; /healthz never asks")
	f.StringVar(&o.tokenFile, "token-file", "", "file with that token")
	f.StringVar(&o.cert, "tls-cert", "", "certificate for TLS, with --tls-key")
	f.StringVar(&o.key, "tls-key", "", "key of the certificate")
	f.StringVar(&o.record, "record", "", "append each reading to this file, a trace that a gateway can replay; it grows without bound")
	f.StringVar(&c.Node, "node", "", "name of this node in reports (default: the host's name)")
	f.StringVar(&o.library, "library", "", "NVML library (default: libnvidia-ml.so.1 as the loader finds it)")
	f.DurationVar(&c.Interval, "interval", c.Interval, "between two readings of a GPU, 50ms or more")
	f.DurationVar(&c.Retry, "retry", c.Retry, "before the driver is initialised again; doubles up to 15s")
	f.IntVar(&c.Attempts, "attempts", c.Attempts, "failures to initialise the driver in a row before the exit with code 3")
	f.DurationVar(&c.Grace, "grace", c.Grace, "how long the end waits for the call in flight")
}

// check validates the command line and reads the token.
func (o *options) check() (token string, err error) {
	c := &o.sampling
	c.RetryMax, c.Slow = max(c.RetryMax, c.Retry), max(c.Slow, c.Interval)
	faults := []error{c.Validate()}
	if (o.cert == "") != (o.key == "") {
		faults = append(faults, errors.New("--tls-cert and --tls-key go together"))
	}
	if o.socket != "" && o.cert != "" {
		faults = append(faults, errors.New("--socket has no TLS"))
	}
	switch {
	case o.tokenEnv != "" && o.tokenFile != "":
		faults = append(faults, errors.New("--token-env and --token-file exclude each other"))
	case o.tokenEnv != "":
		if token, _ = o.env(o.tokenEnv); token == "" {
			faults = append(faults, fmt.Errorf("--token-env: %s is not set", o.tokenEnv))
		}
	case o.tokenFile != "":
		raw, err := os.ReadFile(o.tokenFile)
		if token = strings.TrimSpace(string(raw)); err == nil && token == "" {
			err = fmt.Errorf("%s is empty", o.tokenFile)
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("--token-file: %w", err))
		}
	}
	return token, asUsage(errors.Join(faults...))
}

// serve answers until ctx ends or something fails. The sampler ends first, while requests are
// still answered.
func (o *options) serve(ctx context.Context) (err error) {
	token, err := o.check()
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(o.logsTarget, nil))
	if o.sampling.Node == "" {
		if o.sampling.Node, err = os.Hostname(); err != nil {
			return fmt.Errorf("name of this node: %w", err)
		}
	}
	reg := prometheus.NewRegistry()
	calls := newCalls(reg)
	observe := calls.observe
	if o.record != "" {
		rec, err := newRecorder(o.record, log)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, rec.close()) }()
		observe = func(s device.Sample) { calls.observe(s); rec.observe(s) }
	}
	sampler, err := device.New(o.sampling, o.open(o.library), log, observe)
	if err != nil {
		return usageError{err}
	}
	reg.MustRegister(newReadings(sampler.Report))
	srv := &http.Server{
		Handler: handler(sampler, reg, token), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	listener, address, err := o.listener()
	if err != nil {
		return err
	}
	if token == "" && o.socket == "" && !isLoopback(listener) {
		log.Warn("anybody who can reach this address can read it: there is no token", "listen", address)
	}
	fmt.Fprintf(o.stdout, "listening on %s\n", address)
	group, failed := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := srv.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("listener: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		defer shutdown(srv)
		return sampler.Run(failed)
	})
	return group.Wait()
}

// shutdown ends the server after the answers that are being written.
func shutdown(srv *http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if srv.Shutdown(ctx) != nil {
		_ = srv.Close()
	}
}

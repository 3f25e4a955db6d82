package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
)

// run serves until ctx ends, and closes all that newDaemon opened. The loop source keeps
// the configuration fresh.
func (d *daemon) run(ctx context.Context, source loop) (err error) {
	defer func() { err = errors.Join(err, d.close()) }()
	defer d.traces.close()
	front, err := d.frontServer()
	if err != nil {
		d.front.Close()
		return err
	}
	servers := []*server{front}
	if d.ops != nil {
		servers = append(servers, d.opsServer())
		d.log.Info("listening for operators", "address", d.ops.Addr().String())
	}
	d.log.Info("listening", "address", d.front.Addr().String(), "auth", d.config.Auth.Mode, "version", version())
	d.warn(&d.config)
	return supervise(ctx, d.log, d.config.Server.ShutdownGrace, d.gateway.Drain, servers, d.gpus.Run, d.fleet.Run, d.ladder.Run, d.counters.run, d.accounts.Run, d.ledger.Run, d.alerts.Run, source)
}

// loop runs until its context ends.
type loop func(context.Context) error

// supervise runs the servers and loops until ctx ends or one of them fails. Then
// it drains: drain says that nothing new should come, the servers finish what
// they have, for grace at most, and only then the loops stop.
func supervise(ctx context.Context, log *slog.Logger, grace time.Duration, drain func(), servers []*server, loops ...loop) error {
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, failed := errgroup.WithContext(running)
	for _, l := range loops {
		group.Go(func() error { return l(running) })
	}
	for _, s := range servers {
		group.Go(s.serve)
	}
	group.Go(func() error {
		select {
		case <-ctx.Done():
			log.Info("draining", "grace", grace)
		case <-failed.Done():
		}
		drain()
		end, cancel := context.WithTimeout(running, grace)
		defer cancel()
		for _, s := range servers {
			s.shutdown(end, log)
		}
		stop()
		return nil
	})
	return group.Wait()
}

// server is an HTTP server on its listener.
type server struct {
	name   string
	http   *http.Server
	listen func(*http.Server) error
	cut    context.CancelFunc // ends the requests that outlive the grace
}

func (s *server) serve() error {
	if err := s.listen(s.http); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	return nil
}

// last is the time that a request that was cut may take to settle.
const last = 2 * time.Second

func (s *server) shutdown(ctx context.Context, log *slog.Logger) {
	if err := s.http.Shutdown(ctx); err == nil {
		return
	}
	log.Warn("cutting what did not finish", "server", s.name)
	s.cut()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), last)
	defer cancel()
	if s.http.Shutdown(ctx) != nil {
		// Nothing is left to wait for.
		_ = s.http.Close()
	}
}

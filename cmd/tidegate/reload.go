package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidegate/admission/limit"
	"tidegate/gateway/account"
	"tidegate/gateway/alert"
)

// reloads hold where the configuration comes from, and the outcome of the last reload.
type reloads struct {
	load    func() (config, error)
	success *prometheus.GaugeVec     // 1 if the last reload worked
	loaded  prometheus.Gauge         // Unix time of the configuration in force
	failure atomic.Pointer[string]   // fault of the last reload; nil: it worked
	restart atomic.Pointer[[]string] // keys that changed and that only a restart applies
}

// watchEvery is the time between two looks at the file. Its content is compared, since a
// mounted file changes by a switched link.
const watchEvery = 2 * time.Second

// watch reloads on SIGHUP and when the file has changed.
func (d *daemon) watch(ctx context.Context) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	seen := fingerprint(d.config, nil) // of the running configuration: the file may have changed since
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
			d.reload()
			seen = fingerprint(d.load())
		case <-tick.C:
			if now := fingerprint(d.load()); !bytes.Equal(now, seen) {
				seen = now
				d.reload()
			}
		}
	}
}

// fingerprint changes when what the configuration says changes, or its fault does.
func fingerprint(c config, err error) []byte {
	sum := sha256.Sum256(fmt.Appendf(nil, "%+v %v", c, err))
	return sum[:]
}

// reload replaces the configuration; one that is invalid keeps the old running.
func (d *daemon) reload() {
	c, err := d.load()
	var set *limit.Set
	if err == nil {
		set, err = c.limitSet()
	}
	var channels []alert.Channel
	if err == nil {
		channels, err = c.alertChannels()
	}
	if err == nil {
		err = d.readCertificate()
	}
	if err != nil {
		text := err.Error()
		d.failure.Store(&text)
		d.success.WithLabelValues().Set(0)
		d.log.Error("the new configuration is not used; the old one stays", "error", text)
		return
	}
	d.failure.Store(nil)
	d.readExpiries(&c)
	d.success.WithLabelValues().Set(1)
	d.loaded.SetToCurrentTime()
	keys := d.config.restartOnly(&c)
	d.restart.Store(&keys)
	if len(keys) > 0 {
		d.log.Warn("changed, but only a restart applies it", "keys", strings.Join(keys, ", "))
	}
	d.counters.reconfigure(set)
	d.gateway.Reload(c.face(), account.New(c.Auth, d.accounts))
	d.gpus.Replace(c.GPUs)
	d.ladder.Reload(c.Degrade)
	d.doors.Reload(c.waiting())
	d.alerts.Reload(channels)
	d.fleet.Apply(c.Models)
	d.warn(&c)
	d.log.Info("configuration reloaded", "models", len(c.Models))
}

// warn logs the parts of a configuration that are probably not meant.
func (d *daemon) warn(c *config) {
	for _, w := range c.warnings(d.names, time.Now()) {
		d.log.Warn("the configuration may not be meant so", "reason", w.Error())
	}
}

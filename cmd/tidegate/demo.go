package main

import (
	"context"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"tidegate/admission/limit"
	"tidegate/gateway/backend"
	"tidegate/gateway/gatewaytest"
	"tidegate/nvml"
)

func (p *process) demoCommand() *cobra.Command {
	var listen string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run the gateway in front of simulated vLLM servers",
		Long: "Starts three simulated vLLM servers (two of Qwen3-1.7B, one of Qwen3-0.6B), each with a\n" +
			"simulated GPU, and the gateway in front of them, and prints a key and ways to call it.\n" +
			"Ctrl-C stops all.",
		Example: "  tidegate demo\n  tidegate demo --listen 127.0.0.1:9000",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return p.demo(cmd.Context(), listen) },
	}
	cmd.Flags().StringVar(&listen, "listen", "", "address for callers (default 127.0.0.1:8080, or a free port where that is taken)")
	return cmd
}

// simulated are the servers of the demo.
func simulated() []gatewaytest.Options {
	large := gatewaytest.Default()
	large.Model, large.Slots, large.TTFT, large.ITL = "Qwen3-1.7B", 16, 120*time.Millisecond, 15*time.Millisecond
	small := large
	small.Model, small.ITL = "Qwen3-0.6B", 6*time.Millisecond
	return []gatewaytest.Options{large, large, small}
}

// simulatedGPUs is a trace of two minutes of the servers' GPUs, which are warm and
// have room, each at another moment of the same wave.
func simulatedGPUs() []byte {
	var b []byte
	for second := range 120 {
		for i := range simulated() {
			wave := math.Sin(2 * math.Pi * (float64(second)/60 + float64(i)/3))
			b = fmt.Appendf(b, `{"t_ms":%d,"uuid":"GPU-simulated-%d","name":"Simulated H200","margin":%.0f,"temp":%.0f,"hbm":%.0f,"used":132270,"total":143771,"reasons":4,"power":%.0f}`+"\n",
				1000*second, i, 35-4*wave, 50+4*wave, 42+2*wave, 560+80*wave)
		}
	}
	return b
}

func (p *process) demo(ctx context.Context, address string) error {
	models := []backend.ModelConfig{backend.DefaultModel(), backend.DefaultModel()}
	models[0].Name, models[0].Aliases = "Qwen3-1.7B", []string{"qwen3"}
	models[1].Name = "Qwen3-0.6B"
	for i, o := range simulated() {
		sim, err := gatewaytest.New(o)
		if err != nil {
			return err
		}
		defer sim.Close()
		at, err := sim.Listen("127.0.0.1:0")
		if err != nil {
			return err
		}
		m := &models[i/2]
		m.Backends = append(m.Backends, backend.Config{URL: at, GPUs: []string{fmt.Sprint("demo/", i)}})
		fmt.Fprintf(p.stdout, "simulated %-10s  %s\n", o.Model, at)
	}
	dir, err := os.MkdirTemp("", "tidegate-demo-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // what stays is a small file among temporary ones
	c := defaultConfig()
	c.Store = storeConfig{DSN: "sqlite://" + filepath.Join(dir, "demo.db"), JournalDir: filepath.Join(dir, "journal")}
	c.Server.Listen, c.Server.OpsListen, c.Server.ShutdownGrace = address, free("127.0.0.1:9090"), 3*time.Second
	if address == "" {
		c.Server.Listen = free("127.0.0.1:8080")
	}
	c.Models = models
	c.GPUs = []nvml.Config{nvml.DefaultConfig()}
	c.GPUs[0].Name, c.GPUs[0].Replay = "demo", filepath.Join(dir, "gpus.jsonl")
	if err := os.WriteFile(c.GPUs[0].Replay, simulatedGPUs(), 0o600); err != nil {
		return err
	}
	c.Limits = []limit.Rule{{Name: "user-rate", Per: "user", Bounds: limit.Bounds{
		Requests: limit.Rate{Count: 60, Window: time.Minute}, Tokens: limit.Rate{Count: 100_000, Window: time.Minute}, Concurrency: 16,
	}}}
	c.Quotas = []limit.QuotaRule{{Name: "daily", Per: "user", Units: 1_000_000, Every: "day"}}
	c.Telemetry.Log = "text"
	d, err := newDaemon(ctx, c, p)
	if err != nil {
		return err
	}
	d.load = func() (config, error) { return c, nil }
	p.invite(d, d.firstKey)
	return d.run(ctx, func(ctx context.Context) error {
		<-ctx.Done()
		return nil
	})
}

// free is the address, or a free port of the same host where it is taken.
func free(address string) string {
	l, err := net.Listen("tcp", address)
	if err != nil {
		host, _, _ := net.SplitHostPort(address)
		return net.JoinHostPort(host, "0")
	}
	l.Close()
	return address
}

// invite prints how to call the gateway, to be pasted as it is.
func (p *process) invite(d *daemon, key string) {
	base := "http://" + d.front.Addr().String()
	ops := "http://" + d.ops.Addr().String()
	fmt.Fprintf(p.stdout, `
Tidegate is at %[1]s (operators: %[3]s/status, %[3]s/metrics)

key: %[2]s (an administrator's, good until the demo stops)

curl:

  curl -N %[1]s/v1/chat/completions -H 'Authorization: Bearer %[2]s' -H 'Content-Type: application/json' -d '{"model":"Qwen3-1.7B","stream":true,"messages":[{"role":"user","content":"Why is the sky blue?"}]}'

Python (pip install openai):

  from openai import OpenAI
  client = OpenAI(base_url="%[1]s/v1", api_key="%[2]s")
  answer = client.chat.completions.create(model="Qwen3-1.7B", messages=[{"role": "user", "content": "Why is the sky blue?"}])
  print(answer.choices[0].message.content)

A key for somebody else:

  curl %[1]s/admin/v1/keys -H 'Authorization: Bearer %[2]s' -H 'Content-Type: application/json' -d '{"user":"ann"}'

What this key has used, and what its limits (60 requests and 100000 tokens a minute, a daily quota) leave:

  curl %[1]s/v1/usage -H 'Authorization: Bearer %[2]s'
  curl %[1]s/quota/status -H 'Authorization: Bearer %[2]s'

What the servers and their simulated GPUs are doing:

  %[4]s status --ops %[3]s

Ctrl-C stops all.

`, base, key, ops, os.Args[0])
}

package main

import (
	"context"
	"errors"
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
	"tidegate/gateway/qwen"
	"tidegate/nvml"
)

func (p *process) demoCommand() *cobra.Command {
	var (
		listen, name string
		seconds      int
	)
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run the gateway in front of simulated vLLM servers, or watch it under pressure",
		Long: "Starts three simulated vLLM servers (two of Qwen3-1.7B, one of Qwen3-0.6B), each with a\n" +
			"simulated GPU, and the gateway in front of them, and prints a key and ways to call it.\n" +
			"Ctrl-C stops all.\n\n" +
			"--scenario plays pressure instead, for a minute, and prints each step of the ladder with its\n" +
			"reason and what a caller gets at each level:\n\n" +
			"  heat     the cards lose their cooling and get it back\n" +
			"  memory   another process takes the memory beside the engines\n" +
			"  queue    one of two users floods slow servers\n" +
			"  recover  hot, cool, hot again: the second time it comes down at half the speed",
		Example: "  tidegate demo\n  tidegate demo --listen 127.0.0.1:9000\n  tidegate demo --scenario heat\n  tidegate demo --scenario heat --seconds 360   # as slow as it was recorded",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case name != "":
				return p.demoScenario(cmd.Context(), listen, name, seconds)
			case cmd.Flags().Changed("seconds"):
				return usageError{errors.New("--seconds belongs to --scenario")}
			}
			return p.demo(cmd.Context(), listen)
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "", "address for callers (default 127.0.0.1:8080, or a free port where that is taken)")
	cmd.Flags().StringVar(&name, "scenario", "", "play one of heat, memory, queue and recover, and end")
	cmd.Flags().IntVar(&seconds, "seconds", 60, "how long the play takes, from 10 to 600")
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

// stage holds the ground of a demo: the simulated servers, and a configuration for
// them.
type stage struct {
	config  config
	servers []*gatewaytest.Server
	dir     string
}

// newStage starts the servers; trace is what their GPUs read. change, if there is
// any, is asked before they start.
func (p *process) newStage(address string, trace []byte, change func(*config, []gatewaytest.Options)) (s *stage, err error) {
	s = &stage{config: defaultConfig()}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.dir, err = os.MkdirTemp("", "tidegate-demo-"); err != nil {
		return nil, err
	}
	c, options := &s.config, simulated()
	c.Store = storeConfig{DSN: "sqlite://" + filepath.Join(s.dir, "demo.db"), JournalDir: filepath.Join(s.dir, "journal")}
	c.Server.Listen, c.Server.OpsListen, c.Server.ShutdownGrace = address, free("127.0.0.1:9090"), 3*time.Second
	if address == "" {
		c.Server.Listen = free("127.0.0.1:8080")
	}
	c.Models = []backend.ModelConfig{backend.DefaultModel(), backend.DefaultModel()}
	c.Models[0].Name, c.Models[0].Aliases, c.Models[0].Fallback = "Qwen3-1.7B", []string{"qwen3"}, "Qwen3-0.6B"
	c.Models[1].Name = "Qwen3-0.6B"
	for i := range options {
		m := &c.Models[i/2]
		m.Backends = append(m.Backends, backend.Config{GPUs: []string{fmt.Sprint("demo/", i)}})
	}
	c.GPUs = []nvml.Config{nvml.DefaultConfig()}
	c.GPUs[0].Name, c.GPUs[0].Replay = "demo", filepath.Join(s.dir, "gpus.jsonl")
	c.Telemetry.Log = "text"
	if err := os.WriteFile(c.GPUs[0].Replay, trace, 0o600); err != nil {
		return nil, err
	}
	if change != nil {
		change(c, options)
	}
	tokenizer, err := qwen.New()
	if err != nil {
		return nil, err
	}
	for i, o := range options {
		o.Tokenizer = tokenizer
		sim, err := gatewaytest.New(o)
		if err != nil {
			return nil, err
		}
		s.servers = append(s.servers, sim)
		listening, err := sim.Listen("127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		c.Models[i/2].Backends[i%2].URL = listening
		fmt.Fprintf(p.stdout, "simulated %-10s  %s\n", o.Model, listening)
	}
	return s, nil
}

func (s *stage) close() {
	for _, sim := range s.servers {
		sim.Close()
	}
	_ = os.RemoveAll(s.dir) // what stays is a small file among temporary ones
}

func (p *process) demo(ctx context.Context, address string) error {
	s, err := p.newStage(address, simulatedGPUs(), nil)
	if err != nil {
		return err
	}
	defer s.close()
	c := s.config
	c.Limits = []limit.Rule{{Name: "user-rate", Scope: "user", Bounds: limit.Bounds{
		Requests: limit.Rate{Count: 60, Window: time.Minute}, Tokens: limit.Rate{Count: 100_000, Window: time.Minute}, Concurrency: 16,
	}}}
	c.Quotas = []limit.QuotaRule{{Name: "daily", Scope: "user", Units: 1_000_000, Every: "day"}}
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

  %[5]s

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

`, base, key, ops, os.Args[0], curlLine(base, key, ""))
}

// curlLine asks as a caller does, with further flags of curl.
func curlLine(base, key, flags string) string {
	return "curl -N" + flags + " " + base + "/v1/chat/completions -H 'Authorization: Bearer " + key + "' -H 'Content-Type: application/json' -d '" + question + "'"
}

// question is the prompt of the demo.
const question = `{"model":"Qwen3-1.7B","stream":true,"messages":[{"role":"user","content":"Why is the sky blue?"}]}`

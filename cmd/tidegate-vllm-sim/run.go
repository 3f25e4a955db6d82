package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"tidegate/gateway/gatewaytest"
)

const example = `  # a 1.7B and a 0.6B on two ports, as a small fleet
  tidegate-vllm-sim --listen 127.0.0.1:8000 --model Qwen3-1.7B --ttft 80ms --itl 12ms
  tidegate-vllm-sim --listen 127.0.0.1:8001 --model Qwen3-0.6B --ttft 40ms --itl 6ms

  # one request in ten dies after 20 tokens; change it while it runs
  tidegate-vllm-sim --control 127.0.0.1:9000 --fault die_mid:share=0.1,after=20
  curl -X DELETE 127.0.0.1:9000/sim/faults
  curl -d '{"itl":"50ms","slots":4}' 127.0.0.1:9000/sim/options
  curl 127.0.0.1:9000/sim/stats`

// run is the whole command; it returns the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cmd := command()
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	if err := cmd.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(stderr, "tidegate-vllm-sim:", err)
		return 1
	}
	return 0
}

// command binds the flags to the options.
func command() *cobra.Command {
	o := gatewaytest.Default()
	var listen, control string
	var specs []string
	cmd := &cobra.Command{
		Use:           "tidegate-vllm-sim",
		Short:         "A stand-in for a Qwen3 vLLM server, without GPU and model",
		Example:       example,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			faults := make([]gatewaytest.Fault, len(specs))
			for i, spec := range specs {
				f, err := gatewaytest.ParseFault(spec)
				if err != nil {
					return err
				}
				faults[i] = f
			}
			return serve(cmd.Context(), o, faults, listen, control, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&listen, "listen", "127.0.0.1:8000", "address of the vLLM surface")
	f.StringVar(&control, "control", "127.0.0.1:0", "address of the control surface (/sim/stats, /sim/faults, ...)")
	f.StringVar(&o.Model, "model", o.Model, "served model name")
	f.StringSliceVar(&o.Aliases, "alias", nil, "further served names")
	f.IntVar(&o.MaxModelLen, "max-model-len", o.MaxModelLen, "context, tokens")
	f.StringVar(&o.Version, "version", o.Version, "vLLM release to behave like")
	f.IntVar(&o.Slots, "slots", o.Slots, "sequences that run at once (max_num_seqs)")
	f.DurationVar(&o.TTFT, "ttft", 80*time.Millisecond, "time to the first token of an empty prompt")
	f.DurationVar(&o.ITL, "itl", 12*time.Millisecond, "time between two tokens")
	f.DurationVar(&o.PrefillPerToken, "prefill", 0, "time to the first token, for each prompt token not cached")
	f.IntVar(&o.KVBlocks, "kv-blocks", o.KVBlocks, "KV cache, blocks of 16 tokens")
	f.BoolVar(&o.PriorityScheduling, "priority-scheduling", o.PriorityScheduling, "schedule by priority, lower first")
	f.IntVar(&o.MaxQueued, "max-num-queued-reqs", o.MaxQueued, "bound of waiting and running sequences, 0: none")
	f.IntVar(&o.Engines, "engines", o.Engines, "data-parallel engines shown in /metrics")
	f.IntVar(&o.StreamInterval, "stream-interval", o.StreamInterval, "tokens to a chunk, at least")
	f.StringVar(&o.ReasoningParser, "reasoning-parser", o.ReasoningParser, `qwen3, deepseek_r1 or "" for none`)
	f.BoolVar(&o.ToolParser, "tool-parser", o.ToolParser, "accept tool_choice auto (hermes)")
	f.StringVar(&o.APIKey, "api-key", "", "key asked for on /v1 paths")
	f.BoolVar(&o.PromptTokensDetails, "enable-prompt-tokens-details", o.PromptTokensDetails, "write cached_tokens")
	f.BoolVar(&o.ForceIncludeUsage, "enable-force-include-usage", o.ForceIncludeUsage, "usage in all streams")
	f.DurationVar(&o.KeepAlive, "keep-alive", o.KeepAlive, "idle connections are closed after this")
	f.Uint64Var(&o.Seed, "seed", o.Seed, "of the answers' lengths and words")
	f.IntVar(&o.Tokens, "tokens", o.Tokens, "tokens of an answer, 0: drawn for each prompt")
	f.StringArrayVar(&specs, "fault", nil, "kind[:share=0.1,count=3,after=20,delay_ms=50], repeatable; kinds: refuse dead 500 503 hang die_before garbage hang_mid die_mid truncate error slow split crlf comments")
	return cmd
}

// serve listens on both ports until ctx ends.
func serve(ctx context.Context, o gatewaytest.Options, faults []gatewaytest.Fault, listen, control string, stdout io.Writer) error {
	s, err := gatewaytest.New(o)
	if err != nil {
		return err
	}
	defer s.Close()
	url, err := s.Listen(listen)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", control)
	if err != nil {
		return fmt.Errorf("control: %w", err)
	}
	srv := &http.Server{Handler: s.Control(), ReadHeaderTimeout: 10 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()
	for _, f := range faults {
		if err := s.SetFault(f); err != nil {
			_ = srv.Close()
			<-failed //nolint:errcheck // it says that the server was closed
			return err
		}
	}
	fmt.Fprintf(stdout, "listening on %s, control on http://%s\n", url, l.Addr())
	select {
	case err = <-failed:
		return fmt.Errorf("control: %w", err)
	case <-ctx.Done():
	}
	_ = srv.Close()
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("control: %w", err)
	}
	return nil
}

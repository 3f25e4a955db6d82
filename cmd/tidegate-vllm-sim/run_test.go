package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestRun(t *testing.T) {
	defer goleak.VerifyNone(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	out, in := io.Pipe()
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, []string{"--listen", "127.0.0.1:0", "--ttft", "1ms", "--itl", "0", "--tokens", "12", "--fault", "500:count=1"}, in, io.Discard)
		in.Close()
	}()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`^listening on (http://127\.0\.0\.1:\d+), control on (http://127\.0\.0\.1:\d+)\n$`).FindStringSubmatch(line)
	if m == nil {
		t.Fatal(line)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	var statuses []int
	for range 2 {
		resp, err := client.Post(m[1]+"/v1/chat/completions", "application/json",
			strings.NewReader(`{"messages":[{"role":"user","content":"Hello"}]}`))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		statuses = append(statuses, resp.StatusCode)
	}
	if statuses[0] != 500 || statuses[1] != 200 {
		t.Error(statuses)
	}
	resp, err := client.Get(m[2] + "/sim/stats")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var stats struct {
		GenerationTokens int `json:"generation_tokens"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&stats); err != nil || stats.GenerationTokens != 12 {
		t.Error(err, stats)
	}
	stop()
	if got := <-code; got != 0 {
		t.Error("exit status:", got)
	}
}

func TestFaultyFlags(t *testing.T) {
	for _, args := range [][]string{
		{"--slots", "0"}, {"--fault", "nonsense"}, {"--listen", "nowhere:x"}, {"--control", "nowhere:x", "--listen", "127.0.0.1:0"},
		{"--no-such-flag"}, {"argument"},
	} {
		var stderr bytes.Buffer
		if code := run(t.Context(), args, io.Discard, &stderr); code != 1 || !strings.HasPrefix(stderr.String(), "tidegate-vllm-sim: ") {
			t.Error(args, code, stderr.String())
		}
	}
}

func TestHelp(t *testing.T) {
	var stdout bytes.Buffer
	if code := run(t.Context(), []string{"--help"}, &stdout, io.Discard); code != 0 || !strings.Contains(stdout.String(), "--fault die_mid:share=0.1,after=20") {
		t.Error(code, stdout.String())
	}
}

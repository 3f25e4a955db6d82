package gatewaytest

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidegate/nvml/poll"
)

func (b *bench) fault(f Fault) {
	b.t.Helper()
	if err := b.ClearFaults(); err != nil {
		b.t.Fatal(err)
	}
	if err := b.SetFault(f); err != nil {
		b.t.Fatal(err)
	}
}

// try returns what a client sees of a streamed request, however it ends.
func (b *bench) try(body string) (status int, s transcript, err error) {
	resp, err := b.ask(b.t.Context(), chatPath, body)
	if err != nil {
		return 0, s, err
	}
	defer resp.Body.Close()
	s = readEvents(resp.Body)
	return resp.StatusCode, s, s.err
}

func TestFaultsBefore(t *testing.T) {
	b := start(t, nil)
	ask := chat("Hello", usage+`,"sim":{"tokens":20}`)
	b.fault(Fault{Kind: Fault500})
	if status, _, _ := b.try(ask); status != 500 {
		t.Error("500:", status)
	}
	b.fault(Fault{Kind: Fault503, Count: 1})
	if status, _, _ := b.try(ask); status != 503 {
		t.Error("503:", status)
	}
	if status, s, _ := b.try(ask); status != 200 || !s.done {
		t.Error("the count is spent:", status)
	}
	b.fault(Fault{Kind: FaultDieBefore})
	if _, _, err := b.try(ask); err == nil {
		t.Error("die_before: no error")
	}
	b.fault(Fault{Kind: FaultGarbage})
	if status, s, _ := b.try(ask); status != 200 || s.done || !strings.Contains(s.raw, "<html>") {
		t.Error("garbage:", status, s.raw)
	}
	b.fault(Fault{Kind: FaultHang})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := b.ask(ctx, chatPath, ask); !errors.Is(err, context.DeadlineExceeded) {
		t.Error("hang:", err)
	}
	if err := b.SetFault(Fault{Kind: "nonsense"}); err == nil {
		t.Error("an unknown kind must be refused")
	}
}

func TestRefuse(t *testing.T) {
	b := start(t, nil)
	ask := chat("Hello", usage+`,"sim":{"tokens":20}`)
	if _, s, _ := b.try(ask); !s.done {
		t.Fatal("before")
	}
	b.fault(Fault{Kind: FaultRefuse})
	b.client.CloseIdleConnections()
	if _, _, err := b.try(ask); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Error("refuse:", err)
	}
	if err := b.ClearFaults(); err != nil {
		t.Fatal(err)
	}
	if _, s, err := b.try(ask); err != nil || !s.done {
		t.Error("after:", err)
	}
}

func TestDeadEngine(t *testing.T) {
	b := start(t, func(o *Options) { o.ITL = 5 * time.Millisecond })
	got := make(chan transcript)
	go func() {
		_, s, _ := b.try(chat("Hello", usage+`,"sim":{"tokens":5000}`))
		got <- s
	}()
	poll.Await(t, "running", func() bool { return b.Stats().GenerationTokens > 0 || metric(b, "vllm:generation_tokens_total") > 2 })
	b.fault(Fault{Kind: FaultDead})
	s := <-got
	if s.last().Get("error.code").Int() != 500 || !s.done || s.finish(0) != "" {
		t.Error("live stream:", s.raw)
	}
	if status, _, _ := b.try(chat("Hello", "")); status != 500 {
		t.Error("new request:", status)
	}
	if status := b.get("/health"); status != http.StatusServiceUnavailable {
		t.Error("health:", status)
	}
	if err := b.ClearFaults(); err != nil {
		t.Fatal(err)
	}
	if status := b.get("/health"); status != http.StatusOK {
		t.Error("health again:", status)
	}
}

func TestFaultsMidway(t *testing.T) {
	b := start(t, nil)
	ask := chat("Hello", usage+`,"sim":{"tokens":200}`)
	delivered := func(s transcript) int64 {
		n := int64(0)
		for _, c := range s.chunks {
			n = max(n, c.Get("usage.completion_tokens").Int())
		}
		return n
	}
	b.fault(Fault{Kind: FaultDieMid, AfterTokens: 30})
	_, s, err := b.try(ask)
	if err == nil || s.done || delivered(s) != 30 {
		t.Error("die_mid:", err, delivered(s))
	}
	poll.Await(t, "die_mid recorded", func() bool { return len(b.Requests()) == 1 })
	if r := b.Requests()[0]; r.Fault != FaultDieMid || !r.Aborted || r.Delivered != 30 || r.Output < 30 {
		t.Errorf("%+v", r)
	}
	b.fault(Fault{Kind: FaultTruncate, AfterTokens: 30})
	if _, s, err := b.try(ask); err != nil || s.done || delivered(s) != 30 || s.finish(0) != "" {
		t.Error("truncate:", err, s.raw)
	}
	b.fault(Fault{Kind: FaultError, AfterTokens: 30})
	if _, s, err := b.try(ask); err != nil || !s.done || s.last().Get("error.code").Int() != 500 || delivered(s) != 30 {
		t.Error("error:", err, s.raw)
	}
	b.fault(Fault{Kind: FaultHangMid, AfterTokens: 30})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	resp, err := b.ask(ctx, chatPath, ask, "X-Request-Id", "hung")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var raw strings.Builder
	buf := make([]byte, 4096)
	for !strings.Contains(raw.String(), `"completion_tokens":30}`) {
		n, err := resp.Body.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		raw.Write(buf[:n])
	}
	cancel()
	if r := b.record("hung"); r.Delivered != 30 || !r.Aborted {
		t.Errorf("%+v", r)
	}
	b.fault(Fault{Kind: FaultDieMid, AfterTokens: 30})
	if resp, err := b.ask(t.Context(), chatPath, chat("Hello", `"sim":{"tokens":200}`)); err == nil {
		resp.Body.Close()
		t.Error("die_mid without streaming: an answer came")
	}
}

func TestSpoiltBytes(t *testing.T) {
	b := start(t, nil)
	ask := chat("你好", `"stream":true,"sim":{"text":"共享的推理服务","tokens":0}`)
	_, clean, _ := b.try(ask)
	for _, kind := range []FaultKind{FaultSplit, FaultCRLF, FaultComments} {
		b.fault(Fault{Kind: kind})
		_, s, err := b.try(ask)
		if err != nil || !s.done || s.joined(0, "delta.content") != clean.joined(0, "delta.content") {
			t.Error(kind, err, s.raw)
		}
		if strings.Contains(s.raw, "\r\n") != (kind == FaultCRLF) || strings.Contains(s.raw, ": keep-alive") != (kind == FaultComments) {
			t.Error(kind, s.raw)
		}
	}
	b.fault(Fault{Kind: FaultSplit})
	if _, v := b.post(chatPath, chat("Hello", `"sim":{"text":"Hi"}`)); v.Get("choices.0.message.content").String() != "\n\nHi" {
		t.Error(v)
	}
}

func TestSlowAndShare(t *testing.T) {
	b := start(t, nil)
	b.fault(Fault{Kind: FaultSlow, DelayMS: 5})
	b.post(chatPath, chat("Hello", `"sim":{"tokens":21}`), "X-Request-Id", "slow")
	if r := b.record("slow"); r.Ended.Sub(r.FirstToken) < 95*time.Millisecond {
		t.Error("20 gaps of 5 ms:", r.Ended.Sub(r.FirstToken))
	}
	b.fault(Fault{Kind: Fault500, Share: 0.5})
	struck := 0
	for range 60 {
		resp, err := b.ask(t.Context(), chatPath, chat("Hello", `"sim":{"tokens":5}`))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode == 500 {
			struck++
		}
	}
	if struck < 12 || struck > 48 {
		t.Error("half of 60:", struck)
	}
}

func TestParseFault(t *testing.T) {
	f, err := ParseFault("die_mid:share=0.1,after=20,count=3")
	if err != nil || f != (Fault{Kind: FaultDieMid, Share: 0.1, AfterTokens: 20, Count: 3}) {
		t.Error(f, err)
	}
	for _, bad := range []string{"", "x", "slow:delay_ms=y", "slow:speed=1", "500:share=2", "500:count=-1"} {
		if _, err := ParseFault(bad); err == nil {
			t.Error(bad)
		}
	}
}

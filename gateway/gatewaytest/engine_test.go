package gatewaytest

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"tidegate/nvml/poll"
)

// open starts a stream and reads its first data line.
func (b *bench) open(ctx context.Context, id, body string) *http.Response {
	b.t.Helper()
	resp, err := b.ask(ctx, chatPath, body, "X-Request-Id", id)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { resp.Body.Close() })
	if line, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil || !strings.HasPrefix(line, "data: ") {
		b.t.Fatal(line, err)
	}
	return resp
}

func TestLeavingAborts(t *testing.T) {
	for _, stream := range []string{"true", "false"} {
		b := start(t, func(o *Options) { o.ITL = 10 * time.Millisecond })
		ctx, leave := context.WithCancel(t.Context())
		defer leave()
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			resp, err := b.ask(ctx, chatPath, chat("Hello", `"stream":`+stream+`,"sim":{"tokens":5000}`), "X-Request-Id", "left")
			if err == nil {
				_, _ = bufio.NewReader(resp.Body).ReadString(0)
				resp.Body.Close()
			}
		}()
		poll.Await(t, "three tokens", func() bool { return metric(b, "vllm:generation_tokens_total") >= 3 })
		leave()
		<-gone
		r := b.record("left")
		if !r.Aborted || r.Finish != "" || r.Output < 3 || r.Output > 1000 || r.Delivered != 0 {
			t.Errorf("%+v", r)
		}
		st := b.Stats()
		if st.Running != 0 || st.Aborted != 1 || st.Finished != 0 || st.KVUsage != 0 {
			t.Errorf("%+v", st)
		}
		if got := metric(b, "vllm:generation_tokens_total"); int(got) != r.Output {
			t.Error("generation tokens:", got)
		}
		if got := metric(b, "vllm:request_success_total"); got != 0 {
			t.Error("success:", got)
		}
	}
}

func TestContinuousUsageSaysWhatWasDelivered(t *testing.T) {
	b := start(t, func(o *Options) { o.ITL = 2 * time.Millisecond })
	ctx, leave := context.WithCancel(t.Context())
	resp, err := b.ask(ctx, chatPath, chat("Hello", usage+`,"sim":{"tokens":5000}`), "X-Request-Id", "cut")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for n := 0; n < 60 && lines.Scan(); n++ {
	}
	leave()
	r := b.record("cut")
	if r.Delivered < 20 || r.Delivered > r.Output || r.DeliveredPrompt != 9 || r.Output-r.Delivered > 20 {
		t.Errorf("%+v", r)
	}
}

func TestSlotsAndQueue(t *testing.T) {
	b := start(t, func(o *Options) { o.Slots = 2; o.ITL = 2 * time.Millisecond; o.TTFT = 20 * time.Millisecond })
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() { b.post(chatPath, chat("Hello", `"sim":{"tokens":20}`)) })
	}
	wg.Wait()
	st := b.Stats()
	if st.PeakRunning != 2 || st.PeakWaiting < 1 || st.Finished != 6 || st.GenerationTokens != 120 {
		t.Errorf("%+v", st)
	}
}

func TestPriority(t *testing.T) {
	for _, byPriority := range []bool{true, false} {
		b := start(t, func(o *Options) {
			o.Slots = 1
			o.PriorityScheduling = byPriority
			o.ITL = time.Millisecond
		})
		ctx, leave := context.WithCancel(t.Context())
		b.open(ctx, "first", chat("Hello", `"stream":true,"sim":{"tokens":5000}`))
		var wg sync.WaitGroup
		for i, p := range []string{"5", "-1", "0"} {
			wg.Go(func() {
				resp, err := b.ask(t.Context(), chatPath, chat("Hello", `"priority":`+p+`,"sim":{"tokens":8}`), "X-Request-Id", p)
				if err == nil {
					resp.Body.Close()
				}
			})
			poll.Await(t, "waiting", func() bool { return b.Stats().Waiting == i+1 })
		}
		leave()
		wg.Wait()
		poll.Await(t, "all ended", func() bool { return len(b.Requests()) == 4 })
		var order []string
		for _, r := range b.Requests()[1:] {
			order = append(order, r.ID)
		}
		want := "5 -1 0"
		if byPriority {
			want = "-1 0 5"
		}
		if got := strings.Join(order, " "); got != want {
			t.Errorf("priority %t: %s", byPriority, got)
		}
	}
}

func TestPreemption(t *testing.T) {
	b := start(t, func(o *Options) {
		o.MaxModelLen, o.KVBlocks = 320, 24
		o.ITL = time.Millisecond
	})
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			_, v := b.post(chatPath, chat(fmt.Sprint("Hello ", i), `"sim":{"tokens":200}`))
			if v.Get("usage.completion_tokens").Int() != 200 || v.Get("choices.0.finish_reason").String() != "stop" {
				t.Error(v)
			}
		})
	}
	wg.Wait()
	st := b.Stats()
	if st.Preemptions == 0 || st.Finished != 4 || st.KVUsage != 0 || metric(b, "vllm:num_preemptions_total") != float64(st.Preemptions) {
		t.Errorf("%+v", st)
	}
	if st.GenerationTokens != 800 {
		t.Error("preempted tokens are computed again, not given again:", st.GenerationTokens)
	}
}

func TestQueueBound(t *testing.T) {
	b := start(t, func(o *Options) { o.Slots, o.MaxQueued, o.ITL, o.Version = 1, 2, 5*time.Millisecond, "0.30.0" })
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	b.open(ctx, "a", chat("Hello", `"stream":true,"sim":{"tokens":5000}`))
	if status, v := b.post(chatPath, chat("Hello", `"stream":true,"n":2`)); status != http.StatusServiceUnavailable {
		t.Error(status, v)
	}
	if metric(b, "vllm:admission_rejections_total") != 1 {
		t.Error("rejections not counted")
	}
}

func TestTimes(t *testing.T) {
	b := start(t, func(o *Options) {
		o.TTFT, o.ITL, o.PrefillPerToken = 60*time.Millisecond, 5*time.Millisecond, 10*time.Millisecond
	})
	b.post(chatPath, chat("Hello", `"sim":{"tokens":21}`), "X-Request-Id", "t")
	r := b.record("t")
	if ttft := r.FirstToken.Sub(r.Arrived); ttft < 145*time.Millisecond {
		t.Error("60 ms and 9 tokens of 10 ms:", ttft)
	}
	// From the arrival: the first token may be noted late, and then the rest is shorter.
	if whole := r.Ended.Sub(r.Arrived); whole < 240*time.Millisecond {
		t.Error("and 20 gaps of 5 ms:", whole)
	}
	b.SetSpeed(func(s *Speed) { *s = Speed{Slots: 1} })
	b.post(chatPath, chat("Hello again", ""))
	if b.Stats().Finished != 2 {
		t.Error("speed 0 must answer at once")
	}
}

func TestStreamInterval(t *testing.T) {
	b := start(t, func(o *Options) { o.StreamInterval = 10 })
	s := b.stream(chatPath, chat("Hello", usage+`,`+thinkingOff+`,"sim":{"tokens":40}`))
	if len(s.chunks) > 8 || s.last().Get("usage.completion_tokens").Int() != 40 {
		t.Error(len(s.chunks), "chunks")
	}
}

func TestManySlowStreams(t *testing.T) {
	if testing.Short() {
		t.Skip("two thousand connections")
	}
	const streams = 2000
	b := start(t, func(o *Options) { o.Slots, o.ITL, o.KVBlocks = streams, 200*time.Millisecond, 1<<16 })
	var wg sync.WaitGroup
	for range streams {
		wg.Go(func() {
			resp, err := b.ask(t.Context(), chatPath, chat("Hello", usage+`,"sim":{"tokens":12}`))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if s := readEvents(resp.Body); !s.done || s.last().Get("usage.completion_tokens").Int() != 12 {
				t.Error(s.raw)
			}
		})
	}
	wg.Wait()
	if st := b.Stats(); st.Finished != streams || st.DeliveredTokens != 12*streams || st.Running != 0 {
		t.Errorf("%+v", st)
	}
}

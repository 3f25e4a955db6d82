package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"tidegate/degrade"
	"tidegate/gateway/gatewaytest"
	"tidegate/gateway/gatewaytest/stack"
	"tidegate/nvml"
)

// TestDrill is `make drill`: the whole system through heat, memory, a full queue and
// a recovery, played from traces, and then through lost GPUs and readings that grow
// old. Every answer must be what the table of docs/pressure.md says of its level, no
// request may fail, and all must end at L0. Without TIDEGATE_DRILL only the short
// parts are run; TestDemoScenario plays a trace as well.
func TestDrill(t *testing.T) {
	long := os.Getenv("TIDEGATE_DRILL") != ""
	for name, highest := range map[string]degrade.Level{"heat": degrade.Canned, "memory": degrade.Canned, "queue": degrade.ThinkingOff, "recover": degrade.ThinkingOff} {
		t.Run(name, func(t *testing.T) {
			if !long {
				t.Skip("`make drill` runs it: it takes a minute")
			}
			drillTrace(t, name, highest)
		})
	}
	t.Run("levels", drillLevels)
	t.Run("lost GPU", drillLost)
	t.Run("stale readings", func(t *testing.T) {
		if !long {
			t.Skip("`make drill` runs it: readings count for 10 s")
		}
		drillStale(t)
	})
	t.Run("GPU", func(t *testing.T) {
		if _, err := exec.LookPath("nvidia-smi"); err != nil || !long {
			t.Skip("`make drill` runs it, on a machine with an NVIDIA GPU")
		}
		drillGPU(t)
	})
}

// asPromised says what is wrong with an answer, by the level that it says it has.
func (a received) asPromised() error {
	model := map[string]string{"L0": stack.LargeModel, "L1": stack.LargeModel, "L2": stack.LargeModel, "L3": stack.SmallModel, "L4": "tidegate-canned"}[a.level]
	switch {
	case a.status != http.StatusOK:
		return errors.New("it failed")
	case model == "":
		return errors.New("there is no such level")
	case a.model != model:
		return fmt.Errorf("expected the model %s", model)
	case a.streamed() != (a.level == "L0"):
		return errors.New("only L0 streams")
	case a.thought != (a.level <= "L1"):
		return errors.New("up to L1 it thinks, and not from L2 on")
	case (a.reason == "none") != (a.level == "L0"):
		return errors.New("a level has a reason, and L0 has none")
	case (a.tokens == 0) != (a.level == "L4"), a.words == "":
		return errors.New("all but L4 have tokens, and all have words")
	}
	return nil
}

func promised(t *testing.T, answers []received) {
	t.Helper()
	if len(answers) < 5 {
		t.Errorf("only %d answers", len(answers))
	}
	for _, a := range answers {
		if err := a.asPromised(); err != nil {
			t.Errorf("%v: %v", err, a)
		}
	}
}

// drillTrace plays a scenario of the demo.
func drillTrace(t *testing.T, name string, highest degrade.Level) {
	of, err := scenarioNamed(name)
	if err != nil {
		t.Fatal(err)
	}
	out := &bytes.Buffer{}
	y, err := (&process{env: noEnv, stdout: out, stderr: io.Discard}).perform(t.Context(), "127.0.0.1:0", of, 60)
	if err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + out.String())
	promised(t, y.answers)
	at, most, last := degrade.Full, degrade.Full, time.Time{}
	var dwells []time.Duration // between a step down and the step before
	for _, c := range y.steps {
		if c.Model != y.model || c.Backend != "" {
			continue
		}
		if c.From != at || c.To < c.From-1 {
			t.Errorf("from %v to %v, and was at %v", c.From, c.To, at)
		}
		if c.To < c.From {
			dwells = append(dwells, c.Time.Sub(last))
		}
		at, most, last = c.To, max(most, c.To), c.Time
	}
	if at != degrade.Full || most < highest {
		t.Errorf("up to %v, and ends at %v; expected %v and L0", most, at, highest)
	}
	dwell := 5 * time.Second // a sixth of the default, as the trace is six times as fast
	for i, d := range dwells {
		if name == "recover" && i >= 2 && d < 2*dwell || d < dwell {
			t.Errorf("step down %d after %v", i, d)
		}
	}
	if name == "recover" && len(dwells) != 4 {
		t.Errorf("%d steps down", len(dwells))
	}
}

// drill is a gateway in front of the demo's servers, and their cards.
type drill struct {
	*stage
	*daemon
	client *http.Client
	base   string
	key    string
	cards  *cards
}

// cards are an agent whose readings a test sets.
type cards struct {
	mu     sync.Mutex
	seq    uint64
	gpus   []nvml.Reading
	frozen time.Time // since when there was nothing new; zero: all is
}

func (c *cards) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq++
	r := nvml.Report{Node: "drill", BootID: "drill", Seq: c.seq, GPUs: append([]nvml.Reading{}, c.gpus...)}
	for i := range r.GPUs {
		if !c.frozen.IsZero() {
			r.GPUs[i].AgeMs = time.Since(c.frozen).Milliseconds()
		}
	}
	_ = json.NewEncoder(w).Encode(r) // the gateway may have gone
}

// set changes the cards of the larger model's servers, up to so many of them.
func (c *cards) set(n int, change func(*nvml.Reading)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range n {
		change(&c.gpus[i])
	}
}

func (c *cards) margin(degrees int) { c.set(2, func(r *nvml.Reading) { r.Margin = &degrees }) }

// startDrill runs a gateway until the end of the test.
func startDrill(t *testing.T, change func(*config)) *drill {
	t.Helper()
	cool := 60
	c := &cards{}
	for i := range simulated() {
		c.gpus = append(c.gpus, nvml.Reading{Index: i, UUID: fmt.Sprint("GPU-", i), Name: "Drill", State: nvml.StateOK, Margin: &cool, Reasons: []string{}})
	}
	agent := httptest.NewServer(c)
	t.Cleanup(agent.Close)
	p := &process{env: noEnv, stdout: io.Discard, stderr: io.Discard}
	s, err := p.newStage("127.0.0.1:0", nil, func(c *config, o []gatewaytest.Options) {
		for i := range o {
			o[i].TTFT, o[i].ITL = 5*time.Millisecond, time.Millisecond
		}
		c.Server.OpsListen = ""
		c.GPUs[0].Replay, c.GPUs[0].Agent, c.GPUs[0].Every = "", agent.URL, 100*time.Millisecond
		c.Degrade.Dwell.Rise, c.Degrade.Dwell.Fall, c.Degrade.Dwell.DownMax = 200*time.Millisecond, time.Second, time.Second
		if change != nil {
			change(c)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	d, err := newDaemon(t.Context(), s.config, p)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() {
		ended <- d.run(ctx, func(ctx context.Context) error {
			<-ctx.Done()
			return nil
		})
	}()
	transport := &http.Transport{}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	out := &drill{stage: s, daemon: d, client: &http.Client{Transport: transport}, base: "http://" + d.front.Addr().String(), key: d.firstKey, cards: c}
	stack.Eventually(t, "all models in rotation", func() bool { return d.allUp() })
	return out
}

func (d *drill) model(t *testing.T) degrade.ModelStatus {
	t.Helper()
	return d.ladder.Status().Models[0]
}

func (d *drill) reach(t *testing.T, level degrade.Level) {
	t.Helper()
	stack.Eventually(t, "the model at "+level.String(), func() bool { return d.model(t).Level == level.String() })
}

// crowd asks until stop is called, which returns what was answered.
func (d *drill) crowd() (stop func() []received) {
	ctx, end := context.WithCancel(context.Background())
	var all []received
	var asking sync.WaitGroup
	asking.Go(func() {
		for ctx.Err() == nil {
			all = append(all, fetch(context.Background(), d.client, d.base, d.key))
		}
	})
	return func() []received {
		end()
		asking.Wait()
		return all
	}
}

// drillLevels holds both cards at the heat of each level, and looks at what the
// caller gets and at what the server was sent.
func drillLevels(t *testing.T) {
	d := startDrill(t, nil)
	for level, margin := range []int{60, 11, 8, 5, 1} {
		d.cards.margin(margin)
		d.reach(t, degrade.Level(level))
		for _, s := range d.servers {
			s.Reset()
		}
		a := fetch(t.Context(), d.client, d.base, d.key)
		if err := a.asPromised(); err != nil || a.level != degrade.Level(level).String() || level > 0 && a.reason != "gpu_temperature" {
			t.Errorf("at L%d: %v: %v", level, err, a)
		}
		if level == 4 {
			continue
		}
		var body gjson.Result
		stack.Eventually(t, "what was asked", func() bool {
			for i, s := range d.servers {
				if all := s.Requests(); len(all) > 0 && (i == 2) == (level == 3) {
					body = gjson.ParseBytes(all[0].Body)
					return true
				}
			}
			return false
		})
		limit := body.Get("max_completion_tokens").Int() + body.Get("max_tokens").Int()
		if body.Get("stream").Bool() != (level == 0) || level > 0 && (limit < 1 || limit > 2048) {
			t.Errorf("at L%d the server was asked %s", level, body.Raw)
		}
		if off := body.Get("chat_template_kwargs.enable_thinking"); (off.Type == gjson.False) != (level >= 2) {
			t.Errorf("at L%d the server was asked %s", level, body.Raw)
		}
	}
	d.cards.margin(60)
	d.reach(t, degrade.Full)
}

// drillLost loses a GPU, and then both: the level does not rise, and the smaller
// model answers when there is no other.
func drillLost(t *testing.T) {
	d := startDrill(t, nil)
	stop := d.crowd()
	d.cards.set(1, func(r *nvml.Reading) { r.State = nvml.StateLost })
	stack.Eventually(t, "server A out", func() bool { return d.model(t).Backends[0].Out != "" })
	if a := fetch(t.Context(), d.client, d.base, d.key); a.level != "L0" || a.asPromised() != nil {
		t.Errorf("with one GPU lost: %v", a)
	}
	before := len(d.servers[0].Requests())
	d.cards.set(2, func(r *nvml.Reading) { r.State = nvml.StateLost })
	stack.Eventually(t, "server B out", func() bool { return d.model(t).Backends[1].Out != "" })
	if a := fetch(t.Context(), d.client, d.base, d.key); a.level != "L3" || a.reason != "no_backend" || a.asPromised() != nil {
		t.Errorf("with both GPUs lost: %v", a)
	}
	if m := d.model(t); m.Level != "L0" {
		t.Errorf("lost GPUs raise the model to %s", m.Level)
	}
	// What was under way when the GPU was lost may still have been written down.
	if n := len(d.servers[0].Requests()) - before; n > 1 {
		t.Errorf("the server of the lost GPU was asked %d times", n)
	}
	d.cards.set(2, func(r *nvml.Reading) { r.State = nvml.StateOK })
	stack.Eventually(t, "both back", func() bool { m := d.model(t); return m.Backends[0].Out+m.Backends[1].Out == "" })
	if a := fetch(t.Context(), d.client, d.base, d.key); a.level != "L0" {
		t.Errorf("with both GPUs back: %v", a)
	}
	promised(t, stop())
}

// drillStale lets the readings of hot cards grow old: nothing is relaxed while they
// are held, and what is too old does not count, under a cap.
func drillStale(t *testing.T) {
	d := startDrill(t, nil)
	stop := d.crowd()
	d.cards.margin(8)
	d.reach(t, degrade.ThinkingOff)
	d.cards.mu.Lock()
	d.cards.frozen = time.Now()
	d.cards.mu.Unlock()
	age := func(want string) {
		stack.Eventually(t, "readings "+want, func() bool { m := d.model(t); return m.Backends[0].GPUs == want && m.Backends[1].GPUs == want })
	}
	age("held")
	d.cards.margin(60) // the cards cool down, but nobody may say so yet
	held := d.model(t)
	if held.Level != "L2" {
		t.Errorf("%s on readings that are held", held.Level)
	}
	age("dropped")
	for _, b := range d.model(t).Backends {
		if b.Cap < 1 {
			t.Errorf("%s has no cap on readings that are too old", b.Backend)
		}
	}
	if a := fetch(t.Context(), d.client, d.base, d.key); a.asPromised() != nil {
		t.Errorf("on readings that are too old: %v", a)
	}
	d.cards.mu.Lock()
	d.cards.frozen = time.Time{}
	d.cards.mu.Unlock()
	age("fresh")
	d.reach(t, degrade.Full)
	promised(t, stop())
}

// drillGPU is the same on this machine's first GPU: the agent reads it, the levels
// begin a little below the margin that it has while it idles, and a burn heats it.
// TIDEGATE_GPU_AGENT names the agent, TIDEGATE_GPU_BURN what burns, where it was built
// elsewhere.
func drillGPU(t *testing.T) {
	burner := os.Getenv("TIDEGATE_GPU_BURN")
	if burner == "" {
		burner = filepath.Join(t.TempDir(), "burn")
		if out, err := exec.Command("gcc", "-O1", "-o", burner, "../tidegate-gpu-agent/testdata/burn.c", "-ldl").CombinedOutput(); err != nil {
			t.Fatalf("burn.c: %v\n%s", err, out)
		}
	}
	d := startDrill(t, func(c *config) {
		c.GPUs[0].Agent, c.GPUs[0].Local, c.GPUs[0].Command = "", true, []string{os.Getenv("TIDEGATE_GPU_AGENT"), "--interval", "500ms"}
		c.Models[0].Backends[1].GPUs, c.Models[1].Backends[0].GPUs = c.Models[0].Backends[0].GPUs, nil
	})
	idle := 0.0
	stack.Eventually(t, "the GPU's margin", func() bool {
		_, gpus := d.gpus.Status()
		if len(gpus) == 0 || gpus[0].Margin == nil {
			return false
		}
		idle = float64(*gpus[0].Margin)
		return true
	})
	shifted := d.stage.config.Degrade
	shifted.Signals.GPUTemperature.Levels, shifted.Signals.GPUTemperature.Exit = []float64{idle - 6, idle - 10, idle - 12, idle - 13}, 2
	d.ladder.Reload(shifted)
	t.Logf("idle margin %v, levels %v", idle, shifted.Signals.GPUTemperature.Levels)
	stop := d.crowd()
	burn := exec.Command(burner, "1", "0", "0", "90")
	if out, err := burn.CombinedOutput(); err != nil {
		t.Errorf("burn: %v: %s", err, out)
	}
	hot := d.model(t)
	if hot.Level < "L1" || hot.Reason != "gpu_temperature" {
		t.Errorf("after 90 s of burning at %s (%s)", hot.Level, hot.Reason)
	}
	deadline := time.Now().Add(5 * time.Minute) // a card cools slowly
	for d.model(t).Level != "L0" && time.Now().Before(deadline) {
		time.Sleep(time.Second)
	}
	if m := d.model(t); m.Level != "L0" {
		t.Errorf("at %s after 5 minutes without load", m.Level)
	}
	all := stop()
	promised(t, all)
	seen := map[string]int{}
	for _, a := range all {
		seen[strings.TrimSpace(a.level+" "+a.reason)]++
	}
	t.Logf("answers by level: %v", seen)
}

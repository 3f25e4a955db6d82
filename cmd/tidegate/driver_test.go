package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"tidegate/gateway/gatewaytest/stack"
	"tidegate/nvml"
	"tidegate/nvml/nvmltest"
)

// traffic sends requests until it is told to end, and fails the test for each that
// is not answered in full.
func (f *front) traffic(t *testing.T) (end func()) {
	t.Helper()
	stop := make(chan struct{})
	var driving sync.WaitGroup
	var sent, failed atomic.Int64
	ask := func(stream bool) error {
		resp, err := f.Post(t.Context(), stack.ChatPath, fmt.Sprintf(`{"model":"qwen3","max_tokens":4,"stream":%t,"messages":[{"role":"user","content":"Hello"}]}`, stream))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK || stream && !strings.HasSuffix(string(body), "data: [DONE]\n\n") {
			return fmt.Errorf("status %d, %w: %s", resp.StatusCode, err, body)
		}
		return nil
	}
	for i := range 3 {
		driving.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				sent.Add(1)
				if err := ask(i == 0); err != nil {
					failed.Add(1)
					t.Error(err)
				}
			}
		})
	}
	return func() {
		close(stop)
		driving.Wait()
		t.Logf("%d requests, %d failed", sent.Load(), failed.Load())
		if sent.Load() < 20 {
			t.Errorf("only %d requests", sent.Load())
		}
	}
}

// TestTrafficThroughGPUFaults drives requests through everything that may befall
// an agent and its GPU: none may fail, and the status says each fault.
func TestTrafficThroughGPUFaults(t *testing.T) {
	n := stack.StartNode(t)
	f := startGateway(t, startServers(t, nil), stack.Config{GPUs: "gpu-a/0", Extra: nodeConfig(n)})
	stack.Eventually(t, "a reading", func() bool { return len(f.told(t).GPUs) > 0 })
	defer f.traffic(t)()
	release := make(chan struct{})
	defer close(release)
	source := func() nvml.SourceStatus { return f.told(t).Sources[0] }
	send := func(edit func(r *nvml.Report)) func(http.ResponseWriter, *nvml.Report) {
		return func(w http.ResponseWriter, r *nvml.Report) { edit(r); json.NewEncoder(w).Encode(r) }
	}
	for _, c := range []struct {
		name   string
		answer func(w http.ResponseWriter, r *nvml.Report)
		seen   func() bool
	}{
		{"no driver", send(func(r *nvml.Report) { r.GPUs, r.Error = nil, "libnvidia-ml.so.1 was not found" }), func() bool { return strings.Contains(source().Error, "libnvidia-ml.so.1") }},
		{"hung", func(http.ResponseWriter, *nvml.Report) { <-release }, func() bool { return strings.Contains(source().Error, "in time") }},
		{"garbage", func(w http.ResponseWriter, _ *nvml.Report) { io.WriteString(w, "\xff\x00") }, func() bool { return strings.Contains(source().Error, "no report") }},
		{"too long", func(w http.ResponseWriter, _ *nvml.Report) { w.Write(make([]byte, 8<<20)) }, func() bool { return strings.Contains(source().Error, "longer than") }},
		{"failing", func(w http.ResponseWriter, _ *nvml.Report) { w.WriteHeader(500) }, func() bool { return strings.Contains(source().Error, "status 500") }},
		{"restarted", func(w http.ResponseWriter, r *nvml.Report) { n.Boot.CompareAndSwap(0, 1); json.NewEncoder(w).Encode(r) }, func() bool { return source().OK && source().Restarts == 1 }},
		{"wedged", send(func(r *nvml.Report) { r.GPUs[0].State, r.GPUs[0].AgeMs = nvml.StateWedged, 60_000 }), func() bool {
			g := f.told(t).GPUs[0]
			return g.State == nvml.StateWedged && g.Freshness == "dropped"
		}},
		{"lost", send(func(r *nvml.Report) { r.GPUs[0].State = nvml.StateLost }), func() bool { return strings.Contains(fmt.Sprint(f.told(t).Warnings), "its GPU gpu-a/0 is lost") }},
		{"fatal XID", send(func(r *nvml.Report) { r.GPUs[0].XIDs = []nvml.XID{{Code: 79, Fatal: true}} }), func() bool { g := f.told(t).GPUs[0]; return len(g.XIDs) == 1 && g.XIDs[0].Fatal }},
	} {
		n.Answer(c.answer)
		stack.Eventually(t, c.name+" in the status", c.seen)
	}
	n.CloseClientConnections()
	n.Listener.Close()
	stack.Eventually(t, "the dead agent in the status", func() bool { return !source().OK })
}

// TestTrafficThroughDriverFaults is the same with the agent that ships, which the
// gateway starts, over a driver's library in C: whatever a driver does, requests
// are answered, and the agent is never ended by the loader.
func TestTrafficThroughDriverFaults(t *testing.T) {
	agent := nvmltest.Agent(t, t.TempDir())
	lib, old := nvmltest.Build(t), nvmltest.Build(t, "OLD")
	absent := lib.Path + ".absent"
	if err := os.Rename(lib.Path, absent); err != nil {
		t.Fatal(err)
	}
	t.Setenv("LD_BIND_NOW", "1") // the agent would not get as far as its main
	pid := filepath.Join(t.TempDir(), "pid")
	local := func(name string, l *nvmltest.Library) string {
		command := fmt.Sprintf(`echo $$ >%s.%s; export %s; exec %s --library %s --interval 50ms --retry 50ms --attempts 3 "$@"`, pid, name, l.Env, agent, l.Path)
		return fmt.Sprintf("  - {name: %s, local: true, every: 100ms, command: [sh, -c, '%s', sh]}\n", name, command)
	}
	f := startGateway(t, startServers(t, nil), stack.Config{GPUs: "here/0", Extra: "gpus:\n" + local("here", lib) + local("old", old)})
	defer f.traffic(t)()
	source := func() nvml.SourceStatus { return f.told(t).Sources[0] }
	gpu := func(is func(g nvml.GPUStatus) bool) func() bool {
		return func() bool {
			gpus := f.told(t).GPUs
			return len(gpus) > 0 && gpus[0].Source == "here" && is(gpus[0])
		}
	}
	well := gpu(func(g nvml.GPUStatus) bool {
		return source().OK && g.State == nvml.StateOK && g.Freshness == "fresh" && *g.Margin == 40
	})
	phase := func(name string, state map[string]int64, seen func() bool) {
		t.Helper()
		lib.Set(t, state)
		stack.Eventually(t, name+" in the status", seen)
	}
	phase("a missing library", nil, func() bool { return strings.Contains(source().Error, "no NVML library") })
	stack.Eventually(t, "the GPU of an old library", func() bool {
		gpus := f.told(t).GPUs
		return len(gpus) == 1 && gpus[0].Source == "old" && gpus[0].State == nvml.StateOK && *gpus[0].Margin == 83-45 && gpus[0].MemoryReserved == nil
	})
	if err := os.Rename(absent, lib.Path); err != nil {
		t.Fatal(err)
	}
	phase("a healthy driver", nil, well)
	phase("a lost GPU", map[string]int64{"0.ret": 15, "0.handle": 15}, gpu(func(g nvml.GPUStatus) bool { return g.State == nvml.StateLost }))
	phase("the GPU", nil, well)
	phase("a hung call", map[string]int64{"0.hang": 1}, gpu(func(g nvml.GPUStatus) bool {
		return g.State == nvml.StateWedged && g.Freshness == "held" && source().OK
	}))
	phase("the GPU", nil, well)
	phase("a fatal XID", map[string]int64{"xid": 79, "xid_number": 1}, gpu(func(g nvml.GPUStatus) bool { return len(g.XIDs) == 1 && g.XIDs[0].Fatal }))
	// What only a new process can cure: the agent ends by itself and is started again.
	phase("an agent that gave up", map[string]int64{"ret": 18, "init": 18}, func() bool { return strings.Contains(f.Log.Text(), "exit status 3") })
	phase("a driver that cannot be initialised", map[string]int64{"init": 9}, func() bool { return strings.Contains(source().Error, "driver not loaded (9)") })
	phase("the new agent", nil, func() bool { return well() && source().Restarts > 0 })
	// What nobody should do: kill the agent.
	raw, err := os.ReadFile(pid + ".here")
	if err != nil {
		t.Fatal(err)
	}
	id, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	restarts := source().Restarts
	child, err := os.FindProcess(id)
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Kill(); err != nil {
		t.Fatal(err)
	}
	stack.Eventually(t, "the next agent", func() bool { return well() && source().Restarts > restarts })
	if strings.Contains(f.Log.Text(), "exit status 127") {
		t.Error("the loader ended the agent")
	}
}

package stack

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"tidegate/nvml"
)

// Node is a stand-in for a tidegate-gpu-agent of one GPU, which is well unless Answer
// changes that. It is safe for concurrent use.
type Node struct {
	*httptest.Server
	Boot   atomic.Int64 // boots of the node so far
	seq    atomic.Uint64
	answer atomic.Pointer[func(w http.ResponseWriter, r *nvml.Report)]
}

// StartNode starts a node that ends with the test.
func StartNode(t *testing.T) *Node {
	t.Helper()
	n := &Node{}
	n.Answer(func(w http.ResponseWriter, r *nvml.Report) { _ = json.NewEncoder(w).Encode(r) }) // the gateway may have left
	n.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		margin, used, total := 35, uint64(132270)<<20, uint64(143771)<<20
		(*n.answer.Load())(w, &nvml.Report{Node: "gpu-a", BootID: fmt.Sprint("boot", n.Boot.Load()), Seq: n.seq.Add(1), GPUs: []nvml.Reading{
			{UUID: "GPU-a", Name: "NVIDIA H200", State: nvml.StateOK, Margin: &margin, Memory: nvml.Memory{MemoryUsed: &used, MemoryTotal: &total}, Reasons: []string{"sw_power_cap"}},
		}})
	}))
	t.Cleanup(n.Close)
	return n
}

// Answer sets how the node answers from now on. r is the report of a GPU that is well.
func (n *Node) Answer(answer func(w http.ResponseWriter, r *nvml.Report)) { n.answer.Store(&answer) }

package stack

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
)

// Replica is a gateway in a process of its own, which can be killed and started again
// with the same configuration and journal.
type Replica struct {
	*Gateway
	Live    atomic.Pointer[string] // URL of the running process; nil: none runs
	Process *exec.Cmd
	Ended   chan int // gets the exit code
	dir     string
	kit     *Kit
}

// StartReplica writes the configuration and starts the process. It is killed when the
// test ends.
func (k *Kit) StartReplica(t *testing.T, s Servers, c Config, client *http.Client) *Replica {
	t.Helper()
	dir := t.TempDir()
	r := &Replica{kit: k, dir: dir, Gateway: &Gateway{Servers: s, Client: client, File: filepath.Join(dir, "tidegate.yaml")}}
	r.Configure(t, c)
	r.Start(t)
	t.Cleanup(func() {
		r.Kill()
		if t.Failed() {
			t.Logf("log of the gateway:\n%s", r.Log)
		}
	})
	return r
}

// Configure writes the configuration file.
func (r *Replica) Configure(t *testing.T, c Config) {
	t.Helper()
	if err := os.WriteFile(r.File, []byte(c.YAML(r.Servers, r.dir)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Start starts a process and returns when all servers are in rotation.
func (r *Replica) Start(t *testing.T) {
	t.Helper()
	r.Process, r.Log, r.Ended = r.kit.StartProcess(t, "serve", "--config", r.File)
	r.Await(t, r.Ended)
	url := r.URL
	r.Live.Store(&url)
}

// Kill ends the process like kill -9 and waits for that.
func (r *Replica) Kill() {
	r.Live.Store(nil)
	_ = r.Process.Process.Kill() // it may be dead
	code := <-r.Ended
	r.Ended <- code
}

package nvml

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// BenchmarkView reads a GPU as the path of a request does, while the monitor
// publishes as fast as it can.
func BenchmarkView(b *testing.B) {
	m := newMonitor()
	m.Replace([]Config{{Name: "a", Agent: "http://a", Every: time.Second}})
	f := m.feeds[0]
	v := m.Watch("a/0")
	publish := func() {
		g := &GPU{Reading: Reading{UUID: "GPU-a", Margin: of(20)}, Source: "a", MeasuredAt: time.Now()}
		m.publish(f, &sample{gpus: []*GPU{g}})
	}
	publish()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				publish()
			}
		}
	}()
	now := time.Now()
	b.ReportAllocs()
	b.ResetTimer()
	fresh := 0
	for b.Loop() {
		if g := v.Load(); g.Freshness(now) == Fresh && *g.Margin > 12 {
			fresh++
		}
	}
	b.StopTimer()
	close(stop)
	<-done
	if fresh == 0 {
		b.Error("nothing was read")
	}
}

// nodes is how many sources the cost is measured for.
const nodes = 500

// manyAgents serves the agents of all nodes, each on a port of its own, in a
// process of their own, so that they cost the monitor nothing. It ends with its
// standard input.
func manyAgents(gpus int) {
	out := bufio.NewWriter(os.Stdout)
	for i := range nodes {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Fprintln(out, l.Addr())
		go http.Serve(l, &fakeAgent{boot: fmt.Sprint("node", i), gpus: gpus})
	}
	out.Flush()
	bufio.NewReader(os.Stdin).ReadByte()
	os.Exit(0)
}

// BenchmarkFleet is the cost of 500 agents at 1 Hz: one operation is ten seconds of
// it. What matters is the share of a core.
func BenchmarkFleet(b *testing.B) {
	for _, gpus := range []int{1, 8} {
		b.Run(fmt.Sprintf("%d-gpus-each", gpus), func(b *testing.B) { fleet(b, gpus) })
	}
}

func fleet(b *testing.B, gpus int) {
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "TIDEGATE_TEST_AGENT=many", "TIDEGATE_TEST_GPUS="+strconv.Itoa(gpus))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	var configs []Config
	lines := bufio.NewScanner(out)
	for len(configs) < nodes && lines.Scan() {
		configs = append(configs, Config{Name: "n" + strconv.Itoa(len(configs)), Agent: "http://" + lines.Text(), Every: time.Second})
	}
	before := runtime.NumGoroutine()
	m := newMonitor()
	m.Replace(configs)
	v := m.Watch(fmt.Sprintf("n499/%d", gpus-1))
	stop := make(chan struct{})
	ctx := b.Context()
	go func() { defer close(stop); m.Run(ctx) }()
	for v.Load() == nil {
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(2 * time.Second) // connections are made
	b.ResetTimer()
	const second = 10
	used, began := cpu(), time.Now()
	for b.Loop() {
		time.Sleep(second * time.Second)
	}
	cores := float64(cpu()-used) / float64(time.Since(began))
	goroutines := runtime.NumGoroutine() - before
	sources, all := m.Status()
	ok, stale := 0, 0
	for _, s := range sources {
		if s.OK {
			ok++
		}
	}
	for _, g := range all {
		if g.Freshness != Fresh.String() {
			stale++
		}
	}
	b.ReportMetric(cores*100, "%core")
	b.ReportMetric(cores*1e6/nodes, "us/question")
	b.ReportMetric(float64(ok), "sources")
	b.ReportMetric(float64(stale), "stale-gpus")
	b.ReportMetric(float64(goroutines), "goroutines")
	if ok != nodes {
		b.Errorf("%d of %d sources answer: %s", ok, nodes, strings.TrimSpace(sources[0].Error))
	}
}

// cpu is the time that this process has computed.
func cpu() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

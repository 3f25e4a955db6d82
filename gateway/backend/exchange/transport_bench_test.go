//go:build unix

package exchange

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	benchEvents = 200 // events of a stream
	benchAnswer = 500 // bytes of an answer in one piece

	benchParallel = 32 // requests under way for each CPU
)

// benchGap is the time between two events: the gateway waits for each, as in production.
const benchGap = 2 * time.Millisecond

// TestBenchServer serves the benchmark from a process of its own, so that the CPU of the
// server is in no figure. It answers a POST to /stream with events that it flushes one by
// one, and any other with an answer in one piece, until its standard input ends.
func TestBenchServer(t *testing.T) {
	if flag.Arg(0) != "serve" {
		t.Skip("for BenchmarkExchange alone")
	}
	answer := []byte(strings.Repeat("x", benchAnswer))
	event := []byte("data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"}}]}\n\n")
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		_, _ = io.Copy(io.Discard, q.Body)
		if q.URL.Path != "/stream" {
			_, _ = w.Write(answer)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		for range benchEvents {
			_, _ = w.Write(event)
			_ = http.NewResponseController(w).Flush()
			time.Sleep(benchGap)
		}
	}))
	defer s.Close()
	fmt.Println(s.URL)
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// startBenchServer starts the server and returns its URL.
func startBenchServer(b *testing.B) string {
	b.Helper()
	c := exec.Command(os.Args[0], "-test.run=^TestBenchServer$", "serve")
	in, err := c.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := c.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		in.Close()
		_ = c.Wait()
	})
	url, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(url)
}

// cpu returns the CPU time of this process.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// benchBody is the body of the requests.
func benchBody() []byte {
	return []byte(`{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("word ", 40) + `"}]}`)
}

// BenchmarkExchange compares the exchange with net/http's Transport, against the same
// server in one run. See docs/adr/0002-own-exchange.md.
func BenchmarkExchange(b *testing.B) {
	url := startBenchServer(b)
	own := clientOf(b, strings.TrimPrefix(url, "http://"))
	transport := &http.Transport{DisableCompression: true}
	b.Cleanup(transport.CloseIdleConnections)
	for _, path := range []string{"/unary", "/stream"} {
		for _, c := range []struct {
			name     string
			exchange func(ctx context.Context) error
		}{
			{"own", func(ctx context.Context) error { return ownExchange(ctx, own, path) }},
			{"transport", func(ctx context.Context) error { return transportExchange(ctx, transport, url, path) }},
		} {
			b.Run(path[1:]+"/"+c.name, func(b *testing.B) {
				b.ReportAllocs()
				b.SetParallelism(benchParallel)
				before := cpu(b)
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if err := c.exchange(b.Context()); err != nil {
							b.Error(err)
							return
						}
					}
				})
				b.ReportMetric(float64(cpu(b)-before)/float64(b.N), "cpu-ns/op")
			})
		}
	}
}

// ownExchange sends one request and reads its answer as the gateway does.
func ownExchange(ctx context.Context, cl client, path string) error {
	q := post()
	q.Path, q.Body, q.Stream = path, benchBody(), path == "/stream"
	a, err := cl.Send(ctx, q)
	if err != nil {
		return err
	}
	defer a.Close()
	if !q.Stream {
		n, err := io.Copy(io.Discard, a)
		if err == nil && n != benchAnswer {
			err = fmt.Errorf("%d bytes", n)
		}
		return err
	}
	buf, events := make([]byte, 4<<10), 0
	err = a.Follow(func() error {
		for {
			n, err := a.Read(buf)
			if k := bytes.Count(buf[:n], []byte("\n\n")); k > 0 {
				events += k
				a.Progress()
			}
			if err != nil {
				return err
			}
		}
	}, func() bool { return true })
	if errors.Is(err, io.EOF) && events == benchEvents {
		return nil
	}
	return fmt.Errorf("%d events: %w", events, err)
}

// transportExchange does the same over net/http's Transport, in the usual way: a context
// with a time limit, and a buffered reader for the events.
func transportExchange(ctx context.Context, transport *http.Transport, url, path string) error {
	ctx, cancel := context.WithTimeout(ctx, post().Limits.Total)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, url+path, bytes.NewReader(benchBody()))
	if err != nil {
		return err
	}
	q.Header.Set("Content-Type", "application/json")
	q.Header.Set("X-Request-Id", "id-1")
	resp, err := transport.RoundTrip(q)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if path != "/stream" {
		n, err := io.Copy(io.Discard, resp.Body)
		if err == nil && n != benchAnswer {
			err = fmt.Errorf("%d bytes", n)
		}
		return err
	}
	events, br := 0, bufio.NewReader(resp.Body)
	for {
		line, err := br.ReadSlice('\n')
		if len(line) == 1 {
			events++
		}
		switch {
		case errors.Is(err, io.EOF) && events == benchEvents:
			return nil
		case err != nil:
			return fmt.Errorf("%d events: %w", events, err)
		}
	}
}

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"

	"tidegate/gateway/gatewaytest/stack"
)

func TestFrontConns(t *testing.T) {
	for descriptors, want := range map[uint64]int{0: 0, 64: 16, 256: 56, 1024: 440, 65536: 32696, 1 << 40: 1<<29 - 72} {
		if got := frontConns(descriptors); got != want {
			t.Errorf("%d descriptors: %d connections, want %d", descriptors, got, want)
		}
	}
}

// scripted is a listener that answers Accept with what a test says.
type scripted struct {
	accept func() (net.Conn, error)
	closed chan struct{}
}

func (s *scripted) Accept() (net.Conn, error) { return s.accept() }
func (s *scripted) Addr() net.Addr            { return &net.TCPAddr{} }
func (s *scripted) Close() error              { close(s.closed); return nil }

// TestSpareListener: where there is no descriptor for a connection, those that are held
// go one by one until there is one, and are taken again when the connection ends.
func TestSpareListener(t *testing.T) {
	for _, full := range []error{syscall.EMFILE, syscall.ENFILE} {
		near, far := net.Pipe()
		defer far.Close()
		inner := &scripted{closed: make(chan struct{})}
		l := newSpareListener(inner)
		var held []int
		inner.accept = func() (net.Conn, error) {
			if held = append(held, len(l.spare)); len(held) < 4 {
				return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", full)}
			}
			return near, nil
		}
		c, err := l.Accept()
		if err != nil || fmt.Sprint(held) != "[8 7 6 5]" {
			t.Fatalf("%v: held %v", err, held)
		}
		c.Close()
		c.Close()
		if len(l.spare) != spareFiles {
			t.Errorf("%d are held after the connection's end", len(l.spare))
		}
		broken := errors.New("broken")
		inner.accept = func() (net.Conn, error) { return nil, broken }
		if _, err := l.Accept(); !errors.Is(err, broken) || len(l.spare) != spareFiles {
			t.Errorf("another error: %v, %d held", err, len(l.spare))
		}
		inner.accept = func() (net.Conn, error) { return nil, full }
		if _, err := l.Accept(); !errors.Is(err, full) || len(l.spare) != 0 {
			t.Errorf("nothing helps: %v, %d held", err, len(l.spare))
		}
		l.refill()
		if l.Close(); len(l.spare) != 0 {
			t.Errorf("%d are held after the end", len(l.spare))
		}
	}
}

// TestLimitListener: connections beyond the bound wait for a place, which is said, and
// the end of the listener ends the wait.
func TestLimitListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := &scripted{closed: make(chan struct{}), accept: func() (net.Conn, error) {
			near, far := net.Pipe()
			far.Close()
			return near, nil
		}}
		said := 0
		l := newLimitListener(inner, 2, func() { said++ })
		first, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Accept(); err != nil || said != 0 {
			t.Fatalf("%v, said %d", err, said)
		}
		third := make(chan error, 1)
		go func() { _, err := l.Accept(); third <- err }()
		synctest.Wait()
		if len(third) != 0 || said != 1 {
			t.Fatalf("the third did not wait; said %d", said)
		}
		first.Close()
		if err := <-third; err != nil {
			t.Fatal(err)
		}
		go func() { _, err := l.Accept(); third <- err }()
		synctest.Wait()
		l.Close()
		if err := <-third; !errors.Is(err, net.ErrClosed) {
			t.Errorf("the wait ended with %v", err)
		}
	})
}

// TestDescriptorFlood fills the table of file descriptors of a gateway that has few of
// them with connections that stay open: operators get in all the same, and once the
// callers go, so do others.
func TestDescriptorFlood(t *testing.T) {
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("no shell to lower the limit with")
	}
	c := exec.CommandContext(t.Context(), shell, "-c", `ulimit -n 160 && exec "$0"`, os.Args[0])
	c.Dir = t.TempDir()
	args := []string{"serve", "--backend", "http://127.0.0.1:1", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0", "--log", "json"}
	c.Env = append(os.Environ(), "TIDEGATE_TEST_MAIN="+strings.Join(args, "\n"))
	j := stack.NewLog()
	c.Stdout, c.Stderr = j, j
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan int, 1)
	go func() {
		c.Wait() // the code says it
		ended <- c.ProcessState.ExitCode()
	}()
	ops, front := j.Address(t, "listening for operators", ended), j.Address(t, "listening", ended)
	var flood []net.Conn
	for range 300 {
		conn, err := net.Dial("tcp", front)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		// After an answer a connection may stay for the next request.
		if _, err := io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: gateway\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		flood = append(flood, conn)
	}
	client := &http.Client{Timeout: stack.Patience, Transport: &http.Transport{DisableKeepAlives: true}}
	ask := func(url string) {
		t.Helper()
		resp, err := client.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %d %s %v", url, resp.StatusCode, body, err)
		}
	}
	for range 5 {
		ask("http://" + ops + "/healthz")
		ask("http://" + ops + "/status")
	}
	stack.Eventually(t, "a word of it in the log", func() bool {
		return strings.Contains(j.Text(), "callers' connections wait")
	})
	for _, conn := range flood {
		conn.Close()
	}
	ask("http://" + front + "/healthz")
	if err := c.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if code := <-ended; code != exitOK {
		t.Errorf("ended with %d", code)
	}
}

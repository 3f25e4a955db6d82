package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// The attacks show what callers can make a gateway hold. Each logs memory and
// goroutines before and under attack and bounds them. TIDEGATE_ATTACKED=PATH attacks
// another binary, so that two versions can be compared by the same script;
// TIDEGATE_SOAK=full makes the attacks as large as docs say.

// attacked starts a gateway of its own process with the settings that it has by default.
func attacked(t *testing.T, s servers, p plan) *replica {
	t.Helper()
	p.usual = true
	return startReplica(t, s, p, soakClient(t))
}

// attackedCommand runs the binary that is to be attacked instead of this one, if one is named.
func attackedCommand(c *exec.Cmd, args []string) {
	if path := os.Getenv("TIDEGATE_ATTACKED"); path != "" {
		c.Path, c.Args = path, append([]string{path}, args...)
	}
}

// holding is what a process holds.
type holding struct{ goroutines, memory int64 } // memory in bytes

func (h holding) String() string {
	return fmt.Sprintf("%d goroutines, %d MiB", h.goroutines, h.memory>>20)
}

// holds asks a gateway what it holds.
func (f *front) holds(t *testing.T) (h holding) {
	t.Helper()
	resp, err := f.client.Get(f.ops + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		for name, into := range map[string]*int64{"go_goroutines ": &h.goroutines, "process_resident_memory_bytes ": &h.memory} {
			if text, ok := strings.CutPrefix(lines.Text(), name); ok {
				n, err := strconv.ParseFloat(text, 64)
				if err != nil {
					t.Fatal(err)
				}
				*into = int64(n)
			}
		}
	}
	return h
}

// hoarder is an HTTP/2 connection that opens streams and takes no body: its windows
// are closed.
type hoarder struct {
	net.Conn
	next    uint32 // id of the next stream
	answers atomic.Int64
	resets  atomic.Int64
	reading sync.WaitGroup
}

// Frames of HTTP/2 (RFC 9113, section 6).
const (
	frameData, frameHeaders, frameReset, frameSettings = 0, 1, 3, 4
	flagEndStream, flagEndHeaders                      = 1, 4
)

// hoard opens a connection that grants streams a window of so many bytes.
func hoard(t *testing.T, url string, window uint32) *hoarder {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	h := &hoarder{Conn: c, next: 1}
	settings := binary.BigEndian.AppendUint32([]byte{0, 4}, window) // SETTINGS_INITIAL_WINDOW_SIZE
	h.write(t, append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), h2Frame(frameSettings, 0, 0, settings)...))
	h.reading.Go(func() {
		in := bufio.NewReader(c)
		for {
			var head [9]byte
			if _, err := io.ReadFull(in, head[:]); err != nil {
				return
			}
			if _, err := in.Discard(int(head[0])<<16 | int(head[1])<<8 | int(head[2])); err != nil {
				return
			}
			switch head[3] {
			case frameHeaders:
				h.answers.Add(1)
			case frameReset:
				h.resets.Add(1)
			}
		}
	})
	t.Cleanup(func() {
		c.Close()
		h.reading.Wait()
	})
	return h
}

func (h *hoarder) write(t *testing.T, p []byte) {
	t.Helper()
	if _, err := h.Write(p); err != nil {
		t.Fatal(err)
	}
}

// request opens a stream. A body is sent whole.
func (h *hoarder) request(t *testing.T, path, key, body string) {
	t.Helper()
	method, flags := byte(0x82), byte(flagEndHeaders|flagEndStream)
	if body != "" {
		method, flags = 0x83, flagEndHeaders
	}
	text := func(s string) []byte { return append([]byte{byte(len(s))}, s...) }
	block := bytes.Join([][]byte{{method, 0x86}, {0x04}, text(path), {0x01}, text("x")}, nil) // HPACK, RFC 7541 appendix A
	if key != "" {
		block = bytes.Join([][]byte{block, {0x0f, 8}, text("Bearer " + key), {0x0f, 16}, text("application/json")}, nil)
	}
	out := h2Frame(frameHeaders, flags, h.next, block)
	if body != "" {
		out = append(out, h2Frame(frameData, flagEndStream, h.next, []byte(body))...)
	}
	h.next += 2
	h.write(t, out)
}

func h2Frame(kind, flags byte, stream uint32, payload []byte) []byte {
	n := len(payload)
	out := []byte{byte(n >> 16), byte(n >> 8), byte(n), kind, flags}
	return append(binary.BigEndian.AppendUint32(out, stream), payload...)
}

// TestUnreadRefusals opens streams without a key whose refusals it never reads.
func TestUnreadRefusals(t *testing.T) {
	f := attacked(t, startServers(t, nil), plan{})
	before := f.holds(t)
	conns, streams := length(20, 100), 250
	var all []*hoarder
	for range conns {
		h := hoard(t, f.front.url, 0)
		for range streams {
			h.request(t, "/v1/models", "", "")
		}
		all = append(all, h)
	}
	eventually(t, "each stream to be answered or cut", func() bool {
		for _, h := range all {
			if h.answers.Load()+h.resets.Load() < int64(streams) {
				return false
			}
		}
		return true
	})
	under := f.holds(t)
	t.Logf("%d connections of %d unread refusals: %v before, %v under attack", conns, streams, before, under)
	if most := before.goroutines + int64(conns)*16; under.goroutines > most {
		t.Errorf("%d goroutines, expected %d at most", under.goroutines, most)
	}
}

// TestUnreadAnswersHoldNoPlace leaves as many whole answers unread as there are places.
func TestUnreadAnswersHoldNoPlace(t *testing.T) {
	const places = 4 // of each server
	s := startServers(t, nil)
	f := startGateway(t, s, plan{usual: true, each: fmt.Sprintf(", max_in_flight: %d", places), more: "queue: {max_wait: 2s}\n"})
	h := hoard(t, f.url, 0)
	for range places {
		h.request(t, "/v1/chat/completions", adaKey, chat(smallModel, 1500, ""))
	}
	eventually(t, "the server to have answered", func() bool {
		now := s[2].Stats()
		return now.Requests >= places && now.Running == 0
	})
	resp, err := f.post(t.Context(), "/v1/chat/completions", chat(smallModel, 8, ""))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("unread answers hold every place: %d", resp.StatusCode)
	}
	f.idle(t) // while nobody has read them
}

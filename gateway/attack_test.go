package gateway_test

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

	"tidegate/gateway/gatewaytest"
	"tidegate/gateway/gatewaytest/stack"
)

// The attacks show what callers can make a gateway hold. Each logs memory and
// goroutines before and under attack and bounds them. TIDEGATE_ATTACKED=PATH attacks
// another binary, so that two versions can be compared by the same script;
// TIDEGATE_SOAK=full makes the attacks as large as docs say.

// attacked starts a gateway of its own process with the settings that it has by default.
func attacked(t *testing.T, s stack.Servers, p stack.Config) *replica {
	t.Helper()
	p.DefaultServer = true
	return startReplica(t, s, p, stack.NewClient(t))
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
	resp, err := f.Client.Get(f.Ops + "/metrics")
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
	f := attacked(t, startServers(t, nil), stack.Config{})
	before := f.front.holds(t)
	conns, streams := length(20, 100), 250
	var all []*hoarder
	for range conns {
		h := hoard(t, f.front.URL, 0)
		for range streams {
			h.request(t, "/v1/models", "", "")
		}
		all = append(all, h)
	}
	stack.Eventually(t, "each stream to be answered or cut", func() bool {
		for _, h := range all {
			if h.answers.Load()+h.resets.Load() < int64(streams) {
				return false
			}
		}
		return true
	})
	under := f.front.holds(t)
	t.Logf("%d connections of %d unread refusals: %v before, %v under attack", conns, streams, before, under)
	if most := before.goroutines + int64(conns)*16; under.goroutines > most {
		t.Errorf("%d goroutines, expected %d at most", under.goroutines, most)
	}
}

// TestUnreadAnswersHoldNoPlace leaves as many whole answers unread as there are places.
func TestUnreadAnswersHoldNoPlace(t *testing.T) {
	const places = 4 // of each server
	s := startServers(t, nil)
	f := startGateway(t, s, stack.Config{DefaultServer: true, Backend: fmt.Sprintf(", max_in_flight: %d", places), Extra: "queue: {max_wait: 2s}\n"})
	h := hoard(t, f.URL, 0)
	for range places {
		h.request(t, "/v1/chat/completions", stack.AdaKey, stack.Chat(stack.SmallModel, 1500, ""))
	}
	stack.Eventually(t, "the server to have answered", func() bool {
		now := s[2].Stats()
		return now.Requests >= places && now.Running == 0
	})
	resp, err := f.Post(t.Context(), "/v1/chat/completions", stack.Chat(stack.SmallModel, 8, ""))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("unread answers hold every place: %d", resp.StatusCode)
	}
	f.Idle(t) // while nobody has read them
}

// mebi is a MiB.
const mebi = 1 << 20

// upload sends the head and n bytes of a larger body, and reports whether the gateway
// took them all.
func upload(url, path, start string, n int) (c net.Conn, whole bool, err error) {
	if c, err = net.Dial("tcp", strings.TrimPrefix(url, "http://")); err != nil {
		return nil, false, err
	}
	text := head("POST", path, "Content-Type: application/json", "Authorization: Bearer "+stack.AdaKey, fmt.Sprint("Content-Length: ", 8*mebi)) + start
	if _, err = io.WriteString(c, text); err == nil {
		_, err = io.Copy(c, io.LimitReader(repeated('x'), int64(n-len(start))))
	}
	return c, err == nil, nil // a refused body is not read to its end
}

// repeated is an endless text of one letter.
type repeated byte

func (r repeated) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(r)
	}
	return len(p), nil
}

// TestUnfinishedBodies sends many large bodies but their last byte.
func TestUnfinishedBodies(t *testing.T) {
	f := attacked(t, startServers(t, nil), stack.Config{})
	before := f.front.holds(t)
	var (
		mu    sync.Mutex
		conns []net.Conn
		taken int
		all   sync.WaitGroup
	)
	bodies := length(40, 100)
	for range bodies {
		all.Go(func() {
			c, whole, err := upload(f.front.URL, "/v1/chat/completions", `{"model":"`, 8*mebi-1)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			conns = append(conns, c)
			if whole {
				taken++
			}
		})
	}
	all.Wait()
	under := f.front.holds(t)
	for _, c := range conns {
		c.Close()
	}
	t.Logf("%d unfinished bodies of 8 MiB: %v before, %v under attack", bodies, before, under)
	if most := int64(240 * mebi); under.memory-before.memory > most {
		t.Errorf("they take %d MiB, expected %d at most", (under.memory-before.memory)/mebi, most/mebi)
	}
}

// TestWaitingBodies lets bodies of mostly white space wait for a place.
func TestWaitingBodies(t *testing.T) {
	s := startServers(t, func(o *gatewaytest.Options) { o.TTFT = stack.Patience })
	f := attacked(t, s, stack.Config{Backend: ", max_in_flight: 1", Extra: "queue: {max_wait: 60s}\n"})
	before := f.front.holds(t)
	bodies := length(40, 100)
	start := strings.TrimSuffix(stack.Chat(stack.SmallModel, 8, ""), "}")
	for i := range bodies {
		c, err := net.Dial("tcp", strings.TrimPrefix(f.front.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		blanks := io.LimitReader(repeated(' '), int64(8*mebi-len(start)-1))
		text := head("POST", "/v1/chat/completions", "Content-Type: application/json", "Authorization: Bearer "+stack.AdaKey, fmt.Sprint("Content-Length: ", 8*mebi)) + start
		if _, err := io.Copy(c, io.MultiReader(strings.NewReader(text), blanks, strings.NewReader("}"))); err != nil {
			t.Fatal(err)
		}
		stack.Eventually(t, "the request to wait", func() bool {
			return strings.Contains(f.StatusPage(t), fmt.Sprintf(`"standard": %d`, i)) // the first has the place
		})
	}
	under := f.front.holds(t)
	t.Logf("%d bodies of 8 MiB wait: %v before, %v under attack", bodies, before, under)
	if most := int64(160 * mebi); under.memory-before.memory > most {
		t.Errorf("they take %d MiB, expected %d at most", (under.memory-before.memory)/mebi, most/mebi)
	}
}

// TestUnreadTokens asks for the tokens of large texts and reads none of the answers.
func TestUnreadTokens(t *testing.T) {
	f := attacked(t, startServers(t, nil), stack.Config{})
	before := f.front.holds(t)
	asked := length(8, 20)
	text := `{"prompt":"` + strings.Repeat("x 1", (8*mebi-16)/3) + `"}`
	var (
		all    sync.WaitGroup
		served atomic.Int64
	)
	for range asked {
		c, err := net.Dial("tcp", strings.TrimPrefix(f.front.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		all.Go(func() {
			_, _ = io.WriteString(c, head("POST", "/tokenize", "Content-Type: application/json", "Authorization: Bearer "+stack.AdaKey, fmt.Sprint("Content-Length: ", len(text)))+text) // may be refused midway
			status := make([]byte, len("HTTP/1.1 200"))
			if _, err := io.ReadFull(c, status); err == nil && bytes.HasSuffix(status, []byte("200")) {
				served.Add(1)
			}
		})
	}
	all.Wait()
	under := f.front.holds(t)
	t.Logf("%d unread answers of /tokenize, %d of them good: %v before, %v under attack", asked, served.Load(), before, under)
	if most := int64(320 * mebi); under.memory-before.memory > most {
		t.Errorf("they take %d MiB, expected %d at most", (under.memory-before.memory)/mebi, most/mebi)
	}
}

package gatewaytest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/tidwall/gjson"
	"go.uber.org/goleak"

	"tidegate/gateway/gatewaytest/schematest"
	"tidegate/nvml/poll"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is a server with a client that leaves nothing behind.
type bench struct {
	*Running
	t      *testing.T
	client *http.Client
}

func start(t *testing.T, edit func(*Options)) *bench {
	t.Helper()
	o := Default()
	if edit != nil {
		edit(&o)
	}
	r := Start(t, o)
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	t.Cleanup(transport.CloseIdleConnections)
	return &bench{Running: r, t: t, client: &http.Client{Transport: transport}}
}

// ask posts a body and returns the response, open.
func (b *bench) ask(ctx context.Context, path, body string, header ...string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.URL+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return b.client.Do(req)
}

// post returns status and body of an answer that is not streamed, checked
// against OpenAI's schemas.
func (b *bench) post(path, body string, header ...string) (int, gjson.Result) {
	b.t.Helper()
	resp, err := b.ask(b.t.Context(), path, body, header...)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	def := map[string]string{"/v1/chat/completions": "CreateChatCompletionResponse", "/v1/completions": "CreateCompletionResponse"}[path]
	if resp.StatusCode != http.StatusOK {
		def = "ErrorResponse"
	}
	if def != "" {
		check(b.t, def, raw)
	}
	return resp.StatusCode, gjson.ParseBytes(raw)
}

func check(t *testing.T, def string, body []byte) {
	t.Helper()
	s, err := schematest.NewSchemas()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Check(def, body); err != nil {
		t.Error(err)
	}
}

// transcript is a stream, read to its end.
type transcript struct {
	chunks []gjson.Result
	raw    string
	done   bool // [DONE] came
	err    error
}

// stream reads a whole stream and checks each chunk against the schema.
func (b *bench) stream(path, body string, header ...string) transcript {
	b.t.Helper()
	resp, err := b.ask(b.t.Context(), path, body, header...)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		raw, _ := io.ReadAll(resp.Body)
		b.t.Fatalf("status %d: %s", resp.StatusCode, raw)
	}
	if got := resp.Header.Get("Content-Type"); got != "text/event-stream; charset=utf-8" {
		b.t.Errorf("content-type %q", got)
	}
	s := readEvents(resp.Body)
	def := "CreateChatCompletionStreamResponse"
	if path == "/v1/completions" {
		def = "CreateCompletionResponse"
	}
	schemas, err := schematest.NewSchemas()
	if err != nil {
		b.t.Fatal(err)
	}
	for _, c := range s.chunks {
		d := def
		if c.Get("error").Exists() {
			d = "ErrorResponse"
		}
		if err := schemas.Check(d, []byte(c.Raw)); err != nil {
			b.t.Error(err)
		}
	}
	return s
}

func readEvents(r io.Reader) transcript {
	var s transcript
	var raw bytes.Buffer
	lines := bufio.NewScanner(io.TeeReader(r, &raw))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		payload, ok := strings.CutPrefix(lines.Text(), "data: ")
		switch {
		case !ok:
		case payload == "[DONE]":
			s.done = true
		default:
			s.chunks = append(s.chunks, gjson.Parse(payload))
		}
	}
	s.raw, s.err = raw.String(), lines.Err()
	return s
}

// joined is what a client makes of the deltas of one choice.
func (s transcript) joined(index int64, field string) string {
	var b strings.Builder
	for _, c := range s.chunks {
		for _, ch := range c.Get("choices").Array() {
			if ch.Get("index").Int() == index {
				b.WriteString(ch.Get(field).String())
			}
		}
	}
	return b.String()
}

func (s transcript) finish(index int64) string {
	for _, c := range s.chunks {
		for _, ch := range c.Get("choices").Array() {
			if ch.Get("index").Int() == index && ch.Get("finish_reason").String() != "" {
				return ch.Get("finish_reason").String()
			}
		}
	}
	return ""
}

func (s transcript) last() gjson.Result { return s.chunks[len(s.chunks)-1] }

// chat is a request body: a user message and further keys.
func chat(text, more string) string {
	quoted, err := json.Marshal(text)
	if err != nil {
		panic(err)
	}
	if more != "" {
		more = "," + more
	}
	return `{"model":"Qwen3-1.7B","messages":[{"role":"user","content":` + string(quoted) + `}]` + more + `}`
}

const usage = `"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}`

// record waits for the record of a request id.
func (b *bench) record(id string) Record {
	b.t.Helper()
	var found Record
	poll.Await(b.t, "record of "+id, func() bool {
		for _, r := range b.Requests() {
			if r.ID == id {
				found = r
				return true
			}
		}
		return false
	})
	return found
}

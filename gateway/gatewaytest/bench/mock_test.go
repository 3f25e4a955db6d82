package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"tidegate/nvml/poll"
)

func startMock(t *testing.T, b Behaviour) (*Mock, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := NewMock(b)
	go s.Serve(l)
	t.Cleanup(func() { l.Close() })
	return s, "http://" + l.Addr().String()
}

// client is the standard library's, the judge of the hand-written HTTP.
func client(t *testing.T) *http.Client {
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func post(t *testing.T, ctx context.Context, client *http.Client, url, body string) *http.Response {
	t.Helper()
	req, _ := http.NewRequestWithContext(ctx, "POST", url, io.MultiReader(strings.NewReader(body))) // hides the length: chunked
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func TestMockAnswers(t *testing.T) {
	s, url := startMock(t, DefaultBehaviour())
	one := client(t)
	for range 3 { // keep-alive must survive
		resp := post(t, t.Context(), one, url+"/v1/chat/completions", `{"model":"m","messages":[{"role":"user","content":"say \"stream\": true"}]}`)
		var got struct {
			Choices []struct{ Message struct{ Content string } }
			Usage   struct {
				Total int `json:"total_tokens"`
			}
		}
		if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
			t.Fatal(err)
		}
		if len(got.Choices[0].Message.Content) != 400 || got.Usage.Total == 0 {
			t.Fatalf("unexpected answer: %+v", got)
		}
		io.Copy(io.Discard, resp.Body)
	}
	// A completion is counted just after it was written.
	poll.Await(t, "the expected state", func() bool { return s.Stats().Finished == 3 && s.Stats().Conns == 1 })
}

func TestMockStreamHasUsageAndDone(t *testing.T) {
	b := DefaultBehaviour()
	b.Chunks = 7
	_, url := startMock(t, b)
	resp := post(t, t.Context(), client(t), url+"/v1/chat/completions", `{"stream" : true,"stream_options":{"include_usage":true}}`)
	var data []string
	sc := bufio.NewScanner(resp.Body)
	for sc.Scan() {
		if d, ok := strings.CutPrefix(sc.Text(), "data: "); ok {
			data = append(data, d)
		}
	}
	if sc.Err() != nil || len(data) != 1+7+2 || data[9] != "[DONE]" || !strings.Contains(data[8], `"usage":{`) {
		t.Fatalf("err %v, events %q", sc.Err(), data)
	}
	for _, d := range data[:9] {
		if !json.Valid([]byte(d)) {
			t.Fatalf("not JSON: %s", d)
		}
	}
}

func TestMockSeesAbortDuringPause(t *testing.T) {
	b := DefaultBehaviour()
	b.Delay = time.Minute
	s, url := startMock(t, b)
	ctx, cancel := context.WithCancel(t.Context())
	resp := post(t, ctx, client(t), url+"/v1/chat/completions", `{"stream":true}`)
	io.ReadFull(resp.Body, make([]byte, 10))
	cancel()
	poll.Await(t, "the expected state", func() bool { return s.Stats().Aborted == 1 })
}

func TestMockConfigChangesBehaviour(t *testing.T) {
	_, url := startMock(t, DefaultBehaviour())
	if resp := post(t, t.Context(), client(t), url+"/mock/config?status=503", ""); resp.StatusCode != 200 {
		t.Fatal(resp.Status)
	}
	if resp := post(t, t.Context(), client(t), url+"/v1/chat/completions", `{"stream":true}`); resp.StatusCode != 503 {
		t.Fatal(resp.Status)
	}
	if resp := post(t, t.Context(), client(t), url+"/mock/config?chunks=-1", ""); resp.StatusCode != 400 {
		t.Fatal(resp.Status)
	}
}

package gateway

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"tidegate/gateway/openai"
)

// cutStream answers with the begin of a stream, which states no usage, and breaks off.
func cutStream(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "text/event-stream")
	fmt.Fprint(w, `data: {"id":"x","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}`+"\n\n")
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

// TestRecordedOnce: a request is entered into the ledger and counted once, though its end
// is seen by the sender and by finish; one whose stream was cut before the engine stated
// anything is charged its prompt.
func TestRecordedOnce(t *testing.T) {
	const request = `{"model":"m","max_tokens":7,"stream":%v,"messages":[{"role":"user","content":"Hi"}]}`
	for name, c := range map[string]struct {
		backend http.HandlerFunc
		stream  bool
		want    openai.Usage
	}{
		"a whole answer": {func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, `{"id":"x","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"Hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11}}`)
		}, false, openai.Usage{Input: 9, Output: 2}},
		"a stream that is cut": {cutStream, true, openai.Usage{Input: 9}},
	} {
		t.Run(name, func(t *testing.T) {
			g, _ := behind(t, c.backend, nil)
			got := generateOne(context.Background(), g, openai.Chat, fmt.Sprintf(request, c.stream))
			if got.outcome.usage.Input != c.want.Input || got.outcome.usage.Output != c.want.Output || !got.outcome.charged {
				t.Errorf("charged %v: %+v, %v", got.outcome.charged, got.outcome.usage, got.err)
			}
			series := gathered(t, g.gatherers())
			for direction, want := range map[string]int{"input": c.want.Input, "output": c.want.Output} {
				if n := series["tidegate_tokens_total{direction="+direction+",model=m}"]; n != float64(want) {
					t.Errorf("%v %s tokens were counted, expected %d", n, direction, want)
				}
			}
			if n := series["tidegate_request_tokens{direction=input,model=m}"]; n != 1 {
				t.Errorf("%v requests were counted, expected 1", n)
			}
		})
	}
}

// TestKeepAliveBeforeTheAnswer: who was sent keep-alives under an id gets its answer under
// that id, and the first of them alone opens the stream.
func TestKeepAliveBeforeTheAnswer(t *testing.T) {
	g, _ := bare(t, nil)
	recorder := httptest.NewRecorder()
	c := g.newCall(deadlines{recorder}, httptest.NewRequest(http.MethodPost, "/", nil), "/")
	w := &c.writer
	w.door, w.attempt, w.model = newDoor(openai.Chat), "1", "m"
	late := c.began.Add(w.keepAlive.Silence)
	if next, due := w.keepAliveDue(c.began); due || next != w.keepAlive.Silence {
		t.Errorf("due at once, %v", next)
	}
	if next := w.sendKeepAlive(c.began, false); next != w.keepAlive.Silence || recorder.Body.Len() > 0 {
		t.Errorf("kept alive before it was due: %v, %q", next, recorder.Body)
	}
	if next := w.sendKeepAlive(late, false); next != w.keepAlive.Every || w.begun != "chatcmpl-1" || !w.sent || !w.kept {
		t.Errorf("%v, begun %q, sent %v", next, w.begun, w.sent)
	}
	first := recorder.Body.String()
	w.lastWrite = c.began
	w.sendKeepAlive(late.Add(w.keepAlive.Every), false)
	if second := recorder.Body.String()[len(first):]; first == second || second == "" {
		t.Errorf("first %q, second %q", first, second)
	}
	if err := w.writeEvents([]byte("data: x\n\n")); err != nil || w.kept {
		t.Errorf("%v, kept %v", err, w.kept)
	}
}

// TestLevelHeadersOfAnswer: the level is in the head once, and what is set after the head
// has been sent stays for the log alone.
func TestLevelHeadersOfAnswer(t *testing.T) {
	g, _ := bare(t, nil)
	recorder := httptest.NewRecorder()
	w := &g.newCall(recorder, httptest.NewRequest(http.MethodPost, "/", nil), "/").writer
	w.setLevel(1, "queue")
	w.setLevel(0, "")
	if h := recorder.Header(); h.Get("X-Tidegate-Level") != "L0" || h.Get("X-Tidegate-Reason") != "none" || len(h["X-Tidegate-Level"]) != 1 {
		t.Errorf("%v", recorder.Header())
	}
	w.sendHead()
	w.setLevel(3, "kv_cache")
	if h := recorder.Header(); h.Get("X-Tidegate-Level") != "L0" || w.level != 3 || w.reason != "kv_cache" {
		t.Errorf("%v, %v for %s", recorder.Header(), w.level, w.reason)
	}
}

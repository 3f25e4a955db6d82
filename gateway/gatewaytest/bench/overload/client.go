package overload

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/tidwall/gjson"
)

// Tenant is a user with a key of a tier.
type Tenant struct {
	Name, Tier, Key string
}

// Request is one request of a run.
type Request struct {
	Row
	Number int
	Tenant *Tenant
	Stream bool
	Plain  bool // without thinking, by the caller's wish
}

// Outcome is the result of a request, as its caller saw it.
type Outcome struct {
	*Request
	Sent   time.Time
	First  time.Time // the first content or reasoning; of an answer without stream, its end
	Last   time.Time // the latest
	Ended  time.Time
	Engine time.Time // the engine's first token

	Status int    // 0: there was no answer
	Code   string // of an error
	Level  string // x-tidegate-level; none counts as L0
	Reason string // x-tidegate-reason
	Model  string // in the body
	ID     string // in the body
	Finish string
	Events int  // with content or reasoning
	Tokens int  // of the answer with its thinking, as usage says
	Text   bool // there was content, not only reasoning
	Whole  bool // the answer came to its proper end
	Err    error
}

// Client sends requests to a gateway, each once.
type Client struct {
	URL     string
	Timeout time.Duration // for a whole answer
	HTTP    *http.Client
}

// NewClient makes a client; its Close drops idle connections.
func NewClient(url string, timeout time.Duration) *Client {
	t := &http.Transport{MaxIdleConnsPerHost: 4096, IdleConnTimeout: time.Minute}
	return &Client{URL: url, Timeout: timeout, HTTP: &http.Client{Transport: t}}
}

// Close drops idle connections.
func (c *Client) Close() { c.HTTP.CloseIdleConnections() }

// Do sends a request and reads the answer to its end, the timeout or the end of ctx.
// seen, if not nil, is called at each event that has content or reasoning.
func (c *Client) Do(ctx context.Context, r *Request, seen func(now time.Time)) *Outcome {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	o := &Outcome{Request: r, Sent: time.Now(), Level: "L0"}
	o.Err = c.do(ctx, o, seen)
	o.Ended = time.Now()
	return o
}

func (c *Client) do(ctx context.Context, o *Outcome, seen func(time.Time)) error {
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, c.URL+"/v1/chat/completions", strings.NewReader(o.body()))
	if err != nil {
		return err
	}
	q.Header.Set("Content-Type", "application/json")
	q.Header.Set("Authorization", "Bearer "+o.Tenant.Key)
	resp, err := c.HTTP.Do(q)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	o.Status = resp.StatusCode
	if level := resp.Header.Get("X-Tidegate-Level"); level != "" {
		o.Level = level
	}
	o.Reason = resp.Header.Get("X-Tidegate-Reason")
	if !o.Stream || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		raw, err := io.ReadAll(resp.Body)
		if err == nil {
			o.whole(raw)
		}
		return err
	}
	return o.stream(resp.Body, seen)
}

// whole reads an answer that is no stream, or an error.
func (o *Outcome) whole(raw []byte) {
	v := gjson.ParseBytes(raw)
	if v.Get("error").Exists() {
		o.fault(v.Get("error"))
		return
	}
	o.First = time.Now()
	o.Last = o.First
	m := v.Get("choices.0.message")
	o.Text = m.Get("content").String() != ""
	o.Model, o.ID, o.Finish = v.Get("model").String(), v.Get("id").String(), v.Get("choices.0.finish_reason").String()
	o.Tokens = int(v.Get("usage.completion_tokens").Int())
	o.Whole = o.Finish != ""
}

func (o *Outcome) fault(e gjson.Result) {
	if o.Code = e.Get("code").String(); o.Code == "" {
		o.Code = e.Get("type").String()
	}
}

func (o *Outcome) stream(body io.Reader, seen func(time.Time)) error {
	r := bufio.NewReaderSize(body, 64<<10)
	for {
		line, err := r.ReadBytes('\n')
		if data, ok := bytes.CutPrefix(line, []byte("data: ")); ok {
			o.event(bytes.TrimSpace(data), seen)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (o *Outcome) event(data []byte, seen func(time.Time)) {
	if string(data) == "[DONE]" {
		o.Whole = o.Finish != ""
		return
	}
	v := gjson.ParseBytes(data)
	if e := v.Get("error"); e.Exists() {
		o.fault(e)
		return
	}
	if m := v.Get("model").String(); m != "" {
		o.Model, o.ID = m, v.Get("id").String()
	}
	if f := v.Get("choices.0.finish_reason").String(); f != "" {
		o.Finish = f
	}
	if n := v.Get("usage.completion_tokens").Int(); n > 0 {
		o.Tokens = int(n)
	}
	d := v.Get("choices.0.delta")
	text := d.Get("content").String() != ""
	if !text && d.Get("reasoning").String() == "" && d.Get("reasoning_content").String() == "" {
		return // a role, a keep-alive, the end
	}
	o.Text = o.Text || text
	o.Last = time.Now()
	if o.Events++; o.First.IsZero() {
		o.First = o.Last
	}
	if seen != nil {
		seen(o.Last)
	}
}

// Replay sends requests when they are due after start, whatever became of those
// before, and returns when all have ended. When ctx ends nothing more is sent;
// requests under way still get their time.
func (c *Client) Replay(ctx context.Context, start time.Time, requests []*Request) []*Outcome {
	var (
		mu       sync.Mutex
		outcomes []*Outcome
		open     sync.WaitGroup
	)
	for _, r := range requests {
		if !waitUntil(ctx, start.Add(r.Offset)) {
			break
		}
		open.Go(func() {
			o := c.Do(context.WithoutCancel(ctx), r, nil)
			mu.Lock()
			defer mu.Unlock()
			outcomes = append(outcomes, o)
		})
	}
	open.Wait()
	return outcomes
}

// waitUntil waits for a time and reports whether it came before ctx ended.
func waitUntil(ctx context.Context, deadline time.Time) bool {
	t := time.NewTimer(time.Until(deadline))
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

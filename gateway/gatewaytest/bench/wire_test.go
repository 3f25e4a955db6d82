package bench

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func dial(t *testing.T, h http.HandlerFunc) (*Conn, Target) {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	target, err := ParseTarget(srv.URL + "/v1/x")
	if err != nil {
		t.Fatal(err)
	}
	c := NewConn(target, 5*time.Second)
	t.Cleanup(c.Close)
	return c, target
}

func TestPlainAnswersKeepTheConnection(t *testing.T) {
	c, target := dial(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.URL.Path != "/v1/x" || string(body) != "hello" {
			w.WriteHeader(400)
		}
		if r.URL.RawQuery != "chunked" {
			w.Header().Set("Content-Length", "9000")
		}
		io.WriteString(w, strings.Repeat("x", 9000))
	})
	chunked := target
	chunked.Path += "?chunked"
	for _, req := range [][]byte{target.Request("POST", []byte("hello")), chunked.Request("POST", []byte("hello"))} {
		for range 2 {
			resp, err := c.Do(req, nil)
			if err != nil || resp.Status != 200 || resp.Bytes != 9000 {
				t.Fatalf("%+v %v", resp, err)
			}
		}
	}
	if c.Dials != 1 {
		t.Fatalf("dialled %d times", c.Dials)
	}
}

// sse sends five events, each when the one before was seen.
func sse(seen <-chan struct{}) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for range 5 {
			fmt.Fprintf(w, ": comment\ndata: {\"x\":%q}\n\n", strings.Repeat("y", 6000)) // longer than the buffer
			w.(http.Flusher).Flush()
			select {
			case <-seen:
			case <-r.Context().Done():
				return
			}
		}
		io.WriteString(w, "data: {\"choices\":[],\"usage\":{\"total_tokens\":3}}\n\ndata: [DONE]\n\n")
	}
}

func TestStreamIsCountedAsItArrives(t *testing.T) {
	seen := make(chan struct{}, 7)
	c, target := dial(t, sse(seen))
	var gaps int
	ev := Events{OnEvent: func(_ time.Time, gap time.Duration) {
		if gap > 0 {
			gaps++
		}
		seen <- struct{}{}
	}}
	resp, err := c.Do(target.Request("POST", nil), &ev)
	if err != nil || !resp.Stream || ev.N != 7 || !ev.Done || !ev.Usage || gaps != 6 {
		t.Fatalf("%+v %+v %v", resp, ev, err)
	}
}

func TestStopClosesTheConnection(t *testing.T) {
	seen := make(chan struct{}, 1)
	seen <- struct{}{}
	c, target := dial(t, sse(seen))
	if _, err := c.Do(target.Request("POST", nil), &Events{StopAt: 2}); !errors.Is(err, ErrStopped) {
		t.Fatal(err)
	}
	if c.nc != nil {
		t.Fatal("the connection is still open")
	}
}

func TestTruncatedBodyIsAnError(t *testing.T) {
	c, target := dial(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "10")
		io.WriteString(w, "short")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	if _, err := c.Do(target.Request("POST", nil), nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatal(err)
	}
}

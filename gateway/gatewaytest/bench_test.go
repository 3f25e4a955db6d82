package gatewaytest

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// flushed is a recorder that throws away what it gets.
type flushed struct{ *httptest.ResponseRecorder }

func (f flushed) Write(b []byte) (int, error) { return len(b), nil }
func (f flushed) Flush()                      {}

// BenchmarkStream is what one streamed answer of 64 tokens costs the machine:
// to be taken off what a benchmark of a gateway shows.
func BenchmarkStream(b *testing.B) {
	s, err := New(Default())
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	body := chat("What is the weight of an empty cart?", usage+`,"sim":{"tokens":64}`)
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequestWithContext(b.Context(), http.MethodPost, chatPath, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		s.ServeHTTP(flushed{httptest.NewRecorder()}, r)
	}
}

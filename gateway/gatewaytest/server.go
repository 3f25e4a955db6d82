package gatewaytest

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tidegate/gateway/qwen"
)

// Server is one simulated vLLM server.
type Server struct {
	options   Options
	release   release
	tokenizer *qwen.Tokenizer
	filler    fillers
	engine    *engine
	faults    *faults
	log       *requestLog
	mux       *http.ServeMux
	control   *http.ServeMux
	net       network
	started   time.Time
	sleep     atomic.Int32 // 0 awake, else the level
	inFlight  atomic.Int64 // HTTP requests to generation routes, for /load
	closing   chan struct{}
	closeOnce sync.Once
}

// New checks the options and loads the vocabulary; it starts nothing.
func New(o Options) (*Server, error) {
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("gatewaytest: %w", err)
	}
	if o.Tokenizer == nil {
		t, err := qwen.New()
		if err != nil {
			return nil, fmt.Errorf("gatewaytest: load the tokenizer: %w", err)
		}
		o.Tokenizer = t
	}
	rel, err := parseRelease(o.Version)
	if err != nil {
		return nil, fmt.Errorf("gatewaytest: %w", err)
	}
	s := &Server{
		options:   o,
		release:   rel,
		tokenizer: o.Tokenizer,
		filler:    newFillers(o.Tokenizer),
		engine:    newEngine(o),
		faults:    newFaults(o.Seed),
		log:       newRequestLog(),
		started:   time.Now(),
		closing:   make(chan struct{}),
	}
	s.mux = s.routes()
	s.control = s.controlRoutes()
	return s, nil
}

func (s *Server) routes() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/chat/completions", s.generation(s.parseChat))
	mux.HandleFunc("POST /v1/completions", s.generation(s.parseCompletion))
	mux.HandleFunc("GET /v1/models", s.models)
	mux.HandleFunc("POST /tokenize", s.tokenize)
	mux.HandleFunc("POST /detokenize", s.detokenize)
	mux.HandleFunc("GET /health", s.health)
	mux.HandleFunc("GET /ping", s.health)
	mux.HandleFunc("POST /ping", s.health)
	mux.HandleFunc("GET /version", s.version)
	mux.HandleFunc("GET /load", s.load)
	mux.HandleFunc("GET /metrics", s.metrics)
	mux.HandleFunc("POST /sleep", s.fallAsleep)
	mux.HandleFunc("POST /wake_up", s.wakeUp)
	mux.HandleFunc("GET /is_sleeping", s.isSleeping)
	return mux
}

// ServeHTTP serves the vLLM surface.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.options.APIKey != "" && strings.HasPrefix(r.URL.Path, "/v1") &&
		r.Header.Get("Authorization") != "Bearer "+s.options.APIKey {
		writeJSON(w, http.StatusUnauthorized, []byte(`{"error":"Unauthorized"}`))
		return
	}
	if _, pattern := s.mux.Handler(r); pattern == "" {
		s.noRoute(w, r)
		return
	}
	s.mux.ServeHTTP(w, r)
}

// noRoute answers in Starlette's shape, which is not OpenAI's.
func (s *Server) noRoute(w http.ResponseWriter, r *http.Request) {
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		probe := *r
		probe.Method = method
		if _, pattern := s.mux.Handler(&probe); pattern != "" {
			w.Header().Set("Allow", method)
			writeJSON(w, http.StatusMethodNotAllowed, []byte(`{"detail":"Method Not Allowed"}`))
			return
		}
	}
	writeJSON(w, http.StatusNotFound, []byte(`{"detail":"Not Found"}`))
}

// Control returns the handler of the control surface; see control.go for its routes.
func (s *Server) Control() http.Handler { return s.control }

// Close stops listening, ends every request and waits for the engine's loop.
func (s *Server) Close() {
	s.closeOnce.Do(func() {
		close(s.closing)
		s.engine.close()
		s.net.close()
	})
}

package gateway

import (
	"net/http"
	"slices"
	"strings"

	"tidegate/gateway/refusal"
)

// paths are the routes of the front, to find the one that a caller may have meant by a
// path where there is none. It is written by add before it is read by others.
type paths struct {
	routes []route
	absent []absentDoor
}

// route is one of the front's.
type route struct {
	method, shown string
	words         []string // of its path, in small letters and without v1
}

// absentDoor is an API that clients ask for and that is not served.
type absentDoor struct {
	words  []string
	advice string
}

func newPaths() *paths {
	const (
		chat   = "use POST /v1/chat/completions"
		rank   = "rankings, scores and classes are not served yet: ask the server that makes them at its own address"
		ops    = "this is on the listener for operators (server.ops_listen)"
		ollama = "this is OpenAI's API, not Ollama's: set the client to an OpenAI-compatible server whose base URL ends in /v1"
		text   = "this gateway serves text alone, by chat completions and completions: " + chat
	)
	p := &paths{}
	for _, d := range []struct{ path, advice string }{
		{"messages/count_tokens", "Anthropic's API is not served yet: use POST /tokenize, which counts tokens exactly"},
		{"messages", "Anthropic's API is not served yet: " + chat + " with a client of OpenAI's API"},
		{"complete", "Anthropic's API is not served: " + chat + " with a client of OpenAI's API"},
		{"responses", "the Responses API is not served yet: " + chat + " (in LangChain use_responses_api=False, in the AI SDK .chat(model))"},
		{"embeddings", "embeddings are not served yet: ask the server that makes them at its own address"},
		{"rerank", rank}, {"score", rank}, {"classify", rank}, {"pooling", rank},
		{"audio", text}, {"images", text}, {"videos", text}, {"moderations", text}, {"realtime", text},
		{"files", text}, {"batches", text}, {"assistants", text}, {"threads", text}, {"fine_tuning", text},
		{"api/chat", ollama}, {"api/generate", ollama}, {"api/tags", ollama}, {"api/show", ollama}, {"api/version", ollama},
		{"detokenize", "token ids are not made into text here; POST /tokenize is the other way round"},
		{"metrics", ops}, {"status", ops}, {"debug", ops},
	} {
		p.absent = append(p.absent, absentDoor{words: strings.Split(d.path, "/"), advice: d.advice})
	}
	return p
}

// add takes a route as the router knows it.
func (p *paths) add(method, pattern string) {
	if method == http.MethodHead {
		return // as GET
	}
	shown := strings.Split(pattern, "/")
	for i, s := range shown {
		if s != "" && (s[0] == ':' || s[0] == '*') {
			shown[i] = "{" + s[1:] + "}"
		}
	}
	p.routes = append(p.routes, route{method, method + " " + strings.Join(shown, "/"), wordsOf(pattern)})
}

// wordsOf returns the parts of a path in small letters, without empty ones and v1: what is
// left is the same with a base URL that has /v1 too often or not at all.
func wordsOf(path string) []string {
	var words []string
	for word := range strings.SplitSeq(strings.ToLower(path), "/") {
		if word != "" && word != "v1" {
			words = append(words, word)
		}
	}
	return words
}

// refuse returns the refusal of an unknown path, which names what there is instead.
func (p *paths) refuse(method, path string) error {
	advice := "the API begins with /v1, as in POST /v1/chat/completions; the documentation lists all routes"
	if len(path) <= refusal.MaxQuoted {
		words := wordsOf(path)
		if r, ok := p.meant(method, words); ok {
			advice = "did you mean " + r.shown + "? The base URL of a client ends in /v1, once"
			if !strings.Contains(r.shown, " /v1/") {
				advice = "did you mean " + r.shown + "?"
			}
		} else if text, ok := p.missing(words); ok {
			advice = text
		} else if r, ok := p.similar(method, words); ok {
			advice = "did you mean " + r.shown + "?"
		}
	}
	return refusal.NothingAt(method, path, advice)
}

// meant finds the route whose path is the end of the one that was asked for: what stands
// before it, such as /openai/deployments/NAME, is from another server's base URL.
func (p *paths) meant(method string, words []string) (found route, ok bool) {
	for i := range words {
		for _, r := range p.routes {
			if r.matches(words[i:]) && (!ok || found.method != method && r.method == method) {
				found, ok = r, true
			}
		}
		if ok {
			return found, true
		}
	}
	return found, false
}

// matches reports whether a route is of a path's words.
func (r *route) matches(words []string) bool {
	for i, w := range r.words {
		switch {
		case i >= len(words):
			return false
		case w[0] == '*':
			return true
		case w[0] != ':' && w != words[i]:
			return false
		}
	}
	return len(words) == len(r.words)
}

// missing finds what is said of an API that is not served, whatever follows its name.
func (p *paths) missing(words []string) (advice string, ok bool) {
	for i := range words {
		for _, d := range p.absent {
			if len(words)-i >= len(d.words) && slices.Equal(words[i:i+len(d.words)], d.words) {
				return d.advice, true
			}
		}
	}
	return "", false
}

// similar finds the route that is written almost like the path that was asked for.
func (p *paths) similar(method string, words []string) (found route, ok bool) {
	asked, shortest := strings.Join(words, "/"), refusal.MaxCompared
	for _, r := range p.routes {
		known := strings.Join(r.words, "/")
		if strings.ContainsAny(known, ":*") || !refusal.IsNear(max(len(known)-len(asked), len(asked)-len(known)), len(asked)) {
			continue // a difference in length is a distance already, and costs nothing
		}
		d := refusal.Distance(asked, known)
		if refusal.IsNear(d, len(asked)) && (d < shortest || d == shortest && r.method == method) {
			found, shortest, ok = r, d, true
		}
	}
	return found, ok
}

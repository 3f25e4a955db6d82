package gatewaytest

import (
	"fmt"
	"net/http"
	"strconv"

	"github.com/tidwall/gjson"

	"tidegate/gateway/qwen"
)

func (s *Server) health(w http.ResponseWriter, _ *http.Request) {
	if s.engine.isDead() {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	w.WriteHeader(http.StatusOK)
}

func (s *Server) version(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, append(appendString([]byte(`{"version":`), s.options.Version), '}'))
}

func (s *Server) load(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, fmt.Appendf(nil, `{"server_load":%d}`, s.inFlight.Load()))
}

func (s *Server) models(w http.ResponseWriter, _ *http.Request) {
	b := []byte(`{"object":"list","data":[`)
	for i, name := range append([]string{s.options.Model}, s.options.Aliases...) {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"id":`...)
		b = appendString(b, name)
		b = fmt.Appendf(b, `,"object":"model","created":%d,"owned_by":"vllm","root":`, s.started.Unix())
		b = appendString(b, "Qwen/"+s.options.Model)
		b = fmt.Appendf(b, `,"parent":null,"max_model_len":%d,"permission":[]}`, s.options.MaxModelLen)
	}
	writeJSON(w, http.StatusOK, append(b, "]}"...))
}

func (s *Server) tokenize(w http.ResponseWriter, r *http.Request) {
	root, _, err := readBody(r)
	if err != nil {
		writeError(w, err)
		return
	}
	if model := root.Get("model").String(); !s.options.serves(model) {
		writeError(w, noModel(model))
		return
	}
	text := root.Get("prompt").String()
	if root.Get("messages").IsArray() {
		thinks := s.thinks(root.Get("chat_template_kwargs.enable_thinking"), s.release.tokenizesByDefaults())
		chat, err := s.template(root, thinks)
		if err != nil {
			writeError(w, err)
			return
		}
		if text, err = qwen.Render(chat); err != nil {
			writeError(w, invalid("", err.Error()))
			return
		}
	} else if root.Get("prompt").Type != gjson.String {
		writeError(w, malformed("prompt", "[{'type': 'missing', 'loc': ('body', 'prompt'), 'msg': 'Field required'}]"))
		return
	}
	ids := s.tokenizer.Append(nil, text)
	b := fmt.Appendf(nil, `{"count":%d,"max_model_len":%d,"tokens":[`, len(ids), s.options.MaxModelLen)
	for i, id := range ids {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, uint64(id), 10)
	}
	b = append(b, `],"token_strs":`...)
	if root.Get("return_token_strs").Bool() {
		b = append(b, '[')
		for i, id := range ids {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendString(b, string(s.tokenizer.AppendToken(nil, id)))
		}
		b = append(b, ']')
	} else {
		b = append(b, "null"...)
	}
	writeJSON(w, http.StatusOK, append(b, '}'))
}

func (s *Server) detokenize(w http.ResponseWriter, r *http.Request) {
	root, _, err := readBody(r)
	if err != nil {
		writeError(w, err)
		return
	}
	if !root.Get("tokens").IsArray() {
		writeError(w, malformed("tokens", "[{'type': 'missing', 'loc': ('body', 'tokens'), 'msg': 'Field required'}]"))
		return
	}
	var ids []uint32
	for _, v := range root.Get("tokens").Array() {
		ids = append(ids, uint32(v.Uint()))
	}
	writeJSON(w, http.StatusOK, append(appendString([]byte(`{"prompt":`), s.decode(ids)), '}'))
}

// fallAsleep pauses the scheduler and drops the prefix cache; requests wait.
func (s *Server) fallAsleep(w http.ResponseWriter, r *http.Request) {
	level := int32(1)
	if r.URL.Query().Get("level") == "2" {
		level = 2
	}
	s.sleep.Store(level)
	s.engine.pause(true)
	w.WriteHeader(http.StatusOK)
}

func (s *Server) wakeUp(w http.ResponseWriter, _ *http.Request) {
	s.sleep.Store(0)
	s.engine.pause(false)
	w.WriteHeader(http.StatusOK)
}

func (s *Server) isSleeping(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, fmt.Appendf(nil, `{"is_sleeping":%t}`, s.sleep.Load() > 0))
}

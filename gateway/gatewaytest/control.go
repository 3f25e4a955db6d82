package gatewaytest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// controlRoutes registers the routes for tests and drills, of which vLLM has none.
//
//	GET    /sim/stats     what runs, waits and was made
//	GET    /sim/requests  the records, ?last=N for the newest
//	POST   /sim/faults    add a fault or a list of them
//	DELETE /sim/faults    end all faults
//	POST   /sim/options   change ttft, itl, prefill_per_token ("12ms"), slots, tokens
//	POST   /sim/reset     forget records, sums and the prefix cache
func (s *Server) controlRoutes() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /sim/stats", func(w http.ResponseWriter, _ *http.Request) { writeValue(w, s.Stats()) })
	mux.HandleFunc("GET /sim/requests", s.controlRequests)
	mux.HandleFunc("POST /sim/faults", s.controlFaults)
	mux.HandleFunc("DELETE /sim/faults", func(w http.ResponseWriter, _ *http.Request) {
		if err := s.ClearFaults(); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		writeValue(w, []Fault{})
	})
	mux.HandleFunc("POST /sim/options", s.controlOptions)
	mux.HandleFunc("POST /sim/reset", func(w http.ResponseWriter, _ *http.Request) {
		s.Reset()
		writeValue(w, s.Stats())
	})
	return mux
}

func writeValue(w http.ResponseWriter, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	writeJSON(w, http.StatusOK, append(body, '\n'))
}

func (s *Server) controlRequests(w http.ResponseWriter, r *http.Request) {
	records := s.Requests()
	if last, err := strconv.Atoi(r.URL.Query().Get("last")); err == nil && last >= 0 && last < len(records) {
		records = records[len(records)-last:]
	}
	writeValue(w, records)
}

func (s *Server) controlFaults(w http.ResponseWriter, r *http.Request) {
	var raw json.RawMessage
	if err := json.NewDecoder(r.Body).Decode(&raw); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	list := []Fault{{}}
	var err error
	if raw[0] == '[' {
		err = json.Unmarshal(raw, &list)
	} else {
		err = json.Unmarshal(raw, &list[0])
	}
	for _, f := range list {
		if err == nil {
			err = f.validate()
		}
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	for _, f := range list {
		// Checked just now, all of them before the first is set.
		_ = s.SetFault(f)
	}
	writeValue(w, list)
}

// speedEdit is the body of /sim/options; absent fields stay.
type speedEdit struct {
	TTFT            *string `json:"ttft"`
	ITL             *string `json:"itl"`
	PrefillPerToken *string `json:"prefill_per_token"`
	Slots           *int    `json:"slots"`
	Tokens          *int    `json:"tokens"`
}

func (s *Server) controlOptions(w http.ResponseWriter, r *http.Request) {
	var edit speedEdit
	err := json.NewDecoder(r.Body).Decode(&edit)
	duration := func(name string, text *string) time.Duration {
		if text == nil || err != nil {
			return 0
		}
		d, bad := time.ParseDuration(*text)
		if bad != nil || d < 0 {
			err = fmt.Errorf("%s: %q is no duration", name, *text)
		}
		return d
	}
	ttft, itl := duration("ttft", edit.TTFT), duration("itl", edit.ITL)
	prefill := duration("prefill_per_token", edit.PrefillPerToken)
	if err == nil && edit.Slots != nil && *edit.Slots < 1 {
		err = fmt.Errorf("slots: %d, must be at least 1", *edit.Slots)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	now := s.SetSpeed(func(v *Speed) {
		set(&v.TTFT, edit.TTFT != nil, ttft)
		set(&v.ITL, edit.ITL != nil, itl)
		set(&v.PrefillPerToken, edit.PrefillPerToken != nil, prefill)
		if edit.Slots != nil {
			v.Slots = *edit.Slots
		}
		if edit.Tokens != nil {
			v.Tokens = *edit.Tokens
		}
	})
	writeValue(w, map[string]any{
		"ttft": now.TTFT.String(), "itl": now.ITL.String(), "prefill_per_token": now.PrefillPerToken.String(),
		"slots": now.Slots, "tokens": now.Tokens,
	})
}

func set(target *time.Duration, asked bool, d time.Duration) {
	if asked {
		*target = d
	}
}

// SetSpeed changes the speed while the server runs, and tells the new one.
func (s *Server) SetSpeed(edit func(*Speed)) Speed { return s.engine.change(edit) }

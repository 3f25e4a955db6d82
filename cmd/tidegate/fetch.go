package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

// received is the answer to a caller of the play.
type received struct {
	user          string
	status        int           // 0: none came
	level, reason string        // as the headers say
	model         string        // as the body says
	pieces        int           // events with some of the answer's text, or of its reasoning if those are more
	thought       bool          // there was reasoning
	tokens        int           // of the answer
	words         string        // it begins with; of a refusal the message
	first         time.Duration // until there was anything to read; 0: there never was
}

// fetchLimit is the longest that an answer of the play is waited for.
const fetchLimit = 40 * time.Second

// fetch asks the question and reads the stream to its end.
func fetch(ctx context.Context, client *http.Client, base, key string) (a received) {
	ctx, cancel := context.WithTimeout(ctx, fetchLimit)
	defer cancel()
	body := strings.Replace(question, `"stream":true`, `"stream":true,"stream_options":{"include_usage":true}`, 1)
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		return received{words: err.Error()}
	}
	q.Header.Set("Authorization", "Bearer "+key)
	q.Header.Set("Content-Type", "application/json")
	began := time.Now()
	resp, err := client.Do(q)
	if err != nil {
		return received{words: err.Error()}
	}
	defer resp.Body.Close()
	a = received{status: resp.StatusCode, level: resp.Header.Get("X-Tidegate-Level"), reason: resp.Header.Get("X-Tidegate-Reason")}
	if a.status != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<16)) // half of a refusal will do
		var refusal struct{ Error struct{ Message string } }
		_ = json.Unmarshal(text, &refusal)
		a.words = cmp.Or(refusal.Error.Message, string(text))
		return a
	}
	if err := a.read(resp.Body, began); err != nil {
		a.status, a.words = 0, "the stream broke off: "+err.Error()
	}
	return a
}

// read reads a stream of events to its end.
func (a *received) read(body io.Reader, began time.Time) error {
	var content strings.Builder
	var text, reasoning int // events with some
	events := bufio.NewScanner(body)
	events.Buffer(nil, 1<<20)
	for events.Scan() {
		data, ok := bytes.CutPrefix(events.Bytes(), []byte("data: "))
		if !ok {
			continue
		}
		if string(data) == "[DONE]" {
			a.words = content.String()
			return nil
		}
		var e struct {
			Model   string
			Choices []struct {
				Delta struct{ Content, Reasoning string }
			}
			Usage *struct {
				Completion int `json:"completion_tokens"`
			}
			Error *struct{ Message string }
		}
		if err := json.Unmarshal(data, &e); err != nil {
			return err
		}
		if e.Error != nil {
			return fmt.Errorf("%s", e.Error.Message)
		}
		a.model = cmp.Or(e.Model, a.model)
		if e.Usage != nil {
			a.tokens = e.Usage.Completion
		}
		for _, c := range e.Choices {
			a.thought = a.thought || strings.TrimSpace(c.Delta.Reasoning) != ""
			if c.Delta.Content != "" {
				text++
				content.WriteString(c.Delta.Content)
			}
			if c.Delta.Reasoning != "" {
				reasoning++
			}
			a.pieces = max(text, reasoning)
			if a.first == 0 && c.Delta.Content+c.Delta.Reasoning != "" {
				a.first = time.Since(began)
			}
		}
	}
	return cmp.Or(events.Err(), io.ErrUnexpectedEOF)
}

// String is the answer in one line.
func (a received) String() string {
	if a.status != http.StatusOK {
		return strings.TrimSpace(fmt.Sprintf("%d %s %s: %s", a.status, cell(a.level), cell(a.reason), note(a.words)))
	}
	form := "whole"
	if a.streamed() {
		form = fmt.Sprintf("streamed in %d events", a.pieces)
	}
	thinking := "no thinking"
	if a.thought {
		thinking = "thinking"
	}
	words := strings.Fields(a.words)
	return fmt.Sprintf("%d  x-tidegate-level: %s  x-tidegate-reason: %s  model: %s  %s, %s, %d tokens: %q",
		a.status, cell(a.level), cell(cmp.Or(a.reason, "-")), cell(a.model), form, thinking, a.tokens, strings.Join(words[:min(len(words), 6)], " "))
}

// streamed reports whether the answer came bit by bit: one that is whole is cut only
// where it is very long.
func (a received) streamed() bool { return a.pieces > 2 }

// kinds is a line of the table by level: how many, and what they were like.
func kinds(answers []received) []string {
	ok, streamed, thought := 0, 0, 0
	models := map[string]bool{}
	var tokens []int
	for _, a := range answers {
		if a.status != http.StatusOK {
			continue
		}
		ok++
		models[a.model] = true
		tokens = append(tokens, a.tokens)
		if a.streamed() {
			streamed++
		}
		if a.thought {
			thought++
		}
	}
	line := []string{fmt.Sprint(len(answers)), fmt.Sprint(ok), fmt.Sprint(len(answers) - ok), fmt.Sprint(streamed), fmt.Sprint(thought), strings.Join(slices.Sorted(maps.Keys(models)), " "), ""}
	if ok > 0 {
		slices.Sort(tokens)
		line[6] = fmt.Sprint(tokens[ok/2])
	}
	return line
}

// waits returns the times until the answered callers had something to read, the
// shortest first.
func waits(answers []received) []time.Duration {
	var durations []time.Duration
	for _, a := range answers {
		if a.status == http.StatusOK {
			durations = append(durations, a.first)
		}
	}
	slices.Sort(durations)
	return durations
}

// inSeconds is a duration for people.
func inSeconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }

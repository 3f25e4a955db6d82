package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"tidegate/gateway/ops"
	"tidegate/nvml"
)

// hostile is a name that clears the screen, sets the window's title, goes back to
// the begin of the line, turns the direction of text around and has lines of its own.
const hostile = "v1\x1b[2J\x1b]0;owned\a\r\u009b31m\u202e\x7f\u2066\nMODEL\tok"

// TestTerminal: what a terminal could take for an order is escaped wherever it is
// cut into writes, and a text in JSON stays the same.
func TestTerminal(t *testing.T) {
	raw, err := json.Marshal(map[string]string{"name": hostile + "\U000e0001 数据 é"})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{hostile, string(raw) + "\n", "数据 é ok\n", "\xff\xfe", "half \xe6\x95"} {
		var whole string
		for size := 1; size <= len(text); size++ {
			var out bytes.Buffer
			w := &terminal{out: &out}
			for from := 0; from < len(text); from += size {
				part := text[from:min(from+size, len(text))]
				if n, err := io.WriteString(w, part); err != nil || n != len(part) {
					t.Fatal(n, err)
				}
			}
			if whole == "" {
				whole = out.String()
			}
			if out.String() != whole {
				t.Errorf("in pieces of %d: %q, not %q", size, &out, whole)
			}
		}
		checkPlain(t, whole)
		if strings.HasPrefix(text, "{") {
			var back map[string]string
			if err := json.Unmarshal([]byte(whole), &back); err != nil || back["name"] != hostile+"\U000e0001 数据 é" {
				t.Errorf("%v: %q", err, back)
			}
		}
	}
}

func checkPlain(t *testing.T, text string) {
	t.Helper()
	for i, r := range text {
		if r != '\n' && r != '\t' && !unicode.IsGraphic(r) {
			t.Fatalf("%q at %d of %q", r, i, text)
		}
	}
}

// FuzzTerminal: whatever is written, in whatever pieces, nothing but lines of visible
// text comes out, and what is JSON says the same as before.
func FuzzTerminal(f *testing.F) {
	f.Add([]byte(hostile), 3)
	f.Add([]byte(`{"a":"\u001b\u0000"}`), 1)
	f.Fuzz(func(t *testing.T, text []byte, size int) {
		if size < 1 || size > len(text) {
			size = max(len(text), 1)
		}
		var out bytes.Buffer
		w := &terminal{out: &out}
		for from := 0; from < len(text); from += size {
			if _, err := w.Write(text[from:min(from+size, len(text))]); err != nil {
				t.Fatal(err)
			}
		}
		checkPlain(t, out.String())
		var before, after any
		if json.Unmarshal(text, &before) == nil && utf8.Valid(text) && !bytes.ContainsRune(text, '\r') {
			if err := json.Unmarshal(out.Bytes(), &after); err != nil || !reflect.DeepEqual(before, after) {
				t.Errorf("%v: %q became %q", err, text, &out)
			}
		}
	})
}

// TestHostileStatus: whatever a gateway, its backends and GPUs call themselves
// stays within one bounded cell of a line.
func TestHostileStatus(t *testing.T) {
	long := hostile + strings.Repeat("x", 1<<20)
	s := ops.Status{Version: long, Store: long, WhyNotReady: long, Warnings: []string{long}, Models: []ops.ModelStatus{{Model: long, Fallback: long, Backends: []ops.BackendStatus{{Backend: long, Version: long, Reason: long}}}}}
	s.GPUs = []nvml.GPUStatus{{GPU: long, Freshness: long, Reading: nvml.Reading{Name: long, State: long, Reasons: []string{long}}}}
	s.Sources = []nvml.SourceStatus{{Name: long, Error: long, Address: long}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { json.NewEncoder(w).Encode(s) }))
	defer server.Close()
	var out, complaints bytes.Buffer
	if code := run(t.Context(), []string{"status", "--ops", server.URL}, noEnv, &out, &complaints); code != exitOK {
		t.Fatal(complaints.String())
	}
	checkPlain(t, out.String())
	for _, line := range strings.Split(out.String(), "\n") {
		if len(line) > 16*maxCell || strings.HasPrefix(line, "MODEL\t") {
			t.Errorf("a line of %d bytes: %.200s", len(line), line)
		}
	}
	if n := strings.Count(out.String(), "\n"); n > 20 || !strings.Contains(out.String(), `v1\u001b[2J\u001b]0;owned\u0007\u000d\u009b31m\u202e\u007f\u2066\u000aMODEL\u0009ok`) {
		t.Errorf("%d lines:\n%.4000s", n, &out)
	}
	out.Reset()
	if code := run(t.Context(), []string{"status", "--json", "--ops", server.URL}, noEnv, &out, &complaints); code != exitOK {
		t.Fatal(complaints.String())
	}
	checkPlain(t, out.String())
	var same ops.Status
	if err := json.Unmarshal(out.Bytes(), &same); err != nil || same.Version != long {
		t.Errorf("%v, or the version is another", err)
	}
	// An error of a server reaches the terminal likewise.
	out.Reset()
	if code := run(t.Context(), []string{"status", "--ops", "http://127.0.0.1:1/" + strings.Repeat("y", 1<<16)}, noEnv, &out, &complaints); code == exitOK || complaints.Len() > 8*maxNote {
		t.Errorf("code %d, %d bytes", code, complaints.Len())
	}
}

// TestHostileLog: a log in text or JSON gives a terminal no orders.
func TestHostileLog(t *testing.T) {
	for _, form := range []string{"text", "json"} {
		var out bytes.Buffer
		newLog(form, &process{stderr: &terminal{out: &out}}).Warn("a backend says", "version", hostile, hostile, 1)
		checkPlain(t, out.String())
		if strings.Count(out.String(), "\n") != 1 {
			t.Errorf("%s: %q", form, &out)
		}
		if form == "json" && !json.Valid(out.Bytes()) {
			t.Errorf("%s", &out)
		}
	}
}

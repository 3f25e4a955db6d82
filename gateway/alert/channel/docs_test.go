package channel

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
)

// verify reports whether a request is Tidegate's and not older than five minutes.
// The body is the bytes as they came.
func verify(secret string, header http.Header, body []byte) bool {
	timestamp := header.Get("X-Tidegate-Timestamp")
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil || time.Since(time.Unix(seconds, 0)).Abs() > 5*time.Minute {
		return false
	}
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(timestamp + "."))
	mac.Write(body)
	want := "sha256=" + hex.EncodeToString(mac.Sum(nil))
	return hmac.Equal([]byte(want), []byte(header.Get("X-Tidegate-Signature")))
}

// page is docs/alerts.md.
func page(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "alerts.md"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// fence is the first code block of a language on the page.
func fence(t *testing.T, language string) string {
	t.Helper()
	_, rest, _ := strings.Cut(page(t), "```"+language+"\n")
	block, _, ok := strings.Cut(rest, "```")
	if !ok {
		t.Fatalf("docs/alerts.md has no %s", language)
	}
	return block
}

// TestReceivers holds that a receiver written as docs/alerts.md says takes what the
// webhook sends, and nothing that was changed on the way or is old.
func TestReceivers(t *testing.T) {
	self, err := os.ReadFile("docs_test.go")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(self), "\n"+fence(t, "go")) {
		t.Error("the Go of docs/alerts.md is not what this test has")
	}
	python, err := exec.LookPath("python3")
	if err != nil {
		python = ""
	}
	inPython := func(secret string, header http.Header, body []byte) bool {
		flat := map[string]string{}
		for name := range header {
			flat[name] = header.Get(name)
		}
		headers, err := json.Marshal(flat)
		if err != nil {
			t.Fatal(err)
		}
		program := fence(t, "python") + "\nimport json, sys\nprint(verify(sys.argv[1], json.loads(sys.argv[2]), sys.stdin.buffer.read()))\n"
		command := exec.CommandContext(t.Context(), python, "-c", program, secret, string(headers))
		command.Stdin = bytes.NewReader(body)
		out, err := command.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return strings.TrimSpace(string(out)) == "True"
	}
	a := sample()
	a.Subject = "爱丽丝"
	sent := func(at time.Time) (http.Header, []byte) {
		l := webhook(Config{Secret: testSecret, Language: Chinese}, a, at)
		header := http.Header{}
		for name, value := range l.header {
			header.Set(name, value)
		}
		return header, l.body
	}
	for name, c := range map[string]struct {
		change func(header http.Header, body *[]byte)
		secret string
		age    time.Duration
		want   bool
	}{
		"as it was sent": {secret: testSecret, want: true},
		"another secret": {secret: testSecret + "x"},
		"another body":   {secret: testSecret, change: func(_ http.Header, body *[]byte) { *body = append(*body, ' ') }},
		"another time": {secret: testSecret, change: func(h http.Header, _ *[]byte) {
			h.Set("X-Tidegate-Timestamp", strconv.FormatInt(time.Now().Unix()-1, 10))
		}},
		"no time":      {secret: testSecret, change: func(h http.Header, _ *[]byte) { h.Del("X-Tidegate-Timestamp") }},
		"no signature": {secret: testSecret, change: func(h http.Header, _ *[]byte) { h.Del("X-Tidegate-Signature") }},
		"an old one":   {secret: testSecret, age: 10 * time.Minute},
	} {
		header, body := sent(time.Now().Add(-c.age))
		if c.change != nil {
			c.change(header, &body)
		}
		if got := verify(c.secret, header, body); got != c.want {
			t.Errorf("%s: Go says %v", name, got)
		}
		if python != "" {
			if got := inPython(c.secret, header, body); got != c.want {
				t.Errorf("%s: Python says %v", name, got)
			}
		}
	}
	if python == "" {
		t.Log("python3 is not installed: its half was skipped")
	}
}

// TestPageNamesAll holds that the page has the keys of the configuration, the headers
// and the members of a body that there are.
func TestPageNamesAll(t *testing.T) {
	text := page(t)
	var documented, real map[string]any
	if err := json.Unmarshal([]byte(fence(t, "json")), &documented); err != nil {
		t.Fatal(err)
	}
	l := webhook(Config{Secret: testSecret}, sample(), noon())
	if err := json.Unmarshal(l.body, &real); err != nil {
		t.Fatal(err)
	}
	if a, b := encode(keys(documented)), encode(keys(real)); !bytes.Equal(a, b) {
		t.Errorf("the page's body has the members %s, the webhook's %s", a, b)
	}
	for name := range l.header {
		if !strings.Contains(text, "`"+name+"`") {
			t.Errorf("the page does not name the header %s", name)
		}
	}
	for _, kind := range Types() {
		if !strings.Contains(text, "type: "+kind) {
			t.Errorf("the page has no example of type %s", kind)
		}
	}
	for _, key := range configKeys() {
		if !strings.Contains(text, "`"+key+"`") {
			t.Errorf("the page does not name the key %s", key)
		}
	}
}

func keys(m map[string]any) map[string]bool {
	out := map[string]bool{}
	for k := range m {
		out[k] = true
	}
	return out
}

// configKeys are those that the type says.
func configKeys() (out []string) {
	for f := range reflect.TypeFor[Config]().Fields() {
		if key := f.Tag.Get("yaml"); key != "-" {
			out = append(out, key)
		}
	}
	return out
}

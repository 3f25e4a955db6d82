package qwen

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"slices"
	"testing"
)

// reference is the Python program of testdata/reference.py, answering line by line.
type reference struct {
	stdin   io.WriteCloser
	answers *bufio.Scanner
}

type answer struct {
	Prompt string
	IDs    []uint32
	Error  string
}

func startReference(t *testing.T) *reference {
	t.Helper()
	python := os.Getenv("TIDEGATE_TEST_PYTHON")
	if python == "" {
		t.Skip("SKIPPED-PART: the comparison with the Rust tokenizers and jinja2; " +
			"set TIDEGATE_TEST_PYTHON to a python that has the packages tokenizers and jinja2")
	}
	cmd := exec.Command(python, "testdata/reference.py", "merges.txt.gz", "testdata/chat_template.jinja")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	answers := bufio.NewScanner(stdout)
	answers.Buffer(nil, 16<<20)
	return &reference{stdin, answers}
}

// ask sends n requests and calls check with each answer. Requests are sent while answers
// are read, as either pipe may fill up.
func (r *reference) ask(t *testing.T, n int, request func(i int) any, check func(i int, a answer)) {
	t.Helper()
	failed := make(chan error, 1)
	go func() {
		w := bufio.NewWriter(r.stdin)
		e := json.NewEncoder(w)
		for i := range n {
			if err := e.Encode(request(i)); err != nil {
				failed <- err
				return
			}
		}
		err := w.Flush()
		r.stdin.Close()
		failed <- err
	}()
	for i := range n {
		if !r.answers.Scan() {
			t.Fatalf("no answer %d: %v, %v", i, r.answers.Err(), <-failed)
		}
		var a answer
		if err := json.Unmarshal(r.answers.Bytes(), &a); err != nil {
			t.Fatal(err)
		}
		check(i, a)
	}
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
}

func TestAgainstRustTokenizers(t *testing.T) {
	r := startReference(t)
	tok := newTokenizer(t)
	g := newGenerator(tok, 11)
	const count = 40_000
	texts := make([]string, count)
	for i := range texts {
		texts[i] = g.text(24)
		if i%4000 == 0 { // some that are encoded in chunks
			texts[i] = g.text(4000)
		}
	}
	different, tokens := 0, 0
	r.ask(t, count, func(i int) any { return map[string]string{"text": texts[i]} }, func(i int, a answer) {
		got := tok.Append(nil, texts[i])
		tokens += len(got)
		if a.Error != "" || !slices.Equal(got, a.IDs) {
			if different++; different <= 10 {
				t.Errorf("%+q\n got %d\nwant %d %s", texts[i], got, a.IDs, a.Error)
			}
		}
	})
	t.Logf("%d texts, %d tokens, %d differences", count, tokens, different)
}

func TestAgainstJinja(t *testing.T) {
	r := startReference(t)
	tok := newTokenizer(t)
	counter := NewCounter(tok, 1000)
	g := newGenerator(tok, 12)
	const count = 8_000
	chats := make([]Chat, count)
	for i := range chats {
		chats[i] = g.chat(8)
	}
	different, tokens := 0, 0
	request := func(i int) any {
		c := chats[i]
		thinking, generation := !c.NoThinking, !c.NoGenerationPrompt
		return map[string]chatArgs{"chat": {c.Messages, c.Tools, &thinking, &generation, c.Dialect == V12}}
	}
	r.ask(t, count, request, func(i int, a answer) {
		prompt, err := Render(chats[i])
		n, countErr := counter.Chat(chats[i])
		tokens += n
		if err != nil || a.Error != "" || prompt != a.Prompt || countErr != nil || n != len(a.IDs) {
			if different++; different <= 5 {
				t.Errorf("%s\n%s\n got %q, %v, %d tokens\nwant %q %s, %d tokens",
					chats[i].Messages, chats[i].Tools, prompt, err, n, a.Prompt, a.Error, len(a.IDs))
			}
		}
	})
	t.Logf("%d conversations, %d tokens, %d differences", count, tokens, different)
}

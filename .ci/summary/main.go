// Command summary runs `go test` with the arguments that it is given, shows each
// package as it ends, and says at the end which tests were the slowest, which
// parts were skipped, and what failed, each test with its own output. The last line
// is how many tests passed, failed and were skipped.
//
// With - as its only argument it reads what `go test -json` wrote from its input.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "-" {
		os.Exit(summarize(os.Stdin, os.Stdout, nil))
	}
	cmd := exec.Command("go", append([]string{"test", "-json"}, os.Args[1:]...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(summarize(out, os.Stdout, cmd.Wait))
}

// event is a line of `go test -json`: see `go doc test2json` and `go help buildjson`.
type event struct {
	Action, Package, Test, Output string
	ImportPath                    string // of a build's output
	FailedBuild                   string // of a package that could not be built
	Elapsed                       float64
}

// maxOutput bounds what is kept of the output of one test or package, in bytes at
// its begin and as many at its end: a panic shows the stacks of all goroutines.
const maxOutput = 24 << 10

// output is what a test or package wrote.
type output struct {
	head, tail []byte
	cut        int // bytes left out between the two
}

func (o *output) add(text string) {
	if len(o.head) < maxOutput && len(o.tail) == 0 {
		o.head = append(o.head, text...)
		return
	}
	if o.tail = append(o.tail, text...); len(o.tail) > 2*maxOutput {
		n := len(o.tail) - maxOutput
		o.tail, o.cut = append([]byte(nil), o.tail[n:]...), o.cut+n
	}
}

// String returns the output, indented, without the lines that only say that a test
// begins, waits, goes on or has ended.
func (o *output) String() string {
	text := string(o.head)
	if o.cut > 0 {
		text += fmt.Sprintf("\n[%d bytes are left out]\n", o.cut)
	}
	var b strings.Builder
	for _, line := range strings.Split(text+string(o.tail), "\n") {
		if !frame(line) {
			b.WriteString("    " + line + "\n")
		}
	}
	return b.String()
}

func frame(line string) bool {
	line = strings.TrimLeft(line, " ")
	for _, prefix := range []string{"=== RUN ", "=== PAUSE ", "=== CONT ", "=== NAME ", "=== FAIL ", "--- FAIL:", "FAIL\t", "ok  \t"} {
		if strings.HasPrefix(line, prefix) {
			return true
		}
	}
	return line == "" || line == "FAIL" || line == "PASS" || strings.HasPrefix(line, "exit status ")
}

// test is one test or, without a name, what a package says outside of its tests.
type test struct {
	pkg, name string
	result    string // pass, fail or skip; empty: it has not ended
	paused    bool   // it waits for its turn in parallel
	parent    bool   // a test of it failed
	seconds   float64
	output    output
}

// summary is what is known so far.
type summary struct {
	show   io.Writer
	tests  map[[2]string]*test // by package and name
	order  []*test
	builds map[string]*output // by import path
	failed []string           // headings and outputs, in the order in which they came
	counts map[string]int     // by result
	parts  []string
}

// summarize reads events, shows what happens, and returns the exit code. wait
// returns how `go test` ended; nil: only the events say it.
func summarize(events io.Reader, show io.Writer, wait func() error) int {
	s := &summary{show: show, tests: map[[2]string]*test{}, builds: map[string]*output{}, counts: map[string]int{}}
	in := bufio.NewReader(events)
	for {
		line, err := in.ReadBytes('\n')
		var e event
		switch {
		case len(line) == 0:
		case json.Unmarshal(line, &e) != nil:
			fmt.Fprintf(show, "%s\n", strings.TrimSuffix(string(line), "\n"))
		default:
			s.take(&e)
		}
		if err != nil {
			break
		}
	}
	var err error
	if wait != nil {
		err = wait()
	}
	return s.end(err)
}

// take takes in one event.
func (s *summary) take(e *event) {
	if e.Action == "build-output" {
		if s.builds[e.ImportPath] == nil {
			s.builds[e.ImportPath] = &output{}
		}
		s.builds[e.ImportPath].add(e.Output)
		return
	}
	if e.Package == "" {
		return
	}
	t := s.test(e.Package, e.Test)
	switch e.Action {
	case "pause":
		t.paused = true
	case "cont":
		t.paused = false
	case "output":
		t.output.add(e.Output)
		if _, part, ok := strings.Cut(e.Output, "SKIPPED-PART: "); ok {
			s.parts = append(s.parts, "SKIPPED-PART: "+strings.TrimSpace(part))
		}
		if live(e.Test, e.Output) {
			fmt.Fprintln(s.show, strings.TrimRight(e.Output, "\n"))
		}
	case "pass", "fail", "skip":
		t.result, t.seconds = e.Action, e.Elapsed
		if e.Test == "" {
			s.packageEnds(t, e)
			return
		}
		s.counts[e.Action]++
		if e.Action == "fail" {
			s.fails(t, "")
		} else {
			t.output = output{} // nobody will ask for it
		}
	}
}

// live reports whether a line of output is shown as it comes.
func live(test, line string) bool {
	if test == "" && (strings.HasPrefix(line, "ok  \t") || strings.HasPrefix(line, "FAIL\t")) {
		return true
	}
	line = strings.TrimLeft(line, " ")
	if strings.HasPrefix(line, "--- FAIL:") || strings.HasPrefix(line, "panic:") {
		return true
	}
	_, n, ok := strings.Cut(line, "clients: ")
	return ok && n != "" && n[0] >= '0' && n[0] <= '9'
}

func (s *summary) test(pkg, name string) *test {
	key := [2]string{pkg, name}
	t := s.tests[key]
	if t == nil {
		t = &test{pkg: pkg, name: name}
		s.tests[key] = t
		s.order = append(s.order, t)
	}
	return t
}

// fails notes a failed test and marks the tests that it is a part of, which end
// after it.
func (s *summary) fails(t *test, note string) {
	for name := t.name; strings.Contains(name, "/"); {
		name = name[:strings.LastIndexByte(name, '/')]
		s.test(t.pkg, name).parent = true
	}
	text := t.output.String()
	if t.parent && strings.TrimSpace(text) == "" {
		return // its part says it
	}
	s.failed = append(s.failed, fmt.Sprintf("--- FAIL: %s %s%s\n%s", t.pkg, t.name, note, text))
	t.output = output{}
}

// packageEnds notes what failed in a package beside tests that ended: tests that a
// panic or the time limit cut, and the package itself.
func (s *summary) packageEnds(p *test, e *event) {
	cut, waiting, other := []*test{}, 0, false
	for _, t := range s.order {
		switch {
		case t.pkg != p.pkg || t.name == "":
		case t.result == "fail":
			other = true
		case t.result == "" && t.paused:
			waiting++
		case t.result == "":
			cut = append(cut, t)
		}
	}
	if e.Action != "fail" {
		return
	}
	// The innermost first, so that what they are parts of is known as such.
	slices.SortStableFunc(cut, func(a, b *test) int { return strings.Count(b.name, "/") - strings.Count(a.name, "/") })
	for _, t := range cut {
		s.counts["fail"]++
		s.fails(t, " (did not end)")
	}
	text := p.output.String()
	if b := s.builds[e.FailedBuild]; e.FailedBuild != "" && b != nil {
		text = b.String() + text
	}
	if waiting > 0 {
		text += fmt.Sprintf("    %d tests were still waiting to run\n", waiting)
	}
	if other || len(cut) > 0 {
		if strings.TrimSpace(text) != "" {
			s.failed = append(s.failed, fmt.Sprintf("--- beside its tests: %s\n%s", p.pkg, text))
		}
		return
	}
	s.counts["fail"]++
	s.failed = append(s.failed, fmt.Sprintf("--- FAIL: %s (the package itself)\n%s", p.pkg, text))
}

// slowest is how many tests are listed as the slowest.
const slowest = 10

// end prints the summary and returns the exit code.
func (s *summary) end(err error) int {
	var ended []*test
	for _, t := range s.order {
		if t.name != "" && t.result != "" && !strings.Contains(t.name, "/") {
			ended = append(ended, t)
		}
	}
	slices.SortStableFunc(ended, func(a, b *test) int { return int(1000*b.seconds) - int(1000*a.seconds) })
	fmt.Fprintln(s.show, "---- the slowest tests")
	for _, t := range ended[:min(len(ended), slowest)] {
		fmt.Fprintf(s.show, "%8.2f s  %s %s\n", t.seconds, t.pkg, t.name)
	}
	code := 0
	var status *exec.ExitError
	if errors.As(err, &status) {
		code = status.ExitCode()
	} else if err != nil {
		fmt.Fprintln(s.show, err)
		code = 1
	}
	slices.Sort(s.parts)
	s.parts = slices.Compact(s.parts)
	for _, part := range s.parts {
		fmt.Fprintf(s.show, "!! %s\n", part)
	}
	if len(s.parts) > 0 {
		fmt.Fprintf(s.show, "!! %d parts were skipped: the lines above say what they need\n", len(s.parts))
		if os.Getenv("TIDEGATE_TEST_REQUIRE") == "all" {
			fmt.Fprintln(s.show, "!! TIDEGATE_TEST_REQUIRE=all: a skipped part is a failure")
			code = max(code, 1)
		}
	}
	if len(s.failed) > 0 {
		fmt.Fprintln(s.show, "---- what failed")
		fmt.Fprint(s.show, strings.Join(s.failed, ""))
		code = max(code, 1)
	}
	fmt.Fprintf(s.show, "%d passed, %d failed, %d skipped\n", s.counts["pass"], s.counts["fail"], s.counts["skip"])
	return code
}

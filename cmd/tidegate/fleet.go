package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// Bounds of what a status prints of a large fleet, unless all of it is asked for.
const (
	fewLines  = 20 // up to which a table is printed whole
	oddLines  = 30 // of those that need somebody, at most
	calmLines = 5  // of the others, at least
	fewAlike  = 4  // warnings of one text, up to which each is printed
	fewOthers = 25 // warnings in all
	oddMargin = 12 // degrees to a GPU's slowdown, from which on it needs somebody: L1 by default
)

// fleetTable is a table that may have hundreds of lines, of which some need somebody.
type fleetTable struct {
	head  []string
	lines table // those that need somebody first
	odd   int   // how many do
}

// add adds a line.
func (t *fleetTable) add(line []string, odd bool) {
	if !odd {
		t.lines = append(t.lines, line)
		return
	}
	t.lines = slices.Insert(t.lines, t.odd, line)
	t.odd++
}

// write prints the table after an empty line, or nothing where it has no lines.
func (t *fleetTable) write(out io.Writer, complete bool) error {
	if len(t.lines) == 0 {
		return nil
	}
	odd, calm := t.odd, len(t.lines)-t.odd
	if !complete {
		odd = min(odd, oddLines)
		if len(t.lines) > fewLines {
			calm = min(calm, max(fewLines-odd, calmLines))
		}
	}
	fmt.Fprintln(out)
	if err := slices.Concat(table{t.head}, t.lines[:odd], t.lines[t.odd:][:calm]).write(out); err != nil {
		return err
	}
	if rest := len(t.lines) - odd - calm; rest > 0 {
		fmt.Fprintf(out, "... and %d more, %d of which need somebody (tidegate status --all)\n", rest, t.odd-odd)
	}
	return nil
}

// alike puts warnings that say the same of many subjects into one line each, and cuts
// off what nobody would read; all leaves them as they are.
func alike(warnings []string, complete bool) (out []string) {
	if complete {
		return warnings
	}
	subjects := map[string][]string{} // by text
	for _, w := range warnings {
		subject, text := subjectOf(w)
		subjects[text] = append(subjects[text], subject)
	}
	shown := map[string]bool{}
	for _, w := range warnings {
		_, text := subjectOf(w)
		subjectList := subjects[text]
		switch {
		case len(subjectList) <= fewAlike:
			out = append(out, w)
		case !shown[text]:
			shown[text] = true
			out = append(out, fmt.Sprintf("%s and %d more: %s", strings.Join(subjectList[:2], "; "), len(subjectList)-2, text))
		}
	}
	if rest := len(out) - fewOthers; rest > 0 {
		out = append(out[:fewOthers], fmt.Sprintf("... and %d more (tidegate status --all)", rest))
	}
	return out
}

// subjectOf cuts a warning into whom it is of and what it says.
func subjectOf(warning string) (subject, text string) {
	subject, text, ok := strings.Cut(warning, ": ")
	if !ok {
		return "", warning
	}
	return subject, text
}

package backend

import (
	"strings"
	"testing"
	"time"

	"tidegate/gateway/openai"
)

// TestDoubts: a usage that was not believed is a warning for an hour, and is logged once
// a minute.
func TestDoubts(t *testing.T) {
	var d Doubts
	now := time.Unix(1_700_000_000, 0)
	if w := d.Warning(now); w != "" {
		t.Errorf("a warning of nothing: %s", w)
	}
	for i, log := range []bool{true, false, true} {
		if got := d.Note(now, openai.FaultMissing|openai.FaultInvalid); got != log {
			t.Errorf("answer %d: logged %v", i, got)
		}
		now = now.Add(doubtsEvery * 3 / 4)
	}
	if w := d.Warning(now); !strings.Contains(w, "3 answers") || !strings.Contains(w, "45s ago") || !strings.Contains(w, "missing, invalid") {
		t.Errorf("%s", w)
	}
	now = now.Add(doubtsFor)
	if w := d.Warning(now); w != "" {
		t.Errorf("an hour later: %s", w)
	}
	d.Note(now, openai.FaultDecreased)
	if w := d.Warning(now); !strings.Contains(w, "1 answers") || !strings.Contains(w, "fallen") {
		t.Errorf("anew: %s", w)
	}
}

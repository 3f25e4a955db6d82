package degrade

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestWorkedExample holds the worked example of docs/pressure.md: each line of its
// table, and what the model does meanwhile.
func TestWorkedExample(t *testing.T) {
	page, err := os.ReadFile("../docs/pressure.md")
	if err != nil {
		t.Fatal(err)
	}
	hot, calm := newRig(t), newRig(t)
	both, alone := &states{}, &states{} // with a calm second server, and without
	margin, steady := 30, 30
	hot.gpu.Margin, calm.gpu.Margin = &margin, &steady
	var table []string
	for s := 1; s <= 200; s++ {
		if s <= 23 {
			margin--
		}
		if s > 120 && margin < 30 {
			margin++
		}
		hot.run(1)
		calm.run(1)
		both.step([]*watched{hot.w, calm.w}, hot.k, hot.now)
		alone.step([]*watched{hot.w}, hot.k, hot.now)
		switch s {
		case 18, 19, 22, 120, 133, 134, 163, 164:
			at := &hot.w.standings[acting]
			table = append(table, fmt.Sprintf("| %d s | %d | %.1f | L%d | %.2f | L%d | L%d |", s, margin, hot.w.assessments[temperature].value,
				at.level, at.pressure, alone[acting].stage.level, both[acting].stage.level))
		}
	}
	for _, line := range table {
		if !strings.Contains(string(page), line+"\n") {
			t.Errorf("docs/pressure.md lacks the line\n%s", line)
		}
	}
}

package backend

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"tidegate/gateway/openai"
)

// Doubts counts the answers of a backend in whose usage a figure was missing or could
// not be true. The zero value has none. It is safe for concurrent use.
type Doubts struct {
	mu     sync.Mutex
	count  int           // doubtful answers since the warning began
	faults openai.Faults // faults of the last answer
	last   time.Time
	logged time.Time
}

const (
	doubtsFor   = time.Hour   // time for which the last answer is a warning
	doubtsEvery = time.Minute // least time between two log lines
)

// Note records the faults of one answer's usage and reports whether to log them.
func (d *Doubts) Note(now time.Time, faults openai.Faults) (log bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if now.Sub(d.last) > doubtsFor {
		d.count = 0
	}
	d.count++
	d.faults, d.last = faults, now
	if log = now.Sub(d.logged) >= doubtsEvery; log {
		d.logged = now
	}
	return log
}

// Warning describes the faults for an hour after the last one; empty if there were none.
func (d *Doubts) Warning(now time.Time) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	ago := now.Sub(d.last)
	if d.count == 0 || ago > doubtsFor {
		return ""
	}
	return fmt.Sprintf("the usage of %d answers was not believed, of the last one %v ago since figures were %s: own counts replace them; see docs/operating.md, \"Usage is not believed\"",
		d.count, ago.Round(time.Second), strings.Join(d.faults.Names(), ", "))
}

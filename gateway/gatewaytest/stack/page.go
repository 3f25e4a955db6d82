package stack

import (
	"regexp"
	"strings"
)

// Shows looks for the lines that a page shows in the output of a command, in their order.
// A number stands for any number but a status such as 404, ... for anything. It returns
// the first line that is missing, or true.
func Shows(printed, shown string) (string, bool) {
	for _, line := range strings.Split(strings.TrimSpace(shown), "\n") {
		if strings.TrimSpace(line) == "..." {
			continue
		}
		pattern := regexp.QuoteMeta(strings.Join(strings.Fields(line), " "))
		pattern = strings.ReplaceAll(pattern, `\.\.\.`, ".*")
		pattern = regexp.MustCompile(`[0-9]+(\\\.[0-9]+)?`).ReplaceAllStringFunc(pattern, func(n string) string {
			if len(n) == 3 && (n[0] == '4' || n[0] == '5') {
				return n // a status
			}
			return `[0-9]+(\.[0-9]+)?`
		})
		pattern = strings.ReplaceAll(pattern, " ", `\s+`)
		found := regexp.MustCompile(pattern).FindStringIndex(printed)
		if found == nil {
			return line, false
		}
		printed = printed[found[1]:]
	}
	return "", true
}

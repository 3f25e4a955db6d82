package gatewaytest

import (
	"strings"
	"unicode"

	"github.com/tidwall/gjson"
)

// tool is a function the client offers.
type tool struct {
	name        string
	description string
	parameters  gjson.Result
}

// readTools understands tools and tool_choice with vLLM's refusals.
func (s *Server) readTools(c *call) error {
	list := c.root.Get("tools")
	for _, t := range list.Array() {
		f := t.Get("function")
		if f.Get("name").Type != gjson.String {
			return malformed("tools", "[{'loc': ('body', 'tools', 0, 'function', 'name'), 'msg': 'Field required'}]")
		}
		c.tools = append(c.tools, tool{f.Get("name").Str, f.Get("description").String(), f.Get("parameters")})
	}
	if list.IsArray() && len(c.tools) == 0 {
		return malformed("tools", "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely.")
	}
	choice := c.root.Get("tool_choice")
	switch {
	case choice.IsObject():
		c.choice = "named"
		name := choice.Get("function.name").String()
		for _, t := range c.tools {
			if t.name == name {
				c.tools = []tool{t}
				return nil
			}
		}
		return malformed("tool_choice", "The tool specified in `tool_choice` does not match any of the specified `tools`")
	case choice.Type == gjson.String:
		c.choice = choice.Str
	case len(c.tools) > 0:
		c.choice = "auto"
	default:
		c.choice = "none"
	}
	if len(c.tools) == 0 && c.choice != "none" {
		return malformed("tool_choice", "When using `tool_choice`, `tools` must be set.")
	}
	switch c.choice {
	case "none", "required":
	case "auto":
		if !s.options.ToolParser {
			return invalid("", `"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set`)
		}
	default:
		return malformed("tool_choice", "Invalid value for `tool_choice`: "+choice.Raw+"! Only named tools, \"none\", \"auto\" or \"required\" are supported.")
	}
	return nil
}

// calls picks the tools the answer calls.
func (c *call) calls() []tool {
	if len(c.tools) == 0 || c.choice == "none" {
		return nil
	}
	if c.script.calls > 0 && c.choice != "named" {
		var calls []tool
		for i := range c.script.calls {
			calls = append(calls, c.tools[i%len(c.tools)])
		}
		return c.bounded(calls)
	}
	if c.choice == "auto" && (c.script.hasText || c.talk.lastRole != "user") {
		return nil
	}
	var named []tool
	best, bestScore := c.tools[0], 0
	for _, t := range c.tools {
		score := t.score(c.talk.user)
		if score > bestScore {
			best, bestScore = t, score
		}
		if strings.Contains(c.talk.user, t.name) {
			named = append(named, t)
		}
	}
	switch {
	case c.choice == "auto" && bestScore < 2:
		return nil
	case len(named) > 1 && c.choice != "named":
		return c.bounded(named)
	}
	return []tool{best}
}

func (c *call) bounded(calls []tool) []tool {
	if !c.parallel {
		return calls[:1]
	}
	return calls
}

// score returns the degree to which a text seems to ask for this tool; 2 is enough.
func (t tool) score(text string) int {
	text = strings.ToLower(text)
	score := 0
	if strings.Contains(text, strings.ToLower(t.name)) {
		score += 10
	}
	for _, w := range lettersOnly(t.name) {
		if len(w) >= 4 && strings.Contains(text, w) {
			score += 3
		}
	}
	for _, w := range lettersOnly(t.description) {
		if len(w) >= 5 && strings.Contains(text, w) {
			score++
		}
	}
	for _, w := range lettersOnly(text) {
		switch w {
		case "use", "call", "tool", "function", "weather":
			score += 2
		}
	}
	for _, w := range []string{"调用", "使用", "工具", "天气"} {
		if strings.Contains(text, w) {
			score += 2
		}
	}
	return score
}

// lettersOnly splits into lower-case words; snake_case and camelCase count as
// several words.
func lettersOnly(s string) []string {
	var words []string
	var word []rune
	lower := false
	flush := func() {
		if len(word) > 0 {
			words = append(words, string(word))
			word = word[:0]
		}
	}
	for _, r := range s {
		switch {
		case !unicode.IsLetter(r):
			flush()
			lower = false
			continue
		case unicode.IsUpper(r) && lower:
			flush()
		}
		lower = unicode.IsLower(r)
		word = append(word, unicode.ToLower(r))
	}
	flush()
	return words
}

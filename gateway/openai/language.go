package openai

import (
	"slices"
	"strconv"
	"strings"
	"unicode"

	"tidegate/gateway/jsonwalk"
)

// Bounds of the input to the choice of a language.
const (
	maxAccept  = 512  // bytes of Accept-Language
	maxText    = 4096 // bytes of the caller's text
	maxLetters = 256  // letters of that text
	// latinPerLetter is the number of letters among which one of another script counts:
	// texts of every script contain Latin letters (names, code).
	latinPerLetter = 16
)

// Language returns the language, out of languages (such as "en" or "zh"), for an answer
// to q, which may be nil. It is the one that acceptLanguage (RFC 9110 §12.5.4) prefers,
// or else that of the script of the caller's last message, or else en, or else the first
// by name. It is "" only if languages is empty.
func Language(acceptLanguage string, q *Request, languages []string) string {
	languages = slices.Sorted(slices.Values(languages))
	for _, r := range languageRanges(acceptLanguage) {
		if tag := matchLanguage(r, languages); tag != "" {
			return tag
		}
	}
	if q != nil {
		if tag := matchLanguage(scriptLanguage(q.lastText()), languages); tag != "" {
			return tag
		}
	}
	if tag := matchLanguage("en", languages); tag != "" || len(languages) == 0 {
		return tag
	}
	return languages[0]
}

// languageRanges returns the language ranges of the header, best first. It ignores the
// range of any language and those that q=0 refuses.
func languageRanges(header string) (out []string) {
	if len(header) > maxAccept {
		header = header[:strings.LastIndexByte(header[:maxAccept], ',')+1]
	}
	weights := map[string]float64{}
	for item := range strings.SplitSeq(header, ",") {
		r, parameter, weighted := strings.Cut(item, ";")
		r = strings.ToLower(strings.TrimSpace(r))
		weight := 1.0
		if weighted {
			name, value, _ := strings.Cut(strings.TrimSpace(parameter), "=")
			var err error
			if weight, err = strconv.ParseFloat(strings.TrimSpace(value), 64); err != nil || strings.TrimSpace(strings.ToLower(name)) != "q" {
				continue
			}
		}
		if _, twice := weights[r]; r == "" || r == "*" || twice || !(weight > 0 && weight <= 1) {
			continue
		}
		weights[r] = weight
		out = append(out, r)
	}
	slices.SortStableFunc(out, func(a, b string) int {
		switch {
		case weights[a] > weights[b]:
			return -1
		case weights[a] < weights[b]:
			return 1
		}
		return 0
	})
	return out
}

// matchLanguage returns the language that fits a range best: the same, or else a narrower
// one (zh-TW for zh), or else one of the range without its last parts (zh for zh-CN).
func matchLanguage(r string, languages []string) string {
	for r != "" {
		for _, tag := range languages {
			if strings.EqualFold(tag, r) {
				return tag
			}
		}
		for _, tag := range languages {
			if len(tag) > len(r) && tag[len(r)] == '-' && strings.EqualFold(tag[:len(r)], r) {
				return tag
			}
		}
		r = r[:max(strings.LastIndexByte(r, '-'), 0)]
	}
	return ""
}

// lastText returns the beginning of the last message of a user, or of the prompt.
func (q *Request) lastText() string {
	if q.Route == Completions {
		prompt, _ := q.Raw("prompt")
		return firstText(prompt, func(item []byte) []byte { return item })
	}
	messages, _ := q.Raw("messages")
	var last []byte
	for w := jsonwalk.Elements(messages); w.Next(); {
		if !w.Enter('{') {
			continue
		}
		var content []byte
		user := false
		for w.Next() {
			isRole, isContent := jsonwalk.KeyIs(w.Key, "role"), jsonwalk.KeyIs(w.Key, "content")
			value := w.Value()
			if isRole {
				role, _ := jsonwalk.Text(value)
				user = role == "user"
			} else if isContent {
				content = value
			}
		}
		if user {
			last = content
		}
	}
	return firstText(last, func(part []byte) []byte { return jsonwalk.Find(part, "text") })
}

// firstText returns the beginning of a string, or of the first one in a list, where
// extract returns the raw string of an item.
func firstText(raw []byte, extract func(item []byte) []byte) string {
	if len(raw) > 0 && raw[0] == '[' {
		list := jsonwalk.Elements(raw)
		for raw = nil; raw == nil && list.Next(); {
			if item := extract(list.Value()); len(item) > len(`""`) && item[0] == '"' {
				raw = item
			}
		}
	}
	if len(raw) < 2 || raw[0] != '"' {
		return ""
	}
	inner := raw[1 : len(raw)-1]
	s, _ := jsonwalk.Text(jsonwalk.Quote(inner[:jsonwalk.CutLen(inner, maxText)]))
	return s
}

// scriptLanguage returns the language of a text by its script, or "" if it has no letters
// of a known script.
func scriptLanguage(s string) string {
	scripts := [...]struct {
		language string
		tables   []*unicode.RangeTable
	}{
		{"en", []*unicode.RangeTable{unicode.Latin}},
		{"zh", []*unicode.RangeTable{unicode.Han}},
		{"ja", []*unicode.RangeTable{unicode.Hiragana, unicode.Katakana}},
		{"ko", []*unicode.RangeTable{unicode.Hangul}},
		{"ru", []*unicode.RangeTable{unicode.Cyrillic}},
		{"ar", []*unicode.RangeTable{unicode.Arabic}},
		{"he", []*unicode.RangeTable{unicode.Hebrew}},
		{"el", []*unicode.RangeTable{unicode.Greek}},
		{"hi", []*unicode.RangeTable{unicode.Devanagari}},
		{"th", []*unicode.RangeTable{unicode.Thai}},
	}
	var counts [len(scripts)]int
	letters := 0
	const latin, han, kana, hangul = 0, 1, 2, 3
	for _, r := range s {
		if letters == maxLetters {
			break
		}
		if r < unicode.MaxASCII {
			if lower := r | 0x20; lower >= 'a' && lower <= 'z' {
				counts[latin]++
				letters++
			}
			continue
		}
		for i := range scripts {
			if unicode.In(r, scripts[i].tables...) {
				counts[i]++
				letters++
				break
			}
		}
	}
	if counts[kana] > 0 { // Japanese and Korean are written with Han too
		counts[kana] += counts[han]
		counts[han] = 0
	} else if counts[hangul] > 0 {
		counts[hangul] += counts[han]
		counts[han] = 0
	}
	best := latin
	for i := 1; i < len(scripts); i++ {
		if counts[i]*latinPerLetter >= letters && counts[i] > 0 && (best == latin || counts[i] > counts[best]) {
			best = i
		}
	}
	if counts[best] == 0 {
		return ""
	}
	return scripts[best].language
}

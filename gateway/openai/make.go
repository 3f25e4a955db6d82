package openai

import (
	"bytes"
	"strconv"
	"time"
	"unicode/utf8"
)

// KeepAlive is a chunk that says nothing, for callers that give up on a silent
// stream: an empty delta, which every client reads right (a chunk without
// choices breaks naive loops). The first of a stream carries the role.
func KeepAlive(route Route, id, model string, created time.Time, first bool) []byte {
	b := append(make([]byte, 0, 256), `data: {"id":`...)
	b = appendString(b, id)
	if route == Completions {
		b = append(b, `,"object":"text_completion","created":`...)
	} else {
		b = append(b, `,"object":"chat.completion.chunk","created":`...)
	}
	b = strconv.AppendInt(b, created.Unix(), 10)
	b = append(b, `,"model":`...)
	b = appendString(b, model)
	switch {
	case route == Completions:
		b = append(b, `,"choices":[{"index":0,"text":""`...)
	case first:
		b = append(b, `,"choices":[{"index":0,"delta":{"role":"assistant","content":""}`...)
	default:
		b = append(b, `,"choices":[{"index":0,"delta":{"content":""}`...)
	}
	return append(b, `,"logprobs":null,"finish_reason":null}]}`+"\n\n"...)
}

// Canned is a complete answer without a backend, in one piece: each of choices
// (prompts × n) says text and stops, and nothing was used. In a chat that asked for
// structured output the text stands under refusal, which is where the API says why
// there is none: clients would fail to parse it as content. View.Stream makes a
// stream of it.
func Canned(route Route, id, model string, created time.Time, choices int, structured bool, text string) []byte {
	content := appendString(nil, text)
	object, prefix, suffix := `"chat.completion"`, `"message":{"role":"assistant","content":`, `,"refusal":null}`
	switch {
	case route == Completions:
		object, prefix, suffix = `"text_completion"`, `"text":`, ``
	case structured:
		prefix, suffix = `"message":{"role":"assistant","content":null,"refusal":`, `}`
	}
	b := append(make([]byte, 0, 256+choices*(len(content)+128)), `{"id":`...)
	b = appendString(b, id)
	b = append(append(append(b, `,"object":`...), object...), `,"created":`...)
	b = strconv.AppendInt(b, created.Unix(), 10)
	b = appendString(append(b, `,"model":`...), model)
	b = append(b, `,"choices":[`...)
	for i := range choices {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(append(b, `{"index":`...), int64(i), 10)
		b = append(append(append(append(b, ','), prefix...), content...), suffix...)
		b = append(b, `,"logprobs":null,"finish_reason":"stop"}`...)
	}
	return append(b, `],"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}`...)
}

// Notice is what an answer says of the level at which it was given.
type Notice struct {
	Level  string // L1 to L4
	Reason string // signal or rule that asked for the level
	Served string // name of what answered
}

// noticeName is the name of the member that holds a Notice.
const noticeName = "tidegate"

// append writes the notice as a member of an object, behind others.
func (n *Notice) append(b []byte) []byte {
	b = appendString(append(b, `,"`+noticeName+`":{"level":`...), n.Level)
	b = appendString(append(b, `,"reason":`...), n.Reason)
	b = appendString(append(b, `,"served":`...), n.Served)
	return append(b, '}')
}

// AddNotice returns an answer in one piece, as ReadAnswer and Canned return it, with the
// notice as its member tidegate, and once more in its usage. OpenAI's SDKs keep members
// that they do not know; of those of an answer LangChain keeps nothing but the usage, all
// of it in JavaScript, and in Python of what is not streamed. What is no answer is
// returned as it is.
func AddNotice(answer []byte, n Notice) []byte {
	var e edits
	e.reset(answer)
	member := n.append(nil)
	kept := 0
	w := members(answer)
	for w.next() {
		key, value := string(w.key), w.value()
		switch {
		case key == noticeName: // of another gateway behind this one
			e.cut(&w, kept == 0)
			continue
		case key == "usage" && len(value) > 0 && value[0] == '{':
			rest, _ := withoutMember(value, noticeName)
			e.replace(value, withLastMember(rest, member))
		}
		kept++
	}
	if w.failure() != nil || kept == 0 {
		return answer
	}
	end := bytes.LastIndexByte(answer, '}')
	e.list = append(e.list, edit{end, end, member})
	return e.append(make([]byte, 0, len(answer)+3*len(member)))
}

// withLastMember adds a member, which begins with a comma, behind those of an object.
func withLastMember(object, member []byte) []byte {
	head := bytes.TrimRight(object[:len(object)-1], " \t\r\n")
	if head[len(head)-1] == '{' {
		member = member[1:]
	}
	return append(append(append(make([]byte, 0, len(head)+len(member)+1), head...), member...), '}')
}

// appendString writes s as a JSON string; what is not UTF-8 becomes U+FFFD.
func appendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r < ' ':
			b = append(b, '\\', 'u', '0', '0', hex[r>>4], hex[r&15])
		default:
			b = utf8.AppendRune(b, r)
		}
	}
	return append(b, '"')
}

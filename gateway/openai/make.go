package openai

import (
	"bytes"
	"strconv"
	"time"
	"unicode/utf8"

	"tidegate/gateway/jsonwalk"
)

// KeepAlive returns a chunk without content, for callers that give up on a silent stream.
// It is an empty delta, which every client reads correctly; a chunk without choices breaks
// naive loops. The first of a stream carries the role.
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

// Canned returns a unary answer without a backend: each of the choices (prompts × n) is
// text, and the usage is 0. In a chat that asked for structured output, text is the
// refusal, since clients would fail to parse it as content. View.Stream makes a stream of
// it.
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

// A Notice is the note in an answer about the level at which it was made.
type Notice struct {
	Level  string // L1 to L4
	Reason string // signal or rule that required the level
	Served string // name of the model that answered
}

// noticeName is the name of the member that holds a Notice.
const noticeName = "tidegate"

// append appends the notice as a further member of an object.
func (n *Notice) append(b []byte) []byte {
	b = appendString(append(b, `,"`+noticeName+`":{"level":`...), n.Level)
	b = appendString(append(b, `,"reason":`...), n.Reason)
	b = appendString(append(b, `,"served":`...), n.Served)
	return append(b, '}')
}

// AddNotice returns a unary answer, as ReadAnswer and Canned return it, with the notice as
// its member tidegate and as a member of its usage. OpenAI's SDKs keep unknown members.
// LangChain keeps only the usage: in JavaScript always, in Python only without a stream. A
// body that is no answer is returned unchanged.
func AddNotice(answer []byte, n Notice) []byte {
	var e edits
	e.reset(answer)
	member := n.append(nil)
	kept := 0
	w := jsonwalk.Members(answer)
	for w.Next() {
		key, value := string(w.Key), w.Value()
		switch {
		case key == noticeName: // another gateway behind this one has added it
			e.cut(&w, kept == 0)
			continue
		case key == "usage" && len(value) > 0 && value[0] == '{':
			rest, _ := withoutMember(value, noticeName)
			e.replace(value, withLastMember(rest, member))
		}
		kept++
	}
	if w.Err() != nil || kept == 0 {
		return answer
	}
	end := bytes.LastIndexByte(answer, '}')
	e.list = append(e.list, edit{end, end, member})
	return e.append(make([]byte, 0, len(answer)+3*len(member)))
}

// withLastMember returns an object with a further member at its end; member begins with a
// comma.
func withLastMember(object, member []byte) []byte {
	head := bytes.TrimRight(object[:len(object)-1], " \t\r\n")
	if head[len(head)-1] == '{' {
		member = member[1:]
	}
	return append(append(append(make([]byte, 0, len(head)+len(member)+1), head...), member...), '}')
}

// appendString appends s as a JSON string; a byte that is not UTF-8 becomes U+FFFD.
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

package overload

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
)

// frameTokens is the number of tokens of the chat template and of the prompt's first line.
const frameTokens = 8 + 2 + numberDigits

// numberDigits keep the first line of all prompts equally long; each is a token.
const numberDigits = 8

// prompt returns a text that makes a chat request of so many tokens, frameTokens at least.
// It begins with its number, so no two are alike from the start. Every further word is
// one token of Qwen3's vocabulary.
func prompt(tokens, number int) string {
	words := strings.Fields("time year people way day man thing woman life child world school state family student group " +
		"country problem hand part place case week company system program question work government number night point home " +
		"water room mother area money story fact month lot right study book eye job word business issue side kind head house")
	random := rand.New(rand.NewPCG(1, uint64(number)))
	var b strings.Builder
	fmt.Fprintf(&b, "Request %0*d", numberDigits, number)
	for range tokens - frameTokens {
		b.WriteByte(' ')
		b.WriteString(words[random.IntN(len(words))])
	}
	return b.String()
}

// body returns a chat request. answer_tokens is for the stand-in; the gateway passes what
// it does not know, and vLLM ignores it.
func (r *Request) body() string {
	options := ""
	if r.Stream {
		options = `"stream":true,"stream_options":{"include_usage":true},`
	}
	if r.Plain {
		options += `"chat_template_kwargs":{"enable_thinking":false},`
	}
	return `{"model":"` + LargeModel + `",` + options + `"sim":{"answer_tokens":` + strconv.Itoa(r.Output) +
		`},"messages":[{"role":"user","content":"` + prompt(r.Input, r.Number) + `"}]}`
}

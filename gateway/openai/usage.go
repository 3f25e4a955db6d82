package openai

// Usage is how many tokens a request took. Output includes reasoning, the end
// token and tool-call markup; Input includes Cached.
type Usage struct {
	Input     int
	Cached    int
	Output    int
	Reasoning int
}

// Total is what OpenAI calls total_tokens.
func (u Usage) Total() int { return u.Input + u.Output }

// readUsage reads a usage object. reasoned says whether the server counted the
// reasoning tokens itself (vLLM does from about v0.28 on).
func readUsage(raw []byte) (u Usage, reasoned bool) {
	w := members(raw)
	return w.usage()
}

// usage reads the rest of a usage object that has been entered.
func (w *walker) usage() (u Usage, reasoned bool) {
	for w.next() {
		key := w.key
		value := w.value()
		n, _ := integer(value)
		switch string(key) {
		case "prompt_tokens":
			u.Input = int(n)
		case "completion_tokens":
			u.Output = int(n)
		case "prompt_tokens_details":
			n, _ := integer(find(value, "cached_tokens"))
			u.Cached = int(n)
		case "completion_tokens_details":
			if n, ok := integer(find(value, "reasoning_tokens")); ok {
				u.Reasoning, reasoned = int(n), true
			}
		}
	}
	return u, reasoned
}

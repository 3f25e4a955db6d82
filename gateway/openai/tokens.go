package openai

// CheckTokens checks that every token id in the body is one of a vocabulary of so many
// rows. vLLM before 0.20 does not check all of them, and an id without a row ends its
// engine: the prompt's by an index out of range, and so those of stop_token_ids where
// min_tokens hides them.
func (q *Request) CheckTokens(vocabulary int) *Error {
	if raw, ok := q.Raw("prompt"); ok && q.Route == Completions && raw[0] == '[' {
		for w := elements(raw); w.next(); {
			value := w.value()
			switch kindOf(value) {
			case aString:
				return nil // a list of texts, as Prompts makes sure
			case anArray:
				if err := checkIDs("prompt", value, vocabulary); err != nil {
					return err
				}
			default:
				if err := checkID("prompt", value, vocabulary); err != nil {
					return err
				}
			}
		}
	}
	for _, name := range [...]string{"stop_token_ids", "allowed_token_ids", "logprob_token_ids"} {
		if raw, ok := q.Raw(name); ok {
			if err := checkIDs(name, raw, vocabulary); err != nil {
				return err
			}
		}
	}
	return q.checkBias(vocabulary)
}

// checkIDs checks that raw is a list of token ids.
func checkIDs(name string, raw []byte, vocabulary int) *Error {
	if raw[0] != '[' {
		return invalid(name, "%s must be a list of token ids", name)
	}
	for w := elements(raw); w.next(); {
		if err := checkID(name, w.value(), vocabulary); err != nil {
			return err
		}
	}
	return nil
}

func checkID(name string, raw []byte, vocabulary int) *Error {
	if id, ok := integer(raw); !ok || id < 0 || id >= int64(vocabulary) {
		return invalid(name, "%s: %.32s is no token id: they go from 0 to %d", name, raw, vocabulary-1)
	}
	return nil
}

// checkBias checks the keys of logit_bias, which are token ids.
func (q *Request) checkBias(vocabulary int) *Error {
	const name = "logit_bias"
	raw, ok := q.Raw(name)
	if !ok {
		return nil
	}
	if raw[0] != '{' {
		return invalid(name, "logit_bias must be an object of numbers by token id")
	}
	for w := members(raw); w.next(); {
		if id, ok := integer(w.key); !ok || id < 0 || id >= int64(vocabulary) {
			return invalid(name, "logit_bias: %.32q is no token id: they go from 0 to %d", w.key, vocabulary-1)
		}
	}
	return nil
}

package openai

import (
	"fmt"
	"strings"

	"tidegate/gateway/jsonwalk"
)

// CheckTokens checks that every token id in the body is below vocabulary, the number of rows
// of the embedding, and rewrites it in plain digits. vLLM before 0.20 does not check all of
// them, and an id without a row kills its engine by an index out of range: one of the
// prompt, or of stop_token_ids together with min_tokens.
func (q *Request) CheckTokens(vocabulary int) *Error {
	if raw, ok := q.Raw("prompt"); ok && q.Route == Completions && raw[0] == '[' {
		if err := q.checkIDs("prompt", raw, vocabulary); err != nil {
			return err
		}
	}
	for _, name := range [...]string{"stop_token_ids", "allowed_token_ids", "logprob_token_ids"} {
		raw, ok := q.Raw(name)
		if !ok {
			continue
		}
		if raw[0] != '[' {
			return invalid(name, "%s must be a list of token ids", name)
		}
		if err := q.checkIDs(name, raw, vocabulary); err != nil {
			return err
		}
	}
	return q.checkBias(vocabulary)
}

// checkIDs checks the member with this name, a list of token ids. A prompt may also be a
// list of such lists, or of texts.
func (q *Request) checkIDs(name string, raw []byte, vocabulary int) *Error {
	plain := plainNumbers{raw: raw}
	for w := jsonwalk.Elements(raw); w.Next(); {
		value := w.Value()
		if k := kindOf(value); name == "prompt" && k == stringKind {
			return nil // Prompts has checked that all are texts
		} else if name != "prompt" || k != arrayKind {
			if err := plain.checkID(name, value, vocabulary); err != nil {
				return err
			}
			continue
		}
		for w := jsonwalk.Elements(value); w.Next(); {
			if err := plain.checkID(name, w.Value(), vocabulary); err != nil {
				return err
			}
		}
	}
	if raw, changed := plain.text(); changed {
		q.Set(name, raw)
	}
	return nil
}

// checkID checks the next token id and adds it to r.
func (r *plainNumbers) checkID(name string, raw []byte, vocabulary int) *Error {
	id, ok := lenientInteger(raw)
	if !ok || id < 0 || id >= int64(vocabulary) {
		return outOfVocabulary(name, []string{fmt.Sprintf("%.32s", raw)}, 1, vocabulary)
	}
	r.add(raw, id)
	return nil
}

// outOfVocabulary returns the error of a member with token ids that the vocabulary does not
// have. It quotes shown, the first of count such ids.
func outOfVocabulary(name string, shown []string, count, vocabulary int) *Error {
	list, verb := strings.Join(shown, ", "), "are"
	switch {
	case count == 1:
		verb = "is"
	case count > len(shown):
		list = fmt.Sprintf("%s and %d more", list, count-len(shown))
	}
	return invalid(name, "%s: %s %s out of vocabulary: the %d token ids go from 0 to %d", name, list, verb, vocabulary, vocabulary-1)
}

// checkBias checks the keys of logit_bias, which are token ids. Its error quotes the first 8
// that are not; vLLM quotes all.
func (q *Request) checkBias(vocabulary int) *Error {
	const name = "logit_bias"
	raw, ok := q.Raw(name)
	if !ok {
		return nil
	}
	if raw[0] != '{' {
		return invalid(name, "logit_bias must be an object of numbers by token id")
	}
	const maxShown = 8
	var shown []string
	wrong := 0
	plain := plainNumbers{raw: raw}
	for w := jsonwalk.Members(raw); w.Next(); {
		id, ok := integer(w.Key)
		if !ok || id < 0 || id >= int64(vocabulary) {
			if wrong++; wrong <= maxShown {
				shown = append(shown, fmt.Sprintf("%.32q", w.Key))
			}
			continue
		}
		plain.add(w.Key, id)
	}
	if wrong > 0 {
		return outOfVocabulary(name, shown, wrong, vocabulary)
	}
	if raw, changed := plain.text(); changed {
		q.Set(name, raw)
	}
	return nil
}

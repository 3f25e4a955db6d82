package refusal

import "strings"

// MaxQuoted bounds how much of a caller's words a message repeats, in bytes.
const MaxQuoted = 200

// Clip returns the first MaxQuoted bytes of a text, with an ellipsis where there are more.
func Clip(text string) string {
	if len(text) > MaxQuoted {
		return text[:MaxQuoted] + "…"
	}
	return text
}

// Quote returns a name between backquotes, clipped, as messages name what a caller sent.
func Quote(name string) string {
	if len(name) > MaxQuoted {
		name = strings.ToValidUTF8(name[:MaxQuoted], "") + "…"
	}
	return "`" + name + "`"
}

// quoteAll quotes names, with commas and a conjunction between.
func quoteAll(names []string, conjunction string) string {
	var b strings.Builder
	for i, n := range names {
		switch {
		case i > 0 && i == len(names)-1:
			b.WriteString(" " + conjunction + " ")
		case i > 0:
			b.WriteString(", ")
		}
		b.WriteString(Quote(n))
	}
	return b.String()
}

// NothingAt refuses a method and a path that there are not; advice says what there is
// instead.
func NothingAt(method, path, advice string) *Refusal {
	return New(UnknownURL, "", "there is nothing at "+Clip(method)+" "+Clip(path)+": "+advice)
}

// UnknownModel refuses a model that there is not. It suggests some of the names that the
// caller's key may use.
func UnknownModel(name string, usable []string) *Refusal {
	return New(ModelNotFound, "model", "there is no model "+Quote(name)+" here: "+SuggestModel(name, usable))
}

// SuggestModel returns in words which models a caller may have meant by a name, out of
// those that its key may use.
func SuggestModel(name string, usable []string) string {
	const list = "GET /v1/models lists those that this key may use"
	switch likely, complete := suggestions(name, usable); {
	case len(likely) == 0 && complete:
		return "this key may use no model that there is"
	case len(likely) == 0:
		return list
	case complete:
		return "this key may use " + quoteAll(likely, "and")
	default:
		return "did you mean " + quoteAll(likely, "or") + "? " + list
	}
}

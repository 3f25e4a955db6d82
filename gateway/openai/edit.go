package openai

import "slices"

// edit replaces raw[from:to].
type edit struct {
	from, to int
	with     []byte
}

// edits are what changes in one text.
type edits struct {
	raw  []byte
	list []edit
}

// offset is where inner, a part of raw, begins in it. Both end in the same
// array, so their capacities differ by just that.
func offset(raw, inner []byte) int { return cap(raw) - cap(inner) }

func (e *edits) reset(raw []byte) { e.raw, e.list = raw, e.list[:0] }

func (e *edits) replace(span, with []byte) {
	at := offset(e.raw, span)
	e.list = append(e.list, edit{at, at + len(span), with})
}

// insert puts bytes right behind span.
func (e *edits) insert(span, with []byte) {
	at := offset(e.raw, span) + len(span)
	e.list = append(e.list, edit{at, at, with})
}

// cut takes out the member of w whose value was just taken; w walks a part of raw.
func (e *edits) cut(w *walker, first bool) { e.list = append(e.list, e.cutting(w, first)) }

// cutting is the edit that takes out a member and one of the commas beside it:
// the one before it, or, where nothing stands before it, the one behind it.
func (e *edits) cutting(w *walker, first bool) edit {
	base := offset(e.raw, w.b)
	from, to := base+w.start, base+w.i
	if first {
		for to < len(e.raw) && isSpace(e.raw[to]) {
			to++
		}
		if to < len(e.raw) && e.raw[to] == ',' {
			to++
		}
	} else {
		for e.raw[from] != ',' {
			from--
		}
	}
	return edit{from, to, nil}
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

// append writes raw with its edits behind dst.
func (e *edits) append(dst []byte) []byte {
	if len(e.list) > 1 {
		slices.SortStableFunc(e.list, func(a, b edit) int { return a.from - b.from })
	}
	at := 0
	for _, x := range e.list {
		dst = append(append(dst, e.raw[at:x.from]...), x.with...)
		at = x.to
	}
	return append(dst, e.raw[at:]...)
}

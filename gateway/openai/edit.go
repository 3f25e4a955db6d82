package openai

import (
	"slices"

	"tidegate/gateway/jsonwalk"
)

// An edit replaces raw[start:end] by text.
type edit struct {
	start, end int
	text       []byte
}

// edits is a list of edits of one text.
type edits struct {
	raw  []byte
	list []edit
}

// offset returns the place in raw at which its part inner begins. Both slices end with the
// same array, so their capacities differ by exactly that.
func offset(raw, inner []byte) int { return cap(raw) - cap(inner) }

func (e *edits) reset(raw []byte) { e.raw, e.list = raw, e.list[:0] }

func (e *edits) replace(span, text []byte) {
	start := offset(e.raw, span)
	e.list = append(e.list, edit{start, start + len(span), text})
}

// insert inserts text directly behind span.
func (e *edits) insert(span, text []byte) {
	end := offset(e.raw, span) + len(span)
	e.list = append(e.list, edit{end, end, text})
}

// cut removes the member of w whose value was just read; w walks a part of raw. first means
// that no member is left before it.
func (e *edits) cut(w *jsonwalk.Walker, first bool) { e.list = append(e.list, e.cutEdit(w, first)) }

// cutEdit returns the edit that removes a member and one of the commas beside it: the one
// before it, or, for the first member, the one behind it.
func (e *edits) cutEdit(w *jsonwalk.Walker, first bool) edit {
	base := offset(e.raw, w.Raw())
	start, end := base+w.Start, base+w.Pos()
	if first {
		for end < len(e.raw) && jsonwalk.IsSpace(e.raw[end]) {
			end++
		}
		if end < len(e.raw) && e.raw[end] == ',' {
			end++
		}
	} else {
		for e.raw[start] != ',' {
			start--
		}
	}
	return edit{start, end, nil}
}

// append appends raw with its edits to dst.
func (e *edits) append(dst []byte) []byte {
	if len(e.list) > 1 {
		slices.SortStableFunc(e.list, func(a, b edit) int { return a.start - b.start })
	}
	pos := 0
	for _, x := range e.list {
		dst = append(append(dst, e.raw[pos:x.start]...), x.text...)
		pos = x.end
	}
	return append(dst, e.raw[pos:]...)
}

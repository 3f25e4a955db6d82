package openai

import "tidegate/gateway/jsonwalk"

// Log probabilities are an object of arrays. A chat has one entry for each token under
// content; a completion has four parallel arrays. In both, the entries with the same index
// form a row, and a long object is cut between rows.

// maxColumns bounds the members of such an object; the API has four.
const maxColumns = 8

// A column is one array of the object.
type column struct {
	key        []byte
	w          jsonwalk.Walker // its position is behind the next entry
	hasNext    bool            // whether there is a next entry
	start, end int             // entries of the current chunk, as a range of the array
}

// rows iterates over the rows of the object.
type rows struct {
	columns []column
	rest    []field // short members that are no arrays
	shell   int     // length of the object without the rows, in bytes
}

// readRows reads the object of log probabilities of one choice.
func readRows(object []byte) (r rows) {
	r.shell = len(`,"logprobs":{}`)
	for w := jsonwalk.Members(object); w.Next() && len(r.columns)+len(r.rest) < maxColumns; {
		key, value := w.Key, w.Value()
		if len(key) > maxShort {
			continue
		}
		if value[0] == '[' {
			c := column{key: key, w: jsonwalk.Elements(value)}
			c.advance()
			r.columns = append(r.columns, c)
			r.shell += len(key) + len(`,"":[]`)
		} else if f := (field{key, value}); len(value) <= maxShort {
			r.rest = append(r.rest, f)
			r.shell += f.size()
		}
	}
	return r
}

// advance moves to the next entry.
func (c *column) advance() {
	if c.hasNext = c.w.Next(); c.hasNext {
		c.w.Value()
	}
}

// probabilities writes log probabilities beside the delta, and into as many further chunks
// as they need.
func (s *stream) probabilities(object []byte) {
	r := readRows(object)
	if s.endCalls(); s.room() < r.shell+minPiece {
		s.next()
	}
	for newChunk := false; ; newChunk = true {
		s.endDelta()
		r.fill(s.room()-r.shell, newChunk)
		s.key("logprobs")
		s.out = r.append(s.out)
		s.hasLogprobs = true
		if !r.hasNext() {
			return
		}
		s.next()
	}
}

// hasNext reports whether a row is left.
func (r *rows) hasNext() bool {
	for i := range r.columns {
		if r.columns[i].hasNext {
			return true
		}
	}
	return false
}

// fill selects as many rows for the chunk as fit into room bytes. A row that does not fit
// into a new chunk fits nowhere: it is left out, so that each call makes progress.
func (r *rows) fill(room int, newChunk bool) {
	for i := range r.columns {
		r.columns[i].start, r.columns[i].end = 0, 0
	}
	filled := false
	for r.hasNext() {
		size := 0
		for i := range r.columns {
			c := &r.columns[i]
			start, end := c.span()
			size += end - start
		}
		fits := size <= room
		if !fits && (filled || !newChunk) {
			return
		}
		for i := range r.columns {
			c := &r.columns[i]
			if fits {
				c.start, c.end = c.span()
			}
			if c.hasNext {
				c.advance()
			}
		}
		filled = filled || fits
	}
}

// span returns the column's range in the chunk including its next entry, if it has one.
func (c *column) span() (start, end int) {
	switch {
	case !c.hasNext:
		return c.start, c.end
	case c.end == 0:
		return c.w.Start, c.w.Pos()
	}
	return c.start, c.w.Pos()
}

// append appends the object with the selected rows.
func (r *rows) append(dst []byte) []byte {
	open := byte('{')
	for i := range r.columns {
		c := &r.columns[i]
		dst = append(append(append(dst, open, '"'), c.key...), `":[`...)
		dst = append(appendFlat(dst, c.w.Raw()[c.start:c.end]), ']')
		open = ','
	}
	for _, f := range r.rest {
		dst = append(append(append(dst, open, '"'), f.key...), `":`...)
		dst = appendFlat(dst, f.value)
		open = ','
	}
	if open == '{' {
		dst = append(dst, open)
	}
	return append(dst, '}')
}

package openai

// Log probabilities are an object of arrays: of a chat one entry for each token
// under content, of a completion four arrays side by side. Either way the entries
// at one place belong together, a row, and a long object is cut between rows.

// maxColumns bounds the members of such an object; the API has four.
const maxColumns = 8

type column struct {
	key  []byte
	w    walker // stands behind the entry that comes next
	more bool   // there is such an entry
	// What goes into the chunk under way; the entries are neighbours in w.b.
	from, to int
}

type rows struct {
	columns []column
	rest    []field // short members that are no arrays
	shell   int     // bytes of it all without the rows
}

func readRows(object []byte) (r rows) {
	r.shell = len(`,"logprobs":{}`)
	for w := members(object); w.next() && len(r.columns)+len(r.rest) < maxColumns; {
		key, value := w.key, w.value()
		if len(key) > maxShort {
			continue
		}
		if value[0] == '[' {
			c := column{key: key, w: elements(value)}
			c.step()
			r.columns = append(r.columns, c)
			r.shell += len(key) + len(`,"":[]`)
		} else if f := (field{key, value}); len(value) <= maxShort {
			r.rest = append(r.rest, f)
			r.shell += f.size()
		}
	}
	return r
}

func (c *column) step() {
	if c.more = c.w.next(); c.more {
		c.w.value()
	}
}

// probabilities puts log probabilities beside the delta and into as many chunks
// behind it as they need.
func (s *stream) probabilities(object []byte) {
	r := readRows(object)
	if s.endCalls(); s.room() < r.shell+minPiece {
		s.next()
	}
	for fresh := false; ; fresh = true {
		s.endDelta()
		r.take(s.room()-r.shell, fresh)
		s.key("logprobs")
		s.out = r.append(s.out)
		s.logged = true
		if !r.more() {
			return
		}
		s.next()
	}
}

func (r *rows) more() bool {
	for i := range r.columns {
		if r.columns[i].more {
			return true
		}
	}
	return false
}

// take sets aside as many rows as fit. Where the chunk is fresh, a row that does
// not fit fits nowhere: it is left out, so that each call gets on.
func (r *rows) take(room int, fresh bool) {
	for i := range r.columns {
		r.columns[i].from, r.columns[i].to = 0, 0
	}
	taken := false
	for r.more() {
		size := 0
		for i := range r.columns {
			c := &r.columns[i]
			from, to := c.span()
			size += to - from
		}
		fits := size <= room
		if !fits && (taken || !fresh) {
			return
		}
		for i := range r.columns {
			c := &r.columns[i]
			if fits {
				c.from, c.to = c.span()
			}
			if c.more {
				c.step()
			}
		}
		taken = taken || fits
	}
}

// span is what the column takes with its next entry, if it has one.
func (c *column) span() (from, to int) {
	switch {
	case !c.more:
		return c.from, c.to
	case c.to == 0:
		return c.w.start, c.w.i
	}
	return c.from, c.w.i
}

func (r *rows) append(dst []byte) []byte {
	open := byte('{')
	for i := range r.columns {
		c := &r.columns[i]
		dst = append(append(append(dst, open, '"'), c.key...), `":[`...)
		dst = append(appendFlat(dst, c.w.b[c.from:c.to]), ']')
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

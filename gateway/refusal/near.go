package refusal

import (
	"cmp"
	"slices"
	"strings"
)

// MaxCompared bounds how much of two names is compared, in bytes: the time of a
// comparison grows with the product.
const MaxCompared = 64

// Distance returns how many letters must be put in, taken out or replaced to make one
// name of the other, which is Levenshtein's distance of their first MaxCompared bytes.
func Distance(a, b string) int {
	a, b = a[:min(len(a), MaxCompared)], b[:min(len(b), MaxCompared)]
	var row [MaxCompared + 1]int
	for j := range len(b) + 1 {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// IsNear reports whether a distance between names of such a length is a slip of the pen.
func IsNear(distance, length int) bool { return distance <= max(1, min(3, length/4)) }

// maxSuggested bounds how many names a refusal suggests.
const maxSuggested = 3

// suggestions returns the names that a caller may have meant by one that there is not,
// the likeliest first. all is true where there are so few that these are all of them.
func suggestions(name string, names []string) (likely []string, complete bool) {
	type candidate struct {
		name  string
		score int // 0: the same but for case and owner
	}
	asked := bareName(name)
	candidates := make([]candidate, 0, len(names))
	complete = len(names) <= maxSuggested
	for _, n := range names {
		known := bareName(n)
		score := Distance(asked, known)
		near := IsNear(score, len(asked))
		if !near && len(asked) > 2 && (strings.Contains(known, asked) || strings.Contains(asked, known)) {
			near, score = true, min(score, maxSuggested) // a part of it, such as the family
		}
		switch {
		case near:
			candidates = append(candidates, candidate{n, score})
		case complete:
			candidates = append(candidates, candidate{n, MaxCompared})
		}
	}
	slices.SortStableFunc(candidates, func(a, b candidate) int { return cmp.Compare(a.score, b.score) })
	for _, c := range candidates[:min(len(candidates), maxSuggested)] {
		likely = append(likely, c.name)
	}
	return likely, complete
}

// bareName returns a model's name in small letters, without who made it.
func bareName(name string) string {
	if i := strings.LastIndexByte(name, '/'); i >= 0 && i < len(name)-1 {
		name = name[i+1:]
	}
	return strings.ToLower(name[:min(len(name), MaxCompared)])
}

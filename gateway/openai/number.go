package openai

import (
	"bytes"
	"math"
	"strconv"
	"strings"

	"tidegate/gateway/jsonwalk"
)

// integer reads a whole JSON number in any spelling: 16, 16.0 or 1.6e1. One too large for 64
// bits becomes math.MaxInt64, or -math.MaxInt64.
func integer(raw []byte) (n int64, ok bool) {
	digits, negative := bytes.CutPrefix(raw, []byte("-"))
	const plain = 18 // digits that always fit into 64 bits
	if len(digits) == 0 || len(digits) > plain {
		return wholeNumber(digits, negative)
	}
	for _, c := range digits {
		if c-'0' > 9 {
			return wholeNumber(digits, negative)
		}
		n = n*10 + int64(c-'0')
	}
	if negative {
		n = -n
	}
	return n, true
}

// lenientInteger reads a whole number as pydantic does for vLLM: a whole JSON number, a text
// of digits such as "100", "+5" or "100.0", or true and false for 1 and 0.
func lenientInteger(raw []byte) (n int64, ok bool) {
	if n, ok = integer(raw); ok {
		return n, true
	}
	if value, isBool := plainBoolean(raw); isBool {
		if value {
			n = 1
		}
		return n, true
	}
	if len(raw) > maxFigureText {
		return 0, false
	}
	s, ok := jsonwalk.Text(raw)
	if !ok {
		return 0, false
	}
	return textInteger(s)
}

// maxFigureText bounds a number that is written as a string, in bytes of JSON.
const maxFigureText = 64

// textInteger reads digits with an optional sign. It allows white space around them, single
// underscores between them and a fraction of zeros.
func textInteger(s string) (n int64, ok bool) {
	s = strings.TrimSpace(s)
	digits, negative := strings.CutPrefix(s, "-")
	if !negative {
		digits = strings.TrimPrefix(s, "+")
	}
	digits, fraction, pointed := strings.Cut(digits, ".")
	if digits == "" || pointed && (fraction == "" || strings.Trim(fraction, "0") != "") {
		return 0, false
	}
	for i := range len(digits) {
		switch c := digits[i]; {
		case c-'0' <= 9:
			n = appendDigit(n, int64(c-'0'))
		case c != '_', i == 0, i == len(digits)-1, digits[i-1] == '_':
			return 0, false
		}
	}
	if negative {
		n = -n
	}
	return n, true
}

// lenientBoolean reads true or false as pydantic does for vLLM: the JSON words, 1 and 0 as
// numbers or texts, and the texts true, t, yes, y, on, false, f, no, n and off.
func lenientBoolean(raw []byte) (value, ok bool) {
	if value, ok = plainBoolean(raw); ok {
		return value, true
	}
	if n, whole := integer(raw); whole {
		return n == 1, n == 0 || n == 1
	}
	if len(raw) > maxFigureText {
		return false, false
	}
	s, _ := jsonwalk.Text(raw)
	switch strings.ToLower(s) {
	case "1", "true", "t", "yes", "y", "on":
		return true, true
	case "0", "false", "f", "no", "n", "off":
		return false, true
	}
	return false, false
}

// plainBoolean reads the JSON words true and false.
func plainBoolean(raw []byte) (value, ok bool) {
	switch string(raw) {
	case "true":
		return true, true
	case "false":
		return false, true
	}
	return false, false
}

// wholeNumber is integer for any spelling; raw has no sign.
func wholeNumber(raw []byte, negative bool) (n int64, ok bool) {
	mantissa, exponent := raw, 0
	if i := bytes.IndexAny(raw, "eE"); i >= 0 {
		mantissa = raw[:i]
		if exponent, ok = parseExponent(raw[i+1:]); !ok {
			return 0, false
		}
	}
	whole, fraction, pointed := bytes.Cut(mantissa, []byte("."))
	if len(whole) == 0 || pointed && len(fraction) == 0 {
		return 0, false
	}
	places := len(whole) + exponent // digits before the point
	for i := range len(whole) + len(fraction) {
		c := byte(0)
		if i < len(whole) {
			c = whole[i]
		} else {
			c = fraction[i-len(whole)]
		}
		switch digit := c - '0'; {
		case digit > 9, i >= places && digit > 0:
			return 0, false
		case i < places:
			n = appendDigit(n, int64(digit))
		}
	}
	for i := len(whole) + len(fraction); i < places && n > 0 && n < math.MaxInt64; i++ {
		n = appendDigit(n, 0)
	}
	if negative {
		n = -n
	}
	return n, true
}

// maxExponent bounds an exponent. No body is long enough that a larger one would make a
// difference within 64 bits.
const maxExponent = 1 << 40

// parseExponent reads the exponent behind the e of a number; ok is false if it is no whole
// number. One beyond maxExponent counts as maxExponent.
func parseExponent(raw []byte) (n int, ok bool) {
	digits, negative := bytes.CutPrefix(raw, []byte("-"))
	if !negative {
		digits = bytes.TrimPrefix(raw, []byte("+"))
	}
	for _, c := range digits {
		if c-'0' > 9 {
			return 0, false
		}
		n = min(n*10+int(c-'0'), maxExponent)
	}
	if negative {
		n = -n
	}
	return n, len(digits) > 0
}

// isPlain reports whether a number is written as digits without a leading zero, with a
// minus sign at most.
func isPlain(raw []byte) bool {
	digits := bytes.TrimPrefix(raw, []byte("-"))
	for _, c := range digits {
		if c-'0' > 9 {
			return false
		}
	}
	return len(digits) == 1 || len(digits) > 1 && digits[0] != '0'
}

// plainNumbers rewrites the whole numbers of a JSON text as plain digits, so that the next
// reader cannot read another value.
type plainNumbers struct {
	raw, out []byte
	last     int // bytes of raw already in out
}

// add adds the next number: span is its text, a part of raw, and n its value.
func (r *plainNumbers) add(span []byte, n int64) {
	if isPlain(span) {
		return
	}
	if r.out == nil {
		r.out = make([]byte, 0, len(r.raw))
	}
	start := offset(r.raw, span)
	r.out = strconv.AppendInt(append(r.out, r.raw[r.last:start]...), n, 10)
	r.last = start + len(span)
}

// text returns the rewritten text; changed is false if all numbers were plain.
func (r *plainNumbers) text() (text []byte, changed bool) {
	if r.out == nil {
		return r.raw, false
	}
	return append(r.out, r.raw[r.last:]...), true
}

// appendDigit returns 10n + digit, or math.MaxInt64 if that is larger.
func appendDigit(n, digit int64) int64 {
	if n > (math.MaxInt64-digit)/10 {
		return math.MaxInt64
	}
	return n*10 + digit
}

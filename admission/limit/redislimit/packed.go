package redislimit

import (
	"encoding/binary"
	"math"
	"strings"

	"tidegate/admission/limit"
)

// unpackRecord returns the packed dimensions of a record, and their keys; nothing where it
// is malformed.
func unpackRecord(record string) (dims string, keys []string) {
	const head = recordFields * number
	if len(record) < head {
		return "", nil
	}
	// Each is bounded by the record before it is used, so that nothing overflows.
	n, length, charged := field(record, recordCount), field(record, recordLength), field(record, recordCharged)
	if n < 1 || n > maxDims || length < 1 || length > int64(len(record)) || charged < 0 || charged > 1 {
		return "", nil
	}
	start := head + n*number + charged*n*2*number
	end := start + length
	if int64(len(record)) < end {
		return "", nil
	}
	keys = strings.Split(record[end:], "\x00")
	if dims = record[start:end]; int64(len(keys)) != n || !wellFormed(dims, len(keys)) {
		return "", nil
	}
	return dims, keys
}

// maxDims bounds the dimensions of a record that is read back.
const maxDims = 500

// field returns a number of a packed list; -1 where it is none that a counter can have.
func field(packed string, i int) int64 {
	f := math.Float64frombits(binary.LittleEndian.Uint64([]byte(packed[i*number : (i+1)*number])))
	if !(f >= 0 && f <= 1<<53) {
		return -1
	}
	return int64(f)
}

// wellFormed reports whether a text is n packed dimensions.
func wellFormed(dims string, n int) bool {
	if len(dims)%number != 0 {
		return false
	}
	size := len(dims) / number
	offset := 0
	for range n {
		if offset+fieldsOfLease > size {
			return false
		}
		kind, fields := limit.Kind(field(dims, offset+dimKind)), fieldsOf(limit.Kind(field(dims, offset+dimKind)), field(dims, offset+dimEdge) != 0)
		if kind < limit.Window || kind > limit.Quota || offset+fields > size {
			return false
		}
		for i := range fields {
			if field(dims, offset+i) < 0 {
				return false
			}
		}
		if kind == limit.Window && (field(dims, offset+dimWindow) < 1 || field(dims, offset+dimBucket) < 1) {
			return false
		}
		offset += fields
	}
	return offset == size
}

// fieldsOf returns the number of fields that a dimension of a kind has; all where its limit
// changes by the clock.
func fieldsOf(kind limit.Kind, edge bool) int {
	switch {
	case edge:
		return maxFields
	case kind == limit.Quota:
		return fieldsOfQuota
	case kind == limit.Lease:
		return fieldsOfLease
	}
	return fieldsOfWindow
}

func packNumbers(numbers []int64) string {
	out := make([]byte, 0, len(numbers)*number)
	for _, n := range numbers {
		out = appendNumber(out, n)
	}
	return string(out)
}

func appendNumber(out []byte, n int64) []byte {
	return binary.LittleEndian.AppendUint64(out, math.Float64bits(float64(n)))
}

// packDims packs dimensions as limit.lua reads them: without the fields that a kind does not
// have, unless its limit changes by the clock.
func packDims(dims []limit.Dim) string {
	out := make([]byte, 0, len(dims)*maxFields*number)
	for i := range dims {
		d := &dims[i]
		soft := int64(0)
		if d.Soft {
			soft = 1
		}
		fields := [maxFields]int64{
			dimKind: int64(d.Kind), dimSoft: soft, dimLimit: d.Limit, dimCost: d.Cost, dimEdge: d.EdgeMs, dimFloor: d.Floor,
			dimWindow: d.WindowMs, dimBucket: d.BucketMs, dimBurst: d.Burst, dimNextLimit: d.NextLimit, dimNextBurst: d.NextBurst,
		}
		if d.Kind == limit.Quota {
			fields[dimEdge], fields[dimBegin], fields[dimEnd] = 0, d.BeginMs, d.EndMs
		}
		for _, f := range fields[:fieldsOf(d.Kind, fields[dimEdge] != 0)] {
			out = appendNumber(out, f)
		}
	}
	return string(out)
}

// unpackStates returns the verdict, and writes the states of a group to their places.
func unpackStates(answer any, g *group, states []limit.State) (verdict int64, err error) {
	text, _ := answer.(string)
	next := func() int64 {
		f := math.Float64frombits(binary.LittleEndian.Uint64([]byte(text[:number])))
		text = text[number:]
		return int64(min(max(f, -1<<53), 1<<53)) // nothing that is too large, nor NaN, has a meaning
	}
	if len(text) == number {
		return next(), nil // an error, which has no states
	}
	if len(text) != number*(stateHead+len(g.dims)*stateFields) {
		return 0, errAnswer
	}
	verdict = next()
	now := next()
	for i, index := range g.indexes {
		d := &g.dims[i]
		s := limit.State{Limit: d.Limit, Used: next(), Remaining: next(), ResetMs: next(), RetryAfterMs: next()}
		if d.EdgeMs != 0 && now >= d.EdgeMs && d.Kind != limit.Quota {
			s.Limit = d.NextLimit
		}
		s.Exceeded = s.RetryAfterMs != 0
		if s.TooLarge = s.RetryAfterMs < 0; s.TooLarge {
			s.RetryAfterMs = 0
		}
		states[index] = s
	}
	return verdict, nil
}

package ledger

import (
	"encoding/binary"
	"errors"
	"strings"
	"time"

	"tidegate/gateway/openai"
)

// Record is one finished generation. Add cleans it so that every database accepts it:
// texts are valid UTF-8 of at most 256 bytes without NUL, numbers run from 0 to 2^40, the
// level to 9 and the status to 999, and times are whole milliseconds.
type Record struct {
	ID         string    // request id, unique among all gateways for ever: a second record with the same id is not counted
	Time       time.Time // begin of the request: quotas are charged to the periods of this moment
	Department string
	Project    string
	User       string
	Key        string // name of the key
	Asked      string // model as the caller named it
	Model      string // model that answered
	Level      int    // level of degradation, 0 to 4
	Status     int    // HTTP status; 499: the caller left
	Usage      openai.Usage
	Estimated  bool          // a figure of Usage is the gateway's own, because the engine gave none that can be true
	Units      int64         // charge to quotas, in thousandths of a unit
	Queue      time.Duration // wait for a place on a backend
	TTFT       time.Duration // time to the first token; 0: no token, or not known
	Took       time.Duration // time from the request's head to the end of its answer
	GPU        time.Duration // GPU time; 0: not known
}

// Bounds of a record.
const (
	maxText   = 256             // bytes of a text
	maxNumber = 1 << 40         // so that 8 million records add up within 63 bits
	maxMillis = 253402300799999 // the end of the year 9999
)

// failed reports whether the caller got an error or half an answer.
func (r *Record) failed() bool { return r.Status >= 400 && r.Status != 499 }

// clean makes the record acceptable to every database. A batch with one that is not could
// never be shipped.
func (r *Record) clean() {
	for _, s := range []*string{&r.ID, &r.Department, &r.Project, &r.User, &r.Key, &r.Asked, &r.Model} {
		*s = cleanText(*s)
	}
	r.Time = time.UnixMilli(min(max(r.Time.UnixMilli(), 0), maxMillis)).UTC()
	u := &r.Usage
	for _, n := range []*int{&u.Input, &u.Cached, &u.Output, &u.Reasoning} {
		*n = min(max(*n, 0), maxNumber)
	}
	u.Cached, u.Reasoning = min(u.Cached, u.Input), min(u.Reasoning, u.Output)
	r.Level, r.Status = min(max(r.Level, 0), 9), min(max(r.Status, 0), 999)
	r.Units = min(max(r.Units, 0), maxNumber)
	for _, d := range []*time.Duration{&r.Queue, &r.TTFT, &r.Took, &r.GPU} {
		*d = max(*d, 0).Truncate(time.Millisecond)
	}
}

func cleanText(s string) string {
	ok := len(s) <= maxText
	for i := 0; ok && i < len(s); i++ {
		ok = s[i] > 0 && s[i] < 0x80
	}
	if ok {
		return s
	}
	s = strings.ReplaceAll(s[:min(len(s), maxText)], "\x00", "")
	return strings.ToValidUTF8(s, "")
}

const (
	texts   = 7  // of a record
	numbers = 13 // of a record, in the order of numbers
	inputAt = 3  // where those of the usage begin
	unitsAt = 8
)

func (r *Record) texts() [texts]string {
	return [...]string{r.ID, r.Department, r.Project, r.User, r.Key, r.Asked, r.Model}
}

func (r *Record) numbers() [numbers]int64 {
	return [...]int64{
		r.Time.UnixMilli(), int64(r.Level), int64(r.Status), int64(r.Usage.Input), int64(r.Usage.Cached), int64(r.Usage.Output),
		int64(r.Usage.Reasoning), flag(r.Estimated), r.Units,
		r.Queue.Milliseconds(), r.TTFT.Milliseconds(), r.Took.Milliseconds(), r.GPU.Milliseconds(),
	}
}

// setNumbers sets the numbers that numbers returned. The caller cleans the record.
func (r *Record) setNumbers(n [numbers]int64) {
	millis := func(n int64) time.Duration { return time.Duration(min(n, maxNumber/1000)) * time.Millisecond }
	r.Time = time.UnixMilli(n[0])
	r.Level, r.Status = int(n[1]), int(n[2])
	r.Usage = openai.Usage{Input: int(n[3]), Cached: int(n[4]), Output: int(n[5]), Reasoning: int(n[6])}
	r.Estimated = n[7] == 1
	r.Units = n[8]
	r.Queue, r.TTFT, r.Took, r.GPU = millis(n[9]), millis(n[10]), millis(n[11]), millis(n[12])
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// version is the first byte of an encoded record.
const version = 1

// encode appends a clean record.
func (r *Record) encode(b []byte) []byte {
	b = append(b, version)
	for _, s := range r.texts() {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	for _, n := range r.numbers() {
		b = binary.AppendUvarint(b, uint64(n))
	}
	return b
}

var errRecord = errors.New("not a usage record")

// decode reads a record that encode appended.
func decode(b []byte) (r Record, err error) {
	if len(b) == 0 || b[0] != version {
		return r, errRecord
	}
	b = b[1:]
	number := func() int64 {
		n, size := binary.Uvarint(b)
		if size <= 0 || n > 1<<62 {
			err, b = errRecord, nil
			return 0
		}
		b = b[size:]
		return int64(n)
	}
	for _, s := range []*string{&r.ID, &r.Department, &r.Project, &r.User, &r.Key, &r.Asked, &r.Model} {
		n := number()
		if n > int64(len(b)) {
			return r, errRecord
		}
		*s, b = string(b[:n]), b[n:]
	}
	var values [numbers]int64
	for i := range values {
		values[i] = number()
	}
	r.setNumbers(values)
	if err == nil && len(b) > 0 {
		err = errRecord
	}
	r.clean()
	return r, err
}

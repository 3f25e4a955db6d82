package ledger

import (
	"encoding/binary"
	"errors"
	"strings"
	"time"

	"tidegate/gateway/openai"
)

// Record is one finished generation. Add cleans it so that every database takes
// it: texts are cut at 256 bytes and are UTF-8 without NUL, numbers run from 0 to
// 2^40, the level to 9 and the status to 999, and times are whole milliseconds.
type Record struct {
	ID         string    // of the request, unique among all gateways for ever: a second record of the same id is not counted
	Time       time.Time // when the request began: its quotas are charged to the periods of this moment
	Department string
	Project    string
	User       string
	Key        string // the key's name
	Asked      string // the model as the caller named it
	Model      string // the model that was served
	Level      int    // of degradation, 0 to 4
	Status     int    // of HTTP; 499: the caller left
	Usage      openai.Usage
	Estimated  bool          // a figure of Usage is the gateway's own: the engine gave none, or one that cannot be true
	Units      int64         // what quotas were charged, in thousandths of a unit
	Queue      time.Duration // waiting for a place
	TTFT       time.Duration // to the first token; 0: there was none, or it is not known
	Took       time.Duration // from the request's head to the end of its answer
	GPU        time.Duration // of GPUs' time; 0: not known
}

// Bounds of a record.
const (
	maxText   = 256             // bytes of each text
	maxNumber = 1 << 40         // so that 8 million records add up within 63 bits
	maxMillis = 253402300799999 // the end of the year 9999
)

// failed reports whether the caller was refused or left with half an answer.
func (r *Record) failed() bool { return r.Status >= 400 && r.Status != 499 }

// clean makes a record that every database takes. A batch with one that it does
// not take could never be shipped.
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

// setNumbers takes over what numbers gave; the record must be cleaned.
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

// decode reads what encode wrote.
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
	var all [numbers]int64
	for i := range all {
		all[i] = number()
	}
	r.setNumbers(all)
	if err == nil && len(b) > 0 {
		err = errRecord
	}
	r.clean()
	return r, err
}
